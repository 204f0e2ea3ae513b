"""The body of a POST to `/api/v2/alerts` of Alertmanager; pure.

The format is `postableAlerts` of api/v2/openapi.yaml in Alertmanager's source.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ephmon.outputs.notification import Notification

ALERTS_PATH = "/api/v2/alerts"
"""Below the base URL of an Alertmanager."""

_RESENDS_UNTIL_END = 4


def render(alerts: Iterable[Notification], *, now: float, resend_seconds: float, external_url: str) -> bytes:
    """Return the alerts as JSON; `now` is in seconds since the epoch.

    The `endsAt` of an active alert lies four times `resend_seconds` ahead, as Prometheus sends it: unless it is sent
    again, Alertmanager takes it for resolved then. `external_url` leads to ephmon's page, "" to nowhere.
    """
    until = now + _RESENDS_UNTIL_END * resend_seconds
    return json.dumps([_alert(alert, until, external_url) for alert in alerts]).encode("ascii")


def _alert(alert: Notification, until: float, external_url: str) -> dict[str, object]:
    return {
        "labels": dict(alert.identity),
        "annotations": {name: text for name, text in alert.annotations.items() if text},
        "startsAt": rfc3339(alert.starts_at),
        "endsAt": rfc3339(until if alert.ends_at is None else alert.ends_at),
        **({"generatorURL": external_url} if external_url else {}),
    }


def rfc3339(moment: float) -> str:
    """Return seconds since the epoch as RFC 3339 in UTC, with milliseconds."""
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
