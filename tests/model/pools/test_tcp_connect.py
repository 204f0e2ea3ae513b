"""How many connections toward a destination still succeed: tcp_connect pools, against literal answers.

The range has the 100 ports 40000 to 40099 unless a test says otherwise, and all of them are open to connect().
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from ephmon.facts.namespaces import OWN_NETNS
from ephmon.facts.sockets import Blindness, TcpState
from ephmon.facts.timestamps import PeerTimestamps
from ephmon.model.pools.kinds import Pool, PoolKind
from ephmon.model.pools.tcp_connect import ConnectPools
from tests.model.facts import (
    HIGH,
    LOW,
    TAKEN_AT,
    Sockets,
    connect_key,
    connected,
    listening,
    make_ports,
    make_sysctls,
    make_tcp,
    own,
)
from tests.model.kernel_sockets import Peer

if TYPE_CHECKING:
    from ephmon.facts.snapshot import Sysctls
    from ephmon.facts.sockets import TcpSockets
    from ephmon.model.pools.port_classes import TcpPorts

HERE, THERE, PORT = "10.0.0.1", "10.0.0.9", 443
EVERY_PORT = range(LOW, HIGH + 1)
HALF = range(LOW, LOW + 50)


def make_pools(tcp: TcpSockets, facts: Sysctls | None = None, ports: TcpPorts | None = None) -> ConnectPools:
    facts = facts or make_sysctls()
    return ConnectPools(OWN_NETNS, TAKEN_AT, facts, tcp, ports or make_ports(facts))


def far(tcp: TcpSockets, facts: Sysctls | None = None, ports: TcpPorts | None = None) -> Pool:
    """Return the pool from HERE toward THERE."""
    return make_pools(tcp, facts, ports).pool(own(Peer(HERE, THERE, PORT)))


def near(tcp: TcpSockets, ports: TcpPorts | None = None) -> Pool:
    """Return the pool from 127.0.0.1 toward port 80 of the same, whose TIME_WAIT is reusable by default."""
    return make_pools(tcp, None, ports).pool(own(Peer("127.0.0.1", "127.0.0.1", 80)))


def left_near(ports: range, state: TcpState = TcpState.TIME_WAIT) -> Sockets:
    """Build sockets of that pool, which have been in their last state for all but a millisecond of its 60 seconds."""
    return connected("127.0.0.1", ports, "127.0.0.1", 80, state=state, left_ms=1)


def bounds(one: Pool) -> tuple[int, int, int, bool]:
    """Return what is said of the number of allocations that succeed from here."""
    return one.remaining_min, one.remaining, one.remaining_max, one.exact


# What a pool is told by, and when it exists


def test_an_untouched_pool_has_every_usable_port() -> None:
    assert far(make_tcp(), make_sysctls(reserved=[40000, 50000])) == Pool(
        key=connect_key(THERE, PORT, HERE),
        taken_at=TAKEN_AT,
        usable=99,
        blocked=0,
        capacity=99,
        in_use=0,
        time_wait=0,
        reusable=0,
        remaining=99,
        remaining_min=99,
        remaining_max=99,
        exact=True,
        failure_errno="EADDRNOTAVAIL",
        states={},
        held=0,
        search_ports=1.0,
    )


@pytest.mark.parametrize(
    "other",
    [Peer(HERE, "10.0.0.8", PORT), Peer(HERE, THERE, 444), Peer("10.0.0.2", THERE, PORT), Peer("::1", "::1", PORT)],
)
def test_source_destination_and_destination_port_each_give_a_pool_of_its_own(other: Peer) -> None:
    tcp = make_tcp(
        connected(HERE, EVERY_PORT, THERE, PORT), connected(other.source, 40000, other.destination, other.port)
    )

    assert (far(tcp).remaining, make_pools(tcp).pool(own(other)).remaining) == (0, 99)


def test_a_pool_exists_once_a_socket_of_its_tuple_is_inside_the_range() -> None:
    assert set(make_pools(make_tcp())) == set()
    assert set(make_pools(make_tcp(connected(HERE, 40000, THERE, PORT)))) == {own(Peer(HERE, THERE, PORT))}


def test_a_socket_on_a_blocked_port_makes_a_pool_too() -> None:
    tcp = make_tcp(connected(HERE, 40000, THERE, PORT), explicit=[40000])
    ports = make_ports(make_sysctls(), blocked=[40000])
    pool = far(tcp, ports=ports)

    assert set(make_pools(tcp, ports=ports)) == {own(Peer(HERE, THERE, PORT))}
    assert (pool.in_use, pool.held, pool.states) == (0, 1, {"established": 1})


ACCEPTING = make_ports(make_sysctls(), blocked=[40007])


def test_accepted_sockets_make_no_pools() -> None:
    tcp = make_tcp(
        listening("0.0.0.0", 40007),
        *(connected(HERE, 40007, f"10.1.0.{peer}", 50000 + peer) for peer in range(20)),
        connected(HERE, 40007, "10.1.0.99", 50000, state=TcpState.SYN_RECV),
        connected(HERE, 40008, THERE, PORT),
    )
    pools = make_pools(tcp, ports=ACCEPTING)

    assert set(pools) == {own(Peer(HERE, THERE, PORT))}
    assert len(pools) == 1


def test_accepted_sockets_make_no_pools_on_a_reserved_port_either() -> None:
    tcp = make_tcp(listening(HERE, 40007), connected(HERE, 40007, "10.1.0.1", 50000))

    assert set(make_pools(tcp, make_sysctls(reserved=[40007]))) == set()


@pytest.mark.parametrize("device", [0, 2])
def test_accepted_sockets_count_nowhere_in_a_pool_that_others_made(device: int) -> None:
    """Hosts that serve each other on ports inside the range: what one accepts has the tuple of what it connects."""
    tcp = make_tcp(
        listening(HERE, 40007),
        connected(HERE, 40007, THERE, 40007, device=device),
        connected(HERE, [40008, 40009], THERE, 40007, device=device),
    )
    pool = make_pools(tcp, ports=ACCEPTING).pool(own(Peer(HERE, THERE, 40007)))

    assert (pool.in_use, pool.held, pool.states) == (2, 2, {"established": 2})


def test_a_pool_is_found_by_its_key_if_it_exists() -> None:
    peer = Peer("2001:db8::1", "2001:db8::9", PORT)
    pools = make_pools(make_tcp(connected(peer.source, 40000, peer.destination, peer.port)))
    key = connect_key(peer.destination, peer.port, peer.source)

    assert pools.find(key) == own(peer)
    assert pools.pool(own(peer)).key == key
    assert pools.find(key._replace(destination_port=444)) is None
    assert pools.find(key._replace(netns="another")) is None
    assert pools.find(key._replace(kind=PoolKind.TCP_BIND)) is None
    assert pools.find(key._replace(destination=None, destination_port=None)) is None


# What takes a port of the capacity


@pytest.mark.parametrize(
    ("state", "name"),
    [
        (TcpState.ESTABLISHED, "established"),
        (TcpState.SYN_SENT, "syn_sent"),
        (TcpState.SYN_RECV, "syn_recv"),
        (TcpState.NEW_SYN_RECV, "syn_recv"),
        (TcpState.FIN_WAIT1, "fin_wait1"),
        (TcpState.FIN_WAIT2, "fin_wait2"),
        (TcpState.TIME_WAIT, "time_wait"),
        (TcpState.CLOSE_WAIT, "close_wait"),
        (TcpState.LAST_ACK, "last_ack"),
        (TcpState.CLOSING, "closing"),
        (77, "state_77"),
    ],
)
def test_a_socket_takes_its_port_in_every_state(state: int, name: str) -> None:
    pool = far(make_tcp(connected(HERE, range(LOW, LOW + 30), THERE, PORT, state=state, left_ms=60_000)))

    assert (pool.in_use, pool.remaining, pool.states) == (30, 70, {name: 30})


def test_both_states_of_an_embryonic_connection_are_counted_as_one() -> None:
    tcp = make_tcp(
        connected(HERE, [40000, 40001], THERE, PORT, state=TcpState.SYN_RECV),
        connected(HERE, [40002, 40003, 40004], THERE, PORT, state=TcpState.NEW_SYN_RECV),
    )

    assert far(tcp).states == {"syn_recv": 5}


def test_sockets_that_differ_in_a_flag_alone_are_of_one_pool() -> None:
    tcp = make_tcp(
        connected(HERE, range(LOW, LOW + 10), THERE, PORT, no_port=True),
        connected(HERE, range(LOW + 10, LOW + 15), THERE, PORT),
    )

    assert (far(tcp).in_use, far(tcp).states) == (15, {"established": 15})


def test_blocked_ports_are_lost_to_every_pool_and_in_use_in_none() -> None:
    tcp = make_tcp(connected(HERE, range(LOW + 40, LOW + 60), THERE, PORT))
    ports = make_ports(make_sysctls(), blocked=HALF)
    pool, untouched = far(tcp, ports=ports), far(make_tcp(), ports=ports)

    assert (pool.usable, pool.blocked, pool.capacity, pool.in_use, pool.remaining) == (100, 50, 50, 10, 40)
    assert (pool.held, pool.states, pool.utilisation) == (20, {"established": 20}, 0.6)
    assert (untouched.blocked, untouched.in_use, untouched.remaining, untouched.utilisation) == (50, 0, 50, 0.5)


def test_reserved_ports_are_not_in_use_by_the_sockets_on_them() -> None:
    pool = far(make_tcp(connected(HERE, HALF, THERE, PORT)), make_sysctls(reserved=range(LOW, LOW + 30)))

    assert (pool.usable, pool.in_use, pool.remaining, pool.states) == (70, 20, 50, {"established": 50})


def test_time_wait_on_a_blocked_port_is_neither_time_wait_nor_reusable() -> None:
    pool = near(make_tcp(left_near(HALF)), make_ports(make_sysctls(), blocked=range(LOW, LOW + 20)))

    assert (pool.in_use, pool.time_wait, pool.reusable, pool.remaining) == (30, 30, 30, 80)
    assert pool.states == {"time_wait": 50}


def test_fin_wait2_is_not_time_wait_and_not_reusable_though_the_process_let_go_of_it() -> None:
    row = left_near(HALF, TcpState.FIN_WAIT2)
    pool = near(make_tcp(replace(row, group=row.group._replace(minisock=True))))

    assert (pool.in_use, pool.time_wait, pool.reusable, pool.remaining) == (50, 0, 0, 50)


def test_a_pool_full_of_reusable_time_wait_is_not_exhausted() -> None:
    pool = near(make_tcp(left_near(EVERY_PORT)))

    assert (pool.in_use, pool.reusable, pool.remaining, pool.utilisation) == (100, 100, 100, 0.0)


def test_no_usable_port_at_all_is_exhaustion() -> None:
    pool = far(make_tcp(), make_sysctls(40000, 40001, reserved=[40000, 40001]))

    assert (pool.usable, pool.remaining, pool.utilisation) == (0, 0, 1.0)


# What is not known for certain


def test_an_ambiguous_port_counts_as_shared_but_not_toward_the_minimum() -> None:
    tcp = make_tcp(connected(HERE, range(LOW + 40, LOW + 60), THERE, PORT))
    ports = make_ports(make_sysctls(), ambiguous=range(LOW, LOW + 60))

    assert bounds(far(tcp, ports=ports)) == (40, 80, 80, False)


def test_an_exhausted_pool_leaves_nothing_to_doubt() -> None:
    ports = make_ports(make_sysctls(), ambiguous=EVERY_PORT)

    assert bounds(far(make_tcp(connected(HERE, EVERY_PORT, THERE, PORT)), ports=ports)) == (0, 0, 0, True)


def test_ports_certainly_shared_leave_nothing_to_doubt() -> None:
    assert bounds(far(make_tcp(connected(HERE, HALF, THERE, PORT)))) == (50, 50, 50, True)


@pytest.mark.parametrize("blindness", Blindness)
def test_what_the_backend_cannot_see_is_never_exact(blindness: Blindness) -> None:
    ports = make_ports(make_sysctls(), blind_to=[blindness])

    assert bounds(far(make_tcp(), ports=ports)) == (100, 100, 100, False)


def test_where_sockets_are_bound_to_a_vrf_each_port_may_be_free_in_another() -> None:
    ports = make_ports(make_sysctls(), blocked=range(LOW, LOW + 10), blind_to=[Blindness.VRF])
    tcp = make_tcp(connected(HERE, range(LOW + 20, LOW + 50), THERE, PORT, device=2))

    assert bounds(far(tcp, ports=ports)) == (60, 60, 100, False)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (40000, 40100, (100, 101, 101, False)),
        (40001, 40101, (100, 101, 101, False)),
        (40000, 40002, (2, 3, 3, False)),
        (40000, 40000, (1, 1, 1, True)),
        (40000, 40001, (2, 2, 2, True)),
        (32768, 60999, (28232, 28232, 28232, True)),
    ],
)
def test_a_range_of_odd_size_may_give_one_port_less(low: int, high: int, expected: tuple[int, int, int, bool]) -> None:
    assert bounds(far(make_tcp(), make_sysctls(low, high))) == expected


def test_the_size_of_the_range_is_what_is_odd_not_the_number_of_usable_ports() -> None:
    assert bounds(far(make_tcp(), make_sysctls(reserved=[40000]))) == (99, 99, 99, True)
    assert bounds(far(make_tcp(), make_sysctls(40000, 40100, reserved=[40000]))) == (99, 100, 100, False)


@pytest.mark.parametrize(
    ("seen", "expected", "unproven"),
    [
        ([], (50, 100, 100, False), 50),
        ([True], (100, 100, 100, True), 0),
        ([False], (50, 50, 50, True), 0),
        ([True, False], (50, 100, 100, False), 50),
    ],
    ids=["nothing", "timestamps", "none", "both"],
)
def test_live_connections_tell_whether_time_wait_is_reusable(
    seen: list[bool], expected: tuple[int, int, int, bool], unproven: int
) -> None:
    """The kernel does not show of a TIME_WAIT whether it had timestamps, neither toward a host nor on loopback."""
    tcp = make_tcp(connected(HERE, HALF, THERE, PORT, state=TcpState.TIME_WAIT, left_ms=1), left_near(HALF))
    here, loopback = own(Peer(HERE, THERE, PORT)), own(Peer("127.0.0.1", "127.0.0.1", 80))
    known = PeerTimestamps().at(7.0, is_on=True).with_answers({here: seen, loopback: seen})
    pools = [far(replace(tcp, timestamps=known), make_sysctls(tw_reuse=1)), near(replace(tcp, timestamps=known))]

    assert [bounds(pool) for pool in pools] == [expected] * 2
    assert [pool.reusable_unproven for pool in pools] == [unproven] * 2
    assert [pool.proven_utilisation for pool in pools] == [1 - expected[0] / 100] * 2


def test_time_wait_may_be_reusable_while_timestamps_are_off() -> None:
    """It is if it is older than the setting."""
    tcp = make_tcp(connected(HERE, HALF, THERE, PORT, state=TcpState.TIME_WAIT, left_ms=1))

    assert bounds(far(tcp, make_sysctls(tw_reuse=1, timestamps=0))) == (50, 50, 100, False)


def test_a_pool_whose_sockets_named_their_ports_is_not_exact_because_the_application_chooses() -> None:
    ports = make_ports(make_sysctls(), blocked=HALF)
    rows = [connected(HERE, HALF, THERE, PORT), connected(HERE, range(LOW + 50, LOW + 60), THERE, 80)]
    tcp = make_tcp(*rows, explicit=HALF)
    pool, other = (make_pools(tcp, ports=ports).pool(own(Peer(HERE, THERE, port))) for port in (PORT, 80))

    assert (pool.named, pool.application_chooses_ports, bounds(pool)) == (50, True, (50, 50, 50, False))
    assert (other.named, other.application_chooses_ports, bounds(other)) == (0, False, (40, 40, 40, True))


@pytest.mark.parametrize(("named", "chooses"), [(44, False), (45, True)])
def test_a_few_sockets_that_came_between_two_dumps_make_no_difference(named: int, chooses: bool) -> None:
    ports = make_ports(make_sysctls(), blocked=HALF)
    time_wait = connected(HERE, range(LOW + 50, LOW + 99), THERE, PORT, state=TcpState.TIME_WAIT)
    tcp = make_tcp(connected(HERE, HALF, THERE, PORT), time_wait, explicit=HALF[:named])

    assert far(tcp, ports=ports).application_chooses_ports is chooses


def test_sockets_on_devices_are_one_pool_whose_maximum_counts_what_stops_an_unbound_one() -> None:
    tcp = make_tcp(
        connected(HERE, range(LOW, LOW + 30), THERE, PORT, device=2),
        connected(HERE, range(LOW + 20, LOW + 40), THERE, PORT, device=3),
        connected(HERE, range(LOW + 30, LOW + 50), THERE, PORT),
    )
    pool = far(tcp)

    assert (pool.in_use, pool.held, pool.states) == (50, 50, {"established": 70})
    assert pool.only_on_devices == 30
    assert bounds(pool) == (50, 50, 80, False)


def test_time_wait_is_all_there_is_only_if_no_device_has_another_socket_on_the_port() -> None:
    beside = connected("127.0.0.1", range(LOW, LOW + 20), "127.0.0.1", 80, device=2)
    pool = near(make_tcp(left_near(HALF), beside))

    assert (pool.in_use, pool.time_wait, pool.reusable, pool.remaining, pool.remaining_max) == (50, 30, 30, 80, 100)


def test_a_torn_reading_says_so_and_leaves_nothing() -> None:
    """A socket that moves while it is read may be seen twice: once in its old state, once in its new one."""
    twice = [connected(HERE, EVERY_PORT, THERE, PORT, state=state) for state in (TcpState.FIN_WAIT1, TcpState.CLOSING)]
    pool = far(make_tcp(*twice))

    assert (make_pools(make_tcp(*twice)).overfull, make_pools(make_tcp(twice[0])).overfull) == (1, 0)
    assert (pool.remaining_min, pool.remaining, pool.utilisation) == (0, 0, 1.0)
