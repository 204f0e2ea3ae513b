"""Facts: what one walk over the kernel's bind table counted, for each network namespace.

connect() and bind() decide by that table, so nothing here is inferred: which ports connect() passes over, which
TIME_WAITs it takes, and how many ports each pool holds. Only usable ports count, those of the range that are not
reserved.

There may be as many pools as sockets, so they stay packed, and one is unpacked when somebody asks for it.
"""

from __future__ import annotations

import struct
from array import array
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from itertools import compress, count, repeat
from operator import and_, gt, itemgetter, or_
from typing import TYPE_CHECKING, Any, NamedTuple

from ephmon.facts.addresses import ANY_V4, ANY_V6, V4_MAPPED, mapped, unmapped
from ephmon.facts.bind_counts import CELLS, AddressCounts, BoundPort, ConnectCounts, PoolKey, PortFlag, PortNumbers
from ephmon.facts.socket_groups import ConnectKey
from ephmon.facts.sockets import TcpState

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Self

    from ephmon.facts.snapshot import Sysctls

COUNTED_STATES = (
    TcpState.SYN_SENT,
    TcpState.SYN_RECV,
    TcpState.FIN_WAIT1,
    TcpState.FIN_WAIT2,
    TcpState.TIME_WAIT,
    TcpState.CLOSE_WAIT,
    TcpState.LAST_ACK,
    TcpState.CLOSING,
)
"""The states of connected sockets in the order in which they are counted; ESTABLISHED is counted apart."""

# struct pool of ephmon/kernel/bpf/bind_table.bpf.c, with either of its halves
_KEY = "16s16sII2sH2xHI"
_CONNECT = struct.Struct(f"={_KEY}9H{len(COUNTED_STATES)}H{CELLS}H2x")
_ADDRESS = struct.Struct(f"={_KEY}5I56x")
_PORT = struct.Struct("=IIHHI")
_BYTES_OF_A_POOL = _CONNECT.size
_INVERTED = bytes([1, *bytes(255)])
"""Translates 1 to 0 and 0 to 1."""
_HEAD = struct.Struct("=16s16sII2s")
"""What of an entry tells it from the others of its namespace: source, destination, device, VRF, destination port."""
_HEADS = struct.Struct(f"={_HEAD.size}s{_BYTES_OF_A_POOL - _HEAD.size}x")
_DEVICE, _L3MDEV = 8, 9
"""Where these are, in units of four bytes."""
# Where the columns are, in units of two bytes
_NAMESPACE_OF_A_POOL, _NAMESPACE_OF_A_PORT = 21, 5
_COLUMNS = {"is_address": 23, "held": 26, "time_wait": 28, "reusable": 29, "on_blocked": 30}
_ENDS_IN = range(26 + 9 + len(COUNTED_STATES), 26 + 9 + len(COUNTED_STATES) + CELLS)


class Losses(NamedTuple):
    """What a walk did not see, or saw askew. All zero: the walk saw every socket that stayed where it was."""

    torn: int = 0
    """Steps at which something had changed meanwhile, so that the rest of a list was not seen."""
    repeated: int = 0
    """Sockets that were met twice, because a list had changed. They were counted once."""
    cut_short: int = 0
    """Lists that are longer than a walk follows."""
    namespaces: int = 0
    """Ports and more of namespaces that found no room."""
    pools: int = 0
    """Sockets whose pool found no room."""
    ports: int = 0
    """Ports that are in every number, but not in `NamespaceBinds.ports`."""
    bitmaps: int = 0
    """Namespaces whose reserved ports found no room. They are left out."""

    @property
    def unseen(self) -> int:
        """Steps at which sockets may not have been seen, because something changed meanwhile or a list is too long."""
        return self.torn + self.repeated + self.cut_short


def split_by_namespace(packed: bytes, size: int, column: int, namespaces: int) -> list[bytes]:
    """Sort packed entries by the namespace that they are of, in the order of its number, which each of them bears.

    Args:
        packed: The entries, as the walk left them.
        size: Bytes of an entry.
        column: Where the number is, in units of two bytes.
        namespaces: How many namespaces there are.

    Raises:
        ValueError: An entry is cut off, or of a namespace that is not there.
    """
    if len(packed) % size:
        raise ValueError("an entry is cut off")
    owners = memoryview(packed).cast("H")[column :: size // 2].tolist()
    if max(owners, default=-1) >= namespaces:
        raise ValueError("an entry is of a namespace that is not there")
    if namespaces == 1:
        return [packed]
    entries: list[list[bytes]] = [[] for _ in range(namespaces)]
    for owner, (entry,) in zip(owners, struct.iter_unpack(f"{size}s", packed), strict=True):
        entries[owner].append(entry)
    return list(map(b"".join, entries))


class PoolTable:
    """The pools and local addresses of one namespace, packed.

    Raises:
        ValueError: They cannot be what a walk leaves.
    """

    def __init__(self, packed: bytes) -> None:
        self._packed = packed
        self._halves = memoryview(packed).cast("H")
        self._is_address = self.column("is_address").tobytes()[::2]
        self._is_pool = self._is_address.translate(_INVERTED)
        self._check()
        self.connect_indices: Sequence[int] = list(compress(count(), self._is_pool))
        """The indices of the pools."""
        self.address_indices: Sequence[int] = list(compress(count(), self._is_address))
        """The indices of the local addresses."""

    @classmethod
    def of_each(cls, packed: bytes, namespaces: int) -> list[Self]:
        """Return the tables of all namespaces, as a walk left them together.

        Raises:
            ValueError: They cannot be what a walk leaves.
        """
        return list(map(cls, split_by_namespace(packed, _BYTES_OF_A_POOL, _NAMESPACE_OF_A_POOL, namespaces)))

    def column(self, name: str) -> array[int]:
        """Return one number of each entry; of a local address only `is_address` means anything."""
        return array("H", self._halves[_COLUMNS[name] :: _BYTES_OF_A_POOL // 2].tobytes())

    def find(self, key: PoolKey) -> int | None:
        """Return the index of a pool; None if no socket has the key."""
        addresses = mapped(key.source), mapped(key.destination)
        return self._index.get(_HEAD.pack(*addresses, key.device, key.l3mdev, key.destination_port.to_bytes(2)))

    def time_waits_from(self, source: bytes) -> Sequence[int]:
        """Return how many TIME_WAITs of a local address, or of all that a wildcard stands for, end in which cell."""
        prefix = {ANY_V4: V4_MAPPED, ANY_V6: b""}.get(source, mapped(source))
        packed, indices = self._packed, self.connect_indices
        chosen = [index for index in indices if packed.startswith(prefix, index * _BYTES_OF_A_POOL)]
        columns = (self._halves[first :: _BYTES_OF_A_POOL // 2].tolist() for first in _ENDS_IN)
        return [sum(map(column.__getitem__, chosen)) for column in columns]

    @cached_property
    def on_devices(self) -> Sequence[int]:
        """The indices of the entries whose sockets are bound to a device or are in a VRF."""
        words = memoryview(self._packed).cast("I")
        step = _BYTES_OF_A_POOL // 4
        marks = map(or_, words[_DEVICE::step].tolist(), words[_L3MDEV::step].tolist())
        return list(compress(count(), marks))

    @cached_property
    def _index(self) -> Mapping[bytes, int]:
        # There may be as many pools as sockets, so no bytecode runs for each.
        heads = map(itemgetter(0), _HEADS.iter_unpack(self._packed))
        return dict(zip(heads, count(), strict=False))

    def key(self, index: int) -> PoolKey:
        """Return the key of a pool."""
        source, destination, device, l3mdev, port = self._unpack(_HEAD, index)
        return PoolKey(unmapped(source), unmapped(destination), int.from_bytes(port), device, l3mdev)

    def connect(self, index: int) -> tuple[PoolKey, ConnectCounts]:
        """Unpack a pool."""
        _, _, _, _, _, _, _, _, *numbers = self._unpack(_CONNECT, index)
        held, second, time_wait, reusable, on_blocked, established, reusable_later, named, orphaned, *rest = numbers
        counted: dict[int, int] = {TcpState.ESTABLISHED: established, **dict(zip(COUNTED_STATES, rest, strict=False))}
        counted[TcpState.FIN_WAIT2] += orphaned
        states = {state: number for state, number in counted.items() if number}
        ends_in = tuple(rest[len(COUNTED_STATES) :])
        counts = ConnectCounts(held, second, time_wait, reusable, reusable_later, on_blocked, named, states, ends_in)
        return self.key(index), counts

    def address(self, index: int) -> AddressCounts:
        """Unpack a local address."""
        source, _, _, l3mdev, _, _, _, _, *numbers = self._unpack(_ADDRESS, index)
        return AddressCounts(unmapped(source), l3mdev, *numbers)

    def _unpack(self, layout: struct.Struct, index: int) -> tuple[Any, ...]:
        return layout.unpack_from(self._packed, index * _BYTES_OF_A_POOL)

    def _check(self) -> None:
        if max(self.column("is_address"), default=0) > 1:
            raise ValueError("an entry is neither a pool nor an address")
        is_pool = self._is_pool
        held, time_wait, reusable = (self.column(name) for name in ("held", "time_wait", "reusable"))
        if not any(compress(time_wait, is_pool)) and not any(compress(reusable, is_pool)):
            return
        if any(compress(map(gt, time_wait, held), is_pool)) or any(compress(map(gt, reusable, time_wait), is_pool)):
            raise ValueError("a pool has more TIME_WAITs than ports")


class PortTable:
    """The usable ports of one namespace that some socket has, packed."""

    def __init__(self, packed: bytes) -> None:
        self._packed = packed

    @classmethod
    def of_each(cls, packed: bytes, namespaces: int) -> list[Self]:
        """Return the tables of all namespaces, as a walk left them together.

        Raises:
            ValueError: They cannot be what a walk leaves.
        """
        return list(map(cls, split_by_namespace(packed, _PORT.size, _NAMESPACE_OF_A_PORT, namespaces)))

    def __iter__(self) -> Iterator[BoundPort]:
        for l3mdev, sockets, port, _, flags in _PORT.iter_unpack(self._packed):
            yield BoundPort(port, l3mdev, sockets, PortFlag(flags))

    def ports_with(self, flag: PortFlag, l3mdev: int = 0) -> Sequence[int]:
        """Return the ports of a VRF that have a flag, without bytecode for each of them; 0: outside any VRF."""
        words, halves = memoryview(self._packed).cast("I"), memoryview(self._packed).cast("H")
        marks = map(and_, words[3 :: _PORT.size // 4].tolist(), repeat(flag.value))
        vrfs = words[0 :: _PORT.size // 4].tolist()
        if not set(vrfs) <= {l3mdev}:
            marks = map(and_, map(bool, marks), map(l3mdev.__eq__, vrfs))
        return list(compress(halves[4 :: _PORT.size // 2].tolist(), marks))


@dataclass(frozen=True, kw_only=True)
class NamespaceBinds:
    """The bind table of one network namespace."""

    inode: int
    cookie: int
    """Never used again while the host is up, unlike the inode."""
    cgroup_id: int | None
    """The oldest cgroup that made sockets on its usable ports; None where it is not known, or of our own namespace."""
    user_namespace_inode: int
    """Of the user namespace that owns it (man 7 user_namespaces)."""
    sysctls: Sysctls
    usable: int
    outside: PortNumbers
    """Of the ports outside any VRF."""
    accepted: int
    """Sockets beside a listener that are in no pool, because it may have accepted them."""
    sockets: int
    """Sockets on usable ports."""
    is_whole: bool
    """Whether every socket that stayed where it was is counted; else sockets came and went too fast."""
    pool_table: PoolTable
    port_table: PortTable

    def pools(self) -> Iterator[tuple[PoolKey, ConnectCounts]]:
        """Yield every pool, unpacked."""
        return map(self.pool_table.connect, self.pool_table.connect_indices)

    def addresses(self) -> Iterator[AddressCounts]:
        """Yield every local address, unpacked."""
        return map(self.pool_table.address, self.pool_table.address_indices)

    def ports(self) -> Iterator[BoundPort]:
        """Yield every usable port that some socket has."""
        return iter(self.port_table)

    @cached_property
    def on_devices(self) -> Mapping[ConnectKey, Sequence[int]]:
        """The indices of the pools of connect keys that have sockets on a device or in a VRF, by key."""
        found: defaultdict[ConnectKey, list[int]] = defaultdict(list)
        for index in frozenset(self.pool_table.on_devices).intersection(self.pool_table.connect_indices):
            found[self.connect_key(index)].append(index)
        for key, indices in found.items():
            if (plain := self.find_plain(key)) is not None:
                indices.append(plain)
        return found

    def connect_key(self, index: int) -> ConnectKey:
        """Return the connect key of a pool."""
        return ConnectKey(*self.pool_table.key(index)[:3])

    def find_plain(self, key: ConnectKey) -> int | None:
        """Return the index of the pool of a key's sockets on no device and in no VRF; None if there are none."""
        return self.pool_table.find(PoolKey(*key))

    def find(self, key: ConnectKey) -> Sequence[int]:
        """Return the indices of all pools of a connect key."""
        if key in self.on_devices:
            return self.on_devices[key]
        plain = self.find_plain(key)
        return () if plain is None else (plain,)

    def sockets_of(self, key: ConnectKey) -> list[tuple[PoolKey, ConnectCounts]]:
        """Return all pools of a connect key."""
        return [self.pool_table.connect(index) for index in self.find(key)]

    def time_waits_from(self, source: bytes) -> Sequence[int]:
        """Return how many TIME_WAITs of a local address have how much time left, in cells of SECONDS_OF_A_CELL.

        Those of a wildcard are those of all addresses that it stands for.
        """
        return self.pool_table.time_waits_from(source)

    def ports_with(self, flag: PortFlag, l3mdev: int = 0) -> Sequence[int]:
        """Return the usable ports of a VRF that have a flag; 0: those outside any VRF."""
        return self.port_table.ports_with(flag, l3mdev)

    def numbers(self, l3mdev: int = 0) -> PortNumbers:
        """Return how many usable ports of a VRF have which sockets; 0: outside any VRF."""
        if not l3mdev:
            return self.outside
        flags = [one.flags for one in self.ports() if one.l3mdev == l3mdev]
        wanted = (PortFlag.BLOCKED, PortFlag.V4, PortFlag.ANY_V4, PortFlag.ANY_V6)
        return PortNumbers(len(flags), *(sum(flag in one for one in flags) for flag in wanted))

    @cached_property
    def blocked_ports(self) -> frozenset[int]:
        """The ports outside any VRF that connect() passes over."""
        return frozenset(self.ports_with(PortFlag.BLOCKED))


@dataclass(frozen=True, slots=True, kw_only=True)
class BindTable:
    """What one walk counted."""

    own_inode: int
    """The namespace of whoever walked."""
    namespaces: tuple[NamespaceBinds, ...]
    """Those that have a TCP socket with a port, and the own one."""
    losses: Losses
    buckets: int
    """Ports that were looked at in all namespaces, inside a range or not."""

    @property
    def own(self) -> NamespaceBinds | None:
        """The namespace of whoever walked; None if its reserved ports found no room."""
        return next((one for one in self.namespaces if one.inode == self.own_inode), None)
