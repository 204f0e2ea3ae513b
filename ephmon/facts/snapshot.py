"""Facts: what one poll read of the kernel, for each network namespace: its sysctls and its sockets.

`ephmon.kernel.source` builds these values; `ephmon.model` reads them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from ephmon.facts.namespaces import NO_PODS, Netns

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ephmon.facts.addresses import Endpoint
    from ephmon.facts.bind_table import NamespaceBinds
    from ephmon.facts.namespaces import NamespaceIdentity, Pod
    from ephmon.facts.sockets import Backend, Protocol, SocketTable, TcpSockets, UdpSockets


class PortRange(NamedTuple):
    """`ip_local_port_range`: both ends belong to it (man 7 ip)."""

    low: int
    high: int

    @property
    def size(self) -> int:
        """How many ports the range has."""
        return self.high - self.low + 1

    @property
    def may_be_passed_over(self) -> tuple[int, ...]:
        """The ports of which a TCP search may pass over one, none in a range of even size.

        It walks the ports by parity and rounds their number down. So it leaves out the first or the last one, by where
        it starts (__inet_hash_connect() in net/ipv4/inet_hashtables.c, inet_csk_find_open_port()).
        """
        return (self.low, self.high) if self.size > 1 and self.size % 2 == 1 else ()


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
    tcp_max_tw_buckets: int = 262144


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpBinds:
    """The TCP sockets of one namespace as the kernel's bind table has them: counted, not listed."""

    table: NamespaceBinds
    listening_ports: frozenset[int] | None
    """All ports that have a listener, inside the range or not; None if that could not be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceSnapshot:
    """What was read of one network namespace."""

    netns: str
    inode: int
    sysctls: Sysctls
    tcp: TcpSockets | None
    """None where TCP could not be read, and `missing` says why, or where `binds` has it."""
    udp: UdpSockets | None
    """None where UDP could not be read; `missing` then says why."""
    backends: Mapping[Protocol, Backend]
    """Only of the protocols that could be read."""
    missing: Mapping[Protocol, str] = field(default_factory=dict)
    """Why a protocol could not be read, one sentence each."""
    fallbacks: Mapping[Protocol, str] = field(default_factory=dict)
    """Why a protocol was read in another way than the one that is preferred, one sentence each."""
    binds: TcpBinds | None = None
    """TCP, where the kernel's bind table was read."""
    identity: NamespaceIdentity | None = None
    """None of our own namespace, and where only that is read."""
    may_alert: bool = True
    """Whether alerts are raised about it: nobody's who can make and fill a namespace without a privilege."""

    @property
    def namespace(self) -> Netns:
        """Which namespace this is."""
        return Netns(self.netns, self.inode)

    @property
    def listening_ports(self) -> frozenset[int] | None:
        """All TCP ports that have a listener, inside the range or not; None if that was not read."""
        if self.binds is not None:
            return self.binds.listening_ports
        return None if self.tcp is None else self.tcp.listening_ports


@dataclass(frozen=True, slots=True, kw_only=True)
class BpfStatus:
    """How the backend `bpf` is."""

    refusal: str | None
    """Why it does not read, one sentence; None while it does."""
    disagreements: int = 0
    """How often it was ended because inet_diag showed other sockets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What one poll read of the kernel."""

    taken_at: float
    """When the sockets had been read, seconds since the epoch."""
    duration_seconds: float
    namespaces: tuple[NamespaceSnapshot, ...]
    bpf: BpfStatus | None = None
    """None if it is not to be used."""
    pods: Mapping[str, Pod] = field(default_factory=lambda: NO_PODS)
    """The pods of this node by their uid, where some namespace is of one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NarrowReading:
    """What a narrow poll read of one network namespace: its sysctls, and its TCP connections to some destinations."""

    netns: str
    inode: int
    sysctls: Sysctls
    destinations: frozenset[Endpoint]
    """The destinations, in this namespace, that were read; one without a row in `connections` has no connection."""
    connections: SocketTable

    @property
    def namespace(self) -> Netns:
        """Which namespace this is."""
        return Netns(self.netns, self.inode)


@dataclass(frozen=True, slots=True, kw_only=True)
class NarrowSnapshot:
    """What a narrow poll read."""

    taken_at: float
    """Seconds since the epoch."""
    namespaces: tuple[NarrowReading, ...]
