"""The delivery thread, with real receivers on loopback."""

from __future__ import annotations

import gc
import logging
import socket
import ssl
import threading
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from ephmon.delivery.name_resolution import look_up
from ephmon.delivery.notification import Notification
from ephmon.delivery.service import NO_HOST_LABEL, Delivery
from ephmon.delivery.settings import DeliverySettings, DeliveryTimes
from ephmon.facts.snapshot import PortRange
from ephmon.model.status import DeliveryFailure, DeliveryStatus, ReceiverKind
from ephmon.supervision.threads import start
from tests.certificates import make_certificate
from tests.delivery.receivers import PostReceiver, answering, ok, silent, unused_port
from tests.processes import WAIT_SECONDS, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from ephmon.delivery.source_ports import Address
    from tests.delivery.receivers import Received

HOURLY = DeliveryTimes(pause_seconds=0.0, first_retry_seconds=0.01, resend_seconds=3600.0)
"""Changes are sent at once and nothing comes by itself, so that every message has its cause in the test."""
AM, HOOK = ReceiverKind.ALERTMANAGER, ReceiverKind.WEBHOOK


def alert(name: str) -> Notification:
    return Notification(labels={"alertname": name, "severity": "warning"}, starts_at=1_700_000_000.0)


A, B = alert("A"), alert("B")


def settings(*alertmanagers: str, webhook: str = "", labels: Mapping[str, str] | None = None) -> DeliverySettings:
    return DeliverySettings(
        source_ports=PortRange(19102, 19117),
        labels=labels or {},
        alertmanager_urls=alertmanagers,
        webhook_url=webhook,
    )


@contextmanager
def delivering(
    wanted: DeliverySettings,
    *,
    times: DeliveryTimes = HOURLY,
    resolve: Callable[[str, int], tuple[Address, ...]] = look_up,
) -> Iterator[Delivery]:
    delivery = Delivery(times=times, look_up=resolve)
    delivery.configure(wanted)
    try:
        yield delivery
    finally:
        delivery.close(0.0)


def told(request: Received) -> list[tuple[str, str]]:
    """Return the names in a webhook's document, and how each alert fares."""
    return [(one["labels"]["alertname"], one["status"]) for one in request.document["alerts"]]


def status_of(delivery: Delivery) -> DeliveryStatus:
    """Return the status of a delivery that has a receiver."""
    status = delivery.status()
    assert status is not None
    return status


def settled(delivery: Delivery, *receivers: PostReceiver, posts: int = 1) -> DeliveryStatus:
    """Wait until each of these got so many posts, and until every receiver has taken everything."""
    for receiver in receivers:
        receiver.wait_for(posts)
    return eventually(
        lambda: status_of(delivery), lambda status: bool(status.pending) and not any(status.pending.values())
    )


def test_every_receiver_is_reported_and_none_waits_for_another() -> None:
    with PostReceiver() as first, PostReceiver() as second, PostReceiver(silent) as slow, PostReceiver() as hook:
        dead = f"http://127.0.0.1:{unused_port()}"
        with delivering(settings(dead, slow.url, first.url, second.url, webhook=f"{hook.url}/hook")) as delivery:
            delivery.update([A])

            for receiver in (first, second, slow):
                (request,) = receiver.wait_for(1)
                assert request.request_line == "POST /api/v2/alerts HTTP/1.1"
                assert [one["labels"] for one in request.document] == [{"alertname": "A", "severity": "warning"}]
            (request,) = hook.wait_for(1)
            assert request.request_line == "POST /hook HTTP/1.1"
            assert told(request) == [("A", "firing")]


def test_a_thread_that_starts_late_has_one_task_for_each_receiver(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The settings then wait in the loop already when it comes to what the thread is for."""
    is_configured = threading.Event()

    def start_late(thread: threading.Thread) -> None:
        run = thread.run
        thread.run = lambda: (is_configured.wait(WAIT_SECONDS), run())[1]  # type: ignore[method-assign]
        start(thread)

    monkeypatch.setattr("ephmon.supervision.loop_thread.start", start_late)
    with PostReceiver() as receiver, delivering(settings(webhook=receiver.url)) as delivery:
        delivery.update([A])
        is_configured.set()
        settled(delivery, receiver)
        gc.collect()  # a task that nothing refers to is reported when it is collected
        delivery.update([A, B])
        settled(delivery, receiver, posts=2)

    assert len(receiver.requests) == 2
    assert not caplog.records


def test_the_polling_thread_never_waits_for_a_receiver() -> None:
    """Each call returns while the receiver holds the request; if one waited, the silence would not end."""
    with PostReceiver(silent) as slow, delivering(settings(webhook=slow.url)) as delivery:
        delivery.update([A])
        slow.wait_for(1)
        for number in range(1000):
            delivery.update([alert(f"A{number}")])
        delivery.configure(settings(webhook=slow.url, labels={"team": "network"}))

        assert status_of(delivery).attempts == {HOOK: 1}
        assert len(slow.requests) == 1


def test_what_piled_up_is_one_message() -> None:
    """A receiver that comes back is told what holds then, however much has happened."""
    busy = answering("HTTP/1.1 503 No\nRetry-After: 1")
    with PostReceiver(busy) as down, delivering(settings(webhook=down.url)) as delivery:
        delivery.update([A])
        down.wait_for(1)
        for number in range(100):
            delivery.update([B] if number % 2 else [A])
        _, request = down.wait_for(2)

        assert told(request) == [("B", "firing"), ("A", "resolved")]


def test_a_reload_keeps_what_was_reported_and_tells_the_new_ones_everything() -> None:
    with PostReceiver() as kept, PostReceiver() as gone, PostReceiver() as new:
        with delivering(settings(gone.url, webhook=kept.url)) as delivery:
            delivery.update([A])
            settled(delivery, gone, kept)
            delivery.configure(settings(new.url, webhook=kept.url))
            settled(delivery, new)
            delivery.update([A, B])
            settled(delivery, new, kept, posts=2)

        assert [told(request) for request in kept.requests] == [[("A", "firing")], [("A", "firing"), ("B", "firing")]]
        assert len(gone.requests) == 1


def test_a_reload_loses_no_alert_that_a_receiver_was_still_owed() -> None:
    """Neither one that is active nor one that is over by then; nor is anything told that was told."""
    with (
        PostReceiver(ok, ok, answering("HTTP/1.1 500 No")) as old,
        PostReceiver() as new,
        delivering(settings(webhook=old.url)) as delivery,
    ):
        delivery.update([alert("Over"), alert("Told")])
        settled(delivery, old)
        delivery.update([alert("Told")])
        settled(delivery, old, posts=2)
        delivery.update([A, B, alert("Told")])
        old.wait_for(3)
        delivery.update([B])
        delivery.configure(settings(webhook=new.url))
        (request,) = new.wait_for(1)

        assert told(request)[0] == ("B", "firing")
        assert sorted(told(request)[1:]) == [("A", "resolved"), ("Told", "resolved")]


def test_a_receiver_that_a_reload_takes_away_is_sent_nothing_more() -> None:
    often = replace(HOURLY, resend_seconds=0.01)
    with PostReceiver() as gone, PostReceiver() as new, delivering(settings(gone.url), times=often) as delivery:
        delivery.update([A])
        gone.wait_for(2)
        delivery.configure(settings(new.url))
        new.wait_for(1)
        number = len(gone.requests)
        new.wait_for(20)

        assert len(gone.requests) <= number + 1  # one may have been under way


def test_a_webhook_that_is_new_hears_nothing_of_what_was_over_before() -> None:
    with PostReceiver() as other, PostReceiver() as new, delivering(settings(other.url)) as delivery:
        delivery.update([A, B])
        settled(delivery, other)
        delivery.update([B])
        settled(delivery, other, posts=2)
        delivery.configure(settings(other.url, webhook=new.url))
        (request,) = new.wait_for(1)

        assert told(request) == [("B", "firing")]


def test_new_labels_end_the_alerts_with_the_old_ones() -> None:
    with PostReceiver() as hook, delivering(settings(webhook=hook.url, labels={"team": "old"})) as delivery:
        delivery.update([A])
        settled(delivery, hook)
        delivery.configure(settings(webhook=hook.url, labels={"team": "new"}))
        _, request = hook.wait_for(2)

    alerts = request.document["alerts"]
    assert [(one["labels"]["team"], one["status"]) for one in alerts] == [("new", "firing"), ("old", "resolved")]
    assert request.document["groupLabels"] == {"team": "new"}
    assert request.document["groupKey"] == f'ephmon/{socket.gethostname()}:{{team="new"}}'


def test_without_receivers_there_is_nothing_to_do_until_a_reload_brings_one() -> None:
    with PostReceiver() as new, delivering(settings()) as delivery:
        delivery.update([A])
        assert delivery.status() is None
        assert "delivery" not in {thread.name for thread in threading.enumerate()}
        delivery.configure(settings(new.url))
        delivery.update([A])

        new.wait_for(1)


def test_names_are_looked_up_at_start_and_at_a_reload_and_the_last_answer_is_kept() -> None:
    asked: list[str] = []

    def resolve(host: str, port: int) -> tuple[Address, ...]:
        asked.append(host)
        if len(asked) > 1:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return look_up("127.0.0.1", port)

    with PostReceiver() as receiver:
        url = f"http://am.example:{receiver.port}"
        with delivering(settings(url), resolve=resolve) as delivery:
            eventually(lambda: len(asked), lambda number: number == 1)
            delivery.update([A])
            receiver.wait_for(1)
            delivery.configure(settings(url))
            eventually(lambda: len(asked), lambda number: number == 2)
            delivery.update([B])
            receiver.wait_for(2)

    assert asked == ["am.example", "am.example"]
    assert receiver.requests[0].headers["host"] == f"am.example:{receiver.port}"


def test_the_status_counts_attempts_failures_and_what_waits() -> None:
    refusing = answering("HTTP/1.1 500 No"), answering("HTTP/1.1 429 No"), answering("HTTP/1.1 200 OK")
    with (
        PostReceiver(*refusing) as hook,
        PostReceiver(silent) as slow,
        delivering(settings(slow.url, webhook=hook.url)) as delivery,
    ):
        assert status_of(delivery).succeeded_at == {}
        delivery.update([A, B])
        hook.wait_for(3)
        slow.wait_for(1)
        status = eventually(lambda: status_of(delivery), lambda status: status.pending == {AM: 2, HOOK: 0})

    assert status.attempts == {AM: 1, HOOK: 3}
    assert {reason: number for reason, number in status.failures[HOOK].items() if number} == {
        DeliveryFailure.SERVER_ERROR: 1,
        DeliveryFailure.RATE_LIMITED: 1,
    }
    assert set(status.failures[AM]) == set(DeliveryFailure)
    assert set(status.succeeded_at) == {HOOK}


def test_no_secret_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    answers = [answering(f"HTTP/1.1 {status} secret\nX: secret", b"secret") for status in (500, 302, 429, 404)]
    with PostReceiver(*answers) as hook, PostReceiver(*answers) as alertmanager:
        alertmanager_url = alertmanager.url.replace("//", "//secret:secret@")
        wanted = settings(alertmanager_url, "http://secret.invalid", webhook=f"{hook.url}/secret")
        settings_text = repr(wanted)
        with delivering(wanted, resolve=_all_but_secret_invalid) as delivery:
            delivery.update([A])
            hook.wait_for(4)
            alertmanager.wait_for(4)

    assert f"The webhook at 127.0.0.1:{hook.port} answered with status 500." in caplog.messages
    assert "secret" not in caplog.text.replace("secret.invalid:80", "")
    assert "secret" not in settings_text


@pytest.mark.parametrize(("labels", "warnings"), [({}, [NO_HOST_LABEL]), ({"instance": "web1"}, [])])
def test_it_warns_where_alerts_do_not_name_the_host(
    caplog: pytest.LogCaptureFixture, labels: dict[str, str], warnings: list[str]
) -> None:
    with PostReceiver() as receiver, delivering(settings(receiver.url, labels=labels)) as delivery:
        delivery.update([A])
        settled(delivery, receiver)

    assert caplog.messages == warnings


def _all_but_secret_invalid(host: str, port: int) -> tuple[Address, ...]:
    return () if host == "secret.invalid" else look_up(host, port)


def test_certificates_are_held_against_those_that_the_system_trusts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = make_certificate(tmp_path, "receiver")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    with PostReceiver(tls=context) as receiver, delivering(settings(webhook=receiver.url)) as delivery:
        delivery.update([A])
        eventually(
            lambda: status_of(delivery),
            lambda status: bool(status.failures) and status.failures[HOOK][DeliveryFailure.TLS] > 0,
        )
        assert receiver.requests == []
        monkeypatch.setenv("SSL_CERT_FILE", str(files.certificate))  # what OpenSSL takes for the system's
        delivery.configure(settings(webhook=receiver.url))

        receiver.wait_for(1)


def test_an_authority_that_the_system_comes_to_trust_counts_without_a_reload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, other = make_certificate(tmp_path, "receiver"), make_certificate(tmp_path, "other")
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(other.certificate.read_bytes())
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    with PostReceiver(tls=context) as receiver, delivering(settings(webhook=receiver.url)) as delivery:
        delivery.update([A])
        eventually(
            lambda: status_of(delivery),
            lambda status: bool(status.failures) and status.failures[HOOK][DeliveryFailure.TLS] > 0,
        )
        with bundle.open("ab") as file:
            file.write(files.certificate.read_bytes())

        receiver.wait_for(1)


def test_closing_sends_what_can_be_sent_at_once_and_waits_for_nobody() -> None:
    with PostReceiver() as quick, PostReceiver(silent) as slow:
        delivery = Delivery(times=HOURLY)
        delivery.configure(settings(slow.url, quick.url))
        delivery.update([A])
        slow.wait_for(1)
        quick.wait_for(1)
        delivery.update([A, B])
        delivery.close(0.2)

        assert "delivery" not in {thread.name for thread in threading.enumerate()}
        assert len(quick.wait_for(2)[1].document) == 2
        delivery.update([])
        delivery.close(0.0)  # what comes later does nothing


def test_a_resolver_that_hangs_keeps_nobody_from_closing() -> None:
    hanging = threading.Event()

    def resolve(_host: str, _port: int) -> tuple[Address, ...]:
        hanging.wait(WAIT_SECONDS)
        return ()

    with delivering(settings("http://am.example"), resolve=resolve) as delivery:
        delivery.update([A])
        eventually(lambda: status_of(delivery), lambda status: status.attempts == {AM: 1})
    hanging.set()

    assert "delivery" not in {thread.name for thread in threading.enumerate()}
