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
from enum import IntFlag
from functools import cached_property
from itertools import compress
from operator import gt
from typing import TYPE_CHECKING, Any, NamedTuple

from ephmon.facts.addresses import unmapped
from ephmon.facts.sockets import TcpState

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ephmon.facts.snapshot import Sysctls

SECONDS_OF_A_CELL = 3
"""What each number of `ConnectCounts.ends_in` covers. TIME_WAIT lasts 60 seconds, so 20 numbers cover all."""
CELLS = 20
STATES = 12
_ORPHANED_FIN_WAIT2 = 0

# struct pool of ephmon/kernel/bpf/bind_table.bpf.c, with either of its halves
_KEY = "16s16sII2sH2xHI"
_CONNECT = struct.Struct(f"={_KEY}6H{STATES}H{CELLS}H")
_ADDRESS = struct.Struct(f"={_KEY}4I60x")
_PORT = struct.Struct("=IIHHI")
_BYTES_OF_A_POOL = _CONNECT.size
_INVERTED = bytes([1, *bytes(255)])
"""Translates 1 to 0 and 0 to 1."""
# Where the columns are, in units of two bytes
_COLUMNS = {"namespace": 21, "is_address": 23, "held": 26, "time_wait": 27, "reusable": 28, "on_blocked": 30}


class PortFlag(IntFlag):
    """What a port is and has (HAS_* of ephmon/kernel/bpf/bind_table.bpf.c)."""

    BLOCKED = 1
    """connect() passes it over, wherever to: `fastreuse` or `fastreuseport` of its bucket is not negative."""
    LISTENER = 2
    BOUND = 4
    """A socket that is bound, and neither connected nor listening."""
    CONNECTED = 8
    TIME_WAIT = 16
    DEVICE = 32
    """A socket that is bound to a device."""
    V4 = 64
    """A socket that is IPv4, or IPv6 without IPV6_V6ONLY."""
    ANY_V4 = 128
    """A socket on 0.0.0.0, or on :: without IPV6_V6ONLY."""
    ANY_V6 = 256
    """A socket on ::."""


class BoundPort(NamedTuple):
    """One usable port that some socket has."""

    port: int
    l3mdev: int
    """Interface index of the VRF that its sockets are in, 0 for none. Each VRF has ports of its own."""
    sockets: int
    flags: PortFlag


class PoolKey(NamedTuple):
    """A connection but for its local port, as connect() looks for a free one. Addresses are packed."""

    source: bytes
    destination: bytes
    destination_port: int
    device: int = 0
    """Interface index that the sockets are bound to (SO_BINDTODEVICE), 0 if none."""
    l3mdev: int = 0
    """Interface index of their VRF, 0 for none."""


class ConnectCounts(NamedTuple):
    """What the sockets of one `PoolKey` do to the next connect() with it.

    A socket holds one port, and no two sockets of one key have the same.
    """

    held: int
    """Ports that are not blocked, and that connect() finds taken for this key."""
    time_wait: int
    """Those of `held` that a TIME_WAIT has."""
    reusable: int
    """Those of `time_wait` that connect() takes all the same, at this moment (tcp_twsk_unique())."""
    reusable_later: int
    """Those of `time_wait` that connect() will take before they end."""
    on_blocked: int
    """Sockets on blocked ports, which take nothing from this pool, without those that a listener may have accepted."""
    states: Mapping[int, int]
    """All these sockets by state, as in `TcpState`."""
    ends_in: Sequence[int]
    """Ports of `held` whose TIME_WAIT, or FIN_WAIT2 without a process, ends within so many cells of time."""


class AddressCounts(NamedTuple):
    """The ports of one local address, as bind(address, 0) sees them."""

    address: bytes
    l3mdev: int
    ports: int
    """Ports on which a socket has this address."""
    beside_any: int
    """Those of them that also have a socket on a wildcard address, which keeps bind() from them as well."""
    bound: int
    """Sockets that bind(address, 0) gave their port, and that are not connected."""
    bound_connected: int
    """Connected sockets on blocked ports without a listener that did not name their port: bind(address, 0) gave it to
    them, or a listener that is gone accepted them."""


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


class PoolTable:
    """The pools and local addresses of all namespaces, packed.

    Args:
        packed: As the walk left them.
        namespaces: How many namespaces there are.

    Raises:
        ValueError: They cannot be what a walk leaves.
    """

    def __init__(self, packed: bytes, namespaces: int) -> None:
        if len(packed) % _BYTES_OF_A_POOL:
            raise ValueError("a pool is cut off")
        self._packed = packed
        self._halves = memoryview(packed).cast("H")
        self._is_address = self.column("is_address").tobytes()[::2]
        self._of_namespace: dict[int, tuple[Sequence[int], Sequence[int]]] = {}
        self._check(namespaces)
        self._split(namespaces)

    def __len__(self) -> int:
        return len(self._packed) // _BYTES_OF_A_POOL

    def column(self, name: str) -> array[int]:
        """Return one number of each entry; of a local address only `namespace` and `is_address` mean anything."""
        return array("H", self._halves[_COLUMNS[name] :: _BYTES_OF_A_POOL // 2].tobytes())

    def connect_indices(self, namespace: int) -> Sequence[int]:
        """Return the indices of the pools of a namespace, which is given by its index."""
        return self._of_namespace.get(namespace, ((), ()))[0]

    def address_indices(self, namespace: int) -> Sequence[int]:
        """Return the indices of the local addresses of a namespace, which is given by its index."""
        return self._of_namespace.get(namespace, ((), ()))[1]

    def connect(self, index: int) -> tuple[PoolKey, ConnectCounts]:
        """Unpack a pool."""
        source, destination, device, l3mdev, port, _, _, _, *numbers = self._unpack(_CONNECT, index)
        key = PoolKey(unmapped(source), unmapped(destination), int.from_bytes(port), device, l3mdev)
        held, time_wait, reusable, reusable_later, on_blocked, established, *rest = numbers
        counted = {**dict(enumerate(rest[:STATES])), TcpState.ESTABLISHED: established}
        states = {state: number for state, number in counted.items() if number}
        if orphaned := states.pop(_ORPHANED_FIN_WAIT2, 0):
            states[TcpState.FIN_WAIT2] = states.get(TcpState.FIN_WAIT2, 0) + orphaned
        ends_in = tuple(rest[STATES:])
        return key, ConnectCounts(held, time_wait, reusable, reusable_later, on_blocked, states, ends_in)

    def address(self, index: int) -> AddressCounts:
        """Unpack a local address."""
        source, _, _, l3mdev, _, _, _, _, *numbers = self._unpack(_ADDRESS, index)
        ports, beside_any, bound, bound_connected = numbers
        return AddressCounts(unmapped(source), l3mdev, ports, beside_any, bound, bound_connected)

    def _unpack(self, layout: struct.Struct, index: int) -> tuple[Any, ...]:
        return layout.unpack_from(self._packed, index * _BYTES_OF_A_POOL)

    def _check(self, namespaces: int) -> None:
        if max(self.column("namespace"), default=-1) >= namespaces:
            raise ValueError("a pool is of a namespace that is not there")
        if max(self.column("is_address"), default=0) > 1:
            raise ValueError("an entry is neither a pool nor an address")
        is_pool = self._is_address.translate(_INVERTED)
        held, time_wait, reusable = (self.column(name) for name in ("held", "time_wait", "reusable"))
        if not any(compress(time_wait, is_pool)) and not any(compress(reusable, is_pool)):
            return
        if any(compress(map(gt, time_wait, held), is_pool)) or any(compress(map(gt, reusable, time_wait), is_pool)):
            raise ValueError("a pool has more TIME_WAITs than ports")

    def _split(self, namespaces: int) -> None:
        """Sort the entries by namespace and kind."""
        every, is_address = range(len(self)), self._is_address
        if namespaces == 1:
            pools = list(compress(every, is_address.translate(_INVERTED)))
            self._of_namespace[0] = pools, list(compress(every, is_address))
            return
        indices: defaultdict[int, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
        for index, namespace, kind in zip(every, self.column("namespace"), is_address, strict=True):
            indices[namespace][kind].append(index)
        self._of_namespace.update(indices)


class PortTable:
    """The usable ports of all namespaces that some socket has, packed.

    Raises:
        ValueError: They cannot be what a walk leaves.
    """

    def __init__(self, packed: bytes, namespaces: int) -> None:
        if len(packed) % _PORT.size:
            raise ValueError("a port is cut off")
        self._packed = packed
        halves = memoryview(packed).cast("H")
        self._namespaces = array("H", halves[5 :: _PORT.size // 2].tobytes())
        if max(self._namespaces, default=-1) >= namespaces:
            raise ValueError("a port is of a namespace that is not there")

    def __len__(self) -> int:
        return len(self._namespaces)

    def of_namespace(self, namespace: int) -> Iterator[BoundPort]:
        """Yield the ports of a namespace, which is given by its index."""
        for l3mdev, sockets, port, owner, flags in _PORT.iter_unpack(self._packed):
            if owner == namespace:
                yield BoundPort(port, l3mdev, sockets, PortFlag(flags))


@dataclass(frozen=True, kw_only=True)
class NamespaceBinds:
    """The bind table of one network namespace. The numbers of ports are of those outside any VRF."""

    index: int
    """Its number in this walk."""
    inode: int
    cookie: int
    """Never used again while the host is up, unlike the inode."""
    user_namespace_inode: int
    """Of the user namespace that owns it (man 7 user_namespaces)."""
    sysctls: Sysctls
    usable: int
    ports_in_use: int
    """Usable ports that any socket has."""
    blocked: int
    """Those of them that connect() passes over."""
    v4: int
    """Those with a socket that keeps bind(0.0.0.0, 0) from them."""
    any_v4: int
    """Those with a socket that keeps bind() from them for every IPv4 address."""
    any_v6: int
    """Those with a socket that keeps bind() from them for every IPv6 address."""
    accepted: int
    """Sockets beside a listener that are in no pool, because it may have accepted them."""
    sockets: int
    """Sockets on usable ports."""
    pool_table: PoolTable
    port_table: PortTable

    def pools(self) -> Iterator[tuple[PoolKey, ConnectCounts]]:
        """Yield every pool, unpacked."""
        return map(self.pool_table.connect, self.pool_table.connect_indices(self.index))

    def addresses(self) -> Iterator[AddressCounts]:
        """Yield every local address, unpacked."""
        return map(self.pool_table.address, self.pool_table.address_indices(self.index))

    def ports(self) -> Iterator[BoundPort]:
        """Yield every usable port that some socket has."""
        return self.port_table.of_namespace(self.index)

    @cached_property
    def blocked_ports(self) -> frozenset[int]:
        """The ports outside any VRF that connect() passes over."""
        return frozenset(one.port for one in self.ports() if PortFlag.BLOCKED in one.flags and not one.l3mdev)


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
