"""Asking about single connections: each answers for itself, and what has gone answers nothing."""

from __future__ import annotations

import socket
import time

import pytest

from ephmon.facts.addresses import packed_address
from ephmon.facts.socket_groups import ConnectKey
from ephmon.facts.timestamps import TimestampQuestion
from ephmon.kernel.deadline import Deadline
from ephmon.kernel.netlink.connection_timestamps import read_timestamps
from ephmon.kernel.netlink.sock_diag import MalformedReplyError, SockDiag
from tests import sockets
from tests.namespaces import Namespace
from tests.sockets import Recipe

PORT = 80
ENDS = {"IPv4": ("127.0.0.1", "127.0.0.1"), "IPv6": ("::1", "::1"), "mapped": ("::ffff:127.0.0.1", "127.0.0.1")}


def answers(ends: tuple[str, str], settings: tuple[int, ...]) -> list[bool]:
    """Return what connections say that were made one after the other, each under a value of tcp_timestamps."""
    toward, shown = ends
    sockets.listen(shown, PORT, tag="server")
    for value in settings:
        sockets.write_sysctl("net.ipv4.tcp_timestamps", value)
        assert sockets.open_sockets(Recipe(connect=(toward, PORT)), tag="live", limit=1).count == 1
    return ask(shown, tuple(sockets.ports_of("live")))


def ask(address: str, ports: tuple[int, ...], device: int = 0) -> list[bool]:
    """Ask about the connections of some ports toward PORT of an address, from the same."""
    packed = packed_address(address)
    key = ConnectKey(packed, packed, PORT)
    with SockDiag() as diag:
        return read_timestamps(diag, [TimestampQuestion(key, device, ports)], Deadline(10.0, time.monotonic))[key]


@pytest.mark.parametrize("ends", ENDS.values(), ids=ENDS)
def test_each_connection_says_what_was_agreed_on_when_it_was_made(ends: tuple[str, str]) -> None:
    with Namespace() as ns:
        assert ns.call(answers, ends, (1, 0, 2)) == [True, False, True]


def answers_of_others() -> list[list[bool]]:
    """Return what is said of a TIME_WAIT, an unused port, a listener's port, and a socket on a device."""
    sockets.listen("127.0.0.1", PORT, tag="server")
    for recipe, tag in ((Recipe(), "leaving"), (Recipe(device="lo"), "on lo")):
        made = Recipe(device=recipe.device, connect=("127.0.0.1", PORT))
        assert sockets.open_sockets(made, tag=tag, limit=1).count == 1
    (left,), (on_lo,) = sockets.ports_of("leaving"), sockets.ports_of("on lo")
    sockets.accept_all("server", tag="accepted")
    sockets.close("leaving")
    sockets.close("accepted")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        unused = free.getsockname()[1]
    return [ask("127.0.0.1", ports) for ports in ((left,), (unused,), (PORT,))] + [
        ask("127.0.0.1", (on_lo,), device=1),
    ]


def test_what_is_no_live_connection_says_nothing() -> None:
    with Namespace() as ns:
        assert ns.call(answers_of_others) == [[], [], [], [True]]


class _Answering(SockDiag):
    """Gives the same record to every question."""

    def __init__(self, record: bytes) -> None:
        self._record = bytearray(record)

    def look_up(self, *_: object) -> bytearray:
        return self._record


@pytest.mark.parametrize(
    "record",
    [
        bytes(87),
        bytes(17)
        + b"\x01\x00\x00"
        + (40000).to_bytes(2, "big")
        + PORT.to_bytes(2, "big")
        + bytes(64)
        + b"\x09\0\2\0"
        + bytes(8),
    ],
    ids=["record", "tcp_info"],
)
def test_a_short_answer_is_malformed(record: bytes) -> None:
    key = ConnectKey(bytes(4), bytes(4), PORT)
    with pytest.raises(MalformedReplyError):
        read_timestamps(_Answering(record), [TimestampQuestion(key, 0, (40000,))], Deadline(1.0, time.monotonic))
