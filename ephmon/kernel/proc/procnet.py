r"""The socket tables of /proc/net: what is read where inet_diag is not to be had.

In comes the root of a procfs, out come `TcpSockets` and `UdpSockets`. A row that is not as the kernel writes it raises:
it is never passed over. Sources: Documentation/networking/proc_net_tcp.rst; tcp4_seq_show() in net/ipv4/tcp_ipv4.c,
tcp6_seq_show() in net/ipv6/tcp_ipv6.c, udp4_seq_show() in net/ipv4/udp.c, ip6_dgram_sock_seq_show() in
net/ipv6/datagram.c.

A file is one line of headings and a line a socket. A line's columns, numbers in hexadecimal where nothing else is said:

====  =======================  ======================================================================================
   1  number of the row, `:`   decimal; counts the rows of TCP, names the hash slot of UDP
   2  local address `:` port   the port in host order; the address as 32-bit words, one for IPv4, four for IPv6, each as
                               the machine reads the four bytes: 127.0.0.1 is 0100007F on a little-endian one
   3  remote address `:` port  zeros for none
   4  state                    `TcpState`; of UDP 01 is connected and 07 is not
   5  send and receive queue   bytes, `:` between
   6  timer `:` time           the timer is 3 for a struct inet_timewait_sock and for nothing else, and then the time is
                               what is left of its life in clock ticks (sysconf(SC_CLK_TCK))
7-12  retransmits, uid, timeouts, inode, references, address in the kernel
13-   five more for a TCP socket that is no TIME_WAIT structure and no request; the count of drops for UDP
====  =======================  ======================================================================================

What these files do not tell is in `blind_to`. The kernel writes them a page at a time and lets sockets come and go in
between, so that a socket may be missed or seen twice.
"""

from __future__ import annotations

import os
import re
import sys
from array import array
from binascii import a2b_hex
from functools import cache
from socket import AF_INET, AF_INET6
from typing import TYPE_CHECKING, BinaryIO, Literal, NamedTuple

from ephmon.errors import KernelError, Reason
from ephmon.facts.addresses import V6_BYTES, is_wildcard, unmapped
from ephmon.facts.socket_groups import SocketGroup, SocketGroups
from ephmon.facts.sockets import NO_SOCKETS, Blindness, SocketTable, TcpSockets, TcpState, UdpSockets
from ephmon.kernel.proc.file import quoted, unreadable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path
    from socket import AddressFamily

    from ephmon.facts.snapshot import PortRange
    from ephmon.kernel.deadline import Deadline

_CHUNK_BYTES = 1 << 18
_LONGEST_LEFT_MS = 0xFFFF
_MINISOCK_TIMER = b"03"
_MINISOCK_STATES = (TcpState.FIN_WAIT2, TcpState.TIME_WAIT)
_HEADINGS = re.compile(rb" *sl +local_address(?: +[!-~]+){10,20} *\n")
_BLIND = frozenset({Blindness.BOUND_DEVICE, Blindness.V6ONLY})


class Row(NamedTuple):
    """A socket as one line of a table shows it; addresses are packed, an IPv4-mapped one is 4 bytes."""

    port: int
    """Local port."""
    ipv6: bool
    """A row of the IPv6 table, so an AF_INET6 socket, whatever its addresses."""
    state: int
    source: bytes
    destination: bytes
    destination_port: int
    minisock: bool
    """A struct inet_timewait_sock."""
    left_ms: int
    """What is left of the life of a struct inet_timewait_sock in milliseconds, at most 65,535; else 0."""


def read_tcp(proc: Path, port_range: PortRange, deadline: Deadline) -> TcpSockets:
    """Read the TCP sockets of both families whose local port is in the range, from net/tcp and net/tcp6 below `proc`.

    `named` stays empty: the tables do not tell who named a port.

    Raises:
        KernelError: With reason `procfs`, a table cannot be read or is malformed; or the deadline passed.
    """
    bound, connections = _Collector(), _Collector()

    def collect(row: Row) -> None:
        if row.state == TcpState.LISTEN:
            bound.add(row, _group_without_peer(row))
        else:
            connections.add(row, _group(row))

    _read_tables(proc, "tcp", port_range, deadline, collect)
    return TcpSockets(
        bound=bound.table(),
        named=NO_SOCKETS,
        connections=connections.table(),
        blind_to=_BLIND | {Blindness.BOUND_UNCONNECTED},
    )


def read_udp(proc: Path, port_range: PortRange, deadline: Deadline) -> UdpSockets:
    """Read the UDP sockets of both families whose local port is in the range, from net/udp and net/udp6 below `proc`.

    Raises:
        KernelError: With reason `procfs`, a table cannot be read or is malformed; or the deadline passed.
    """
    sockets = _Collector()
    _read_tables(proc, "udp", port_range, deadline, lambda row: sockets.add(row, _group_without_peer(row)))
    return UdpSockets(sockets=sockets.table(), blind_to=_BLIND)


def parse_table(
    lines: Iterable[bytes],
    family: AddressFamily,
    port_range: PortRange,
    where: Path,
    *,
    ticks_per_second: int,
    byteorder: Literal["little", "big"] = sys.byteorder,
) -> Iterator[Row]:
    """Yield the rows of one table whose local port is in the range; `where` is named in errors.

    `lines` are whole lines, each with its newline, the headings first.

    Raises:
        KernelError: With reason `procfs`; a line, in the range or not, is not as the kernel writes it.
    """
    numbered = enumerate(lines, start=1)
    _, headings = next(numbered, (1, b""))
    if not _HEADINGS.fullmatch(headings):
        raise _malformed(where, 1, headings, "the line of headings")
    pattern = _LINE_OF_FAMILY[family]
    address_of = cache(lambda text: decode_address(text, byteorder))
    low, high = port_range
    for number, line in numbered:
        match = pattern.fullmatch(line)
        if match is None:
            raise _malformed(where, number, line, "a row as the kernel writes it")
        source, port, destination, destination_port, state, timer, ticks = match.groups()
        row_port, row_state, minisock = int(port, 16), int(state, 16), timer == _MINISOCK_TIMER
        if row_state not in _MINISOCK_STATES if minisock else row_state == TcpState.TIME_WAIT:
            raise _malformed(where, number, line, "a row whose timer fits its state")
        if low <= row_port <= high:
            yield Row(
                port=row_port,
                ipv6=family == AF_INET6,
                state=row_state,
                source=address_of(source),
                destination=address_of(destination),
                destination_port=int(destination_port, 16),
                minisock=minisock,
                left_ms=min(int(ticks, 16) * 1000 // ticks_per_second, _LONGEST_LEFT_MS) if minisock else 0,
            )


def decode_address(text: bytes, byteorder: Literal["little", "big"] = sys.byteorder) -> bytes:
    """Return the 4 or 16 bytes of an address as the tables write it, IPv4-mapped IPv6 as IPv4."""
    packed = a2b_hex(text)
    if byteorder == "little":
        packed = b"".join(packed[start : start + 4][::-1] for start in range(0, len(packed), 4))
    return unmapped(packed)


class _Collector:
    """Collects rows into the columns and groups of a SocketTable."""

    def __init__(self) -> None:
        self._index_of: dict[SocketGroup, int] = {}
        self._group_of = array("I")
        self._port_of = array("H")
        self._left_ms_of = array("H")

    def add(self, row: Row, group: SocketGroup) -> None:
        self._group_of.append(self._index_of.setdefault(group, len(self._index_of)))
        self._port_of.append(row.port)
        self._left_ms_of.append(row.left_ms)

    def table(self) -> SocketTable:
        return SocketTable(
            groups=SocketGroups.of(self._index_of),
            group_of=self._group_of,
            port_of=self._port_of,
            time_wait_left_ms_of=self._left_ms_of,
        )


def _group(row: Row) -> SocketGroup:
    return SocketGroup(
        state=row.state,
        source=row.source,
        destination=row.destination,
        destination_port=row.destination_port,
        minisock=row.minisock,
        dual_stack=row.ipv6,
    )


def _group_without_peer(row: Row) -> SocketGroup:
    """Return the group of a listener or of a UDP socket, whose peer does not count."""
    # __inet6_bind() (net/ipv6/af_inet6.c) sets IPV6_V6ONLY with every address that is neither :: nor IPv4-mapped. The
    # address of a connected UDP socket may come from connect(), which does not.
    bound_to_ipv6 = row.state != TcpState.ESTABLISHED and len(row.source) == V6_BYTES and not is_wildcard(row.source)
    return SocketGroup(
        state=row.state,
        source=row.source,
        destination=bytes(len(row.source)),
        destination_port=0,
        dual_stack=row.ipv6 and not bound_to_ipv6,
    )


def _read_tables(
    proc: Path, protocol: str, port_range: PortRange, deadline: Deadline, collect: Callable[[Row], None]
) -> None:
    """Hand the rows of both families to `collect`; where IPv6 is off there is no table of it."""
    ticks_per_second = os.sysconf("SC_CLK_TCK")
    for family, name in ((AF_INET, f"net/{protocol}"), (AF_INET6, f"net/{protocol}6")):
        try:
            with (proc / name).open("rb", buffering=_CHUNK_BYTES) as file:
                lines = _read_lines(file, deadline)
                for row in parse_table(lines, family, port_range, proc / name, ticks_per_second=ticks_per_second):
                    collect(row)
        except OSError as error:
            ipv6_is_off = family == AF_INET6 and isinstance(error, FileNotFoundError)
            if not ipv6_is_off:
                raise unreadable(proc, name, error, reason=Reason.PROCFS) from error


def _read_lines(file: BinaryIO, deadline: Deadline) -> Iterator[bytes]:
    """Yield the lines of a file of tens of megabytes, a chunk in memory at a time."""
    while chunk := file.readlines(_CHUNK_BYTES):
        deadline.check()
        yield from chunk


def _line_pattern(address_digits: int) -> re.Pattern[bytes]:
    """Return what matches a row of a table, in groups what `parse_table` takes of it."""
    address = rb"([0-9A-F]{%d}):([0-9A-F]{4})" % address_digits
    return re.compile(
        rb" *[0-9]+: " + address + rb" " + address + rb" ([0-9A-F]{2})"
        rb" [0-9A-F]{8,16}:[0-9A-F]{8,16}"  # queues
        rb" ([0-9A-F]{2}):([0-9A-F]{8,16})"  # timer, a long
        # Columns 7 to 12 must be there, more may be. So many that a second row may hide there are not allowed.
        rb"(?: +[!-~]+){6,17} *\n"
    )


_LINE_OF_FAMILY = {AF_INET: _line_pattern(8), AF_INET6: _line_pattern(32)}


def _malformed(where: Path, number: int, line: bytes, expected: str) -> KernelError:
    cut = "" if line.endswith(b"\n") else ", cut short"
    return KernelError(f"{where}, line {number}{cut}: {quoted(line)} is not {expected}.", reason=Reason.PROCFS)
