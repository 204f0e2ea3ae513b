"""Walks beside processes that open and close connections as fast as they can; for `Namespace.call`."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

from ephmon.facts.bind_table import BindTable, Losses
from ephmon.kernel.bpf.reader import BindTableReader
from ephmon.kernel.deadline import Deadline
from tests import sockets
from tests.kernel.bpf import walks
from tests.kernel_truth.mixes import fresh_namespace
from tests.sockets import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable

HERE, PORT = "127.0.0.1", 80
_DEADLINE_SECONDS = 20.0
_CHURNED = "127.0.0.2"
_NOBODY_LISTENS, _SOMEBODY_LISTENS = 81, 82
_DEFERRED_TO = [f"127.0.0.{host}" for host in range(3, 11)]
_TCP_FASTOPEN_CONNECT, _TCP_FASTOPEN_NO_COOKIE = 30, 34  # include/uapi/linux/tcp.h
_SOCKADDR_BYTES = 16


class _CountingReader(BindTableReader):
    """Counts its walks: it may take two to answer once."""

    walks = 0

    def _walk(self, deadline: Deadline, *, own_only: bool) -> BindTable:
        self.walks += 1
        return super()._walk(deadline, own_only=own_only)


class Churn(NamedTuple):
    """What walks counted of sockets that stayed, while others came and went."""

    stable: int
    """Sockets that stayed."""
    connects_per_second: float
    whole: list[int]
    """How many of them each walk saw that says of itself that it lost nothing."""
    flagged: list[int]
    """How many each other walk saw."""
    repeated: int
    """Walks that were made once more, because something had changed under them."""

    @property
    def missed_silently(self) -> int:
        """Walks that missed some, or counted some twice, and did not say so."""
        return sum(held != self.stable for held in self.whole)


def walk_beside_churn(stable: int, seconds: float) -> Churn:
    """Open sockets that stay, and walk while five processes connect, in three ways.

    One connects to a port where nobody listens: such a connection takes a port and gives it back within some
    microseconds, and its bucket with it. One is accepted and reset. The others only take ports and give them back,
    which is so quick that most of the connects are theirs.
    """
    table_reader = _CountingReader()
    fresh_namespace()
    # Hardly more ports than sockets that stay, so that most of what comes and goes is on their lists.
    sockets.write_sysctl("net.ipv4.ip_local_port_range", f"20000 {20_000 + stable * 11 // 10}")
    sockets.write_sysctl("net.core.somaxconn", stable)
    sockets.listen(HERE, PORT, tag="server", backlog=stable)
    assert sockets.open_sockets(Recipe(connect=(HERE, PORT)), tag="stable", limit=stable).count == stable
    reader, writer = os.pipe()
    works = (_connect_in_vain, _connect_and_reset, *[_connect_and_send_nothing] * 3)
    children = [_child(writer, work, seconds) for work in works]
    os.close(writer)
    seen = []
    while children:
        table = table_reader.read(Deadline(_DEADLINE_SECONDS, time.monotonic))
        assert table.own is not None
        seen.append((dict(table.own.pools())[walks.key(HERE, HERE, PORT)].held, table.losses))
        children = [child for child in children if os.waitpid(child, os.WNOHANG)[0] == 0]
    with os.fdopen(reader, "rb") as pipe:
        connects = sum(map(int, pipe.read().split()))
    table_reader.close()
    return Churn(
        stable=stable,
        connects_per_second=connects / seconds,
        whole=[held for held, losses in seen if losses == Losses()],
        flagged=[held for held, losses in seen if losses != Losses()],
        repeated=table_reader.walks - len(seen),
    )


def _child(writer: int, work: Callable[[float], int], seconds: float) -> int:
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, f"{work(time.monotonic() + seconds)}\n".encode())
        finally:
            os._exit(0)
    return child


def _connect_in_vain(end: float) -> int:
    number = 0
    while time.monotonic() < end:
        with socket.socket() as client:
            refused = client.connect_ex((_CHURNED, _NOBODY_LISTENS))
        assert refused == errno.ECONNREFUSED
        number += 1
    return number


def _connect_and_reset(end: float) -> int:
    number, address = 0, (_CHURNED, _SOMEBODY_LISTENS)
    with socket.create_server(address) as server:
        while time.monotonic() < end:
            walks.close_with_reset(socket.create_connection(address), server.accept()[0])
            number += 1
    return number


def _connect_and_send_nothing(end: float) -> int:
    """Let connect() take a port, and connect() to no address give it back (AF_UNSPEC, man 2 connect).

    Fast open defers the SYN until something is written (TCP_FASTOPEN_CONNECT, man 7 tcp), so nothing waits for a peer.
    """
    connect = ctypes.CDLL(None).connect  # of which one call costs less than that of the socket module
    family = socket.AF_INET.to_bytes(2, sys.byteorder)
    addresses = [family + PORT.to_bytes(2) + socket.inet_aton(host) + bytes(8) for host in _DEFERRED_TO]
    nowhere = socket.AF_UNSPEC.to_bytes(2, sys.byteorder) + bytes(_SOCKADDR_BYTES - 2)
    number = 0
    with socket.socket() as client:
        client.setsockopt(socket.IPPROTO_TCP, _TCP_FASTOPEN_CONNECT, 1)
        client.setsockopt(socket.IPPROTO_TCP, _TCP_FASTOPEN_NO_COOKIE, 1)
        while time.monotonic() < end:
            for address in addresses:
                failed = connect(client.fileno(), address, _SOCKADDR_BYTES)
                failed |= connect(client.fileno(), nowhere, _SOCKADDR_BYTES)
                assert not failed
            number += len(addresses)
    return number
