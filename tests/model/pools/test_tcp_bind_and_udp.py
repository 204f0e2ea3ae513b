"""Pools whose ports are taken whatever they are connected to: who overlaps whom, and what is left."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ephmon.facts.socket_groups import SocketGroup
from ephmon.facts.sockets import TcpState
from ephmon.model.pools.kinds import Pool, PoolKind
from ephmon.model.pools.tcp_bind_and_udp import AddressPools
from tests.model.facts import LOW, Sockets, connected, listening, make_sysctls, make_table, packed


def pool_of(
    source: str,
    *rows: Sockets,
    kind: PoolKind = PoolKind.TCP_BIND,
    is_blind: bool = False,
    high: int = LOW + 99,
    autobind_reuse: int = 0,
) -> Pool:
    """Return the pool of a source that nobody needs to draw from, in a range of 100 ports."""
    pools = AddressPools(
        kind,
        "own",
        taken_at=1.0,
        sysctls=replace(make_sysctls(high=high, reserved=[LOW + 99]), ip_autobind_reuse=autobind_reuse),
        tables=(make_table(rows),),
        sources=(),
        is_blind=is_blind,
    )
    return pools.pool(packed(source))


def on(address: str, port: int = LOW, *, dual_stack: bool = False, state: TcpState = TcpState.CLOSE) -> Sockets:
    group = SocketGroup(state, packed(address), bytes(len(packed(address))), 0, dual_stack=dual_stack)
    return Sockets(group, (port,))


OVERLAPS = [
    ("10.0.0.1", on("10.0.0.1"), True),
    ("10.0.0.1", on("10.0.0.2"), False),
    ("10.0.0.1", on("0.0.0.0"), True),
    ("10.0.0.1", on("::", dual_stack=True), True),
    ("10.0.0.1", on("::"), False),
    ("10.0.0.1", on("::1"), False),
    ("0.0.0.0", on("10.0.0.2"), True),
    ("0.0.0.0", on("::"), False),
    ("0.0.0.0", on("::", dual_stack=True), True),
    ("0.0.0.0", on("::1"), False),
    ("0.0.0.0", on("::1", dual_stack=True), True),
    ("::1", on("::1"), True),
    ("::1", on("::2"), False),
    ("::1", on("::"), True),
    ("::1", on("10.0.0.1"), False),
    ("::", on("10.0.0.1"), True),
    ("::", on("::1"), True),
]


@pytest.mark.parametrize(("newcomer", "socket", "overlaps"), OVERLAPS)
def test_a_port_is_in_use_where_the_local_addresses_overlap(newcomer: str, socket: Sockets, *, overlaps: bool) -> None:
    assert pool_of(newcomer, socket).in_use == overlaps


def test_every_state_and_peer_takes_the_port_and_reuse_is_not_for_bind() -> None:
    waiting = connected("10.0.0.1", [LOW, LOW + 1], "127.0.0.1", 80, state=TcpState.TIME_WAIT, left_ms=1)
    pool = pool_of("10.0.0.1", waiting, connected("10.0.0.1", [LOW + 1, LOW + 2], "10.0.0.9", 443))

    assert (pool.in_use, pool.time_wait, pool.reusable, pool.remaining) == (3, 1, 0, 96)
    assert pool.states == {"established": 2, "time_wait": 2}


def test_a_device_does_not_matter() -> None:
    assert pool_of("10.0.0.1", connected("10.0.0.1", LOW, "10.0.0.9", 443, device=3)).in_use == 1


def test_one_port_counts_once() -> None:
    assert pool_of("0.0.0.0", on("10.0.0.1"), on("10.0.0.2")).in_use == 1


def test_ports_that_are_reserved_or_outside_the_range_do_not_count() -> None:
    pool = pool_of("10.0.0.1", on("10.0.0.1", LOW + 99), on("10.0.0.1", LOW - 1))

    assert (pool.usable, pool.capacity, pool.blocked, pool.in_use, pool.remaining) == (99, 99, 0, 0, 99)


@pytest.mark.parametrize(
    ("kind", "errno"),
    [
        (PoolKind.TCP_BIND, "EADDRINUSE"),
        (PoolKind.UDP_CONNECT, "EAGAIN"),
        (PoolKind.UDP_BIND, "EADDRINUSE"),
    ],
)
def test_each_kind_names_its_error(kind: PoolKind, errno: str) -> None:
    assert pool_of("10.0.0.1", kind=kind).failure_errno == errno


def test_whether_a_connected_ipv6_socket_takes_ipv4_is_assumed_and_bounded() -> None:
    """The kernel does not say of connected sockets whether they are IPV6_V6ONLY."""
    assumed = on("::1", dual_stack=True, state=TcpState.ESTABLISHED)
    pool = pool_of("0.0.0.0", assumed)

    assert (pool.remaining, pool.remaining_min, pool.remaining_max, pool.exact) == (98, 98, 99, False)
    assert pool_of("::", assumed).exact
    assert pool_of("0.0.0.0", on("::1", dual_stack=True)).exact


def test_a_backend_that_may_lack_sockets_makes_no_exact_number() -> None:
    pool = pool_of("10.0.0.1", is_blind=True)

    assert (pool.remaining_min, pool.remaining_max, pool.exact) == (99, 99, False)


def test_a_listener_takes_its_port_from_its_address_alone() -> None:
    assert (
        pool_of("10.0.0.1", listening("10.0.0.1", LOW)).in_use,
        pool_of("10.0.0.2", listening("10.0.0.1", LOW)).in_use,
    ) == (
        1,
        0,
    )


@pytest.mark.parametrize(
    ("kind", "least"), [(PoolKind.TCP_BIND, 99), (PoolKind.UDP_BIND, 100), (PoolKind.UDP_CONNECT, 100)]
)
def test_a_range_of_odd_size_may_cost_tcp_bind_one_port(kind: PoolKind, least: int) -> None:
    pool = pool_of("10.0.0.1", kind=kind, high=LOW + 100)

    assert (pool.remaining_min, pool.remaining, pool.remaining_max) == (least, 100, 100)
    assert pool.exact == (least == 100)


def test_a_range_of_one_port_loses_none() -> None:
    assert pool_of("10.0.0.1", high=LOW).exact


def test_ports_that_may_be_shared_make_no_exact_number() -> None:
    pool = pool_of("10.0.0.1", on("10.0.0.1"), autobind_reuse=1)

    assert (pool.remaining, pool.remaining_max, pool.exact) == (98, 99, False)
    assert pool_of("10.0.0.1", on("10.0.0.1"), kind=PoolKind.UDP_BIND, autobind_reuse=1).exact


def test_many_addresses_are_counted_in_one_pass() -> None:
    """Anybody can bind to thousands of addresses; the work must not grow with their number times the sockets."""
    addresses = [f"127.{high}.{low}.1" for high in range(50) for low in range(200)]
    rows = [on(address, LOW + number % 90) for number, address in enumerate(addresses)]
    pools = AddressPools(
        PoolKind.UDP_BIND,
        "own",
        taken_at=1.0,
        sysctls=make_sysctls(),
        tables=(make_table([*rows, on("0.0.0.0", LOW + 95)]),),
        sources=[packed(address) for address in addresses],
        is_blind=False,
    )

    assert len(pools) == 10_000
    assert {pools.lost_and_held(source) for source in pools} == {(2, 2)}
