"""The tcp_connect pool against the kernel: predict, then connect until it fails, and compare.

Each case prepares a namespace with a port range of 1,000 ports, asks ephmon how many connections toward one destination
will succeed, and opens them. On kernels before 6.18, where a port may stay blocked after the socket that blocked it has
gone, and before 6.8, where bound sockets are not shown, the prediction is held to its bounds instead.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator

import pytest

from ephmon.kernel.features import release_number
from ephmon.model.pools import Pool
from tests import sockets
from tests.kernel_truth.prediction import destinations, predict
from tests.namespaces import Namespace, connect
from tests.sockets import FillResult, Recipe

LOW, HIGH = 40_000, 40_999
PORTS = HIGH - LOW + 1
HERE, PORT = "127.0.0.1", 80
SHOWS_ALL = release_number(os.uname().release) >= (6, 18)


@pytest.fixture(name="ns")
def _ns() -> Iterator[Namespace]:
    with Namespace(addresses=["10.8.0.1/32"]) as ns:
        prepare(ns)
        yield ns


def prepare(ns: Namespace) -> None:
    """Set a small port range and a server outside it; a TIME_WAIT ends only by its time (tcp_rfc1337)."""
    ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", f"{LOW} {HIGH}")
    ns.call(sockets.write_sysctl, "net.ipv4.tcp_rfc1337", 1)
    ns.call(sockets.listen, HERE, PORT, tag="server")


def expect(ns: Namespace, count: int, *, destination: str = HERE, port: int = PORT, source: str = HERE) -> Pool:
    """Assert that ephmon says `count`, that the kernel does, and that ephmon says 0 afterwards; return the first word."""
    before = ns.call(predict, destination, port, source)
    filled = ns.call(sockets.fill, destination, port, tag="fill")
    after = ns.call(predict, destination, port, source)

    assert filled == FillResult(count, errno.EADDRNOTAVAIL)
    assert before.remaining_min <= count <= before.remaining_max
    assert after.failure_errno == errno.errorcode[filled.errno]
    if SHOWS_ALL:
        assert before.remaining == count
        assert (after.remaining, after.utilisation) == (0, 1.0)
    return before


def test_an_empty_range_gives_all_its_ports(ns: Namespace) -> None:
    assert expect(ns, PORTS).exact is SHOWS_ALL


def test_a_second_destination_has_all_ports_again(ns: Namespace) -> None:
    ns.call(sockets.listen, HERE, 81, tag="server")
    ns.call(sockets.listen, "127.0.0.2", PORT, tag="server")
    ns.call(sockets.fill, HERE, PORT, tag="clients")

    for number, (destination, port) in enumerate([(HERE, 81), ("127.0.0.2", PORT)]):
        pool = ns.call(predict, destination, port, HERE)
        filled = ns.call(sockets.fill, destination, port, tag=f"fill{number}")

        assert pool.remaining == pool.remaining_max == filled.count == PORTS


def test_reserved_ports_are_not_given(ns: Namespace) -> None:
    ns.call(sockets.write_sysctl, "net.ipv4.ip_local_reserved_ports", "40000-40048,40999,50000")

    assert expect(ns, PORTS - 50).usable == PORTS - 50


LISTENERS: dict[str, tuple[str, bool | None]] = {
    "the same address": (HERE, None),
    "another address": ("127.0.0.9", None),
    "every address": ("0.0.0.0", None),
    "IPv6 only": ("::1", True),
    "the IPv6 wildcard, IPv6 only": ("::", True),
    "the IPv6 wildcard of both families": ("::", False),
}


@pytest.mark.parametrize(("address", "v6only"), LISTENERS.values(), ids=LISTENERS)
def test_listeners_in_the_range_block_their_ports(ns: Namespace, address: str, v6only: bool | None) -> None:
    for port in range(LOW + 100, LOW + 110):
        ns.call(sockets.listen, address, port, tag="blockers", v6only=v6only)

    assert expect(ns, PORTS - 10).blocked == 10


BINDERS = {
    "a port of another address": Recipe(bind=("127.0.0.9", LOW + 100)),
    "a port, with SO_REUSEADDR": Recipe(bind=("127.0.0.9", LOW + 100), reuse_address=True),
    "a port, with SO_REUSEPORT": Recipe(bind=("127.0.0.9", LOW + 100), reuse_port=True),
    "any port": Recipe(bind=("127.0.0.9", 0)),
    "any port of any address": Recipe(bind=("0.0.0.0", 0)),
    "any port of an IPv6 address": Recipe(bind=("::1", 0)),
}


@pytest.mark.skipif(release_number(os.uname().release) < (6, 8), reason="this kernel does not show bound sockets")
@pytest.mark.parametrize("recipe", BINDERS.values(), ids=BINDERS)
def test_bound_but_unconnected_sockets_block_their_ports(ns: Namespace, recipe: Recipe) -> None:
    ns.call(sockets.open_sockets, recipe, tag="blockers", limit=1)

    assert expect(ns, PORTS - 1).blocked == 1


def test_a_socket_that_has_an_address_but_no_port_blocks_nothing(ns: Namespace) -> None:
    ns.call(sockets.open_sockets, Recipe(bind=(HERE, 0), no_port=True), tag="others", limit=10)

    assert expect(ns, PORTS).blocked == 0


def test_a_connected_socket_that_named_its_port_blocks_it_for_all_destinations(ns: Namespace) -> None:
    ns.call(sockets.listen, HERE, 81, tag="server")
    for port in range(LOW, LOW + 10):
        ns.call(sockets.open_sockets, Recipe(bind=(HERE, port), connect=(HERE, 81)), tag="named", limit=1)

    assert expect(ns, PORTS - 10).blocked == 10


def test_udp_sockets_block_nothing(ns: Namespace) -> None:
    ns.call(sockets.open_sockets, Recipe(udp=True, bind=(HERE, 0)), tag="udp", limit=50)

    assert expect(ns, PORTS).blocked == 0


def test_ipv4_mapped_clients_draw_from_the_ipv4_pool(ns: Namespace) -> None:
    ns.call(sockets.fill, f"::ffff:{HERE}", PORT, tag="mapped", limit=400)

    assert expect(ns, PORTS - 400).in_use == 400


def test_ipv6_has_tuples_of_its_own_on_the_same_ports(ns: Namespace) -> None:
    ns.call(sockets.listen, "::1", PORT, tag="server", v6only=True)
    ns.call(sockets.fill, HERE, PORT, tag="clients")

    expect(ns, PORTS, destination="::1", source="::1")


def test_a_range_of_odd_size_gives_all_its_ports_or_one_less(ns: Namespace) -> None:
    ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", "40000 40100")
    pool = ns.call(predict, HERE, PORT, HERE)
    filled = ns.call(sockets.fill, HERE, PORT, tag="fill")

    assert (pool.remaining_min, pool.remaining, pool.remaining_max, pool.exact) == (100, 101, 101, False)
    assert filled.count in {100, 101}


def test_a_range_of_one_port_gives_one(ns: Namespace) -> None:
    ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", "40000 40000")

    assert expect(ns, 1).remaining_min == 1


def test_sockets_outside_the_range_count_nowhere(ns: Namespace) -> None:
    ns.call(sockets.fill, HERE, PORT, tag="clients", limit=300)
    inside = sum(port >= LOW + 500 for port in ns.call(sockets.ports_of, "clients"))
    ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", f"{LOW + 500} {HIGH}")

    assert expect(ns, 500 - inside).in_use == inside


def test_a_handshake_without_answer_takes_a_port() -> None:
    with Namespace() as client, Namespace(beside=client) as server:
        connect(client, server, addresses=("10.9.0.1/24", "10.9.0.2/24"))
        client.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", f"{LOW} {HIGH}")
        # The neighbour is known and nobody has this address behind it: a SYN goes out and nothing comes back.
        client.call(_route_into_the_void, "10.99.0.0/16", "10.9.0.2")
        waiting = Recipe(connect=("10.99.0.1", 443), wait=False)
        client.call(sockets.open_sockets, waiting, tag="waiting", limit=700)

        pool = client.call(predict, "10.99.0.1", 443, "10.9.0.1")
        filled = client.call(sockets.open_sockets, waiting, tag="fill", limit=sockets.ALL_PORTS)

    assert pool.states == {"syn_sent": 700}
    assert (pool.remaining, filled) == (300, FillResult(300, errno.EADDRNOTAVAIL))


def _route_into_the_void(network: str, gateway: str) -> None:
    from tests.namespaces import ip

    ip("route", "add", network, "via", gateway)


def test_an_inbound_server_in_the_range_makes_no_destinations(ns: Namespace) -> None:
    """A server whose listening port lies in the range has a thousand peers, none of which it connected to."""
    ns.call(sockets.listen, "0.0.0.0", LOW + 7, tag="server")
    ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", f"{LOW} {HIGH}")
    ns.call(sockets.fill, "127.0.0.3", LOW + 7, tag="inbound", limit=900)
    ns.call(sockets.accept_all, "server", tag="accepted")
    found = ns.call(destinations)

    assert found == {("127.0.0.3", LOW + 7)}
    assert expect(ns, PORTS - 1).blocked == 1


def test_sockets_bound_to_a_device_stop_only_others_on_it(ns: Namespace) -> None:
    on_lo = Recipe(device="lo", connect=(HERE, PORT))
    ns.call(sockets.open_sockets, on_lo, tag="on lo", limit=600)
    pool = ns.call(predict, HERE, PORT, HERE)
    unbound = ns.call(sockets.fill, HERE, PORT, tag="unbound")

    assert (pool.in_use, pool.remaining, pool.remaining_max) == (600, 400, PORTS)
    assert unbound == FillResult(PORTS, errno.EADDRNOTAVAIL)
    full = ns.call(predict, HERE, PORT, HERE)
    assert (full.in_use, full.remaining, full.held) == (PORTS, 0, PORTS)
    assert full.states == {"established": PORTS + 600}


def test_a_pool_says_what_its_sockets_do(ns: Namespace) -> None:
    ns.call(sockets.fill, HERE, PORT, tag="open", limit=30)
    ns.call(sockets.fill, HERE, PORT, tag="closed", limit=20)
    ns.call(sockets.close, "closed")

    assert ns.call(predict, HERE, PORT, HERE).states == {"established": 30, "fin_wait2": 20}


Leave = Callable[[Namespace, int], None]


def leave_time_wait(ns: Namespace, number: int, *, destination: str = HERE) -> None:
    """Leave TIME_WAITs on the client's side, all older than the reuse delay, which is set to its least."""
    ns.call(sockets.write_sysctl, "net.ipv4.tcp_tw_reuse_delay", 1)
    ns.call(sockets.fill, destination, PORT, tag="leaving", limit=number)
    ns.call(sockets.accept_all, "server", tag="accepted")
    ns.call(sockets.close, "leaving")
    ns.call(sockets.close, "accepted")


@pytest.mark.parametrize(("reuse", "count"), [(0, PORTS - 400), (1, PORTS), (2, PORTS)])
def test_time_wait_on_loopback_is_reusable_unless_reuse_is_off(ns: Namespace, reuse: int, count: int) -> None:
    ns.call(sockets.write_sysctl, "net.ipv4.tcp_tw_reuse", reuse)
    leave_time_wait(ns, 400)
    pool = expect(ns, count)

    assert (pool.time_wait, pool.reusable) == (400, count - (PORTS - 400))


@pytest.mark.parametrize(("reuse", "count"), [(0, PORTS - 400), (1, PORTS), (2, PORTS - 400)])
def test_an_own_address_that_is_not_127_is_not_loopback(ns: Namespace, reuse: int, count: int) -> None:
    ns.call(sockets.write_sysctl, "net.ipv4.tcp_tw_reuse", reuse)
    ns.call(sockets.listen, "10.8.0.1", PORT, tag="server")
    leave_time_wait(ns, 400, destination="10.8.0.1")
    pool = expect(ns, count, destination="10.8.0.1", source="10.8.0.1")

    assert pool.remaining_min == PORTS - 400


def test_time_wait_without_timestamps_is_never_reusable(ns: Namespace) -> None:
    ns.call(sockets.write_sysctl, "net.ipv4.tcp_timestamps", 0)
    ns.call(sockets.write_sysctl, "net.ipv4.tcp_tw_reuse", 1)
    leave_time_wait(ns, 400)

    assert expect(ns, PORTS - 400).reusable == 0


def test_time_wait_younger_than_the_delay_is_not_reusable_yet(ns: Namespace) -> None:
    leave_time_wait(ns, 400)
    ns.call(sockets.write_sysctl, "net.ipv4.tcp_tw_reuse_delay", 60_000)

    assert expect(ns, PORTS - 400).reusable == 0


def test_fin_wait2_is_not_reusable(ns: Namespace) -> None:
    ns.call(sockets.write_sysctl, "net.ipv4.tcp_tw_reuse", 1)
    ns.call(sockets.write_sysctl, "net.ipv4.tcp_tw_reuse_delay", 1)
    ns.call(sockets.fill, HERE, PORT, tag="leaving", limit=400)
    ns.call(sockets.close, "leaving")
    pool = expect(ns, PORTS - 400)

    assert (pool.states, pool.time_wait) == ({"fin_wait2": 400}, 0)
