"""tcp_connect pools of the bind table, against literal answers. The range has 100 ports, 40000 to 40099."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import pytest

from ephmon.facts.bind_counts import CELLS, ConnectCounts, PoolKey
from ephmon.facts.snapshot import PortRange, Sysctls
from ephmon.facts.socket_groups import ConnectKey
from ephmon.facts.sockets import TcpState
from ephmon.model.pools import kinds
from ephmon.model.pools.bind_table.connect_pools import BindTableConnectPools
from ephmon.model.pools.bind_table.ports import classes_of
from ephmon.model.pools.kinds import PoolKind
from ephmon.model.pools.port_classes import PortClass
from tests.model.pools.bind_table.tables import LOW, RANGE, blocked, make_binds

if TYPE_CHECKING:
    from collections.abc import Collection

    from ephmon.facts.bind_table import NamespaceBinds

HERE, THERE, PORT = "10.0.0.1", "10.0.0.9", 443
KEY = ConnectKey(ip_address(HERE).packed, ip_address(THERE).packed, PORT)
FAR = PoolKey(*KEY)
ON_DEVICE, IN_VRF = FAR._replace(device=7), FAR._replace(device=9, l3mdev=8)
ODD = Sysctls(port_range=PortRange(LOW, LOW + 98))
REUSE = Sysctls(port_range=RANGE, tcp_tw_reuse=1)


def held(number: int, *, second: int = 0, on_blocked: int = 0) -> ConnectCounts:
    """Return counts of established sockets that hold so many ports."""
    states: dict[int, int] = {TcpState.ESTABLISHED: number}
    return ConnectCounts(held=number, held_second=second, on_blocked=on_blocked, states=states)


def pools_of(
    binds: NamespaceBinds | None = None, *, doubted: Collection[ConnectKey] = (), **arguments: Any
) -> BindTableConnectPools:
    """Return the pools of a namespace, which is made of the other arguments if it is not given."""
    namespace = binds or make_binds(**arguments)
    return BindTableConnectPools("own", 1.0, namespace, classes_of(namespace), doubted=doubted)


def test_what_is_neither_blocked_nor_held_remains() -> None:
    waiting = held(30, on_blocked=2)._replace(
        time_wait=10, reusable=4, states={TcpState.ESTABLISHED: 22, TcpState.TIME_WAIT: 10}
    )
    pool = pools_of(pools={FAR: waiting}, ports=blocked(5), sysctls=REUSE).pool(KEY)

    assert (pool.usable, pool.blocked, pool.capacity, pool.in_use, pool.held) == (100, 5, 95, 30, 32)
    assert (pool.time_wait, pool.reusable) == (10, 4)
    assert (pool.remaining_min, pool.remaining, pool.remaining_max, pool.exact) == (69, 69, 69, True)
    assert pool.states == {"established": 22, "time_wait": 10}
    assert (pool.in_doubt, pool.reusable_unproven) == (0, 0)


def test_a_key_without_a_socket_has_all_that_is_not_blocked() -> None:
    pools = pools_of(ports=blocked(5))

    assert (pools.pool(KEY).remaining, pools.pool(KEY).exact) == (95, True)
    assert pools.find(pools.pool(KEY).key) is None


def test_the_class_of_every_port_is_known() -> None:
    ports = classes_of(make_binds(ports=[*blocked(5), *blocked(9, l3mdev=8)], sysctls=ODD))

    assert (ports.usable, ports.blocked, ports.ambiguous, ports.blind_to) == (99, 5, 0, frozenset())
    assert [ports.classes[port] for port in (LOW - 1, LOW, LOW + 5)] == [
        PortClass.UNUSABLE,
        PortClass.BLOCKED,
        PortClass.SHARED,
    ]


def test_the_search_may_pass_over_one_port_of_an_odd_range() -> None:
    pool = pools_of(pools={FAR: held(30)}, sysctls=ODD).pool(KEY)

    assert (pool.remaining_min, pool.remaining, pool.exact) == (68, 69, False)


def test_sockets_on_a_device_stop_only_those_on_the_same_device() -> None:
    pools = pools_of(pools={FAR: held(30), ON_DEVICE: held(20)})
    pool = pools.pool(KEY)

    assert (pool.remaining_min, pool.remaining, pool.remaining_max) == (50, 50, 70)
    assert (pool.only_on_devices, pool.exact, pool.in_use) == (20, False, 50)
    assert (len(pools), list(pools)) == (1, [KEY])


def test_of_a_pool_in_a_vrf_and_outside_the_fullest_counts() -> None:
    binds = make_binds({FAR: held(30), IN_VRF: held(60)}, ports=[*blocked(5), *blocked(10, l3mdev=8)])
    pool = pools_of(binds).pool(KEY)

    assert (pool.blocked, pool.in_use, pool.remaining) == (10, 60, 30)
    assert (pool.remaining_min, pool.remaining_max, pool.exact) == (30, 65, False)


def test_a_walk_that_missed_something_is_not_exact() -> None:
    assert not pools_of(pools={FAR: held(30)}, is_whole=False).pool(KEY).exact


def test_an_application_with_a_list_of_ports_of_its_own_has_no_exact_number() -> None:
    pool = pools_of(pools={FAR: ConnectCounts(on_blocked=30, named=30, states={1: 30})}, ports=blocked(30)).pool(KEY)

    assert (pool.named, pool.application_chooses_ports, pool.exact, pool.remaining) == (30, True, False, 70)


@pytest.mark.parametrize(
    ("counts", "sysctls", "answer"),
    [
        (ConnectCounts(held=9, time_wait=9, reusable=3, reusable_later=6), REUSE, True),
        (ConnectCounts(held=9, time_wait=9), REUSE, False),
        (ConnectCounts(held=9), REUSE, None),
        (ConnectCounts(held=9, time_wait=9), Sysctls(port_range=RANGE, tcp_tw_reuse=0), None),
    ],
)
def test_time_waits_show_whether_the_peer_uses_timestamps(
    counts: ConnectCounts, sysctls: Sysctls, answer: bool | None
) -> None:
    assert pools_of(pools={FAR: counts}, sysctls=sysctls).pool(KEY).peer_timestamps is answer


def test_the_search_gets_long_once_the_first_parity_is_taken() -> None:
    """Of 50 ports of the first parity none is free: connect() looks at all of them, and then at every second other."""
    nearly = pools_of(pools={FAR: held(49)}).pool(KEY).search_ports
    beyond = pools_of(pools={FAR: held(75, second=25)}).pool(KEY).search_ports

    assert (nearly, beyond) == (25.5, 50 + 51 / 26)


def test_a_pool_that_connect_failed_in_has_the_lower_bound() -> None:
    pools = pools_of(pools={FAR: held(30)}, sysctls=ODD, doubted=[KEY])

    assert (pools.pool(KEY).remaining, pools.pool(KEY).is_doubted, len(pools)) == (68, True, 1)
    assert len(pools_of(sysctls=ODD, doubted=[KEY])) == 1


def test_pools_with_more_ports_than_there_are_count_as_overfull() -> None:
    other = FAR._replace(destination_port=80)
    assert pools_of(pools={FAR: held(100), other: held(95)}, ports=blocked(5)).overfull == 1


def test_bounds_fall_and_hold() -> None:
    others = {FAR._replace(destination_port=port): held(port % 7, on_blocked=port % 3) for port in range(1, 40)}
    everything = {**others, ON_DEVICE: held(20), FAR: held(3)}
    pools = pools_of(pools=everything, ports=blocked(5), doubted=[KEY._replace(destination_port=5)])
    bounds = list(pools.by_upper_bound())

    assert len(bounds) == len(pools) == 40
    lost_and_held = [(lost, number) for lost, number, _ in bounds]
    assert lost_and_held == sorted(lost_and_held, reverse=True)
    for lost, number, key in bounds:
        pool = pools.pool(key)
        assert pools.lost_and_held(key) == (pool.usable - pool.remaining, pool.held)
        assert pool.usable - pool.remaining <= lost
        assert pool.held <= number


def test_a_pool_is_found_by_its_key_in_its_namespace_alone() -> None:
    pools = pools_of(pools={FAR: held(1)})
    key = kinds.PoolKey("own", PoolKind.TCP_CONNECT, HERE, THERE, PORT)

    assert pools.find(key) == KEY
    assert pools.find(key._replace(netns="other")) is None
    assert pools.find(key._replace(source="10.0.0.2")) is None


def test_time_waits_of_all_devices_end_in_the_same_cells() -> None:
    cells = [ConnectCounts(held=3, time_wait=3, ends_in=(3, *[0] * (CELLS - 1)))] * 2
    binds = make_binds(dict(zip((FAR, ON_DEVICE), cells, strict=True)))

    assert [counts.ends_in[0] for _, counts in binds.sockets_of(KEY)] == [3, 3]
    assert binds.time_waits_from(KEY.source)[0] == binds.time_waits_from(bytes(4))[0] == 6
    assert sum(binds.time_waits_from(bytes([10, 0, 0, 2]))) == 0
