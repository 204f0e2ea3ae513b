"""Deliveries to a real Alertmanager, alone with it in a network namespace."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from ephmon.delivery.notification import Notification
from ephmon.delivery.settings import DeliverySettings, DeliveryTimes
from ephmon.facts.snapshot import PortRange
from ephmon.model.status import DeliveryFailure, ReceiverKind
from tests.delivery import delivering
from tests.delivery.alertmanagers import HOOK, HOOK_PORT, PORT, alertmanager, alerts, moment, remembers_its_announcement
from tests.namespaces import Namespace
from tests.processes import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ephmon.model.status import DeliveryStatus

SOURCE_PORTS = PortRange(19102, 19117)
TIMES = DeliveryTimes(pause_seconds=0.05, resend_seconds=0.5, first_retry_seconds=0.05)
NEAR_EXHAUSTION = Notification(
    labels={
        "alertname": "EphmonPoolNearExhaustion",
        "severity": "critical",
        "netns": "own",
        "kind": "tcp_connect",
        "source": "10.0.0.1",
        "destination": "2001:db8::9",
        "destination_port": "443",
    },
    annotations={"summary": "A pool is running out of ports.", "description": "It is at 93% — „fast“."},
    starts_at=float(int(time.time())) - 30.0,
)
BLOCKED = Notification(
    labels={"alertname": "EphmonPortsBlocked", "severity": "warning", "netns": "ünï", "source": ""},
    starts_at=NEAR_EXHAUSTION.starts_at,
)


@pytest.fixture
def ns() -> Iterator[Namespace]:
    with Namespace() as namespace:
        namespace.call(delivering.receive, HOOK, HOOK_PORT)
        yield namespace


def start(ns: Namespace) -> None:
    settings = DeliverySettings(
        source_ports=SOURCE_PORTS,
        labels={"team": "network"},
        alertmanager_urls=(f"http://127.0.0.1:{PORT}",),
        external_url="http://127.0.0.1:19100/",
    )
    ns.call(delivering.start, settings, TIMES)


def test_an_alert_arrives_once_with_its_labels_is_refreshed_and_resolves(ns: Namespace, tmp_path: Path) -> None:
    with alertmanager(ns, tmp_path / "am"):
        start(ns)
        ns.call(delivering.update, NEAR_EXHAUSTION)
        (arrived,) = eventually(lambda: alerts(ns), bool)

        assert arrived["labels"] == {**NEAR_EXHAUSTION.labels, "team": "network"}
        assert arrived["annotations"] == NEAR_EXHAUSTION.annotations
        assert moment(arrived["startsAt"]) == NEAR_EXHAUSTION.starts_at
        assert arrived["generatorURL"] == "http://127.0.0.1:19100/"
        # Later than four resends after the first, and nothing but further resends can have made it so.
        ends_at = moment(arrived["endsAt"])
        eventually(lambda: alerts(ns), lambda found: moment(found[0]["endsAt"]) > ends_at + 4 * TIMES.resend_seconds)
        assert len(alerts(ns)) == 1

        ns.call(delivering.update)
        eventually(lambda: alerts(ns), lambda found: not found)
        documents = [post.document for post in ns.call(delivering.wait_for_posts, HOOK, 2)]
        assert [document["status"] for document in documents] == ["firing", "resolved"]


def test_an_alert_survives_an_alertmanager_that_loses_its_memory(ns: Namespace, tmp_path: Path) -> None:
    start(ns)
    with alertmanager(ns, tmp_path / "am") as process:
        ns.call(delivering.update, NEAR_EXHAUSTION)
        eventually(lambda: alerts(ns), bool)
        process.signal(signal.SIGKILL)
    eventually(lambda: ns.call(delivering.status), _has_met_nobody)

    with alertmanager(ns, tmp_path / "new"):
        (arrived,) = eventually(lambda: alerts(ns), bool)

        assert moment(arrived["startsAt"]) == NEAR_EXHAUSTION.starts_at


def test_an_end_is_announced_that_came_while_alertmanager_was_down(ns: Namespace, tmp_path: Path) -> None:
    """After a restart it knows what it announced, but not the alert: so resolved alerts are sent again."""
    start(ns)
    with alertmanager(ns, tmp_path / "am"):
        ns.call(delivering.update, NEAR_EXHAUSTION)
        ns.call(delivering.wait_for_posts, HOOK, 1)
        eventually(lambda: remembers_its_announcement(ns), bool)
    ns.call(delivering.update)
    with alertmanager(ns, tmp_path / "am"):
        _, announced = ns.call(delivering.wait_for_posts, HOOK, 2)

    assert announced.document["status"] == "resolved"


def _has_met_nobody(status: DeliveryStatus) -> bool:
    return status.failures[ReceiverKind.ALERTMANAGER][DeliveryFailure.CONNECTION] > 0


def test_a_webhook_gets_the_document_that_alertmanager_sends(ns: Namespace, tmp_path: Path) -> None:
    """The same names and types all over, and the same alert but for the milliseconds."""
    ours_tag = "what ephmon sends"
    ns.call(delivering.receive, ours_tag, HOOK_PORT + 1)
    settings = DeliverySettings(
        source_ports=SOURCE_PORTS,
        labels={"team": "network"},
        alertmanager_urls=(f"http://127.0.0.1:{PORT}",),
        webhook_url=f"http://127.0.0.1:{HOOK_PORT + 1}/hook",
        external_url="http://127.0.0.1:19100/",
    )
    with alertmanager(ns, tmp_path / "am"):
        ns.call(delivering.start, settings, TIMES)
        for active in ((NEAR_EXHAUSTION,), ()):
            ns.call(delivering.update, *active)
            number = 2 - len(active)
            theirs = ns.call(delivering.wait_for_posts, HOOK, number)[-1]
            ours = ns.call(delivering.wait_for_posts, ours_tag, number)[-1]

            assert ours.headers["content-type"] == theirs.headers["content-type"]
            assert shape(ours.document) == shape(theirs.document)
            assert known(ours.document) == known(theirs.document)


def shape(value: Any) -> Any:
    """Return the names and types of a document, whatever the labels of the group."""
    if isinstance(value, dict):
        return {name: shape(item) for name, item in value.items() if name != "groupLabels"}
    return [shape(item) for item in value] if isinstance(value, list) else type(value)


def known(document: dict[str, Any]) -> dict[str, Any]:
    """Return what does not depend on who sends it, and when it learnt of an end."""
    own = {"receiver", "groupKey", "groupLabels", "externalURL", "alerts"}
    (alert,) = document["alerts"]
    told = {name: text for name, text in alert.items() if name not in ("startsAt", "endsAt")}
    is_over = alert["endsAt"] != "0001-01-01T00:00:00Z"
    rest = {name: value for name, value in document.items() if name not in own}
    return {**rest, "alert": told, "startsAt": moment(alert["startsAt"]), "is_over": is_over}


def test_fingerprints_are_those_of_alertmanager(ns: Namespace, tmp_path: Path) -> None:
    with alertmanager(ns, tmp_path / "am"):
        settings = DeliverySettings(source_ports=SOURCE_PORTS, alertmanager_urls=(f"http://127.0.0.1:{PORT}",))
        ns.call(delivering.start, settings, TIMES)
        ns.call(delivering.update, NEAR_EXHAUSTION, BLOCKED)
        found = eventually(lambda: alerts(ns), lambda found: len(found) == 2)

    assert {alert["fingerprint"] for alert in found} == {NEAR_EXHAUSTION.fingerprint, BLOCKED.fingerprint}
