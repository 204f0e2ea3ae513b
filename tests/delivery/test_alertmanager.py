"""The body for `/api/v2/alerts`."""

from __future__ import annotations

import json
from typing import Any

from ephmon.delivery.alertmanager import Alertmanager
from ephmon.delivery.notification import Notification
from ephmon.delivery.settings import DeliveryTimes, MessageContext

NOW = 1_700_000_000.0
FIRING = Notification(
    labels={"alertname": "EphmonPoolNearExhaustion", "severity": "critical", "destination": ""},
    annotations={"summary": "None is left.", "runbook_url": ""},
    starts_at=NOW - 90.5,
)
RESOLVED = Notification(labels={"alertname": "B"}, starts_at=NOW - 90, ends_at=NOW - 30)


def rendered(*alerts: Notification, external_url: str = "") -> Any:
    alertmanager = Alertmanager(DeliveryTimes(resend_seconds=60.0))
    return json.loads(alertmanager.render(alerts, NOW, MessageContext(external_url=external_url)))


def test_an_active_alert_ends_four_resends_from_now_and_a_resolved_one_when_it_ended() -> None:
    assert rendered(FIRING, RESOLVED, external_url="http://127.0.0.1:19100/") == [
        {
            "labels": {"alertname": "EphmonPoolNearExhaustion", "severity": "critical"},
            "annotations": {"summary": "None is left."},
            "startsAt": "2023-11-14T22:11:49.500Z",
            "endsAt": "2023-11-14T22:17:20.000Z",
            "generatorURL": "http://127.0.0.1:19100/",
        },
        {
            "labels": {"alertname": "B"},
            "annotations": {},
            "startsAt": "2023-11-14T22:11:50.000Z",
            "endsAt": "2023-11-14T22:12:50.000Z",
            "generatorURL": "http://127.0.0.1:19100/",
        },
    ]


def test_no_alert_starts_or_has_ended_after_now_though_the_clock_was_set_back() -> None:
    """Alertmanager refuses one that starts after it ends, and takes one that ends later to be active until then."""
    active = Notification(labels={}, starts_at=NOW + 3600)
    ended_since = Notification(labels={}, starts_at=NOW + 3600, ends_at=NOW - 30)
    ended_before = Notification(labels={}, starts_at=NOW + 3600, ends_at=NOW + 3700)
    found = rendered(active, ended_since, ended_before)

    assert [(one["startsAt"], one["endsAt"]) for one in found] == [
        ("2023-11-14T22:13:20.000Z", "2023-11-14T22:17:20.000Z"),
        ("2023-11-14T22:12:50.000Z", "2023-11-14T22:12:50.000Z"),
        ("2023-11-14T22:13:20.000Z", "2023-11-14T22:13:20.000Z"),
    ]


def test_without_a_page_there_is_no_generator_url() -> None:
    (one,) = rendered(FIRING)

    assert "generatorURL" not in one
