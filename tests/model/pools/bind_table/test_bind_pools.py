"""tcp_bind pools of the bind table, against literal answers. The range has 100 ports, 40000 to 40099."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from ephmon.facts.bind_counts import AddressCounts, BoundPort, PortFlag
from ephmon.facts.snapshot import PortRange, Sysctls
from ephmon.model.pools.bind_table.bind_pools import BindTableBindPools
from ephmon.model.pools.bind_table.ports import classes_of
from tests.model.pools.bind_table.tables import LOW, RANGE, make_binds

if TYPE_CHECKING:
    from ephmon.facts.bind_table import NamespaceBinds

HERE = ip_address("10.0.0.1").packed
ANY_V4, ANY_V6 = bytes(4), bytes(16)
WAITING, LIVE = PortFlag.TIME_WAIT | PortFlag.V4, PortFlag.CONNECTED | PortFlag.TIME_WAIT | PortFlag.V4


def address(*, bound: int = 1, bound_connected: int = 0, l3mdev: int = 0, ports: int = 30) -> AddressCounts:
    return AddressCounts(HERE, l3mdev, ports, 4, bound, bound_connected, 9)


def pools_of(binds: NamespaceBinds) -> BindTableBindPools:
    return BindTableBindPools("own", 1.0, binds, classes_of(binds))


@pytest.mark.parametrize(
    ("counts", "exists"),
    [
        (address(bound=1), True),
        (address(bound=0, bound_connected=15), False),
        (address(bound=0, bound_connected=16), True),
    ],
)
def test_a_pool_exists_where_bind_chose_ports(counts: AddressCounts, *, exists: bool) -> None:
    pools = pools_of(make_binds(addresses=[counts]))

    assert list(pools) == ([HERE] if exists else [])
    assert (pools.find(pools.pool(HERE).key) == HERE) is exists


def test_ports_of_the_address_and_of_wildcards_are_in_use() -> None:
    wildcards = [BoundPort(LOW + index, 0, 1, PortFlag.ANY_V4 | PortFlag.V4) for index in range(6)]
    pool = pools_of(make_binds(addresses=[address()], ports=wildcards)).pool(HERE)

    assert (pool.in_use, pool.remaining, pool.exact, pool.time_wait, pool.blocked) == (6 + 26, 68, True, 9, 0)


def test_the_wildcards_meet_what_is_of_their_families() -> None:
    ports = [BoundPort(LOW + 1, 0, 1, WAITING), BoundPort(LOW + 2, 0, 1, LIVE), BoundPort(LOW + 3, 0, 1, PortFlag(0))]
    pools = pools_of(make_binds(ports=ports))

    assert (pools.pool(ANY_V4).in_use, pools.pool(ANY_V4).time_wait) == (2, 1)
    assert (pools.pool(ANY_V6).in_use, pools.pool(ANY_V6).time_wait) == (3, 1)


def test_sockets_that_may_share_ports_leave_the_upper_bound_open() -> None:
    sysctls = Sysctls(port_range=RANGE, ip_autobind_reuse=1)
    pool = pools_of(make_binds(addresses=[address()], sysctls=sysctls)).pool(HERE)

    assert (pool.remaining_min, pool.remaining, pool.remaining_max, pool.exact) == (74, 74, 100, False)


def test_the_search_may_pass_over_one_port_of_an_odd_range() -> None:
    sysctls = Sysctls(port_range=PortRange(LOW, LOW + 98))
    pool = pools_of(make_binds(addresses=[address()], sysctls=sysctls)).pool(HERE)

    assert (pool.remaining_min, pool.remaining, pool.exact) == (72, 73, False)


def test_of_an_address_in_a_vrf_and_outside_the_fullest_counts() -> None:
    pool = pools_of(make_binds(addresses=[address(), address(l3mdev=8, ports=50)])).pool(HERE)

    assert (pool.in_use, pool.remaining, pool.remaining_max, pool.exact) == (46, 54, 74, False)
