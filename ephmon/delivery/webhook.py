"""What a webhook is sent, and when: the document of Alertmanager's webhook receivers, version 4; pure.

The format is `Message` of notify/webhook/webhook.go and `Data` of template/template.go in Alertmanager's source. All
alerts of one ephmon form one group.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ephmon.model.status import ReceiverKind
from ephmon.outputs.text.wording import utc_time

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ephmon.delivery.alert_set import AlertSet
    from ephmon.delivery.notification import Notification
    from ephmon.delivery.settings import DeliveryTimes, MessageContext

RECEIVER = "ephmon"
_NOT_OVER = "0001-01-01T00:00:00Z"  # Go's zero time, which Alertmanager writes for an alert without an end


class Webhook:
    """A webhook is sent all active alerts, and the resolved ones whose end it has not accepted yet."""

    kind = ReceiverKind.WEBHOOK
    path = ""
    """Appended to the URL of the configuration."""

    def __init__(self, times: DeliveryTimes) -> None:
        self.resend_seconds = times.repeat_seconds
        self.longest_retry_seconds = times.longest_retry_seconds

    def relevant(self, alerts: AlertSet, _now: float) -> tuple[Notification, ...]:
        """Return the alerts that it has to know."""
        return (*alerts.active.values(), *alerts.resolved.values())

    def next_message(
        self, relevant: tuple[Notification, ...], pending: tuple[Notification, ...]
    ) -> tuple[Notification, ...]:
        """Return the alerts of the next message; `pending` are those of which it has not accepted the present state."""
        identities = {alert.identity for alert in pending}
        return tuple(alert for alert in relevant if alert.ends_at is None or alert.identity in identities)

    def render(self, alerts: tuple[Notification, ...], _now: float, context: MessageContext) -> bytes:
        """Return the message with these alerts, at least one, as JSON; active alerts come first."""
        firing = any(alert.ends_at is None for alert in alerts)
        active_first = sorted(alerts, key=lambda alert: alert.ends_at or 0.0)
        document = {
            "version": "4",
            "groupKey": _group_key(context.labels, context.host),
            "truncatedAlerts": 0,
            "status": "firing" if firing else "resolved",
            "receiver": RECEIVER,
            "groupLabels": dict(context.labels),
            "commonLabels": _common([dict(alert.identity) for alert in alerts]),
            "commonAnnotations": _common([alert.annotations for alert in alerts]),
            "externalURL": context.external_url,
            "alerts": [_alert(alert, context.external_url) for alert in active_first],
        }
        return json.dumps(document).encode("ascii")


def _alert(alert: Notification, external_url: str) -> dict[str, object]:
    return {
        "status": "firing" if alert.ends_at is None else "resolved",
        "labels": dict(alert.identity),
        "annotations": {name: text for name, text in alert.annotations.items() if text},
        "startsAt": utc_time(alert.starts_at),
        "endsAt": _NOT_OVER if alert.ends_at is None else utc_time(alert.ends_at),
        "generatorURL": external_url,
        "fingerprint": alert.fingerprint,
    }


def _group_key(labels: Mapping[str, str], host: str) -> str:
    # With the host, because receivers merge groups that have the same key.
    pairs = ", ".join(f"{name}={json.dumps(value)}" for name, value in sorted(labels.items()))
    return f"{RECEIVER}/{host}:{{{pairs}}}"


def _common(mappings: Sequence[Mapping[str, str]]) -> dict[str, str]:
    first, *others = mappings
    return {name: text for name, text in first.items() if all(other.get(name) == text for other in others)}
