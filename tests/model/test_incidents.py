"""What is an incident: pools and blocked ports that turn critical, calls that begin to fail, and no more than that."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from socket import AF_INET
from typing import TYPE_CHECKING

import pytest

from ephmon.facts.failed_calls import ExhaustionEvent
from ephmon.facts.namespaces import Netns
from ephmon.model.alerting.state_machine import AlertName, Alerts, Phase
from ephmon.model.alerting.thresholds import Severity
from ephmon.model.failures.counters import Exhaustions
from ephmon.model.incidents import PAUSE_SECONDS, Incident, Reason, Reported, due_incident
from ephmon.model.rules import DestinationPattern
from tests.builders import TAKEN_AT, make_alert, make_pool, make_report

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ephmon.model.alerting.state_machine import Alert
    from ephmon.model.report import Report

FULL, FULLER = make_pool(in_use=26000), make_pool(destination="10.0.0.8", in_use=27000)
CRITICAL = make_alert(FULL, severity=Severity.CRITICAL)
OTHER = make_alert(FULLER, severity=Severity.CRITICAL)


def failed(at: float, netns: str = "own", destination: int = 9) -> ExhaustionEvent:
    """A connect() that failed at this time in monotonic seconds."""
    return ExhaustionEvent(
        at=TAKEN_AT + at,
        at_monotonic=at,
        netns=Netns(netns),
        source=bytes([10, 0, 0, 1]),
        destination=bytes([10, 0, 0, destination]),
        destination_port=443,
        family=AF_INET,
        thread_id=7,
    )


def report(*alerts: Alert, calls: Iterable[ExhaustionEvent] = ()) -> Report:
    return replace(make_report(alerts=alerts), exhaustions=Exhaustions(events=tuple(calls)))


class Looker:
    """Looks at one report after the other, and takes it that what is due is kept."""

    def __init__(self) -> None:
        self.reported = Reported()

    def at(self, now: float, *alerts: Alert, calls: Iterable[float] = ()) -> Incident | None:
        incident, self.reported = due_incident(self.reported, report(*alerts, calls=map(failed, calls)), (), now)
        return incident


# --- critical alerts ----------------------------------------------------------------------------------------------


def test_an_alert_that_turns_critical_is_one_incident_for_as_long_as_it_lasts() -> None:
    looker = Looker()

    assert looker.at(0, make_alert(FULL)) is None
    assert looker.at(5, CRITICAL) == Incident(reason=Reason.CRITICAL, alerts=(CRITICAL,))
    assert [looker.at(now, CRITICAL) for now in (10, 5000, 10000)] == [None] * 3


def test_one_that_is_critical_at_the_first_look_counts() -> None:
    assert Looker().at(0, CRITICAL) is not None


def test_blocked_ports_that_turn_critical_count() -> None:
    blocked = make_alert(name=AlertName.PORTS_BLOCKED, severity=Severity.CRITICAL, value=0.95)

    assert Looker().at(0, blocked) == Incident(reason=Reason.CRITICAL, alerts=(blocked,))


@pytest.mark.parametrize(
    "alert",
    [
        make_alert(FULL, severity=Severity.WARNING),
        make_alert(FULL, severity=Severity.CRITICAL, phase=Phase.PENDING),
        make_alert(FULL, severity=Severity.CRITICAL, phase=Phase.RESOLVED),
        make_alert(FULL, severity=Severity.CRITICAL, is_announced=False),
        make_alert(name=AlertName.TOO_MANY_ALERTS, severity=Severity.CRITICAL),
        make_alert(FULL, name=AlertName.CONNECT_EXHAUSTIONS, severity=Severity.CRITICAL),
    ],
    ids=["a warning", "pending", "resolved", "untold", "the summary", "failed calls, which are a reason of their own"],
)
def test_nothing_else_is_an_incident(alert: Alert) -> None:
    assert Looker().at(0, alert) is None


def test_one_that_was_over_and_comes_back_is_an_incident_again_once_the_pause_is_over() -> None:
    looker = Looker()
    assert looker.at(0, CRITICAL) is not None
    assert looker.at(PAUSE_SECONDS - 10) is None

    assert looker.at(PAUSE_SECONDS - 1, CRITICAL) is None
    assert looker.at(PAUSE_SECONDS, CRITICAL) is not None


def test_a_pool_that_goes_up_and_down_all_day_is_an_incident_every_ten_minutes() -> None:
    looker = Looker()
    day = range(0, 86_400, 5)

    found = [now for now in day if looker.at(now, *[CRITICAL][: now // 5 % 2])]

    assert found[:3] == [5, 605, 1205]
    assert len(found) == 144


def test_what_the_pause_holds_back_is_due_after_it_while_it_is_still_critical() -> None:
    stays, goes = Looker(), Looker()
    for looker in (stays, goes):
        assert looker.at(0, CRITICAL) is not None
        assert looker.at(60, CRITICAL, OTHER) is None

    assert stays.at(PAUSE_SECONDS, CRITICAL, OTHER) == Incident(reason=Reason.CRITICAL, alerts=(OTHER,))
    assert goes.at(PAUSE_SECONDS, CRITICAL) is None


# --- failed calls -------------------------------------------------------------------------------------------------


def test_the_first_failed_call_is_an_incident_and_what_follows_within_a_minute_of_the_last_is_not() -> None:
    looker = Looker()
    calls = [*range(100, 2000, 59)]

    assert looker.at(101, calls=calls[:1]) == Incident(reason=Reason.EXHAUSTION, call=failed(100))
    assert [looker.at(now + 1, calls=[one for one in calls if one <= now]) for now in calls] == [None] * len(calls)


def test_the_first_failed_call_after_a_quiet_minute_is_an_incident_again() -> None:
    looker = Looker()
    assert looker.at(1001, calls=[1000]) is not None
    assert looker.at(1700, calls=[1000]) is None

    incident = looker.at(1701, calls=[1000, 1700, 1700.5])

    assert incident == Incident(reason=Reason.EXHAUSTION, call=failed(1700))


def test_a_quiet_minute_between_two_looks_is_seen() -> None:
    looker = Looker()
    assert looker.at(1001, calls=[1000]) is not None

    assert looker.at(4600, calls=[1000, 1030, 4500]) == Incident(reason=Reason.EXHAUSTION, call=failed(4500))


def test_calls_that_go_on_from_one_look_to_a_late_next_are_no_new_ones() -> None:
    looker = Looker()
    assert looker.at(1001, calls=[1000]) is not None

    assert looker.at(1701, calls=range(1000, 1701, 50)) is None


def test_calls_that_the_pause_holds_back_are_reported_after_it_even_if_they_are_over() -> None:
    looker = Looker()
    assert looker.at(0, calls=[0]) is not None
    assert looker.at(101, calls=[0, 100]) is None
    assert looker.at(PAUSE_SECONDS - 1, calls=[0, 100]) is None

    assert looker.at(PAUSE_SECONDS, calls=[0, 100]) == Incident(reason=Reason.EXHAUSTION, call=failed(100))


@pytest.mark.parametrize("netns", ["other", "unknown"])
def test_calls_of_other_namespaces_are_none(netns: str) -> None:
    assert due_incident(Reported(), report(calls=[failed(0, netns)]), (), 1)[0] is None


def test_calls_toward_ignored_destinations_are_none() -> None:
    ignored = (DestinationPattern(network=ip_network("10.0.0.9/32")),)

    assert due_incident(Reported(), report(calls=[failed(0)]), ignored, 1)[0] is None
    incident, _ = due_incident(Reported(), report(calls=[failed(0), failed(1, destination=8)]), ignored, 2)
    assert incident is not None
    assert incident.call == failed(1, destination=8)


def test_where_nobody_counts_them_alerts_are_all_there_is() -> None:
    assert due_incident(Reported(), make_report(alerts=[CRITICAL]), (), 0)[0] == Incident(
        reason=Reason.CRITICAL, alerts=(CRITICAL,)
    )


# --- both ---------------------------------------------------------------------------------------------------------


def test_a_call_that_fails_seconds_after_the_pool_turned_critical_is_an_incident_of_its_own() -> None:
    looker = Looker()

    assert looker.at(1000, CRITICAL) is not None
    assert looker.at(1003, CRITICAL, calls=[1002]) == Incident(reason=Reason.EXHAUSTION, call=failed(1002))
    assert looker.at(1004, CRITICAL, calls=[1002, 1003]) is None


def test_where_both_come_at_once_one_incident_tells_of_both() -> None:
    looker = Looker()

    assert looker.at(5, CRITICAL, calls=[4]) == Incident(reason=Reason.EXHAUSTION, alerts=(CRITICAL,), call=failed(4))
    assert looker.at(6, CRITICAL, calls=[4, 5]) is None


def test_failed_polls_bring_none_and_lose_none() -> None:
    """They hold the alerts."""
    looker = Looker()
    assert looker.at(0, CRITICAL) is not None
    failed_poll = replace(report(CRITICAL), success=False, error="the kernel could not be read")

    assert due_incident(looker.reported, failed_poll, (), PAUSE_SECONDS)[0] is None


def test_what_could_not_be_kept_is_due_again_after_the_pause() -> None:
    before = Reported()
    incident, _ = due_incident(before, report(CRITICAL, calls=[failed(0)]), (), 1)
    assert incident is not None
    reported = before.delayed(Reason.EXHAUSTION, 1).delayed(Reason.CRITICAL, 1)

    assert due_incident(reported, report(CRITICAL, calls=[failed(0)]), (), PAUSE_SECONDS)[0] is None
    assert due_incident(reported, report(CRITICAL, calls=[failed(0)]), (), PAUSE_SECONDS + 1)[0] == incident


def test_a_look_changes_nothing_of_the_report() -> None:
    one = report(CRITICAL)
    due_incident(Reported(), one, (), 0)

    assert one.alerts == Alerts(states={CRITICAL.key: CRITICAL})
