"""The body of a POST to a webhook: the document that Alertmanager sends to its webhook receivers, version 4; pure.

The format is `Message` of notify/webhook/webhook.go and `Data` of template/template.go in Alertmanager's source. All
alerts of one ephmon are one group.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ephmon.outputs.text.wording import utc_time

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ephmon.delivery.notification import Notification

RECEIVER = "ephmon"
_NOT_OVER = "0001-01-01T00:00:00Z"  # how Go writes a time that is not set


def render(alerts: Sequence[Notification], *, group_labels: Mapping[str, str], host: str, external_url: str) -> bytes:
    """Return the alerts as JSON, active ones first.

    Args:
        alerts: At least one.
        group_labels: Labels that all alerts carry by configuration.
        host: The name of this host, which keeps the groups of two hosts apart.
        external_url: Leads to ephmon's page; "" to nowhere.
    """
    firing = any(alert.ends_at is None for alert in alerts)
    document = {
        "version": "4",
        "groupKey": _group_key(group_labels, host),
        "truncatedAlerts": 0,
        "status": "firing" if firing else "resolved",
        "receiver": RECEIVER,
        "groupLabels": dict(group_labels),
        "commonLabels": _common([dict(alert.identity) for alert in alerts]),
        "commonAnnotations": _common([alert.annotations for alert in alerts]),
        "externalURL": external_url,
        "alerts": [_alert(alert, external_url) for alert in sorted(alerts, key=lambda alert: alert.ends_at or 0.0)],
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
    written = ", ".join(f"{name}={json.dumps(value)}" for name, value in sorted(labels.items()))
    return f"{RECEIVER}/{host}:{{{written}}}"


def _common(mappings: Sequence[Mapping[str, str]]) -> dict[str, str]:
    first, *others = mappings
    return {name: text for name, text in first.items() if all(other.get(name) == text for other in others)}
