"""The advice that goes with an alert."""

from __future__ import annotations

from dataclasses import replace
from socket import AF_INET

from ephmon.facts.failed_calls import ExhaustionEvent
from ephmon.facts.namespaces import Netns
from ephmon.facts.sockets import TcpState
from ephmon.model.advice.for_alert import advice_on
from ephmon.model.alerting.state_machine import AlertName
from ephmon.model.alerting.thresholds import Threshold, Thresholds
from ephmon.model.report import ReloadStatus, Report
from ephmon.model.rules import Rules
from ephmon.model.state import State, initial_state
from ephmon.model.step import conclude
from tests.builders import make_owners
from tests.model.facts import (
    LOW,
    Sockets,
    bound,
    connected,
    make_namespace,
    make_snapshot,
    make_sysctls,
    make_tcp,
    packed,
)

AT_ONCE = Thresholds(
    warning=Threshold(utilisation=0.5, for_seconds=0.0, clear=0.4),
    critical=Threshold(utilisation=0.9, for_seconds=0.0, clear=0.8),
)
RULES = Rules(thresholds=AT_ONCE, own_ports=frozenset({39_000}))


def report_of(*rows: Sockets) -> Report:
    return state_of(*rows).report


def state_of(*rows: Sockets, before: State | None = None, listening: frozenset[int] | None = frozenset({80})) -> State:
    previous = before or initial_state(RULES, ReloadStatus(successful=True, succeeded_at=0.0))
    tcp = replace(make_tcp(*rows), listening_ports=listening)
    return conclude(make_snapshot(make_namespace(tcp, make_sysctls(tw_reuse=0))), previous, 100.0)


def waiting(number: int) -> Sockets:
    return connected(
        "10.0.0.1", range(LOW, LOW + 2 * number, 2), "10.0.0.9", 443, state=TcpState.TIME_WAIT, left_ms=50_000
    )


def test_a_pool_that_fires_comes_with_the_advice_for_its_numbers() -> None:
    report = report_of(waiting(50))
    (alert,) = report.alerts.firing
    advice = advice_on(alert, report)

    assert advice is not None
    assert "TIME_WAIT" in advice.cause


def test_blocked_ports_come_with_advice_about_who_blocks_them() -> None:
    report = report_of(bound("10.0.0.1", range(LOW, LOW + 70)))
    (alert,) = (alert for alert in report.alerts.firing if alert.key.name is AlertName.PORTS_BLOCKED)
    advice = advice_on(alert, report)

    assert advice is not None
    assert advice.cause.startswith("70 of 100 usable ports are blocked")


def test_a_wider_range_leaves_out_listeners_and_the_ports_that_ephmon_sends_from() -> None:
    """Also after a poll that did not ask who listens."""
    first = state_of(bound("10.0.0.1", range(LOW, LOW + 70)), listening=frozenset({12_345}))
    report = state_of(bound("10.0.0.1", range(LOW, LOW + 70)), before=first, listening=None).report
    (alert,) = (alert for alert in report.alerts.firing if alert.key.name is AlertName.PORTS_BLOCKED)
    advice = advice_on(alert, report)

    assert advice is not None
    assert any("12345,39000" in step for step in advice.steps)


def test_the_proxy_that_holds_most_ports_gets_its_own_setting() -> None:
    report = report_of(waiting(50))
    (alert,) = report.alerts.firing
    assert alert.key.pool is not None
    held = {alert.key.pool: make_owners(("haproxy.service", 30), ("nginx.service", 20))}
    of_unknown, of_haproxy = (advice_on(alert, one) for one in (report, replace(report, owners=held)))

    assert of_unknown is not None
    assert of_haproxy is not None
    assert ("; nginx: " in of_unknown.steps[0], "; nginx: " in of_haproxy.steps[0]) == (True, False)
    assert of_haproxy.steps[0].startswith("Send many requests over one connection. HAProxy: `http-reuse safe`, or")


def test_where_the_holder_is_a_container_the_caller_tells_the_proxy() -> None:
    report = report_of(waiting(50))
    (alert,) = report.alerts.firing
    assert alert.key.pool is not None
    call = ExhaustionEvent(
        at=1e9,
        at_monotonic=100.0,
        netns=Netns("own", 1),
        source=packed("10.0.0.1"),
        destination=packed("10.0.0.9"),
        destination_port=443,
        family=AF_INET,
        thread_id=7,
        command="haproxy",
    )
    held = {alert.key.pool: make_owners(("3f2a9c0b1d4e", 50))}
    advice = advice_on(replace(alert, call=call), replace(report, owners=held))

    assert advice is not None
    assert advice.steps[0].startswith("Send many requests over one connection. HAProxy: ")


def test_the_proxy_that_blocks_most_ports_gets_its_own_setting() -> None:
    report = report_of(bound("10.0.0.1", range(LOW, LOW + 70)))
    (alert,) = (alert for alert in report.alerts.firing if alert.key.name is AlertName.PORTS_BLOCKED)
    advice = advice_on(alert, replace(report, blocked_owners={alert.key.netns: make_owners(("nginx.service", 70))}))

    assert advice is not None
    assert advice.steps[1].endswith("nginx: `proxy_bind ADDRESS;` without a port does it by itself from 1.11.4 on.")


def test_where_nothing_was_read_there_is_no_advice() -> None:
    report = report_of(waiting(50))
    (alert,) = report.alerts.firing

    assert advice_on(alert, replace(report, namespaces=())) is None
