"""Asks inet_diag about single TCP connections: do they use TCP timestamps?

A connection is looked up by its 4-tuple (inet_diag_find_one_icsk(), net/ipv4/inet_diag.c). That takes the kernel a few
microseconds however many sockets there are, while a dump walks them all. The answer stands in struct tcp_info
(tcp_get_info(), net/ipv4/tcp.c). It needs no privilege.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

from ephmon.facts.addresses import V6_BYTES
from ephmon.facts.sockets import TcpState
from ephmon.kernel.netlink.attributes import attributes
from ephmon.kernel.netlink.inet_diag import SOCK_DIAG_BY_FAMILY
from ephmon.kernel.netlink.sock_diag import MalformedReplyError, Request

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ephmon.facts.socket_groups import ConnectKey
    from ephmon.facts.timestamps import TimestampQuestion
    from ephmon.kernel.deadline import Deadline
    from ephmon.kernel.netlink.sock_diag import SockDiag

# struct inet_diag_req_v2: family, protocol, ext, states,
# and of struct inet_diag_sockid: sport, dport, src, dst, if, cookie.
_REQUEST = struct.Struct("=BBBxI2s2s16s16sI8s")
_PORT = struct.Struct(">H")
_INET_DIAG_INFO = 2
_ANY_COOKIE = b"\xff" * 8  # INET_DIAG_NOCOOKIE, twice
_STATE, _ENDS, _ATTRIBUTES = 17, slice(20, 24), 88  # of a record, as `inet_diag` lays it out
_OPTIONS = 5  # tcpi_options in struct tcp_info
_TIMESTAMPS = 1  # TCPI_OPT_TIMESTAMPS
_UNDECIDED = frozenset(
    # The options are agreed on with the handshake; a listener that has the port now is another socket.
    {TcpState.SYN_SENT, TcpState.SYN_RECV, TcpState.NEW_SYN_RECV, TcpState.LISTEN, TcpState.CLOSE}
)


def read_timestamps(
    diag: SockDiag, questions: Iterable[TimestampQuestion], deadline: Deadline
) -> dict[ConnectKey, list[bool]]:
    """Return for each connect key whether those of its connections that still live use timestamps.

    Raises:
        KernelError: inet_diag is not available, or its reply cannot be trusted.
    """
    answers: dict[ConnectKey, list[bool]] = {}
    for one in questions:
        answers.setdefault(one.key, []).extend(_answers(diag, one, deadline))
    return answers


def _answers(diag: SockDiag, question: TimestampQuestion, deadline: Deadline) -> Iterator[bool]:
    for port in question.ports:
        record = diag.look_up(_request(question, port), deadline)
        used = None if record is None else _uses_timestamps(record, _ends(question, port))
        if used is not None:
            yield used


def _ends(question: TimestampQuestion, port: int) -> bytes:
    return _PORT.pack(port) + _PORT.pack(question.key.destination_port)


def _request(question: TimestampQuestion, port: int) -> Request:
    source, destination, destination_port = question.key
    payload = _REQUEST.pack(
        socket.AF_INET6 if len(source) == V6_BYTES else socket.AF_INET,
        socket.IPPROTO_TCP,
        1 << (_INET_DIAG_INFO - 1),
        0,  # a look-up has no states to choose from
        _PORT.pack(port),
        _PORT.pack(destination_port),
        source,
        destination,
        question.device,
        _ANY_COOKIE,
    )
    return Request(SOCK_DIAG_BY_FAMILY, payload)


def _uses_timestamps(record: bytearray, ends: bytes) -> bool | None:
    """Return what a record says, None if its connection has ended meanwhile.

    Raises:
        MalformedReplyError: The record or its struct tcp_info is too short.
    """
    if len(record) < _ATTRIBUTES:
        raise MalformedReplyError(f"An inet_diag record of {len(record)} bytes is too short.")
    if record[_ENDS] != ends or record[_STATE] in _UNDECIDED:
        return None
    for kind, start, end in attributes(record, _ATTRIBUTES, len(record)):
        if kind == _INET_DIAG_INFO:
            if end - start <= _OPTIONS:
                raise MalformedReplyError(f"An inet_diag attribute of type {kind} has {end - start} bytes.")
            return bool(record[start + _OPTIONS] & _TIMESTAMPS)
    return None  # a TIME_WAIT has no struct tcp_info
