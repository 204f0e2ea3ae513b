"""Incidents: when a report of the state of things is worth keeping. A Report in, an `Incident` out, or none.

There are two reasons. A pool, or the share of blocked ports, turns critical; or connect() fails for want of a port
after a quiet period. What no incident has told of yet stays due while the rate limit holds it back, and after a
failure to keep it; an alert only for as long as it is critical.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from ephmon.facts.namespaces import OWN_NETNS
from ephmon.model.alerting.state_machine import AlertName
from ephmon.model.alerting.thresholds import Severity
from ephmon.model.failures.recent import QUIET_SECONDS
from ephmon.model.pools.survey import is_ignored

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ephmon.facts.failed_calls import ExhaustionEvent
    from ephmon.model.alerting.state_machine import Alert, AlertKey
    from ephmon.model.report import Report
    from ephmon.model.rules import DestinationPattern

PAUSE_SECONDS = 600.0
"""At most one incident for each reason in so long.

A pool that goes up and down around its threshold would else push out what was kept of the hour before: with twenty
files, the default, the last hundred minutes stay at least. Each reason counts by itself, because the failures come
seconds after a pool turned critical, and only then is it known whose connect() failed.
"""


class Reason(StrEnum):
    """Why there is an incident."""

    CRITICAL = "critical"
    EXHAUSTION = "exhaustion"


_OF_PORTS = (AlertName.POOL_NEAR_EXHAUSTION, AlertName.PORTS_BLOCKED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """What has happened that nothing was told of before."""

    reason: Reason
    alerts: tuple[Alert, ...] = ()
    """Those that turned critical, the most urgent first."""
    call: ExhaustionEvent | None = None
    """The first connect() that is known to have failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What incidents have told of so far."""

    critical: frozenset[AlertKey] = frozenset()
    """The alerts that have been critical since they were told."""
    failed_at: float | None = None
    """When the last connect() failed of a period that was told, monotonic seconds."""
    last_at: Mapping[Reason, float] = field(default_factory=dict)
    """When there was an incident last, monotonic seconds."""

    def delayed(self, reason: Reason, now: float) -> Told:
        """Return the same with the pause of the reason begun anew: for an incident that could not be kept."""
        return replace(self, last_at={**self.last_at, reason: now})


def look(told: Told, report: Report, ignored: Sequence[DestinationPattern], now: float) -> tuple[Incident | None, Told]:
    """Return the incident that is due, if one is, and what is told once that is kept.

    Each tells of all there is, so the other reason is told of too. Failed calls toward `ignored` destinations are left
    out. `now` are monotonic seconds.
    """
    critical = {alert.key: alert for alert in report.alerts.firing if _is_critical(alert)}
    calls = _failed_calls(report, ignored)
    new_calls = _after_a_quiet_period(calls, told.failed_at)
    alerts = tuple(alert for key, alert in critical.items() if key not in told.critical)
    times = [call.at_monotonic for call in calls] + ([] if told.failed_at is None else [told.failed_at])
    failed_at = max(times, default=None)
    wanted = {Reason.EXHAUSTION: bool(new_calls), Reason.CRITICAL: bool(alerts)}
    reason = next((one for one, is_wanted in wanted.items() if is_wanted and _may(one, told, now)), None)
    if reason is None:
        still = told.critical & critical.keys()
        return None, replace(told, critical=still, failed_at=told.failed_at if new_calls else failed_at)
    after = Told(critical=frozenset(critical), failed_at=failed_at, last_at={**told.last_at, reason: now})
    return Incident(reason=reason, alerts=alerts, call=new_calls[0] if new_calls else None), after


def _is_critical(alert: Alert) -> bool:
    return alert.severity is Severity.CRITICAL and alert.key.name in _OF_PORTS


def _may(reason: Reason, told: Told, now: float) -> bool:
    last_at = told.last_at.get(reason)
    return last_at is None or now - last_at >= PAUSE_SECONDS


def _failed_calls(report: Report, ignored: Sequence[DestinationPattern]) -> list[ExhaustionEvent]:
    """Return the calls of our own namespace that are remembered, the oldest first, without ignored destinations."""
    return [
        event
        for event in (report.exhaustions.events if report.exhaustions else ())
        if event.netns.label == OWN_NETNS and not is_ignored((event.destination, event.destination_port), ignored)
    ]


def _after_a_quiet_period(calls: list[ExhaustionEvent], told_until: float | None) -> list[ExhaustionEvent]:
    """Return the calls since the first that failed a quiet period after the one before it; none if there is none.

    Args:
        calls: All that are remembered, the oldest first.
        told_until: When the last one failed that was told, monotonic seconds.
    """
    before = told_until
    for place, call in enumerate(calls):
        if told_until is not None and call.at_monotonic <= told_until:
            continue
        if before is None or call.at_monotonic - before >= QUIET_SECONDS:
            return calls[place:]
        before = call.at_monotonic
    return []
