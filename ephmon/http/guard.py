"""The guard of the HTTP server: it limits the number, the duration and the memory of connections.

It accepts clients from a listening socket and hands each connection to a coroutine that reads one request head and
sends one reply. Of HTTP it knows only where a request head ends.

The rules, and the reason for each:

1. At most `connection_cap()` connections are open, including those in a TLS handshake. So the rest of the daemon always
   has descriptors.
2. At the cap, a new client is accepted and the oldest connection that is not being answered is closed; if all are being
   answered, the oldest of them. So a client that holds connections to lock others out loses its own first.
3. A connection has `head_seconds` for its handshake and its request head, then `reply_seconds` to read the reply. A
   deadline counts from the moment it is set and not from the last byte. So a byte now and then gains no time.
4. A request head has at most `head_bytes`. So the buffers of all connections together stay bounded.
5. If the process has no descriptor left nevertheless, the oldest connection is closed. If none is open, accepting
   pauses for a moment instead of failing in a busy loop.
"""

from __future__ import annotations

import asyncio
import logging
import resource
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tornado.iostream import IOStream, SSLIOStream, StreamClosedError

from ephmon import log

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Awaitable, Callable

LOGGER = logging.getLogger(__name__)

RESERVED_DESCRIPTORS = 32
"""Descriptors that connections leave free: for standard streams, event loops, netlink, /proc, tracefs, deliveries."""

# Enough for some Prometheus servers and a browser, even if RLIMIT_NOFILE is tiny.
_MIN_CONNECTIONS = 8
# Tornado reads in chunks of 64 KiB by default, which would be the memory that each idle connection costs.
_READ_CHUNK_BYTES = 4096
# Few enough that accepted clients are served between two bursts of new ones.
_ACCEPTS_AT_ONCE = 32
# Long enough to cost no CPU while no descriptor is free, short enough that a scrape does not notice.
_PAUSE_SECONDS = 0.1
_SECONDS_BETWEEN_WARNINGS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """What connections may cost the daemon."""

    connections: int = 128
    """Open at a time, some 24 KiB of buffer each; fewer if RLIMIT_NOFILE is low, see `connection_cap`."""
    head_bytes: int = 16 * 1024
    """Of a request head; scrapers and browsers send a few hundred bytes."""
    head_seconds: float = 5.0
    """From accept() to the end of the request head, TLS handshake included. It allows for two lost packets in a row,
    which TCP sends again after 1 and 2 seconds (RFC 6298)."""
    reply_seconds: float = 10.0
    """For the client to read the reply: as long as Prometheus waits for a scrape by default."""


def connection_cap(limits: ConnectionLimits) -> int:
    """Return how many connections may be open: the limit, or fewer if RLIMIT_NOFILE is low (man 2 getrlimit)."""
    try:
        soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    except OSError:  # a filter of system calls refuses prlimit64
        return limits.connections
    if soft == resource.RLIM_INFINITY:
        return limits.connections
    return min(limits.connections, max(soft - RESERVED_DESCRIPTORS, _MIN_CONNECTIONS))


class Connection:
    """One accepted connection, until its only reply has been sent."""

    __slots__ = ("_deadline", "_limits", "_stream", "answering", "client", "task")

    def __init__(self, stream: IOStream, limits: ConnectionLimits, client: str) -> None:
        self.client = client
        """The address that it came from, of IPv6 perhaps with a zone or IPv4-mapped."""
        self.answering = False
        """Whether a reply is being sent."""
        self.task: asyncio.Task[None] | None = None
        """Kept here because an event loop keeps only weak references to its tasks."""
        self._stream = stream
        self._limits = limits
        self._deadline = asyncio.get_running_loop().call_later(limits.head_seconds, stream.close)

    async def read_head(self) -> bytes:
        """Return the request head, its empty line included.

        Raises:
            tornado.iostream.StreamClosedError: the client has left, the guard has closed the connection, or the head is
                longer than `head_bytes`.
        """
        return await self._stream.read_until(b"\r\n\r\n", max_bytes=self._limits.head_bytes)

    async def send(self, head: bytes, body: bytes) -> None:
        """Send a reply and wait until the kernel has taken all of it.

        Raises:
            tornado.iostream.StreamClosedError: the client has left, or the guard has closed the connection.
        """
        self._deadline.cancel()
        self._deadline = asyncio.get_running_loop().call_later(self._limits.reply_seconds, self._stream.close)
        self.answering = True
        # Two writes, because joining them would copy the body for each slow client. Nagle's algorithm does not delay
        # the second one, because closing the socket sends the rest at once.
        self._stream.write(head)
        await self._stream.write(body)

    def close(self) -> None:
        """Close the connection now; `read_head` and `send` raise StreamClosedError."""
        self._deadline.cancel()
        self._stream.close()


class RateLimitedWarning:
    """A warning about something that clients can cause as often as they like: one line a minute at most."""

    def __init__(self, message: str) -> None:
        self._message = message
        self._count = 0
        self._logged_at: float | None = None

    def count(self, detail: str = "") -> None:
        """Count one occurrence, and log the count unless the last line is less than a minute old."""
        self._count += 1
        now = asyncio.get_running_loop().time()
        if self._logged_at is None or now - self._logged_at >= _SECONDS_BETWEEN_WARNINGS:
            message = f"{self._message}: {detail}" if detail else self._message
            LOGGER.warning("%s (%d since the last such line)", message, self._count)
            self._count = 0
            self._logged_at = now


class ConnectionGuard:
    """Accepts connections within the limits and runs `serve` for each, all in the thread of the event loop."""

    def __init__(
        self,
        listener: socket.socket,
        serve: Callable[[Connection], Awaitable[None]],
        *,
        limits: ConnectionLimits,
        tls: Callable[[], ssl.SSLContext | None],
    ) -> None:
        """`listener` must be non-blocking; `tls` is called for each new connection and returns the context to use."""
        self._listener = listener
        self._serve = serve
        self._limits = limits
        self._tls = tls
        self._cap = connection_cap(limits)
        self._connections: dict[Connection, None] = {}  # in the order of their arrival
        self._paused_accept: asyncio.TimerHandle | None = None
        self._at_cap = RateLimitedWarning(f"HTTP: the oldest connection was closed: {self._cap} is the limit")
        self._no_descriptor = RateLimitedWarning("HTTP: no descriptor was free for a new client; raise LimitNOFILE")

    def start(self) -> None:
        """Accept clients from now on."""
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    async def stop(self) -> None:
        """Accept no more clients, close all connections and wait until their coroutines have ended."""
        asyncio.get_running_loop().remove_reader(self._listener)
        if self._paused_accept is not None:
            self._paused_accept.cancel()
        tasks = [connection.task for connection in self._connections if connection.task is not None]
        for connection in tuple(self._connections):
            self._close(connection)
        if tasks:
            await asyncio.wait(tasks)

    def _accept(self) -> None:
        for accepted in range(_ACCEPTS_AT_ONCE):
            try:
                peer, address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError:
                # EMFILE, ENFILE, ENOBUFS or ENOMEM (man 2 accept); the client stays in the kernel's queue. The kernel
                # takes a descriptor before it looks for a client, so only a first failure means that one is waiting.
                if accepted == 0:
                    self._no_descriptor.count()
                    self._free_descriptor()
                return
            self._admit(peer, address[0])

    def _free_descriptor(self) -> None:
        if self._connections:
            self._make_room()
            return
        loop = asyncio.get_running_loop()
        # The socket stays readable, so the loop would call back without a pause.
        loop.remove_reader(self._listener)
        self._paused_accept = loop.call_later(_PAUSE_SECONDS, self.start)

    def _admit(self, peer: socket.socket, client: str) -> None:
        if len(self._connections) >= self._cap:
            self._at_cap.count()
            self._make_room()
        try:
            stream = self._open_stream(peer)
        except OSError:  # the client has already left
            peer.close()
            return
        connection = Connection(stream, self._limits, client)
        self._connections[connection] = None
        connection.task = asyncio.get_running_loop().create_task(self._run(connection))
        connection.task.add_done_callback(log.report_task_error)

    def _open_stream(self, peer: socket.socket) -> IOStream:
        peer.setblocking(False)
        # Tornado reads whole chunks, and must be able to read past the limit to find that a head is too long.
        buffer_bytes = self._limits.head_bytes + 2 * _READ_CHUNK_BYTES
        tls = self._tls()
        if tls is None:
            return IOStream(peer, max_buffer_size=buffer_bytes, read_chunk_size=_READ_CHUNK_BYTES)
        # Raises OSError if the client has reset the connection; wrap_socket() would then not close the socket.
        peer.getpeername()
        wrapped = tls.wrap_socket(peer, server_side=True, do_handshake_on_connect=False)
        # Without ssl_options Tornado would build a client context for each stream, which takes milliseconds.
        return SSLIOStream(wrapped, ssl_options=tls, max_buffer_size=buffer_bytes, read_chunk_size=_READ_CHUNK_BYTES)

    async def _run(self, connection: Connection) -> None:
        try:
            await self._serve(connection)
        except StreamClosedError:
            pass  # the client has left, or this guard has closed the connection
        finally:
            self._close(connection)

    def _make_room(self) -> None:
        oldest_first = iter(self._connections)
        oldest_idle = next((connection for connection in oldest_first if not connection.answering), None)
        self._close(oldest_idle or next(iter(self._connections)))

    def _close(self, connection: Connection) -> None:
        self._connections.pop(connection, None)
        connection.close()
