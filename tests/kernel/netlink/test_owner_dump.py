"""Dumps with owners: on replies captured from a real kernel, and on a live one with sockets in several cgroups."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ephmon.errors import KernelError
from ephmon.facts.owned_sockets import OwnerGroup, OwnerTable
from ephmon.facts.snapshot import PortRange
from ephmon.facts.sockets import Protocol, TcpState
from ephmon.kernel.deadline import Deadline
from ephmon.kernel.netlink import inet_diag, owner_dump
from ephmon.kernel.netlink.sock_diag import MalformedReplyError, SockDiag, split
from tests import sockets
from tests.cgroups import Cgroups
from tests.namespaces import Namespace
from tests.sockets import FillResult, Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator

DATA = Path(__file__).parents[1] / "data" / "inet_diag"
SEQUENCE = 7
V4, V6 = bytes([127, 0, 0, 1]), bytes(15) + b"\1"
ANY4, ANY6 = bytes(4), bytes(16)
LISTEN, BOUND, OPEN = TcpState.LISTEN, TcpState.CLOSE, TcpState.ESTABLISHED
INSIDE = PortRange(40_000, 40_999)
HERE = "127.0.0.1"


def captured(name: str) -> list[bytearray]:
    return [bytearray.fromhex(datagram) for datagram in json.loads((DATA / f"{name}.json").read_text())]


def collected(
    datagrams: list[bytearray], collector: owner_dump._Collector, *, message_type: int = inet_diag.TCPDIAG_GETSOCK
) -> OwnerTable:
    for datagram in datagrams:
        for length, block in split(datagram, len(datagram), message_type, SEQUENCE, 0)[1]:
            collector.add(length, block)
    return collector.table()


def by_port(table: OwnerTable) -> dict[int, OwnerGroup]:
    return {port: group for group, ports in zip(table.groups, table.ports_of, strict=True) for port in ports}


def test_every_full_socket_has_an_owner_and_a_time_wait_has_none() -> None:
    table = collected(captured("tcp"), owner_dump._Collector(with_peer=True))

    assert by_port(table) == {
        40001: OwnerGroup(LISTEN, ANY4, ANY4, 0, uid=0, cgroup_id=1),
        40002: OwnerGroup(LISTEN, ANY6, ANY6, 0, uid=0, cgroup_id=1),
        40003: OwnerGroup(LISTEN, ANY6, ANY6, 0, uid=0, cgroup_id=1),
        40010: OwnerGroup(OPEN, V4, V4, 80, uid=0, cgroup_id=1),
        40011: OwnerGroup(OPEN, V6, V6, 80, uid=0, cgroup_id=1),
        40012: OwnerGroup(OPEN, V4, V4, 80, uid=0, cgroup_id=1),
        40013: OwnerGroup(OPEN, V4, V4, 80, uid=0, cgroup_id=1),
        40014: OwnerGroup(OPEN, V4, V4, 80, uid=0, cgroup_id=1),
        40020: OwnerGroup(BOUND, V4, ANY4, 0, uid=0, cgroup_id=1),
        40021: OwnerGroup(BOUND, V6, ANY6, 0, uid=0, cgroup_id=1),
        40030: OwnerGroup(TcpState.FIN_WAIT2, V4, V4, 80, uid=None, cgroup_id=None),
        40031: OwnerGroup(TcpState.TIME_WAIT, V4, V4, 40003, uid=None, cgroup_id=None),
    }


def test_udp_sockets_have_owners_too() -> None:
    message_type = inet_diag.SOCK_DIAG_BY_FAMILY
    table = collected(captured("udp6"), owner_dump._Collector(), message_type=message_type)

    assert by_port(table) == {
        40042: OwnerGroup(BOUND, ANY6, ANY6, 0, uid=0, cgroup_id=1),
        40043: OwnerGroup(BOUND, ANY6, ANY6, 0, uid=0, cgroup_id=1),
        40044: OwnerGroup(OPEN, V6, ANY6, 0, uid=0, cgroup_id=1),
    }


def test_ports_that_were_not_asked_for_are_left_out() -> None:
    table = collected(captured("tcp"), owner_dump._Collector(ports=[40_010, 40_031]))

    assert set(by_port(table)) == {40_010, 40_031}
    assert table.sockets_left_out == 0


def test_sockets_above_the_bound_are_counted_and_not_kept() -> None:
    table = collected(captured("tcp"), owner_dump._Collector(most=5))

    assert sum(map(len, table.ports_of)) == 5
    assert table.sockets_left_out == 7


def record(*, port: int, attributes: bytes = b"", inode: int = 77) -> bytes:
    body = bytes([socket.AF_INET, OPEN, 0, 0]) + port.to_bytes(2, "big") + (443).to_bytes(2, "big")
    body += V4 + bytes(12) + V4 + bytes(12) + bytes(24)
    body += (33).to_bytes(4, "little") + inode.to_bytes(4, "little")
    return bytes(16) + body + attributes


SHUTDOWN = bytes([5, 0, 8, 0, 0, 0, 0, 0])
CGROUP_42 = bytes([12, 0, 21, 0, 42, 0, 0, 0, 0, 0, 0, 0])
CGROUP_43 = bytes([12, 0, 21, 0, 43, 0, 0, 0, 1, 0, 0, 0])
MARK = bytes([8, 0, 15, 0, 0, 0, 0, 0])


def test_records_of_one_length_may_have_their_cgroup_at_different_places_or_nowhere() -> None:
    records = [
        record(port=40_001, attributes=SHUTDOWN + CGROUP_42),
        record(port=40_002, attributes=CGROUP_43 + SHUTDOWN),
        record(port=40_003, attributes=SHUTDOWN + bytes([12, 0, 99, 0, *bytes(8)])),
    ]
    for order in (records, records[::-1]):
        collector = owner_dump._Collector()
        collector.add(len(order[0]), bytearray(b"".join(order)))

        groups = by_port(collector.table())
        assert {port: group.cgroup_id for port, group in groups.items()} == {
            40_001: 42,
            40_002: (1 << 32) + 43,
            40_003: None,
        }
        assert {group.uid for group in groups.values()} == {33}


def test_a_socket_that_its_process_has_closed_keeps_its_cgroup_and_has_no_user() -> None:
    collector = owner_dump._Collector()
    orphan = record(port=40_001, attributes=CGROUP_42, inode=0)
    collector.add(len(orphan), bytearray(orphan))

    assert by_port(collector.table()) == {40_001: OwnerGroup(OPEN, V4, ANY4, 0, uid=None, cgroup_id=42)}


def test_a_socket_bound_to_an_ipv4_mapped_address_has_no_ipv4_peer_but_none() -> None:
    bound = bytearray(record(port=40_001, attributes=CGROUP_42))
    bound[16:18] = socket.AF_INET6, BOUND
    bound[22:24] = bytes(2)
    bound[24:40] = bytes(10) + b"\xff\xff" + V4
    bound[40:56] = bytes(16)
    collector = owner_dump._Collector(with_peer=True)
    collector.add(len(bound), bound)

    assert by_port(collector.table()) == {40_001: OwnerGroup(BOUND, V4, ANY4, 0, uid=33, cgroup_id=42)}


def test_the_inodes_and_cgroups_of_a_table() -> None:
    collector = owner_dump._Collector()
    for number, inode in ((1, 77), (2, 78), (3, 0)):
        one = record(port=number, attributes=CGROUP_42, inode=inode)
        collector.add(len(one), bytearray(one))

    assert collector.table().inodes() == {77, 78}
    assert collector.table().cgroup_ids() == {42}


@pytest.mark.parametrize(
    "block",
    [
        bytes(84),
        record(port=1)[:-1],
        record(port=1, attributes=bytes([200, 0, 21, 0, *bytes(8)])),
        record(port=1, attributes=bytes([2, 0, 21, 0, *bytes(8)])),
        record(port=1, attributes=bytes([8, 0, 21, 0, *bytes(8)])),
    ],
    ids=["too short", "no whole words", "overrun", "shorter than its head", "a cgroup id of four bytes"],
)
def test_a_record_that_lies_is_refused(block: bytes) -> None:
    with pytest.raises(MalformedReplyError):
        owner_dump._Collector().add(len(block), bytearray(block))


@given(st.binary(max_size=120), st.integers(1, 3))
def test_any_bytes_are_taken_or_refused(attributes: bytes, rows: int) -> None:
    one = record(port=40_001, attributes=attributes)
    collector = owner_dump._Collector(with_peer=True)
    try:
        collector.add(len(one), bytearray(one * rows))
    except KernelError:
        return
    assert [list(ports) for ports in collector.table().ports_of] == [[40_001] * rows]


# --- live ---------------------------------------------------------------------------------------------------------


def read_toward(*destinations: tuple[bytes, int]) -> OwnerTable:
    with SockDiag() as diag:
        return owner_dump.read_owners_toward(diag, INSIDE, destinations, minute())


def read_ports(ports: range, protocol: Protocol = Protocol.TCP) -> OwnerTable:
    with SockDiag() as diag:
        return owner_dump.read_owners_of_ports(diag, protocol, ports, minute())


def minute() -> Deadline:
    return Deadline(60, time.monotonic)


@pytest.fixture(name="ns")
def _ns() -> Iterator[Namespace]:
    with Namespace() as ns:
        ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", "40000 40999")
        ns.call(sockets.listen, HERE, 80, tag="server")
        ns.call(sockets.listen, "::1", 81, tag="server")
        yield ns


@pytest.mark.only_root("makes cgroups")
def test_sockets_bear_the_cgroup_that_they_were_made_in(ns: Namespace) -> None:
    with Cgroups(ns) as cgroups:
        ids = {name: cgroups.make(name) for name in ("a.service", "b.service")}
        with cgroups.agent("a.service") as a, cgroups.agent("b.service") as b:
            assert a.call(sockets.fill, HERE, 80, tag="clients", limit=3) == FillResult(3, 0)
            assert b.call(sockets.fill, HERE, 80, tag="clients", limit=5) == FillResult(5, 0)
            b.call(sockets.fill, "::1", 81, tag="v6", limit=2)
            table = ns.call(read_toward, (V4, 80))

    seen = {group.cgroup_id: len(ports) for group, ports in zip(table.groups, table.ports_of, strict=True)}
    assert seen == {ids["a.service"]: 3, ids["b.service"]: 5}


def test_only_the_destinations_and_ports_asked_for_are_read(ns: Namespace) -> None:
    ns.call(sockets.fill, HERE, 80, tag="v4", limit=2)
    ns.call(sockets.fill, "::1", 81, tag="v6", limit=1)
    ns.call(sockets.open_sockets, Recipe(udp=True, bind=(HERE, 40_500)), tag="udp", limit=1)
    ports = ns.call(sockets.ports_of, "v4")

    assert ns.call(read_toward).groups == ()
    assert list(by_port(ns.call(read_toward, (V6, 81)))) == ns.call(sockets.ports_of, "v6")
    assert sorted(by_port(ns.call(read_toward, (V4, 80)))) == sorted(ports)
    assert list(by_port(ns.call(read_ports, range(ports[0], ports[0] + 1)))) == ports[:1]
    assert list(by_port(ns.call(read_ports, range(40_500, 40_501), Protocol.UDP))) == [40_500]
    assert ns.call(read_ports, range(0)).groups == ()


def test_more_destinations_than_a_dump_asks_for_take_several(ns: Namespace) -> None:
    ns.call(sockets.fill, HERE, 80, tag="clients", limit=3)
    ns.call(sockets.fill, "::1", 81, tag="clients", limit=2)
    others = [(bytes([10, 0, 0, number]), 80) for number in range(200)]

    table = ns.call(read_toward, (V6, 81), *others, (V4, 80), (V4, 80))

    assert sum(map(len, table.ports_of)) == 5


def test_inodes_are_those_of_the_process(ns: Namespace) -> None:
    ns.call(sockets.fill, HERE, 80, tag="clients", limit=4)

    assert ns.call(read_toward, (V4, 80)).inodes() == ns.call(inodes_of, "clients")


def inodes_of(tag: str) -> set[int]:
    return {os.fstat(sock.fileno()).st_ino for sock in sockets.held[tag]}
