"""Pools of the kind tcp_connect, as a walk over the kernel's bind table counted them.

What a pool is stands in `ephmon.model.pools.tcp_connect`. Here the kernel says which ports are blocked and which
TIME_WAITs connect() takes, so the numbers are exact but for these:

- A range of odd size: the search passes over the first or the last port (`PortRange.may_be_passed_over`).
- Sockets on devices (SO_BINDTODEVICE). A socket bound to a device conflicts with those of its device and of none, one
  that is bound to none with the latter alone (inet_bound_dev_eq(), include/net/inet_sock.h). The estimate counts all
  of them, remaining_max those that are bound to none.
- VRFs. Each has ports of its own. Where sockets of one key are in several, the estimate is that of the fullest, and
  the bounds reach from there to the emptiest.
- A walk that met sockets as they came and went (`Losses`).
"""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from operator import add
from typing import TYPE_CHECKING, NamedTuple

from ephmon.facts.addresses import address_text
from ephmon.facts.bind_counts import total
from ephmon.facts.socket_groups import ConnectKey, SocketGroup
from ephmon.facts.sockets import TcpState
from ephmon.model.pools.connect_search import OpenPorts
from ephmon.model.pools.kinds import Pool, PoolKey, PoolKind, by_state_name
from ephmon.model.pools.port_classes import PortClass
from ephmon.model.pools.tcp_connect import FAILURE_ERRNO, connect_key
from ephmon.model.pools.time_wait import reusable_after_ms

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from ephmon.facts.bind_counts import ConnectCounts
    from ephmon.facts.bind_counts import PoolKey as RowKey
    from ephmon.facts.bind_table import NamespaceBinds
    from ephmon.model.pools.port_classes import TcpPorts

_Row = tuple["RowKey", "ConnectCounts"]


class _Scope(NamedTuple):
    """What one key finds outside any VRF, or in one of them."""

    blocked: int
    capacity: int
    sockets: ConnectCounts
    """Of all sockets, whatever device they are bound to."""
    unbound: ConnectCounts
    """Of those that are bound to no device, or in a VRF to any."""

    @property
    def remaining(self) -> int:
        return self._remaining(self.sockets)

    @property
    def remaining_max(self) -> int:
        return self._remaining(self.unbound)

    def _remaining(self, counts: ConnectCounts) -> int:
        return max(0, self.capacity - counts.held + counts.reusable)


class BindTableConnectPools:
    """All tcp_connect pools of one namespace at one moment. The own key of a pool is its `ConnectKey`.

    Args:
        netns: The namespace's label.
        taken_at: When the table was walked, seconds since the epoch.
        binds: What the walk counted.
        ports: The class of every port.
        doubted: The pools that a failed connect() puts in doubt: their estimate is the lower bound.
    """

    kind = PoolKind.TCP_CONNECT

    def __init__(
        self,
        netns: str,
        taken_at: float,
        binds: NamespaceBinds,
        ports: TcpPorts,
        *,
        doubted: Collection[ConnectKey] = (),
    ) -> None:
        self.netns = netns
        self.usable = binds.usable
        self._taken_at = taken_at
        self._binds = binds
        self._table = binds.pool_table
        self._rows = self._table.connect_indices
        self._open = OpenPorts(binds.sysctls.port_range, ports.classes)
        self._loses_one = any(
            ports.classes[port] == PortClass.SHARED for port in binds.sysctls.port_range.may_be_passed_over
        )
        self._held, self._reusable = self._table.column("held"), self._table.column("reusable")
        self._number_of = list(map(add, self._held, self._table.column("on_blocked")))
        """Of each entry how many sockets it has."""
        self._on_devices = frozenset(chain.from_iterable(binds.on_devices.values()))
        """The entries of keys that have sockets on a device or in a VRF."""
        self._doubted = frozenset(doubted)
        self._doubted_alone = [key for key in self._doubted if not self._binds.sockets_of(key)]

    def __len__(self) -> int:
        return len(self._rows) - len(self._on_devices) + len(self._binds.on_devices) + len(self._doubted_alone)

    def __iter__(self) -> Iterator[ConnectKey]:
        return chain((key for _, key in self._by_number_of_sockets()), self._binds.on_devices, self._doubted_alone)

    @property
    def overfull(self) -> int:
        """How many pools seem to hold more ports than there are, because sockets changed during the walk."""
        most = self.usable - self._binds.outside.blocked
        return sum(map(most.__lt__, map(self._held.__getitem__, self._rows)))

    def by_upper_bound(self) -> Iterator[tuple[int, int, ConnectKey]]:
        """Yield each pool with upper bounds of `lost_and_held`, the worst bound first."""
        usable, blocked = self.usable, self._binds.outside.blocked
        apart = dict.fromkeys((*self._doubted, *self._binds.on_devices))
        yield from ((usable, usable, key) for key in apart)
        for number, key in self._by_number_of_sockets():
            if key not in apart:
                yield min(usable, blocked + number), number, key

    def _by_number_of_sockets(self) -> Iterator[tuple[int, ConnectKey]]:
        """Yield each pool whose sockets are on no device with their number, the highest number first."""
        number_of = self._number_of
        for index in sorted(self._rows, key=number_of.__getitem__, reverse=True):
            if index not in self._on_devices:
                yield number_of[index], self._binds.connect_key(index)

    def lost_and_held(self, key: ConnectKey) -> tuple[int, int]:
        """Return how many usable ports connect() cannot get with the key, and how many its sockets hold."""
        if key in self._doubted or key in self._binds.on_devices:
            pool = self.pool(key)
            return pool.usable - pool.remaining, pool.held
        index = self._binds.find_plain(key)
        if index is None:
            return self._binds.outside.blocked, 0
        lost = self._binds.outside.blocked + self._held[index] - self._reusable[index]
        return min(self.usable, lost), self._number_of[index]

    def find(self, key: PoolKey) -> ConnectKey | None:
        """Return the own key of a pool that exists, None for others."""
        own = connect_key(key) if (key.netns, key.kind) == (self.netns, self.kind) else None
        return own if own is not None and (own in self._doubted or self._binds.find(own)) else None

    def destination(self, key: ConnectKey) -> tuple[bytes, int]:
        """Return the packed address and the port that the pool leads to."""
        return key.destination, key.destination_port

    def pool(self, key: ConnectKey) -> Pool:
        """Return the pool of the key, also of a key that has no socket yet."""
        rows = self._binds.sockets_of(key)
        scopes = [self._scope(l3mdev, rows) for l3mdev in sorted({row.l3mdev for row, _ in rows} | {0})]
        in_use = [scope for scope in scopes if any(scope.sockets.states)] or scopes[:1]
        fullest = min(in_use, key=lambda scope: scope.remaining)
        everything, counts = total(counts for _, counts in rows), fullest.sockets
        least = max(0, fullest.remaining - self._loses_one)
        most = max(scope.remaining_max for scope in scopes)
        lowered = least if key in self._doubted else fullest.remaining
        pool = Pool(
            key=PoolKey(
                netns=self.netns,
                kind=self.kind,
                source=address_text(key.source),
                destination=address_text(key.destination),
                destination_port=key.destination_port,
            ),
            taken_at=self._taken_at,
            usable=self.usable,
            blocked=fullest.blocked,
            capacity=fullest.capacity,
            in_use=min(fullest.capacity, counts.held),
            time_wait=counts.time_wait,
            reusable=counts.reusable,
            remaining=lowered,
            remaining_min=least,
            remaining_max=most,
            exact=least == most and self._binds.is_whole,
            failure_errno=FAILURE_ERRNO,
            states=by_state_name(everything.states),
            held=everything.held + everything.on_blocked,
            search_ports=self._open.expected_search(free=fullest.remaining, taken_of_second=counts.held_second),
            is_doubted=lowered < fullest.remaining,
            peer_timestamps=self._peer_timestamps(key, counts),
            only_on_devices=max(0, fullest.remaining_max - fullest.remaining),
            named=everything.named,
        )
        return replace(pool, exact=False) if pool.application_chooses_ports else pool

    def _scope(self, l3mdev: int, rows: Iterable[_Row]) -> _Scope:
        here = [(row, counts) for row, counts in rows if row.l3mdev == l3mdev]
        blocked = self._binds.numbers(l3mdev).blocked
        unbound = [counts for row, counts in here if l3mdev or not row.device]
        return _Scope(blocked, self.usable - blocked, total(counts for _, counts in here), total(unbound))

    def _peer_timestamps(self, key: ConnectKey, counts: ConnectCounts) -> bool | None:
        """Return whether the peer uses TCP timestamps, as its TIME_WAITs show; None if they do not show it."""
        group = SocketGroup(TcpState.TIME_WAIT, *key)
        is_reuse_possible = reusable_after_ms(group, self._binds.sysctls, uses_timestamps=True) is not None
        if not counts.time_wait or not is_reuse_possible:
            return None
        return 2 * (counts.reusable + counts.reusable_later) > counts.time_wait
