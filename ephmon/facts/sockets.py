"""Facts: the sockets of one network namespace as a dump shows them, TCP and UDP.

`ephmon.kernel` builds these values, `ephmon.model` reads them. Names are the kernel's, and unknown numbers stay
numbers.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, NamedTuple

from ephmon.facts.socket_groups import SocketGroups
from ephmon.facts.timestamps import NOTHING_KNOWN, PeerTimestamps

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


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


class Capability(StrEnum):
    """What only some of the interfaces can do."""

    NARROW_POLLS = "narrow_polls"
    """The sockets toward some destinations can be read alone."""
    OWNERS = "owners"
    """With each socket comes who owns it: the user and the cgroup."""


class Backend(StrEnum):
    """The interfaces that a protocol's sockets can be read through."""

    BPF = "bpf"
    INET_DIAG = "inet_diag"
    PROCFS = "procfs"

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What it can do beside reading all sockets."""
        return _CAPABILITIES[self]


_CAPABILITIES = {
    # Owners are read by inet_diag, whatever the sockets are counted by.
    Backend.BPF: frozenset({Capability.OWNERS}),
    Backend.INET_DIAG: frozenset({Capability.NARROW_POLLS, Capability.OWNERS}),
    Backend.PROCFS: frozenset[Capability](),
}


class Blindness(StrEnum):
    """What a backend or a kernel cannot show. The values are those of `blind_to` in the JSON."""

    BOUND_UNCONNECTED = "bound_unconnected"
    """TCP sockets that are bound but neither connected nor listening (kernels before 6.8, and /proc/net/tcp)."""
    BOUND_DEVICE = "bound_device"
    """The device a socket is bound to (/proc/net/*)."""
    VRF = "vrf"
    """Which ports are blocked or taken in which VRF: sockets are bound to one, and all are counted together."""
    V6ONLY = "v6only"
    """Whether a wildcard IPv6 socket also takes IPv4 (/proc/net/*). It is assumed to, which is the kernel's default."""


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

    Only valid in rows whose group is a minisock.
    """
    ports: frozenset[int] = field(init=False)
    """All local ports of the rows."""

    def __post_init__(self) -> None:
        ports: set[int] = set()
        for rows in self.pieces():
            ports.update(rows.port_of)
        object.__setattr__(self, "ports", frozenset(ports))

    def __len__(self) -> int:
        return len(self.group_of)

    def pieces(self) -> Iterator[Rows]:
        """Yield all rows in pieces that one call into C processes within a few milliseconds.

        Other threads run only between such calls, and one of them answers scrapes.
        """
        for start in range(0, len(self), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            yield Rows(self.group_of[rows], self.port_of[rows], self.time_wait_left_ms_of[rows])


_ROWS_AT_ONCE = 50_000


NO_SOCKETS = SocketTable(
    groups=SocketGroups(b""), group_of=array("I"), port_of=array("H"), time_wait_left_ms_of=array("H")
)
"""A dump that found no socket."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpSockets:
    """The TCP sockets of one namespace, both families, whose local port lies inside the port range."""

    bound: SocketTable
    """Listening sockets (state LISTEN) and bound-but-unconnected ones (state CLOSE); see `blind_to`."""
    named: SocketTable
    """The full sockets of `connections` that named their port in bind() (SOCK_BINDPORT_LOCK); empty if not visible."""
    connections: SocketTable
    """All others, TIME_WAIT and SYN_RECV included. Sockets that a listener in `bound` accepted may be left out."""
    bound_to_any_port: frozenset[bytes] = frozenset()
    """Packed local addresses of bound, unconnected sockets that let bind() choose the port."""
    listening_ports: frozenset[int] | None = None
    """All ports that have a listener, inside the range or not; None if that was not read."""
    fingerprints: array[int] | None = None
    """One number for each of the 65,536 ports that changes when a socket comes or goes there (typecode "Q").

    It is the exclusive or of the cookies of all sockets of both tables on the port. Each cookie is mixed first: sockets
    made one after the other have neighbouring cookies, and without mixing one such pair gives the same number as the
    next pair. None if cookies are not visible.
    """
    has_evidence: bool = True
    """Whether `named` and `fingerprints` were read. A reading without them is cheaper."""
    ports_recover: bool = True
    """Whether connect() may use a port once the last socket that blocks it is gone, and not only once all are.

    True since Linux 6.18 (inet_bind_bucket_destroy() in net/ipv4/inet_hashtables.c).
    """
    timestamps: PeerTimestamps = NOTHING_KNOWN
    """Which connections are known to use TCP timestamps."""
    blind_to: frozenset[Blindness] = frozenset()

    @property
    def explicit_ports(self) -> frozenset[int]:
        """The ports of `named`."""
        return self.named.ports


@dataclass(frozen=True, slots=True, kw_only=True)
class UdpSockets:
    """The UDP sockets of one namespace, both families, whose local port lies inside the port range.

    The groups carry no destination: a UDP port is taken whatever its socket is connected to.
    """

    sockets: SocketTable
    bound_to_any_port: frozenset[bytes] = frozenset()
    """Packed local addresses, wildcards left out, of unconnected sockets that let bind() choose the port."""
    blind_to: frozenset[Blindness] = frozenset()
