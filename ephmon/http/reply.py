"""What the HTTP server replies: a request goes in, a reply comes out, without any I/O.

No text of a client appears in a reply. A request can only choose one of a few bodies.
"""

from __future__ import annotations

from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from types import MappingProxyType
from typing import TYPE_CHECKING

from ephmon.outputs.documents import api

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ephmon.http.publication import Body, Publication
    from ephmon.http.request import Request

TEXT = "text/plain; charset=utf-8"
METRICS_TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS_TEXT = "application/openmetrics-text; version=1.0.0; charset=utf-8"
HTML = "text/html; charset=utf-8"
JSON = "application/json"

_ALLOWED_METHODS = ("GET", "HEAD")
# The page is one file without scripts, and everything else is text. So a browser needs to load nothing else, and no
# other page needs to show ephmon in a frame.
_COMMON_HEADERS = (
    ("Cache-Control", "no-store"),
    ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Connection", "close"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerState:
    """What the server knows from the daemon at the moment of a request."""

    publication: Publication | None
    """None before the first publication."""
    live: bool
    """Whether the data of the publication has not expired."""
    healthy: bool
    """Whether the main loop has woken up in time."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A status, the headers that not every reply has, and a body."""

    status: HTTPStatus
    content_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()

    def head(self) -> bytes:
        """Return the status line and all headers, including the empty line at the end (RFC 9112, section 2.1)."""
        lines = [f"HTTP/1.1 {self.status.value} {self.status.phrase}", f"Date: {formatdate(usegmt=True)}"]
        lines += [f"{name}: {value}" for name, value in (*_COMMON_HEADERS, *self.headers)]
        lines += [f"Content-Type: {self.content_type}", f"Content-Length: {len(self.body)}", "", ""]
        return "\r\n".join(lines).encode("ascii")


BAD_REQUEST = Reply(HTTPStatus.BAD_REQUEST, TEXT, b"This is not an HTTP/1.1 request.\n")
BODY_REFUSED = Reply(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, TEXT, b"Request bodies are not accepted.\n")
NOT_FOUND = Reply(HTTPStatus.NOT_FOUND, TEXT, b"There is no such page; / links to all pages.\n")
NOT_ALLOWED = Reply(
    HTTPStatus.METHOD_NOT_ALLOWED, TEXT, b"Only GET and HEAD are allowed.\n", (("Allow", ", ".join(_ALLOWED_METHODS)),)
)
STARTING = Reply(HTTPStatus.SERVICE_UNAVAILABLE, TEXT, b"ephmon is starting; no poll has ended yet.\n")

_NO_POLL_YET = "No poll has succeeded yet."
_EXPIRED = "The data has expired: no poll has succeeded for three poll intervals."


def reply_to(request: Request | None, state: ServerState) -> Reply:
    """Choose the reply; for HEAD the caller leaves out the body."""
    if request is None:
        return BAD_REQUEST
    if request.method not in _ALLOWED_METHODS:
        return NOT_ALLOWED
    if request.has_body:
        return BODY_REFUSED
    route = _ROUTES.get(request.path)
    return NOT_FOUND if route is None else route(request, state)


def _healthy(_request: Request, state: ServerState) -> Reply:
    if state.healthy:
        return Reply(HTTPStatus.OK, TEXT, b"The main loop is running.\n")
    return Reply(HTTPStatus.SERVICE_UNAVAILABLE, TEXT, b"The main loop has not woken up in time.\n")


def _ready(_request: Request, state: ServerState) -> Reply:
    if state.live:
        return Reply(HTTPStatus.OK, TEXT, b"The data is current.\n")
    return Reply(HTTPStatus.SERVICE_UNAVAILABLE, TEXT, f"{_reason_not_live(state)}\n".encode())


def _metrics(request: Request, state: ServerState) -> Reply:
    published = state.publication
    if published is None:
        return STARTING
    if prefers_openmetrics(request.accept):
        body = published.openmetrics if state.live else published.expired_openmetrics
        return _encoded(body, OPENMETRICS_TEXT, request, vary="Accept, Accept-Encoding")
    body = published.metrics if state.live else published.expired_metrics
    return _encoded(body, METRICS_TEXT, request, vary="Accept, Accept-Encoding")


def _pools(request: Request, state: ServerState) -> Reply:
    return _document(request, state, lambda published: published.pools)


def _exhaustions(request: Request, state: ServerState) -> Reply:
    return _document(request, state, lambda published: published.exhaustions)


def _document(request: Request, state: ServerState, choose: Callable[[Publication], Body]) -> Reply:
    if state.publication is None or not state.live:
        error = api.encode(api.error_document(_reason_not_live(state)))
        return Reply(HTTPStatus.SERVICE_UNAVAILABLE, JSON, error, (("Vary", "Accept-Encoding"),))
    return _encoded(choose(state.publication), JSON, request, vary="Accept-Encoding")


def _page(_request: Request, state: ServerState) -> Reply:
    published = state.publication
    if published is None:
        return STARTING
    return Reply(HTTPStatus.OK, HTML, (published.page if state.live else published.expired_page).plain)


def _reason_not_live(state: ServerState) -> str:
    if state.publication is None or state.publication.expires_at is None:
        return _NO_POLL_YET
    return _EXPIRED


def _encoded(body: Body, content_type: str, request: Request, *, vary: str) -> Reply:
    if accepts_gzip(request.accept_encoding):
        headers = (("Vary", vary), ("Content-Encoding", "gzip"))
        return Reply(HTTPStatus.OK, content_type, body.gzipped, headers)
    return Reply(HTTPStatus.OK, content_type, body.plain, (("Vary", vary),))


_ROUTES: Mapping[str, Callable[[Request, ServerState], Reply]] = MappingProxyType(
    {
        "/": _page,
        "/metrics": _metrics,
        "/api/v1/pools": _pools,
        "/api/v1/exhaustions": _exhaustions,
        "/-/healthy": _healthy,
        "/-/ready": _ready,
    }
)


def prefers_openmetrics(accept: str) -> bool:
    """Return whether OpenMetrics 1.0.0 is accepted, with at least the weight of the text format (RFC 9110, 12.5.1)."""
    openmetrics = text = 0.0
    for media_type, parameters in _elements(accept):
        if media_type == "application/openmetrics-text" and parameters.get("version", "1.0.0") == "1.0.0":
            openmetrics = max(openmetrics, _weight(parameters))
        elif media_type == "text/plain" and parameters.get("version", "0.0.4") == "0.0.4":
            text = max(text, _weight(parameters))
    return openmetrics > 0 and openmetrics >= text


def accepts_gzip(accept_encoding: str) -> bool:
    """Return whether gzip is accepted, by name or else by `*` (RFC 9110, 12.5.3)."""
    weights = {coding: _weight(parameters) for coding, parameters in _elements(accept_encoding)}
    return weights.get("gzip", weights.get("x-gzip", weights.get("*", 0.0))) > 0


def _elements(header: str) -> list[tuple[str, dict[str, str]]]:
    """Return the elements of an Accept header, each with its parameters, in lower case."""
    elements = []
    for element in header.lower().split(","):
        value, *parameters = (part.strip() for part in element.split(";"))
        pairs = (parameter.partition("=") for parameter in parameters)
        elements.append((value, {name.strip(): setting.strip(' "') for name, _, setting in pairs}))
    return elements


def _weight(parameters: dict[str, str]) -> float:
    """Return the q value (RFC 9110, 12.4.2): 1 if it is missing, 0 if it is not a number."""
    try:
        return float(parameters.get("q", "1"))
    except ValueError:
        return 0.0
