"""The state machine of the alerts: its table, its laws, and which alerts are announced if there are too many."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product
from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ephmon.model.alerting.state_machine import (
    MOST_NEW_AT_WILL,
    NEW_PER_ACTIVE,
    NEW_SECONDS,
    SUMMARY,
    TRANSITIONS,
    Alert,
    AlertKey,
    AlertName,
    Alerts,
    Judgement,
    Moment,
    Observation,
    Phase,
    Signal,
    step,
    transitions,
)
from ephmon.model.alerting.thresholds import Severity
from tests.builders import TAKEN_AT, make_pool

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

WARNING, CRITICAL = Severity.WARNING, Severity.CRITICAL
INACTIVE, PENDING, FIRING, RESOLVED = Phase
BELOW, BETWEEN, REACHED = Signal.BELOW, Signal.BETWEEN, Signal.REACHED
NEAR = AlertName.POOL_NEAR_EXHAUSTION


def at(seconds: float) -> Moment:
    return Moment(seconds, TAKEN_AT + seconds)


def key(host: int = 9) -> AlertKey:
    return AlertKey(NEAR, "own", make_pool(destination=f"10.0.0.{host}").key)


def signal(value: float, enter: float, clear: float) -> Signal:
    if value >= enter:
        return REACHED
    return BETWEEN if value >= clear else BELOW


def seen(value: float, *, warning_for: float = 0.0, critical_for: float = 0.0) -> Observation:
    """Return what is said of a value: it warns from 0.70, clear 0.65, and is critical from 0.90, clear 0.85."""
    judgements = {
        WARNING: Judgement(signal(value, 0.70, 0.65), warning_for),
        CRITICAL: Judgement(signal(value, 0.90, 0.85), critical_for),
    }
    return Observation(value=value, judgements=judgements)


def after(previous: Alerts, now: float, observations: Mapping[AlertKey, Observation], max_active: int = 50) -> Alerts:
    """Return the alerts after a poll that looked at everything."""
    return step(previous, observations, lambda _: True, at(now), max_active)


def run(values: Iterable[float], *, warning_for: float = 0.0, critical_for: float = 0.0) -> list[Alerts]:
    """Return the alerts after each of some polls, 5 s apart, of one key."""
    alerts, found = Alerts(), []
    for number, value in enumerate(values):
        said = seen(value, warning_for=warning_for, critical_for=critical_for)
        alerts = after(alerts, 5.0 * number, {key(): said})
        found.append(alerts)
    return found


def shown(alerts: Alerts) -> tuple[Phase, Severity] | None:
    alert = alerts.states.get(key())
    return None if alert is None else (alert.phase, alert.severity)


def the_alert(alerts: Alerts) -> Alert:
    return alerts.states[key()]


def announced(alerts: Alerts) -> list[AlertKey]:
    return [alert.key for alert in alerts.firing]


# --- the table ----------------------------------------------------------------------------------------------------


def test_the_table_says_what_becomes_of_every_phase_under_every_signal() -> None:
    assert set(TRANSITIONS) == set(product(Phase, Signal))


def test_nothing_but_a_resolved_alert_changes_by_a_poll_that_did_not_look() -> None:
    assert {phase: TRANSITIONS[phase, Signal.UNSEEN] for phase in Phase} == {
        INACTIVE: INACTIVE,
        PENDING: PENDING,
        FIRING: FIRING,
        RESOLVED: INACTIVE,
    }


@pytest.mark.parametrize(
    ("values", "phases"),
    [
        ([0.69, 0.70], [None, (FIRING, WARNING)]),
        ([0.70, 0.65, 0.6499], [(FIRING, WARNING), (FIRING, WARNING), (RESOLVED, WARNING)]),
        ([0.70, 0.60, 0.60], [(FIRING, WARNING), (RESOLVED, WARNING), None]),
        ([0.70, 0.60, 0.66], [(FIRING, WARNING), (RESOLVED, WARNING), None]),
        ([0.70, 0.60, 0.70], [(FIRING, WARNING), (RESOLVED, WARNING), (FIRING, WARNING)]),
        ([0.66, 0.66], [None, None]),
        ([0.90, 0.85, 0.84], [(FIRING, CRITICAL), (FIRING, CRITICAL), (FIRING, WARNING)]),
        ([0.70, 0.90, 0.60], [(FIRING, WARNING), (FIRING, CRITICAL), (RESOLVED, CRITICAL)]),
        ([0.90, 0.66, 0.60], [(FIRING, CRITICAL), (FIRING, WARNING), (RESOLVED, WARNING)]),
    ],
)
def test_an_alert_starts_at_its_threshold_and_ends_below_clear(
    values: list[float], phases: list[tuple[Phase, Severity] | None]
) -> None:
    assert [shown(alerts) for alerts in run(values)] == phases


def test_for_is_how_long_the_threshold_is_reached_before_it_fires() -> None:
    found = run([0.7, 0.7, 0.7, 0.7], warning_for=10.0)

    assert [shown(alerts) for alerts in found] == [(PENDING, WARNING), (PENDING, WARNING), *[(FIRING, WARNING)] * 2]
    assert [the_alert(alerts).since for alerts in found] == [at(0), at(0), at(10), at(10)]


def test_for_starts_anew_after_a_poll_below_the_threshold_even_in_the_band() -> None:
    found = run([0.7, 0.69, 0.7, 0.7, 0.7], warning_for=10.0)

    assert [shown(alerts) for alerts in found] == [
        (PENDING, WARNING),
        None,
        (PENDING, WARNING),
        (PENDING, WARNING),
        (FIRING, WARNING),
    ]


def test_what_is_critical_at_once_does_not_wait_for_the_warning() -> None:
    assert [shown(alerts) for alerts in run([0.95], warning_for=10.0)] == [(FIRING, CRITICAL)]


def test_what_is_critical_no_longer_is_a_warning_at_once_even_if_that_never_fired() -> None:
    found = run([0.95, 0.84, 0.84], warning_for=3600.0)

    assert [shown(alerts) for alerts in found] == [(FIRING, CRITICAL), (FIRING, WARNING), (FIRING, WARNING)]


def test_a_warning_goes_on_while_the_critical_is_pending() -> None:
    found = run([0.75, 0.95, 0.95, 0.95], critical_for=10.0)

    assert [shown(alerts) for alerts in found] == [(FIRING, WARNING)] * 3 + [(FIRING, CRITICAL)]


def test_an_alert_has_fired_since_it_began_whatever_its_severity_is_now() -> None:
    found = run([0.75, 0.95, 0.95, 0.75, 0.5])

    assert [the_alert(alerts).since for alerts in found] == [at(0)] * 5
    assert [the_alert(alerts).severity_since for alerts in found[:3]] == [at(0), at(5), at(5)]
    assert [the_alert(alerts).ended for alerts in found] == [None] * 4 + [at(20)]


def test_an_alert_carries_the_value_and_the_pools_of_the_poll_that_looked_last() -> None:
    pool = make_pool(in_use=20_000)
    alerts = after(Alerts(), 0.0, {key(): Observation(value=0.71, judgements=seen(0.71).judgements, pools=(pool,))})
    unseen = step(alerts, {}, lambda _: False, at(5.0), 50)
    gone = after(alerts, 5.0, {})

    assert [(the_alert(one).value, the_alert(one).pools) for one in (alerts, unseen, gone)] == [(0.71, (pool,))] * 3


def test_a_key_that_was_looked_at_and_is_gone_ends_and_one_that_was_not_is_held() -> None:
    alerts = after(Alerts(), 0.0, {key(8): seen(0.8), key(9): seen(0.8)})
    alerts = step(alerts, {}, lambda asked: asked == key(9), at(5.0), 50)

    assert {one.pool and one.pool.destination: alert.phase for one, alert in alerts.states.items()} == {
        "10.0.0.8": FIRING,
        "10.0.0.9": RESOLVED,
    }
    assert [alert.key for alert in alerts.resolved] == [key(9)]


def test_a_severity_that_was_not_looked_at_is_held() -> None:
    alerts = after(Alerts(), 0.0, {key(): seen(0.95)})
    alerts = after(alerts, 5.0, {key(): Observation(value=0.8, judgements={WARNING: Judgement(REACHED)})})

    assert shown(alerts) == (FIRING, CRITICAL)


# --- laws ---------------------------------------------------------------------------------------------------------

IN_WARNING_BAND = st.floats(min_value=0.65, max_value=0.70, exclude_max=True)
IN_CRITICAL_BAND = st.floats(min_value=0.85, max_value=0.90, exclude_max=True)
RATIOS = st.floats(min_value=0.0, max_value=1.0) | st.sampled_from([0.65, 0.7, 0.85, 0.9, 1.0])
WAITS = st.sampled_from([0.0, 5.0, 10.0, 12.0])


@given(st.lists(IN_WARNING_BAND, max_size=20), WAITS)
def test_nothing_starts_inside_the_band(values: list[float], wait: float) -> None:
    assert [shown(alerts) for alerts in run(values, warning_for=wait)] == [None] * len(values)


@given(st.lists(IN_WARNING_BAND, max_size=20))
def test_what_fires_goes_on_inside_the_band(values: list[float]) -> None:
    assert {shown(alerts) for alerts in run([0.7, *values])} == {(FIRING, WARNING)}


@given(st.lists(IN_CRITICAL_BAND, max_size=20))
def test_what_is_critical_stays_so_inside_its_band(values: list[float]) -> None:
    assert {shown(alerts) for alerts in run([0.9, *values])} == {(FIRING, CRITICAL)}


@given(st.lists(RATIOS, max_size=40), WAITS, WAITS)
def test_an_alert_starts_no_more_often_than_the_band_is_crossed(
    values: list[float], warning_for: float, critical_for: float
) -> None:
    found = [Alerts(), *run(values, warning_for=warning_for, critical_for=critical_for)]
    phases = [(shown(alerts) or (INACTIVE, WARNING))[0] for alerts in found]
    starts = sum(now is FIRING and before is not FIRING for before, now in pairwise(phases))
    crossings, is_above = 0, False
    for value in values:
        crossings += value >= 0.7 and not is_above
        is_above = value >= 0.7 or (is_above and value >= 0.65)

    assert starts <= crossings


@given(st.lists(RATIOS, min_size=1, max_size=40), WAITS, WAITS)
def test_what_fires_was_reached_for_as_long_as_for_asks(
    values: list[float], warning_for: float, critical_for: float
) -> None:
    found = [None, *(shown(alerts) for alerts in run(values, warning_for=warning_for, critical_for=critical_for))]
    for number, (before, now) in enumerate(pairwise(found)):
        if now is not None and now[0] is FIRING and (before is None or before[0] is not FIRING):
            enter, wait = (0.7, warning_for) if now[1] is WARNING else (0.9, critical_for)
            needed = -(-int(wait) // 5)
            assert all(value >= enter for value in values[number - needed : number + 1])


observations = st.dictionaries(
    st.integers(1, 200), st.builds(seen, RATIOS, warning_for=WAITS, critical_for=WAITS), max_size=12
)
polls = st.lists(observations, min_size=1, max_size=6)


@given(polls, st.integers(1, 6), st.integers())
def test_the_order_of_the_observations_does_not_matter(
    observed: list[dict[int, Observation]], max_active: int, seed: int
) -> None:
    random = Random(seed)
    one = other = Alerts()
    for number, found in enumerate(observed):
        in_order = [(key(host), said) for host, said in found.items()]
        one = after(one, 5.0 * number, dict(in_order), max_active)
        other = after(other, 5.0 * number, dict(random.sample(in_order, len(in_order))), max_active)

        assert list(one.states.items()) == list(other.states.items())


@given(polls, st.integers(1, 6))
def test_what_is_kept_and_announced_is_bounded_and_the_summary_counts_the_rest(
    observed: list[dict[int, Observation]], max_active: int
) -> None:
    alerts = Alerts()
    for number, found in enumerate(observed):
        alerts = after(alerts, 5.0 * number, {key(host): said for host, said in found.items()}, max_active)
        unannounced = [alert for alert in alerts.states.values() if alert.phase is FIRING and not alert.is_announced]

        assert len([one for one in announced(alerts) if one != SUMMARY]) <= max_active
        assert len(alerts.states) <= 3 * max_active + 1
        assert not unannounced or SUMMARY in announced(alerts)


def without_ended_tracks(alert: Alert) -> Alert:
    """Return the alert without severities that are over: RESOLVED lasts for one step, whatever the step sees."""
    return replace(
        alert, tracks={one: track for one, track in alert.tracks.items() if track.phase not in (RESOLVED, INACTIVE)}
    )


@given(polls)
def test_no_alert_comes_or_goes_for_want_of_data(observed: list[dict[int, Observation]]) -> None:
    alerts = Alerts()
    for number, found in enumerate(observed):
        alerts = after(alerts, 5.0 * number, {key(host): said for host, said in found.items()})
    unseen = step(alerts, {}, lambda _: False, at(1000.0), 50)

    lasting = {one: alert for one, alert in alerts.states.items() if alert.phase is not RESOLVED}
    assert {one: without_ended_tracks(alert) for one, alert in unseen.states.items()} == {
        one: without_ended_tracks(alert) for one, alert in lasting.items()
    }
    assert step(Alerts(), {}, lambda _: True, at(0.0), 50).states == {}


@given(polls)
def test_whatever_was_announced_ends_as_resolved_once_its_pool_is_gone(observed: list[dict[int, Observation]]) -> None:
    alerts = Alerts()
    for number, found in enumerate(observed):
        alerts = after(alerts, 5.0 * number, {key(host): said for host, said in found.items()})
    gone = after(alerts, 1000.0, {})

    assert {alert.key for alert in gone.resolved} == set(announced(alerts))
    assert (gone.firing, after(gone, 1005.0, {}).states) == ((), {})


# --- who is told --------------------------------------------------------------------------------------------------


def hosts(*values: tuple[int, float]) -> dict[AlertKey, Observation]:
    return {key(host): seen(value) for host, value in values}


def test_beyond_max_active_one_summary_counts_the_rest_in_the_severity_of_the_worst() -> None:
    alerts = after(Alerts(), 0.0, hosts((1, 0.7), (2, 0.7), (3, 0.7), (4, 0.7)), 2)
    summary = alerts.states[SUMMARY]

    assert announced(alerts) == [key(1), key(2), SUMMARY]
    assert (summary.severity, summary.value, summary.since) == (WARNING, 2, at(0.0))
    worse = after(alerts, 5.0, hosts((1, 0.95), (2, 0.95), (3, 0.95), (4, 0.7)), 2)
    assert (worse.states[SUMMARY].severity, worse.states[SUMMARY].since) == (CRITICAL, at(0.0))


def test_the_summary_ends_when_all_have_a_place() -> None:
    alerts = after(Alerts(), 0.0, hosts((1, 0.7), (2, 0.7)), 1)
    alerts = after(alerts, 5.0, hosts((1, 0.5), (2, 0.7)), 1)

    assert announced(alerts) == [key(2)]
    assert [(alert.key, alert.phase) for alert in alerts.resolved] == [(key(1), RESOLVED), (SUMMARY, RESOLVED)]


def test_those_who_have_a_place_keep_it_from_equals_and_give_it_to_a_critical_one() -> None:
    alerts = after(Alerts(), 0.0, hosts((8, 0.7), (9, 0.7)), 2)
    equals = after(alerts, 5.0, hosts((1, 0.89), (8, 0.7), (9, 0.7)), 2)
    critical = after(alerts, 5.0, hosts((1, 0.9), (8, 0.7), (9, 0.7)), 2)

    assert announced(equals) == [key(8), key(9), SUMMARY]
    assert announced(critical) == [key(1), key(8), SUMMARY]


def test_one_that_is_critical_no_longer_keeps_the_place_that_it_took() -> None:
    alerts = after(Alerts(), 0.0, hosts((8, 0.7)), 1)
    alerts = after(alerts, 5.0, hosts((8, 0.7), (9, 0.9)), 1)
    alerts = after(alerts, 10.0, hosts((8, 0.7), (9, 0.7)), 1)

    assert announced(alerts) == [key(9), SUMMARY]


def test_a_place_that_becomes_free_goes_to_the_one_that_has_fired_longest() -> None:
    alerts = Alerts()
    for now, values in [(0.0, [(5, 0.7)]), (5.0, [(5, 0.7), (9, 0.7)]), (10.0, [(5, 0.7), (9, 0.7), (1, 0.7)])]:
        alerts = after(alerts, now, hosts(*values), 1)
    alerts = after(alerts, 15.0, hosts((9, 0.7), (1, 0.7)), 1)

    assert announced(alerts) == [key(9), SUMMARY]


def test_of_those_that_begin_at_once_the_fullest_pool_gets_the_place() -> None:
    pools = [make_pool(destination=f"10.0.0.{host}", usable=100, blocked=0, in_use=70 + host) for host in (1, 9)]
    found = {AlertKey(NEAR, "own", pool.key): replace(seen(pool.utilisation), pools=(pool,)) for pool in pools}
    alerts = after(Alerts(), 0.0, found, 1)

    assert announced(alerts) == [key(9), SUMMARY]


def test_a_condition_of_the_namespace_comes_before_any_pool() -> None:
    blocked = AlertKey(AlertName.PORTS_BLOCKED, "own")
    alerts = after(Alerts(), 0.0, hosts((9, 0.95)), 1)
    alerts = after(alerts, 5.0, hosts((9, 0.95)) | {blocked: seen(0.7)}, 1)

    assert announced(alerts) == [blocked, SUMMARY]


def test_an_alert_beyond_max_active_is_announced_as_soon_as_there_is_room_without_waiting_again() -> None:
    waiting = {key(2): seen(0.7, warning_for=10.0)}
    alerts = Alerts()
    for now in (0.0, 5.0, 10.0):
        alerts = after(alerts, now, hosts((1, 0.7)) | waiting, 1)
    assert announced(alerts) == [key(1), SUMMARY]

    alerts = after(alerts, 15.0, waiting, 1)
    assert announced(alerts) == [key(2)]
    assert alerts.states[key(2)].since == at(10.0)


def test_one_that_was_never_reported_ends_without_a_word() -> None:
    before = after(Alerts(), 0.0, hosts((1, 0.7), (2, 0.7)), 1)
    alerts = after(before, 5.0, hosts((1, 0.7)), 1)

    assert [alert.key for alert in alerts.resolved] == [SUMMARY]
    assert key(2) not in alerts.states


def test_pools_that_are_pending_are_no_alerts_to_be_summed_up() -> None:
    pending = {key(host): seen(0.7, warning_for=10.0) for host in range(1, 9)}

    assert announced(after(Alerts(), 0.0, pending, 2)) == []


def test_a_poll_that_did_not_look_at_everything_takes_nothing_off_the_summary() -> None:
    """What is beyond the places and those who wait for one is not remembered, and is not seen by a narrow poll."""
    alerts = after(Alerts(), 0.0, hosts((1, 0.7)), 1)
    alerts = after(alerts, 5.0, hosts((1, 0.7)) | {key(host): seen(0.7, warning_for=60.0) for host in range(2, 9)}, 1)
    narrow = step(alerts, hosts((1, 0.7)), lambda _: False, at(6.0), 1)
    full = after(narrow, 10.0, hosts((1, 0.7)), 1)

    assert [(one.states[SUMMARY].phase, one.states[SUMMARY].value) for one in (alerts, narrow, full)] == [
        (FIRING, 6),
        (FIRING, 6),
        (RESOLVED, 0),
    ]


def test_a_smaller_max_active_takes_the_places_of_the_least_urgent() -> None:
    alerts = after(Alerts(), 0.0, hosts((1, 0.7), (2, 0.95), (3, 0.7)), 3)
    alerts = after(alerts, 5.0, hosts((1, 0.7), (2, 0.95), (3, 0.7)), 1)

    assert announced(alerts) == [key(2), SUMMARY]
    assert alerts.states[SUMMARY].value == 2


# --- what is said of a change -------------------------------------------------------------------------------------


def test_each_change_is_reported_once() -> None:
    found = [Alerts(), *run([0.7, 0.7, 0.7, 0.9, 0.9, 0.5, 0.5], warning_for=10.0)]
    told_of = [
        [(one.before and one.before.phase, one.after.phase, one.after.severity) for one in transitions(before, now)]
        for before, now in pairwise(found)
    ]

    assert told_of == [
        [(None, PENDING, WARNING)],
        [],
        [(PENDING, FIRING, WARNING)],
        [(FIRING, FIRING, CRITICAL)],
        [],
        [(FIRING, RESOLVED, CRITICAL)],
        [],
    ]


def test_a_report_that_comes_twice_tells_nothing_twice() -> None:
    alerts = after(Alerts(), 0.0, hosts((1, 0.95)))

    assert transitions(alerts, alerts) == []


# --- how many are new ---------------------------------------------------------------------------------------------


def failed(host: int) -> AlertKey:
    return key(host)._replace(name=AlertName.CONNECT_EXHAUSTIONS)


def test_an_hour_has_so_many_new_alerts_that_any_user_can_make_and_the_others_are_counted() -> None:
    """Each lasts for one poll, so `max_active` alone would never keep one out."""
    alerts, told, unlisted = Alerts(), set[AlertKey](), 0.0
    for number in range(200):
        alerts = after(alerts, number * NEW_SECONDS / 200, {failed(number): seen(0.75)})
        told |= set(announced(alerts)) - {SUMMARY}
        unlisted += alerts.states[SUMMARY].value if SUMMARY in announced(alerts) else 0

    assert told == {failed(number) for number in range(MOST_NEW_AT_WILL)}
    assert unlisted == 200 - MOST_NEW_AT_WILL
    assert announced(after(alerts, 2 * NEW_SECONDS, {failed(500): seen(0.75)})) == [failed(500)]


def test_they_keep_no_other_alert_back() -> None:
    alerts = Alerts()
    for number in range(200):
        alerts = after(alerts, number * 5.0, {failed(number): seen(0.75)})
    alerts = after(alerts, 1000.0, {failed(201): seen(0.75), failed(202): seen(0.95), key(203): seen(0.95)})

    assert set(announced(alerts)) == {failed(202), key(203), SUMMARY}
    assert alerts.states[SUMMARY].severity is WARNING


def test_an_alert_that_comes_back_within_the_hour_is_not_new() -> None:
    alerts = Alerts()
    for number in range(100):
        alerts = after(alerts, number * 5.0, {failed(number): seen(0.75)})
    alerts = after(alerts, 600.0, {})

    assert announced(after(alerts, 700.0, {failed(0): seen(0.75)})) == [failed(0)]


def test_an_alert_that_lasts_longer_than_the_hour_stays() -> None:
    alerts = Alerts()
    for number in range(30):
        alerts = after(alerts, number * 600.0, {failed(0): seen(0.75), failed(100 + number): seen(0.75)})
        assert failed(0) in announced(alerts)


def test_alerts_of_pools_that_fill_up_have_a_bound_of_their_own() -> None:
    alerts, told = Alerts(), set[AlertKey]()
    for number in range(NEW_PER_ACTIVE * 2 + 9):
        alerts = after(alerts, number * 5.0, {key(number): seen(0.95)}, 2)
        told |= set(announced(alerts)) - {SUMMARY}

    assert len(told) == NEW_PER_ACTIVE * 2
    assert alerts.states[SUMMARY].severity is CRITICAL
