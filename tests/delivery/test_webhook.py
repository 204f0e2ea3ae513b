"""The document for webhooks; tests/delivery/test_real_alertmanager.py holds it against what Alertmanager sends."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ephmon.delivery.notification import Notification
from ephmon.delivery.settings import DeliveryTimes, MessageContext
from ephmon.delivery.webhook import Webhook

if TYPE_CHECKING:
    from collections.abc import Mapping

NOW = 1_700_000_000.0


def alert(name: str, *, summary: str = "Few are left.", ends_at: float | None = None) -> Notification:
    return Notification(
        labels={"alertname": name, "severity": "critical", "destination": "", "team": "network"},
        annotations={"summary": summary},
        starts_at=NOW - 90,
        ends_at=ends_at,
    )


def document(*alerts: Notification, labels: Mapping[str, str] | None = None) -> Any:
    group_labels = {"team": "network"} if labels is None else labels
    context = MessageContext(labels=group_labels, host="web1", external_url="http://127.0.0.1:19100/")
    return json.loads(Webhook(DeliveryTimes()).render(alerts, NOW, context))


def test_it_is_alertmanagers_version_4() -> None:
    assert document(alert("B", summary="It is over.", ends_at=NOW), alert("A")) == {
        "version": "4",
        "groupKey": 'ephmon/web1:{team="network"}',
        "truncatedAlerts": 0,
        "status": "firing",
        "receiver": "ephmon",
        "groupLabels": {"team": "network"},
        "commonLabels": {"severity": "critical", "team": "network"},
        "commonAnnotations": {},
        "externalURL": "http://127.0.0.1:19100/",
        "alerts": [
            {
                "status": "firing",
                "labels": {"alertname": "A", "severity": "critical", "team": "network"},
                "annotations": {"summary": "Few are left."},
                "startsAt": "2023-11-14T22:11:50.000Z",
                "endsAt": "0001-01-01T00:00:00Z",
                "generatorURL": "http://127.0.0.1:19100/",
                "fingerprint": alert("A").fingerprint,
            },
            {
                "status": "resolved",
                "labels": {"alertname": "B", "severity": "critical", "team": "network"},
                "annotations": {"summary": "It is over."},
                "startsAt": "2023-11-14T22:11:50.000Z",
                "endsAt": "2023-11-14T22:13:20.000Z",
                "generatorURL": "http://127.0.0.1:19100/",
                "fingerprint": alert("B").fingerprint,
            },
        ],
    }


def test_it_is_resolved_once_all_are() -> None:
    assert document(alert("A", ends_at=NOW), alert("B", ends_at=NOW))["status"] == "resolved"
    assert document(alert("A", ends_at=NOW), alert("B"))["status"] == "firing"


def test_what_all_alerts_say_is_common() -> None:
    assert document(alert("A"))["commonLabels"] == {"alertname": "A", "severity": "critical", "team": "network"}
    assert document(alert("A"), alert("B"))["commonAnnotations"] == {"summary": "Few are left."}


def test_groups_of_different_labels_have_different_keys_whatever_the_labels_hold() -> None:
    keys = {
        document(alert("A"), labels=labels)["groupKey"]
        for labels in ({}, {"a": "1"}, {"a": "1", "b": "2"}, {"a": '1", b="2'}, {"a": "2"})
    }

    assert len(keys) == 5
