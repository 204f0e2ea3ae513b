"""Facts: what the kernel said at one moment, before anything is concluded from it.

`ephmon.kernel` builds these values, the rest of `ephmon.model` reads them. They name kernel things by their kernel
names and keep unknown numbers as numbers.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

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


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketTable:
    """One dump as three parallel arrays, one row a socket, and the groups that the rows fall into.

    Eight bytes a socket, held only for the length of a poll. Rows are in no particular order.
    """

    groups: tuple[SocketGroup, ...]
    group_of: array[int]
    """Index into `groups` of each row (typecode "I")."""
    port_of: array[int]
    """Local port of each row, host byte order (typecode "H")."""
    time_wait_left_ms_of: array[int]
    """Milliseconds until a row's TIME_WAIT structure is released, at most 65,535 (typecode "H").

    Means nothing in rows whose group is no minisock.
    """

    def __len__(self) -> int:
        return len(self.group_of)


NO_SOCKETS = SocketTable(groups=(), group_of=array("I"), port_of=array("H"), time_wait_left_ms_of=array("H"))
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
    fingerprints: array[int] | None = None
    """By port, 65,536 numbers that stay as long as the port's sockets do (typecode "Q"); None if not visible.

    Each is the exclusive or of the cookies of all sockets of both tables on the port, each cookie mixed first, because
    neighbouring sockets get neighbouring cookies and a pair of neighbours would look like the next pair.
    """
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
