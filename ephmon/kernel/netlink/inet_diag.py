"""The inet_diag codec: pure functions that build dump requests and turn blocks of replies into a SocketTable.

In come conditions and bytes, out go bytes and facts; nothing here touches a socket. Layouts are those of
include/uapi/linux/inet_diag.h; the numbers are in the kernel's own byte order but for ports and addresses, which are in
network order.

Decoding is by column. The records of one block have one length, so "the local ports of all records" is a slice with a
stride, taken in C. What distinguishes groups of sockets (family, state, peer, ...) is one run of bytes of a record once
the local port in its middle is blanked, so grouping is one dictionary look-up a record, made without running any
bytecode of ours: see `Tabulator`.
"""

from __future__ import annotations

import socket
import struct
import sys
from array import array
from collections import defaultdict
from itertools import chain, compress, count, starmap
from typing import TYPE_CHECKING, NamedTuple

from ephmon.facts.addresses import V4_BYTES, V4_MAPPED, V6_BYTES, is_wildcard
from ephmon.facts.socket_groups import SocketGroups
from ephmon.facts.sockets import Protocol, SocketTable, TcpState
from ephmon.kernel.netlink.attributes import attributes, have_all, packed_attribute
from ephmon.kernel.netlink.sock_diag import MalformedReplyError, Request

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

TCPDIAG_GETSOCK = 18
"""The older request, answered for IPv4 and IPv6 in one walk over the hash table (inet_diag_rcv_msg_compat())."""
SOCK_DIAG_BY_FAMILY = 20
"""The newer request: one walk for each family, and any protocol."""
INET_DIAG_REQ_BYTECODE = 1

ALL_STATES = 0xFFFFFFFF
BOUND_STATES = 1 << TcpState.LISTEN | 1 << TcpState.BOUND_INACTIVE
CONNECTION_STATES = ALL_STATES & ~BOUND_STATES
FULL_SOCKET_STATES = CONNECTION_STATES & ~(
    1 << TcpState.TIME_WAIT | 1 << TcpState.SYN_RECV | 1 << TcpState.NEW_SYN_RECV
)

_PROTOCOL_NUMBERS = {Protocol.TCP: socket.IPPROTO_TCP, Protocol.UDP: socket.IPPROTO_UDP}


# --- requests -----------------------------------------------------------------------------------------------------


class Condition(NamedTuple):
    """One test of a filter program: the operation with its arguments, and whether it must hold or must not."""

    operation: bytes
    """struct inet_diag_bc_op without its two jumps (the code alone), then what follows the op."""
    wanted: bool


_JMP, _S_GE, _S_LE, _AUTO, _S_COND, _D_COND = 1, 2, 3, 6, 7, 8
_OP = struct.Struct("=BBH")  # code, yes, no
_HOST_CONDITION = struct.Struct("=BBxxi")  # family, prefix length in bits, port
_FAMILY_OF_LENGTH = {0: socket.AF_UNSPEC, V4_BYTES: socket.AF_INET, V6_BYTES: socket.AF_INET6}


def local_port_at_least(port: int) -> Condition:
    """Hold for sockets whose local port is `port` or above. The port stands in the `no` field of a second op."""
    return Condition(bytes([_S_GE]) + _OP.pack(0, 0, port), wanted=True)


def local_port_at_most(port: int) -> Condition:
    """Hold for sockets whose local port is `port` or below."""
    return Condition(bytes([_S_LE]) + _OP.pack(0, 0, port), wanted=True)


def port_named_in_bind() -> Condition:
    """Hold for full sockets whose port was named in bind(): AUTO tests that SOCK_BINDPORT_LOCK is absent."""
    return Condition(bytes([_AUTO]), wanted=False)


def port_left_to_bind() -> Condition:
    """Hold for sockets whose port the kernel chose, and for all that are no full sockets."""
    return Condition(bytes([_AUTO]), wanted=True)


def not_local(port: int, address: bytes) -> Condition:
    """Hold for all sockets but those at the packed `address` and the local port `port`.

    An IPv4 address stands for the IPv4-mapped one too, a wildcard for every address of its family, and b"" for every
    address of both families.
    """
    prefix_bits = 0 if is_wildcard(address) else 8 * len(address)
    condition = _HOST_CONDITION.pack(_FAMILY_OF_LENGTH[len(address)], prefix_bits, port)
    return Condition(bytes([_S_COND]) + condition + address, wanted=False)


def remote(port: int, address: bytes) -> Condition:
    """Hold for sockets whose peer is the packed `address`, IPv4-mapped or not, and `port`; b"" is every address."""
    condition = _HOST_CONDITION.pack(_FAMILY_OF_LENGTH[len(address)], 8 * len(address), port)
    return Condition(bytes([_D_COND]) + condition + address, wanted=True)


def assemble(conditions: Iterable[Condition], any_of: Sequence[Condition] = ()) -> bytes:
    """Return the bytecode that accepts the sockets for which all conditions hold, and one of `any_of` if there are any.

    A program accepts by running off its end and rejects by jumping four bytes further (inet_diag_bc_run()).
    """
    program = b""
    for alternative in reversed(any_of):
        size = _OP.size + len(alternative.operation) - 1
        accept = _OP.pack(_JMP, _OP.size, _OP.size + len(program)) if program else b""
        program = _operation(alternative, size, size + _OP.size) + accept + program
    for condition in reversed(list(conditions)):
        size = _OP.size + len(condition.operation) - 1
        reject = len(program) + _OP.size
        if condition.wanted:
            program = _operation(condition, size, size + reject) + program
        else:
            jump = _OP.pack(_JMP, _OP.size, _OP.size + reject)
            program = _operation(condition, size, size + _OP.size) + jump + program
    return program


def _operation(condition: Condition, yes: int, no: int) -> bytes:
    """Return an op that goes `yes` bytes on where its test holds, else `no` bytes, with its arguments."""
    return _OP.pack(condition.operation[0], yes, no) + condition.operation[1:]


def tcp_request(states: int, conditions: Iterable[Condition], any_of: Sequence[Condition] = ()) -> Request:
    """Ask for the TCP sockets of both families in `states` (a bit mask) that `assemble` accepts.

    struct inet_diag_req: family, lengths of addresses, ext, struct inet_diag_sockid, states, dbs.
    """
    payload = bytes(4) + bytes(_SOCKID_BYTES) + struct.pack("=II", states, 0)
    return Request(TCPDIAG_GETSOCK, payload + _bytecode_attribute(conditions, any_of))


def family_request(protocol: int, family: int, states: int, conditions: Iterable[Condition]) -> Request:
    """Ask for the sockets of one protocol number and one family: struct inet_diag_req_v2."""
    payload = struct.pack("=BBBxI", family, protocol, 0, states) + bytes(_SOCKID_BYTES)
    return Request(SOCK_DIAG_BY_FAMILY, payload + _bytecode_attribute(conditions))


def protocol_number(protocol: Protocol) -> int:
    """Return the IP protocol number."""
    return _PROTOCOL_NUMBERS[protocol]


def _bytecode_attribute(conditions: Iterable[Condition], any_of: Sequence[Condition] = ()) -> bytes:
    program = assemble(conditions, any_of)
    return packed_attribute(INET_DIAG_REQ_BYTECODE, program) if program else b""


# --- replies ------------------------------------------------------------------------------------------------------
#
# A record is struct nlmsghdr (16 bytes), struct inet_diag_msg (72 bytes) and attributes:
#
#   16 family  17 state  18 timer  19 retrans  20 sport  22 dport  24 src[16]  40 dst[16]  56 if  60 cookie[8]
#   68 expires 72 rqueue 76 wqueue 80 uid      84 inode  88 attributes

_SOCKID_BYTES = 48
_FAMILY, _TIMER, _FLAGS, _SPORT, _COOKIE, _EXPIRES, _ATTRIBUTES = 16, 18, 19, 20, 60, 68, 88
_INET_DIAG_SKV6ONLY, _INET_DIAG_SOCKOPT = 11, 22
_READ_ATTRIBUTES = {_INET_DIAG_SKV6ONLY: 1, _INET_DIAG_SOCKOPT: 2}
"""How many bytes of their values are read: a shorter one would end before the column that is cut out."""

# What the byte at _FLAGS (retrans, which nobody needs) is overwritten with.
_NO_PORT, _V6ONLY = SocketGroups.NO_PORT, 0x80
_LITTLE = sys.byteorder == "little"
# struct inet_diag_sockopt is two bytes of one-bit fields; bind_address_no_port is the first of the second byte.
_NO_PORT_OF_SOCKOPT = bytes(_NO_PORT if value & (1 if _LITTLE else 0x80) else 0 for value in range(256))
_V6ONLY_OF_BYTE = bytes(_V6ONLY if value else 0 for value in range(256))
# idiag_timer is 3 for a struct inet_timewait_sock and for nothing else (inet_twsk_diag_fill()).
_MINISOCK_OF_TIMER = bytes(1 if value == 3 else 0 for value in range(256))
_LOW, _HIGH = (0, 1) if _LITTLE else (1, 0)
_LONGEST_LEFT = 0xFFFF
# Knuth's multiplicative hash: 2**64 divided by the golden ratio.
_MIXER, _MASK = 0x9E3779B97F4A7C15, (1 << 64) - 1

_LENGTH_OF_FAMILY = bytes(V6_BYTES if family == socket.AF_INET6 else V4_BYTES for family in range(256))
_IS_V6 = bytes(family == socket.AF_INET6 for family in range(256))


class Tabulator:
    """Collects blocks of one dump into the three columns and the groups of a SocketTable.

    Args:
        with_peer: Whether the groups tell destinations apart. UDP ports do not care for them, and a proxy may have a
            destination for each socket.
        with_options: Whether the groups tell socket options apart.
        fingerprints: By port, what the cookie of each socket is mixed into; see `TcpSockets.fingerprints`.

    Memory: eight bytes a socket, and a dictionary entry a group.
    """

    def __init__(self, *, with_peer: bool, with_options: bool = True, fingerprints: array[int] | None = None) -> None:
        self._with_peer = with_peer
        self._with_options = with_options
        self._fingerprints = fingerprints
        self._index: defaultdict[tuple[bytes, ...], int] = defaultdict(count().__next__)
        self._group_of = array("I")
        self._port_of = array("H")
        self._left_of = array("H")
        self._keys: dict[int, struct.Struct] = {}

    def add(self, length: int, block: bytearray) -> None:
        """Take in a block of records of `length` bytes each; the block is overwritten.

        Raises:
            MalformedReplyError: A record is too short or not whole words, or its attributes overrun it.
        """
        require_whole_records(block, length)
        offsets = _value_offsets(block, length) if self._with_options else {}
        if all(have_all(block, length, offset) for offset in offsets.values()):
            self._add_columns(length, block, offsets)
            return
        for start in range(0, len(block), length):
            record = block[start : start + length]
            self._add_columns(length, record, _value_offsets(record, length))

    def table(self) -> SocketTable:
        """Return what was collected."""
        keys = self._index if self._with_peer else starmap(_without_peer, self._index)
        return SocketTable(
            groups=_groups(keys),
            group_of=self._group_of,
            port_of=self._port_of,
            time_wait_left_ms_of=self._left_of,
        )

    def _add_columns(self, length: int, block: bytearray, offsets: dict[int, int]) -> None:
        minisocks = block[_TIMER::length].translate(_MINISOCK_OF_TIMER)
        ports = array("H", bytes(_local_ports(block, length)))
        self._port_of.extend(ports)
        if self._fingerprints is not None:
            _mix_in(self._fingerprints, ports, _cookies(block, length))
        self._left_of.extend(_time_wait_left(block, length, minisocks))
        blank = bytes(len(block) // length)
        block[_TIMER::length] = minisocks
        block[_FLAGS::length] = _flags(block, length, offsets)
        block[_SPORT::length] = blank
        block[_SPORT + 1 :: length] = blank
        keys = self._keys_of(length).iter_unpack(block)
        self._group_of.extend(map(self._index.__getitem__, keys))

    def _keys_of(self, length: int) -> struct.Struct:
        """Return what cuts the group's key out of a record of this length."""
        layout = self._keys.get(length)
        if layout is None:
            fields = "44s" if self._with_peer else "4s4x16s16x4s"
            layout = self._keys[length] = struct.Struct(f"={_FAMILY}x{fields}{length - _FAMILY - 44}x")
        return layout


def require_whole_records(block: bytearray, length: int) -> None:
    """Raise MalformedReplyError unless a block consists of records of `length` bytes that are long enough."""
    if length < _ATTRIBUTES or length % 4 or len(block) % length:
        raise MalformedReplyError(f"An inet_diag record of {length} bytes is too short, or not whole words.")


def _value_offsets(block: bytearray, length: int) -> dict[int, int]:
    """Return where the first record has the values of the attributes that are read, by their type."""
    offsets = {}
    for kind, start, end in attributes(block, _ATTRIBUTES, length):
        if kind in _READ_ATTRIBUTES:
            if end - start < _READ_ATTRIBUTES[kind]:
                raise MalformedReplyError(f"An inet_diag attribute of type {kind} has {end - start} bytes.")
            offsets[kind] = start
    return offsets


def _cookies(block: bytearray, length: int) -> list[int]:
    """Return the lower half of the cookies of all records.

    A socket gets its cookie when it is first asked for, and each CPU counts cookies up in batches of its own
    (sock_gen_cookie() in net/core/sock_diag.c, include/linux/cookie.h), so sockets that stand side by side in a dump
    have neighbouring ones.
    """
    return memoryview(block).cast("I")[_COOKIE // 4 :: length // 4].tolist()


def _mix_in(fingerprints: array[int], ports: Iterable[int], cookies: Iterable[int]) -> None:
    for port, cookie in zip(ports, cookies, strict=True):
        fingerprints[port] ^= cookie * _MIXER & _MASK


def _local_ports(block: bytearray, length: int) -> bytearray:
    """Return the local ports of all records as 16-bit numbers in host byte order."""
    ports = bytearray(2 * (len(block) // length))
    ports[_HIGH::2] = block[_SPORT::length]
    ports[_LOW::2] = block[_SPORT + 1 :: length]
    return ports


def _time_wait_left(block: bytearray, length: int, minisocks: bytearray) -> array[int]:
    """Return idiag_expires of all records in milliseconds, at most 65,535; zeros if none is a TIME_WAIT structure."""
    if 1 not in minisocks:
        return array("H", bytes(2 * len(minisocks)))
    left = memoryview(block).cast("I")[_EXPIRES // 4 :: length // 4].tolist()
    return array("H", left if max(left) <= _LONGEST_LEFT else [min(ms, _LONGEST_LEFT) for ms in left])


def _flags(block: bytearray, length: int, offsets: dict[int, int]) -> bytes | bytearray:
    """Return the byte of flags that the groups of each record get, from its attributes."""
    if _INET_DIAG_SKV6ONLY in offsets:
        return block[offsets[_INET_DIAG_SKV6ONLY] :: length].translate(_V6ONLY_OF_BYTE)
    if _INET_DIAG_SOCKOPT in offsets:
        return block[offsets[_INET_DIAG_SOCKOPT] + 1 :: length].translate(_NO_PORT_OF_SOCKOPT)
    return bytes(len(block) // length)


def _without_peer(head: bytes, source: bytes, device: bytes) -> tuple[bytes, ...]:
    """Return the key of a UDP socket with zeros where a peer would stand."""
    return head, bytes(4), source, bytes(16), device


def _groups(keys: Iterable[tuple[bytes, ...]]) -> SocketGroups:
    """Return the groups of keys that were cut out of records, in the order of the keys.

    A key is laid out as `SocketGroups` wants it but for the lengths of addresses, so nothing is done for each of the
    groups but for those of the family AF_INET6, which may be IPv4-mapped.
    """
    packed = bytearray().join(chain.from_iterable(keys))
    size = SocketGroups.PACKED.size
    families = packed[::size]
    packed[4::size] = families.translate(_LENGTH_OF_FAMILY)
    for index in compress(count(), families.translate(_IS_V6)):
        _fit_v6(packed, index * size)
    return SocketGroups(packed)


def _fit_v6(packed: bytearray, start: int) -> None:
    """Turn V6ONLY of a group of IPv6 sockets into its opposite, and IPv4-mapped addresses into IPv4."""
    flags = packed[start + 3]
    packed[start + 3] = flags & _NO_PORT | (0 if flags & _V6ONLY else SocketGroups.DUAL_STACK)
    source, destination = start + 8, start + 24
    if packed.startswith(V4_MAPPED, source):
        packed[start + 4] = V4_BYTES
        # A socket without a peer has the address :: there, which ends in zeros too.
        for address in (source, destination):
            packed[address : address + 16] = packed[address + 12 : address + 16] + bytes(12)
