"""The guard alone, in an event loop of the test's own, on loopback."""

from __future__ import annotations

import asyncio
import resource
import socket
import struct
from contextlib import ExitStack, asynccontextmanager, closing, suppress
from typing import TYPE_CHECKING, Any, Self, cast

import pytest

from ephmon.http.guard import Connection, ConnectionGuard, ConnectionLimits, connection_cap
from ephmon.http.tls import build_tls_context
from tests.certificates import make_certificate
from tests.machine import no_descriptor_left

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
    from pathlib import Path

# Longer than any test takes, where a deadline is not the point.
LONG = 60.0
REPLY = b"reply"
MORE_THAN_THE_KERNEL_BUFFERS = bytes(64 * 2**20)


def limits(
    *, connections: int = 4, head_bytes: int = 1024, head_seconds: float = LONG, reply_seconds: float = LONG
) -> ConnectionLimits:
    return ConnectionLimits(
        connections=connections, head_bytes=head_bytes, head_seconds=head_seconds, reply_seconds=reply_seconds
    )


async def reply_when_asked(connection: Connection) -> None:
    await connection.read_head()
    await connection.send(REPLY, b"")


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run an asynchronous test, which fails if it takes ten seconds."""

    async def bounded() -> None:
        async with asyncio.timeout(10.0):
            await test

    asyncio.run(bounded())


@asynccontextmanager
async def guarding(
    limits: ConnectionLimits,
    serve: Callable[[Connection], Awaitable[None]] = reply_when_asked,
    listener: socket.socket | None = None,
) -> AsyncIterator[tuple[str, int]]:
    with listener or listen() as listening:
        guard = ConnectionGuard(listening, serve, limits=limits, tls=lambda: None)
        guard.start()
        try:
            yield listening.getsockname()
        finally:
            await guard.stop()


def listen() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    listener.setblocking(False)
    return listener


class Client:
    """A client that never blocks the event loop."""

    def __init__(self) -> None:
        self.socket = socket.socket()
        self.socket.setblocking(False)

    async def connect(self, address: tuple[str, int]) -> None:
        await asyncio.get_running_loop().sock_connect(self.socket, address)

    async def ask(self) -> bytes:
        await self.send(b"head\r\n\r\n")
        return await self.read()

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def read(self) -> bytes:
        """What the server sends next; empty if it has closed the connection."""
        try:
            return await asyncio.get_running_loop().sock_recv(self.socket, 65536)
        except ConnectionResetError:
            return b""

    def close(self) -> None:
        self.socket.close()


@asynccontextmanager
async def connected(address: tuple[str, int], count: int) -> AsyncIterator[list[Client]]:
    with ExitStack() as stack:
        clients = [stack.enter_context(closing(Client())) for _ in range(count)]
        for client in clients:
            await client.connect(address)
        yield clients


def test_at_the_limit_the_oldest_idle_connections_make_room(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with guarding(limits(connections=4)) as address, connected(address, 30) as clients:
            assert [await client.read() for client in clients[:26]] == [b""] * 26
            assert [await client.ask() for client in clients[27:]] == [REPLY] * 3
            async with connected(address, 1) as [newcomer]:
                assert await newcomer.ask() == REPLY

    run(test())

    assert [record.getMessage() for record in caplog.records] == [
        "HTTP: the oldest connection was closed: 4 is the limit (1 since the last such line)"
    ]


class SlowReplies:
    """Serves a reply that no client takes, and tells how that ended."""

    def __init__(self) -> None:
        self.begun = asyncio.Semaphore(0)
        self.ended: asyncio.Queue[tuple[bytes, type[Exception]]] = asyncio.Queue()

    async def serve(self, connection: Connection) -> None:
        head = await connection.read_head()
        if head == b"quick\r\n\r\n":
            await connection.send(REPLY, b"")
            return
        try:
            self.begun.release()
            await connection.send(b"", MORE_THAN_THE_KERNEL_BUFFERS)
        except Exception as error:
            self.ended.put_nowait((head, type(error)))
            raise


def test_an_idle_connection_makes_room_before_one_that_is_being_answered() -> None:
    async def test() -> None:
        replies = SlowReplies()
        async with (
            guarding(limits(connections=2), replies.serve) as address,
            connected(address, 2) as [answered, idle],
        ):
            await answered.send(b"slow\r\n\r\n")
            await replies.begun.acquire()
            async with connected(address, 1) as [newcomer]:
                await newcomer.send(b"quick\r\n\r\n")

                assert await newcomer.read() == REPLY
                assert await idle.read() == b""
                assert replies.ended.empty()

    run(test())


def test_when_all_are_being_answered_the_oldest_makes_room() -> None:
    async def test() -> None:
        replies = SlowReplies()
        async with guarding(limits(connections=2), replies.serve) as address, connected(address, 2) as clients:
            for name, client in zip((b"first", b"second"), clients, strict=True):
                await client.send(name + b"\r\n\r\n")
                await replies.begun.acquire()
            async with connected(address, 1) as [newcomer]:
                await newcomer.send(b"quick\r\n\r\n")

                assert await newcomer.read() == REPLY
                assert (await replies.ended.get())[0] == b"first\r\n\r\n"
                assert replies.ended.empty()

    run(test())


def test_a_half_sent_head_is_closed_at_its_deadline() -> None:
    async def test() -> None:
        async with guarding(limits(head_seconds=0.05)) as address, connected(address, 1) as [client]:
            await client.send(b"GET / HTTP/1.1\r\n")

            assert await client.read() == b""

    run(test())


def test_a_byte_now_and_then_gains_no_time() -> None:
    async def drip(client: Client) -> None:
        with suppress(ConnectionError):
            while True:
                await client.send(b"x")
                await asyncio.sleep(0)  # sending never waits, and the guard runs in the same loop

    async def test() -> None:
        # The head never grows too long within a deadline this short.
        allowed = limits(head_seconds=0.1, head_bytes=2**30)
        async with guarding(allowed) as address, connected(address, 1) as [client]:
            dripping = asyncio.create_task(drip(client))

            assert await client.read() == b""
            await dripping

    run(test())


def test_a_reply_that_is_not_taken_is_given_up_at_its_deadline() -> None:
    async def test() -> None:
        replies = SlowReplies()
        async with (
            guarding(limits(reply_seconds=0.05), replies.serve) as address,
            connected(address, 1) as [client],
        ):
            await client.send(b"slow\r\n\r\n")

            assert (await replies.ended.get())[1].__name__ == "StreamClosedError"

    run(test())


def test_a_reply_is_not_bound_by_the_deadline_of_the_head() -> None:
    async def test() -> None:
        replies = SlowReplies()
        async with (
            guarding(limits(head_seconds=0.03), replies.serve) as address,
            connected(address, 1) as [client],
        ):
            await client.send(b"slow\r\n\r\n")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(replies.ended.get(), 0.1)

    run(test())


def test_a_head_that_is_too_long_is_not_read_on() -> None:
    async def test() -> None:
        async with guarding(limits(head_bytes=1024)) as address, connected(address, 2) as [fits, too_long]:
            await fits.send(b"x" * 1020 + b"\r\n\r\n")
            await too_long.send(b"x" * 1021 + b"\r\n\r\n")

            assert await fits.read() == REPLY
            assert await too_long.read() == b""

    run(test())


def test_a_client_that_reset_the_connection_before_its_handshake_leaves_nothing_behind(tmp_path: Path) -> None:
    """A socket left to the garbage collector is a ResourceWarning, which fails the test."""
    context = build_tls_context(make_certificate(tmp_path, "server"))

    async def test() -> None:
        with listen() as listener:
            with closing(Client()) as gone:
                await gone.connect(listener.getsockname())
                gone.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            guard = ConnectionGuard(listener, reply_when_asked, limits=limits(), tls=lambda: context)
            guard.start()
            async with connected(listener.getsockname(), 1) as [client]:
                await client.send(b"no handshake")

                assert await client.read() == b""
            await guard.stop()

    run(test())


class WatchedListener:
    """A listening socket that tells when accept() failed for want of a descriptor."""

    def __init__(self) -> None:
        self.socket = listen()
        self.failed_at: asyncio.Queue[float] = asyncio.Queue()

    def accept(self) -> tuple[socket.socket, object]:
        try:
            return self.socket.accept()
        except BlockingIOError:
            raise
        except OSError:
            self.failed_at.put_nowait(asyncio.get_running_loop().time())
            raise

    def fileno(self) -> int:
        return self.socket.fileno()

    def getsockname(self) -> tuple[str, int]:
        host, port = self.socket.getsockname()
        return host, port

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def test_without_a_free_descriptor_an_idle_client_makes_room() -> None:
    async def test() -> None:
        with closing(Client()) as newcomer:
            async with guarding(limits()) as address, connected(address, 2) as [idle, other]:
                # When the later one has been answered, the idle one has been accepted.
                assert await other.ask() == REPLY
                assert await other.read() == b""
                with no_descriptor_left():
                    await newcomer.connect(address)

                    assert await newcomer.ask() == REPLY
                    assert await idle.read() == b""

    run(test())


def test_without_a_free_descriptor_accepting_rests_and_resumes(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        listener = WatchedListener()
        with closing(Client()) as client:
            async with guarding(limits(), listener=cast("socket.socket", listener)) as address:
                with no_descriptor_left():
                    await client.connect(address)
                    first, second = await listener.failed_at.get(), await listener.failed_at.get()

                assert await client.ask() == REPLY
                # The loop was not called back without a pause.
                assert second - first > 0.05

    run(test())

    assert [record.getMessage() for record in caplog.records] == [
        "HTTP: no descriptor was free for a new client; raise LimitNOFILE (1 since the last such line)"
    ]


def test_stopped_while_accepting_rests_it_does_not_resume() -> None:
    async def test() -> None:
        with WatchedListener() as listener, closing(Client()) as client:
            guard = ConnectionGuard(
                cast("socket.socket", listener), reply_when_asked, limits=limits(), tls=lambda: None
            )
            guard.start()
            with no_descriptor_left():
                await client.connect(listener.getsockname())
                await listener.failed_at.get()
            await guard.stop()

            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.ask(), 0.2)

    run(test())


def test_stopping_closes_every_connection_and_waits_for_its_coroutine() -> None:
    async def test() -> None:
        replies = SlowReplies()
        with listen() as listener:
            guard = ConnectionGuard(listener, replies.serve, limits=limits(), tls=lambda: None)
            guard.start()
            async with connected(listener.getsockname(), 2) as [idle, slow]:
                await slow.send(b"slow\r\n\r\n")
                await replies.begun.acquire()
                await guard.stop()

                assert replies.ended.get_nowait()[1].__name__ == "StreamClosedError"
                assert await idle.read() == b""

    run(test())


def test_an_error_goes_to_the_loop_at_once_and_stops_nobody_else() -> None:
    class DefectError(Exception):
        """Raised by the coroutine that serves."""

    async def serve(connection: Connection) -> None:
        if (await connection.read_head()).startswith(b"bad"):
            raise DefectError
        await connection.send(REPLY, b"")

    async def test() -> None:
        reported: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reported.append(context["exception"]))
        async with guarding(limits(), serve) as address, connected(address, 2) as [bad, good]:
            await bad.send(b"bad\r\n\r\n")

            assert await bad.read() == b""
            assert await good.ask() == REPLY
            assert [type(error) for error in reported] == [DefectError]

    run(test())


@pytest.mark.parametrize(("descriptors", "cap"), [(1024, 128), (160, 128), (159, 127), (64, 32), (39, 8), (16, 8)])
def test_the_rest_of_the_daemon_keeps_its_descriptors(descriptors: int, cap: int) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, before[1]))
    try:
        assert connection_cap(ConnectionLimits()) == cap
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
