"""What others on the host do with sockets: functions for `Namespace.call`, in a module that agents import fast."""

from __future__ import annotations

import ctypes
import errno
import socket
from contextlib import suppress
from ipaddress import ip_address

from tests import sockets

ADDRESS = ("127.0.0.1", 19100)
_PR_SET_NAME = 15  # include/uapi/linux/prctl.h

_held: list[socket.socket] = []


def hold(number: int, opening: bytes) -> None:
    """Open connections, say something on each and keep them."""
    for _ in range(number):
        _held.append(socket.create_connection(ADDRESS))
        with suppress(ConnectionError):
            _held[-1].sendall(opening)


def let_go() -> None:
    """Close what is kept."""
    while _held:
        _held.pop().close()


def flood(number: int, content: bytes) -> None:
    """Connect again and again, send something and close without reading."""
    for _ in range(number):
        with suppress(ConnectionError), socket.create_connection(ADDRESS) as client:
            client.sendall(content)


def say(content: bytes) -> bytes:
    """Send something and return the answer."""
    with socket.create_connection(ADDRESS) as client:
        with suppress(ConnectionError):
            client.sendall(content)
            client.shutdown(socket.SHUT_WR)
        answer = b""
        with suppress(ConnectionError):
            while part := client.recv(1 << 16):
                answer += part
        return answer


def open_toward(first: int, number: int) -> None:
    """Begin a connection to each of so many addresses of 10.0.0.0/8, from one on, and keep it."""
    for offset in range(first, first + number):
        client = socket.socket()
        client.setblocking(False)
        assert client.connect_ex((str(ip_address("10.0.0.1") + offset), 443)) == errno.EINPROGRESS
        sockets.held.setdefault("connections", []).append(client)


def call_yourself(name: bytes) -> None:
    """Give this process a name (man 2 prctl)."""
    assert ctypes.CDLL(None).prctl(_PR_SET_NAME, name, 0, 0, 0) == 0
