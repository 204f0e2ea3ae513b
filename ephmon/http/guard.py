"""The guard between the listening socket and the HTTP side: who is let in, and for how long.

Comes in: a listening socket. Goes out: connections whose number, age and memory are bounded, each handed to a
coroutine that reads one request head and sends one reply. It knows nothing of HTTP beyond where a head ends.

The rules, and what each is for:

1. At most `connection_cap()` connections are held, those in a TLS handshake included, so that the rest of the daemon
   always has descriptors.
2. At the cap the newcomer is let in and the oldest connection that is not being answered makes room; when all are
   being answered, the oldest of them. Whoever holds connections to keep others out loses the oldest first.
3. A connection has `head_seconds` to finish its handshake and its request head, then `reply_seconds` to take the
   reply. A deadline runs from the moment it is set, not from the last byte, so a byte now and then gains no time.
4. A request head has at most `head_bytes`.
5. When the process is out of descriptors all the same, the oldest connection is closed; with none to close, accepting
   rests for a moment instead of failing in a busy loop.
"""

from __future__ import annotations

import asyncio
import logging
import resource
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tornado.iostream import IOStream, SSLIOStream, StreamClosedError

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Awaitable, Callable

LOGGER = logging.getLogger(__name__)

RESERVED_DESCRIPTORS = 32
"""Descriptors that connections never take: standard streams, event loop, netlink, /proc, deliveries."""

_FEWEST_CONNECTIONS = 8
_READ_CHUNK_BYTES = 4096
# Few enough that those already accepted are read between two bursts.
_ACCEPTS_AT_ONCE = 32
_REST_SECONDS = 0.1
_SECONDS_BETWEEN_WARNINGS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """What connections may take of the daemon."""

    connections: int = 128
    """Held at a time; fewer where the process may open few descriptors, see `connection_cap`."""
    head_bytes: int = 16 * 1024
    """Size of a request head, in bytes."""
    head_seconds: float = 5.0
    """From accept() to the end of the request head, TLS handshake included."""
    reply_seconds: float = 10.0
    """For the client to take the reply."""


def connection_cap(limits: ConnectionLimits) -> int:
    """How many connections may be held: the limit, or what RLIMIT_NOFILE leaves (man 2 getrlimit), but at least 8."""
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return limits.connections
    return min(limits.connections, max(soft - RESERVED_DESCRIPTORS, _FEWEST_CONNECTIONS))


class Connection:
    """One accepted connection, until its one reply has left."""

    __slots__ = ("_deadline", "_limits", "_stream", "answering", "task")

    def __init__(self, stream: IOStream, limits: ConnectionLimits) -> None:
        self.answering = False
        """Whether a reply is on its way."""
        self.task: asyncio.Task[None] | None = None
        """Kept here because an event loop keeps only weak references to its tasks."""
        self._stream = stream
        self._limits = limits
        self._deadline = asyncio.get_running_loop().call_later(limits.head_seconds, stream.close)

    async def read_head(self) -> bytes:
        """Return the request head, its empty line included.

        Raises:
            tornado.iostream.StreamClosedError: the client left, a rule of the guard closed the connection, or the head
                is longer than `head_bytes`.
        """
        return await self._stream.read_until(b"\r\n\r\n", max_bytes=self._limits.head_bytes)

    async def send(self, head: bytes, body: bytes) -> None:
        """Send a reply and wait until the kernel has all of it; raises what `read_head` raises."""
        self._deadline.cancel()
        self._deadline = asyncio.get_running_loop().call_later(self._limits.reply_seconds, self._stream.close)
        self.answering = True
        # Two writes, because joining them would copy the body for each slow reader; nobody waits for the second
        # (Nagle's algorithm), because closing the socket sends what is left at once.
        self._stream.write(head)
        await self._stream.write(body)

    def close(self) -> None:
        """Close it now; whoever waits in `read_head` or `send` gets a StreamClosedError."""
        self._deadline.cancel()
        self._stream.close()


class PacedWarning:
    """A line in the log for something that clients can cause as often as they like: at most one a minute."""

    def __init__(self, message: str) -> None:
        self._message = message
        self._count = 0
        self._logged_at: float | None = None

    def count(self, detail: str = "") -> None:
        """Count one occurrence; log how many there were since the last line, unless that is less than a minute old."""
        self._count += 1
        now = asyncio.get_running_loop().time()
        if self._logged_at is None or now - self._logged_at >= _SECONDS_BETWEEN_WARNINGS:
            message = f"{self._message}: {detail}" if detail else self._message
            LOGGER.warning("%s (%d since the last such line)", message, self._count)
            self._count = 0
            self._logged_at = now


class ConnectionGuard:
    """Accepts connections within the limits and runs `serve` for each. All of it runs in the event loop's thread."""

    def __init__(
        self,
        listener: socket.socket,
        serve: Callable[[Connection], Awaitable[None]],
        *,
        limits: ConnectionLimits,
        tls: Callable[[], ssl.SSLContext | None],
    ) -> None:
        """`listener` must be non-blocking; `tls` is asked for the context to use at each new connection."""
        self._listener = listener
        self._serve = serve
        self._limits = limits
        self._tls = tls
        self._cap = connection_cap(limits)
        self._connections: dict[Connection, None] = {}  # in the order they came
        self._resting: asyncio.TimerHandle | None = None
        self._crowded = PacedWarning(f"HTTP: a client was closed to let a newer one in: {self._cap} is the limit")
        self._exhausted = PacedWarning("HTTP: no descriptor was free for a new client: raise LimitNOFILE")

    def start(self) -> None:
        """Accept from now on."""
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    async def stop(self) -> None:
        """Accept no more, close what is held and wait until its coroutines have ended."""
        asyncio.get_running_loop().remove_reader(self._listener)
        if self._resting is not None:
            self._resting.cancel()
        tasks = [connection.task for connection in self._connections if connection.task is not None]
        for connection in tuple(self._connections):
            self._close(connection)
        if tasks:
            await asyncio.wait(tasks)

    def _accept(self) -> None:
        for accepted in range(_ACCEPTS_AT_ONCE):
            try:
                peer, _address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError:
                # EMFILE, ENFILE, ENOBUFS, ENOMEM; the client stays in the kernel's queue. The kernel takes a descriptor
                # before it looks for a client, so only the first failure means that one is waiting.
                if accepted == 0:
                    self._exhausted.count()
                    self._free_descriptor()
                return
            self._admit(peer)

    def _free_descriptor(self) -> None:
        if self._connections:
            self._make_room()
            return
        loop = asyncio.get_running_loop()
        # The socket stays readable, so the loop would call back without a pause.
        loop.remove_reader(self._listener)
        self._resting = loop.call_later(_REST_SECONDS, self.start)

    def _admit(self, peer: socket.socket) -> None:
        if len(self._connections) >= self._cap:
            self._crowded.count()
            self._make_room()
        try:
            stream = self._open_stream(peer)
        except OSError:  # the client has gone already
            peer.close()
            return
        connection = Connection(stream, self._limits)
        self._connections[connection] = None
        connection.task = asyncio.get_running_loop().create_task(self._run(connection))
        connection.task.add_done_callback(_hand_on_error)

    def _open_stream(self, peer: socket.socket) -> IOStream:
        peer.setblocking(False)
        # The buffer must hold a head that is one chunk too long.
        buffer_bytes = self._limits.head_bytes + 2 * _READ_CHUNK_BYTES
        tls = self._tls()
        if tls is None:
            return IOStream(peer, max_buffer_size=buffer_bytes, read_chunk_size=_READ_CHUNK_BYTES)
        # Fails for a client that has reset the connection, whose socket wrapping would leave to the garbage collector.
        peer.getpeername()
        wrapped = tls.wrap_socket(peer, server_side=True, do_handshake_on_connect=False)
        # Without ssl_options each stream would make a client context of its own, which takes milliseconds.
        return SSLIOStream(wrapped, ssl_options=tls, max_buffer_size=buffer_bytes, read_chunk_size=_READ_CHUNK_BYTES)

    async def _run(self, connection: Connection) -> None:
        try:
            await self._serve(connection)
        except StreamClosedError:
            pass  # the client left, or a rule of this guard ended it
        finally:
            self._close(connection)

    def _make_room(self) -> None:
        oldest_first = iter(self._connections)
        oldest_idle = next((connection for connection in oldest_first if not connection.answering), None)
        self._close(oldest_idle or next(iter(self._connections)))

    def _close(self, connection: Connection) -> None:
        self._connections.pop(connection, None)
        connection.close()


def _hand_on_error(task: asyncio.Task[None]) -> None:
    """Give what `serve` raised to the loop's exception handler now: asyncio does so when the task is collected."""
    error = None if task.cancelled() else task.exception()
    if error is not None:
        context = {"message": "a connection ended in an error", "exception": error}
        asyncio.get_running_loop().call_exception_handler(context)
