"""The one netlink socket: sends a dump request to the kernel's sock_diag and takes the reply apart into messages.

In comes a request (from `ephmon.kernel.netlink.inet_diag`), out go blocks of equally long messages. A reply that cannot
be trusted (an errno in NLMSG_ERROR or NLMSG_DONE, a truncated datagram, a foreign sequence number, a length that lies)
raises, so that it can never read as "no sockets".

Sources: man 7 netlink; include/uapi/linux/netlink.h; netlink_dump() in net/netlink/af_netlink.c, which puts the errno
of a failed dump into the payload of NLMSG_DONE.
"""

from __future__ import annotations

import errno
import secrets
import socket
import struct
from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple, Self

from ephmon.errors import KernelError, Reason, errno_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ephmon.kernel.deadline import Deadline

NETLINK_SOCK_DIAG = 4
NLMSG_NOOP, NLMSG_ERROR, NLMSG_DONE, NLMSG_OVERRUN = 1, 2, 3, 4
NLM_F_REQUEST, NLM_F_MULTI, NLM_F_DUMP_INTR, NLM_F_DUMP = 0x1, 0x2, 0x10, 0x300

HEADER = struct.Struct("=IHHII")
"""struct nlmsghdr: length (header included), type, flags, sequence number, port id."""
_ERRNO = struct.Struct("=i")
_TIMEVAL = struct.Struct("@ll")
# While no module answers for inet_diag, the kernel refuses a TCPDIAG_GETSOCK request with -EOPNOTSUPP and the other
# type with -ENOENT (sock_diag_rcv_msg(), net/core/sock_diag.c); once inet_diag is there and the protocol's own module
# is not, both are answered by no socket and -ENOENT in NLMSG_DONE (inet_diag_dump(), net/ipv4/inet_diag.c).
_NO_HANDLER = frozenset({errno.ENOENT, errno.EOPNOTSUPP})

# The kernel fills at most 32 KiB in one go (netlink_dump()); twice that can only be too small if the kernel changes,
# and then MSG_TRUNC tells.
_BUFFER_BYTES = 1 << 16
# How long one recv() may sleep before the deadline is looked at again. A dump is made inside recv(), so a healthy
# kernel never lets it sleep at all.
_RECEIVE_TIMEOUT_MICROSECONDS = 200_000


class Request(NamedTuple):
    """A dump request without its header: message type and payload."""

    message_type: int
    payload: bytes


class NetlinkError(KernelError):
    """The kernel refused a dump. `errno` is the number that it gave."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message, reason=Reason.NETLINK)
        self.errno = number


class InterruptedDumpError(KernelError):
    """The kernel says that the dumped objects changed in a way that makes the dump inconsistent (NLM_F_DUMP_INTR)."""

    reason = Reason.INTERRUPTED


class MalformedReplyError(KernelError):
    """The reply breaks the netlink protocol."""

    reason = Reason.MALFORMED


class SockDiag:
    """A NETLINK_SOCK_DIAG socket for the length of one poll, as a context manager.

    It belongs to the network namespace it was opened in and keeps that namespace alive: open, dump, close.

    Raises:
        NetlinkError: The kernel has no sock_diag, or a sandbox refuses the socket.
    """

    def __init__(self) -> None:
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG)
        except OSError as error:
            raise _refusal(error.errno or 0, "The socket for inet_diag cannot be opened") from error
        timeout = _TIMEVAL.pack(0, _RECEIVE_TIMEOUT_MICROSECONDS)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
            self._socket.bind((0, 0))
            self._port = self._socket.getsockname()[0]
        except OSError as error:
            self._socket.close()
            raise _refusal(error.errno or 0, "The socket for inet_diag cannot be set up") from error
        self._buffer = bytearray(_BUFFER_BYTES)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def dump(self, request: Request, consume: Callable[[int, bytearray], None], deadline: Deadline) -> None:
        """Send `request` and hand each block of its reply to `consume`.

        `consume` gets the length of one message in bytes and a block of such messages, headers included, which it may
        overwrite but not keep.

        Raises:
            NetlinkError: The kernel answered with an errno.
            InterruptedDumpError: The kernel says that the dump is inconsistent.
            MalformedReplyError: The reply breaks the protocol or was truncated.
            KernelError: The deadline passed.
        """
        sequence = self._send(request, NLM_F_REQUEST | NLM_F_DUMP)
        done = False
        while not done:
            size = self._receive(deadline)
            done, blocks = split(self._buffer, size, request.message_type, sequence, self._port)
            for length, block in blocks:
                consume(length, block)

    def look_up(self, request: Request, deadline: Deadline) -> bytearray | None:
        """Ask for one object and return its message, header included; None if there is no such object.

        Raises:
            NetlinkError, MalformedReplyError, KernelError: as for `dump`.
        """
        sequence = self._send(request, NLM_F_REQUEST)
        size = self._receive(deadline)
        try:
            _, blocks = split(self._buffer, size, request.message_type, sequence, self._port)
        except NetlinkError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return blocks[0][1] if blocks else None

    def _send(self, request: Request, flags: int) -> int:
        """Send a request and return its sequence number."""
        sequence = secrets.randbits(32) or 1
        length = HEADER.size + len(request.payload)
        header = HEADER.pack(length, request.message_type, flags, sequence, self._port)
        try:
            self._socket.sendto(header + request.payload, (0, 0))
        except OSError as error:
            raise _refusal(error.errno or 0, "The kernel does not take the inet_diag request") from error
        return sequence

    def _receive(self, deadline: Deadline) -> int:
        """Receive one datagram of the kernel into the buffer and return its length in bytes."""
        while True:
            deadline.check()
            try:
                size, (sender, _) = self._socket.recvfrom_into(self._buffer, 0, socket.MSG_TRUNC)
            except BlockingIOError:
                continue
            except OSError as error:
                raise _refusal(error.errno or 0, "The inet_diag reply cannot be received") from error
            if sender != 0:
                continue  # only the kernel (port id 0) is listened to; man 7 netlink
            if size > len(self._buffer):
                raise MalformedReplyError(
                    f"An inet_diag reply of {size} bytes was truncated to {len(self._buffer)} bytes."
                )
            return size


def split(
    buffer: bytearray, size: int, message_type: int, sequence: int, port: int
) -> tuple[bool, list[tuple[int, bytearray]]]:
    """Take one datagram apart: whether it ends the dump, and its messages in blocks of equal length.

    `buffer[:size]` is the datagram. A datagram of equally long messages, as the kernel mostly sends, is handed on as it
    is; a mixed one is sorted by length into copies.

    Raises:
        NetlinkError, InterruptedDumpError, MalformedReplyError: as for `SockDiag.dump`.
    """
    if _is_uniform(buffer, size, message_type, sequence, port):
        return False, [(HEADER.unpack_from(buffer)[0], buffer[:size])]
    by_length: defaultdict[int, list[memoryview]] = defaultdict(list)
    view = memoryview(buffer)
    done = False
    for kind, start, end in _messages(view, size, sequence, port):
        if kind == message_type:
            by_length[end - start].append(view[start:end])
        elif kind == NLMSG_DONE:
            _check_done(view[start + HEADER.size : end])
            done = True
        elif kind == NLMSG_ERROR:
            raise _reported_error(view[start + HEADER.size : end])
        elif kind == NLMSG_OVERRUN:
            raise MalformedReplyError("The kernel reports that data of the inet_diag reply was lost (NLMSG_OVERRUN).")
        elif kind != NLMSG_NOOP:
            raise MalformedReplyError(f"The inet_diag reply has a message of unknown type {kind}.")
    return done, [(length, bytearray().join(parts)) for length, parts in by_length.items()]


def _is_uniform(buffer: bytearray, size: int, message_type: int, sequence: int, port: int) -> bool:
    """Tell whether the datagram is nothing but good messages of `message_type` and of one length.

    Looks at the headers as columns, so that the interpreter does not see single messages. Sequence number and port id
    are looked at in the first: one dump fills a datagram.
    """
    if size < HEADER.size:
        return False
    length, *others = HEADER.unpack_from(buffer)
    if others != [message_type, NLM_F_MULTI, sequence, port] or length < HEADER.size or length % 4 or size % length:
        return False
    words = memoryview(buffer)[:size].cast("I")
    rows, stride = size // length, length // 4
    return all(words[column::stride].tobytes() == words[column : column + 1].tobytes() * rows for column in range(2))


def _messages(view: memoryview, size: int, sequence: int, port: int) -> Iterator[tuple[int, int, int]]:
    """Yield (type, start, end) of each message of a datagram, after checking its header."""
    offset = 0
    while offset < size:
        if size - offset < HEADER.size:
            raise MalformedReplyError(f"The inet_diag reply ends within a header, {size - offset} bytes long.")
        length, kind, flags, its_sequence, its_port = HEADER.unpack_from(view, offset)
        if length < HEADER.size or length > size - offset:
            raise MalformedReplyError(f"A message of the inet_diag reply claims {length} of {size - offset} bytes.")
        if its_sequence != sequence or its_port != port:
            raise MalformedReplyError(f"The inet_diag reply answers request {its_sequence}, not {sequence}.")
        if flags & NLM_F_DUMP_INTR:
            raise InterruptedDumpError("The kernel says that the inet_diag dump is inconsistent (NLM_F_DUMP_INTR).")
        yield kind, offset, offset + length
        offset += (length + 3) & ~3


def _check_done(payload: memoryview) -> None:
    """Raise if NLMSG_DONE carries an errno: a handler that is not there ends an empty dump with -ENOENT."""
    if len(payload) < _ERRNO.size:
        return  # an empty NLMSG_DONE is how old kernels end a good dump
    (number,) = _ERRNO.unpack_from(payload)
    if number < 0:
        raise _refused_dump(-number)


def _reported_error(payload: memoryview) -> KernelError:
    """Turn the payload of NLMSG_ERROR into an exception."""
    if len(payload) < _ERRNO.size:
        return MalformedReplyError("The inet_diag reply has an NLMSG_ERROR without a number.")
    (number,) = _ERRNO.unpack_from(payload)
    if number == 0:
        return MalformedReplyError("The kernel acknowledged the inet_diag request instead of answering it.")
    return _refused_dump(-number)


def _refused_dump(number: int) -> NetlinkError:
    if number in _NO_HANDLER:
        return NetlinkError("The kernel has no inet_diag handler for the protocol.", number)
    return _refusal(number, "The kernel refuses the inet_diag request")


def _refusal(number: int, what: str) -> NetlinkError:
    return NetlinkError(f"{what}: {errno_text(number)}.", number)
