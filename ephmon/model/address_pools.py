"""Pools whose ports are taken whatever they are connected to: tcp_bind, udp_connect and udp_bind.

All three have one conflict rule; they differ in the protocol and in the address that the newcomer sits on.

tcp_bind
    bind(source, 0) of a TCP socket without IP_BIND_ADDRESS_NO_PORT: `inet_csk_find_open_port()` and
    `inet_bind_conflict()`, net/ipv4/inet_connection_sock.c. Key (namespace, source); bind() fails with EADDRINUSE.
    Each such socket also takes one port from every connect() of the namespace (`ephmon.model.tcp_ports`), and the ports
    that connect() gave to sockets of the same source are lost to this pool, their TIME_WAIT included: reuse of
    TIME_WAIT is for connect() alone.
udp_connect
    connect() or sendto() on a UDP socket without a port: `inet_autobind()`, net/ipv4/af_inet.c, binds it to the
    wildcard before any address is known. Key (namespace, family); the call fails with EAGAIN.
udp_bind
    bind(source, 0) of a UDP socket: `udp_lib_get_port()`, net/ipv4/udp.c. Key (namespace, source); bind() fails with
    EADDRINUSE.

A port is in use for a newcomer if any socket of the protocol on it has a local address that overlaps the newcomer's:

- the same address (IPv4-mapped IPv6 counts as IPv4), or
- either is the wildcard of a family that the other is of. The IPv6 wildcard without IPV6_V6ONLY is of both; so is, for
  an IPv4 newcomer at the wildcard, every IPv6 socket without IPV6_V6ONLY.

State, peer and TIME_WAIT do not matter, nor do devices as long as the newcomer is bound to none. SO_REUSEADDR and
SO_REUSEPORT on both sides let UDP sockets share ports, and with ip_autobind_reuse=1 TCP sockets too; they cannot be
seen, so those who use them have more ports left than is said here.

When they exist
    udp_connect: per family, once a UDP socket of it is inside the range. tcp_bind and udp_bind: once a socket inside
    the range certainly came from bind(source, 0), because it is bound, unconnected and did not name its port, or at
    least `pools.min_in_use` ports of the source are likely to have come from it. A host that only connects fills these
    pools without anybody drawing from them.

remaining_max leaves out, for a newcomer at the IPv4 wildcard, connected IPv6 sockets: whether they are IPV6_V6ONLY is
not shown.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING

from ephmon.model.pools import Pool, PoolKey, PoolKind, by_state_name
from ephmon.model.snapshot import TcpState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ephmon.model.snapshot import SocketGroup, SocketTable

FAILURE_ERRNO = {
    PoolKind.TCP_BIND: "EADDRINUSE",
    PoolKind.UDP_CONNECT: "EAGAIN",
    PoolKind.UDP_BIND: "EADDRINUSE",
}
ANY_V4, ANY_V6 = bytes(4), bytes(16)

# Of sockets in these states the kernel tells whether they are IPV6_V6ONLY.
_STATES_WITH_V6ONLY = (TcpState.LISTEN, TcpState.CLOSE)


@dataclass(slots=True)
class _Tally:
    in_use: int
    in_use_certain: int
    time_wait: int
    states: Counter[int]


class AddressPools:
    """The pools of one such kind in one namespace.

    Args:
        kind: `tcp_bind`, `udp_connect` or `udp_bind`.
        netns: The namespace's label.
        taken_at: When the sockets were read, seconds since the epoch.
        usable: A true value for each port that an allocation may draw from, indexed by port.
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
        usable: Sequence[int],
        tables: Sequence[SocketTable],
        sources: Iterable[bytes],
        is_blind: bool,
    ) -> None:
        self.kind = kind
        self.netns = netns
        self.torn = 0
        self._taken_at = taken_at
        self._usable = usable
        self._usable_count = sum(map(bool, usable))
        self._tables = tables
        self._is_blind = is_blind
        self._tallies = {source: self._tally(source) for source in sources}

    def __len__(self) -> int:
        return len(self._tallies)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._tallies)

    def rank(self, source: bytes) -> tuple[int, int]:
        """Return what pools are ordered by, the worst greatest: usable ports it cannot get, then ports it holds."""
        in_use = self._tallies[source].in_use
        return in_use, in_use

    def held(self, source: bytes) -> int:
        """Return how many ports of the range are held against the pool."""
        return self._tallies[source].in_use

    def find(self, key: PoolKey) -> bytes | None:
        """Return the source of a pool that exists, None for others."""
        if (key.netns, key.kind) != (self.netns, self.kind):
            return None
        source = ip_address(key.source).packed
        return source if source in self._tallies else None

    def destination(self, source: bytes) -> None:  # noqa: ARG002 - the same question as of pools that have one
        """Return None: these pools have no destination."""
        return

    def pool(self, source: bytes) -> Pool:
        """Return the pool of a source, also of one that nobody draws from."""
        tally = self._tallies.get(source) or self._tally(source)
        usable = self._usable_count
        remaining, most = usable - tally.in_use, usable - tally.in_use_certain
        return Pool(
            key=PoolKey(
                netns=self.netns,
                kind=self.kind,
                source=str(ip_address(source)),
                destination=None,
                destination_port=None,
            ),
            taken_at=self._taken_at,
            usable=usable,
            blocked=0,
            capacity=usable,
            in_use=tally.in_use,
            time_wait=tally.time_wait,
            reusable=0,
            remaining=remaining,
            remaining_min=remaining,
            remaining_max=most,
            exact=remaining == most and not self._is_blind,
            failure_errno=FAILURE_ERRNO[self.kind],
            states=by_state_name(tally.states),
            held=tally.in_use,
        )

    def _tally(self, source: bytes) -> _Tally:
        taken: set[int] = set()
        certain: set[int] = set()
        alive: set[int] = set()
        states: Counter[int] = Counter()
        for table in self._tables:
            overlapping = [group if overlaps(group, source) else None for group in table.groups]
            for group, port in zip(map(overlapping.__getitem__, table.group_of), table.port_of, strict=True):
                if group is None:
                    continue
                states[group.state] += 1
                if not self._usable[port]:
                    continue
                taken.add(port)
                if group.state != TcpState.TIME_WAIT:
                    alive.add(port)
                if certainly_overlaps(group, source):
                    certain.add(port)
        return _Tally(in_use=len(taken), in_use_certain=len(certain), time_wait=len(taken - alive), states=states)


def overlaps(group: SocketGroup, source: bytes) -> bool:
    """Tell whether a socket of the group keeps its port from a newcomer at `source`, packed; `::` takes IPv4 too."""
    if source == ANY_V6:
        return True
    if source == ANY_V4:
        return len(group.source) == len(ANY_V4) or group.dual_stack
    if any(group.source):
        return group.source == source
    return len(group.source) == len(source) or group.dual_stack


def certainly_overlaps(group: SocketGroup, source: bytes) -> bool:
    """Tell the same, but not of an IPv6 socket of which it is only assumed that it takes IPv4 too."""
    assumed = len(group.source) == len(ANY_V6) and group.state not in _STATES_WITH_V6ONLY
    return overlaps(group, source) and not (source == ANY_V4 and assumed)
