"""Facts: what the kernel said at one moment, before anything is concluded from it.

`ephmon.kernel` builds these values, the rest of `ephmon.model` reads them. They name kernel things by their kernel
names and keep unknown numbers as numbers.
"""

from __future__ import annotations

import struct
from array import array
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from functools import cached_property
from itertools import count
from typing import TYPE_CHECKING, NamedTuple, overload

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

OWN_NETNS = "own"
"""The label of the network namespace that ephmon itself runs in."""


class TcpState(IntEnum):
    """TCP states as the kernel numbers them (include/net/tcp_states.h)."""

    ESTABLISHED = 1
    SYN_SENT = 2
    SYN_RECV = 3
    FIN_WAIT1 = 4
    FIN_WAIT2 = 5
    TIME_WAIT = 6
    CLOSE = 7
    CLOSE_WAIT = 8
    LAST_ACK = 9
    LISTEN = 10
    CLOSING = 11
    NEW_SYN_RECV = 12
    BOUND_INACTIVE = 13


class Protocol(StrEnum):
    """The transport protocols that ephmon reads."""

    TCP = "tcp"
    UDP = "udp"


class Backend(StrEnum):
    """The interfaces that a protocol's sockets can be read through."""

    INET_DIAG = "inet_diag"
    PROCFS = "procfs"


class Blindness(StrEnum):
    """What a backend or kernel cannot show at all, by the names that appear as `blind_to`."""

    BOUND_UNCONNECTED = "bound_unconnected"
    """TCP sockets that are bound but neither connected nor listening (kernels before 6.8, and /proc/net/tcp)."""
    BOUND_DEVICE = "bound_device"
    """The device a socket is bound to (/proc/net/*)."""
    V6ONLY = "v6only"
    """Whether a wildcard IPv6 socket also takes IPv4 (/proc/net/*): taken as dual-stack, the kernel's default."""


class PortRange(NamedTuple):
    """`ip_local_port_range`: both ends belong to it (man 7 ip)."""

    low: int
    high: int

    @property
    def size(self) -> int:
        """How many ports the range has."""
        return self.high - self.low + 1

    @property
    def may_lose_one(self) -> bool:
        """Whether a TCP search may pass over one port: it walks the ports by parity and rounds their number down."""
        return self.size > 1 and self.size % 2 == 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Sysctls:
    """The sysctls of one network namespace that decide how ports are allocated.

    Source: Documentation/networking/ip-sysctl.rst.
    """

    port_range: PortRange
    reserved_ports: frozenset[int] = frozenset()
    """`ip_local_reserved_ports`, the whole list, also what lies outside the range."""
    tcp_tw_reuse: int = 2
    tcp_tw_reuse_delay_ms: int = 1000
    """Age in milliseconds that a TIME_WAIT must pass before reuse; kernels before 6.14 have a fixed second."""
    tcp_timestamps: int = 1
    ip_autobind_reuse: int = 0
    tcp_max_tw_buckets: int = 0


class SocketGroup(NamedTuple):
    """All sockets of one dump that are alike but for their local port.

    Addresses are packed (4 or 16 bytes); an IPv4-mapped IPv6 address is given as its IPv4 address.
    """

    state: int
    """As in `TcpState`; an unknown number stays a number. UDP: ESTABLISHED is connected, CLOSE is not."""
    source: bytes
    destination: bytes
    """Unspecified (all zero) for a socket without a peer."""
    destination_port: int
    device: int = 0
    """Interface index the socket is bound to (SO_BINDTODEVICE), 0 if none."""
    minisock: bool = False
    """A TIME_WAIT structure: the state TIME_WAIT, or FIN_WAIT2 after the process let go of the socket."""
    bind_address_no_port: bool = False
    """IP_BIND_ADDRESS_NO_PORT is set on the socket, so bind(address, 0) did not choose its port."""
    dual_stack: bool = False
    """An AF_INET6 socket that is not known to be IPV6_V6ONLY.

    inet_diag tells only of listening, bound and unconnected sockets.
    """


class Tuple(NamedTuple):
    """A connection but for its local port; addresses packed."""

    source: bytes
    destination: bytes
    destination_port: int


class Tuples(Sequence[Tuple]):
    """Distinct tuples in the order in which they were met, kept packed: there may be as many as sockets."""

    def __init__(self, index: Mapping[tuple[bytes], int]) -> None:
        """Take the place of each packed tuple: length of its addresses, a zero, port, addresses of 16 bytes."""
        self._index = index
        self._packed = [packed for (packed,) in index]

    def __len__(self) -> int:
        return len(self._packed)

    @overload
    def __getitem__(self, place: int) -> Tuple: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Tuple]: ...
    def __getitem__(self, place: int | slice) -> Tuple | Sequence[Tuple]:
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(len(self)))]
        length, port, source, destination = _TUPLE.unpack(self._packed[place])
        return Tuple(source[:length], destination[:length], port)

    def find(self, wanted: Tuple) -> int | None:
        """Return the place of a tuple, None if it is not there."""
        source, destination, port = wanted
        return self._index.get((_TUPLE.pack(len(source), port, source, destination),))


class SocketGroups(Sequence[SocketGroup]):
    """The groups of one dump, kept packed: there may be as many as sockets, and few of them are looked at.

    `PACKED` is the layout of each: a byte that means nothing, the state, whether it is a minisock, flags, the tuple as
    `Tuples` takes it, and the device.
    """

    PACKED = struct.Struct("=xBBB36sI")
    NO_PORT, DUAL_STACK = 1, 2
    """The flags: IP_BIND_ADDRESS_NO_PORT, and `SocketGroup.dual_stack`."""

    def __init__(self, packed: bytes | bytearray) -> None:
        self._packed = packed

    @classmethod
    def of(cls, groups: Iterable[SocketGroup]) -> SocketGroups:
        """Pack some groups."""
        return cls(b"".join(map(_pack, groups)))

    def __len__(self) -> int:
        return len(self._packed) // self.PACKED.size

    @overload
    def __getitem__(self, place: int) -> SocketGroup: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[SocketGroup]: ...
    def __getitem__(self, place: int | slice) -> SocketGroup | Sequence[SocketGroup]:
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(len(self)))]
        place = range(len(self))[place]
        state, minisock, flags, ends, device = self.PACKED.unpack_from(self._packed, place * self.PACKED.size)
        length, port, source, destination = _TUPLE.unpack(ends)
        # By position, in the order of the fields: there may be as many groups as sockets.
        return SocketGroup(
            state,
            source[:length],
            destination[:length],
            port,
            device,
            minisock == 1,
            flags & self.NO_PORT != 0,
            flags & self.DUAL_STACK != 0,
        )

    @cached_property
    def states(self) -> bytes:
        """The state of each group."""
        return bytes(self._packed[1 :: self.PACKED.size])

    @cached_property
    def no_port_flags(self) -> bytes:
        """1 for each group whose sockets carry IP_BIND_ADDRESS_NO_PORT, else 0."""
        return bytes(self._packed[3 :: self.PACKED.size]).translate(_IS_ODD)

    @cached_property
    def on_devices(self) -> Sequence[int]:
        """The places of the groups whose sockets are bound to a device."""
        devices = memoryview(self._packed).cast("I")[10 :: self.PACKED.size // 4].tolist()
        return [place for place, device in enumerate(devices) if device] if any(devices) else []

    @property
    def tuples(self) -> Tuples:
        """The distinct tuples of the groups."""
        return self._tuples[0]

    @property
    def tuple_of(self) -> array[int]:
        """Index into `tuples` of each group (typecode "I")."""
        return self._tuples[1]

    @cached_property
    def _tuples(self) -> tuple[Tuples, array[int]]:
        index: defaultdict[tuple[bytes], int] = defaultdict(count().__next__)
        keys: Iterator[tuple[bytes]] = struct.Struct("=4x36s4x").iter_unpack(self._packed)
        tuple_of = array("I", map(index.__getitem__, keys))
        index.default_factory = None
        return Tuples(index), tuple_of


_TUPLE = struct.Struct(">BxH16s16s")
_IS_ODD = bytes([0, 1] * 128)


def _pack(group: SocketGroup) -> bytes:
    flags = group.bind_address_no_port * SocketGroups.NO_PORT | group.dual_stack * SocketGroups.DUAL_STACK
    ends = _TUPLE.pack(len(group.source), group.destination_port, group.source, group.destination)
    return SocketGroups.PACKED.pack(group.state, group.minisock, flags, ends, group.device)


class Rows(NamedTuple):
    """Some rows of a SocketTable, as its columns."""

    group_of: Sequence[int]
    port_of: Sequence[int]
    time_wait_left_ms_of: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketTable:
    """One dump as three parallel arrays, one row a socket, and the groups that the rows fall into.

    Eight bytes a socket, held only for the length of a poll. Rows are in no particular order.
    """

    groups: SocketGroups
    group_of: array[int]
    """Index into `groups` of each row (typecode "I")."""
    port_of: array[int]
    """Local port of each row, host byte order (typecode "H")."""
    time_wait_left_ms_of: array[int]
    """Milliseconds until a row's TIME_WAIT structure is released, at most 65,535 (typecode "H").

    Means nothing in rows whose group is no minisock.
    """
    ports: frozenset[int] = field(init=False)
    """The local ports that there are."""

    def __post_init__(self) -> None:
        ports: set[int] = set()
        for rows in self.pieces():
            ports.update(rows.port_of)
        object.__setattr__(self, "ports", frozenset(ports))

    def __len__(self) -> int:
        return len(self.group_of)

    def pieces(self) -> Iterator[Rows]:
        """Yield all rows in pieces that one call into C gets through within a few milliseconds.

        The interpreter lets other threads run between calls only, and one of them answers scrapes.
        """
        for start in range(0, len(self), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            yield Rows(self.group_of[rows], self.port_of[rows], self.time_wait_left_ms_of[rows])


_ROWS_AT_ONCE = 50_000


NO_SOCKETS = SocketTable(
    groups=SocketGroups(b""), group_of=array("I"), port_of=array("H"), time_wait_left_ms_of=array("H")
)
"""The dump that found nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpSockets:
    """The TCP sockets of one namespace, both families, whose local port lies inside the port range."""

    bound: SocketTable
    """Listening sockets (state LISTEN) and bound-but-unconnected ones (state CLOSE); see `blind_to`."""
    explicit_ports: frozenset[int]
    """Ports on which a full socket sits that named its port in bind() (SOCK_BINDPORT_LOCK); empty if not visible."""
    connections: SocketTable
    """All others, TIME_WAIT and SYN_RECV included. Sockets that a listener in `bound` accepted may be left out."""
    bound_to_any_port: frozenset[bytes] = frozenset()
    """Packed local addresses of bound, unconnected sockets that let bind() choose the port."""
    listening_ports: frozenset[int] | None = None
    """All ports that have a listener, inside the range or not; None if that was not asked for."""
    fingerprints: array[int] | None = None
    """By port, 65,536 numbers that stay as long as the port's sockets do (typecode "Q"); None if not visible.

    Each is the exclusive or of the cookies of all sockets of both tables on the port, each cookie mixed first, because
    neighbouring sockets get neighbouring cookies and a pair of neighbours would look like the next pair.
    """
    has_evidence: bool = True
    """Whether `explicit_ports` and `fingerprints` were asked for; without them a reading is cheaper."""
    ports_recover: bool = True
    """A port is free for connect() once the last socket that blocks it is gone; before Linux 6.18, once all are."""
    blind_to: frozenset[Blindness] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class UdpSockets:
    """The UDP sockets of one namespace, both families, whose local port lies inside the port range.

    The groups carry no destination: a UDP port is taken whatever its socket is connected to.
    """

    sockets: SocketTable
    bound_to_any_port: frozenset[bytes] = frozenset()
    """Packed local addresses, wildcards left out, of unconnected sockets that let bind() choose the port."""
    blind_to: frozenset[Blindness] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceSnapshot:
    """What was read of one network namespace.

    A protocol that could not be read is None and named, with the reason as one sentence, in `missing`.
    """

    netns: str
    inode: int
    sysctls: Sysctls
    tcp: TcpSockets | None
    udp: UdpSockets | None
    backends: Mapping[Protocol, Backend]
    missing: Mapping[Protocol, str] = field(default_factory=dict)
    fallbacks: Mapping[Protocol, str] = field(default_factory=dict)
    """Why a protocol was read by procfs although inet_diag was wanted, one sentence each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What one poll read of the kernel."""

    taken_at: float
    """Wall-clock time of the poll, seconds since the epoch."""
    duration_seconds: float
    namespaces: tuple[NamespaceSnapshot, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NarrowSnapshot:
    """What a narrow poll read: the TCP connections toward some destinations, and the sysctls."""

    taken_at: float
    """Seconds since the epoch."""
    netns: str
    inode: int
    sysctls: Sysctls
    destinations: frozenset[tuple[bytes, int]]
    """Packed address and port of each destination that was looked at."""
    connections: SocketTable
