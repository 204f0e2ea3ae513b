"""Walks beside processes that open and close connections as fast as they can; for `Namespace.call`."""

from __future__ import annotations

import errno
import os
import socket
import time
from typing import TYPE_CHECKING, NamedTuple

from ephmon.facts.bind_table import Losses
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


class Churn(NamedTuple):
    """What walks counted of sockets that stayed, while others came and went."""

    stable: int
    """Sockets that stayed."""
    connects_per_second: float
    whole: list[int]
    """How many of them each walk saw that says of itself that it lost nothing."""
    flagged: list[int]
    """How many each other walk saw."""

    @property
    def missed_silently(self) -> int:
        """Walks that missed some, or counted some twice, and did not say so."""
        return sum(held != self.stable for held in self.whole)


def walk_beside_churn(stable: int, seconds: float) -> Churn:
    """Open sockets that stay, and walk while two processes connect, one of them to a port where nobody listens.

    A connection that is refused takes a port and gives it back within some microseconds, and its bucket with it.
    """
    walks.open_reader()
    fresh_namespace()
    # Hardly more ports than sockets that stay, so that most of what comes and goes is on their lists.
    sockets.write_sysctl("net.ipv4.ip_local_port_range", f"20000 {20_000 + stable * 11 // 10}")
    sockets.write_sysctl("net.core.somaxconn", stable)
    sockets.listen(HERE, PORT, tag="server", backlog=stable)
    assert sockets.open_sockets(Recipe(connect=(HERE, PORT)), tag="stable", limit=stable).count == stable
    reader, writer = os.pipe()
    children = [_child(writer, work, seconds) for work in (_connect_in_vain, _connect_and_reset)]
    os.close(writer)
    seen = []
    while children:
        table = walks.reader().read(Deadline(_DEADLINE_SECONDS, time.monotonic))
        assert table.own is not None
        seen.append((dict(table.own.pools())[walks.key(HERE, HERE, PORT)].held, table.losses))
        children = [child for child in children if os.waitpid(child, os.WNOHANG)[0] == 0]
    with os.fdopen(reader, "rb") as pipe:
        connects = sum(map(int, pipe.read().split()))
    whole = [held for held, losses in seen if losses == Losses()]
    return Churn(stable, connects / seconds, whole, [held for held, losses in seen if losses != Losses()])


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
