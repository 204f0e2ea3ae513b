"""Whose ports are asked about."""

from __future__ import annotations

import pytest

from ephmon.facts.sockets import Backend, Protocol
from ephmon.model.alerting.state_machine import Alert, AlertName, Alerts, Phase
from ephmon.model.owners.questions import (
    MOST_POOLS,
    OwnerQuestions,
    raised_by,
    raised_by_firing,
    refusal,
    unanswerable,
)
from ephmon.model.pools.kinds import PoolKind
from tests.builders import make_alert, make_bind_pool, make_pool

CONNECT, BIND = make_pool().key, make_bind_pool().key
UDP = CONNECT._replace(kind=PoolKind.UDP_BIND, destination=None, destination_port=None)


def alerts(*some: Alert) -> Alerts:
    return Alerts(states={one.key: one for one in some})


def test_pools_are_asked_about_from_the_moment_that_an_alert_is_pending_until_it_ends() -> None:
    pools = {phase: make_pool(destination_port=port) for port, phase in enumerate(Phase, 1)}
    found = raised_by(alerts(*(make_alert(pool, phase=phase) for phase, pool in pools.items())), "own")

    assert set(found.pools) == {pools[Phase.PENDING].key, pools[Phase.FIRING].key}
    assert not found.blocked


def test_an_alert_that_fires_without_being_shown_asks_nothing() -> None:
    """There may be any number of them."""
    hidden = make_alert(make_pool(), name=AlertName.CONNECT_EXHAUSTIONS, is_announced=False)

    assert raised_by(alerts(hidden), "own").is_none


def test_a_pool_with_two_alerts_is_asked_about_once_and_other_namespaces_are_not() -> None:
    twice = [
        make_alert(make_pool(), name=name) for name in (AlertName.POOL_NEAR_EXHAUSTION, AlertName.CONNECT_EXHAUSTIONS)
    ]

    assert raised_by(alerts(*twice, make_alert(make_pool(netns="blue"))), "own") == OwnerQuestions((CONNECT,))


def test_blocked_ports_are_asked_about_because_of_their_own_alert_alone() -> None:
    blocked = alerts(make_alert(name=AlertName.PORTS_BLOCKED))
    summary = alerts(make_alert(name=AlertName.TOO_MANY_ALERTS))

    assert raised_by(blocked, "own") == OwnerQuestions(blocked=True)
    assert raised_by(blocked, "blue").is_none
    assert raised_by(summary, "own").is_none


def test_of_many_pools_the_most_urgent_are_asked_about() -> None:
    many = [make_alert(make_pool(destination_port=port)) for port in range(1, 40)]
    found = raised_by(alerts(*many), "own")

    assert [key.destination_port for key in found.pools] == [*range(1, MOST_POOLS + 1)]


def test_processes_are_asked_for_once_an_alert_fires_for_all_to_see() -> None:
    pending, untold, firing = (make_pool(destination_port=port) for port in (1, 2, 3))
    found = raised_by_firing(
        alerts(
            make_alert(firing),
            make_alert(untold, is_announced=False),
            make_alert(pending, phase=Phase.PENDING),
            make_alert(name=AlertName.PORTS_BLOCKED, phase=Phase.PENDING),
        ),
        "own",
    )

    assert found == OwnerQuestions((firing.key,))


@pytest.mark.parametrize(
    ("asked", "backends", "left", "refused"),
    [
        (
            OwnerQuestions((CONNECT, UDP), blocked=True),
            {Protocol.TCP: Backend.INET_DIAG, Protocol.UDP: Backend.INET_DIAG},
            3,
            set(),
        ),
        (
            OwnerQuestions((CONNECT, UDP), blocked=True),
            {Protocol.TCP: Backend.PROCFS, Protocol.UDP: Backend.INET_DIAG},
            1,
            {"tcp"},
        ),
        (OwnerQuestions((BIND, UDP), blocked=True), {Protocol.TCP: Backend.INET_DIAG}, 2, {"udp"}),
        (OwnerQuestions((BIND,)), {Protocol.TCP: Backend.INET_DIAG, Protocol.UDP: Backend.PROCFS}, 1, set()),
        (OwnerQuestions(blocked=True), {}, 0, {"tcp"}),
    ],
)
def test_what_inet_diag_does_not_read_has_no_answer(
    asked: OwnerQuestions, backends: dict[Protocol, Backend], left: int, refused: set[str]
) -> None:
    missing = unanswerable(asked, backends)
    answerable = asked.without(missing)

    assert missing == refused
    assert len(answerable.pools) + answerable.blocked == left
    assert answerable.is_none == (left == 0)


def test_the_refusal_says_what_to_do() -> None:
    sentence = refusal([Protocol.UDP, Protocol.TCP])

    assert "inet_diag" in sentence
    assert "tcp and udp" in sentence
    assert all(fix in sentence for fix in ("tcp_diag", "udp_diag", "AF_NETLINK", "poll.backend"))
