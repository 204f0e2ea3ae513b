"""The HTTP side: one thread that sends what was published at the last poll.

Comes in: publications and heartbeats, from the main thread. Goes out: replies. It shares nothing else with the rest of
the daemon, reads no kernel state and renders nothing; what it decides by itself, at each request, is whether the data
has expired and whether the main loop still wakes, so that a wedged daemon cannot be taken for a live one.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ephmon import log
from ephmon.errors import EphmonError
from ephmon.http.guard import Connection, ConnectionGuard, ConnectionLimits, PacedWarning
from ephmon.http.reply import ServerState, parse_request, reply_to

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from ephmon.http.publication import Publication

# The kernel holds this many clients while the interpreter is busy with a poll; they cost no descriptor.
_BACKLOG = 1024
_STOP_SECONDS = 5.0

LOGGER = logging.getLogger(__name__)


class ListenError(EphmonError):
    """The address cannot be listened on."""


@dataclass(frozen=True, slots=True)
class _Running:
    loop: asyncio.AbstractEventLoop
    stopping: asyncio.Event
    thread: threading.Thread


class HttpServer:
    """Serves one address from a thread of its own, started by `start` and ended by `stop`.

    `publish`, `beat` and `use_tls` may be called from any thread, at any time.
    """

    def __init__(
        self,
        address: tuple[str, int],
        *,
        monotonic: Callable[[], float],
        heartbeat_timeout_seconds: float = 30.0,
        tls: ssl.SSLContext | None = None,
        limits: ConnectionLimits | None = None,
    ) -> None:
        """`address` is an IP literal and a port, 0 for any; `monotonic` is the clock of `Publication.expires_at`."""
        self._address = address
        self.port = address[1]
        """The port that is listened on; before `start`, the one asked for."""
        self._monotonic = monotonic
        self._heartbeat_timeout_seconds = heartbeat_timeout_seconds
        self._tls = tls
        self._limits = limits or ConnectionLimits()
        self._publication: Publication | None = None
        self._beaten_at = monotonic()
        self._running: _Running | None = None
        self._defects = PacedWarning("HTTP: a request ended in a defect of ephmon, please report it")

    def start(self) -> None:
        """Listen, then serve in the background.

        Raises:
            ListenError: the address cannot be listened on; one sentence that says why and what to do.
        """
        listener = open_listener(self._address)
        self.port = listener.getsockname()[1]
        # Tornado logs a line, with words of the client in it, for each handshake that fails.
        logging.getLogger("tornado").setLevel(logging.CRITICAL)
        self.beat()
        loop, stopping = asyncio.new_event_loop(), asyncio.Event()
        thread = threading.Thread(target=self._run, args=(loop, stopping, listener), name="http", daemon=True)
        self._running = _Running(loop, stopping, thread)
        thread.start()

    def stop(self) -> None:
        """Close everything and end the thread, within five seconds; does nothing when it is not running."""
        running, self._running = self._running, None
        if running is None:
            return
        if running.thread.is_alive():
            running.loop.call_soon_threadsafe(running.stopping.set)
        running.thread.join(_STOP_SECONDS)
        if running.thread.is_alive():
            LOGGER.warning("HTTP: the thread has not ended within %g s and is left behind", _STOP_SECONDS)

    def publish(self, publication: Publication) -> None:
        """Send this from the next request on."""
        self._publication = publication

    def beat(self) -> None:
        """Note that the main loop woke."""
        self._beaten_at = self._monotonic()

    def use_tls(self, context: ssl.SSLContext | None) -> None:
        """Use this context for connections accepted from now on; those that are open keep theirs."""
        self._tls = context

    def _run(self, loop: asyncio.AbstractEventLoop, stopping: asyncio.Event, listener: socket.socket) -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(self._serve_until(stopping, listener))

    async def _serve_until(self, stopping: asyncio.Event, listener: socket.socket) -> None:
        asyncio.get_running_loop().set_exception_handler(self._report_defect)
        guard = ConnectionGuard(listener, self._answer, limits=self._limits, tls=lambda: self._tls)
        guard.start()
        await stopping.wait()
        await guard.stop()
        listener.close()

    async def _answer(self, connection: Connection) -> None:
        request = parse_request(await connection.read_head())
        reply = reply_to(request, self._state())
        without_body = request is not None and request.method == "HEAD"
        await connection.send(reply.head(), b"" if without_body else reply.body)

    def _state(self) -> ServerState:
        now = self._monotonic()
        publication = self._publication
        return ServerState(
            publication=publication,
            live=publication is not None and publication.is_live(now),
            healthy=now - self._beaten_at <= self._heartbeat_timeout_seconds,
        )

    def _report_defect(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log what escaped from a connection: where it came from, not what it says, which may be the client's words."""
        error = context.get("exception")
        if isinstance(error, OSError):
            return  # the network's, which Tornado raises once more after it has closed the connection
        self._defects.count(log.place(error))


def open_listener(address: tuple[str, int]) -> socket.socket:
    """A non-blocking socket that listens on `address`, an IP literal and a port.

    An IPv6 wildcard listens on IPv4 too unless net.ipv6.bindv6only says otherwise (man 7 ipv6).

    Raises:
        ListenError: one sentence that says why not and what to do.
    """
    host, port = address
    try:
        flags = socket.AI_NUMERICHOST | socket.AI_PASSIVE
        family, kind, protocol, _, resolved = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)[0]
    except socket.gaierror as error:
        raise ListenError(f"Cannot listen on {host}: it is not an IP address, and names are not looked up.") from error
    listener = None
    try:
        listener = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(resolved)
        listener.listen(_BACKLOG)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise ListenError(_why_not(host, port, error)) from error
    return listener


def _why_not(host: str, port: int, error: OSError) -> str:
    written = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    reason = {
        errno.EADDRINUSE: (
            f"the port is in use by another program, as its listener or as the local port of a connection; "
            f"`ss -tanp 'sport = :{port}'` names it: stop it, or choose another port"
        ),
        errno.EADDRNOTAVAIL: "this host does not have that address; choose one that `ip address` lists",
        errno.EACCES: "ports below net.ipv4.ip_unprivileged_port_start need CAP_NET_BIND_SERVICE; choose a higher one",
        errno.EAFNOSUPPORT: "this kernel has that address family switched off; choose an address of the other one",
    }.get(error.errno or 0, os.strerror(error.errno or 0))
    return f"Cannot listen on {written}: {reason}."
