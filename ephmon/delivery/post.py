"""One POST of JSON, and whether the receiver accepted it.

No library does this, because the socket must be bound to a given local port and the status alone must decide. A client
that first reads the whole body gets no result if the body never ends, and would send an alert again that the receiver
has accepted. So the head of the response is read, up to a limit and with one deadline for the whole attempt. Redirects
are reported, proxies of the environment are ignored, and no text of a response is passed on.
"""

from __future__ import annotations

import asyncio
import base64
import os
import re
import ssl
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote_to_bytes, urlsplit

from ephmon import __version__
from ephmon.delivery.source_ports import SourcePortError
from ephmon.facts.addresses import host_and_port
from ephmon.model.status import DeliveryFailure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from ephmon.delivery.name_resolution import KnownAddresses
    from ephmon.delivery.source_ports import SourcePorts

MAX_RETRY_AFTER_SECONDS = 3600.0
"""The longest Retry-After that is obeyed, so that a wrong header does not silence alerts for days."""

_MAX_HEAD_BYTES = 16 * 1024
# Such as 100 Continue and 103 Early Hints, of which a broken server could send any number.
_MAX_INTERIM_RESPONSES = 8
_MAX_BODY_BYTES = 64 * 1024
# Time for the receiver to close the connection first, which leaves the TIME_WAIT on its side and our port free.
_CLOSING_SECONDS = 0.5
_STATUS_LINE = re.compile(rb"HTTP/1\.[0-9] ([1-5][0-9]{2})(?: [^\r\n]*)?\r\n")
_RETRY_AFTER = re.compile(rb"^retry-after:([^\r\n]*)", re.IGNORECASE | re.MULTILINE)
_WHOLE_SECONDS = re.compile(r"[0-9]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """An http or https URL in its parts. As text it is host and port alone, without any secret."""

    host: str
    """A name or an address literal, without brackets."""
    port: int
    is_tls: bool
    path: str = field(repr=False)
    """With the query."""
    authorization: str = field(default="", repr=False)
    """The Authorization header (RFC 7617) for a user and password in the URL; "" for none."""

    def __str__(self) -> str:
        return host_and_port(self.host, self.port)


class PostError(Exception):
    """The receiver has not accepted the POST."""

    def __init__(self, reason: DeliveryFailure, detail: str, *, retry_after_seconds: float = 0.0) -> None:
        """`detail` continues a sentence that begins with the receiver, and contains no secret."""
        super().__init__(detail)
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds
        """How long the receiver asks to wait, at most `MAX_RETRY_AFTER_SECONDS`."""


class _Response(NamedTuple):
    """What is used of a response."""

    status: int
    retry_after: str
    """The value of the Retry-After header, "" without it."""


def parse_target(url: str, path: str = "") -> Target:
    """Split a URL that the configuration has accepted; `path` is appended to the path of the URL."""
    parts = urlsplit(url)
    is_tls = parts.scheme == "https"
    user, at, _ = parts.netloc.rpartition("@")
    user += "" if ":" in user else ":"
    own_path = parts.path.rstrip("/") if path else parts.path
    return Target(
        host=parts.hostname or "",
        port=parts.port or (443 if is_tls else 80),
        is_tls=is_tls,
        path=(own_path + path or "/") + (f"?{parts.query}" if parts.query else ""),
        authorization="Basic " + base64.b64encode(unquote_to_bytes(user)).decode("ascii") if at else "",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Poster:
    """Posts to one target."""

    target: Target
    addresses: KnownAddresses
    ports: SourcePorts
    tls: Callable[[], ssl.SSLContext]
    """Asked for each connection to a target with TLS."""

    async def post(self, body: bytes, *, deadline_seconds: float, now: float) -> None:
        """Post JSON and return when the receiver has accepted it (2xx).

        Args:
            body: The JSON.
            deadline_seconds: For the whole attempt, including name resolution, connection and handshake.
            now: Seconds since the epoch, to which a date in Retry-After is compared.

        Raises:
            PostError: The receiver has not accepted it.
        """
        try:
            async with (
                asyncio.timeout(deadline_seconds) as limit,
                self._connection(deadline_seconds) as (reader, writer),
            ):
                writer.write(_request_head(self.target, len(body)) + body)
                response = await _read_response(reader)
                limit.reschedule(None)  # the result is known, whatever follows
                with suppress(OSError):  # TimeoutError is one
                    async with asyncio.timeout(_CLOSING_SECONDS):
                        await _read_to_the_end(reader)
        except TimeoutError:
            detail = f"did not answer within {deadline_seconds:g} s"
            raise PostError(DeliveryFailure.TIMEOUT, detail) from None
        except (OSError, EOFError) as error:
            raise _failed_connection(error) from error
        except asyncio.LimitOverrunError as error:
            raise _not_http() from error
        _check_status(response, now)

    @asynccontextmanager
    async def _connection(self, seconds: float) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        addresses = await self.addresses.get()
        if not addresses:
            problem = self.addresses.problem
            raise PostError(DeliveryFailure.NAME, "cannot be looked up" + (f": {problem}" if problem else ""))
        # Before there is a socket, which would stay open if this failed.
        tls, host = (self.tls(), self.target.host) if self.target.is_tls else (None, None)
        for left in range(len(addresses), 0, -1):
            address = addresses[-left]
            try:
                # Each address gets an equal part of the time; the last one has what is left of the deadline.
                async with asyncio.timeout(seconds / left if left > 1 else None):
                    sock = await self.ports.connect(address)
                break
            except OSError:  # TimeoutError is one
                if left == 1:
                    raise
        self.addresses.prefer(address)
        reader, writer = await asyncio.open_connection(sock=sock, ssl=tls, server_hostname=host, limit=_MAX_HEAD_BYTES)
        try:
            yield reader, writer
        finally:
            # Not close(), which waits until the receiver has read everything and, with TLS, has sent its close_notify.
            writer.transport.abort()


def _request_head(target: Target, length: int) -> bytes:
    default_port = 443 if target.is_tls else 80
    host = str(target).removesuffix(f":{default_port}") if target.port == default_port else str(target)
    lines = [
        f"POST {target.path} HTTP/1.1",
        f"Host: {host}",
        f"User-Agent: ephmon/{__version__}",
        "Content-Type: application/json",
        f"Content-Length: {length}",
        "Connection: close",
    ]
    lines += [f"Authorization: {target.authorization}"] if target.authorization else []
    return "\r\n".join((*lines, "", "")).encode("ascii")


async def _read_response(reader: asyncio.StreamReader) -> _Response:
    """Read heads until one is final (RFC 9110, section 15.2). Raises PostError if they are not HTTP/1.1."""
    for _ in range(_MAX_INTERIM_RESPONSES):
        head = await reader.readuntil(b"\r\n\r\n")
        status_line = _STATUS_LINE.match(head)
        if status_line is None:
            break
        status = int(status_line[1])
        if status >= 200:
            retry_after = _RETRY_AFTER.search(head)
            return _Response(status, retry_after[1].decode("latin-1") if retry_after else "")
    raise _not_http()


async def _read_to_the_end(reader: asyncio.StreamReader) -> None:
    size = 0
    while size < _MAX_BODY_BYTES and (piece := await reader.read(_MAX_BODY_BYTES)):
        size += len(piece)


def _not_http() -> PostError:
    return PostError(DeliveryFailure.PROTOCOL, "does not speak HTTP/1.1")


def _failed_connection(error: OSError | EOFError) -> PostError:
    if isinstance(error, SourcePortError):
        detail = f"cannot be reached: no port of notify.source_ports is free ({error.strerror})"
        return PostError(DeliveryFailure.SOURCE_PORT, detail)
    if isinstance(error, ssl.SSLCertVerificationError):
        return PostError(DeliveryFailure.TLS, f"has an invalid certificate: {error.verify_message}")
    if isinstance(error, ssl.SSLError):
        return PostError(DeliveryFailure.TLS, f"failed the TLS handshake ({error.reason})")
    if isinstance(error, OSError) and error.errno:
        return PostError(DeliveryFailure.CONNECTION, f"cannot be reached: {os.strerror(error.errno)}")
    return PostError(DeliveryFailure.CONNECTION, "closed the connection without a response")


def _check_status(response: _Response, now: float) -> None:
    """Raise PostError unless the status says that the receiver has accepted the POST."""
    status = response.status
    if 200 <= status < 300:
        return
    if status == 429:
        reason = DeliveryFailure.RATE_LIMITED
    elif status == 408:
        reason = DeliveryFailure.TIMEOUT
    elif 300 <= status < 400:
        reason = DeliveryFailure.REDIRECT
    elif 400 <= status < 500:
        reason = DeliveryFailure.CLIENT_ERROR
    else:
        reason = DeliveryFailure.SERVER_ERROR
    detail = f"answered with status {status}"
    if reason == DeliveryFailure.REDIRECT:
        detail += "; redirects are not followed, so configure the final URL"
    raise PostError(reason, detail, retry_after_seconds=parse_retry_after(response.retry_after, now))


def parse_retry_after(text: str, now: float) -> float:
    """Return how many seconds a Retry-After header asks to wait (RFC 9110, section 10.2.3).

    The result is at most `MAX_RETRY_AFTER_SECONDS`, and 0 if the header is not valid; `now` is seconds since the epoch.
    """
    text = text.strip()
    if _WHOLE_SECONDS.fullmatch(text):
        return MAX_RETRY_AFTER_SECONDS if len(text) > 6 else min(float(text), MAX_RETRY_AFTER_SECONDS)
    try:
        seconds = parsedate_to_datetime(text).timestamp() - now
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_SECONDS)
