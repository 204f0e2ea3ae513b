"""What an Alertmanager is sent, and when: the body of a POST to `/api/v2/alerts`; pure.

The format is `postableAlerts` of api/v2/openapi.yaml in Alertmanager's source.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ephmon.model.status import ReceiverKind
from ephmon.outputs.text.wording import utc_time

if TYPE_CHECKING:
    from ephmon.delivery.alert_set import AlertSet
    from ephmon.delivery.notification import Notification
    from ephmon.delivery.settings import DeliveryTimes, MessageContext

# As Prometheus does (sendAlerts() in rules/alerting.go): three messages in a row may fail before the alert ends.
_RESENDS_UNTIL_END = 4


class Alertmanager:
    """An Alertmanager is sent all its alerts in every message, the active and the recently resolved ones."""

    kind = ReceiverKind.ALERTMANAGER
    path = "/api/v2/alerts"
    """Appended to the URL of the configuration."""

    def __init__(self, times: DeliveryTimes) -> None:
        self._resolved_seconds = times.resolved_seconds
        self.resend_seconds = times.resend_seconds
        self.longest_retry_seconds = times.resend_seconds

    def relevant(self, alerts: AlertSet, now: float) -> tuple[Notification, ...]:
        """Return the alerts that it has to know, at `now` in seconds since the epoch."""
        return (*alerts.active.values(), *alerts.resolved_since(now - self._resolved_seconds))

    def next_message(
        self, relevant: tuple[Notification, ...], _pending: tuple[Notification, ...]
    ) -> tuple[Notification, ...]:
        """Return the alerts of the next message: all that are relevant."""
        return relevant

    def render(self, alerts: tuple[Notification, ...], now: float, context: MessageContext) -> bytes:
        """Return the message as JSON; `now` is in seconds since the epoch.

        The `endsAt` of an active alert lies four times `resend_seconds` ahead. Alertmanager takes the alert for
        resolved then, unless it has received it again.

        If the clock was set back, times after `now` become `now`. Alertmanager refuses an alert that starts after its
        end (Alert.Validate() in prometheus/common), and takes an alert with a later end for active until then.
        """
        until = now + _RESENDS_UNTIL_END * self.resend_seconds
        return json.dumps([_alert(alert, now, until, context.external_url) for alert in alerts]).encode("ascii")


def _alert(alert: Notification, now: float, until: float, external_url: str) -> dict[str, object]:
    until_now = now if alert.ends_at is None else min(alert.ends_at, now)
    return {
        "labels": dict(alert.identity),
        "annotations": {name: text for name, text in alert.annotations.items() if text},
        "startsAt": utc_time(min(alert.starts_at, until_now)),
        "endsAt": utc_time(until if alert.ends_at is None else until_now),
        **({"generatorURL": external_url} if external_url else {}),
    }
