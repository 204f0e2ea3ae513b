"""The HTTP side as its clients see it, over real connections on loopback."""

from __future__ import annotations

import gzip
import http.client
import json
import logging
import re
import socket
import ssl
import subprocess
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import pytest

from ephmon.http.access import AccessRules
from ephmon.http.guard import ConnectionLimits
from ephmon.http.publication import Publication
from ephmon.http.server import HttpServer, ListenError, open_listener
from ephmon.http.tls import RenewedTls, TlsFiles
from ephmon.http.wrong_tokens import GUESSES_OF_CLIENT
from ephmon.model.status import RequestRefusal
from tests.certificates import make_certificate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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
    tls: TlsFiles | None = None,
    access: AccessRules | None = None,
    limits: ConnectionLimits | None = None,
) -> Iterator[HttpServer]:
    clock = clock or Clock()
    renewed = None if tls is None else RenewedTls(tls, monotonic=clock)
    server = HttpServer((host, port), monotonic=clock, tls=renewed, access=access, limits=limits)
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


def curl(server: HttpServer, path: str, *options: str) -> str:
    """Return what curl gets, and on a line of its own the status."""
    command = ["curl", "--silent", "--max-time", "10", "--write-out", r"\n%{http_code}", *options]
    done = subprocess.run([*command, f"http://{LOOPBACK}:{server.port}{path}"], capture_output=True, check=True)
    return done.stdout.decode()


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
        got = ask_raw(
            server, f"{method} /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nbody".encode()
        )

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
        got = ask_raw(server, b"GET /-/ready HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n" * 2)

    assert got.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(
    "head",
    [
        b"GET /<marker> HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"<marker> / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / <marker>\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n<marker>\r\n\r\n",
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
        got = ask_raw(server, b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Padding: " + b"x" * 16384 + b"\r\n\r\n")

    assert got == b""


# --- who gets an answer -------------------------------------------------------------------------------------------

PATHS = ("/", "/metrics", "/api/v1/pools", "/api/v1/exhaustions", "/-/healthy", "/-/ready", "/nothing")
TOKEN = "correct-horse-battery"


@pytest.mark.parametrize("path", PATHS)
def test_a_page_whose_name_was_pointed_at_loopback_gets_421_on_every_path(path: str) -> None:
    """DNS rebinding: the browser of a user of this host connects to 127.0.0.1 and names the page of the attacker."""
    with serving() as server:
        name = ("--header", f"Host: evil.example:{server.port}")
        got, head, posted = (curl(server, path, *name, *more) for more in ((), ("--head",), ("--data", "x")))
        absolute = ask_raw(
            server, f"GET http://evil.example{path} HTTP/1.1\r\nHost: {LOOPBACK}:{server.port}\r\n\r\n".encode()
        )

    assert got == (
        "ephmon does not know this host name; add it to http.hosts in its configuration, or use an IP address.\n\n421"
    )
    assert head.endswith("\n421")
    assert posted.endswith("\n421")
    assert absolute.startswith(b"HTTP/1.1 421 Misdirected Request\r\n")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:19100", "[::1]:19100", "10.9.8.7", "localhost", "LOCALHOST."])
def test_addresses_and_localhost_are_answered_on_every_path(path: str, host: str) -> None:
    with serving() as server:
        assert curl(server, path, "--header", f"Host: {host}").endswith("\n404" if path == "/nothing" else "\n200")


def test_the_name_of_this_host_is_answered() -> None:
    with serving() as server:
        assert curl(server, "/metrics", "--header", f"Host: {socket.gethostname()}:19100").endswith("\n200")


@pytest.mark.parametrize("hosts", [b"", b"Host: localhost\r\nHost: localhost\r\n", b"Host: localhost\r\nHost: b\r\n"])
def test_a_request_without_a_host_or_with_two_is_no_request(hosts: bytes) -> None:
    with serving() as server:
        assert ask_raw(server, b"GET /metrics HTTP/1.1\r\n" + hosts + b"\r\n").startswith(
            b"HTTP/1.1 400 Bad Request\r\n"
        )


def test_names_of_the_configuration_are_answered_until_it_changes() -> None:
    name = ("--header", "Host: mon.example.net")
    with serving(access=AccessRules(hosts=("*.example.net",))) as server:
        assert curl(server, "/metrics", *name).endswith("\n200")
        server.use(None, AccessRules())

        assert curl(server, "/metrics", *name).endswith("\n421")


def test_the_token_opens_what_is_closed_without_it() -> None:
    with serving(access=AccessRules(token=TOKEN)) as server:
        closed = [curl(server, path)[-3:] for path in PATHS]
        bearer = curl(server, "/metrics", "--oauth2-bearer", TOKEN)
        password = curl(server, "/metrics", "--user", f"anybody:{TOKEN}")
        wrong = curl(server, "/metrics", "--user", f"{TOKEN}:wrong")

    assert closed == ["401", "401", "401", "401", "200", "200", "401"]
    assert bearer == password == "live metrics\n\n200"
    assert wrong.endswith("\n401")


def test_a_browser_is_asked_for_the_password() -> None:
    with serving(access=AccessRules(token=TOKEN)) as server:
        got = ask(server, "/")

    assert got.status == 401
    assert got.headers.get_all("WWW-Authenticate") == [
        'Basic realm="ephmon", charset="UTF-8"',
        'Bearer realm="ephmon"',
    ]


def test_guessing_ends_in_429_for_that_address_alone_and_is_counted_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with serving(access=AccessRules(token=TOKEN)) as server:
        wrong = [ask(server, "/metrics", Authorization="Bearer guess") for _ in range(GUESSES_OF_CLIENT + 2)]
        right = ask(server, "/metrics", Authorization=f"Bearer {TOKEN}")
        elsewhere = curl(server, "/metrics", "--interface", "127.0.0.2", "--oauth2-bearer", TOKEN)
        status = server.status()

    assert [answer.status for answer in wrong] == [401] * GUESSES_OF_CLIENT + [429] * 2
    assert (right.status, right.headers["Retry-After"]) == (429, "10")
    assert elsewhere.endswith("\n200")
    assert status.refused[RequestRefusal.WRONG_TOKEN] == GUESSES_OF_CLIENT
    assert status.refused[RequestRefusal.RATE_LIMITED] == 3
    assert caplog.messages == [
        "HTTP: a request showed a wrong token: from 127.0.0.1 (1 since the last such line)",
        "HTTP: a request came after too many wrong tokens: from 127.0.0.1 (1 since the last such line)",
    ]
    assert "guess" not in caplog.text


def test_a_name_that_is_refused_is_logged_without_repeating_it(caplog: pytest.LogCaptureFixture) -> None:
    with serving() as server:
        for _ in range(3):
            curl(server, "/metrics", "--header", "Host: evil.example")

    [message] = caplog.messages
    assert message == (
        "HTTP: a request named an unknown host; if it is a name of this host, add it to http.hosts: from 127.0.0.1"
        " (1 since the last such line)"
    )


# --- old data -----------------------------------------------------------------------------------------------------


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
        assert ask_raw(server, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n") == b""


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
    with serving(tls=certificate) as server:
        server.publish(publication(metrics="x" * 300_000))
        got = ask_over_tls(server, certificate)

    assert (got.status, got.body) == (200, b"x" * 300_000)


def test_over_tls_a_client_may_be_asked_for_a_certificate(certificate: TlsFiles, client_certificate: TlsFiles) -> None:
    files = TlsFiles(certificate=certificate.certificate, key=certificate.key, client_ca=client_certificate.certificate)
    with serving(tls=files) as server:
        assert ask_over_tls(server, certificate, client_certificate).status == 200
        # In TLS 1.3 the client may have sent its request before it learns that it was refused.
        with pytest.raises((ssl.SSLError, ConnectionError)):
            ask_over_tls(server, certificate)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            ask_over_tls(server, certificate, certificate)


def test_new_connections_use_the_new_certificate(certificate: TlsFiles, client_certificate: TlsFiles) -> None:
    with serving(tls=certificate) as server:
        server.use(RenewedTls(client_certificate, monotonic=Clock()), AccessRules())

        assert ask_over_tls(server, client_certificate).status == 200
        with pytest.raises(ssl.SSLCertVerificationError):
            ask_over_tls(server, certificate)


def test_a_certificate_that_is_renewed_is_shown_to_the_next_client(tmp_path: Path) -> None:
    files = make_certificate(tmp_path, "server")
    with serving(tls=files) as server:
        before = ask_over_tls(server, files)
        expires_before = server.status().certificate_expires_at
        make_certificate(tmp_path, "server", days=2)

        assert (before.status, ask_over_tls(server, files).status) == (200, 200)
        assert expires_before is not None
        assert (server.status().certificate_expires_at or 0.0) > expires_before + 80_000


def test_a_renewed_authority_of_clients_counts_for_the_next_client(
    tmp_path: Path, certificate: TlsFiles, client_certificate: TlsFiles
) -> None:
    authority = tmp_path / "clients.pem"
    authority.write_bytes(certificate.certificate.read_bytes())
    files = TlsFiles(certificate=certificate.certificate, key=certificate.key, client_ca=authority)
    with serving(tls=files) as server:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            ask_over_tls(server, certificate, client_certificate)
        authority.write_bytes(client_certificate.certificate.read_bytes())

        assert ask_over_tls(server, certificate, client_certificate).status == 200
        with pytest.raises((ssl.SSLError, ConnectionError)):
            ask_over_tls(server, certificate, certificate)


def test_over_tls_held_handshakes_do_not_stop_a_scrape(certificate: TlsFiles) -> None:
    limits = ConnectionLimits(connections=8)
    with serving(tls=certificate, limits=limits) as server:
        idle = [connect(server) for _ in range(30)]

        assert ask_over_tls(server, certificate).status == 200
        assert [client.recv(1) for client in idle[:22]] == [b""] * 22
        for client in idle:
            client.close()


def test_a_handshake_that_is_not_finished_is_closed_at_the_deadline(certificate: TlsFiles) -> None:
    limits = ConnectionLimits(head_seconds=0.05)
    with serving(tls=certificate, limits=limits) as server, connect(server) as client:
        client.sendall(b"\x16\x03\x01")

        assert client.recv(1) == b""


def test_a_client_that_speaks_no_tls_is_closed_without_a_word_in_the_log(
    certificate: TlsFiles, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with serving(tls=certificate) as server:
        got = ask_raw(server, b"GET /metrics HTTP/1.0\r\n\r\n")
        assert ask_over_tls(server, certificate).status == 200

    assert b"metrics" not in got
    assert caplog.records == []
