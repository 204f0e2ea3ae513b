"""What a walk leaves in memory is parsed as foreign bytes: it becomes values that hold together, or an error."""

from __future__ import annotations

import struct
from contextlib import suppress
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ephmon.errors import KernelError
from ephmon.facts.bind_counts import CELLS, AddressCounts, PoolKey, PortFlag
from ephmon.facts.sockets import TcpState
from ephmon.kernel.bpf.reader import (
    MOST_NAMESPACES,
    MOST_POOLS,
    MOST_PORTS,
    Control,
    parse_bind_table,
)

if TYPE_CHECKING:
    from ephmon.facts.bind_table import BindTable

OWN = 4026531840
BITMAP = bytearray(8192)
BITMAP[40_000 // 8] = 0b101
MAPPED = bytes(10) + b"\xff\xff"


def namespace(inode: int = OWN, *, low: int = 40_000, high: int = 40_099, usable: int = 98, bitmap: int = 1) -> bytes:
    """Return struct namespace with 10 ports in use, 3 of them blocked."""
    return struct.pack("=QQ18I", 7, 9, inode, 8, low, high, usable, bitmap, 2, 1000, 1, 0, 4096, 10, 3, 10, 2, 1, 5, 20)


def pool(*, held: int = 9, time_wait: int = 4, reusable: int = 1, namespace: int = 0) -> bytes:
    """Return struct pool of a connection to 192.0.2.1:443."""
    source, destination = (MAPPED + ip_address(text).packed for text in ("127.0.0.1", "192.0.2.1"))
    head = struct.pack("=16s16sII2sHHHI", source, destination, 0, 0, b"\x01\xbb", namespace, 40_001, 0, 1)
    states = [0, 0, 0, 2, 0, 0, 0, 5]  # FIN_WAIT2 and CLOSING
    cells = [0] * (CELLS - 1) + [4]
    return head + struct.pack(f"=9H8H{CELLS}H2x", held, 7, time_wait, reusable, 6, 3, 2, 8, 1, *states, *cells)


def address(*, kind: int = 1) -> bytes:
    """Return struct pool of the local address ::1."""
    head = struct.pack("=16s16sII2sHHHI", ip_address("::1").packed, bytes(16), 0, 5, bytes(2), 0, 0, kind, 0)
    return head + struct.pack("=5I56x", 10, 2, 3, 1, 6)


def port(number: int = 40_001, *, flags: int = PortFlag.BLOCKED, namespace: int = 0, l3mdev: int = 0) -> bytes:
    """Return struct port."""
    return struct.pack("=IIHHI", l3mdev, 2, number, namespace, flags)


def parse(rows: bytes = namespace(), entries: bytes = b"", bound: bytes = b"", /, **numbers: int) -> BindTable:
    """Parse what a walk left; how many of each there are follows from the bytes unless it is said."""
    counted = {"namespaces": len(rows) // 80, "pools": len(entries) // 128, "ports": len(bound) // 16, "bitmaps": 1}
    control = Control(own_inode=OWN, **counted)._replace(**numbers)
    maps = {"namespaces": rows, "pools": entries, "ports": bound, "bitmaps": bytes(BITMAP)}
    return parse_bind_table(control, maps)


def test_every_number_stands_where_the_program_puts_it() -> None:
    own = parse(namespace(), pool() + address(), port() + port(40_002, flags=0) + port(40_003, l3mdev=9)).own
    assert own is not None
    ((key, counts),) = own.pools()

    assert own.sysctls.port_range == (40_000, 40_099)
    assert own.sysctls.reserved_ports == {40_000, 40_002}
    assert own.outside == (10, 3, 10, 2, 1)
    assert (own.accepted, own.sockets, own.cookie, own.cgroup_id) == (5, 20, 7, 9)
    assert own.user_namespace_inode == 8
    assert key == PoolKey(bytes([127, 0, 0, 1]), bytes([192, 0, 2, 1]), 443)
    assert (counts.held, counts.held_second, counts.time_wait, counts.reusable, counts.reusable_later) == (
        9,
        7,
        4,
        1,
        2,
    )
    assert (counts.on_blocked, counts.named) == (6, 8)
    assert counts.states == {TcpState.ESTABLISHED: 3, TcpState.FIN_WAIT2: 3, TcpState.CLOSING: 5}
    assert counts.ends_in == (*[0] * (CELLS - 1), 4)
    assert list(own.addresses()) == [AddressCounts(ip_address("::1").packed, 5, 10, 2, 3, 1, 6)]
    assert [one.port for one in own.ports()] == [40_001, 40_002, 40_003]
    assert own.blocked_ports == {40_001}


def test_entries_are_given_to_their_namespaces() -> None:
    table = parse(namespace() + namespace(99), pool(namespace=1) + address() + pool(held=8), port() + port(namespace=1))

    assert [[counts.held for _, counts in one.pools()] for one in table.namespaces] == [[8], [9]]
    assert [len(list(one.addresses())) for one in table.namespaces] == [1, 0]
    assert [len(list(one.ports())) for one in table.namespaces] == [1, 1]


def test_a_namespace_whose_reserved_ports_were_lost_is_left_out() -> None:
    table = parse(namespace(bitmap=0xFFFFFFFF) + namespace(99), lost_bitmaps=1)

    assert (table.own, [one.inode for one in table.namespaces], table.losses.bitmaps) == (None, [99], 1)


@pytest.mark.parametrize(
    ("what", "numbers"),
    [
        (f"{MOST_POOLS + 1} pools of at most", {"pools": MOST_POOLS + 1}),
        (f"{MOST_PORTS + 1} ports of at most", {"ports": MOST_PORTS + 1}),
        (f"{MOST_NAMESPACES + 1} namespaces of at most", {"namespaces": MOST_NAMESPACES + 1}),
    ],
)
def test_more_than_there_is_room_for_is_refused(what: str, numbers: dict[str, int]) -> None:
    with pytest.raises(KernelError, match=f"^What BPF read of the bind table cannot be trusted: {what}"):
        parse(**numbers)


@pytest.mark.parametrize(
    ("parts", "what"),
    [
        ({"namespaces": namespace(low=0)}, "the port range 0-40099"),
        ({"namespaces": namespace(low=50_000)}, "the port range 50000-40099"),
        ({"namespaces": namespace(high=65_536)}, "the port range 40000-65536"),
        ({"namespaces": namespace(usable=101)}, "10 ports in use of 101, 3 of them blocked"),
        ({"namespaces": namespace(usable=9)}, "10 ports in use of 9, 3 of them blocked"),
        ({"namespaces": namespace(bitmap=2)}, "reserved ports that are not there"),
        ({"pools": pool(namespace=1)}, "an entry is of a namespace that is not there"),
        ({"pools": address(kind=2)}, "an entry is neither a pool nor an address"),
        ({"pools": pool(held=3)}, "a pool has more TIME_WAITs than ports"),
        ({"pools": pool(reusable=5)}, "a pool has more TIME_WAITs than ports"),
        ({"ports": port(namespace=1)}, "an entry is of a namespace that is not there"),
    ],
)
def test_what_cannot_be_is_refused_with_its_reason(parts: dict[str, bytes], what: str) -> None:
    with pytest.raises(KernelError) as caught:
        parse(parts.get("namespaces", namespace()), parts.get("pools", b""), parts.get("ports", b""))

    assert str(caught.value) == f"What BPF read of the bind table cannot be trusted: {what}."
    assert caught.value.reason == "malformed"


_GOOD = namespace(), pool() + address(), port() + port(40_002)


@given(
    changes=st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 1 << 16), st.integers(0, 255) | st.sampled_from([0, 1, 255])),
        min_size=1,
        max_size=12,
    ),
    numbers=st.fixed_dictionaries(
        {}, optional={name: st.integers(0, 0xFFFFFFFF) | st.integers(0, 3) for name in ("namespaces", "pools", "ports")}
    ),
)
def test_changed_bytes_become_values_that_hold_together_or_an_error(
    changes: list[tuple[int, int, int]], numbers: dict[str, int]
) -> None:
    parts = [bytearray(part) for part in _GOOD]
    for which, where, value in changes:
        parts[which][where % len(parts[which])] = value
    with suppress(KernelError):
        for one in parse(*map(bytes, parts), **numbers).namespaces:
            assert (
                max(one.outside.blocked, one.outside.v4)
                <= one.outside.in_use
                <= one.usable
                <= one.sysctls.port_range.size
            )
            assert all(counts.reusable <= counts.time_wait <= counts.held for _, counts in one.pools())
            assert all(len(key.source) in (4, 16) for key, _ in one.pools())
            assert len(list(one.addresses())) <= 2
            assert one.blocked_ports <= {bound.port for bound in one.ports()}
