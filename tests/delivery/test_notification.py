"""Alerts as receivers get them."""

from __future__ import annotations

import pytest

from ephmon.config.scalars import RESERVED_LABELS
from ephmon.delivery.notification import SUMMARIES, Notification, notifications_of
from ephmon.model.advice.causes import advise
from ephmon.model.alerting.state_machine import Alert, AlertName, Phase
from ephmon.model.alerting.thresholds import Severity
from ephmon.outputs.text.advice import advice_lines
from tests.builders import (
    TAKEN_AT,
    make_alert,
    make_bind_pool,
    make_namespace_report,
    make_owners,
    make_pool,
    make_report,
)


def notified(*alerts: Alert) -> list[Notification]:
    return list(notifications_of(make_report(alerts=alerts)))


def named(name: str, **labels: str) -> Notification:
    return Notification(labels={"alertname": name, **labels}, starts_at=100.0)


def test_an_alert_of_a_pool_has_the_labels_of_the_pool_and_tells_its_figures() -> None:
    pool = make_pool(usable=28_232, blocked=3, in_use=20_000)
    (notification,) = notified(make_alert(pool, severity=Severity.CRITICAL, since=30.0))

    assert notification == Notification(
        labels={
            "alertname": "EphmonPoolNearExhaustion",
            "severity": "critical",
            "netns": "own",
            "kind": "tcp_connect",
            "source": "10.0.0.1",
            "destination": "10.0.0.9",
            "destination_port": "443",
        },
        annotations={
            "summary": "A pool of local ports is almost used up.",
            "description": "tcp_connect from 10.0.0.1 to 10.0.0.9:443 is at 70.9%: 8229 of 28232 ports are left.",
            "advice": "\n".join(advice_lines(advise(pool, make_namespace_report().sysctls, listening_ports=None))),
        },
        starts_at=TAKEN_AT + 30.0,
    )


def test_what_an_alert_is_not_about_is_no_label() -> None:
    of_namespace, of_bind_pool = notified(make_alert(name=AlertName.PORTS_BLOCKED), make_alert(make_bind_pool()))

    assert {name for name, _ in of_namespace.identity} == {"alertname", "severity", "netns"}
    assert {name for name, _ in of_bind_pool.identity} == {"alertname", "severity", "netns", "kind", "source"}


def test_only_what_fires_for_all_to_see_is_delivered() -> None:
    assert notified(make_alert(phase=Phase.PENDING), make_alert(make_pool(), is_announced=False)) == []


def test_users_cannot_choose_a_label_that_alerts_have_themselves() -> None:
    (notification,) = notified(make_alert(make_pool()))

    assert notification.labels.keys() == RESERVED_LABELS


def test_who_holds_the_ports_is_reported_and_makes_no_other_alert_of_it() -> None:
    """What a receiver has been told of it is not told again because owners come, go or change."""
    pool = make_pool()
    alerts = [make_alert(pool), make_alert(name=AlertName.PORTS_BLOCKED)]
    held = make_owners(("haproxy.service", 812), ("uid 33", 12, 12))
    before = notifications_of(make_report(alerts=alerts))
    after = notifications_of(
        make_report(alerts=alerts, owners={pool.key: held}, blocked_owners={"own": make_owners(("nginx.service", 25))})
    )

    assert [one.annotations.get("owners") for one in after] == [
        "haproxy.service 812 ports, uid 33 12 (estimated)",
        "nginx.service 25 ports",
    ]
    assert ["owners" in one.annotations for one in before] == [False, False]
    assert [(one.identity, one.state) for one in after] == [(one.identity, one.state) for one in before]


@pytest.mark.parametrize("name", AlertName)
def test_every_alert_has_a_summary(name: AlertName) -> None:
    assert SUMMARIES[name].endswith(".")


def test_a_label_without_a_value_is_no_label() -> None:
    assert named("A", destination="").identity == (("alertname", "A"),)
    assert named("A", destination="").identity == named("A").identity


def test_the_fingerprint_is_that_of_the_data_model_of_prometheus() -> None:
    """As Alertmanager 0.25 has them; tests/delivery/test_real_alertmanager.py asks it."""
    assert Notification(labels={}, starts_at=0).fingerprint == "cbf29ce484222325"
    assert named("A", severity="critical").fingerprint == "b807e636403824b5"
