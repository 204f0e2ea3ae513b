"""Which alerts are active and which were resolved recently: the state that receivers are brought up to.

Pure values. Each update names all alerts that are active, so nothing queues up: however long a receiver is away, it is
sent the present state of each alert and not its history.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ephmon.delivery.notification import Identity, Notification

MAX_RESOLVED = 500
"""How many resolved alerts are kept, the latest: a webhook may be away for long, and memory must stay bounded."""
RESOLVED_KEPT_SECONDS = 24 * 3600.0
"""How long a resolved alert is kept for a webhook that cannot be reached."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertSet:
    """The alerts that are active at one moment, and those that were resolved recently."""

    active: Mapping[Identity, Notification] = field(default_factory=dict)
    resolved: Mapping[Identity, Notification] = field(default_factory=dict)
    """Oldest first."""

    def updated(self, active: Iterable[Notification], labels: Mapping[str, str], now: float) -> AlertSet:
        """Return the set after an update.

        Args:
            active: All alerts that are active now. An alert that was active and is missing here was resolved now.
            labels: Added to each alert; they do not replace the alert's own labels.
            now: Seconds since the epoch.
        """
        labelled = (replace(alert, labels={**labels, **alert.labels}) for alert in active)
        current = {alert.identity: alert for alert in labelled}
        ended = {key: replace(alert, ends_at=now) for key, alert in self.active.items() if key not in current}
        kept = {
            key: alert
            for key, alert in {**self.resolved, **ended}.items()
            if key not in current and now - (alert.ends_at or 0) <= RESOLVED_KEPT_SECONDS
        }
        return AlertSet(active=current, resolved=dict(list(kept.items())[-MAX_RESOLVED:]))

    def resolved_since(self, moment: float) -> tuple[Notification, ...]:
        """Return the alerts that were resolved at `moment` or later, in seconds since the epoch."""
        return tuple(alert for alert in self.resolved.values() if (alert.ends_at or 0) >= moment)
