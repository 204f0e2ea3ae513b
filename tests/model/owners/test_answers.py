"""Who holds the ports that were asked about: what is read for it, which ports count, and whose processes are sought."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from ephmon.facts.addresses import Endpoint
from ephmon.facts.owned_sockets import OwnerGroup, OwnerTable
from ephmon.facts.sockets import Protocol, TcpState
from ephmon.model.owners import answers as holders_module
from ephmon.model.owners.answers import BLOCKED, Ground, OwnerReading, Sought, ToRead, holders, sought, to_read
from ephmon.model.owners.questions import OwnerQuestions
from ephmon.model.owners.shares import Recent
from ephmon.model.pools.kinds import PoolKind
from tests.builders import make_bind_pool, make_pool
from tests.model.facts import HIGH, LOW, make_ports, make_sysctls, packed

if TYPE_CHECKING:
    import pytest

    from ephmon.model.owners.shares import Owners

CONNECT, BIND = make_pool().key, make_bind_pool().key
OTHER = make_pool(destination="10.0.0.8").key
UDP = BIND._replace(kind=PoolKind.UDP_BIND)
SHARED, SUSPECT_PORT, BLOCKED_PORT, RESERVED = LOW, LOW + 1, LOW + 2, LOW + 3
USABLE = [port for port in range(LOW, HIGH + 1) if port != RESERVED]
SYSCTLS = make_sysctls(reserved=[RESERVED])
GROUND = Ground(SYSCTLS, make_ports(SYSCTLS, blocked=[BLOCKED_PORT], suspect=[SUSPECT_PORT]))
HERE, THERE = packed("10.0.0.1"), packed("10.0.0.9")
PATHS = {7: "/system.slice/haproxy.service", 8: "/system.slice/nginx.service"}

Row = tuple[OwnerGroup, list[int], list[int]]


def row(
    ports: list[int],
    inodes: list[int],
    cgroup_id: int | None = 7,
    *,
    uid: int | None = 33,
    state: int = TcpState.ESTABLISHED,
    to: bytes = THERE,
) -> Row:
    return OwnerGroup(state, HERE, to, 443 if any(to) else 0, uid, cgroup_id), ports, inodes


def make_owner_table(*rows: Row) -> OwnerTable:
    return OwnerTable(
        groups=tuple(group for group, _, _ in rows),
        ports_of=tuple(array("H", ports) for _, ports, _ in rows),
        inodes_of=tuple(array("I", inodes) for _, _, inodes in rows),
    )


def listening(ports: list[int], inodes: list[int], cgroup_id: int = 8) -> Row:
    return row(ports, inodes, cgroup_id, state=TcpState.LISTEN, to=bytes(4))


def ports_of(owners: Owners | None) -> dict[str, int]:
    assert owners is not None
    return {share.owner.name: share.ports for share in owners.shares}


# --- what is read -------------------------------------------------------------------------------------------------


def test_pools_with_a_destination_are_read_toward_it_and_nothing_else_is() -> None:
    assert to_read(OwnerQuestions((CONNECT, OTHER)), GROUND) == ToRead(
        frozenset({Endpoint(THERE, 443), Endpoint(packed("10.0.0.8"), 443)}), {}
    )


def test_blocked_ports_are_read_alone_unless_all_ports_are_read_anyway() -> None:
    blocked = to_read(OwnerQuestions(blocked=True), GROUND)
    both = to_read(OwnerQuestions((BIND, UDP), blocked=True), GROUND)

    assert blocked == ToRead(frozenset(), {Protocol.TCP: [SUSPECT_PORT, BLOCKED_PORT]})
    assert both == ToRead(frozenset(), {Protocol.TCP: USABLE, Protocol.UDP: USABLE})


def test_while_tcp_could_never_be_read_udp_is() -> None:
    ground = Ground(SYSCTLS, None)

    assert to_read(OwnerQuestions((UDP,)), ground) == ToRead(frozenset(), {Protocol.UDP: USABLE})


# --- which ports count --------------------------------------------------------------------------------------------


def test_of_a_pool_the_ports_of_its_capacity_count() -> None:
    ports = [SHARED, SUSPECT_PORT, BLOCKED_PORT, RESERVED]
    reading = OwnerReading(
        toward=make_owner_table(row(ports, [1, 2, 3, 4])),
        on_ports={Protocol.TCP: make_owner_table(row(ports, [1, 2, 3, 4], to=bytes(4)))},
        paths=PATHS,
    )
    answer = holders(OwnerQuestions((CONNECT, BIND), blocked=True), reading, GROUND, 1000.0)

    assert ports_of(answer.pools[CONNECT]) == {"haproxy.service": 1}
    assert ports_of(answer.pools[BIND]) == {"haproxy.service": 3}
    assert ports_of(answer.blocked) == {"haproxy.service": 2}


def test_tcp_and_udp_are_told_apart() -> None:
    reading = OwnerReading(
        on_ports={
            Protocol.TCP: make_owner_table(listening([SHARED], [1])),
            Protocol.UDP: make_owner_table(listening([SHARED, SHARED + 5], [2, 3], 7)),
        },
        paths=PATHS,
    )
    answer = holders(OwnerQuestions((BIND, UDP)), reading, GROUND, 1000.0)

    assert ports_of(answer.pools[BIND]) == {"nginx.service": 1}
    assert ports_of(answer.pools[UDP]) == {"haproxy.service": 2}
    assert answer.blocked is None


def test_what_is_remembered_is_of_the_questions_asked() -> None:
    """A pool that is asked about again after another answer has begun anew."""
    reading = OwnerReading(toward=make_owner_table(row([SHARED], [1])), paths=PATHS)
    waiting = OwnerReading(
        toward=make_owner_table(row([SHARED], [0], None, uid=None, state=TcpState.TIME_WAIT)), paths=PATHS
    )
    first = holders(OwnerQuestions((CONNECT,), blocked=True), reading, GROUND, 1000.0)
    second = holders(OwnerQuestions((CONNECT,)), waiting, GROUND, 1005.0, first.recent)
    anew = holders(OwnerQuestions((CONNECT,)), waiting, GROUND, 1005.0, {CONNECT: Recent()})

    assert set(first.recent) == {CONNECT, BLOCKED}
    assert set(second.recent) == {CONNECT}
    assert ports_of(second.pools[CONNECT]) == {"haproxy.service": 1}
    assert second.pools[CONNECT].shares[0].is_estimated
    assert anew.pools[CONNECT].unknown_ports == 1


# --- whose processes are sought -----------------------------------------------------------------------------------


def test_processes_are_sought_in_the_cgroups_of_the_pools_sockets_and_among_the_users_of_those_without() -> None:
    reading = OwnerReading(
        toward=make_owner_table(
            row([SHARED], [11]),
            row([SHARED + 5], [12], 99, uid=44),
            row([SHARED + 6], [13], None, uid=55),
            row([SHARED + 7], [0], None, uid=None, state=TcpState.TIME_WAIT),
            row([SHARED + 8], [14], 8, to=packed("10.0.0.8")),
        ),
        paths=PATHS,
    )

    assert sought(reading, CONNECT) == Sought(
        inodes=frozenset({11, 12, 13}), cgroup_ids=frozenset({7}), uids=frozenset({44, 55})
    )
    assert sought(reading, OTHER) == Sought(inodes=frozenset({14}), cgroup_ids=frozenset({8}), uids=frozenset())
    assert sought(reading, BLOCKED) == Sought(inodes=frozenset(), cgroup_ids=frozenset(), uids=frozenset())


def test_of_too_many_sockets_on_blocked_ports_those_that_block_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holders_module, "MOST_INODES", 3)
    accepted = row([BLOCKED_PORT] * 4, [21, 22, 23, 24])
    reading = OwnerReading(
        on_ports={Protocol.TCP: make_owner_table(accepted, listening([BLOCKED_PORT, SUSPECT_PORT], [31, 32]))},
        paths=PATHS,
    )

    assert sought(reading, BLOCKED).inodes == {31, 32, 21}
