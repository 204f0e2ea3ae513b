"""Receivers of alerts that behave as a test wants, with real sockets on loopback."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from tests.processes import WAIT_SECONDS

if TYPE_CHECKING:
    import ssl

Answer = Callable[[socket.socket, threading.Event], None]
"""Answers one request; the event is set when the receiver is closed, and whoever waits must wait for it."""


_TLS_HANDSHAKE = b"\x16"


class Received(NamedTuple):
    """One request, whole."""

    source_port: int
    request_line: str
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes

    @property
    def document(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


class PostReceiver:
    """Listens on a port of loopback, records every request and answers the first as the first answer says and so on.

    The last answer holds for all further requests.
    """

    def __init__(
        self, *answers: Answer, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
    ) -> None:
        self._answers = list(answers) or [ok]
        self._tls = tls
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family, backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{self.port}"
        self.requests: list[Received] = []
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Listen no more, and wait until nobody is being answered."""
        self._closed.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        self._listener.close()
        for thread in tuple(self._threads):
            thread.join(WAIT_SECONDS)

    def wait_for(self, number: int) -> list[Received]:
        """Wait until there were so many requests, and return those."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.requests) >= number, WAIT_SECONDS), self.requests
            return self.requests[:number]

    def _start(self, function: Callable[..., None], *arguments: object) -> None:
        self._threads.append(threading.Thread(target=function, args=arguments))
        self._threads[-1].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                peer, address = self._listener.accept()
                self._start(self._serve, peer, address[1])

    def _serve(self, peer: socket.socket, source_port: int) -> None:
        peer.settimeout(WAIT_SECONDS)
        with peer, suppress(OSError):
            stream = self._tls.wrap_socket(peer, server_side=True) if self._tls else peer
            with stream:
                if self._tls is None and stream.recv(1, socket.MSG_PEEK) == _TLS_HANDSHAKE:
                    stream.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")  # as servers without TLS do
                    return
                request = _read_request(stream, source_port)
                with self._changed:
                    answer = self._answers[min(len(self.requests), len(self._answers) - 1)]
                    self.requests.append(request)
                    self._changed.notify_all()
                answer(stream, self._closed)


def _read_request(stream: socket.socket, source_port: int) -> Received:
    with stream.makefile("rb") as file:
        request_line = file.readline().decode("latin-1").rstrip()
        headers = {}
        while line := file.readline().decode("latin-1").rstrip():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        return Received(source_port, request_line, headers, file.read(int(headers["content-length"])))


def answering(head: str, body: bytes = b"") -> Answer:
    """An answer with this status line and headers, and this body; then the connection is closed."""
    lines = "".join(f"{line}\r\n" for line in (*head.splitlines(), f"Content-Length: {len(body)}", ""))
    return saying(lines.encode() + body)


def saying(answer: bytes) -> Answer:
    """An answer of just these bytes."""

    def answer_it(stream: socket.socket, _closed: threading.Event) -> None:
        stream.sendall(answer)

    return answer_it


ok = answering("HTTP/1.1 200 OK")


def silent(_stream: socket.socket, closed: threading.Event) -> None:
    """Take the request and never answer."""
    closed.wait(WAIT_SECONDS)


def closing(_stream: socket.socket, _closed: threading.Event) -> None:
    """Take the request and close the connection."""


def endless(stream: socket.socket, closed: threading.Event) -> None:
    """Send a head without an end, as fast as it is taken."""
    stream.sendall(b"HTTP/1.1 200 OK\r\n")
    while not closed.is_set():
        stream.sendall(b"X: " + b"x" * 65536 + b"\r\n")


def dripping(answer: bytes, seconds: float = 0.01) -> Answer:
    """Send these bytes one by one, with a pause after each."""

    def drip(stream: socket.socket, closed: threading.Event) -> None:
        for position in range(len(answer)):
            stream.sendall(answer[position : position + 1])
            if closed.wait(seconds):
                return

    return drip


def unused_port() -> int:
    """Return a port of loopback on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
