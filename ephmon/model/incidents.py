"""When an incident is due: a Report in, an `Incident` or None out.

There are two reasons. An alert on a pool or on blocked ports becomes critical; or a connect() fails because no port is
left, after a quiet period. An incident stays due while the rate limit delays it and after it could not be written. A
critical alert that ends before that is no longer a reason; a failed call still is.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from ephmon.facts.namespaces import OWN_NETNS
from ephmon.model.alerting.state_machine import AlertName
from ephmon.model.alerting.thresholds import Severity
from ephmon.model.failures.recent import QUIET_SECONDS
from ephmon.model.pools.ignored_destinations import is_ignored

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ephmon.facts.failed_calls import ExhaustionEvent
    from ephmon.model.alerting.state_machine import Alert, AlertKey
    from ephmon.model.report import Report
    from ephmon.model.rules import DestinationPattern

PAUSE_SECONDS = 600.0
"""Seconds from one incident to the next with the same reason, at least.

A pool that goes up and down around its threshold must not replace all older files: with the default of twenty files,
at least the last hundred minutes stay. Each reason has its own limit, because calls fail seconds after the pool became
critical, and only then does ephmon know which program failed.
"""


class Reason(StrEnum):
    """Why there is an incident."""

    CRITICAL = "critical"
    EXHAUSTION = "exhaustion"


_OF_PORTS = (AlertName.POOL_NEAR_EXHAUSTION, AlertName.PORTS_BLOCKED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """What happened that no earlier incident has reported."""

    reason: Reason
    alerts: tuple[Alert, ...] = ()
    """The alerts that became critical, the most urgent first."""
    call: ExhaustionEvent | None = None
    """The first known connect() that failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """What incidents have reported so far."""

    critical: frozenset[AlertKey] = frozenset()
    """The alerts that have been critical ever since an incident reported them."""
    failed_at: float | None = None
    """When the last failed connect() of the reported period failed, monotonic seconds."""
    last_at: Mapping[Reason, float] = field(default_factory=dict)
    """When the last incident of each reason was, monotonic seconds."""

    def delayed(self, reason: Reason, now: float) -> Reported:
        """Return the same with a new pause for this reason, after an incident that could not be written."""
        return replace(self, last_at={**self.last_at, reason: now})


def due_incident(
    reported: Reported, report: Report, ignored: Sequence[DestinationPattern], now: float
) -> tuple[Incident | None, Reported]:
    """Return the incident that is due, if any, and what has been reported once it is written.

    An incident shows everything that is known, so it also reports what the other reason would.

    Args:
        reported: What earlier incidents have reported.
        report: The report of the last poll.
        ignored: Failed calls toward these destinations do not count.
        now: Monotonic seconds.
    """
    critical = {alert.key: alert for alert in report.alerts.firing if _is_critical(alert)}
    calls = _failed_calls(report, ignored)
    new_calls = _after_a_quiet_period(calls, reported.failed_at)
    alerts = tuple(alert for key, alert in critical.items() if key not in reported.critical)
    times = [call.at_monotonic for call in calls] + ([] if reported.failed_at is None else [reported.failed_at])
    failed_at = max(times, default=None)
    new = {Reason.EXHAUSTION: bool(new_calls), Reason.CRITICAL: bool(alerts)}
    reason = next((one for one, is_new in new.items() if is_new and _may(one, reported, now)), None)
    if reason is None:
        still = reported.critical & critical.keys()
        return None, replace(reported, critical=still, failed_at=reported.failed_at if new_calls else failed_at)
    after = Reported(critical=frozenset(critical), failed_at=failed_at, last_at={**reported.last_at, reason: now})
    return Incident(reason=reason, alerts=alerts, call=new_calls[0] if new_calls else None), after


def _is_critical(alert: Alert) -> bool:
    return alert.severity is Severity.CRITICAL and alert.key.name in _OF_PORTS


def _may(reason: Reason, reported: Reported, now: float) -> bool:
    last_at = reported.last_at.get(reason)
    return last_at is None or now - last_at >= PAUSE_SECONDS


def _failed_calls(report: Report, ignored: Sequence[DestinationPattern]) -> list[ExhaustionEvent]:
    """Return the calls of our own namespace that are remembered, the oldest first, without ignored destinations."""
    return [
        event
        for event in (report.exhaustions.events if report.exhaustions else ())
        if event.netns.label == OWN_NETNS and not is_ignored((event.destination, event.destination_port), ignored)
    ]


def _after_a_quiet_period(calls: list[ExhaustionEvent], reported_until: float | None) -> list[ExhaustionEvent]:
    """Return the calls since the first that failed a quiet period after the one before it; none if there is none.

    Args:
        calls: All that are remembered, the oldest first.
        reported_until: When the last reported call failed, monotonic seconds.
    """
    before = reported_until
    for index, call in enumerate(calls):
        if reported_until is not None and call.at_monotonic <= reported_until:
            continue
        if before is None or call.at_monotonic - before >= QUIET_SECONDS:
            return calls[index:]
        before = call.at_monotonic
    return []
