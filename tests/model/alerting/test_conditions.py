"""What a poll says of the alerts: which pools are judged, which of them blocked ports cover, and what is held."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from typing import TYPE_CHECKING

import pytest

from ephmon.errors import Reason
from ephmon.facts.namespaces import OWN_NETNS
from ephmon.facts.sockets import TcpState, UdpSockets
from ephmon.facts.timestamps import PeerTimestamps
from ephmon.model.alerting.conditions import is_covered, judge_full_poll
from ephmon.model.alerting.failed_calls import MOST_ALONE, MOST_FAILING
from ephmon.model.alerting.state_machine import SUMMARY, AlertKey, AlertName, Alerts, Moment, Phase, UserFailures
from ephmon.model.alerting.thresholds import Severity, Threshold, ThresholdOverride, Thresholds
from ephmon.model.failures.recent import QUIET_SECONDS, RecentFailures
from ephmon.model.forecast.forecast import Forecast
from ephmon.model.pools.kinds import PoolKey, PoolKind
from ephmon.model.pools.survey import survey
from ephmon.model.rules import DestinationPattern, ListingRules, Rules
from ephmon.model.step import after_failed_poll, after_narrow_poll, conclude
from tests.model.facts import (
    LOW,
    TAKEN_AT,
    Sockets,
    blank_state,
    bound,
    clients,
    connect_key,
    connected,
    listeners,
    make_namespace,
    make_narrow,
    make_snapshot,
    make_sysctls,
    make_table,
    make_tcp,
    own,
    packed,
    snapshot_of,
)
from tests.model.kernel_sockets import Peer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ephmon.facts.snapshot import Snapshot
    from ephmon.model.state import State


WARNING, CRITICAL = Severity.WARNING, Severity.CRITICAL
PENDING, FIRING, RESOLVED = Phase.PENDING, Phase.FIRING, Phase.RESOLVED
NEAR, BLOCKED, FORECAST, FAILED = (
    AlertName.POOL_NEAR_EXHAUSTION,
    AlertName.PORTS_BLOCKED,
    AlertName.POOL_EXHAUSTION_FORECAST,
    AlertName.CONNECT_EXHAUSTIONS,
)
OF_SHARE = AlertKey(BLOCKED, OWN_NETNS)
"""The alert of the blocked ports."""


def near(host: int = 9, port: int = 443) -> AlertKey:
    return AlertKey(NEAR, OWN_NETNS, connect_key(f"10.0.0.{host}", port, "10.0.0.1"))


def polled(state: State, now: float, *rows: Sockets) -> State:
    return conclude(snapshot_of(*rows), state, now)


def looked(state: State, now: float, *rows: Sockets, hosts: Iterable[int] = (9,)) -> State:
    """Return the state after a narrow poll of 10.0.0.`hosts`."""
    ends = [(packed(f"10.0.0.{host}"), 443) for host in hosts]
    narrow = make_narrow(rows, taken_at=TAKEN_AT + now, destinations=ends)
    after = after_narrow_poll(narrow, state, now)
    assert after is not None
    return after


def active(state: State) -> dict[AlertKey, tuple[Phase, Severity]]:
    return {key: (alert.phase, alert.severity) for key, alert in state.report.alerts.states.items()}


def named(state: State) -> list[str | None]:
    """Return the destinations that the alert of the blocked ports names."""
    return [pool.key.destination for pool in state.report.alerts.states[OF_SHARE].pools]


# --- pools --------------------------------------------------------------------------------------------------------


def test_a_pool_is_held_against_the_default_thresholds() -> None:
    state = blank_state()
    expected = [
        (0.0, 69, {}),
        (5.0, 70, {near(): (PENDING, WARNING)}),
        (10.0, 72, {near(): (PENDING, WARNING)}),
        (15.0, 71, {near(): (FIRING, WARNING)}),
        (20.0, 65, {near(): (FIRING, WARNING)}),
        (25.0, 90, {near(): (FIRING, CRITICAL)}),
        (30.0, 85, {near(): (FIRING, CRITICAL)}),
        (35.0, 84, {near(): (FIRING, WARNING)}),
        (40.0, 64, {near(): (RESOLVED, WARNING)}),
        (45.0, 66, {}),
    ]
    for now, number, alerts in expected:
        state = polled(state, now, clients(number))
        assert (now, active(state)) == (now, alerts)


def left_by_clients(number: int, *, reuse: int, seen: Iterable[bool] = ()) -> Snapshot:
    """Build a reading of so many old TIME_WAITs, and of what live connections have shown of timestamps."""
    rows = connected("10.0.0.1", range(LOW, LOW + number), "10.0.0.9", 443, state=TcpState.TIME_WAIT, left_ms=9)
    known = PeerTimestamps().at(7.0, is_on=True).with_answers({own(Peer("10.0.0.1", "10.0.0.9", 443)): list(seen)})
    tcp = replace(make_tcp(rows), timestamps=known)
    return make_snapshot(make_namespace(tcp, make_sysctls(tw_reuse=reuse)))


@pytest.mark.parametrize(
    ("seen", "after"),
    [
        ((), {near(): (FIRING, CRITICAL)}),
        ((False,), {near(): (FIRING, CRITICAL)}),
        ((True,), {near(): (RESOLVED, CRITICAL)}),
    ],
    ids=["unknown", "without timestamps", "with timestamps"],
)
def test_time_wait_that_the_kernel_may_not_give_back_ends_no_alert(
    seen: tuple[bool, ...], after: dict[AlertKey, tuple[Phase, Severity]]
) -> None:
    full = conclude(left_by_clients(95, reuse=2, seen=seen), blank_state(), 0.0)
    advice_followed = conclude(left_by_clients(95, reuse=1, seen=seen), full, 5.0)

    assert active(full) == {near(): (FIRING, CRITICAL)}
    assert active(advice_followed) == after


def test_time_wait_that_the_kernel_may_not_give_back_starts_no_alert() -> None:
    assert active(conclude(left_by_clients(95, reuse=1), blank_state(), 0.0)) == {}
    assert active(conclude(left_by_clients(95, reuse=1, seen=[False]), blank_state(), 0.0)) != {}


def test_an_alert_of_a_pool_carries_its_utilisation_and_itself() -> None:
    (alert,) = polled(blank_state(), 7.0, clients(95)).report.alerts.firing

    assert (alert.value, alert.since) == (0.95, Moment(7.0, TAKEN_AT))
    assert [(pool.in_use, pool.remaining) for pool in alert.pools] == [(95, 5)]


def test_a_pool_alerts_whether_or_not_it_is_listed() -> None:
    rules = Rules(listing=ListingRules(top=1))
    state = polled(blank_state(rules), 0.0, clients(95, 8), clients(99, 9))

    assert [one.pool.key for one in state.report.listed] == [near(9).pool]
    assert active(state) == {near(8): (FIRING, CRITICAL), near(9): (FIRING, CRITICAL)}


def test_an_exhausted_pool_of_five_ports_alerts_though_it_is_too_small_to_be_listed() -> None:
    state = conclude(snapshot_of(clients(5), sysctls=make_sysctls(LOW, LOW + 4)), blank_state(), 0.0)

    assert state.report.listed == ()
    assert active(state) == {near(): (FIRING, CRITICAL)}


def test_an_ignored_destination_raises_no_alert_and_ends_the_one_it_has() -> None:
    ignored = DestinationPattern(network=ip_network("10.0.0.9/32"))
    rules = Rules(listing=ListingRules(ignore_destinations=(ignored,)))
    before = polled(blank_state(), 0.0, clients(95))

    assert active(polled(blank_state(rules), 0.0, clients(95))) == {}
    assert active(polled(replace(before, rules=rules), 5.0, clients(95))) == {near(): (RESOLVED, CRITICAL)}


def test_a_pool_without_a_destination_alerts_like_any_other() -> None:
    udp = UdpSockets(sockets=make_table([bound("0.0.0.0", range(LOW, LOW + 95))]))
    namespace = replace(make_namespace(make_tcp()), udp=udp)
    state = conclude(make_snapshot(namespace), blank_state(), 0.0)

    assert active(state) == {
        AlertKey(NEAR, OWN_NETNS, PoolKey(OWN_NETNS, PoolKind.UDP_CONNECT, "0.0.0.0", None, None)): (FIRING, CRITICAL)
    }


def test_a_pool_whose_sockets_are_gone_has_no_alert_any_more() -> None:
    state = polled(polled(blank_state(), 0.0, clients(95)), 5.0)

    assert active(state) == {near(): (RESOLVED, CRITICAL)}
    assert active(polled(state, 10.0)) == {}


def test_pools_of_two_namespaces_are_apart() -> None:
    full = make_namespace(make_tcp(clients(95)), netns="full", inode=1)
    idle = make_namespace(make_tcp(clients(5)), netns="idle", inode=2)
    state = conclude(make_snapshot(full, idle), blank_state(), 0.0)

    assert [(key.netns, key.pool and key.pool.netns) for key in state.report.alerts.states] == [("full", "full")]


LOW_THRESHOLD = Threshold(utilisation=0.20, for_seconds=0.0, clear=0.10)
HIGH_THRESHOLD = Threshold(utilisation=0.95, for_seconds=0.0, clear=0.94)


def test_the_first_override_that_matches_wins_in_the_order_of_the_file() -> None:
    narrow_one = ThresholdOverride(destination=ip_network("10.0.0.9/32"), warning=LOW_THRESHOLD)
    wide_one = ThresholdOverride(destination=ip_network("10.0.0.0/24"), warning=HIGH_THRESHOLD)
    found = [
        set(
            active(
                polled(blank_state(Rules(thresholds=Thresholds(overrides=overrides))), 0.0, clients(30), clients(75, 8))
            )
        )
        for overrides in [(), (narrow_one, wide_one), (wide_one, narrow_one)]
    ]

    assert found == [{near(8)}, {near(9)}, set()]


def test_a_threshold_far_below_the_others_is_found_among_many_pools() -> None:
    override = ThresholdOverride(destination_port=5432, warning=LOW_THRESHOLD)
    rules = Rules(thresholds=Thresholds(overrides=(override,)))
    state = polled(blank_state(rules), 0.0, *(clients(19, 8, port) for port in range(1, 500)), clients(20, 8, 5432))

    assert active(state) == {near(8, 5432): (FIRING, WARNING)}


# --- blocked ports ------------------------------------------------------------------------------------------------


def test_one_program_that_binds_seventy_percent_of_the_ports_raises_one_alert() -> None:
    rows = [listeners(70), *(clients(host, host) for host in range(1, 21))]
    state = blank_state()
    for now in (0.0, 5.0, 10.0, 15.0):
        state = polled(state, now, *rows)
        assert set(active(state)) == {OF_SHARE}

    (alert,) = state.report.alerts.firing
    assert (alert.key, alert.severity, alert.value) == (OF_SHARE, CRITICAL, 0.70)
    assert named(state) == ["10.0.0.20", "10.0.0.19", "10.0.0.18", "10.0.0.17", "10.0.0.16"]


def test_blocked_ports_alert_without_any_pool() -> None:
    state = polled(polled(blank_state(), 0.0, listeners(75)), 10.0, listeners(75))

    assert active(state) == {OF_SHARE: (FIRING, WARNING)}
    assert named(state) == []


def test_the_alert_of_blocked_ports_takes_the_severity_of_the_worst_pool_at_once() -> None:
    """A critical has no `for`: nobody waits for that of the warning, and no pool fires by itself meanwhile."""
    assert active(polled(blank_state(), 0.0, listeners(70), clients(20))) == {OF_SHARE: (FIRING, CRITICAL)}
    assert active(polled(blank_state(), 0.0, listeners(70), clients(19))) == {OF_SHARE: (PENDING, WARNING)}


BLOCKED_EARLY = Rules(
    thresholds=Thresholds(
        warning=Threshold(utilisation=0.30, for_seconds=0.0, clear=0.25),
        critical=Threshold(utilisation=0.90, for_seconds=0.0, clear=0.85),
    )
)


def test_a_pool_that_takes_more_than_is_blocked_alerts_by_itself() -> None:
    state = polled(blank_state(BLOCKED_EARLY), 0.0, listeners(30), clients(29, 8), clients(30, 9))

    assert active(state) == {OF_SHARE: (FIRING, WARNING), near(9): (FIRING, WARNING)}
    assert named(state) == ["10.0.0.8"]


def test_ports_that_the_kernel_hands_out_again_are_not_what_a_pool_takes() -> None:
    """On loopback, a TIME_WAIT that is more than a second old."""
    live = connected("127.0.0.1", range(LOW, LOW + 29), "127.0.0.1", 443, no_port=True)
    left = connected(
        "127.0.0.1", range(LOW + 29, LOW + 60), "127.0.0.1", 443, state=TcpState.TIME_WAIT, left_ms=50_000, no_port=True
    )
    state = polled(blank_state(BLOCKED_EARLY), 0.0, listeners(30), live, left)

    assert [(pool.in_use, pool.reusable) for pool in state.report.alerts.states[OF_SHARE].pools] == [(60, 31)]
    assert active(state) == {OF_SHARE: (FIRING, WARNING)}


def test_other_kinds_alert_by_themselves_while_ports_are_blocked() -> None:
    udp = UdpSockets(sockets=make_table([bound("0.0.0.0", range(LOW, LOW + 95))]))
    namespace = replace(make_namespace(make_tcp(listeners(75))), udp=udp)
    state = conclude(make_snapshot(namespace), blank_state(), 0.0)

    assert {(key.name, key.pool and key.pool.kind) for key in state.report.alerts.states} == {
        (BLOCKED, None),
        (NEAR, PoolKind.UDP_CONNECT),
    }


def test_below_clear_blocked_ports_cover_no_pool() -> None:
    assert active(polled(blank_state(), 0.0, listeners(64), clients(30))) == {near(): (FIRING, CRITICAL)}


def test_between_clear_and_threshold_blocked_ports_cover_the_pools_that_they_lift_over_a_threshold() -> None:
    """Else a program that binds ever more of them raises an alert for each pool before there is the one of all."""
    lifted = [clients(10, host) for host in range(1, 21)]
    state = polled(polled(blank_state(), 0.0, listeners(66), *lifted), 10.0, listeners(66), *lifted)
    nobody = polled(polled(blank_state(), 0.0, listeners(66), clients(3)), 10.0, listeners(66), clients(3))

    assert active(state) == {OF_SHARE: (FIRING, WARNING)}
    assert active(nobody) == {}


def test_the_alert_of_blocked_ports_ends_below_clear_and_not_within_the_band() -> None:
    state = polled(polled(blank_state(), 0.0, listeners(70), clients(3)), 10.0, listeners(70), clients(3))
    for now, number, phase in [(15.0, 65, FIRING), (20.0, 64, RESOLVED)]:
        state = polled(state, now, listeners(number), clients(3))
        assert active(state) == {OF_SHARE: (phase, WARNING)}


def test_a_share_that_wanders_around_clear_raises_nothing_new() -> None:
    """The pool is critical all the time: on the first turn the alert goes from the share to the pool, and stays."""
    state = blank_state()
    found = []
    for now, number in enumerate([66, 64, 66, 64, 66]):
        state = polled(state, 5.0 * now, listeners(number), clients(30))
        found.append({key for key, (phase, _) in active(state).items() if phase is FIRING})

    assert found == [{OF_SHARE}, {near()}, {near()}, {near()}, {near()}]


def test_where_a_pool_and_the_blocked_ports_have_equal_shares_their_alerts_do_not_take_turns() -> None:
    warning = Threshold(utilisation=0.5, for_seconds=0.0, clear=0.4)
    state = blank_state(Rules(thresholds=Thresholds(warning=warning)))
    found = []
    for now, number in enumerate([44, 46, 44, 46, 44, 39]):
        state = polled(state, 5.0 * now, listeners(45), clients(number))
        found.append({key for key, (phase, _) in active(state).items() if phase is FIRING})

    assert found == [{OF_SHARE}, *[{OF_SHARE, near()}] * 4, {OF_SHARE}]


def test_an_alert_of_a_pool_goes_on_until_the_alert_that_covers_the_pool_fires() -> None:
    state = polled(polled(blank_state(), 0.0, listeners(40), clients(35)), 10.0, listeners(40), clients(35))
    assert active(state) == {near(): (FIRING, WARNING)}

    found = []
    for now in (15.0, 20.0, 25.0, 30.0, 35.0):
        state = polled(state, now, listeners(70), clients(15))
        found.append(active(state))

    assert found == [
        {near(): (FIRING, WARNING), OF_SHARE: (PENDING, WARNING)},
        {near(): (FIRING, WARNING), OF_SHARE: (PENDING, WARNING)},
        {near(): (FIRING, WARNING), OF_SHARE: (FIRING, WARNING)},
        {near(): (RESOLVED, WARNING), OF_SHARE: (FIRING, WARNING)},
        {OF_SHARE: (FIRING, WARNING)},
    ]


def test_an_alert_that_ended_because_blocked_ports_cover_its_pool_is_told_from_one_whose_pool_is_gone() -> None:
    state = polled(blank_state(BLOCKED_EARLY), 0.0, listeners(30), clients(40, 8), clients(40, 9))
    assert not any(is_covered(alert, state.report.alerts) for alert in state.report.alerts.states.values())

    state = polled(state, 5.0, listeners(30), clients(10, 9))
    ended = {key: alert for key, alert in state.report.alerts.states.items() if alert.phase is RESOLVED}

    assert {key: is_covered(alert, state.report.alerts) for key, alert in ended.items()} == {
        near(8): False,
        near(9): True,
    }
    assert ended[near(9)].value == 0.4, "as the poll saw it that looked last"


def test_a_pool_that_is_critical_and_above_clear_makes_the_alert_that_covers_it_critical() -> None:
    state = polled(blank_state(), 0.0, listeners(40), clients(50))
    state = polled(state, 5.0, listeners(70), clients(16))

    assert active(state) == {OF_SHARE: (FIRING, CRITICAL), near(): (FIRING, CRITICAL)}


def test_without_a_usable_port_everything_is_blocked() -> None:
    sysctls = make_sysctls(LOW, LOW + 1, reserved=[LOW, LOW + 1])
    state = conclude(snapshot_of(clients(2, 8), clients(2, 9), sysctls=sysctls), blank_state(), 0.0)

    assert active(state) == {OF_SHARE: (FIRING, CRITICAL)}


def test_sixty_thousand_pools_that_are_lifted_are_one_alert() -> None:
    rows = [listeners(90), *(clients(1, 9, port) for port in range(1, 60_001))]

    assert set(active(polled(blank_state(), 0.0, *rows))) == {OF_SHARE}


# --- what was not looked at ---------------------------------------------------------------------------------------


def test_a_failed_poll_holds_every_alert() -> None:
    state = polled(blank_state(), 0.0, clients(95), listeners(3))
    failed = after_failed_poll(after_failed_poll(state, "No.", Reason.KERNEL, 5.0), "No.", Reason.KERNEL, 5.0)

    assert failed.report.alerts == state.report.alerts
    assert active(polled(failed, 3600.0, clients(95), listeners(3))) == {near(): (FIRING, CRITICAL)}
    assert polled(failed, 3600.0, clients(95)).report.alerts.states[near()].since.monotonic == 0.0


def test_alerts_of_a_protocol_that_could_not_be_read_are_held_and_none_comes() -> None:
    state = polled(blank_state(), 0.0, listeners(92), clients(1))
    without = conclude(make_snapshot(make_namespace(None)), state, 5.0)

    assert without.report.success
    assert active(without) == active(state) == {OF_SHARE: (FIRING, CRITICAL)}
    assert active(conclude(make_snapshot(make_namespace(None)), blank_state(), 0.0)) == {}


def test_alerts_of_a_namespace_that_is_gone_end() -> None:
    other = make_namespace(make_tcp(clients(95)), netns="other", inode=2)
    state = conclude(make_snapshot(other), blank_state(), 0.0)

    assert [alert.phase for alert in polled(state, 5.0).report.alerts.states.values()] == [RESOLVED]


def test_a_narrow_poll_judges_its_own_pools_and_holds_the_others() -> None:
    state = polled(blank_state(), 0.0, clients(95, 8), clients(75, 9))
    fuller = looked(state, 1.0, clients(91, 9))
    emptier = looked(fuller, 2.0, clients(10, 9))

    assert active(state) == {near(8): (FIRING, CRITICAL), near(9): (PENDING, WARNING)}
    assert active(fuller) == {near(8): (FIRING, CRITICAL), near(9): (FIRING, CRITICAL)}
    assert active(emptier) == {near(8): (FIRING, CRITICAL), near(9): (RESOLVED, CRITICAL)}
    assert fuller.report.alerts.states[near(9)].since == Moment(1.0, TAKEN_AT + 1.0)


def test_a_narrow_poll_makes_the_alert_of_blocked_ports_worse_but_never_better() -> None:
    rows = [listeners(70), clients(14, 8), clients(10, 9)]
    state = polled(polled(blank_state(), 0.0, *rows), 10.0, *rows)
    worse = looked(state, 11.0, clients(25, 9))
    no_better = looked(worse, 12.0, clients(1, 9))
    full = polled(no_better, 15.0, listeners(70), clients(14, 8), clients(1, 9))

    assert active(state) == {OF_SHARE: (FIRING, WARNING)}
    assert active(worse) == active(no_better) == {OF_SHARE: (FIRING, CRITICAL)}
    assert named(worse) == ["10.0.0.9", "10.0.0.8"]
    assert active(full) == {OF_SHARE: (FIRING, WARNING)}


def test_a_narrow_poll_that_succeeds_while_full_ones_fail_changes_alerts() -> None:
    failed = after_failed_poll(polled(blank_state(), 0.0, clients(80)), "No.", Reason.KERNEL, 5.0)

    assert active(looked(failed, 6.0, clients(95))) == {near(): (FIRING, CRITICAL)}


# --- reloads ------------------------------------------------------------------------------------------------------


def test_a_reload_that_leaves_the_thresholds_alone_changes_nothing() -> None:
    state = polled(blank_state(), 0.0, clients(95))
    reloaded = replace(state, rules=Rules(listing=ListingRules(top=3)))

    assert polled(reloaded, 5.0, clients(95)).report.alerts == polled(state, 5.0, clients(95)).report.alerts


def test_new_thresholds_are_judged_at_the_next_poll_and_an_alert_that_goes_on_keeps_its_time() -> None:
    state = polled(polled(blank_state(), 0.0, clients(80)), 10.0, clients(80))
    stricter = Thresholds(critical=Threshold(utilisation=0.75, for_seconds=0.0, clear=0.73))
    looser = Thresholds(warning=Threshold(utilisation=0.88, for_seconds=10.0, clear=0.83))

    worse, over = (
        polled(replace(state, rules=Rules(thresholds=thresholds)), 15.0, clients(80))
        for thresholds in (stricter, looser)
    )
    assert active(worse) == {near(): (FIRING, CRITICAL)}
    assert worse.report.alerts.states[near()].since.monotonic == 10.0
    assert active(over) == {near(): (RESOLVED, WARNING)}


def test_a_pending_alert_goes_on_waiting_over_a_reload() -> None:
    state = polled(blank_state(), 0.0, clients(75))
    sooner = Thresholds(warning=Threshold(utilisation=0.70, for_seconds=5.0, clear=0.65))

    assert active(polled(replace(state, rules=Rules(thresholds=sooner)), 5.0, clients(75))) == {
        near(): (FIRING, WARNING)
    }


def test_max_active_is_that_of_the_configuration() -> None:
    state = polled(blank_state(Rules(max_active=2)), 0.0, *(clients(95, host) for host in range(1, 6)))

    assert set(active(state)) == {near(1), near(2), near(3), near(4), SUMMARY}
    assert [alert.key for alert in state.report.alerts.firing] == [near(1), near(2), SUMMARY]
    assert state.report.alerts.states[SUMMARY].value == 3


# --- forecasts ----------------------------------------------------------------------------------------------------


def heading(seconds: float | None) -> Forecast:
    return Forecast(
        opens_per_second=1.0,
        growth_per_second=1.0,
        sustainable_opens_per_second=None,
        seconds_to_exhaustion=seconds,
    )


def forecast(
    seconds: list[float | None], in_use: int, *rows: Sockets, rise: int = 1, interval: float = 5.0
) -> list[tuple[Phase, Severity] | None]:
    """Return the alert of the forecast after each of some polls of a pool of 100 ports that fills."""
    alerts = Alerts()
    found: list[tuple[Phase, Severity] | None] = []
    for number, left in enumerate(seconds):
        alerts = judge_full_poll(
            survey(snapshot_of(clients(in_use + rise * number), *rows)),
            alerts,
            Rules(),
            Moment(interval * number, TAKEN_AT),
            forecasts={connect_key("10.0.0.9", 443, "10.0.0.1"): heading(left)},
        )
        alert = alerts.states.get(near()._replace(name=FORECAST))
        found.append(None if alert is None else (alert.phase, alert.severity))
    return found


def test_a_forecast_alerts_when_two_polls_see_exhaustion_within_a_minute() -> None:
    assert forecast([60.0, 59.9, 54.0, 49.0], 49) == [None, (PENDING, WARNING), (FIRING, WARNING), (FIRING, WARNING)]


def test_two_polls_are_enough_if_they_are_a_little_closer_together_than_the_interval() -> None:
    """As they are half of the time: one that took longer than the next counts from its end."""
    assert forecast([50.0, 45.0], 60, interval=4.97) == [(PENDING, WARNING), (FIRING, WARNING)]


def test_a_forecast_that_comes_and_goes_does_not_alert() -> None:
    assert forecast([50.0, None, 50.0, None], 60) == [(PENDING, WARNING), None, (PENDING, WARNING), None]


def test_a_forecast_of_a_pool_that_fills_no_further_does_not_alert() -> None:
    assert forecast([50.0, 50.0], 60, rise=0) == [(PENDING, WARNING), None]
    assert forecast([50.0, 45.0, 45.0], 60)[2:] == [(FIRING, WARNING)]


def test_a_forecast_ends_with_its_cause_and_not_within_its_band() -> None:
    assert forecast([50.0, 50.0, 119.0, 120.0], 55)[2:] == [(FIRING, WARNING), (RESOLVED, WARNING)]
    assert forecast([50.0, 50.0, None], 55)[2:] == [(RESOLVED, WARNING)]


@pytest.mark.parametrize(("in_use", "alert"), [(47, [None] * 3), (48, [None, None, (PENDING, WARNING)])])
def test_a_pool_that_is_half_empty_has_no_forecast_alert(
    in_use: int, alert: list[tuple[Phase, Severity] | None]
) -> None:
    assert forecast([10.0, 10.0, 10.0], in_use) == alert


def test_a_pool_that_fires_by_a_threshold_has_no_forecast_alert_beside_it() -> None:
    """The warning of the threshold fires at the third poll, and the forecast gives way at the fourth."""
    assert forecast([50.0, 50.0, 40.0, 30.0], 75) == [
        (PENDING, WARNING),
        (FIRING, WARNING),
        (FIRING, WARNING),
        (RESOLVED, WARNING),
    ]
    assert forecast([50.0] * 4, 95)[1:] == [None] * 3


def test_a_pool_that_blocked_ports_cover_has_no_forecast_alert() -> None:
    assert forecast([10.0, 10.0, 10.0], 21, listeners(70))[1:] == [None, None]


# --- failed connect() calls ---------------------------------------------------------------------------------------


def failures(
    state: State, now: float, *rows: Sockets, count: int = 3, last_at: float = 0.0
) -> dict[AlertKey, tuple[Phase, Severity]]:
    recent = RecentFailures(key=connect_key("10.0.0.9", 443, "10.0.0.1"), count=count, last_at=last_at)
    alerts = judge_full_poll(
        survey(snapshot_of(*rows)), state.report.alerts, state.rules, Moment(now, TAKEN_AT), exhaustions=[recent]
    )
    return {key: (alert.phase, alert.severity) for key, alert in alerts.states.items() if key.name is FAILED}


@pytest.mark.parametrize(
    ("rows", "severity"),
    [
        ([clients(69)], WARNING),
        ([clients(70)], CRITICAL),
        ([listeners(69)], WARNING),
        ([listeners(70)], CRITICAL),
        ([], WARNING),
    ],
)
def test_failed_calls_are_critical_only_where_ports_are_scarce(rows: list[Sockets], severity: Severity) -> None:
    assert failures(blank_state(), 1.0, *rows) == {near()._replace(name=FAILED): (FIRING, severity)}


def test_failed_calls_stay_critical_until_they_cease_for_a_minute() -> None:
    key = near()._replace(name=FAILED)
    rows = {now: [clients(number)] for now, number in [(0.0, 99), (30.0, 5), (59.9, 5), (60.0, 5)]}
    alerts, found = Alerts(), []
    for now, sockets in rows.items():
        recent = RecentFailures(key=connect_key("10.0.0.9", 443, "10.0.0.1"), count=3, last_at=0.0)
        alerts = judge_full_poll(
            survey(snapshot_of(*sockets)), alerts, Rules(), Moment(now, TAKEN_AT), exhaustions=[recent]
        )
        found.append((alerts.states[key].phase, alerts.states[key].severity))

    assert QUIET_SECONDS == 60.0
    assert found == [(FIRING, CRITICAL)] * 3 + [(RESOLVED, CRITICAL)]


def test_alerts_of_failed_calls_are_held_while_nobody_counts_them() -> None:
    recent = RecentFailures(key=connect_key("10.0.0.9", 443, "10.0.0.1"), count=3, last_at=0.0)
    surveys = survey(snapshot_of(clients(99)))
    alerts = judge_full_poll(surveys, Alerts(), Rules(), Moment(0.0, TAKEN_AT), exhaustions=[recent])
    held = judge_full_poll(surveys, alerts, Rules(), Moment(600.0, TAKEN_AT))
    over = judge_full_poll(surveys, alerts, Rules(), Moment(600.0, TAKEN_AT), exhaustions=[])
    key = near()._replace(name=FAILED)

    assert [one.states[key].phase for one in (alerts, held, over)] == [FIRING, FIRING, RESOLVED]


def test_calls_that_fail_toward_many_destinations_raise_a_few_alerts_and_push_no_other_out() -> None:
    """Any user can make them. Those that alert go on, whoever fails more often by now."""
    surveys = survey(snapshot_of(clients(75)))
    rules = Rules(max_active=15)
    at_first = [
        RecentFailures(key=connect_key(f"10.1.0.{host}", 443, "10.0.0.1"), count=1, last_at=0.0) for host in range(50)
    ]
    later = [
        RecentFailures(key=connect_key(f"10.2.0.{host}", 443, "10.0.0.1"), count=9, last_at=10.0) for host in range(50)
    ]
    before = judge_full_poll(surveys, Alerts(), rules, Moment(0.0, TAKEN_AT), exhaustions=at_first)
    after = judge_full_poll(surveys, before, rules, Moment(10.0, TAKEN_AT), exhaustions=[*at_first, *later])

    failing = [{key for key in alerts.states if key.name is FAILED} for alerts in (before, after)]
    assert failing[0] == failing[1]
    assert len(failing[0]) == MOST_FAILING
    assert after.states[near()].is_announced


# --- failed calls of single users ---------------------------------------------------------------------------------

ALL_OF_THEM = AlertKey(FAILED, "own")


def of_user(uid: int, number: int, *, first: int = 0, last_at: float = 0.0) -> list[RecentFailures]:
    """Return failures of a user toward so many destinations from which nobody else draws."""
    keys = (connect_key(f"10.1.{uid % 256}.{first + host}", 443, "10.0.0.1") for host in range(number))
    return [RecentFailures(key=key, count=1, last_at=last_at, uids=frozenset({uid})) for key in keys]


def failing(previous: Alerts, recent: Iterable[RecentFailures], *rows: Sockets, now: float = 0.0) -> Alerts:
    """Return the alerts after a full poll at which these failures are known."""
    return judge_full_poll(
        survey(snapshot_of(*rows)), previous, Rules(), Moment(now, TAKEN_AT), exhaustions=tuple(recent)
    )


def firing_of(alerts: Alerts) -> list[AlertKey]:
    return [key for key, alert in alerts.states.items() if key.name is FAILED and alert.phase is FIRING]


def test_calls_of_one_user_toward_many_empty_pools_are_one_alert_that_names_the_user() -> None:
    alerts = failing(Alerts(), [*of_user(65534, 60), *of_user(33, 5)], clients(20))
    alert = alerts.states[ALL_OF_THEM]

    assert firing_of(alerts) == [ALL_OF_THEM]
    assert (alert.severity, alert.value) == (WARNING, 65)
    assert alert.users == (UserFailures(65534, 60), UserFailures(33, 5))


def test_calls_toward_a_few_destinations_are_an_alert_each() -> None:
    assert len(firing_of(failing(Alerts(), of_user(33, MOST_ALONE)))) == MOST_ALONE
    assert firing_of(failing(Alerts(), of_user(33, MOST_ALONE + 1))) == [ALL_OF_THEM]


def test_the_one_alert_goes_on_until_the_last_failure_is_old_and_leaves_none_behind() -> None:
    alerts = failing(Alerts(), of_user(33, 60))
    alerts = failing(alerts, [*of_user(33, 58), *of_user(33, 2, first=58, last_at=30.0)], now=65.0)
    assert firing_of(alerts) == [ALL_OF_THEM]
    alerts = failing(alerts, of_user(33, 60), now=95.0)
    assert (firing_of(alerts), alerts.states[ALL_OF_THEM].phase) == ([], RESOLVED)


def toward_near(*uids: int) -> RecentFailures:
    key = connect_key("10.0.0.9", 443, "10.0.0.1")
    return RecentFailures(key=key, count=1, last_at=0.0, uids=frozenset(uids))


@pytest.mark.parametrize(("uids", "rows"), [((7, 33), []), ((33,), [clients(10)])])
def test_a_pool_that_others_draw_from_keeps_an_alert_of_its_own(uids: tuple[int, ...], rows: list[Sockets]) -> None:
    """Calls of another user fail there too, or it holds ports."""
    alerts = failing(Alerts(), [*of_user(33, 60), toward_near(*uids)], *rows)

    assert set(firing_of(alerts)) == {ALL_OF_THEM, near()._replace(name=FAILED)}


def test_a_pool_that_is_nearly_full_is_critical_by_itself_whoever_fails_besides() -> None:
    alerts = failing(Alerts(), [*of_user(33, 60), toward_near(33)], clients(95))

    assert alerts.states[near()._replace(name=FAILED)].severity is CRITICAL
    assert alerts.firing[0].severity is CRITICAL
    assert alerts.firing[-1].key == ALL_OF_THEM


def test_where_ports_are_blocked_calls_of_one_user_are_one_alert_as_well_and_it_is_critical() -> None:
    """Else whoever blocks ports could make any number of critical alerts."""
    alerts = failing(Alerts(), of_user(33, 60), listeners(75))

    assert firing_of(alerts) == [ALL_OF_THEM]
    assert alerts.states[ALL_OF_THEM].severity is CRITICAL
    assert alerts.states[ALL_OF_THEM].value == 60


def test_where_few_ports_are_many_a_full_pool_keeps_its_alert() -> None:
    snapshot = snapshot_of(clients(5), sysctls=make_sysctls(LOW, LOW + 4))
    recent = [*of_user(33, 60), toward_near(33)]
    alerts = judge_full_poll(survey(snapshot), Alerts(), Rules(), Moment(0.0, TAKEN_AT), exhaustions=recent)

    assert alerts.states[near()._replace(name=FAILED)].severity is CRITICAL
