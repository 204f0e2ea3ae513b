"""An alert as receivers know it: identified by labels, with text for people."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from ephmon.facts.foreign_text import printable
from ephmon.model.advice.for_alert import advice_on
from ephmon.model.alerting.state_machine import AlertName
from ephmon.outputs.metrics.metric import POOL, pool_labels
from ephmon.outputs.text.advice import advice_lines
from ephmon.outputs.text.alerts import sentence
from ephmon.outputs.text.owners import owners_behind, owners_line

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ephmon.model.advice.causes import Advice
    from ephmon.model.alerting.state_machine import Alert
    from ephmon.model.owners.shares import Owners
    from ephmon.model.report import Report

# FNV-1a with 64 bits, as in model/fnv.go of prometheus/common. The separator is a byte that UTF-8 never contains.
_FNV_OFFSET = 14695981039346656037
_FNV_PRIME = 1099511628211
_SEPARATOR = b"\xff"

Identity = tuple[tuple[str, str], ...]
"""The labels of an alert, sorted by name: Alertmanager identifies an alert by them."""

SUMMARIES: Mapping[AlertName, str] = MappingProxyType(
    {
        AlertName.POOL_NEAR_EXHAUSTION: "A pool of local ports is almost used up.",
        AlertName.POOL_EXHAUSTION_FORECAST: "A pool of local ports will soon be used up.",
        AlertName.PORTS_BLOCKED: "Many local ports are blocked for every connect().",
        AlertName.CONNECT_EXHAUSTIONS: "connect() fails because no local port is left.",
        AlertName.CONNECT_SLOW: "connect() takes long to find a local port.",
        AlertName.TOO_MANY_ALERTS: "More alerts are active than may be shown one by one.",
    }
)
"""The summary of each kind of alert, without figures, so that it does not change while the alert lasts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notification:
    """One alert, active or resolved. `labels` identify it; an empty label counts as absent."""

    labels: Mapping[str, str]
    """`alertname`, `severity` and what the alert is about."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    """Text for people, such as `summary` and `description`; it may change from one update to the next."""
    starts_at: float
    """When it began to fire, seconds since the epoch."""
    ends_at: float | None = None
    """When it was resolved, None while it is active."""
    identity: Identity = field(init=False)

    def __post_init__(self) -> None:
        """Derive the identity."""
        object.__setattr__(self, "identity", tuple(sorted(pair for pair in self.labels.items() if pair[1])))

    @property
    def state(self) -> tuple[float, bool]:
        """Since when the alert fires, and whether it has ended: if this changes, receivers need a new message."""
        return self.starts_at, self.ends_at is not None

    @property
    def fingerprint(self) -> str:
        """Alertmanager's hash of the labels: 64-bit FNV-1a (LabelSet.Fingerprint in prometheus/common)."""
        value = _FNV_OFFSET
        for pair in self.identity:
            for text in pair:
                for byte in text.encode("utf-8", "replace") + _SEPARATOR:
                    value = (value ^ byte) * _FNV_PRIME & 0xFFFFFFFFFFFFFFFF
        return f"{value:016x}"


def notifications_of(report: Report) -> tuple[Notification, ...]:
    """Return the active alerts. An alert with another severity is another alert to receivers, because it is a label."""
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
