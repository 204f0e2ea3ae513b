"""What a failed connect() does to the pool that it failed toward, as long as that pool seems to have room."""

from __future__ import annotations

from dataclasses import replace
from socket import AF_INET
from typing import TYPE_CHECKING

import pytest

from ephmon.facts.failed_calls import ExhaustionEvent
from ephmon.facts.namespaces import Netns
from ephmon.facts.sockets import TcpState
from ephmon.model.alerting.state_machine import AlertName, Phase
from ephmon.model.alerting.thresholds import Severity
from ephmon.model.failures.counters import Exhaustions
from ephmon.model.failures.doubted_pools import DOUBT_SECONDS, MOST_DOUBTED, Cause, doubted_pools, possible_causes
from ephmon.model.pace import Poll
from ephmon.model.pools.kinds import PoolKind
from ephmon.model.pools.survey import survey
from ephmon.model.step import after_narrow_poll, classify_with_memory, conclude, next_full_poll
from tests.model.facts import (
    LOW,
    Sockets,
    blank_state,
    clients,
    connect_key,
    connected,
    make_narrow,
    make_sysctls,
    packed,
    snapshot_of,
)

if TYPE_CHECKING:
    from ephmon.model.pools.kinds import Pool
    from ephmon.model.state import State

HERE, THERE, PORT = "10.0.0.1", "10.0.0.9", 443
TIME_WAITS = connected(HERE, range(LOW, LOW + 95), THERE, PORT, state=TcpState.TIME_WAIT, left_ms=1_000)
REUSING = make_sysctls(tw_reuse=1)


def failed(at: float, host: int = 9) -> ExhaustionEvent:
    return ExhaustionEvent(
        at=1e9 + at,
        at_monotonic=at,
        netns=Netns("own", 1),
        source=packed(HERE),
        destination=packed(f"10.0.0.{host}"),
        destination_port=PORT,
        family=AF_INET,
        thread_id=7,
        uid=33,
    )


def after_failure(*hosts: int, at: float = 0.0) -> State:
    events = tuple(failed(at, host) for host in hosts or (9,))
    return blank_state().with_report(exhaustions=Exhaustions(latest=events))


def doubted_pool(*rows: Sockets, now: float = 1.0, answers: dict[int, bool] | None = None) -> Pool:
    snapshot = snapshot_of(*rows, sysctls=REUSING)
    state = after_failure()
    classified = classify_with_memory(snapshot, state, {snapshot.namespaces[0].inode: answers or {}})
    doubted = doubted_pools(state.report.exhaustions, now)
    found = survey(snapshot, classified, doubted=doubted)[0].find(connect_key(THERE, PORT, HERE), ())
    assert found is not None
    return found


def room(pool: Pool) -> tuple[int, int, bool]:
    return pool.remaining, pool.remaining_max, pool.is_doubted


def test_time_waits_of_which_nobody_knows_whether_they_are_reusable_count_as_taken_after_a_failure() -> None:
    pool = doubted_pool(TIME_WAITS, answers=dict.fromkeys(range(LOW, LOW + 95), True))

    assert room(pool) == (5, 100, True)
    assert set(possible_causes(pool)) == {Cause.NO_TIMESTAMPS, Cause.OWN_RANGE, Cause.FULL_BETWEEN_POLLS}


def test_ports_in_doubt_count_as_blocked_after_a_failure_until_the_kernel_has_answered() -> None:
    others = connected("10.0.0.2", range(LOW, LOW + 90), "10.0.0.8", PORT)

    in_doubt = doubted_pool(others)
    assert room(in_doubt) == (10, 100, True)
    assert set(possible_causes(in_doubt)) == {Cause.PORTS_IN_DOUBT, Cause.OWN_RANGE, Cause.FULL_BETWEEN_POLLS}
    settled = doubted_pool(others, answers=dict.fromkeys(range(LOW, LOW + 90), True))
    assert room(settled) == (100, 100, False)
    assert set(possible_causes(settled)) == {Cause.OWN_RANGE, Cause.FULL_BETWEEN_POLLS}


def test_a_pool_whose_number_is_certain_keeps_it_whatever_fails() -> None:
    assert room(doubted_pool(clients(20))) == (80, 80, False)


def test_a_full_pool_needs_no_other_cause() -> None:
    assert possible_causes(doubted_pool(clients(100))) == ()


def test_doubt_that_has_grown_old_is_over() -> None:
    others = connected("10.0.0.2", range(LOW, LOW + 90), "10.0.0.8", PORT)
    exhaustions = after_failure().report.exhaustions

    assert doubted_pools(exhaustions, DOUBT_SECONDS - 0.1)
    assert not doubted_pools(exhaustions, DOUBT_SECONDS)
    assert doubted_pools(None, 0.0) == frozenset()
    assert room(doubted_pool(others, now=DOUBT_SECONDS - 0.1)) == (10, 100, True)


def test_only_so_many_pools_are_in_doubt_those_with_the_latest_failures() -> None:
    events = tuple(failed(float(host), host) for host in range(1, 100))
    doubted = doubted_pools(Exhaustions(latest=events), 100.0)

    assert {key.destination[-1] for key in doubted} == set(range(100 - MOST_DOUBTED, 100))


def alerts_of(state: State) -> dict[AlertName, tuple[Phase, Severity]]:
    return {key.name: (alert.phase, alert.severity) for key, alert in state.report.alerts.states.items()}


def test_a_failure_that_doubt_explains_is_critical_for_the_pool_and_for_the_call() -> None:
    after = conclude(snapshot_of(TIME_WAITS, sysctls=REUSING), after_failure(), 1.0)

    assert alerts_of(after) == {
        AlertName.POOL_NEAR_EXHAUSTION: (Phase.FIRING, Severity.CRITICAL),
        AlertName.CONNECT_EXHAUSTIONS: (Phase.FIRING, Severity.CRITICAL),
    }
    (listed,) = after.report.listed
    assert listed.pool.remaining == 5
    assert after.report.namespaces[0].worst[PoolKind.TCP_CONNECT] == pytest.approx(0.95)


def test_a_pool_without_a_socket_is_in_doubt_too() -> None:
    """Another address holds the ports, perhaps by bind(); the first connect() toward this destination fails."""
    others = connected("10.0.0.2", range(LOW, LOW + 95), "10.0.0.8", PORT)
    after = conclude(snapshot_of(others), after_failure(), 1.0)

    assert alerts_of(after)[AlertName.CONNECT_EXHAUSTIONS] == (Phase.FIRING, Severity.CRITICAL)
    assert after.report.namespaces[0].pools[PoolKind.TCP_CONNECT] == 2


def test_a_narrow_poll_holds_the_pool_against_the_ports_that_are_known() -> None:
    rows = [connected("10.0.0.2", range(LOW, LOW + 95), "10.0.0.8", PORT), clients(1)]
    before = conclude(snapshot_of(*rows), blank_state(), 0.0)
    failing = before.with_report(exhaustions=Exhaustions(latest=(failed(1.0),)))
    destinations = [(packed(THERE), PORT)]
    after = after_narrow_poll(make_narrow([clients(1)], destinations=destinations), failing, 1.1)

    assert after is not None
    assert alerts_of(after)[AlertName.CONNECT_EXHAUSTIONS] == (Phase.FIRING, Severity.CRITICAL)


def test_once_the_doubt_is_settled_the_call_is_a_warning_and_the_pool_has_no_alert() -> None:
    others = connected("10.0.0.2", range(LOW, LOW + 95), "10.0.0.8", PORT)
    snapshot = snapshot_of(others)
    doubted = conclude(snapshot, after_failure(), 1.0)
    answers = {snapshot.namespaces[0].inode: dict.fromkeys(range(LOW, LOW + 95), True)}
    settled = conclude(snapshot, doubted, 2.0, classify_with_memory(snapshot, doubted, answers))

    assert alerts_of(settled) == {
        AlertName.POOL_NEAR_EXHAUSTION: (Phase.RESOLVED, Severity.CRITICAL),
        AlertName.CONNECT_EXHAUSTIONS: (Phase.FIRING, Severity.WARNING),
    }


def test_the_next_poll_gathers_evidence_while_a_pool_is_in_doubt() -> None:
    calm = blank_state()
    calm = calm.with_report(pace=replace(calm.report.pace, polls_per_evidence=8))

    assert next_full_poll(calm) is Poll.COUNTING
    assert next_full_poll(calm.with_report(exhaustions=Exhaustions(latest=(failed(0.0),)))) is Poll.FULL
