"""The body of a POST to `/api/v2/alerts` of Alertmanager; pure.

The format is `postableAlerts` of api/v2/openapi.yaml in Alertmanager's source.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ephmon.outputs.text.wording import utc_time

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ephmon.delivery.notification import Notification

ALERTS_PATH = "/api/v2/alerts"
"""Below the base URL of an Alertmanager."""

_RESENDS_UNTIL_END = 4


def render(alerts: Iterable[Notification], *, now: float, resend_seconds: float, external_url: str) -> bytes:
    """Return the alerts as JSON; `now` is in seconds since the epoch.

    The `endsAt` of an active alert lies four times `resend_seconds` ahead, as Prometheus sends it: unless it is sent
    again, Alertmanager takes it for resolved then. `external_url` leads to ephmon's page, "" to nowhere.

    Where the clock was set back, what lies ahead of `now` is taken to be now: an alert that starts after it ends is
    refused (Alert.Validate() in prometheus/common), and one whose end lies ahead counts as active until then.
    """
    until = now + _RESENDS_UNTIL_END * resend_seconds
    return json.dumps([_alert(alert, now, until, external_url) for alert in alerts]).encode("ascii")


def _alert(alert: Notification, now: float, until: float, external_url: str) -> dict[str, object]:
    until_now = now if alert.ends_at is None else min(alert.ends_at, now)
    return {
        "labels": dict(alert.identity),
        "annotations": {name: text for name, text in alert.annotations.items() if text},
        "startsAt": utc_time(min(alert.starts_at, until_now)),
        "endsAt": utc_time(until if alert.ends_at is None else until_now),
        **({"generatorURL": external_url} if external_url else {}),
    }
