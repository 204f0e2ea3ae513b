"""Pools of the kind tcp_connect: the ports that connect() on a socket without a port chooses from.

Key: (namespace, source, destination, destination port). The kernel gives one local port to any number of connections as
long as their 4-tuples differ. So each key has the whole range to itself, except the ports that are blocked for
everybody (`ephmon.model.pools.port_classes`). An allocation fails with EADDRNOTAVAIL if every port of the capacity is
in use with this key, and none of them is a TIME_WAIT that may be reused (`ephmon.model.pools.time_wait`).

A pool exists once a socket with its key is inside the range, also on a blocked port, or while a failed connect() puts
it in doubt (`ephmon.model.failures.doubted_pools`). Accepted sockets are passive: they have no pool, and their port is
their listener's.

remaining_max
    Every ambiguous port counts as shared. Sockets bound to a device do not count: they stop only a socket that is bound
    to the same device (inet_bound_dev_eq(), include/net/inet_sock.h). Where sockets are bound to a VRF, every usable
    port may remain.
remaining_min
    Every ambiguous port counts as blocked. A TIME_WAIT counts as reusable only if live connections show that the peer
    uses TCP timestamps. A range of odd size loses one port, unless it has only one: the search walks the ports by
    parity and rounds their number down (`remaining &= ~1` in __inet_hash_connect()). It passes over the first or the
    last port, so nothing is lost where connect() cannot take these.

Where all live sockets of a pool named their port in bind(), the application has a list of its own, as HAProxy has with
`source ADDRESS:LOW-HIGH`. Then the numbers are those of a socket that leaves the port to the kernel, and not exact for
the application.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from functools import cached_property
from itertools import chain, compress, takewhile
from typing import TYPE_CHECKING

from ephmon.facts.addresses import address_text, packed_address
from ephmon.facts.failed_calls import Destination
from ephmon.facts.socket_groups import ConnectKey
from ephmon.facts.sockets import Blindness, TcpState
from ephmon.model.pools.connect_search import ConnectSearch
from ephmon.model.pools.connection_counts import ConnectionCounts
from ephmon.model.pools.kinds import Pool, PoolKey, PoolKind, by_state_name
from ephmon.model.pools.port_classes import PortClass, mark_ports

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from ephmon.facts.snapshot import Sysctls
    from ephmon.facts.sockets import TcpSockets
    from ephmon.model.pools.connection_counts import KeyCounts
    from ephmon.model.pools.port_classes import TcpPorts

FAILURE_ERRNO = "EADDRNOTAVAIL"


def connect_key(key: PoolKey) -> ConnectKey | None:
    """Return the key within the namespace of a tcp_connect pool, None for other kinds."""
    if key.destination is None or key.destination_port is None:
        return None
    return ConnectKey(packed_address(key.source), packed_address(key.destination), key.destination_port)


def destination_of(key: PoolKey) -> Destination | None:
    """Return where a tcp_connect pool leads to, and from which namespace; None for other kinds."""
    own = connect_key(key)
    return None if own is None else Destination(key.netns, own.destination, own.destination_port)


class ConnectPools:
    """All tcp_connect pools of one namespace at one moment. The own key of a pool is its `ConnectKey`.

    Args:
        netns: The namespace's label.
        taken_at: When the sockets were read, seconds since the epoch.
        sysctls: The settings of the namespace.
        tcp: Its TCP sockets inside the range.
        ports: The class of every port.
        ports_are_current: False if `ports` is of an earlier reading. Then nobody knows what blocks ports by now.
        doubted: The pools that a failed connect() puts in doubt: their estimate is the lower bound.
    """

    kind = PoolKind.TCP_CONNECT

    def __init__(
        self,
        netns: str,
        taken_at: float,
        sysctls: Sysctls,
        tcp: TcpSockets,
        ports: TcpPorts,
        *,
        ports_are_current: bool = True,
        doubted: Collection[ConnectKey] = (),
    ) -> None:
        self.netns = netns
        self._ports_are_current = ports_are_current
        self._taken_at = taken_at
        self._ports = ports
        self.usable = ports.usable
        self._may_be_passed_over = [
            port for port in sysctls.port_range.may_be_passed_over if ports.classes[port] == PortClass.SHARED
        ]
        self._connections = tcp.connections
        self._counts = ConnectionCounts(sysctls, tcp, ports)
        self._search = ConnectSearch(sysctls, tcp, ports)
        self._doubted = frozenset(doubted)
        self._doubted_alone = [key for key in self._doubted if not self._has_sockets(key)]
        self._named = tcp.named

    def __len__(self) -> int:
        return sum(map(bool, self._counts.number_of)) + len(self._doubted_alone)

    def __iter__(self) -> Iterator[ConnectKey]:
        return chain((key for _, key in self._by_number_of_sockets()), self._doubted_alone)

    @property
    def overfull(self) -> int:
        """How many pools seem to hold more ports than there are, because sockets changed while they were read."""
        # A pool holds at most as many ports as it has sockets, so only those with many sockets are looked at.
        large = takewhile(lambda entry: entry[0] > self._capacity, self._by_number_of_sockets())
        return sum(self._counts.of_key(key).in_use > self._capacity for _, key in large)

    @property
    def _capacity(self) -> int:
        return self._ports.usable - self._ports.blocked

    def _by_number_of_sockets(self) -> Iterator[tuple[int, ConnectKey]]:
        """Yield each pool with the number of its sockets, the highest number first."""
        counts = self._counts
        return ((counts.number_of[index], counts.keys[index]) for index in counts.by_number_of_sockets)

    def by_upper_bound(self) -> Iterator[tuple[int, int, ConnectKey]]:
        """Yield each pool with upper bounds of `lost_and_held`, the worst bound first."""
        # No pool holds more ports than it has sockets, and it loses at most those and the blocked ones.
        usable, blocked = self._ports.usable, self._ports.blocked
        yield from ((usable, usable, key) for key in self._doubted)
        for number, key in self._by_number_of_sockets():
            if key not in self._doubted:
                yield min(usable, blocked + number), number, key

    def lost_and_held(self, key: ConnectKey) -> tuple[int, int]:
        """Return how many usable ports connect() cannot get with the key, and how many its sockets hold."""
        if key in self._doubted:
            pool = self.pool(key)
            return pool.usable - pool.remaining, pool.held
        lost, held = self._counts.lost_and_held(key)
        return min(self._ports.usable, self._ports.blocked + lost), held

    def find(self, key: PoolKey) -> ConnectKey | None:
        """Return the own key of a pool that exists, None for others."""
        own = connect_key(key) if (key.netns, key.kind) == (self.netns, self.kind) else None
        return own if own is not None and (own in self._doubted or self._has_sockets(own)) else None

    def _has_sockets(self, key: ConnectKey) -> bool:
        key_index = self._counts.keys.find(key)
        return key_index is not None and self._counts.number_of[key_index] > 0

    def destination(self, key: ConnectKey) -> tuple[bytes, int]:
        """Return the packed address and the port that the pool leads to."""
        return key.destination, key.destination_port

    def pool(self, key: ConnectKey) -> Pool:
        """Return the pool of the key, also of a key that has no socket yet."""
        counts = self._counts.of_key(key)
        ports = self._ports
        # More ports in use than the capacity has: the sockets changed while they were read, see `overfull`.
        remaining = max(0, self._capacity - counts.in_use + counts.reusable)
        least, most = self._bounds(key, counts, remaining)
        # With something the backend is blind to, more ports may be blocked than any bound allows for.
        is_exact = least == most and self._ports_are_current and not ports.blind_to
        # Ports of an earlier reading allow for no bound, but the one that they had is the best that is known.
        lowered = min(remaining, self._least(key, counts)) if key in self._doubted else remaining
        pool = Pool(
            key=PoolKey(
                netns=self.netns,
                kind=self.kind,
                source=address_text(key.source),
                destination=address_text(key.destination),
                destination_port=key.destination_port,
            ),
            taken_at=self._taken_at,
            usable=ports.usable,
            blocked=ports.blocked,
            capacity=self._capacity,
            in_use=counts.in_use,
            time_wait=counts.time_wait,
            reusable=counts.reusable,
            remaining=lowered,
            remaining_min=least,
            remaining_max=most,
            exact=is_exact,
            failure_errno=FAILURE_ERRNO,
            states=by_state_name(counts.states),
            held=counts.held,
            in_doubt=ports.ambiguous,
            search_ports=self._search.expected_ports(key, free=remaining, reusable=counts.reusable),
            reusable_unproven=0 if counts.uses_timestamps else counts.reusable,
            is_doubted=lowered < remaining,
            peer_timestamps=counts.uses_timestamps,
            only_on_devices=counts.only_on_devices,
            named=self._named_among(key, counts),
        )
        return replace(pool, exact=False) if pool.application_chooses_ports else pool

    def _named_among(self, key: ConnectKey, counts: KeyCounts) -> int:
        """Return how many of the sockets counted named their port; what a listener covers may not have been counted."""
        if not self._named:
            return 0
        key_index = self._named.groups.connect_keys.find(key)
        live = sum(counts.states.values()) - counts.states.get(TcpState.TIME_WAIT, 0)
        return 0 if key_index is None else min(live, self._named_by_key[key_index])

    @cached_property
    def _named_by_key(self) -> Counter[int]:
        """How many sockets of each key named their port, by its index among the keys of `_named`."""
        return Counter(map(self._named.groups.connect_key_of.__getitem__, self._named.group_of))

    def _bounds(self, key: ConnectKey, counts: KeyCounts, remaining: int) -> tuple[int, int]:
        """Return the least and the most ports that may remain."""
        ports = self._ports
        # What blocks ports now may be anything between all of them and none.
        if not self._ports_are_current:
            return 0, max(remaining, ports.usable - counts.stopping_unbound)
        # What sockets of other VRFs hold does not matter to the next one, and which those are is not known.
        if Blindness.VRF in ports.blind_to:
            return min(remaining, self._least(key, counts)), ports.usable
        return min(remaining, self._least(key, counts)), max(remaining, self._capacity - counts.stopping_unbound)

    def _least(self, key: ConnectKey, counts: KeyCounts) -> int:
        """Return the lower bound, with the ports as they were when they were read."""
        # Every ambiguous port is blocked, which the pool's own sockets on such ports do not make worse.
        open_at_least = self._capacity - self._ports.ambiguous
        held = self._held_anyway.get(key, ()) if self._may_be_passed_over else ()
        may_lose_one = any(port not in held for port in self._may_be_passed_over)
        return max(0, open_at_least - counts.in_use_certain + counts.reusable_certain - may_lose_one)

    @cached_property
    def _held_anyway(self) -> Mapping[ConnectKey, set[int]]:
        """By key, which of the ports that a search may pass over have a socket of the key."""
        found: defaultdict[ConnectKey, set[int]] = defaultdict(set)
        groups, is_asked = self._connections.groups, mark_ports(self._may_be_passed_over)
        for rows in self._connections.pieces():
            pairs = zip(rows.group_of, rows.port_of, strict=True)
            for index, port in compress(pairs, map(is_asked.__getitem__, rows.port_of)):
                # A TIME_WAIT may be reused, so such a port counts as one that can be taken.
                if groups.states[index] != TcpState.TIME_WAIT:
                    found[groups.connect_keys[groups.connect_key_of[index]]].add(port)
        return found
