"""Who holds the ports that were asked about: what is read, which ports count, and which processes are looked at."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from ephmon.facts.addresses import Endpoint
from ephmon.facts.owned_sockets import OwnerGroup, OwnerTable
from ephmon.facts.sockets import Protocol, TcpState
from ephmon.model.owners import answers as answers_module
from ephmon.model.owners.answers import (
    OwnedSockets,
    PortState,
    ProcessQuery,
    SocketQuery,
    find_owners,
    process_query,
    socket_query,
)
from ephmon.model.owners.questions import BLOCKED_PORTS, OwnerQuestions
from ephmon.model.owners.shares import RecentOwners
from ephmon.model.pools.kinds import PoolKind
from tests.builders import make_bind_pool, make_pool
from tests.model.facts import HIGH, LOW, make_ports, make_sysctls, packed

if TYPE_CHECKING:
    import pytest

    from ephmon.model.owners.shares import Owners

CONNECT, BIND = make_pool().key, make_bind_pool().key
OTHER = make_pool(destination="10.0.0.8").key
UDP = BIND._replace(kind=PoolKind.UDP_BIND)
SHARED, BLOCKED_TOO, BLOCKED_PORT, RESERVED = LOW, LOW + 1, LOW + 2, LOW + 3
USABLE = [port for port in range(LOW, HIGH + 1) if port != RESERVED]
SYSCTLS = make_sysctls(reserved=[RESERVED])
PORT_STATE = PortState(SYSCTLS, make_ports(SYSCTLS, blocked=[BLOCKED_TOO, BLOCKED_PORT]))
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
    assert socket_query(OwnerQuestions((CONNECT, OTHER)), PORT_STATE) == SocketQuery(
        frozenset({Endpoint(THERE, 443), Endpoint(packed("10.0.0.8"), 443)}), {}
    )


def test_blocked_ports_are_read_alone_unless_all_ports_are_read_anyway() -> None:
    blocked = socket_query(OwnerQuestions(blocked=True), PORT_STATE)
    both = socket_query(OwnerQuestions((BIND, UDP), blocked=True), PORT_STATE)

    assert blocked == SocketQuery(frozenset(), {Protocol.TCP: [BLOCKED_TOO, BLOCKED_PORT]})
    assert both == SocketQuery(frozenset(), {Protocol.TCP: USABLE, Protocol.UDP: USABLE})


def test_while_tcp_could_never_be_read_udp_is() -> None:
    port_state = PortState(SYSCTLS, None)

    assert socket_query(OwnerQuestions((UDP,)), port_state) == SocketQuery(frozenset(), {Protocol.UDP: USABLE})


# --- which ports count --------------------------------------------------------------------------------------------


def test_of_a_pool_the_ports_of_its_capacity_count() -> None:
    ports = [SHARED, BLOCKED_TOO, BLOCKED_PORT, RESERVED]
    sockets = OwnedSockets(
        toward=make_owner_table(row(ports, [1, 2, 3, 4])),
        on_ports={Protocol.TCP: make_owner_table(row(ports, [1, 2, 3, 4], to=bytes(4)))},
        paths=PATHS,
    )
    answer = find_owners(OwnerQuestions((CONNECT, BIND), blocked=True), sockets, PORT_STATE, 1000.0)

    assert ports_of(answer.pools[CONNECT]) == {"haproxy.service": 1}
    assert ports_of(answer.pools[BIND]) == {"haproxy.service": 3}
    assert ports_of(answer.blocked) == {"haproxy.service": 2}


def test_tcp_and_udp_are_told_apart() -> None:
    sockets = OwnedSockets(
        on_ports={
            Protocol.TCP: make_owner_table(listening([SHARED], [1])),
            Protocol.UDP: make_owner_table(listening([SHARED, SHARED + 5], [2, 3], 7)),
        },
        paths=PATHS,
    )
    answer = find_owners(OwnerQuestions((BIND, UDP)), sockets, PORT_STATE, 1000.0)

    assert ports_of(answer.pools[BIND]) == {"nginx.service": 1}
    assert ports_of(answer.pools[UDP]) == {"haproxy.service": 2}
    assert answer.blocked is None


def test_what_is_remembered_is_of_the_questions_asked() -> None:
    """A pool that is asked about again after another answer has begun anew."""
    sockets = OwnedSockets(toward=make_owner_table(row([SHARED], [1])), paths=PATHS)
    waiting = OwnedSockets(
        toward=make_owner_table(row([SHARED], [0], None, uid=None, state=TcpState.TIME_WAIT)), paths=PATHS
    )
    first = find_owners(OwnerQuestions((CONNECT,), blocked=True), sockets, PORT_STATE, 1000.0)
    second = find_owners(OwnerQuestions((CONNECT,)), waiting, PORT_STATE, 1005.0, first.recent)
    anew = find_owners(OwnerQuestions((CONNECT,)), waiting, PORT_STATE, 1005.0, {CONNECT: RecentOwners()})

    assert set(first.recent) == {CONNECT, BLOCKED_PORTS}
    assert set(second.recent) == {CONNECT}
    assert ports_of(second.pools[CONNECT]) == {"haproxy.service": 1}
    assert second.pools[CONNECT].shares[0].is_estimated
    assert anew.pools[CONNECT].unknown_ports == 1


# --- which processes are looked at --------------------------------------------------------------------------------


def test_processes_are_looked_for_in_the_cgroups_of_the_pools_sockets_and_among_the_users_of_those_without() -> None:
    sockets = OwnedSockets(
        toward=make_owner_table(
            row([SHARED], [11]),
            row([SHARED + 5], [12], 99, uid=44),
            row([SHARED + 6], [13], None, uid=55),
            row([SHARED + 7], [0], None, uid=None, state=TcpState.TIME_WAIT),
            row([SHARED + 8], [14], 8, to=packed("10.0.0.8")),
        ),
        paths=PATHS,
    )

    assert process_query(sockets, CONNECT) == ProcessQuery(
        inodes=frozenset({11, 12, 13}), cgroup_ids=frozenset({7}), uids=frozenset({44, 55})
    )
    assert process_query(sockets, OTHER) == ProcessQuery(
        inodes=frozenset({14}), cgroup_ids=frozenset({8}), uids=frozenset()
    )
    assert process_query(sockets, BLOCKED_PORTS) == ProcessQuery(
        inodes=frozenset(), cgroup_ids=frozenset(), uids=frozenset()
    )


def test_of_too_many_sockets_on_blocked_ports_those_that_block_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers_module, "MOST_INODES", 3)
    accepted = row([BLOCKED_PORT] * 4, [21, 22, 23, 24])
    sockets = OwnedSockets(
        on_ports={Protocol.TCP: make_owner_table(accepted, listening([BLOCKED_PORT, BLOCKED_TOO], [31, 32]))},
        paths=PATHS,
    )

    assert process_query(sockets, BLOCKED_PORTS).inodes == {31, 32, 21}
