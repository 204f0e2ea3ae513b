"""Captures the corpus that the kernel and other programs write, as root.

    python -c 'from tests.fuzz import capture; capture.main()' [TARGET...]

The files in the tree were written by Linux 6.18 on x86-64 and by the programs of Debian 12. Each is captured in a
namespace of its own, so that nothing of this host is in it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from ephmon.kernel.netlink import route
from tests import sockets
from tests.delivery.alertmanagers import alertmanager
from tests.fuzz.target import CORPUS
from tests.namespaces import Namespace
from tests.processes import Program, Running, ephmon, eventually, put
from tests.prometheus import prometheus

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE, PORT = "127.0.0.1", 8000
_SYSCTLS = (
    "sys/net/ipv4/ip_local_port_range",
    "sys/net/ipv4/ip_local_reserved_ports",
    "sys/net/ipv4/tcp_tw_reuse",
    "sys/net/ipv4/tcp_max_tw_buckets",
)
_RESERVED = "8080,9000-9002,40000-40100,65535"
_NAMES = (b"haproxy", b") R 1 (", b"a b)\n\xff", "Größe\u200b".encode(), b"\x1b[31m", b"-\\n-")


def main() -> None:
    """Write all files anew."""
    for name, capture in (
        ("route", _routes),
        ("sysctl", _sysctls),
        ("process", _processes),
        ("cgroup", _cgroups),
        ("http_head", _requests),
        ("webhook_answer", _answers),
        ("incident", _incidents),
    ):
        if len(sys.argv) > 1 and name not in sys.argv[1:]:
            continue
        folder = CORPUS / name
        folder.mkdir(exist_ok=True)
        for file, content in capture():
            (folder / file).write_bytes(content)


def _routes() -> Iterator[tuple[str, bytes]]:
    with Namespace() as ns:
        for command in (
            "addr add 192.0.2.9/24 dev lo",
            "-6 addr add 2001:db8::9/64 dev lo nodad",
            "route add blackhole 198.51.100.0/24",
            "route add unreachable 203.0.113.0/24",
            "route add prohibit 198.18.0.0/15",
        ):
            subprocess.run(ns.command("ip", *command.split()), check=True)
        for text in (
            "192.0.2.1",
            "2001:db8::1",
            "127.0.0.1",
            "::1",
            "198.51.100.1",
            "203.0.113.1",
            "198.18.0.1",
            "10.9.9.9",
            "192.0.2.255",
        ):
            yield text.replace(":", "_"), ns.call(_ask, text)


def _ask(text: str) -> bytes:
    return route.ask(route._request(ip_address(text), 443))


def _sysctls() -> Iterator[tuple[str, bytes]]:
    with Namespace() as ns:
        ns.call(sockets.write_sysctl, "net.ipv4.ip_local_reserved_ports", _RESERVED)
        for name in _SYSCTLS:
            yield name.rpartition("/")[2], ns.call(Path.read_bytes, Path("/proc", name))


def _processes() -> Iterator[tuple[str, bytes]]:
    for index, name in enumerate(_NAMES):
        with Namespace() as ns:
            ns.call(_take_name, name)
            for file in ("stat", "status"):
                yield f"{file}-{index}", Path(f"/proc/{ns.pid}/{file}").read_bytes()
    # In a namespace for cgroups, which leaves out where this host has its sessions.
    yield "cgroup", subprocess.check_output(["unshare", "--cgroup", "cat", "/proc/self/cgroup"])


def _take_name(name: bytes) -> None:
    Path("/proc/self/comm").write_bytes(name)


def _cgroups() -> Iterator[tuple[str, bytes]]:
    odd = "a b\\c\td\ne"
    with TemporaryDirectory() as folder, Namespace() as ns:
        (Path(folder) / odd).mkdir()
        script = 'mount -t cgroup2 none "$1"; head -c 8192 /proc/self/mountinfo; cat "$1"/cgroup.procs | head -n 50'
        shell = ["unshare", "--mount", "sh", "-ec", script, "sh", str(Path(folder) / odd)]
        answer = subprocess.run(ns.command(*shell), check=True, capture_output=True).stdout
    lines = answer.splitlines(keepends=True)
    mounts = [line for line in lines if b" - " in line]
    yield "mountinfo", b"".join(line for line in mounts if b"cgroup" in line or b"proc" in line)
    yield "cgroup.procs", b"".join(line for line in lines if line.strip().isdigit())


def _requests() -> Iterator[tuple[str, bytes]]:
    """What clients send: Prometheus, programs for the command line, and browsers as far as they are installed."""
    url = f"http://{HERE}:{PORT}/metrics"
    browsers = (
        ("curl", "curl", "-s", "-m2", url),
        ("curl-head", "curl", "-sI", "-m2", f"http://[::1]:{PORT}/"),
        ("curl-post", "curl", "-s", "-m2", "-d", "a=b", "-u", "user:password", f"http://localhost:{PORT}/api/v1/pools?x=y"),
        ("wget", "wget", "-q", "-O-", "-t1", "-T2", url),
        ("chromium", "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", f"http://localhost:{PORT}/"),
    )  # fmt: skip
    for name, *command in browsers:
        if shutil.which(command[0]) is None:
            continue
        with Namespace() as ns, TemporaryDirectory() as home:
            ns.call(_listen)
            with Program(ns.command("env", f"HOME={home}", "sh", "-c", '"$@"; sleep 60', "sh", *command)):
                yield name, ns.call(_take_head)
    with Namespace() as ns, TemporaryDirectory() as folder:
        ns.call(_listen)
        scraping = (
            f"scrape_configs: [{{job_name: e, scrape_interval: 1s, static_configs: [{{targets: ['{HERE}:{PORT}']}}]}}]"
        )
        with prometheus(ns, Path(folder) / "p", scraping):
            yield "prometheus", ns.call(_take_head)


_OPEN: list[socket.socket] = []


def _listen() -> None:
    listener = socket.create_server(("::", PORT), family=socket.AF_INET6, dualstack_ipv6=True)
    listener.settimeout(20)
    _OPEN.append(listener)


def _take_head() -> bytes:
    head = b""
    client, _ = _OPEN[0].accept()
    with client:
        client.settimeout(5)
        while b"\r\n\r\n" not in head and (piece := client.recv(65536)):
            head += piece
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    return head


def _answers() -> Iterator[tuple[str, bytes]]:
    """What receivers of alerts answer: Alertmanager, proxies before one, and Python's own server."""
    with Namespace() as ns, TemporaryDirectory() as folder:
        with alertmanager(ns, Path(folder)):
            yield "alertmanager", ns.call(_post, 9093, "/api/v2/alerts", b"[]")
            yield "alertmanager-400", ns.call(_post, 9093, "/api/v2/alerts", b"{")
            yield "alertmanager-404", ns.call(_post, 9093, "/nothing", b"[]")
        for name, command, port in _servers(Path(folder)):
            with Program(ns.command(*command)):
                yield name, eventually(partial(ns.call, _post, port, "/", b"[]"), bool)


def _servers(folder: Path) -> Iterator[tuple[str, list[str], int]]:
    nginx = put(
        folder / "nginx.conf",
        f"daemon off; error_log /dev/null; pid {folder}/pid; events {{}}"
        f" http {{ access_log off; client_body_temp_path {folder}/body;"
        " server { listen 8001; return 302 http://127.0.0.1/x; } }",
    )
    yield "nginx-302", ["nginx", "-c", str(nginx), "-p", str(folder)], 8001
    haproxy = put(
        folder / "haproxy.cfg",
        "defaults\n mode http\n timeout client 5s\n timeout connect 1s\n timeout server 5s\n"
        "listen a\n bind 127.0.0.1:8002\n server s 127.0.0.1:9\n",
    )
    yield "haproxy-503", ["haproxy", "-db", "-f", str(haproxy)], 8002
    yield "python-501", [sys.executable, "-m", "http.server", "8003", "--bind", HERE], 8003
    limited = put(
        folder / "limited.cfg",
        "defaults\n mode http\n timeout client 5s\n timeout connect 1s\n timeout server 5s\n"
        "listen a\n bind 127.0.0.1:8004\n http-request return status 429 hdr Retry-After 120\n",
    )
    yield "haproxy-429", ["haproxy", "-db", "-f", str(limited)], 8004


def _post(port: int, path: str, body: bytes) -> bytes:
    with contextlib.suppress(OSError), socket.create_connection((HERE, port), timeout=5) as ours:
        head = f"POST {path} HTTP/1.1\r\nHost: {HERE}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        ours.sendall(f"{head}\r\nConnection: close\r\n\r\n".encode() + body)
        answer = b""
        while piece := ours.recv(65536):
            answer += piece
        return answer
    return b""


def _incidents() -> Iterator[tuple[str, bytes]]:
    """What the daemon writes when real connections have used up a range of twenty ports."""
    with Namespace() as ns, TemporaryDirectory() as folder:
        place = Path(folder) / "incidents"
        place.mkdir()
        config = put(
            Path(folder) / "config.yaml",
            "poll: {interval: 100ms, cpu_budget: 1, urgent_cpu_budget: 1}\n"
            f"incidents: {{directory: {place}}}\nthresholds: {{critical: {{for: 0s}}}}\n",
        )
        ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", "40000 40019")
        ns.call(sockets.listen, HERE, PORT, tag="server")
        with Running(ns, ephmon("run", "--config", str(config))) as daemon:
            daemon.wait_for_line("ephmon")
            time.sleep(1)
            ns.call(sockets.fill, HERE, PORT, tag="clients")
            eventually(lambda: len(list(place.iterdir())), lambda number: number >= 1)
            time.sleep(1)
            for index, file in enumerate(sorted(place.iterdir())):
                content = file.read_bytes().replace(os.uname().release.encode(), b"6.18.44")
                yield f"incident-{index}.json", content.replace(os.uname().nodename.encode(), b"web1")
            daemon.stop()
