"""HTTP: what clients send to the server, and what receivers of alerts answer."""

from __future__ import annotations

import asyncio
import re
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from ephmon.delivery.post import (
    _MAX_HEAD_BYTES,
    MAX_RETRY_AFTER_SECONDS,
    PostError,
    _check_status,
    _failed_connection,
    _not_http,
    _read_response,
    parse_retry_after,
)
from ephmon.http.access import OPEN_PATHS, AccessControl, AccessRules, reply_to_refused, shown_token
from ephmon.http.host_names import OwnNames, is_address
from ephmon.http.publication import Publication
from ephmon.http.reply import ServerState, reply_to
from ephmon.http.request import parse_request
from tests.fuzz.target import Target, check_message

if TYPE_CHECKING:
    from ephmon.delivery.post import _Response
    from ephmon.http.request import Request

_PUBLICATION = Publication.of(
    expires_at=1.0,
    metrics="metrics\n",
    openmetrics="openmetrics\n",
    expired_metrics="expired metrics\n",
    expired_openmetrics="expired openmetrics\n",
    pools="{}",
    exhaustions="{}",
    page="<p>page",
    expired_page="<p>expired",
)
_STATES = tuple(
    ServerState(publication=publication, live=live, healthy=healthy)
    for publication, live, healthy in product((_PUBLICATION, None), (True, False), (True, False))
    if publication or not live
)
_DATE = re.compile(rb"\r\nDate: [^\r]*")
_KNOWN: set[tuple[bytes, bytes]] = set()
"""Heads without their date, and bodies, of all replies there are."""
TOKEN, HOST = "0123456789abcdef", "web1.example.net"
_OWN_NAMES = OwnNames(Path("/dev/null"), lambda: "web1")
_END = b"\r\n\r\n"
_NOW = 1_700_000_000.0


def check_http_head(data: bytes) -> None:
    """Answer a request: with one of the few replies there are, so with no word of the client's."""
    head, end, _ = data.partition(_END)
    request = parse_request(head + end)
    if request is not None:
        _check_access(request)
    for state in _STATES:
        reply = reply_to(request, state)
        shown = (_DATE.sub(b"", reply.head(), count=1), reply.body)
        assert shown in _replies(), shown


def _check_access(request: Request) -> None:
    """Nobody gets in under a name that is not this host's, nor without the token."""
    shown = shown_token(request.authorization)
    for token in ("", TOKEN):
        rules = AccessRules(hosts=(HOST,), token=token)
        refusal = AccessControl(rules, monotonic=lambda: 0.0, own_names=_OWN_NAMES).refusal(request, "192.0.2.1")
        if refusal is None:
            assert request.host in ("", HOST, "localhost", "web1") or is_address(request.host)
            assert token == "" or request.path in OPEN_PATHS or shown == TOKEN.encode()
        else:
            assert reply_to_refused(refusal).head()


def _replies() -> set[tuple[bytes, bytes]]:
    if not _KNOWN:
        paths = ("/", "/metrics", "/api/v1/pools", "/api/v1/exhaustions", "/-/healthy", "/-/ready", "/other")
        accepted = ("", "Accept: application/openmetrics-text\r\n")
        others = ("", "Accept-Encoding: gzip\r\n", "Content-Length: 1\r\n")
        heads = [
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{accept}{other}\r\n".encode()
            for method, path, accept, other in product(("GET", "POST"), paths, accepted, others)
        ]
        for head, state in product([_END, *heads], _STATES):
            reply = reply_to(parse_request(head), state)
            _KNOWN.add((_DATE.sub(b"", reply.head(), count=1), reply.body))
    return _KNOWN


def check_webhook_answer(data: bytes) -> None:
    """Read what a receiver answers: it took the alert only if it says so, and an error has none of its words."""
    try:
        response = _response(data)
    except PostError as error:
        _check_refusal(error, r"does not speak HTTP/1\.1|closed the connection without a response")
        return
    assert b" %d" % response.status in data
    try:
        _check_status(response, _NOW)
    except PostError as error:
        _check_refusal(error, r"answered with status [1-5][0-9][0-9](; redirects are [a-zA-Z ,]+)?")
        assert not 200 <= response.status < 300
    else:
        assert 200 <= response.status < 300
    assert 0 <= parse_retry_after(data.decode("latin-1"), _NOW) <= MAX_RETRY_AFTER_SECONDS


def _check_refusal(error: PostError, pattern: str) -> None:
    check_message(str(error))
    assert re.fullmatch(pattern, str(error))
    assert 0 <= error.retry_after_seconds <= MAX_RETRY_AFTER_SECONDS


def _response(data: bytes) -> _Response:
    """Return the response in what a receiver sent before it closed the connection. Nothing has to be waited for."""
    reader = asyncio.StreamReader(limit=_MAX_HEAD_BYTES, loop=_LOOP)
    reader.feed_data(data)
    reader.feed_eof()
    reading = _read_response(reader)
    try:
        reading.send(None)
    except StopIteration as result:
        response: _Response = result.value
        return response
    except EOFError as error:
        raise _failed_connection(error) from error
    except asyncio.LimitOverrunError as error:
        raise _not_http() from error
    raise AssertionError("it waits for more than there is")


_LOOP = asyncio.new_event_loop()
_LOOP.close()

TARGETS = (
    Target(
        name="http_head",
        parsers=("http.request.parse_request", "http.access", "http.reply.reply_to"),
        check=check_http_head,
        max_bytes=16 * 1024,
        executions=1_500,
    ),
    Target(
        name="webhook_answer",
        parsers=("delivery.post._read_response", "delivery.post.parse_retry_after"),
        check=check_webhook_answer,
        max_bytes=4096,
        executions=10_000,
    ),
)
