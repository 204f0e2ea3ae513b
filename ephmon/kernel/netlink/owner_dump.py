"""Dumps with owners: what inet_diag says of each socket about who made it. Read on demand, never by an ordinary poll.

In come ports or destinations, out comes an `OwnerTable`. The kernel attaches INET_DIAG_CGROUP_ID to every socket that
is more than a TIME_WAIT structure or a connection request, to whoever asks (inet_diag_msg_attrs_fill(),
net/ipv4/inet_diag.c; Linux 5.8). Its number is the id of the cgroup in the cgroup2 hierarchy that the socket was made
in (cgroup_sk_alloc(), kernel/cgroup/cgroup.c), whatever became of the process; an accepted socket has that of its
listener.
"""

from __future__ import annotations

import socket
import struct
from array import array
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING

from ephmon.facts.addresses import PORTS, V4_BYTES, is_wildcard, unmapped
from ephmon.facts.owned_sockets import OwnerGroup, OwnerTable
from ephmon.facts.sockets import Protocol
from ephmon.kernel.netlink import inet_diag
from ephmon.kernel.netlink.attributes import attributes, have_all
from ephmon.kernel.netlink.sock_diag import MalformedReplyError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from ephmon.facts.snapshot import PortRange
    from ephmon.kernel.deadline import Deadline
    from ephmon.kernel.netlink.inet_diag import Condition
    from ephmon.kernel.netlink.sock_diag import Request, SockDiag

MOST_SOCKETS = 1 << 18
"""So many sockets are taken in, the rest is counted: six bytes each, and some 200 for each group of them."""
DESTINATIONS_IN_A_DUMP = 64
"""So many destinations are asked for at once, at a test each for every socket of the namespace."""


# struct nlmsghdr, struct inet_diag_msg: see `ephmon.kernel.netlink.inet_diag`.
_ATTRIBUTES = 88
_INET_DIAG_CGROUP_ID = 21
_CGROUP_ID_BYTES = 8


def read_owners_toward(
    diag: SockDiag, port_range: PortRange, destinations: Collection[tuple[bytes, int]], deadline: Deadline
) -> OwnerTable:
    """Read the TCP connections toward some destinations (packed address, port).

    Raises:
        KernelError: inet_diag is not available, or its reply cannot be trusted.
    """
    inside = _inside(port_range.low, port_range.high)
    peers = iter(sorted(set(destinations)))
    collector = _Collector(with_peer=True)
    while batch := [inet_diag.remote(port, address) for address, port in islice(peers, DESTINATIONS_IN_A_DUMP)]:
        diag.dump(inet_diag.tcp_request(inet_diag.CONNECTION_STATES, inside, batch), collector.add, deadline)
    return collector.table()


def read_owners_of_ports(diag: SockDiag, protocol: Protocol, ports: Collection[int], deadline: Deadline) -> OwnerTable:
    """Read all sockets of a protocol on some local ports; their groups carry no destination.

    Raises:
        KernelError: inet_diag is not available, or its reply cannot be trusted.
    """
    collector = _Collector(ports=ports)
    for request in _requests(protocol, _inside(min(ports), max(ports))) if ports else ():
        diag.dump(request, collector.add, deadline)
    return collector.table()


def _requests(protocol: Protocol, conditions: Iterable[Condition]) -> list[Request]:
    if protocol == Protocol.TCP:
        return [inet_diag.tcp_request(inet_diag.ALL_STATES, conditions)]
    number, conditions = inet_diag.protocol_number(protocol), list(conditions)
    families = (socket.AF_INET, socket.AF_INET6)
    return [inet_diag.family_request(number, family, inet_diag.ALL_STATES, conditions) for family in families]


def _inside(low: int, high: int) -> list[Condition]:
    return [inet_diag.local_port_at_least(low), inet_diag.local_port_at_most(high)]


class _Collector:
    """Takes in the blocks of a dump and sorts their sockets into groups.

    Args:
        with_peer: Whether groups tell destinations apart.
        ports: The local ports that are asked for, None for all.
        most: How many sockets are taken in at most.
    """

    def __init__(
        self, *, with_peer: bool = False, ports: Collection[int] | None = None, most: int = MOST_SOCKETS
    ) -> None:
        self._with_peer = with_peer
        self._is_asked = bytearray(PORTS) if ports is not None else bytearray(b"\1" * PORTS)
        for port in ports or ():
            self._is_asked[port] = 1
        self._room = most
        self._left_out = 0
        self._columns: dict[_Key, _Columns] = {}

    def add(self, length: int, block: bytearray) -> None:
        """Take in a block of records of `length` bytes each.

        Raises:
            MalformedReplyError: A record is too short or not whole words, or its attributes overrun it.
        """
        inet_diag.require_whole_records(block, length)
        offset = _cgroup_id_offset(block, length)
        if _share_layout(block, length, offset):
            self._add_records(_layout(length, offset), block)
            return
        for start in range(0, len(block), length):
            record = block[start : start + length]
            self._add_records(_layout(length, _cgroup_id_offset(record, length)), record)

    def table(self) -> OwnerTable:
        """Return what was collected."""
        return OwnerTable(
            groups=tuple(map(_group, self._columns)),
            ports_of=tuple(ports for ports, _ in self._columns.values()),
            inodes_of=tuple(inodes for _, inodes in self._columns.values()),
            sockets_left_out=self._left_out,
        )

    def _add_records(self, layout: struct.Struct, block: bytearray) -> None:
        is_asked, columns = self._is_asked, self._columns
        for head, high, low, destination_port, source, destination, uid, inode, *cgroup_id in layout.iter_unpack(block):
            port = high << 8 | low
            if not is_asked[port]:
                continue
            if not self._room:
                self._left_out += 1
                continue
            self._room -= 1
            peer = destination_port + destination if self._with_peer else _NO_PEER
            key = (head, source, peer, uid if inode else None, cgroup_id[0] if cgroup_id else None)
            ports, inodes = columns.get(key) or columns.setdefault(key, (array("H"), array("I")))
            ports.append(port)
            inodes.append(inode)


_Key = tuple[bytes, bytes, bytes, int | None, int | None]
"""Family and state, source, port and address of the peer, user id, cgroup id."""
_Columns = tuple["array[int]", "array[int]"]
"""Ports and inodes."""
_NO_PEER = bytes(18)


@lru_cache(maxsize=64)
def _layout(length: int, offset: int | None) -> struct.Struct:
    """Return what takes records of this length apart, with their cgroup id if it stands at `offset`."""
    head = "=16x2s2xBB2s16s16s24xII"
    if offset is None:
        return struct.Struct(f"{head}{length - _ATTRIBUTES}x")
    return struct.Struct(f"{head}{offset - _ATTRIBUTES}xQ{length - offset - _CGROUP_ID_BYTES}x")


def _cgroup_id_offset(record: bytearray, length: int) -> int | None:
    """Return where a record has its cgroup id, None if it has none. It may be the first of several."""
    for kind, start, end in attributes(record, _ATTRIBUTES, length):
        if kind == _INET_DIAG_CGROUP_ID:
            if end - start != _CGROUP_ID_BYTES:
                raise MalformedReplyError(f"A cgroup id of an inet_diag record has {end - start} bytes.")
            return start
    return None


def _share_layout(block: bytearray, length: int, offset: int | None) -> bool:
    """Tell whether all records of the block have their cgroup id where the first has it, or have no room for one."""
    if len(block) == length or length - _ATTRIBUTES < _CGROUP_ID_BYTES:
        return True
    return offset is not None and have_all(block, length, offset)


def _group(key: _Key) -> OwnerGroup:
    (family, state), source, peer, uid, cgroup_id = key
    is_v6 = family == socket.AF_INET6
    source = unmapped(source) if is_v6 else source[:V4_BYTES]
    # A socket without a peer has the address :: there, also one that is bound to an IPv4-mapped address.
    destination = bytes(len(source)) if is_wildcard(peer[2:]) else peer[2:]
    return OwnerGroup(
        state=state,
        source=source,
        destination=unmapped(destination) if is_v6 else destination[:V4_BYTES],
        destination_port=int.from_bytes(peer[:2], "big"),
        uid=uid,
        cgroup_id=cgroup_id,
    )
