"""The HTTP side as its clients see it, over real connections on loopback."""

from __future__ import annotations

import gzip
import http.client
import json
import logging
import re
import socket
import ssl
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import pytest

from ephmon.http.guard import ConnectionLimits
from ephmon.http.publication import Publication
from ephmon.http.server import HttpServer, ListenError, open_listener
from ephmon.http.tls import TlsFiles, build_tls_context
from tests.certificates import make_certificate

if TYPE_CHECKING:
    from collections.abc import Iterator

LOOPBACK = "127.0.0.1"
SECONDS = 10.0


class Clock:
    """A clock that stands still until it is told otherwise."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def publication(*, expires_at: float | None = 1015.0, metrics: str = "live metrics\n") -> Publication:
    return Publication.of(
        expires_at=expires_at,
        metrics=metrics,
        openmetrics="live openmetrics\n# EOF\n",
        expired_metrics="ephmon_poll_success 0\n",
        expired_openmetrics="ephmon_poll_success 0\n# EOF\n",
        pools='{"schema": 1, "pools": []}',
        exhaustions='{"schema": 1, "events": []}',
        page="<p>page</p>",
        expired_page="<p>expired page</p>",
    )


@contextmanager
def serving(
    clock: Clock | None = None,
    *,
    host: str = LOOPBACK,
    port: int = 0,
    tls: ssl.SSLContext | None = None,
    limits: ConnectionLimits | None = None,
) -> Iterator[HttpServer]:
    server = HttpServer((host, port), monotonic=clock or Clock(), tls=tls, limits=limits)
    server.start()
    server.publish(publication())
    try:
        yield server
    finally:
        server.stop()


class Answer:
    """What came back for one request."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()


def ask(server: HttpServer, path: str, method: str = "GET", **headers: str) -> Answer:
    connection = http.client.HTTPConnection(LOOPBACK, server.port, timeout=SECONDS)
    return answer(connection, path, method, headers)


def ask_over_tls(server: HttpServer, trusted: TlsFiles, client: TlsFiles | None = None) -> Answer:
    context = ssl.create_default_context(cafile=trusted.certificate)
    if client is not None:
        context.load_cert_chain(client.certificate, client.key)
    connection = http.client.HTTPSConnection(LOOPBACK, server.port, timeout=SECONDS, context=context)
    return answer(connection, "/metrics", "GET", {})


def answer(connection: http.client.HTTPConnection, path: str, method: str, headers: dict[str, str]) -> Answer:
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        return Answer(connection.getresponse())
    finally:
        connection.close()


def connect(server: HttpServer) -> socket.socket:
    return socket.create_connection((LOOPBACK, server.port), timeout=SECONDS)


def ask_raw(server: HttpServer, request: bytes) -> bytes:
    with connect(server) as client:
        client.sendall(request)
        return read_to_end(client)


def read_to_end(client: socket.socket) -> bytes:
    received = b""
    try:
        while data := client.recv(65536):
            received += data
    except ConnectionResetError:
        pass
    return received


@pytest.mark.parametrize(
    ("path", "status", "content_type", "body"),
    [
        ("/", 200, "text/html; charset=utf-8", b"<p>page</p>"),
        ("/metrics", 200, "text/plain; version=0.0.4; charset=utf-8", b"live metrics\n"),
        ("/api/v1/pools", 200, "application/json", b'{"schema": 1, "pools": []}'),
        ("/-/healthy", 200, "text/plain; charset=utf-8", b"The main loop is running.\n"),
        ("/-/ready", 200, "text/plain; charset=utf-8", b"The data is current.\n"),
        ("/favicon.ico", 404, "text/plain; charset=utf-8", b"There is no such page; / links to all pages.\n"),
    ],
)
def test_each_path_has_its_answer_and_head_announces_the_same(
    path: str, status: int, content_type: str, body: bytes
) -> None:
    with serving() as server:
        got, head = ask(server, path), ask(server, path, "HEAD")

    assert (status, content_type, body) == (got.status, got.headers["Content-Type"], got.body)
    assert (status, content_type) == (head.status, head.headers["Content-Type"])
    assert got.headers["Content-Length"] == head.headers["Content-Length"] == str(len(body))


def test_a_reply_to_head_ends_with_its_headers() -> None:
    with serving() as server:
        got = ask_raw(server, b"HEAD /metrics HTTP/1.0\r\n\r\n")

    assert got.endswith(b"\r\nContent-Length: 13\r\n\r\n")


def test_metrics_come_in_the_format_and_encoding_that_was_asked_for() -> None:
    with serving() as server:
        got = ask(server, "/metrics", Accept="application/openmetrics-text;version=1.0.0", Accept_Encoding="gzip")

    assert got.headers["Content-Type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert got.headers["Content-Encoding"] == "gzip"
    assert got.headers["Vary"] == "Accept, Accept-Encoding"
    assert gzip.decompress(got.body) == b"live openmetrics\n# EOF\n"


@pytest.mark.parametrize("method", ["POST", "DELETE", "OPTIONS"])
def test_other_methods_are_refused_even_with_a_body(method: str) -> None:
    with serving() as server:
        got = ask_raw(server, f"{method} /metrics HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbody".encode())

    assert got.startswith(b"HTTP/1.1 405 Method Not Allowed\r\n")
    assert b"\r\nAllow: GET, HEAD\r\n" in got


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", "200"),
        (b"PUT / HTTP/1.0\r\n\r\n", "405"),
        (b"GET /nothing HTTP/1.0\r\n\r\n", "404"),
        (b"NONSENSE\r\n\r\n", "400"),
        (b"GET / HTTP/1.0\r\nContent-Length: 9\r\n\r\n", "413"),
    ],
)
def test_every_reply_has_the_protecting_headers_and_no_banner(head: bytes, status: str) -> None:
    with serving() as server:
        got = ask_raw(server, head)

    status_line, *headers = got.partition(b"\r\n\r\n")[0].decode().split("\r\n")
    assert status_line.startswith(f"HTTP/1.1 {status} ")
    assert {
        "X-Content-Type-Options: nosniff",
        "X-Frame-Options: DENY",
        "Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'",
        "Referrer-Policy: no-referrer",
        "Cache-Control: no-store",
    } <= set(headers)
    assert not [header for header in headers if header.lower().startswith("server:")]


def test_a_connection_serves_one_request() -> None:
    with serving() as server:
        got = ask_raw(server, b"GET /-/ready HTTP/1.1\r\nHost: h\r\nConnection: keep-alive\r\n\r\n" * 2)

    assert got.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(
    "head",
    [
        b"GET /<marker> HTTP/1.1\r\nHost: h\r\n\r\n",
        b"<marker> / HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET / <marker>\r\nHost: h\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\n<marker>\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nHost: <marker>\r\nAccept: <marker>\r\n\r\n",
    ],
)
def test_nothing_that_a_client_says_comes_back_or_is_logged(head: bytes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with serving() as server:
        got = ask_raw(server, head)

    assert got.startswith(b"HTTP/1.1 ")
    assert b"marker" not in got
    assert "marker" not in caplog.text


def test_a_head_above_16_kib_is_not_answered() -> None:
    with serving() as server:
        got = ask_raw(server, b"GET / HTTP/1.1\r\nHost: h\r\nX-Padding: " + b"x" * 16384 + b"\r\n\r\n")

    assert got == b""


def test_data_that_expired_is_not_sent_as_live_though_nobody_publishes_any_more() -> None:
    clock = Clock()
    with serving(clock) as server:
        clock.now = 1014.9
        assert ask(server, "/metrics").body == b"live metrics\n"
        clock.now = 1015.0

        assert ask(server, "/metrics").body == b"ephmon_poll_success 0\n"
        assert ask(server, "/").body == b"<p>expired page</p>"
        assert ask(server, "/-/ready").status == 503
        pools = ask(server, "/api/v1/pools")
        assert pools.status == 503
        assert json.loads(pools.body) == {
            "schema": 1,
            "error": "The data has expired: no poll has succeeded for three poll intervals.",
        }


def test_it_is_ready_from_the_first_good_poll_on() -> None:
    with serving() as server:
        server.publish(publication(expires_at=None))
        assert ask(server, "/-/ready").status == 503
        assert ask(server, "/metrics").body == b"ephmon_poll_success 0\n"
        server.publish(publication())

        assert ask(server, "/-/ready").status == 200


def test_before_the_first_publication_it_says_that_it_is_starting() -> None:
    server = HttpServer((LOOPBACK, 0), monotonic=Clock())
    server.start()
    try:
        for path in ("/metrics", "/", "/api/v1/pools", "/-/ready"):
            assert ask(server, path).status == 503
        assert ask(server, "/-/healthy").status == 200
    finally:
        server.stop()


def test_it_is_healthy_while_the_main_loop_beats() -> None:
    clock = Clock()
    with serving(clock) as server:
        clock.now += 30.0
        assert ask(server, "/-/healthy").status == 200
        clock.now += 0.1
        assert ask(server, "/-/healthy").status == 503
        server.beat()

        assert ask(server, "/-/healthy").status == 200


def test_a_publication_replaces_the_one_before() -> None:
    with serving() as server:
        server.publish(publication(metrics="newer\n"))

        assert ask(server, "/metrics").body == b"newer\n"


def test_a_large_body_arrives_in_full() -> None:
    metrics = "ephmon_pool_in_use_ports 1\n" * 200_000
    with serving() as server:
        server.publish(publication(metrics=metrics))

        assert ask(server, "/metrics").body.decode() == metrics


def test_a_port_in_use_is_an_error_that_says_what_to_do() -> None:
    with serving() as server, pytest.raises(ListenError) as caught, serving(port=server.port):
        pass

    message = str(caught.value)
    assert message.startswith(f"Cannot listen on 127.0.0.1:{server.port}: the port is in use; ")
    assert f"`ss -tanp 'sport = :{server.port}'`" in message


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("192.0.2.1", "Cannot listen on 192.0.2.1:0: this host does not have that address; choose one that "),
        ("2001:db8::1", "Cannot listen on [2001:db8::1]:0: this host does not have that address; choose one that "),
        ("localhost", "Cannot listen on localhost: it is not an IP address; names are not looked up."),
    ],
)
def test_an_address_that_cannot_be_listened_on_is_named(host: str, message: str) -> None:
    with pytest.raises(ListenError) as caught:
        open_listener((host, 0))

    assert str(caught.value).startswith(message)


def test_it_listens_on_ipv6() -> None:
    with serving(host="::1") as server, socket.create_connection(("::1", server.port), timeout=SECONDS) as client:
        client.sendall(b"GET /-/ready HTTP/1.0\r\n\r\n")

        assert read_to_end(client).startswith(b"HTTP/1.1 200 OK\r\n")


def test_after_a_stop_the_port_is_free_and_the_thread_gone() -> None:
    threads = threading.active_count()
    with serving() as server:
        assert threading.active_count() == threads + 1
        ask(server, "/metrics")  # leaves a connection in TIME_WAIT
        idle = connect(server)
    with idle:
        assert idle.recv(1) == b""

    assert threading.active_count() == threads
    with serving(port=server.port) as successor:
        assert ask(successor, "/metrics").status == 200


def test_it_may_be_stopped_before_its_start_twice_and_started_again() -> None:
    server = HttpServer((LOOPBACK, 0), monotonic=Clock())
    server.stop()
    for _ in range(2):
        server.start()
        assert ask(server, "/-/healthy").status == 200
        server.stop()
        server.stop()


def test_idle_connections_do_not_stop_a_scrape() -> None:
    with serving(limits=ConnectionLimits(connections=8)) as server:
        threads = threading.active_count()
        idle = [connect(server) for _ in range(30)]

        assert ask(server, "/metrics").status == 200
        # The scrape was the 31st connection, so all but the last 7 of the idle ones made room.
        assert [client.recv(1) for client in idle[:22]] == [b""] * 22
        assert threading.active_count() == threads
        for client in idle:
            client.close()


def test_a_half_sent_request_is_closed_at_the_deadline() -> None:
    with serving(limits=ConnectionLimits(head_seconds=0.05)) as server:
        assert ask_raw(server, b"GET /metrics HTTP/1.1\r\nHost: h\r\n") == b""


def test_a_defect_is_logged_by_its_place_and_the_next_request_is_answered(caplog: pytest.LogCaptureFixture) -> None:
    with serving() as server:
        server.publish(cast("Publication", "not a publication"))
        assert ask_raw(server, b"GET /metrics HTTP/1.0\r\n\r\n") == b""
        server.publish(publication())

        assert ask(server, "/metrics").status == 200
    [record] = caplog.records
    assert re.fullmatch(
        r"HTTP: a defect in ephmon ended a request; please report it: "
        r"AttributeError in HttpServer._state line \d+ \(1 since the last such line\)",
        record.getMessage(),
    )


@pytest.fixture(name="certificate", scope="module")
def _certificate(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return make_certificate(tmp_path_factory.mktemp("server"), "server")


@pytest.fixture(name="client_certificate", scope="module")
def _client_certificate(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return make_certificate(tmp_path_factory.mktemp("client"), "client")


def test_over_tls_the_metrics_are_served(certificate: TlsFiles) -> None:
    with serving(tls=build_tls_context(certificate)) as server:
        server.publish(publication(metrics="x" * 300_000))
        got = ask_over_tls(server, certificate)

    assert (got.status, got.body) == (200, b"x" * 300_000)


def test_over_tls_a_client_may_be_asked_for_a_certificate(certificate: TlsFiles, client_certificate: TlsFiles) -> None:
    files = TlsFiles(certificate=certificate.certificate, key=certificate.key, client_ca=client_certificate.certificate)
    with serving(tls=build_tls_context(files)) as server:
        assert ask_over_tls(server, certificate, client_certificate).status == 200
        # In TLS 1.3 the client may have sent its request before it learns that it was refused.
        with pytest.raises((ssl.SSLError, ConnectionError)):
            ask_over_tls(server, certificate)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            ask_over_tls(server, certificate, certificate)


def test_new_connections_use_the_new_certificate(certificate: TlsFiles, client_certificate: TlsFiles) -> None:
    with serving(tls=build_tls_context(certificate)) as server:
        server.use_tls(build_tls_context(client_certificate))

        assert ask_over_tls(server, client_certificate).status == 200
        with pytest.raises(ssl.SSLCertVerificationError):
            ask_over_tls(server, certificate)


def test_over_tls_held_handshakes_do_not_stop_a_scrape(certificate: TlsFiles) -> None:
    limits = ConnectionLimits(connections=8)
    with serving(tls=build_tls_context(certificate), limits=limits) as server:
        idle = [connect(server) for _ in range(30)]

        assert ask_over_tls(server, certificate).status == 200
        assert [client.recv(1) for client in idle[:22]] == [b""] * 22
        for client in idle:
            client.close()


def test_a_handshake_that_is_not_finished_is_closed_at_the_deadline(certificate: TlsFiles) -> None:
    limits = ConnectionLimits(head_seconds=0.05)
    with serving(tls=build_tls_context(certificate), limits=limits) as server, connect(server) as client:
        client.sendall(b"\x16\x03\x01")

        assert client.recv(1) == b""


def test_a_client_that_speaks_no_tls_is_closed_without_a_word_in_the_log(
    certificate: TlsFiles, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with serving(tls=build_tls_context(certificate)) as server:
        got = ask_raw(server, b"GET /metrics HTTP/1.0\r\n\r\n")
        assert ask_over_tls(server, certificate).status == 200

    assert b"metrics" not in got
    assert caplog.records == []
