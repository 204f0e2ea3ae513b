"""Alerts as they are delivered: the labels that they are known by, and what they tell people."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from ephmon.delivery.notification import Notification
from ephmon.model.advice.for_alert import advice_on
from ephmon.model.alerting.state_machine import AlertName
from ephmon.outputs.metrics.metric import POOL, pool_labels
from ephmon.outputs.text.advice import advice_lines
from ephmon.outputs.text.alerts import sentence
from ephmon.outputs.text.owners import owners_behind, owners_line
from ephmon.outputs.text.wording import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ephmon.model.advice.causes import Advice
    from ephmon.model.alerting.state_machine import Alert
    from ephmon.model.owners.shares import Owners
    from ephmon.model.report import Report

SUMMARIES: Mapping[AlertName, str] = MappingProxyType(
    {
        AlertName.POOL_NEAR_EXHAUSTION: "A pool of local ports is almost used up.",
        AlertName.POOL_EXHAUSTION_FORECAST: "A pool of local ports will soon be used up.",
        AlertName.PORTS_BLOCKED: "Many local ports are blocked for every connect().",
        AlertName.CONNECT_EXHAUSTIONS: "connect() fails because no local port is left.",
        AlertName.TOO_MANY_ALERTS: "More alerts are active than are told one by one.",
    }
)
"""What an alert is about, without figures, so that it stays the same for as long as the alert lasts."""


def notifications_of(report: Report) -> tuple[Notification, ...]:
    """Return the alerts that fire for all to see. One that changes its severity is another alert to receivers."""
    return tuple(
        _notification(alert, advice_on(alert, report), owners_behind(alert, report)) for alert in report.alerts.firing
    )


def _notification(alert: Alert, advice: Advice | None, owners: Owners | None) -> Notification:
    key = alert.key
    pool = {"netns": key.netns} if key.pool is None else dict(zip(POOL, pool_labels(key.pool), strict=True))
    return Notification(
        labels={
            "alertname": key.name,
            "severity": alert.severity,
            **{name: printable(value) for name, value in pool.items()},
        },
        annotations={
            "summary": SUMMARIES[key.name],
            "description": sentence(alert),
            **({} if owners is None or not (line := owners_line(owners)) else {"owners": line}),
            **({} if advice is None else {"advice": "\n".join(advice_lines(advice))}),
        },
        starts_at=alert.severity_since.wall,
    )
