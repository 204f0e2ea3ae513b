"""The work of one reading, counted where the kernel's answers come in: dumps, datagrams, rows and bytes.

Counts do not depend on the machine, so they guard what a poll costs where a stopwatch could not.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from ephmon.kernel.netlink.sock_diag import Request, SockDiag
from ephmon.kernel.source import SocketSource
from tests import sockets
from tests.namespaces import Namespace
from tests.sockets import FillResult, Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ephmon.kernel.deadline import Deadline

HERE, THERE = "127.0.0.1", "127.0.0.9"
SERVER, INSIDE = 80, 40_500
"""Ports that are listened on, outside and inside of the port range."""
TCP, BY_FAMILY = 18, 20
"""Message types of requests: both families in one walk over the TCP sockets, and one family of a protocol."""
MOST_BYTES_A_ROW = 132
"""A full socket of Linux 6.18, IPv6 and unconnected; with struct tcp_info it would be 408."""


class Dump(NamedTuple):
    """One request and how many sockets the kernel copied out for it."""

    message_type: int
    rows: int


LISTENERS = Dump(TCP, 1)
"""Who listens anywhere: the server."""


@dataclass(slots=True)
class Work:
    """What one reading made the kernel do."""

    dumps: list[Dump] = field(default_factory=list)
    datagrams: int = 0
    bytes: int = 0


class CountingDiag(SockDiag):
    """Counts what passes through it."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self._work = work

    def dump(self, request: Request, consume: Callable[[int, bytearray], None], deadline: Deadline) -> None:
        rows = 0

        def count(length: int, block: bytearray) -> None:
            nonlocal rows
            rows += len(block) // length
            self._work.bytes += len(block)
            consume(length, block)

        super().dump(request, count, deadline)
        self._work.dumps.append(Dump(request.message_type, rows))

    def _receive(self, deadline: Deadline) -> int:
        self._work.datagrams += 1
        return super()._receive(deadline)


def work_of_a_reading(*, evidence: bool = True) -> Work:
    """Return the work of a reading in this namespace that is not the first: that one also tries what the kernel can."""
    works: list[Work] = []

    def open_diag() -> SockDiag:
        return CountingDiag(works[-1])

    source = SocketSource(proc=Path("/proc"), clock=time.monotonic, wall_clock=time.time, open_diag=open_diag)
    for _ in range(2):
        works.append(Work())
        source.read(60.0, evidence=evidence)
    return works[-1]


@pytest.fixture(name="ns")
def _ns() -> Iterator[Namespace]:
    with Namespace() as ns:
        ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", "40000 40999")
        ns.call(sockets.listen, HERE, SERVER, tag="server")
        yield ns


def hold(ns: Namespace, *recipes: Recipe) -> None:
    for recipe in recipes:
        assert ns.call(sockets.open_sockets, recipe, tag="held", limit=1) == FillResult(1, 0)


def test_without_sockets_inside_the_range_a_reading_is_six_dumps_and_one_row(ns: Namespace) -> None:
    """TCP: what listens or is bound, what named its port, who listens anywhere, the connections; UDP: both families."""
    work = ns.call(work_of_a_reading)

    assert work.dumps == [Dump(TCP, 0), Dump(TCP, 0), LISTENERS, Dump(TCP, 0), Dump(BY_FAMILY, 0), Dump(BY_FAMILY, 0)]
    assert work.datagrams == 6 + 1


def test_a_connection_is_copied_once_and_its_other_end_outside_the_range_never(ns: Namespace) -> None:
    assert ns.call(sockets.fill, HERE, SERVER, tag="clients", limit=700) == FillResult(700, 0)

    work = ns.call(work_of_a_reading)

    assert work.dumps == [Dump(TCP, 0), Dump(TCP, 0), LISTENERS, Dump(TCP, 700), Dump(BY_FAMILY, 0), Dump(BY_FAMILY, 0)]
    assert work.bytes <= (700 + 1) * MOST_BYTES_A_ROW


def test_counting_leaves_out_the_walk_for_named_ports_and_asks_for_listeners_alone(ns: Namespace) -> None:
    """Looking for bound sockets makes the kernel pass by all others: a fifth of the whole at 120,000."""
    assert ns.call(sockets.fill, HERE, SERVER, tag="clients", limit=300) == FillResult(300, 0)
    hold(ns, Recipe(bind=(HERE, 0)))

    work = ns.call(work_of_a_reading, evidence=False)

    assert work.dumps == [Dump(TCP, 0), Dump(TCP, 300), Dump(BY_FAMILY, 0), Dump(BY_FAMILY, 0)]


def test_the_kernel_fills_whole_buffers(ns: Namespace) -> None:
    """32 KiB hold 264 connections; each dump ends with a datagram of its own."""
    assert ns.call(sockets.fill, HERE, SERVER, tag="clients", limit=1000) == FillResult(1000, 0)

    assert ns.call(work_of_a_reading).datagrams <= 4 + 6 + 1


def test_sockets_accepted_inside_the_range_are_not_copied_their_listener_is(ns: Namespace) -> None:
    ns.call(sockets.listen, HERE, INSIDE, tag="service")
    hold(ns, *(Recipe(bind=(THERE, port), connect=(HERE, INSIDE)) for port in range(50_000, 50_040)))

    work = ns.call(work_of_a_reading)

    assert work.dumps == [
        Dump(TCP, 1),
        Dump(TCP, 0),
        Dump(TCP, 2),
        Dump(TCP, 0),
        Dump(BY_FAMILY, 0),
        Dump(BY_FAMILY, 0),
    ]


def test_a_socket_that_named_its_port_is_copied_twice(ns: Namespace) -> None:
    hold(ns, *(Recipe(bind=(HERE, port), connect=(HERE, SERVER)) for port in range(40_000, 40_003)))

    work = ns.call(work_of_a_reading)

    assert work.dumps == [Dump(TCP, 0), Dump(TCP, 3), LISTENERS, Dump(TCP, 3), Dump(BY_FAMILY, 0), Dump(BY_FAMILY, 0)]


def test_time_waits_are_copied_with_the_connections(ns: Namespace) -> None:
    # Without it a late RST may delete a TIME_WAIT before its time.
    ns.call(sockets.write_sysctl, "net.ipv4.tcp_rfc1337", 1)
    ns.call(sockets.fill, HERE, SERVER, tag="clients", limit=20)
    assert ns.call(sockets.accept_all, "server", tag="accepted") == 20
    ns.call(sockets.close, "clients")
    ns.call(sockets.close, "accepted")

    work = ns.call(work_of_a_reading)

    assert work.dumps == [Dump(TCP, 0), Dump(TCP, 0), LISTENERS, Dump(TCP, 20), Dump(BY_FAMILY, 0), Dump(BY_FAMILY, 0)]
    assert work.bytes <= 20 * 96 + MOST_BYTES_A_ROW


def test_bound_sockets_cost_one_dump_more(ns: Namespace) -> None:
    """Only where there are any is asked which of them let bind() choose."""
    hold(ns, Recipe(bind=(HERE, 0)), Recipe(bind=(HERE, 40_007)))

    work = ns.call(work_of_a_reading)

    assert work.dumps == [
        *(Dump(TCP, 2), Dump(TCP, 0), LISTENERS, Dump(TCP, 0), Dump(TCP, 1)),
        *(Dump(BY_FAMILY, 0), Dump(BY_FAMILY, 0)),
    ]


def test_udp_sockets_are_copied_once_and_again_only_where_some_are_bound_to_an_address(ns: Namespace) -> None:
    hold(ns, *(Recipe(udp=True, connect=(HERE, port)) for port in range(1, 31)))
    tcp = [Dump(TCP, 0), Dump(TCP, 0), LISTENERS, Dump(TCP, 0)]

    assert ns.call(work_of_a_reading).dumps == [*tcp, Dump(BY_FAMILY, 30), Dump(BY_FAMILY, 0)]

    hold(ns, Recipe(udp=True, bind=(HERE, 0)))

    assert ns.call(work_of_a_reading).dumps == [
        *(*tcp, Dump(BY_FAMILY, 31), Dump(BY_FAMILY, 0)),
        *(Dump(BY_FAMILY, 1), Dump(BY_FAMILY, 0)),
    ]
