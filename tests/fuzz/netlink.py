"""Netlink: replies of inet_diag and of the routing table.

inet_diag is decoded once more here, message by message and as slowly as it reads; the two must agree on every socket.
"""

from __future__ import annotations

import json
import struct
from array import array
from collections import Counter
from ipaddress import ip_address
from socket import AF_INET6
from typing import NamedTuple

from ephmon.errors import KernelError
from ephmon.facts.addresses import PORTS, V4_MAPPED
from ephmon.facts.socket_groups import SocketGroup
from ephmon.kernel.netlink import inet_diag, owner_dump, route
from ephmon.kernel.netlink.attributes import attributes
from ephmon.kernel.netlink.sock_diag import HEADER, split
from tests.fuzz.mutation import Structure
from tests.fuzz.target import RECORDED, Target, answer

SEQUENCE = 7
PORT = 0
_RECORD = struct.Struct("=16x4B2s2s16s16sI8sI8xII")
_V6ONLY, _CGROUP_ID, _SOCKOPT = 11, 21, 22
_ATTRIBUTE = struct.Struct("=HH")
_REQUESTS = (inet_diag.TCPDIAG_GETSOCK, inet_diag.SOCK_DIAG_BY_FAMILY)
_STALE = bytes(range(256))
"""What an earlier reply left in the buffer, behind the present one."""
_FINGERPRINTS = array("Q", bytes(8 * PORTS))
_DESTINATIONS = tuple(map(ip_address, ("192.0.2.1", "2001:db8::1")))


class Record(NamedTuple):
    """One socket as struct inet_diag_msg and its attributes have it."""

    port: int
    left_ms: int
    group: SocketGroup
    owner: tuple[int | None, int | None]
    """User id and cgroup id."""
    inode: int


def check_inet_diag(data: bytes) -> None:
    """Take a datagram apart and decode its sockets, once with the parsers and once record by record."""
    # A reply answers one of two requests, and its sockets carry the type of that.
    kind = next((kind for kind in _REQUESTS if kind == int.from_bytes(data[4:6], "little")), _REQUESTS[0])
    found = answer(KernelError, split, bytearray(data + _STALE), len(data), kind, SEQUENCE, PORT)
    if found is not None:
        _check_blocks(data, kind, found[1])


def _check_blocks(data: bytes, kind: int, blocks: list[tuple[int, bytearray]]) -> None:
    messages = _messages(data, kind)
    assert sorted(messages) == sorted(
        bytes(block[start : start + length]) for length, block in blocks for start in range(0, len(block), length)
    )
    tabulator = inet_diag.Tabulator(with_peer=True, fingerprints=_FINGERPRINTS)
    without_peer = inet_diag.Tabulator(with_peer=False, with_options=False)
    collector = owner_dump._Collector(with_peer=True)
    is_whole = True
    for length, block in blocks:
        is_whole &= answer(KernelError, collector.add, length, bytearray(block)) is None
        is_whole &= answer(KernelError, without_peer.add, length, bytearray(block)) is None
        is_whole &= answer(KernelError, tabulator.add, length, block) is None
    if not all(map(_is_good, messages)):
        return  # one of the three has said so, or reads no attributes and need not mind
    assert is_whole
    if not all(_is_one_layout_or_seen(messages, kinds) for kinds in (tuple(inet_diag._READ_ATTRIBUTES), (_CGROUP_ID,))):
        return
    records = list(map(_record, messages))
    table, owners = tabulator.table(), collector.table()
    assert Counter(
        (port, left if table.groups[group].minisock else 0, table.groups[group])  # else `left` means nothing
        for port, left, group in zip(table.port_of, table.time_wait_left_ms_of, table.group_of, strict=True)
    ) == Counter((record.port, record.left_ms, record.group) for record in records)
    assert len(table) == len(records) == len(without_peer.table())
    assert Counter(without_peer.table().port_of) == Counter(record.port for record in records)
    assert Counter(
        (port, inode, group.uid, group.cgroup_id)
        for group, ports, inodes in zip(owners.groups, owners.ports_of, owners.inodes_of, strict=True)
        for port, inode in zip(ports, inodes, strict=True)
    ) == Counter((record.port, record.inode, *record.owner) for record in records)


def _messages(data: bytes, kind: int) -> list[bytes]:
    """Return the messages of a type in a datagram that `split` found nothing wrong with."""
    found = []
    offset = 0
    while offset < len(data):
        length, its_kind, *_ = HEADER.unpack_from(data, offset)
        if its_kind == kind:
            found.append(data[offset : offset + length])
        offset += (length + 3) & ~3
    return found


def _is_good(message: bytes) -> bool:
    """Tell whether a record is long enough, whole words, and its attributes fill it and are as long as they should."""
    if len(message) < inet_diag._ATTRIBUTES or len(message) % 4:
        return False
    least = {_V6ONLY: 1, _CGROUP_ID: 8, _SOCKOPT: 2}
    for kind, value in _attributes(message):
        if value is None or len(value) < least.get(kind, 0) or (kind == _CGROUP_ID and len(value) != 8):
            return False
    return True


def _is_one_layout_or_seen(messages: list[bytes], kinds: tuple[int, ...]) -> bool:
    """Tell whether records of one length that do not have the same attributes can be told apart by those of the first.

    The parsers look no further, since the kernel writes attributes in one order and always the same ones in between.
    """
    layouts: dict[int, list[bytes]] = {}
    for message in messages:
        layouts.setdefault(len(message), []).append(message)
    for first, *others in layouts.values():
        places = _places(first, kinds)
        if not places and kinds == (_CGROUP_ID,):
            continue  # then the owners are looked for in each record
        seem_alike = all(one[place - 4 : place] == first[place - 4 : place] for one in others for place in places)
        if seem_alike and any(_places(one, kinds) != places for one in others):
            return False
    return True


def _places(message: bytes, kinds: tuple[int, ...]) -> list[int]:
    """Return where the values of some attributes start: of several the last, but of cgroup ids the first."""
    found = [(kind, place) for kind, place, _ in attributes(message, inet_diag._ATTRIBUTES, len(message))]
    places = dict(found if kinds != (_CGROUP_ID,) else reversed(found))
    return sorted(place for kind, place in places.items() if kind in kinds)


def _attributes(message: bytes) -> list[tuple[int, bytes | None]]:
    """Return type and value of each attribute; None for a value that runs over the end."""
    found: list[tuple[int, bytes | None]] = []
    offset = inet_diag._ATTRIBUTES
    while offset + _ATTRIBUTE.size <= len(message):
        size, kind = _ATTRIBUTE.unpack_from(message, offset)
        if size < _ATTRIBUTE.size or offset + size > len(message):
            return [*found, (kind, None)]
        found.append((kind, message[offset + _ATTRIBUTE.size : offset + size]))
        offset += (size + 3) & ~3
    return found


def _record(message: bytes) -> Record:
    fields = _RECORD.unpack_from(message)
    family, state, timer, _, local, remote, source, destination, device, _, expires, uid, inode = fields
    found = _attributes(message)
    values = dict(found)  # of several the last counts
    cgroup = next((value for kind, value in found if kind == _CGROUP_ID), None)  # and of these the first
    is_v6 = family == AF_INET6
    if is_v6 and source.startswith(V4_MAPPED):
        source, destination = source[12:], destination[12:]
    elif not is_v6:
        source, destination = source[:4], destination[:4]
    v6only, options = values.get(_V6ONLY), values.get(_SOCKOPT)
    return Record(
        port=int.from_bytes(local, "big"),
        left_ms=min(expires, 0xFFFF) if timer == 3 else 0,
        group=SocketGroup(
            state=state,
            source=source,
            destination=destination,
            destination_port=int.from_bytes(remote, "big"),
            device=device,
            minisock=timer == 3,
            bind_address_no_port=v6only is None and options is not None and bool(options[1] & 1),
            dual_stack=is_v6 and not (v6only is not None and v6only[0]),
        ),
        owner=(uid if inode else None, None if cgroup is None else int.from_bytes(cgroup, "little")),
        inode=inode,
    )


def check_route(data: bytes) -> None:
    """Read the answer about a route: an address comes from the answer, and has the family that was asked for."""
    for destination in _DESTINATIONS:
        source = answer(KernelError, route.parse_reply, data, destination)
        if source is not None:
            assert source.version == destination.version
            assert source.packed in data
    kind = route.route_type(data)
    assert kind is None or kind in data


def _recorded() -> list[bytes]:
    """Return datagrams of the kernel, with the sequence number and port id of these tests."""
    datagrams = []
    for file in sorted((RECORDED / "inet_diag").glob("*.json")):
        datagrams += [bytes.fromhex(text) for text in json.loads(file.read_text(encoding="ascii"))]
    return datagrams


TARGETS = (
    Target(
        name="inet_diag",
        parsers=(
            "kernel.netlink.sock_diag.split",
            "kernel.netlink.inet_diag.Tabulator",
            "kernel.netlink.owner_dump._Collector",
        ),
        check=check_inet_diag,
        seeds=_recorded,
        max_bytes=2048,
        structure=Structure.NETLINK,
        executions=4_000,
    ),
    Target(
        name="route",
        parsers=("kernel.netlink.route.parse_reply", "kernel.netlink.route.route_type"),
        check=check_route,
        max_bytes=512,
        executions=10_000,
    ),
)
