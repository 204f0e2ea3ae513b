"""A walk over the bind table, held against sockets whose state is known."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from ephmon.facts.bind_counts import SECONDS_OF_A_CELL, PortFlag
from ephmon.facts.sockets import TcpState
from ephmon.kernel.bpf.reader import MOST_BITMAPS
from ephmon.kernel.proc.sysctl import read_release, read_sysctls
from tests import sockets
from tests.kernel.bpf import churn, lifetimes, walks
from tests.kernel_truth.mixes import OWN, fresh_namespace
from tests.namespaces import Namespace, connect, ip
from tests.sockets import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

from pathlib import Path

pytestmark = pytest.mark.only_root

HERE, OTHER = "127.0.0.1", "127.0.0.2"
LOW, HIGH = 40_000, 40_099
TIMES, SECONDS = 10, 600.0
PORT = 80
PROC = Path("/proc")
HAS_DELAY = Path("/proc/sys/net/ipv4/tcp_tw_reuse_delay").exists()


@pytest.fixture(name="agent", scope="module")
def _agent() -> Iterator[Namespace]:
    """One process for all tests, because loading the program takes it a quarter of a second."""
    with Namespace() as agent:
        yield agent


@pytest.fixture(name="ns")
def _ns(agent: Namespace) -> Namespace:
    """The agent, in a namespace that is new."""
    agent.call(fresh_namespace)
    agent.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", f"{LOW} {HIGH}")
    agent.call(sockets.write_sysctl, "net.ipv4.tcp_rfc1337", 1)
    agent.call(sockets.listen, HERE, PORT, tag="server")
    return agent


def leave_time_waits(ns: Namespace, number: int, **recipe: object) -> None:
    """Open connections, and close the clients first."""
    made = ns.call(sockets.open_sockets, Recipe(connect=(HERE, PORT), **recipe), tag="leaving", limit=number)  # type: ignore[arg-type]
    assert made.count == number
    end(ns)


def end(ns: Namespace, server: str = "server") -> None:
    ns.call(sockets.accept_all, server, tag="accepted")
    ns.call(sockets.close, "leaving")
    ns.call(sockets.close, "accepted")


# --- the namespace ---------------------------------------------------------------------------------------------------


def test_a_namespace_without_a_socket_shows_its_settings() -> None:
    with Namespace() as ns:
        ns.call(sockets.write_sysctl, "net.ipv4.tcp_tw_reuse", 1)
        seen = ns.call(walks.walk)

        assert seen.inode == ns.inode
        assert seen.sysctls == ns.call(read_sysctls, PROC)
        assert (seen.usable, seen.ports_in_use, seen.pools) == (seen.sysctls.port_range.size, 0, {})


def test_reserved_ports_count_nowhere(ns: Namespace) -> None:
    ns.call(sockets.open_sockets, Recipe(connect=(HERE, PORT)), tag="clients", limit=100)
    ns.call(sockets.write_sysctl, "net.ipv4.ip_local_reserved_ports", f"1-10,{LOW}-{LOW + 9},{HIGH}")
    seen = ns.call(walks.walk)

    assert seen.sysctls == ns.call(read_sysctls, PROC)
    assert (seen.usable, seen.ports_in_use) == (89, 89)
    assert seen.pool(HERE, HERE, PORT).held == 89


def test_ports_that_are_reserved_outside_the_range_alone_are_known_and_cost_none_of_it(ns: Namespace) -> None:
    """/proc has them too, and a reading whose settings are not those of /proc is not trusted."""
    ns.call(sockets.write_sysctl, "net.ipv4.ip_local_reserved_ports", "1,8080,65535")
    seen = ns.call(walks.walk)

    assert seen.sysctls == ns.call(read_sysctls, PROC)
    assert seen.sysctls.reserved_ports == {1, 8080, 65535}
    assert seen.usable == seen.sysctls.port_range.size


def test_ports_outside_the_range_are_not_even_visited(ns: Namespace) -> None:
    """So what a server accepted on its own port costs nothing."""
    ns.call(sockets.open_sockets, Recipe(connect=(HERE, PORT)), tag="clients", limit=7)
    ns.call(sockets.accept_all, "server", tag="accepted")

    assert ns.call(walks.walk).sockets == 7


def test_each_walk_counts_anew(ns: Namespace) -> None:
    ns.call(sockets.open_sockets, Recipe(connect=(HERE, PORT)), tag="clients", limit=5)
    first = ns.call(walks.walk)
    ns.call(sockets.abort, "clients")
    second = ns.call(walks.walk)

    assert first.pool(HERE, HERE, PORT).held == 5
    assert (second.pools, second.ports_in_use) == ({}, 0)


def test_every_namespace_of_the_host_is_read_in_one_walk(ns: Namespace) -> None:
    with Namespace() as other:
        other.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", "30000 30009")
        other.call(sockets.write_sysctl, "net.ipv4.ip_local_reserved_ports", "30000")
        other.call(sockets.listen, HERE, PORT, tag="server")
        other.call(sockets.open_sockets, Recipe(connect=(HERE, PORT)), tag="clients", limit=4)
        ns.call(sockets.open_sockets, Recipe(connect=(HERE, PORT)), tag="clients", limit=6)
        of = {seen.inode: seen for seen in ns.call(walks.walk_every_namespace)}

        assert of[ns.inode].pool(HERE, HERE, PORT).held == 6
        assert of[other.inode].pool(HERE, HERE, PORT).held == 4
        assert of[other.inode].sysctls == other.call(read_sysctls, PROC)
        assert of[other.inode].usable == 9


def test_namespaces_whose_reserved_ports_find_no_room_are_left_out_and_counted(ns: Namespace) -> None:
    inodes = ns.call(walks.make_namespaces, MOST_BITMAPS + 2)
    seen = ns.call(walks.walk_every_namespace)

    (losses,) = {one.losses for one in seen}
    left_out = inodes - {one.inode for one in seen}
    # Other namespaces of this host may be among those that are left out.
    assert losses.bitmaps >= len(left_out) >= 2


# --- ports -----------------------------------------------------------------------------------------------------------


def test_a_port_is_blocked_while_something_other_than_connect_holds_it(ns: Namespace) -> None:
    ns.call(sockets.listen, OTHER, LOW, tag="listener")
    ns.call(sockets.open_sockets, Recipe(bind=(OTHER, LOW + 1)), tag="bound", limit=1)
    ns.call(sockets.open_sockets, Recipe(connect=(HERE, PORT), bind=(HERE, LOW + 2)), tag="named", limit=1)
    ns.call(sockets.open_sockets, Recipe(connect=(HERE, PORT), port_range=(LOW + 3, LOW + 3)), tag="plain", limit=1)
    seen = ns.call(walks.walk)

    assert seen.blocked_ports == {LOW, LOW + 1, LOW + 2}
    assert {
        port: flags & (PortFlag.LISTENER | PortFlag.BOUND | PortFlag.CONNECTED) for port, flags in seen.flags.items()
    } == {
        LOW: PortFlag.LISTENER,
        LOW + 1: PortFlag.BOUND,
        LOW + 2: PortFlag.CONNECTED,
        LOW + 3: PortFlag.CONNECTED,
    }


def test_a_past_bind_blocks_as_the_kernel_says_and_not_as_its_sockets_look(ns: Namespace) -> None:
    """Before Linux 6.18 the port stays blocked although only a socket of connect() is left."""
    ns.call(sockets.open_sockets, Recipe(connect=(HERE, PORT), port_range=(LOW, LOW)), tag="plain", limit=1)
    ns.call(sockets.open_sockets, Recipe(bind=(OTHER, LOW), reuse_address=True), tag="bound", limit=1)
    during = ns.call(walks.walk)
    ns.call(sockets.close, "bound")
    after = ns.call(walks.walk)

    assert during.blocked_ports == {LOW}
    assert after.blocked_ports == (frozenset() if read_release(PROC) >= (6, 18) else {LOW})
    assert after.flags[LOW] & PortFlag.BOUND == 0


def test_what_a_listener_accepted_is_in_no_pool_and_bind_users_beside_it_are(ns: Namespace) -> None:
    ns.call(sockets.listen, "0.0.0.0", LOW, tag="listener")
    ns.call(sockets.open_sockets, Recipe(connect=(HERE, LOW)), tag="clients", limit=5)
    ns.call(sockets.accept_all, "listener", tag="accepted")
    # An odd port, because connect() begins with the even ones here.
    named = Recipe(bind=(HERE, LOW + 51), connect=(HERE, PORT))
    ns.call(sockets.open_sockets, named, tag="named", limit=1)
    seen = ns.call(walks.walk)

    assert seen.accepted == 5
    assert {key: counts.held for key, counts in seen.pools.items() if counts.held} == {walks.key(HERE, HERE, LOW): 5}
    assert seen.pool(HERE, HERE, PORT).on_blocked == 1


def test_bind_users_are_told_apart(ns: Namespace) -> None:
    ns.call(sockets.open_sockets, Recipe(bind=(OTHER, 0)), tag="bound", limit=3)
    ns.call(sockets.open_sockets, Recipe(bind=(OTHER, 0), connect=(HERE, PORT)), tag="connected", limit=4)
    ns.call(sockets.open_sockets, Recipe(bind=(OTHER, LOW + 90)), tag="named", limit=1)
    ns.call(sockets.open_sockets, Recipe(bind=(OTHER, 0), no_port=True, connect=(HERE, PORT)), tag="no port", limit=5)
    address = ns.call(walks.walk).addresses[bytes([127, 0, 0, 2])]

    assert (address.ports, address.bound, address.bound_connected) == (13, 3, 4)


def test_ports_that_connect_tries_last_are_counted_apart(ns: Namespace) -> None:
    """It walks every second port from the low end first: 80 of 100 connections hold 50 such ports and 30 others."""
    ns.call(sockets.open_sockets, Recipe(connect=(HERE, PORT)), tag="clients", limit=80)
    counts = ns.call(walks.walk).pool(HERE, HERE, PORT)

    assert (counts.held, counts.held_second) == (80, 30)


def test_connections_that_named_their_port_are_counted_apart(ns: Namespace) -> None:
    for port in (LOW, LOW + 1):
        ns.call(sockets.open_sockets, Recipe(bind=(HERE, port), connect=(HERE, PORT)), tag="named", limit=1)
    ns.call(sockets.open_sockets, Recipe(bind=(HERE, 0), connect=(HERE, PORT)), tag="bound", limit=3)
    counts = ns.call(walks.walk).pool(HERE, HERE, PORT)

    assert (counts.held, counts.on_blocked, counts.named) == (0, 5, 2)


def test_ports_of_an_address_with_nothing_but_time_waits_are_counted(ns: Namespace) -> None:
    """A port with a TIME_WAIT and a live connection to somebody else is not one of them."""
    ns.call(sockets.listen, HERE, PORT + 1, tag="other server")
    leave_time_waits(ns, 10)
    for port in (LOW, LOW + 2, LOW + 4):
        # connect() takes the port that a TIME_WAIT toward another destination has.
        recipe = Recipe(no_port=True, port_range=(port, port), connect=(HERE, PORT + 1))
        assert ns.call(sockets.open_sockets, recipe, tag="live", limit=1).count == 1
    address = ns.call(walks.walk).addresses[bytes([127, 0, 0, 1])]

    assert address.ports - address.time_wait == 3
    assert address.time_wait >= 7


def test_wildcards_are_counted_by_what_they_keep_from_bind(ns: Namespace) -> None:
    """0.0.0.0 and ::ffff:0.0.0.0 keep IPv4 from the port, :: keeps IPv6 from it, and IPv4 too without IPV6_V6ONLY."""
    for port, address, v6only in (
        (LOW, "0.0.0.0", None),
        (LOW + 1, "::ffff:0.0.0.0", None),
        (LOW + 2, "::", True),
        (LOW + 3, "::", False),
    ):
        made = ns.call(sockets.open_sockets, Recipe(bind=(address, port), v6only=v6only), tag="any", limit=1)
        assert made.count == 1
    seen = ns.call(walks.walk)

    assert (seen.any_v4, seen.any_v6, seen.v4, seen.ports_in_use) == (3, 2, 3, 4)


def test_a_port_with_an_address_and_the_wildcard_counts_once_for_bind(ns: Namespace) -> None:
    for address, port in (("0.0.0.0", LOW), (HERE, LOW), (HERE, LOW + 1)):
        recipe = Recipe(bind=(address, port), reuse_address=True)
        assert ns.call(sockets.open_sockets, recipe, tag="bound", limit=1).count == 1
    seen = ns.call(walks.walk)
    address_counts = seen.addresses[bytes([127, 0, 0, 1])]
    left = seen.usable - seen.any_v4 - (address_counts.ports - address_counts.beside_any)

    assert (seen.any_v4, address_counts.ports, address_counts.beside_any) == (1, 2, 1)
    assert ns.call(sockets.open_sockets, Recipe(bind=(HERE, 0)), tag="fill", limit=HIGH).count == left


# --- pools -----------------------------------------------------------------------------------------------------------


def test_mapped_and_native_addresses_are_told_apart(ns: Namespace) -> None:
    ns.call(sockets.listen, "::1", PORT, tag="server6")
    ns.call(sockets.open_sockets, Recipe(connect=(HERE, PORT)), tag="v4", limit=1)
    ns.call(sockets.open_sockets, Recipe(connect=(f"::ffff:{HERE}", PORT)), tag="mapped", limit=2)
    ns.call(sockets.open_sockets, Recipe(connect=("::1", PORT)), tag="v6", limit=4)
    seen = ns.call(walks.walk)

    assert {key: counts.held for key, counts in seen.pools.items()} == {
        walks.key(HERE, HERE, PORT): 3,
        walks.key("::1", "::1", PORT): 4,
    }


def test_sockets_on_a_device_are_a_pool_of_their_own(ns: Namespace) -> None:
    ns.call(sockets.open_sockets, Recipe(connect=(HERE, PORT)), tag="clients", limit=2)
    ns.call(sockets.open_sockets, Recipe(connect=(HERE, PORT), device="lo"), tag="on lo", limit=3)
    seen = ns.call(walks.walk)

    assert seen.pool(HERE, HERE, PORT).held == 2
    assert seen.pool(HERE, HERE, PORT, device=1).held == 3
    assert sum(PortFlag.DEVICE in flags for flags in seen.flags.values()) == 3


def test_sockets_are_counted_by_state() -> None:
    """Over a pair of devices, so that a handshake can be left unanswered."""
    with Namespace() as ns, Namespace() as peer:
        connect(ns, peer, addresses=("10.9.0.1/24", "10.9.0.2/24"))
        peer.call(sockets.listen, "10.9.0.2", PORT, tag="server")
        ns.call(sockets.open_sockets, Recipe(connect=("10.9.0.2", PORT)), tag="established", limit=3)
        ns.call(sockets.open_sockets, Recipe(connect=("10.9.0.2", PORT)), tag="closing", limit=2)
        ns.call(sockets.close, "closing")
        # A neighbour that is known and not there: what is sent to it is lost without an error.
        ns.call(ip, "neigh", "add", "10.9.0.77", "lladdr", "02:00:00:00:00:77", "dev", "veth0")
        ns.call(sockets.open_sockets, Recipe(connect=("10.9.0.77", PORT), wait=False), tag="asking", limit=4)
        assert wait_for(lambda: TcpState.FIN_WAIT1 not in ns.call(walks.walk).pool("10.9.0.1", "10.9.0.2", PORT).states)
        seen = ns.call(walks.walk)

        assert seen.pool("10.9.0.1", "10.9.0.2", PORT).states == {TcpState.ESTABLISHED: 3, TcpState.FIN_WAIT2: 2}
        assert seen.pool("10.9.0.1", "10.9.0.77", PORT).states == {TcpState.SYN_SENT: 4}


# --- TIME_WAIT -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("reuse", "reusable"), [(0, 0), (1, 10), (2, 10)])
def test_a_time_wait_on_loopback_is_reusable_as_the_sysctl_says(ns: Namespace, reuse: int, reusable: int) -> None:
    ns.call(sockets.write_sysctl, "net.ipv4.tcp_tw_reuse", reuse)
    leave_time_waits(ns, 10)
    wait_until_old(ns)
    counts = ns.call(walks.walk).pool(HERE, HERE, PORT)

    assert (counts.held, counts.time_wait, counts.reusable, counts.reusable_later) == (10, 10, reusable, 0)


def wait_until_old(ns: Namespace) -> None:
    if HAS_DELAY:
        ns.call(sockets.write_sysctl, "net.ipv4.tcp_tw_reuse_delay", 1)
        time.sleep(0.02)
    else:
        time.sleep(2.1)


def test_an_own_address_is_on_loopback_only_if_the_device_is(ns: Namespace) -> None:
    ns.call(sockets.listen, OWN, PORT, tag="own server")
    ns.call(sockets.write_sysctl, "net.ipv4.tcp_tw_reuse", 2)
    ns.call(sockets.open_sockets, Recipe(connect=(OWN, PORT)), tag="leaving", limit=3)
    ns.call(sockets.open_sockets, Recipe(connect=(OWN, PORT), device="lo"), tag="leaving", limit=4)
    end(ns, "own server")
    wait_until_old(ns)
    seen = ns.call(walks.walk)
    unbound, on_lo = seen.pool(OWN, OWN, PORT), seen.pool(OWN, OWN, PORT, device=1)

    assert (unbound.time_wait, unbound.reusable) == (3, 0)
    assert (on_lo.time_wait, on_lo.reusable) == (4, 4)


@pytest.mark.skipif(not HAS_DELAY, reason="tcp_tw_reuse_delay came with Linux 6.14")
def test_a_time_wait_that_is_too_young_is_reusable_later(ns: Namespace) -> None:
    ns.call(sockets.write_sysctl, "net.ipv4.tcp_tw_reuse_delay", 60_000)
    leave_time_waits(ns, 10)
    counts = ns.call(walks.walk).pool(HERE, HERE, PORT)

    assert (counts.time_wait, counts.reusable, counts.reusable_later) == (10, 0, 10)


def test_a_time_wait_of_a_peer_without_timestamps_is_never_reusable(ns: Namespace) -> None:
    ns.call(walks.connect_without_timestamps, HERE, PORT, 10, tag="leaving")
    end(ns)
    wait_until_old(ns)
    counts = ns.call(walks.walk).pool(HERE, HERE, PORT)

    assert (counts.time_wait, counts.reusable, counts.reusable_later) == (10, 0, 0)


def test_a_fin_wait2_whose_process_has_gone_is_no_time_wait(ns: Namespace) -> None:
    ns.call(sockets.open_sockets, Recipe(connect=(HERE, PORT)), tag="orphans", limit=10)
    ns.call(sockets.close, "orphans")
    assert wait_for(lambda: TcpState.FIN_WAIT1 not in ns.call(walks.walk).pool(HERE, HERE, PORT).states)
    counts = ns.call(walks.walk).pool(HERE, HERE, PORT)

    assert (counts.held, counts.time_wait, counts.states) == (10, 0, {TcpState.FIN_WAIT2: 10})


def test_when_time_waits_end_is_counted_by_the_seconds_that_they_have_left(ns: Namespace) -> None:
    leave_time_waits(ns, 10)
    counts = ns.call(walks.walk).pool(HERE, HERE, PORT)

    # They have just begun, and last 60 seconds; a busy machine may take some seconds until they are read.
    assert sum(counts.ends_in[-10 // SECONDS_OF_A_CELL :]) == sum(counts.ends_in) == 10


# --- what a walk must not do -----------------------------------------------------------------------------------------


def test_nothing_is_left_of_readers_that_are_opened_and_closed_many_times() -> None:
    """`python -m benchmarks walk-loads` does it a thousand times."""
    with Namespace() as ns:
        lives = ns.call_within(SECONDS, lifetimes.load_and_unload, TIMES)
    grown = lives.after.rss_bytes - lives.before.rss_bytes

    assert lives.known >= 9 * TIMES
    assert lives.left == []
    assert lives.after._replace(rss_bytes=0) == lives.before._replace(rss_bytes=0)
    assert grown < 1 << 20


def test_nothing_stays_in_the_kernel_after_a_crash() -> None:
    with Namespace() as ns:
        ns.call(walks.walk)
        known = ns.call(lifetimes.loaded)
        os.kill(ns.pid, signal.SIGKILL)

    assert {one.kind for one in known} == {"prog", "map", "btf"}
    assert wait_for(lambda: not any(map(lifetimes.is_there, known)))


def wait_for(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 10
    while not (holds := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return holds


def test_stable_sockets_are_counted_while_others_come_and_go(agent: Namespace) -> None:
    """A walk that misses some says so, and some miss none. `python -m benchmarks walk-churn` does it for longer."""
    found = agent.call(churn.walk_beside_churn, 3_000, 1.0)

    assert found.whole
    assert found.missed_silently == 0
    assert max(found.flagged, default=0) <= found.stable
