"""One POST as receivers of all kinds see it and answer it, over real connections on loopback."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import TYPE_CHECKING

import pytest

from ephmon import __version__
from ephmon.delivery import post as http_post
from ephmon.delivery.name_resolution import KnownAddresses, look_up
from ephmon.delivery.post import Poster, PostError, parse_retry_after, parse_target
from ephmon.delivery.source_ports import SourcePorts
from ephmon.facts.snapshot import PortRange
from ephmon.model.status import DeliveryFailure
from tests.certificates import make_certificate
from tests.delivery.receivers import (
    PostReceiver,
    answering,
    dripping,
    endless,
    saying,
    silent,
    unused_port,
)

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from pathlib import Path

    from ephmon.delivery.source_ports import Address
    from tests.delivery.receivers import Answer

PORTS = PortRange(19102, 19117)
NOW = 1_700_000_000.0  # 2023-11-14 22:13:20 UTC, a Tuesday
ENOUGH_SECONDS = 30.0


def post(
    url: str,
    body: bytes = b"[]",
    *,
    seconds: float = ENOUGH_SECONDS,
    ports: PortRange = PORTS,
    tls: ssl.SSLContext | None = None,
    resolve: Callable[[str, int], tuple[Address, ...]] = look_up,
) -> KnownAddresses:
    async def run() -> KnownAddresses:
        target = parse_target(url)
        addresses = KnownAddresses(target.host, target.port, resolve)
        poster = Poster(
            target=target,
            addresses=addresses,
            ports=SourcePorts(ports),
            tls=lambda: tls or ssl.create_default_context(),
        )
        await poster.post(body, deadline_seconds=seconds, now=NOW)
        return addresses

    return asyncio.run(run())


def failure(answer: Answer, *, seconds: float = ENOUGH_SECONDS) -> PostError:
    with PostReceiver(answer) as receiver, pytest.raises(PostError) as raised:
        post(receiver.url, seconds=seconds)
    return raised.value


def test_a_post_says_all_that_http_asks_for_and_comes_from_a_source_port() -> None:
    with PostReceiver() as receiver:
        post(f"{receiver.url}/hook?key=1", b'["alert"]')
        (request,) = receiver.wait_for(1)

    assert request.request_line == "POST /hook?key=1 HTTP/1.1"
    assert request.headers == {
        "host": f"127.0.0.1:{receiver.port}",
        "user-agent": f"ephmon/{__version__}",
        "content-type": "application/json",
        "content-length": "9",
        "connection": "close",
    }
    assert request.body == b'["alert"]'
    assert PORTS.low <= request.source_port <= PORTS.high


@pytest.mark.parametrize(
    ("user", "authorization"),
    [("ann:s%40cret", "Basic YW5uOnNAY3JldA=="), ("ann", "Basic YW5uOg=="), (":s@cret", "Basic OnNAY3JldA==")],
    ids=["both", "no password", "no user"],
)
def test_a_user_and_password_in_the_url_become_basic_authentication(user: str, authorization: str) -> None:
    with PostReceiver() as receiver:
        post(receiver.url.replace("http://", f"http://{user}@"))
        (request,) = receiver.wait_for(1)

    assert request.headers["authorization"] == authorization
    assert request.headers["host"] == f"127.0.0.1:{receiver.port}"


def test_ipv6_is_spoken() -> None:
    with PostReceiver(host="::1") as receiver:
        post(receiver.url)
        (request,) = receiver.wait_for(1)

    assert request.headers["host"] == f"[::1]:{receiver.port}"
    assert PORTS.low <= request.source_port <= PORTS.high


@pytest.mark.parametrize(
    "answer",
    [
        answering("HTTP/1.1 202 Accepted"),
        answering("HTTP/1.0 200 OK"),
        saying(b"HTTP/1.1 204\r\n\r\n"),
        saying(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"),
        saying(b"HTTP/1.1 200 OK\r\nno header at all\r\n\xff\xfe: \x00\r\n\r\n"),
        saying(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\ncut"),
        answering("HTTP/1.1 200 OK", bytes(10_000_000)),
    ],
    ids=["202", "HTTP/1.0", "no reason", "interim answers", "odd headers", "body cut short", "10 MB"],
)
def test_what_the_receiver_calls_a_success_is_one_whatever_else_it_sends(answer: Answer) -> None:
    with PostReceiver(answer) as receiver:
        post(receiver.url)

        assert len(receiver.requests) == 1


def test_a_body_that_drips_does_not_undo_a_success(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is the status; a second attempt would tell the receiver twice. The deadline is for that alone."""
    monkeypatch.setattr(http_post, "_CLOSING_SECONDS", 1.6)
    with PostReceiver(dripping(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 100_000, 0.001)) as receiver:
        post(receiver.url, seconds=1.5)


def test_a_receiver_that_does_not_close_the_connection_is_not_waited_for() -> None:
    """Else this would last as long as the receiver stays."""

    def stay(stream: socket.socket, closed: threading.Event) -> None:
        stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        still_there.append(not closed.wait(ENOUGH_SECONDS))

    still_there: list[bool] = []
    with PostReceiver(stay) as receiver:
        post(receiver.url)

    assert still_there == [False]


@pytest.mark.parametrize(
    ("answer", "reason", "sentence"),
    [
        (answering("HTTP/1.1 500 Secret words"), DeliveryFailure.SERVER_ERROR, "answered with status 500"),
        (answering("HTTP/1.1 503 No"), DeliveryFailure.SERVER_ERROR, "answered with status 503"),
        (answering("HTTP/1.1 429 Slow down"), DeliveryFailure.RATE_LIMITED, "answered with status 429"),
        (answering("HTTP/1.1 408 Request Timeout"), DeliveryFailure.TIMEOUT, "answered with status 408"),
        (answering("HTTP/1.1 400 Bad"), DeliveryFailure.CLIENT_ERROR, "answered with status 400"),
        (answering("HTTP/1.1 404 Not Found"), DeliveryFailure.CLIENT_ERROR, "answered with status 404"),
        (
            answering("HTTP/1.1 302 Found\nLocation: http://169.254.169.254/"),
            DeliveryFailure.REDIRECT,
            "answered with status 302; redirects are not followed, so configure the final URL",
        ),
        (saying(b"SSH-2.0-x\r\n\r\n"), DeliveryFailure.PROTOCOL, "does not speak HTTP/1.1"),
        (saying(b"HTTP/1.1 99999 x\r\n\r\n"), DeliveryFailure.PROTOCOL, "does not speak HTTP/1.1"),
        (saying(b"HTTP/1.1 102 x\r\n\r\n" * 100), DeliveryFailure.PROTOCOL, "does not speak HTTP/1.1"),
        (endless, DeliveryFailure.PROTOCOL, "does not speak HTTP/1.1"),
        (saying(b""), DeliveryFailure.CONNECTION, "closed the connection without a response"),
        (saying(b"HTTP/1.1 200 OK\r\n"), DeliveryFailure.CONNECTION, "closed the connection without a response"),
    ],
)
def test_any_other_answer_is_a_failure_in_plain_words(answer: Answer, reason: DeliveryFailure, sentence: str) -> None:
    error = failure(answer)

    assert (error.reason, str(error)) == (reason, sentence)


def test_a_redirect_is_not_followed() -> None:
    with PostReceiver() as elsewhere:
        assert failure(answering(f"HTTP/1.1 307 x\nLocation: {elsewhere.url}")).reason == DeliveryFailure.REDIRECT

        assert elsewhere.requests == []


@pytest.mark.parametrize("answer", [silent, dripping(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000)])
def test_the_deadline_is_for_the_whole_attempt(answer: Answer) -> None:
    """So that one byte now and then gains no time."""
    error = failure(answer, seconds=0.2)

    assert (error.reason, str(error)) == (DeliveryFailure.TIMEOUT, "did not answer within 0.2 s")


def test_a_receiver_that_takes_nothing_counts_against_the_deadline_too() -> None:
    """More than socket buffers hold, toward a listener that never accepts."""
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(PostError, match="did not answer within"):
        post(f"http://127.0.0.1:{listener.getsockname()[1]}", bytes(20_000_000), seconds=0.2)


def test_nobody_listens() -> None:
    with pytest.raises(PostError, match=r"^cannot be reached: Connection refused$") as raised:
        post(f"http://127.0.0.1:{unused_port()}")

    assert raised.value.reason == DeliveryFailure.CONNECTION


def test_a_name_that_is_not_known() -> None:
    def resolve(_host: str, _port: int) -> tuple[Address, ...]:
        raise OSError

    with pytest.raises(PostError, match=r"^cannot be looked up$") as raised:
        post("http://receiver.invalid", resolve=resolve)

    assert raised.value.reason == DeliveryFailure.NAME


def test_the_next_address_is_tried_when_one_does_not_work() -> None:
    with PostReceiver() as receiver:
        dead, (living,) = look_up("127.0.0.1", unused_port()), look_up("127.0.0.1", receiver.port)
        addresses = post(receiver.url, resolve=lambda _host, _port: (*dead, living))

        receiver.wait_for(1)
        assert addresses._known == (living, *dead)  # the next attempt begins with the one that worked


def test_proxies_of_the_environment_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    with PostReceiver() as receiver, PostReceiver() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        post(receiver.url)

        assert (len(receiver.requests), len(proxy.requests)) == (1, 0)


def test_over_tls_the_certificate_is_verified(tmp_path: Path) -> None:
    files, other = make_certificate(tmp_path, "receiver"), make_certificate(tmp_path, "other")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    with PostReceiver(tls=context) as receiver:
        post(receiver.url, tls=ssl.create_default_context(cafile=files.certificate))
        with pytest.raises(PostError, match=r"^has an invalid certificate: .*self.signed") as raised:
            post(receiver.url, tls=ssl.create_default_context(cafile=other.certificate))

        assert raised.value.reason == DeliveryFailure.TLS
        assert len(receiver.requests) == 1


def test_a_certificate_for_another_name_is_refused(tmp_path: Path) -> None:
    files = make_certificate(tmp_path, "receiver")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    with PostReceiver(tls=context) as receiver, pytest.raises(PostError, match="has an invalid certificate"):
        post(
            f"https://receiver.example:{receiver.port}",
            tls=ssl.create_default_context(cafile=files.certificate),
            resolve=lambda _host, port: look_up("127.0.0.1", port),
        )


def test_a_receiver_without_tls_is_told_from_one_that_is_down() -> None:
    with PostReceiver() as receiver, pytest.raises(PostError, match="failed the TLS handshake") as raised:
        post(receiver.url.replace("http:", "https:"), tls=ssl.create_default_context(), seconds=5.0)

    assert raised.value.reason == DeliveryFailure.TLS


@pytest.mark.parametrize(
    ("url", "path", "shown", "request_path"),
    [
        ("http://am", "/api/v2/alerts", "am:80", "/api/v2/alerts"),
        ("http://am:9093/", "/api/v2/alerts", "am:9093", "/api/v2/alerts"),
        ("https://am/prefix/", "/api/v2/alerts", "am:443", "/prefix/api/v2/alerts"),
        ("https://hooks.example/T0/secret", "", "hooks.example:443", "/T0/secret"),
        ("https://ann:secret@hooks.example/?key=secret", "", "hooks.example:443", "/?key=secret"),
        ("http://[2001:db8::1]:8080", "", "[2001:db8::1]:8080", "/"),
    ],
)
def test_a_target_shows_host_and_port_and_no_secret(url: str, path: str, shown: str, request_path: str) -> None:
    target = parse_target(url, path)

    assert str(target) == shown
    assert target.path == request_path
    assert "secret" not in repr(target)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 30.0),
        (" 0 ", 0.0),
        ("99999", 3600.0),
        ("9" * 10_000, 3600.0),
        ("Tue, 14 Nov 2023 22:13:50 GMT", 30.0),
        ("Tue, 14 Nov 2023 22:13:10 GMT", 0.0),
        ("Tue, 14 Nov 2099 22:13:10 GMT", 3600.0),
        ("", 0.0),
        ("-5", 0.0),
        ("1.5", 0.0),
        ("soon", 0.0),
        ("Tue, 99 Nov 2023 22:13:50 GMT", 0.0),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_at_most_an_hour(text: str, seconds: float) -> None:
    assert parse_retry_after(text, NOW) == seconds


def test_retry_after_is_part_of_the_failure() -> None:
    assert failure(answering("HTTP/1.1 429 x\nRetry-After: 17")).retry_after_seconds == 17.0
    assert failure(answering("HTTP/1.1 503 x\nRETRY-AFTER:Tue, 14 Nov 2023 22:13:50 GMT")).retry_after_seconds == 30.0
