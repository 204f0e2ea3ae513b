"""What a client asks for: a request head goes in, a `Request` comes out, without any I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tornado.httputil import HTTPHeaders, HTTPInputError, parse_request_start_line

# A name, or an address literal with IPv6 in brackets, and perhaps a port (RFC 3986, section 3.2). A user before an @ is
# refused, because it exists only to make one host look like another (RFC 9110, section 4.2.4).
_AUTHORITY = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._~-]+))(?::[0-9]*)?")
_ABSOLUTE_FORM = re.compile(r"https?://([^/?#]*)([^?#]*)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The part of a request that is used."""

    method: str
    path: str
    host: str
    """Whom the client wants to reach: a name in lower case or an address without brackets, without the port.

    It is "" if an HTTP/1.0 client does not say.
    """
    authorization: str
    """The value of the Authorization header, "" without it."""
    accept: str
    accept_encoding: str
    has_body: bool


def parse_request(head: bytes) -> Request | None:
    """Return the request in `head` (RFC 9112, sections 3 and 5), or None if it is not a valid one.

    A valid request of HTTP/1.1 has exactly one Host header. If the target is a whole URL, its host counts instead
    (RFC 9112, section 3.2.2).
    """
    start_line, _, header_lines = head.decode("latin-1").partition("\r\n")
    try:
        method, target, version = parse_request_start_line(start_line)
        headers = HTTPHeaders.parse(header_lines)
    except HTTPInputError:
        return None
    host = _host_of_headers(headers, may_lack=version == "HTTP/1.0")
    if host is not None and not target.startswith("/"):
        host, target = _absolute_form(target, host)
    if host is None:
        return None
    return Request(
        method=method,
        path=target.partition("?")[0],
        host=host,
        authorization=headers.get("Authorization", ""),
        accept=headers.get("Accept", ""),
        accept_encoding=headers.get("Accept-Encoding", ""),
        has_body="Transfer-Encoding" in headers or headers.get("Content-Length", "0") != "0",
    )


def normal_name(name: str) -> str:
    """Return the one form of a host name that is compared: in lower case and without the dot of the root."""
    return name.lower().removesuffix(".")


def _host_of_headers(headers: HTTPHeaders, *, may_lack: bool) -> str | None:
    """Return the host, None if there is not exactly one valid one."""
    values = headers.get_list("Host")
    if not values and may_lack:
        return ""
    return _host(values[0]) if len(values) == 1 else None


def _absolute_form(target: str, host: str) -> tuple[str | None, str]:
    """Return host and path of a target that is not a path: a whole URL, or * and the like, which no route has."""
    url = _ABSOLUTE_FORM.fullmatch(target.partition("?")[0])
    if url is None:
        return (None, "") if "://" in target else (host, target)
    return _host(url[1]), url[2] or "/"


def _host(authority: str) -> str | None:
    """Return the host of `HOST` or `HOST:PORT`, None if it is neither."""
    match = _AUTHORITY.fullmatch(authority)
    return None if match is None else normal_name(match[1] or match[2])
