"""A stage with two proxies on it: HAProxy and nginx, each in a cgroup of its own, and an upstream that says nothing.

with proxies(tmp_path) as stage:
stage.connect(TO_HAPROXY, 30, tag="clients")
"""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from ephmon.facts.snapshot import PortRange
from ephmon.model.owners.names import Owner, OwnerKind
from tests import sockets
from tests.cgroups import Cgroups
from tests.namespaces import Namespace
from tests.processes import eventually
from tests.sockets import FillResult

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

INSIDE = PortRange(40_000, 40_999)
HERE, UPSTREAM = "127.0.0.1", "127.0.0.9"
TO_HAPROXY, TO_HAPROXY_THAT_BINDS, TO_NGINX = 8080, 8081, 8090
CONTAINER_ID = "3f2a9c0b1d4e5f60718293a4b5c6d7e8f90112233445566778899aabbccddeef"
HAPROXY_CGROUP, NGINX_CGROUP = "haproxy.service", f"docker-{CONTAINER_ID}.scope"
HAPROXY, NGINX = Owner(OwnerKind.UNIT, "haproxy.service"), Owner(OwnerKind.CONTAINER, "3f2a9c0b1d4e")

HAPROXY_CONFIGURATION = f"""
defaults
    mode tcp
    timeout connect 30s
    timeout client 300s
    timeout server 300s
listen connects
    bind {HERE}:{TO_HAPROXY}
    server upstream {UPSTREAM}:80
listen binds
    bind {HERE}:{TO_HAPROXY_THAT_BINDS}
    server upstream {UPSTREAM}:80 source {HERE}:40100-40149
"""
NGINX_CONFIGURATION = f"""
daemon off;
user root;
pid nginx.pid;
error_log stderr;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    proxy_read_timeout 300s;
    server {{
        listen {HERE}:{TO_NGINX};
        listen {HERE}:40500;
        listen {HERE}:40501;
        location / {{ proxy_pass http://{UPSTREAM}:80; }}
    }}
}}
"""
REQUEST = b"GET / HTTP/1.1\r\nHost: upstream\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Stage:
    """A namespace with both proxies in it, and an upstream that accepts and says nothing."""

    ns: Namespace
    cgroups: Cgroups

    def connect(self, port: int, number: int, *, tag: str) -> None:
        """Open connections through a proxy, each with a request, and wait until they are upstream."""
        before = self.upstream()
        assert self.ns.call(sockets.fill, HERE, port, tag=tag, limit=number) == FillResult(number, 0)
        self.ns.call(send_requests, tag)
        eventually(self.upstream, lambda now: now == before + number)

    def upstream(self) -> int:
        return len(self.ns.call(states_toward, UPSTREAM, 80, "01"))

    def hang_up(self, tag: str, waiting: int) -> None:
        """Close clients, so that the proxy closes its connections first, and wait until they are TIME_WAITs."""
        self.ns.call(sockets.close, tag)
        eventually(self.closing, lambda number: number >= waiting)
        self.ns.call(sockets.accept_all, "upstream", tag="accepted")
        self.ns.call(close_what_ended, "accepted")
        eventually(lambda: len(self.ns.call(states_toward, UPSTREAM, 80, "06")), lambda number: number == waiting)

    def closing(self) -> int:
        return sum(len(self.ns.call(states_toward, UPSTREAM, 80, state)) for state in ("05", "06"))


def send_requests(tag: str) -> None:
    for sock in sockets.held[tag]:
        sock.sendall(REQUEST)


def close_what_ended(tag: str) -> None:
    """Close the connections whose other end has sent its last byte."""
    kept = []
    for sock in sockets.held[tag]:
        sock.setblocking(False)
        if has_ended(sock):
            sock.close()
        else:
            kept.append(sock)
    sockets.held[tag] = kept


def has_ended(sock: socket.socket) -> bool:
    try:
        while sock.recv(1 << 16):
            continue
    except BlockingIOError:
        return False
    return True


def states_toward(address: str, port: int, state: str) -> list[str]:
    """Return the rows of /proc/net/tcp in a state toward an address."""
    peer = f"{int.from_bytes(ip_address(address).packed, 'little'):08X}:{port:04X}"
    rows = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    return [row for row in rows if row.split()[2:4] == [peer, state]]


@contextmanager
def proxies(folder: Path) -> Iterator[Stage]:
    """Start both, in a new namespace and with files of theirs in the folder."""
    (folder / "haproxy.cfg").write_text(HAPROXY_CONFIGURATION)
    (folder / "nginx.conf").write_text(NGINX_CONFIGURATION)
    haproxy, nginx = (shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") for name in ("haproxy", "nginx"))
    assert haproxy is not None
    assert nginx is not None, "install Debian's package nginx"
    with Namespace() as ns, Cgroups(ns) as cgroups, ExitStack() as running:
        ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", f"{INSIDE.low} {INSIDE.high}")
        ns.call(sockets.write_sysctl, "net.ipv4.tcp_tw_reuse", 0)
        ns.call(sockets.listen, UPSTREAM, 80, tag="upstream")
        for cgroup, command in (
            (HAPROXY_CGROUP, [haproxy, "-db", "-f", str(folder / "haproxy.cfg")]),
            (NGINX_CGROUP, [nginx, "-e", "stderr", "-p", str(folder), "-c", "nginx.conf"]),
        ):
            cgroups.make(cgroup)
            running.enter_context(cgroups.running(cgroup, *command))
        eventually(lambda: ns.call(listening), {TO_HAPROXY, TO_HAPROXY_THAT_BINDS, TO_NGINX}.issubset)
        yield Stage(ns, cgroups)


def listening() -> set[int]:
    """Return the ports on which somebody listens in the namespace of the caller."""
    rows = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    return {int(local.rpartition(":")[2], 16) for _, local, _, state, *_ in map(str.split, rows) if state == "0A"}
