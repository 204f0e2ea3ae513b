"""Pools whose ports are taken whatever they are connected to: tcp_bind, udp_connect and udp_bind.

All three have one conflict rule; they differ in the protocol and in the address that the newcomer sits on.

tcp_bind
    bind(source, 0) of a TCP socket without IP_BIND_ADDRESS_NO_PORT: `inet_csk_find_open_port()` and
    `inet_bind_conflict()`, net/ipv4/inet_connection_sock.c. Key (namespace, source); bind() fails with EADDRINUSE.
    Each such socket also takes one port from every connect() of the namespace (`ephmon.model.pools.port_classes`), and
    the ports that connect() gave to sockets of the same source are lost to this pool, their TIME_WAIT included: reuse
    of TIME_WAIT is for connect() alone.
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

State, peer and TIME_WAIT do not matter, nor do devices as long as the newcomer is bound to none. SO_REUSEADDR and
SO_REUSEPORT on both sides let UDP sockets share ports; they are not shown, so those who use them have more ports left
than is said here. With ip_autobind_reuse=1 the same is true of TCP sockets, and no tcp_bind number is exact.

When they exist
    udp_connect: per family, once a UDP socket of it is inside the range. tcp_bind and udp_bind: once a socket inside
    the range certainly came from bind(source, 0), because it is bound, unconnected and did not name its port; tcp_bind
    also once at least `pools.min_in_use` ports of the source are likely to have come from it
    (`ephmon.model.pools.evidence`; of UDP sockets nothing tells). A host that only connects fills these pools without
    anybody drawing from them.

remaining_min takes one port off tcp_bind in a range of odd size, but for a range of one port: the search walks the
ports by parity from a random one and rounds their number down. UDP looks at every port.

remaining_max leaves out, for a newcomer at the IPv4 wildcard, connected IPv6 sockets: whether they are IPV6_V6ONLY is
not shown.
"""

from __future__ import annotations

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
from ephmon.model.pools.port_classes import usable_ports

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

# Of sockets in these states the kernel tells whether they are IPV6_V6ONLY.
_STATES_WITH_V6ONLY = (TcpState.LISTEN, TcpState.CLOSE)


@dataclass(slots=True)
class _Holders:
    """The ports that sockets of some local addresses hold, and what is told of those sockets."""

    taken: set[int] = field(default_factory=set)
    certain: set[int] = field(default_factory=set)
    """Of `taken`, those held by a socket that overlaps whatever is not shown of it."""
    alive: set[int] = field(default_factory=set)
    """Of `taken`, those held by a socket that is no TIME_WAIT."""
    states: Counter[int] = field(default_factory=Counter)


class AddressPools:
    """The pools of one such kind in one namespace.

    Args:
        kind: `tcp_bind`, `udp_connect` or `udp_bind`.
        netns: The namespace's label.
        taken_at: When the sockets were read, seconds since the epoch.
        sysctls: The settings of the namespace.
        tables: All sockets of the protocol inside the range.
        sources: The packed addresses of the pools that exist; others can be asked for all the same.
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
        self._usable = usable_ports(sysctls)
        self._usable_count = len(self._usable) - self._usable.count(0)
        self._tables = tables
        self._is_blind = is_blind
        self._may_lose_one = kind == PoolKind.TCP_BIND and sysctls.port_range.may_lose_one
        self._may_share = kind == PoolKind.TCP_BIND and bool(sysctls.ip_autobind_reuse)
        self._pools = frozenset(sources)
        self._own, self._wildcards = self._count(self._pools)

    def __len__(self) -> int:
        return len(self._pools)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._pools)

    def most_lost_first(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield each pool with its `rank`, the greatest first."""
        ranks = ((*self.rank(source), source) for source in self._pools)
        return iter(sorted(ranks, reverse=True))

    def rank(self, source: bytes) -> tuple[int, int]:
        """Return what pools are ordered by, the worst greatest: usable ports it cannot get, twice."""
        in_use = self.held(source)
        return in_use, in_use

    def held(self, source: bytes) -> int:
        """Return how many usable ports are in use for a newcomer at the source, whoever holds them."""
        own, wildcard = self._own[source], self._wildcards[len(source)]
        return len(wildcard.taken) + len(own.taken - wildcard.taken)

    def find(self, key: PoolKey) -> bytes | None:
        """Return the source of a pool that exists, None for others."""
        if (key.netns, key.kind) != (self.netns, self.kind):
            return None
        source = packed_address(key.source)
        return source if source in self._pools else None

    def destination(self, source: bytes) -> None:  # noqa: ARG002 - the same question as of pools that have one
        """Return None: these pools have no destination."""
        return

    def pool(self, source: bytes) -> Pool:
        """Return the pool of a source, also of one that nobody draws from."""
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
        remaining = self._usable_count - in_use
        least = max(0, remaining - self._may_lose_one)
        most = self._usable_count - (0 if self._may_share else certain)
        return Pool(
            key=PoolKey(
                netns=self.netns,
                kind=self.kind,
                source=address_text(source),
                destination=None,
                destination_port=None,
            ),
            taken_at=self._taken_at,
            usable=self._usable_count,
            blocked=0,
            capacity=self._usable_count,
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

    def _count(self, sources: Collection[bytes]) -> tuple[dict[bytes, _Holders], dict[int, _Holders]]:
        """Return what sockets hold against each source: by source alone, and for all sources of a family (by length).

        One pass, however many sources there are: anybody on the host can bind to thousands of addresses.
        """
        own = {source: _Holders() for source in sources}
        wildcards = {V4_BYTES: _Holders(), V6_BYTES: _Holders()}
        for table in self._tables if own else ():
            holders = [_holders_of(group, own, wildcards) for group in table.groups]
            rows = zip(table.group_of, table.port_of, strict=True)
            for index, port in compress(rows, map(holders.__getitem__, table.group_of)):
                group = table.groups[index]
                for holder, is_certain in holders[index]:
                    self._hold(holder, group, port, is_certain=is_certain)
        return own, wildcards

    def _hold(self, holder: _Holders, group: SocketGroup, port: int, *, is_certain: bool) -> None:
        holder.states[group.state] += 1
        if not self._usable[port]:
            return
        holder.taken.add(port)
        if is_certain:
            holder.certain.add(port)
        if group.state != TcpState.TIME_WAIT:
            holder.alive.add(port)


def _holders_of(
    group: SocketGroup, own: dict[bytes, _Holders], wildcards: dict[int, _Holders]
) -> list[tuple[_Holders, bool]]:
    """Return against whom a socket of the group holds its port, and whether that is certain."""
    found = []
    for wildcard in (ANY_V4, ANY_V6):
        if covers(group.source, wildcard, dual_stack=group.dual_stack):  # it is at a wildcard itself
            found.append((wildcards[len(wildcard)], True))
        elif wildcard in own and overlap(group.source, wildcard, dual_stack=group.dual_stack):
            is_v6only_unknown = len(group.source) == V6_BYTES and group.state not in _STATES_WITH_V6ONLY
            found.append((own[wildcard], wildcard == ANY_V6 or not is_v6only_unknown))
    if group.source in own and not is_wildcard(group.source):
        found.append((own[group.source], True))
    return found
