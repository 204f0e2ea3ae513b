"""The HTTP server: one thread that sends what was published at the last poll.

The main thread hands over publications and heartbeats, and nothing else is shared. The server does not read the kernel.
It renders a body of a publication when that is first asked for. At each request it decides whether the data has expired
and whether the main loop still wakes up, so that a daemon that hangs is not mistaken for a live one.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from typing import TYPE_CHECKING

from ephmon.errors import EphmonError
from ephmon.facts.addresses import host_and_port
from ephmon.http.access import AccessControl, AccessRules, reply_to_refused
from ephmon.http.guard import Connection, ConnectionGuard, ConnectionLimits, RateLimitedWarning
from ephmon.http.reply import ServerState, reply_to
from ephmon.http.request import parse_request
from ephmon.model.status import HttpStatus, RequestRefusal
from ephmon.supervision.loop_thread import LoopThread

if TYPE_CHECKING:
    import asyncio
    import ssl
    from collections.abc import Callable

    from ephmon.http.publication import Publication
    from ephmon.http.reply import Reply
    from ephmon.http.request import Request
    from ephmon.http.tls import RenewedTls

# So many clients wait in the kernel while the interpreter is busy with a poll; they cost no descriptor. The kernel cuts
# it to net.core.somaxconn (man 2 listen).
_BACKLOG = 1024
_STOP_SECONDS = 5.0
_REFUSALS_LOGGED = {
    RequestRefusal.HOST: "HTTP: a request named an unknown host; if it is a name of this host, add it to http.hosts",
    RequestRefusal.WRONG_TOKEN: "HTTP: a request showed a wrong token",
    RequestRefusal.RATE_LIMITED: "HTTP: a request came after too many wrong tokens",
}
"""What is warned of. A request without a token is none: a browser sends one before it asks for the password."""

LOGGER = logging.getLogger(__name__)


class ListenError(EphmonError):
    """The server cannot listen on the address."""


class HttpServer:
    """Serves one address from a thread of its own, which `start` starts and `stop` ends.

    `publish`, `beat`, `use` and `status` may be called from any thread, at any time.
    """

    def __init__(
        self,
        address: tuple[str, int],
        *,
        monotonic: Callable[[], float],
        heartbeat_timeout_seconds: float = 30.0,
        tls: RenewedTls | None = None,
        access: AccessRules | None = None,
        limits: ConnectionLimits | None = None,
    ) -> None:
        """`address` is an IP literal and a port, 0 for any; `monotonic` is the clock of `Publication.expires_at`."""
        self._address = address
        self.port = address[1]
        """The port of the listening socket; before `start`, the port of `address`."""
        self._monotonic = monotonic
        self._heartbeat_timeout_seconds = heartbeat_timeout_seconds
        self._tls = tls
        self._access = AccessControl(access or AccessRules(), monotonic=monotonic)
        self._limits = limits or ConnectionLimits()
        self._publication: Publication | None = None
        self._beaten_at = monotonic()
        self._listener: socket.socket | None = None
        self._defects = RateLimitedWarning("HTTP: a defect in ephmon ended a request; please report it")
        self._refusals = {reason: RateLimitedWarning(message) for reason, message in _REFUSALS_LOGGED.items()}
        self.thread = LoopThread("http", self._serve_until, report_defect=self._defects.count, clock=monotonic)

    def start(self) -> None:
        """Listen, then serve in the background.

        Raises:
            ListenError: The server cannot listen; one sentence that says why and what to do.
            ThreadError: There is no thread or no descriptor for it.
        """
        self._listener, self.port = open_listener(self._address)
        # Tornado logs a line that contains text of the client for each failed handshake.
        logging.getLogger("tornado").setLevel(logging.CRITICAL)
        self.beat()
        self.thread.start()

    def stop(self) -> None:
        """Close everything and end the thread, within five seconds; do nothing if the server does not run."""
        if not self.thread.stop(_STOP_SECONDS):
            LOGGER.warning("HTTP: the thread did not end within %g s and was abandoned", _STOP_SECONDS)
        elif self._listener is not None:
            self._listener.close()

    def publish(self, publication: Publication) -> None:
        """Send this publication from the next request on."""
        self._publication = publication

    def beat(self) -> None:
        """Note that the main loop has woken up."""
        self._beaten_at = self._monotonic()

    def use(self, tls: RenewedTls | None, access: AccessRules) -> None:
        """Use this TLS for new connections, and these rules for new requests; open connections keep their TLS."""
        self._tls = tls
        self._access.use(access)

    def status(self) -> HttpStatus:
        """Return what was refused since the start, and until when the certificate is valid."""
        tls = self._tls
        return HttpStatus(
            refused=dict(self._access.refused), certificate_expires_at=None if tls is None else tls.expires_at
        )

    async def _serve_until(self, stopping: asyncio.Event) -> None:
        # The listener stays open while the thread is started again, so that clients wait and are not refused.
        assert self._listener is not None
        guard = ConnectionGuard(self._listener, self._answer, limits=self._limits, tls=self._tls_context)
        guard.start()
        await stopping.wait()
        await guard.stop()

    def _tls_context(self) -> ssl.SSLContext | None:
        tls = self._tls
        return None if tls is None else tls.context()

    async def _answer(self, connection: Connection) -> None:
        request = parse_request(await connection.read_head())
        reply = self._refusal(request, connection.client) or reply_to(request, self._state())
        without_body = request is not None and request.method == "HEAD"
        await connection.send(reply.head(), b"" if without_body else reply.body)

    def _refusal(self, request: Request | None, client: str) -> Reply | None:
        reason = None if request is None else self._access.refusal(request, client)
        if reason is None:
            return None
        if reason in self._refusals:
            self._refusals[reason].count(f"from {client}")
        return reply_to_refused(reason)

    def _state(self) -> ServerState:
        now = self._monotonic()
        publication = self._publication
        return ServerState(
            publication=publication,
            live=publication is not None and publication.is_live(now),
            healthy=now - self._beaten_at <= self._heartbeat_timeout_seconds,
        )


def open_listener(address: tuple[str, int]) -> tuple[socket.socket, int]:
    """Return a non-blocking socket that listens on `address`, an IP literal and a port, and its port.

    An IPv6 wildcard address accepts IPv4 too, unless net.ipv6.bindv6only is set (man 7 ipv6).

    Raises:
        ListenError: One sentence that says why the server cannot listen, and what to do.
    """
    host, port = address
    try:
        flags = socket.AI_NUMERICHOST | socket.AI_PASSIVE
        family, kind, protocol, _, resolved = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)[0]
    except socket.gaierror as error:
        raise ListenError(f"Cannot listen on {host}: it is not an IP address; names are not looked up.") from error
    listener = None
    try:
        listener = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(resolved)
        listener.listen(_BACKLOG)
        bound_to: int = listener.getsockname()[1]
    except OSError as error:
        if listener is not None:
            listener.close()
        raise ListenError(_listen_problem(host, port, error)) from error
    return listener, bound_to


def _listen_problem(host: str, port: int, error: OSError) -> str:
    written = host_and_port(host, port)
    reason = {
        errno.EADDRINUSE: (
            f"the port is in use; stop the program that `ss -tanp 'sport = :{port}'` shows, or choose another port"
        ),
        errno.EADDRNOTAVAIL: "this host does not have that address; choose one that `ip address` lists",
        errno.EACCES: "ports below net.ipv4.ip_unprivileged_port_start need CAP_NET_BIND_SERVICE; choose a higher one",
        errno.EAFNOSUPPORT: "this kernel does not support its address family; choose an address of the other family",
    }.get(error.errno or 0, os.strerror(error.errno or 0))
    return f"Cannot listen on {written}: {reason}."
