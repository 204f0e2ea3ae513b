"""What is delivered: alerts as receivers know them, and which of them stand.

Pure values. In come the alerts that are active now, each time anew; what is no longer among them has been resolved. So
nothing queues up: however long a receiver is away, what waits for it is the state of each alert and not its history.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MOST_RESOLVED = 500
"""So many resolved alerts are kept at most, the latest."""
RESOLVED_KEPT_SECONDS = 24 * 3600.0
"""So long is an alert kept that was resolved, for a webhook that cannot be reached."""

_FNV_OFFSET = 14695981039346656037
_FNV_PRIME = 1099511628211
_SEPARATOR = b"\xff"

Identity = tuple[tuple[str, str], ...]
"""The labels of an alert in order: what Alertmanager knows it by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notification:
    """One alert, active or resolved. `labels` identify it; labels without a value count as absent."""

    labels: Mapping[str, str]
    """`alertname`, `severity` and what the alert is about."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    """What to tell people: `summary`, `description`; may differ from one update to the next."""
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
        """What a receiver must be told of anew when it changes: which firing of the alert, and whether it is over."""
        return self.starts_at, self.ends_at is not None

    @property
    def fingerprint(self) -> str:
        """The hash that Alertmanager has for them: FNV-1a (LabelSet.Fingerprint in prometheus/common)."""
        value = _FNV_OFFSET
        for pair in self.identity:
            for text in pair:
                for byte in text.encode("utf-8", "replace") + _SEPARATOR:
                    value = (value ^ byte) * _FNV_PRIME & 0xFFFFFFFFFFFFFFFF
        return f"{value:016x}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """The state of all alerts at one moment: those that are active, and those that were resolved of late."""

    active: Mapping[Identity, Notification] = field(default_factory=dict)
    resolved: Mapping[Identity, Notification] = field(default_factory=dict)
    """Oldest first."""

    def followed_by(self, active: Iterable[Notification], labels: Mapping[str, str], now: float) -> Standing:
        """Return what stands when these are active, all of them; `now` is in seconds since the epoch.

        Each gets the extra `labels`, which do not replace its own. What was active and is none of them was resolved
        now. The resolved ones are kept for `RESOLVED_KEPT_SECONDS`, at most `MOST_RESOLVED` of them.
        """
        labelled = (replace(alert, labels={**labels, **alert.labels}) for alert in active)
        current = {alert.identity: alert for alert in labelled}
        ended = {key: replace(alert, ends_at=now) for key, alert in self.active.items() if key not in current}
        kept = {
            key: alert
            for key, alert in {**self.resolved, **ended}.items()
            if key not in current and now - (alert.ends_at or 0) <= RESOLVED_KEPT_SECONDS
        }
        return Standing(active=current, resolved=dict(list(kept.items())[-MOST_RESOLVED:]))

    def resolved_since(self, moment: float) -> tuple[Notification, ...]:
        """Return the alerts that were resolved then or later."""
        return tuple(alert for alert in self.resolved.values() if (alert.ends_at or 0) >= moment)
