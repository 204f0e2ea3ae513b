"""What tests let an agent do with the bind table: functions for `Namespace.call`. Its reader stays open."""

from __future__ import annotations

import ctypes
import os
import re
import socket
import struct
import time
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from ephmon.facts.bind_counts import AddressCounts, ConnectCounts, PoolKey, PortFlag
from ephmon.kernel.bpf import load
from ephmon.kernel.bpf.libbpf import LIBRARY
from ephmon.kernel.bpf.reader import BindTableReader
from ephmon.kernel.deadline import Deadline
from tests import sockets
from tests.namespaces import bring_loopback_up

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ephmon.facts.bind_table import Losses, NamespaceBinds
    from ephmon.facts.snapshot import Sysctls

_DEADLINE_SECONDS = 20.0
_CLONE_NEWNET = 0x40000000
_RESET = struct.pack("@ii", 1, 0)  # struct linger
_readers: list[BindTableReader] = []


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What one walk counted in one namespace."""

    inode: int
    sysctls: Sysctls
    usable: int
    ports_in_use: int
    blocked: int
    v4: int
    any_v4: int
    any_v6: int
    accepted: int
    sockets: int
    losses: Losses
    blocked_ports: frozenset[int]
    pools: Mapping[PoolKey, ConnectCounts]
    addresses: Mapping[bytes, AddressCounts]
    flags: Mapping[int, PortFlag]

    def pool(self, source: str, destination: str, port: int, *, device: int = 0) -> ConnectCounts:
        """Return the counts of one pool."""
        return self.pools[key(source, destination, port, device=device)]


def key(source: str, destination: str, port: int, *, device: int = 0) -> PoolKey:
    """Return the key of a pool, from addresses as text."""
    return PoolKey(ip_address(source).packed, ip_address(destination).packed, port, device)


def walk() -> Seen:
    """Walk over the namespace of the agent alone."""
    (seen,) = _walk(own_only=True)
    return seen


def walk_every_namespace() -> list[Seen]:
    """Walk over the namespaces of the whole host."""
    return _walk(own_only=False)


def _walk(*, own_only: bool) -> list[Seen]:
    table = reader().read(Deadline(_DEADLINE_SECONDS, time.monotonic), own_only=own_only)
    return [_seen(one, table.losses) for one in table.namespaces]


def reader() -> BindTableReader:
    """Return the reader of the agent, which stays open."""
    if not _readers:
        _readers.append(BindTableReader())
    return _readers[0]


def use_reader(one: BindTableReader) -> None:
    """Let the agent walk with this reader from now on."""
    close_reader()
    _readers.append(one)


def close_reader() -> None:
    """Close the reader of the agent."""
    while _readers:
        _readers.pop().close()


def _seen(one: NamespaceBinds, losses: Losses) -> Seen:
    return Seen(
        inode=one.inode,
        sysctls=one.sysctls,
        usable=one.usable,
        ports_in_use=one.outside.in_use,
        blocked=one.outside.blocked,
        v4=one.outside.v4,
        any_v4=one.outside.any_v4,
        any_v6=one.outside.any_v6,
        accepted=one.accepted,
        sockets=one.sockets,
        losses=losses,
        blocked_ports=one.blocked_ports,
        pools=dict(one.pools()),
        addresses={address.address: address for address in one.addresses()},
        flags={port.port: port.flags for port in one.ports()},
    )


def connect_without_timestamps(destination: str, port: int, number: int, *, tag: str) -> None:
    """Open connections while the namespace negotiates no timestamps, as toward a peer that has none."""
    sockets.write_sysctl("net.ipv4.tcp_timestamps", 0)
    sockets.open_sockets(sockets.Recipe(connect=(destination, port)), tag=tag, limit=number)
    sockets.write_sysctl("net.ipv4.tcp_timestamps", 1)


def drop_capabilities() -> None:
    """Give up all capabilities of this process."""
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, none):
        raise OSError(ctypes.get_errno(), "capset")


def close_with_reset(*ends: socket.socket) -> None:
    """Close both ends of a connection so that nothing is left of them, not even a TIME_WAIT."""
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    for end in ends:
        end.close()


def make_namespaces(number: int, *, is_reserving: bool = True) -> set[int]:
    """Make namespaces that each have a listener, which keeps them alive; return their inodes."""
    inodes = set()
    for index in range(number):
        unshare_network()
        if is_reserving:
            sockets.write_sysctl("net.ipv4.ip_local_reserved_ports", 40_000 + index)
        sockets.listen("127.0.0.1", 0, tag="namespaces")
        inodes.add(Path("/proc/self/ns/net").stat().st_ino)
    return inodes


def unshare_network() -> None:
    """Go into a new network namespace, where loopback is up."""
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    bring_loopback_up()


def programs_of(process: int) -> list[int]:
    """Return the ids of the BPF programs that a process has open (/proc/PID/fdinfo, man 5 proc)."""
    descriptors = Path(f"/proc/{process}/fdinfo").iterdir()
    texts = [path.read_text(encoding="ascii") for path in descriptors if path.exists()]
    return [int(found[1]) for text in texts if (found := re.search(r"^prog_id:\t(\d+)$", text, re.MULTILINE))]


def is_program(program: int) -> bool:
    """Tell whether the kernel has a program with an id."""
    descriptor = ctypes.CDLL(LIBRARY).bpf_prog_get_fd_by_id(program)
    if descriptor >= 0:
        os.close(descriptor)
    return bool(descriptor >= 0)


def mapped_maps_of(process: int) -> int:
    """Return how many BPF maps a process has in memory."""
    return Path(f"/proc/{process}/maps").read_text(encoding="ascii").count("bpf-map")


def is_direct() -> bool:
    """Tell which of the two objects the reader of the agent uses."""
    return reader().is_direct


def use_copying_object() -> None:
    """Let the agent load the object that is for every kernel."""
    close_reader()
    load.DIRECT = load.COPYING


def open_reader() -> None:
    """Open the reader of the agent."""
    reader()
