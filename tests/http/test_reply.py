from __future__ import annotations

import dataclasses
import json
from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ephmon.http.publication import Publication
from ephmon.http.reply import (
    METRICS_TEXT,
    OPENMETRICS_TEXT,
    Reply,
    ServerState,
    accepts_gzip,
    prefers_openmetrics,
    reply_to,
)
from ephmon.http.request import Request, parse_request
from ephmon.outputs.documents.api import encode, error_document

PUBLICATION = Publication.of(
    expires_at=100.0,
    metrics="metrics",
    openmetrics="openmetrics",
    expired_metrics="expired metrics",
    expired_openmetrics="expired openmetrics",
    pools='{"schema": 1}',
    exhaustions='{"schema": 1, "available": false}',
    page="<p>page</p>",
    expired_page="<p>expired page</p>",
)
LIVE = ServerState(publication=PUBLICATION, live=True, healthy=True)
EXPIRED = dataclasses.replace(LIVE, live=False)
NO_GOOD_POLL = dataclasses.replace(EXPIRED, publication=dataclasses.replace(PUBLICATION, expires_at=None))
STARTING = ServerState(publication=None, live=False, healthy=True)
WEDGED = dataclasses.replace(EXPIRED, healthy=False)

PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    "application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,"
    "text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)

STATES = st.sampled_from([LIVE, EXPIRED, NO_GOOD_POLL, STARTING, WEDGED])


def get(path: str, *, accept: str = "", accept_encoding: str = "") -> Request:
    return Request(
        method="GET",
        path=path,
        host="h",
        authorization="",
        accept=accept,
        accept_encoding=accept_encoding,
        has_body=False,
    )


@pytest.mark.parametrize(
    ("path", "state", "status", "body"),
    [
        ("/metrics", LIVE, 200, b"metrics"),
        ("/metrics", EXPIRED, 200, b"expired metrics"),
        ("/metrics", NO_GOOD_POLL, 200, b"expired metrics"),
        ("/metrics", STARTING, 503, b"ephmon is starting; no poll has ended yet.\n"),
        ("/", LIVE, 200, b"<p>page</p>"),
        ("/", EXPIRED, 200, b"<p>expired page</p>"),
        ("/", STARTING, 503, b"ephmon is starting; no poll has ended yet.\n"),
        ("/api/v1/pools", LIVE, 200, b'{"schema": 1}'),
        ("/api/v1/exhaustions", LIVE, 200, b'{"schema": 1, "available": false}'),
        ("/-/ready", LIVE, 200, b"The data is current.\n"),
        ("/-/ready", EXPIRED, 503, b"The data has expired: no poll has succeeded for three poll intervals.\n"),
        ("/-/ready", NO_GOOD_POLL, 503, b"No poll has succeeded yet.\n"),
        ("/-/ready", STARTING, 503, b"No poll has succeeded yet.\n"),
        ("/-/healthy", STARTING, 200, b"The main loop is running.\n"),
        ("/-/healthy", WEDGED, 503, b"The main loop has not woken up in time.\n"),
        ("/nothing", LIVE, 404, b"There is no such page; / links to all pages.\n"),
        ("/metrics/", LIVE, 404, b"There is no such page; / links to all pages.\n"),
    ],
)
def test_each_route_tells_what_is_true_in_each_state(path: str, state: ServerState, status: int, body: bytes) -> None:
    reply = reply_to(get(path), state)

    assert (status, body) == (reply.status, reply.body)


@pytest.mark.parametrize(
    ("state", "error"),
    [
        (EXPIRED, "The data has expired: no poll has succeeded for three poll intervals."),
        (NO_GOOD_POLL, "No poll has succeeded yet."),
        (STARTING, "No poll has succeeded yet."),
    ],
)
def test_the_pools_are_refused_in_json_while_there_are_no_current_ones(state: ServerState, error: str) -> None:
    reply = reply_to(get("/api/v1/pools", accept_encoding="gzip"), state)

    assert reply.status == HTTPStatus.SERVICE_UNAVAILABLE
    assert reply.content_type == "application/json"
    assert json.loads(reply.body) == {"schema": 1, "error": error}
    assert reply.body == encode(error_document(error))


def test_the_content_types_of_metrics_are_those_that_prometheus_demands() -> None:
    assert METRICS_TEXT == "text/plain; version=0.0.4; charset=utf-8"
    assert OPENMETRICS_TEXT == "application/openmetrics-text; version=1.0.0; charset=utf-8"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "get"])
@pytest.mark.parametrize("path", ["/metrics", "/nothing"])
def test_other_methods_are_refused_with_those_that_are_allowed(method: str, path: str) -> None:
    reply = reply_to(dataclasses.replace(get(path), method=method, has_body=True), LIVE)

    assert reply.status == HTTPStatus.METHOD_NOT_ALLOWED
    assert ("Allow", "GET, HEAD") in reply.headers


def test_a_body_is_refused() -> None:
    assert reply_to(dataclasses.replace(get("/metrics"), has_body=True), LIVE).status == 413


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("application/openmetrics-text", True),
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", True),
        ('application/openmetrics-text; version="1.0.0"', True),
        (PROMETHEUS_2, True),
        (PROMETHEUS_3, True),
        ("text/plain;version=0.0.4;q=0.6, application/openmetrics-text;version=1.0.0;q=0.5", False),
        ("application/openmetrics-text;version=0.0.1", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=much", False),
        ("*/*", False),
        ("text/html,application/xhtml+xml,*/*;q=0.8", False),
        ("", False),
    ],
)
def test_openmetrics_is_sent_to_those_who_ask_for_it(accept: str, expected: bool) -> None:
    reply = reply_to(get("/metrics", accept=accept), LIVE)

    assert prefers_openmetrics(accept) is expected
    assert reply.content_type == (OPENMETRICS_TEXT if expected else METRICS_TEXT)
    assert reply.body == (b"openmetrics" if expected else b"metrics")


def test_expired_data_is_openmetrics_too_for_those_who_ask_for_it() -> None:
    assert reply_to(get("/metrics", accept="application/openmetrics-text"), EXPIRED).body == b"expired openmetrics"


@pytest.mark.parametrize(
    ("accept_encoding", "expected"),
    [
        ("gzip", True),
        ("deflate, gzip;q=0.5, br", True),
        ("GZIP ; Q=1", True),
        ("x-gzip", True),
        ("*", True),
        ("br;q=1, *;q=0.1", True),
        ("gzip;q=0", False),
        ("gzip;q=0.000, *", False),
        ("*;q=0", False),
        ("gzip;q=", False),
        ("identity", False),
        ("", False),
    ],
)
def test_gzip_is_sent_to_those_who_accept_it(accept_encoding: str, expected: bool) -> None:
    assert accepts_gzip(accept_encoding) is expected

    for path, body in (("/metrics", PUBLICATION.metrics), ("/api/v1/pools", PUBLICATION.pools)):
        reply = reply_to(get(path, accept_encoding=accept_encoding), LIVE)
        assert reply.body == (body.gzipped if expected else body.plain)
        assert (("Content-Encoding", "gzip") in reply.headers) is expected


@pytest.mark.parametrize(
    ("path", "vary"), [("/metrics", "Accept, Accept-Encoding"), ("/api/v1/pools", "Accept-Encoding")]
)
@pytest.mark.parametrize("accept_encoding", ["", "gzip"])
def test_caches_learn_what_the_choice_depends_on(path: str, vary: str, accept_encoding: str) -> None:
    assert ("Vary", vary) in reply_to(get(path, accept_encoding=accept_encoding), LIVE).headers


@given(head=st.binary(max_size=200), state=STATES)
def test_whatever_arrives_gets_a_reply(head: bytes, state: ServerState) -> None:
    assert reply_to(parse_request(head), state).status in HTTPStatus


TOKENS = st.text(st.sampled_from("gzipq=;,*/01. openmetrics-textGET:\r\n\t\xff"), max_size=60)


@given(method=TOKENS, target=TOKENS, name=TOKENS, value=TOKENS, state=STATES)
def test_whatever_a_request_says_gets_a_reply(
    method: str, target: str, name: str, value: str, state: ServerState
) -> None:
    head = f"{method} {target} HTTP/1.1\r\nHost: h\r\nAccept: {value}\r\n{name}: {value}\r\n\r\n".encode("latin-1")

    assert reply_to(parse_request(head), state).status in HTTPStatus


@given(accept=st.text(max_size=60), accept_encoding=st.text(max_size=60))
def test_whatever_is_accepted_gets_the_metrics(accept: str, accept_encoding: str) -> None:
    assert reply_to(get("/metrics", accept=accept, accept_encoding=accept_encoding), LIVE).status == HTTPStatus.OK


@pytest.mark.parametrize(
    "reply",
    [
        reply_to(request, state)
        for request in (None, get("/"), get("/metrics"), get("/nothing"), dataclasses.replace(get("/"), method="PUT"))
        for state in (LIVE, STARTING)
    ],
)
def test_every_reply_carries_the_headers_that_protect_its_reader(reply: Reply) -> None:
    lines = reply.head().decode().split("\r\n")

    assert lines[0] == f"HTTP/1.1 {reply.status.value} {reply.status.phrase}"
    assert lines[1].startswith("Date: ")
    assert {
        "X-Content-Type-Options: nosniff",
        "X-Frame-Options: DENY",
        "Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'",
        "Referrer-Policy: no-referrer",
        "Cache-Control: no-store",
        "Connection: close",
        f"Content-Length: {len(reply.body)}",
    } <= set(lines)
    assert lines[-2:] == ["", ""]
    assert not [line for line in lines if line.startswith("Server:")]
