"""Which live connections are asked whether they use TCP timestamps: few, and only where TIME_WAITs may be reused."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from ephmon.facts.sockets import TcpState
from ephmon.facts.timestamps import ASK_AGAIN_SECONDS, PeerTimestamps
from ephmon.model.pools.peer_timestamps import IN_A_POLL, Most, with_timestamps
from tests.model.facts import LOW, connected, make_namespace, make_snapshot, make_sysctls, make_tcp, own
from tests.model.kernel_sockets import Peer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ephmon.facts.snapshot import Snapshot
    from ephmon.facts.socket_groups import ConnectKey
    from ephmon.facts.timestamps import TimestampQuestion
    from tests.model.facts import Sockets

FAR, NEAR = Peer("10.0.0.1", "10.0.0.9", 443), Peer("127.0.0.1", "127.0.0.1", 80)


def rows(peer: Peer, *, live: int = 8, left: int = 8, state: TcpState = TcpState.ESTABLISHED) -> tuple[Sockets, ...]:
    """Build live connections on even ports, and TIME_WAITs on odd ones."""
    ends = (peer.destination, peer.port)
    return (
        connected(peer.source, range(LOW, LOW + 2 * live, 2), *ends, state=state),
        connected(peer.source, range(LOW + 1, LOW + 2 * left, 2), *ends, state=TcpState.TIME_WAIT),
    )


def reading(*some: Sockets, reuse: int = 1, timestamps: int = 1) -> Snapshot:
    return make_snapshot(make_namespace(make_tcp(*some), make_sysctls(tw_reuse=reuse, timestamps=timestamps)))


class Kernel:
    """Remembers what it is asked, and says that every connection uses timestamps."""

    def __init__(self) -> None:
        self.asked: list[TimestampQuestion] = []

    def __call__(self, questions: Sequence[TimestampQuestion]) -> dict[ConnectKey, list[bool]]:
        self.asked = list(questions)
        return {one.key: [True] * len(one.ports) for one in questions}


def asked(snapshot: Snapshot, most_keys: int = 10, first: ConnectKey | None = None) -> set[ConnectKey]:
    kernel = Kernel()
    with_timestamps(snapshot, {}, 7.0, kernel, most=Most(most_keys, 4), first=first)
    return {one.key for one in kernel.asked}


@pytest.mark.parametrize(("reuse", "expected"), [(0, set()), (1, {FAR, NEAR}), (2, {NEAR})])
def test_only_where_time_wait_may_be_reused(reuse: int, expected: set[Peer]) -> None:
    assert asked(reading(*rows(FAR), *rows(NEAR), reuse=reuse)) == set(map(own, expected))


@pytest.mark.parametrize("state", [TcpState.SYN_SENT, TcpState.NEW_SYN_RECV, TcpState.TIME_WAIT])
def test_a_connection_that_has_not_agreed_on_options_is_not_asked(state: TcpState) -> None:
    assert asked(reading(*rows(FAR, state=state))) == set()


def test_nobody_is_asked_without_time_wait_or_while_timestamps_are_off() -> None:
    assert asked(reading(rows(FAR)[0])) == set()
    assert asked(reading(*rows(FAR), timestamps=0)) == set()


def test_a_few_connections_are_asked_from_all_over_the_dump() -> None:
    kernel = Kernel()
    with_timestamps(reading(*rows(FAR, live=40)), {}, 7.0, kernel)
    (question,) = kernel.asked

    assert (question.key, question.device) == (own(FAR), 0)
    assert question.ports == (LOW, LOW + 20, LOW + 40, LOW + 60)
    assert len(question.ports) == IN_A_POLL.sockets


def test_the_keys_with_the_most_time_waits_come_first_and_the_one_that_is_asked_for_always() -> None:
    snapshot = reading(*rows(NEAR, left=3), *rows(FAR, left=9), *rows(replace(FAR, port=444), left=5))

    assert asked(snapshot, most_keys=1) == {own(FAR)}
    assert asked(snapshot, most_keys=1, first=own(NEAR)) == {own(FAR), own(NEAR)}


def test_the_answers_are_facts_of_the_snapshot_and_are_not_asked_for_again_at_once() -> None:
    snapshot, kernel = reading(*rows(FAR)), Kernel()
    (namespace,) = with_timestamps(snapshot, {}, 7.0, kernel).namespaces
    assert namespace.tcp is not None
    known = {namespace.inode: namespace.tcp.timestamps}

    def later(seconds: float) -> PeerTimestamps:
        (again,) = with_timestamps(snapshot, known, 7.0 + seconds, kernel).namespaces
        assert again.tcp is not None
        return again.tcp.timestamps

    assert known[namespace.inode].of(own(FAR)) is True
    kernel.asked = []
    assert (later(ASK_AGAIN_SECONDS - 1).of(own(FAR)), kernel.asked) == (True, [])
    assert later(ASK_AGAIN_SECONDS).of(own(FAR)) is True
    assert [one.key for one in kernel.asked] == [own(FAR)]
