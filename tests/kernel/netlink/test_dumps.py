"""What the dumps of inet_diag bring from a live kernel: the sockets inside the port range, and no others."""

from __future__ import annotations

import time
from collections import Counter
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ephmon.facts.snapshot import PortRange
from ephmon.facts.sockets import Blindness, SocketTable, TcpSockets, TcpState, UdpSockets
from ephmon.kernel.deadline import Deadline
from ephmon.kernel.netlink import dumps
from ephmon.kernel.netlink.sock_diag import SockDiag
from ephmon.kernel.proc.sysctl import read_release
from tests import sockets
from tests.namespaces import Namespace
from tests.sockets import FillResult, Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator

INSIDE = PortRange(41_000, 41_999)
OTHERS = "50000 50999"
"""Where the sockets draw their ports whose port does not matter."""
HERE, ELSEWHERE, HERE_V6 = "127.0.0.1", "127.0.0.9", "::1"
ESTABLISHED, LISTEN, CLOSE = TcpState.ESTABLISHED, TcpState.LISTEN, TcpState.CLOSE

Place = tuple[int, str, int]
"""State, local address and local port."""


@pytest.fixture(name="ns")
def _ns() -> Iterator[Namespace]:
    with Namespace() as ns:
        ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", OTHERS)
        ns.call(sockets.listen, HERE, 80, tag="server")
        yield ns


def read_tcp(*, shows_bound_unconnected: bool = True) -> TcpSockets:
    with SockDiag() as diag:
        return dumps.read_tcp(
            diag, INSIDE, minute(), shows_bound_unconnected=shows_bound_unconnected, ports_recover=True
        )


def read_udp() -> UdpSockets:
    with SockDiag() as diag:
        return dumps.read_udp(diag, INSIDE, minute())


def minute() -> Deadline:
    return Deadline(60, time.monotonic)


def places(table: SocketTable) -> Counter[Place]:
    rows = ((table.groups[group], port) for group, port in zip(table.group_of, table.port_of, strict=True))
    return Counter((group.state, str(ip_address(group.source)), port) for group, port in rows)


def hold(ns: Namespace, *recipes: Recipe) -> None:
    for recipe in recipes:
        assert ns.call(sockets.open_sockets, recipe, tag="held", limit=1) == FillResult(1, 0)


def test_only_sockets_inside_the_range_are_read(ns: Namespace) -> None:
    for port in (40_999, 41_000, 41_999, 42_000):
        hold(ns, Recipe(bind=(HERE, port), connect=(HERE, 80)), Recipe(bind=(ELSEWHERE, port), listen=1))
        hold(ns, Recipe(udp=True, bind=(HERE, port)), Recipe(udp=True, bind=(HERE_V6, port)))

    tcp, udp = ns.call(read_tcp), ns.call(read_udp)

    assert places(tcp.connections) == Counter([(ESTABLISHED, HERE, 41_000), (ESTABLISHED, HERE, 41_999)])
    assert places(tcp.bound) == Counter([(LISTEN, ELSEWHERE, 41_000), (LISTEN, ELSEWHERE, 41_999)])
    assert places(udp.sockets) == Counter(
        (CLOSE, address, port) for address in (HERE, HERE_V6) for port in (41_000, 41_999)
    )


def test_ports_that_were_named_are_told_from_those_that_were_drawn(ns: Namespace) -> None:
    ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", f"{INSIDE.low} {INSIDE.high}")
    hold(ns, Recipe(bind=(HERE, 41_007), connect=(HERE, 80)))
    hold(ns, Recipe(connect=(HERE, 80)), Recipe(bind=(HERE, 0), connect=(HERE, 80)))

    tcp = ns.call(read_tcp)

    assert tcp.explicit_ports == {41_007}
    assert len(tcp.connections) == 3


@pytest.mark.skipif(read_release(Path("/proc")) < (6, 8), reason="this kernel does not show bound sockets")
def test_bound_sockets_are_read_beside_listeners_unless_they_have_no_port_yet(ns: Namespace) -> None:
    hold(ns, Recipe(bind=(HERE, 41_007)), Recipe(bind=(HERE_V6, 41_008)), Recipe(bind=(HERE, 41_009), listen=1))
    hold(ns, Recipe(bind=(HERE, 0), no_port=True))

    tcp = ns.call(read_tcp)

    assert places(tcp.bound) == Counter([(CLOSE, HERE, 41_007), (CLOSE, HERE_V6, 41_008), (LISTEN, HERE, 41_009)])
    assert places(tcp.connections) == Counter()


def test_what_the_kernel_does_not_show_is_named(ns: Namespace) -> None:
    assert ns.call(read_tcp, shows_bound_unconnected=True).blind_to == set()
    assert ns.call(read_tcp, shows_bound_unconnected=False).blind_to == {Blindness.BOUND_UNCONNECTED}


def serve(ns: Namespace, address: str, port: int, *, v6only: bool | None = None, to: str) -> None:
    """Listen inside the range, and accept one connection that comes from outside of it."""
    ns.call(sockets.listen, address, port, tag=f"listener {port}", v6only=v6only)
    assert ns.call(sockets.fill, to, port, tag="clients", limit=1) == FillResult(1, 0)
    assert ns.call(sockets.accept_all, f"listener {port}", tag="accepted") == 1


def test_what_listeners_accepted_is_left_out_for_64_of_them_and_no_more(ns: Namespace) -> None:
    for port in range(41_000, 41_064):
        serve(ns, HERE, port, to=HERE)
    assert places(ns.call(read_tcp).connections) == Counter()

    serve(ns, HERE, 41_064, to=HERE)
    serve(ns, HERE, 41_065, to=HERE)
    tcp = ns.call(read_tcp)

    assert len(tcp.bound) == 66
    assert len(tcp.connections) == 2
    assert set(tcp.connections.port_of) < set(tcp.bound.port_of)


LISTENERS: dict[str, tuple[str, bool | None, str]] = {
    "an address": (HERE, None, HERE),
    "every address": ("0.0.0.0", None, ELSEWHERE),
    "an IPv6 address": (HERE_V6, None, HERE_V6),
    "an IPv4-mapped address": (f"::ffff:{HERE}", None, HERE),
    "the wildcard of both families, by IPv4": ("::", False, HERE),
    "the wildcard of both families, by IPv6": ("::", False, HERE_V6),
}


@pytest.mark.parametrize(("address", "v6only", "to"), LISTENERS.values(), ids=LISTENERS)
def test_what_a_listener_accepted_is_left_out_whatever_it_listens_on(
    ns: Namespace, address: str, v6only: bool | None, to: str
) -> None:
    serve(ns, address, 41_007, v6only=v6only, to=to)

    assert places(ns.call(read_tcp).connections) == Counter()


def test_what_the_ipv6_wildcard_alone_accepted_is_read(ns: Namespace) -> None:
    """Its connections cannot be told in bytecode from IPv4 ones of the same port, which must not be lost."""
    serve(ns, "::", 41_007, v6only=True, to=HERE_V6)
    hold(ns, Recipe(bind=(HERE, 41_007), connect=(HERE, 80)))

    assert places(ns.call(read_tcp).connections) == Counter(
        [(ESTABLISHED, HERE_V6, 41_007), (ESTABLISHED, HERE, 41_007)]
    )


@pytest.mark.parametrize(("listens", "connects"), [(ELSEWHERE, HERE), (HERE_V6, HERE)])
def test_a_connection_from_another_address_on_a_listeners_port_is_read(
    ns: Namespace, listens: str, connects: str
) -> None:
    ns.call(sockets.listen, listens, 41_007, tag="listener")
    hold(ns, Recipe(bind=(connects, 41_007), connect=(HERE, 80)))

    assert places(ns.call(read_tcp).connections) == Counter([(ESTABLISHED, connects, 41_007)])
