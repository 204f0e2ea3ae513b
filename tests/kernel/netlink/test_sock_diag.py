"""Taking netlink replies apart: what is good comes through, and nothing that is not good reads as "no sockets"."""

from __future__ import annotations

import errno
import socket
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ephmon.errors import KernelError, StopRequestedError
from ephmon.kernel.deadline import Deadline
from ephmon.kernel.netlink import inet_diag
from ephmon.kernel.netlink.sock_diag import (
    HEADER,
    NLM_F_DUMP_INTR,
    NLM_F_MULTI,
    NLMSG_DONE,
    NLMSG_ERROR,
    InterruptedDumpError,
    MalformedReplyError,
    NetlinkError,
    SockDiag,
    split,
)
from tests.namespaces import Namespace

KIND, SEQUENCE, PORT = 20, 7, 0


def message(payload: bytes, *, kind: int = KIND, flags: int = NLM_F_MULTI, sequence: int = SEQUENCE) -> bytes:
    return HEADER.pack(HEADER.size + len(payload), kind, flags, sequence, PORT) + payload


def taken_apart(datagram: bytes) -> tuple[bool, list[tuple[int, bytes]]]:
    done, blocks = split(bytearray(datagram), len(datagram), KIND, SEQUENCE, PORT)
    return done, [(length, bytes(block)) for length, block in blocks]


def number(value: int) -> bytes:
    return value.to_bytes(4, "little", signed=True)


def test_messages_of_one_length_are_one_block() -> None:
    datagram = message(b"aaaa") + message(b"bbbb")

    assert taken_apart(datagram) == (False, [(20, datagram)])


def test_messages_of_several_lengths_are_a_block_each() -> None:
    short, long = message(b"aaaa"), message(b"bbbbbbbb")

    assert taken_apart(short + long + short) == (False, [(20, short + short), (24, long)])


def test_the_bytes_after_the_datagram_are_not_looked_at() -> None:
    datagram = message(b"aaaa")
    buffer = bytearray(datagram + b"left over from the last one")

    assert split(buffer, len(datagram), KIND, SEQUENCE, PORT) == (False, [(20, bytearray(datagram))])


def test_done_ends_the_dump_also_behind_messages() -> None:
    last = message(b"aaaa")

    assert taken_apart(last + message(number(0), kind=NLMSG_DONE)) == (True, [(20, last)])


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (message(number(-errno.ENOENT), kind=NLMSG_DONE), errno.ENOENT),
        (message(number(-errno.ENOENT) + bytes(16), kind=NLMSG_ERROR), errno.ENOENT),
        (message(number(-errno.EOPNOTSUPP) + bytes(16), kind=NLMSG_ERROR), errno.EOPNOTSUPP),
    ],
)
def test_an_answer_that_there_is_no_handler_is_an_error(answer: bytes, told: int) -> None:
    """Once inet_diag is loaded and the protocol's module is not, DONE = -ENOENT says so, before that an error does."""
    with pytest.raises(NetlinkError, match="no inet_diag handler for the protocol") as raised:
        taken_apart(answer)

    assert (raised.value.errno, raised.value.reason) == (told, "netlink")


def test_an_error_message_is_an_error() -> None:
    with pytest.raises(NetlinkError, match=r"refuses the inet_diag request: Invalid argument \(EINVAL\)"):
        taken_apart(message(number(-errno.EINVAL) + bytes(16), kind=NLMSG_ERROR))


@pytest.mark.parametrize("kind", [NLMSG_DONE, NLMSG_ERROR])
def test_a_number_that_is_no_errno_is_an_error_too(kind: int) -> None:
    """Its negative does not fit into the int that os.strerror() takes."""
    with pytest.raises(NetlinkError, match="refuses the inet_diag request: error 2147483648") as raised:
        taken_apart(message(number(-(2**31)) + bytes(16), kind=kind))

    assert raised.value.errno == 2**31


def test_a_dump_that_the_kernel_calls_inconsistent_is_an_error() -> None:
    good, interrupted = message(b"aaaa"), message(b"aaaa", flags=NLM_F_MULTI | NLM_F_DUMP_INTR)

    with pytest.raises(InterruptedDumpError):
        taken_apart(good + interrupted)


MALFORMED = {
    "a header cut short": (message(b"aaaa") + b"\x14\0\0", "ends within a header, 3 bytes long"),
    "a length of 0": (bytes(HEADER.size), "claims 0 of 16 bytes"),
    "a length beyond the end": (message(b"aaaa")[:-1], "claims 20 of 19 bytes"),
    "another request's sequence number": (message(b"aaaa", sequence=8), "answers request 8, not 7"),
    "an unknown type": (message(b"aaaa", kind=99), "unknown type 99"),
    "an overrun": (message(b"", kind=4), "data of the inet_diag reply was lost"),
    "an error without a number": (message(b"", kind=NLMSG_ERROR), "without a number"),
    "an acknowledgement": (message(number(0), kind=NLMSG_ERROR), "acknowledged"),
}


@pytest.mark.parametrize(("datagram", "complaint"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_reply_is_an_error(datagram: bytes, complaint: str) -> None:
    with pytest.raises(MalformedReplyError, match=complaint):
        taken_apart(datagram)


@given(st.lists(st.integers(0, 40), max_size=20), st.data())
def test_any_damage_raises_our_error_or_gives_whole_messages(sizes: list[int], data: st.DataObject) -> None:
    datagram = bytearray(b"".join(message(bytes(4 * size)) for size in sizes))
    if datagram:
        datagram[data.draw(st.integers(0, len(datagram) - 1))] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(0, len(datagram)))

    try:
        _, blocks = split(datagram, cut, KIND, SEQUENCE, PORT)
    except KernelError:
        return
    assert all(len(block) % length == 0 for length, block in blocks)
    assert sum(len(block) for _, block in blocks) <= cut


# --- the real kernel ----------------------------------------------------------------------------------------------


def errno_of_a_dump(family: int, protocol: int) -> int:
    request = inet_diag.family_request(protocol, family, inet_diag.ALL_STATES, [])
    with SockDiag() as diag:
        try:
            diag.dump(request, lambda _length, _block: None, Deadline(5, time.monotonic))
        except NetlinkError as error:
            return error.errno
    return 0


def test_a_protocol_that_the_kernel_lacks_is_an_error_and_not_an_empty_answer() -> None:
    with Namespace() as ns:
        assert ns.call(errno_of_a_dump, socket.AF_INET, 99) == errno.ENOENT
        assert ns.call(errno_of_a_dump, 77, socket.IPPROTO_TCP) == errno.EINVAL
        assert ns.call(errno_of_a_dump, socket.AF_INET, socket.IPPROTO_TCP) == 0


def wait_for_nothing(seconds: float) -> tuple[str, bool]:
    """Listen for a dump that nobody asked for; return the reason of the failure, and whether it came in time."""
    started = time.monotonic()
    with SockDiag() as diag:
        try:
            diag._receive(Deadline(seconds, time.monotonic))
        except KernelError as error:
            return error.reason, time.monotonic() - started < seconds + 5
    return "none", False


def test_a_dump_that_never_ends_is_cut_at_the_deadline() -> None:
    with Namespace() as ns:
        assert ns.call(wait_for_nothing, 0.1) == ("deadline", True)


def test_a_read_that_nobody_wants_any_more_is_given_up() -> None:
    deadline = Deadline(60, time.monotonic, wanted=lambda: False)

    with pytest.raises(StopRequestedError, match="is stopping"):
        deadline.check()
