"""Pools of the kinds tcp_bind, udp_connect and udp_bind: a port is taken whatever its socket is connected to.

All three kinds have one conflict rule. They differ in the protocol and in the local address of the newcomer, which is
the socket that asks for a port.

tcp_bind
    bind(source, 0) of a TCP socket without IP_BIND_ADDRESS_NO_PORT: `inet_csk_find_open_port()` and
    `inet_bind_conflict()`, net/ipv4/inet_connection_sock.c. Key (namespace, source); bind() fails with EADDRINUSE.
    Each such socket also blocks one port for every connect() of the namespace (`ephmon.model.pools.port_classes`). The
    ports that connect() gave to sockets of the same source are lost to this pool. Their TIME_WAITs are too, because the
    kernel reuses TIME_WAITs for connect() alone.
udp_connect
    connect() or sendto() on a UDP socket without a port: `inet_autobind()`, net/ipv4/af_inet.c, binds it to the
    wildcard before any address is known. Key (namespace, family); the call fails with EAGAIN.
udp_bind
    bind(source, 0) of a UDP socket: `udp_lib_get_port()`, net/ipv4/udp.c. Key (namespace, source); bind() fails with
    EADDRINUSE.

A port is in use for a newcomer if any socket of the protocol on it has a local address that overlaps the newcomer's:

- the same address (IPv4-mapped IPv6 counts as IPv4), or
- either is the wildcard of a family that the other is of. The IPv6 wildcard without IPV6_V6ONLY is of both; so is, for
  an IPv4 newcomer at the wildcard, every IPv6 socket without IPV6_V6ONLY (`ephmon.facts.addresses.overlap`).

State, peer and TIME_WAIT do not matter. Devices do not matter either, as the newcomer is taken to be bound to none,
unless they are in a VRF: then remaining_max does not count their sockets.
SO_REUSEADDR and SO_REUSEPORT on both sides let UDP sockets share ports. The kernel does not show these options, so
sockets that use them have more ports left than the numbers say. With ip_autobind_reuse=1 the same holds for TCP
sockets, and no tcp_bind number is exact.

When they exist
    udp_connect: per family, once a UDP socket of the family is inside the range. tcp_bind and udp_bind: once a socket
    inside the range is proven to come from bind(source, 0). For UDP the proof is that it is bound, unconnected and did
    not name its port; for TCP `ephmon.model.pools.classify_ports` has one more. On a host that only connects, these
    pools would fill up although nobody allocates from them.

remaining_min of tcp_bind is one less in a range of odd size, unless the range has only one port. The search walks the
ports by parity from a random one and rounds their number down. So it passes over the first or the last port, and
nothing is lost where neither can be had. UDP looks at every port.

remaining_max for a newcomer at the IPv4 wildcard, and for a UDP one at 127.0.0.6, does not count connected IPv6
sockets. The kernel does not show whether they are IPV6_V6ONLY.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field
from itertools import compress
from typing import TYPE_CHECKING

from ephmon.facts.addresses import (
    ANY_V4,
    ANY_V6,
    V4_BYTES,
    V6_BYTES,
    address_text,
    covers,
    is_wildcard,
    overlap,
    packed_address,
)
from ephmon.facts.sockets import TcpState
from ephmon.model.pools.kinds import Pool, PoolKey, PoolKind, by_state_name
from ephmon.model.pools.port_classes import count_usable, usable_ports

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from ephmon.facts.snapshot import Sysctls
    from ephmon.facts.socket_groups import SocketGroup
    from ephmon.facts.sockets import SocketTable

FAILURE_ERRNO = {
    PoolKind.TCP_BIND: "EADDRINUSE",
    PoolKind.UDP_CONNECT: "EAGAIN",
    PoolKind.UDP_BIND: "EADDRINUSE",
}

PLACEHOLDER = bytes([127, 0, 0, 6])
"""What connect() writes into the IPv4 address of an IPv6 socket (LOOPBACK4_IPV6, include/net/ipv6.h).

For UDP the kernel compares it with the address of an IPv4 socket (inet_rcv_saddr_equal()), so bind() to 127.0.0.6
conflicts with IPv6 sockets. Istio's proxies bind to that address.
"""

# inet_diag shows IPV6_V6ONLY only in these states (inet_diag_msg_attrs_fill(), net/ipv4/inet_diag.c).
_STATES_WITH_V6ONLY = (TcpState.LISTEN, TcpState.CLOSE)


@dataclass(slots=True)
class _HeldPorts:
    """The usable ports that the sockets of some local addresses hold, and those sockets by state."""

    taken: set[int] = field(default_factory=set)
    certain: set[int] = field(default_factory=set)
    """Of `taken`, those held by a socket that conflicts with the newcomer whether or not it is IPV6_V6ONLY."""
    alive: set[int] = field(default_factory=set)
    """Of `taken`, those held by a socket that is not in TIME_WAIT."""
    states: Counter[int] = field(default_factory=Counter)


class PoolsBySource(ABC):
    """Pools of one kind in one namespace that have no destination. The own key of a pool is its packed source."""

    kind: PoolKind
    netns: str
    _pools: Collection[bytes]
    """The sources of the pools that exist."""

    def __len__(self) -> int:
        return len(self._pools)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._pools)

    def by_upper_bound(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield each pool with its `lost_and_held`, the greatest first."""
        exact = ((*self.lost_and_held(source), source) for source in self._pools)
        return iter(sorted(exact, reverse=True))

    @abstractmethod
    def lost_and_held(self, source: bytes) -> tuple[int, int]:
        """Return how many usable ports are in use for a newcomer at the source, twice: all of them are lost to it."""

    def find(self, key: PoolKey) -> bytes | None:
        """Return the source of a pool that exists, None for others."""
        if (key.netns, key.kind) != (self.netns, self.kind):
            return None
        source = packed_address(key.source)
        return source if source in self._pools else None

    def destination(self, source: bytes) -> None:  # noqa: ARG002 - the same question as of pools that have one
        """Return None: these pools have no destination."""
        return


class AddressPools(PoolsBySource):
    """The pools of one of these kinds in one namespace. The own key of a pool is its packed source address.

    Args:
        kind: `tcp_bind`, `udp_connect` or `udp_bind`.
        netns: The namespace's label.
        taken_at: When the sockets were read, seconds since the epoch.
        sysctls: The settings of the namespace.
        tables: All sockets of the protocol inside the range.
        sources: The packed addresses of the pools that exist. `pool` answers for others too.
        is_blind: Whether the tables may lack sockets.
    """

    def __init__(
        self,
        kind: PoolKind,
        netns: str,
        *,
        taken_at: float,
        sysctls: Sysctls,
        tables: Sequence[SocketTable],
        sources: Iterable[bytes],
        is_blind: bool,
    ) -> None:
        self.kind = kind
        self.netns = netns
        self._taken_at = taken_at
        self._is_usable = usable_ports(sysctls)
        self.usable = count_usable(sysctls)
        self._tables = tables
        self._is_blind = is_blind
        self._may_be_passed_over = sysctls.port_range.may_be_passed_over if kind == PoolKind.TCP_BIND else ()
        self._may_share = kind == PoolKind.TCP_BIND and bool(sysctls.ip_autobind_reuse)
        self._pools = frozenset(sources)
        self._own, self._wildcards = self._count(self._pools)

    def lost_and_held(self, source: bytes) -> tuple[int, int]:
        """Return how many usable ports are in use for a newcomer at the source, twice: all of them are lost to it."""
        own, wildcard = self._own[source], self._wildcards[len(source)]
        # Without building the union: there may be many sources, and the wildcard's ports are the same for all of them.
        in_use = len(wildcard.taken) + len(own.taken - wildcard.taken)
        return in_use, in_use

    def pool(self, source: bytes) -> Pool:
        """Return the pool of a source, also of one that nobody allocates from."""
        owns, wildcards = (self._own, self._wildcards) if source in self._pools else self._count({source})
        own, wildcard = owns[source], wildcards[len(source)]
        in_use, certain, alive = (
            len(mine | everywhere)
            for mine, everywhere in (
                (own.taken, wildcard.taken),
                (own.certain, wildcard.certain),
                (own.alive, wildcard.alive),
            )
        )
        remaining = self.usable - in_use
        may_lose_one = any(
            self._is_usable[port] and port not in own.taken and port not in wildcard.taken
            for port in self._may_be_passed_over
        )
        least = max(0, remaining - may_lose_one)
        # With ip_autobind_reuse any port may be shared, which depends on options that the kernel does not show.
        most = self.usable - (0 if self._may_share else certain)
        return Pool(
            key=PoolKey(
                netns=self.netns,
                kind=self.kind,
                source=address_text(source),
                destination=None,
                destination_port=None,
            ),
            taken_at=self._taken_at,
            usable=self.usable,
            blocked=0,
            capacity=self.usable,
            in_use=in_use,
            time_wait=in_use - alive,
            reusable=0,
            remaining=remaining,
            remaining_min=least,
            remaining_max=most,
            exact=least == most and not self._is_blind,
            failure_errno=FAILURE_ERRNO[self.kind],
            states=by_state_name(own.states + wildcard.states),
            held=in_use,
        )

    def _count(self, sources: Collection[bytes]) -> tuple[dict[bytes, _HeldPorts], dict[int, _HeldPorts]]:
        """Return the ports held against each source alone, and against all sources of a family (by address length)."""
        # One pass, however many sources there are: any user of the host can bind to thousands of addresses.
        own = {source: _HeldPorts() for source in sources}
        wildcards = {V4_BYTES: _HeldPorts(), V6_BYTES: _HeldPorts()}
        for table in self._tables if own else ():
            conflicts = [
                [*_conflicts_of(group, own, wildcards), *self._conflicts_by_placeholder(group, own)]
                for group in table.groups
            ]
            rows = zip(table.group_of, table.port_of, strict=True)
            for index, port in compress(rows, map(conflicts.__getitem__, table.group_of)):
                group = table.groups[index]
                # A socket on a device may be in a VRF, and then it keeps no port from a newcomer outside.
                is_here = not (self._is_blind and group.device)
                for held_ports, is_certain in conflicts[index]:
                    self._add(held_ports, group, port, is_certain=is_certain and is_here)
        return own, wildcards

    def _conflicts_by_placeholder(
        self, group: SocketGroup, own: dict[bytes, _HeldPorts]
    ) -> Iterator[tuple[_HeldPorts, bool]]:
        """Yield what the ports of IPv6 UDP sockets are to be added to because the kernel writes PLACEHOLDER for them.

        Only connected ones without IPV6_V6ONLY have it, which the kernel does not show of them. bind() to an IPv6
        address sets that option. TCP sockets are looked for by their IPv6 address.
        """
        is_native = len(group.source) == V6_BYTES and not is_wildcard(group.source)
        if self.kind == PoolKind.UDP_BIND and PLACEHOLDER in own and is_native and group.dual_stack:
            yield own[PLACEHOLDER], False

    def _add(self, held_ports: _HeldPorts, group: SocketGroup, port: int, *, is_certain: bool) -> None:
        held_ports.states[group.state] += 1
        if not self._is_usable[port]:
            return
        held_ports.taken.add(port)
        if is_certain:
            held_ports.certain.add(port)
        if group.state != TcpState.TIME_WAIT:
            held_ports.alive.add(port)


def _conflicts_of(
    group: SocketGroup, own: dict[bytes, _HeldPorts], wildcards: dict[int, _HeldPorts]
) -> list[tuple[_HeldPorts, bool]]:
    """Return what the ports of a group's sockets are to be added to, and whether their conflict is certain."""
    found = []
    for wildcard in (ANY_V4, ANY_V6):
        if covers(group.source, wildcard, dual_stack=group.dual_stack):  # a wildcard socket itself
            found.append((wildcards[len(wildcard)], True))
        elif wildcard in own and overlap(group.source, wildcard, dual_stack=group.dual_stack):
            is_v6only_unknown = len(group.source) == V6_BYTES and group.state not in _STATES_WITH_V6ONLY
            # A newcomer at :: conflicts with every socket. One at 0.0.0.0 does not conflict with IPV6_V6ONLY sockets.
            found.append((own[wildcard], wildcard == ANY_V6 or not is_v6only_unknown))
    if group.source in own and not is_wildcard(group.source):
        found.append((own[group.source], True))
    return found
