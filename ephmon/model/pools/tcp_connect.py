"""Pools of the kind tcp_connect: what connect() on a socket without a port draws from.

Key: (namespace, source, destination, destination port). The kernel hands out one local port to any number of
connections as long as their 4-tuples differ, so each such key has the whole range to itself, less the ports that are
blocked for everybody (`ephmon.model.pools.port_classes`). An allocation fails with EADDRNOTAVAIL when every port of the
capacity is in use for this key and none of them is a TIME_WAIT that may be reused (`ephmon.model.pools.time_wait`).

A pool exists once a socket with its key is inside the range, on a blocked port too. Sockets that were accepted are
passive: they have no pool, their port is their listener's.

remaining_max
    Every ambiguous port is taken as shared, and sockets bound to a device are left out: they stop only a socket that is
    bound to the same device (`inet_bound_dev_eq()`, include/net/inet_sock.h).
remaining_min
    Every ambiguous port is taken as blocked, which no pool's own sockets make worse; a TIME_WAIT counts as reusable
    only on loopback, where both ends' timestamps are known; and a range of odd size loses one port, because the search
    walks the ports by parity and rounds their number down (`remaining &= ~1`), but for a range of one port.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, compress, count, takewhile
from operator import and_
from typing import TYPE_CHECKING

from ephmon.facts.addresses import PORTS, address_text, packed_address
from ephmon.facts.failed_calls import Destination
from ephmon.facts.socket_groups import ConnectKey
from ephmon.facts.sockets import Rows, TcpState
from ephmon.model.pools.kinds import Pool, PoolKey, PoolKind, by_state_name
from ephmon.model.pools.port_classes import OPEN_CLASSES, Listeners, PortClass, TcpPorts
from ephmon.model.pools.time_wait import is_group_on_loopback, may_be_reused, reusable_below_ms

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ephmon.facts.snapshot import Sysctls
    from ephmon.facts.socket_groups import SocketGroup
    from ephmon.facts.sockets import SocketTable, TcpSockets

FAILURE_ERRNO = "EADDRNOTAVAIL"

_IS_CLASS = [bytes(value == one for value in range(256)) for one in PortClass]


def connect_key(key: PoolKey) -> ConnectKey | None:
    """Return the key within the namespace of a tcp_connect pool, None for other kinds."""
    if key.destination is None or key.destination_port is None:
        return None
    return ConnectKey(packed_address(key.source), packed_address(key.destination), key.destination_port)


def destination_of(key: PoolKey) -> Destination | None:
    """Return where a tcp_connect pool leads to, and from which namespace; None for other kinds."""
    own = connect_key(key)
    return None if own is None else Destination(key.netns, own.destination, own.destination_port)


@dataclass(slots=True)
class _Tally:
    """What is counted of one pool's sockets: sockets by state, and ports by what they do to the next connect()."""

    states: dict[int, int] = field(default_factory=dict)
    held: int = 0
    in_use: int = 0
    time_wait: int = 0
    reusable: int = 0
    stopping_unbound: int = 0
    """Ports, certainly blocked ones left out, that a socket which is bound to no device cannot take."""
    in_use_certain: int = 0
    """Those of in_use on ports that are certainly shared."""
    reusable_certain: int = 0
    """Those of reusable that are on ports certainly shared and on loopback."""


class ConnectPools:
    """All tcp_connect pools of one namespace at one moment. In here a pool is known by its `ConnectKey`.

    A host may have tens of thousands of destinations and list fifty of them, so no more is done for all of them than to
    count their sockets; the ports of a pool are counted when somebody asks for it.
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
    ) -> None:
        """Count the connections; `ports` may be of an earlier reading, so that what blocks by now is not known."""
        self.netns = netns
        self._ports_are_current = ports_are_current
        self._taken_at = taken_at
        self._ports = ports
        self._may_lose_one = sysctls.port_range.may_lose_one
        self._sockets = _Sockets(sysctls, tcp, ports)

    def __len__(self) -> int:
        return sum(map(bool, self._sockets.number_of))

    def __iter__(self) -> Iterator[ConnectKey]:
        return (key for _, key in self.most_sockets_first())

    @property
    def torn(self) -> int:
        """How many pools hold more ports than there are: the sockets moved while they were being read."""
        capacity = self._ports.usable - self._ports.blocked
        large = takewhile(lambda entry: entry[0] > capacity, self.most_sockets_first())
        return sum(self._tally(key).in_use > capacity for _, key in large)

    def most_sockets_first(self) -> Iterator[tuple[int, ConnectKey]]:
        """Yield each pool with the number of its sockets."""
        sockets = self._sockets
        return ((sockets.number_of[key_index], sockets.keys[key_index]) for key_index in sockets.most_first)

    def most_lost_first(self) -> Iterator[tuple[int, int, ConnectKey]]:
        """Yield each pool with the most that its `rank` may be."""
        usable, blocked = self._ports.usable, self._ports.blocked
        return ((min(usable, blocked + number), number, key) for number, key in self.most_sockets_first())

    def rank(self, key: ConnectKey) -> tuple[int, int]:
        """Return what pools are ordered by, the worst greatest: usable ports it cannot get, then ports it holds."""
        lost, held = self._sockets.lost(key)
        return min(self._ports.usable, self._ports.blocked + lost), held

    def find(self, key: PoolKey) -> ConnectKey | None:
        """Return the key within the namespace of a pool that exists, None for others."""
        own = connect_key(key) if (key.netns, key.kind) == (self.netns, self.kind) else None
        key_index = None if own is None else self._sockets.keys.find(own)
        return own if key_index is not None and self._sockets.number_of[key_index] else None

    def destination(self, key: ConnectKey) -> tuple[bytes, int]:
        """Return the packed address and the port that the pool leads to."""
        return key.destination, key.destination_port

    def held(self, key: ConnectKey) -> int:
        """Return how many ports of the range the pool's sockets hold."""
        return self._tally(key).held

    def _tally(self, key: ConnectKey) -> _Tally:
        return self._sockets.tally(key)

    def pool(self, key: ConnectKey) -> Pool:
        """Return the pool of the key, also of one that has no socket yet."""
        tally = self._tally(key)
        ports = self._ports
        capacity = ports.usable - ports.blocked
        remaining = max(0, capacity - tally.in_use + tally.reusable)
        least, most = self._bounds(tally, remaining)
        return Pool(
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
            capacity=capacity,
            in_use=tally.in_use,
            time_wait=tally.time_wait,
            reusable=tally.reusable,
            remaining=remaining,
            remaining_min=least,
            remaining_max=most,
            exact=least == most and self._ports_are_current and not ports.blind_to,
            failure_errno=FAILURE_ERRNO,
            states=by_state_name(tally.states),
            held=tally.held,
        )

    def _bounds(self, tally: _Tally, remaining: int) -> tuple[int, int]:
        """Return the least and the most that may remain."""
        ports = self._ports
        if not self._ports_are_current:
            return 0, max(remaining, ports.usable - tally.stopping_unbound)
        open_at_most = ports.usable - ports.certainly_blocked
        least = open_at_most - ports.ambiguous - tally.in_use_certain + tally.reusable_certain - self._may_lose_one
        return min(remaining, max(0, least)), max(remaining, open_at_most - tally.stopping_unbound)


class _Sockets:
    """The connections of a reading, counted by key; ports are counted for the keys that are asked for."""

    def __init__(self, sysctls: Sysctls, tcp: TcpSockets, ports: TcpPorts) -> None:
        table = tcp.connections
        self._groups = table.groups
        self._counts = _count_by_class(table.pieces(), table.ports, ports.classes)
        accepted = _Accepted(tcp.bound, ports.left_by_listeners)
        _leave_out_accepted(self._counts, table, accepted, ports.classes)
        self._reusable = _count_reusable(table, sysctls, ports.classes)
        self.keys = table.groups.connect_keys
        self.number_of = [0] * len(self.keys)
        """How many sockets each key has; 0 if all of them were accepted."""
        key_of = table.groups.connect_key_of
        for numbers in self._counts.values():
            for index, number in numbers.items():
                self.number_of[key_of[index]] += number
        on_devices = {key_of[group] for group in table.groups.on_devices if self.number_of[key_of[group]]}
        self._tallies = {
            key_index: _recounted(self._sum(key_index), rows, sysctls, ports.classes)
            for key_index, rows in _rows_of(on_devices, table, accepted).items()
        }
        # Then the number of sockets says it all, which is so on most hosts.
        self._each_takes_one = not self._reusable and not on_devices and self._counts.keys() <= set(OPEN_CLASSES)

    def lost(self, key: ConnectKey) -> tuple[int, int]:
        """Return how many ports of the capacity a key cannot get, and how many it holds."""
        key_index = self.keys.find(key)
        if key_index is not None and self._each_takes_one:
            return self.number_of[key_index], self.number_of[key_index]
        tally = self.tally(key)
        return tally.in_use - tally.reusable, tally.held

    def tally(self, key: ConnectKey) -> _Tally:
        """Return what is counted of a key."""
        key_index = self.keys.find(key)
        if key_index is None:
            return _Tally()
        tally = self._tallies.get(key_index)
        if tally is None:
            tally = self._tallies[key_index] = self._sum(key_index)
        return tally

    def _sum(self, key_index: int) -> _Tally:
        tally = _Tally()
        for index in self._groups_of(key_index):
            group = self._groups[index]
            for port_class, numbers in self._counts.items():
                if number := numbers.get(index):
                    _add_sockets(tally, group, port_class, number, self._reusable[port_class].get(index, 0))
        return tally

    def _groups_of(self, key_index: int) -> Iterator[int]:
        """Yield the groups of a key."""
        key_of, order = self._groups.connect_key_of, self._groups_by_key
        start = bisect_left(order, key_index, key=key_of.__getitem__)
        candidates = map(order.__getitem__, range(start, len(order)))
        return takewhile(lambda index: key_of[index] == key_index, candidates)

    @cached_property
    def _groups_by_key(self) -> Sequence[int]:
        """The groups in the order of their keys, which they mostly have: both are numbered as they are met."""
        key_of = self._groups.connect_key_of
        return sorted(range(len(key_of)), key=key_of.__getitem__)

    @cached_property
    def most_first(self) -> Sequence[int]:
        """The keys that have sockets, those with the most first."""
        return sorted(compress(count(), self.number_of), key=self.number_of.__getitem__, reverse=True)


def _add_sockets(tally: _Tally, group: SocketGroup, port_class: int, number: int, reusable: int) -> None:
    """Add sockets of one group on ports of one class, of which no two have one port, and some may be taken over."""
    tally.states[group.state] = tally.states.get(group.state, 0) + number
    tally.held += number
    if port_class in _NEVER_OPEN:
        return
    tally.stopping_unbound += number - reusable
    if port_class == PortClass.SUSPECT:
        return
    tally.in_use += number
    tally.reusable += reusable
    if group.state == TcpState.TIME_WAIT:
        tally.time_wait += number
    if port_class == PortClass.SHARED:
        tally.in_use_certain += number
        if reusable and is_group_on_loopback(group):
            tally.reusable_certain += reusable


_ByClass = Mapping[int, Counter[int]]
"""For each `PortClass` that occurs, the number of rows by group."""


def _count_by_class(pieces: Iterable[Rows], ports: Iterable[int], classes: bytes) -> _ByClass:
    """Count rows on `ports` by group and by the class of their port, without running bytecode for each."""
    counts: _ByClass = {port_class: Counter() for port_class in {classes[port] for port in ports}}
    for rows in pieces:
        if len(counts) == 1:
            (numbers,) = counts.values()
            numbers.update(rows.group_of)
            continue
        class_of = bytes(map(classes.__getitem__, rows.port_of))
        for port_class, numbers in counts.items():
            numbers.update(compress(rows.group_of, class_of.translate(_IS_CLASS[port_class])))
    return counts


def _leave_out_accepted(counts: _ByClass, table: SocketTable, accepted: _Accepted, classes: bytes) -> None:
    """Take accepted sockets out of the counts."""
    if not accepted.ports:
        return
    suspicious = bytearray(PORTS)
    for port in accepted.ports:
        suspicious[port] = 1
    rows = zip(table.group_of, table.port_of, strict=True)
    for group, port in compress(rows, map(suspicious.__getitem__, table.port_of)):
        if accepted.is_accepted(port, table.groups[group].source):
            counts[classes[port]][group] -= 1


class _Accepted:
    """Tells accepted sockets, which have no pool: by the listeners that there are, and by the ports of those gone."""

    def __init__(self, bound: SocketTable, left_by_listeners: frozenset[int]) -> None:
        self._listeners = Listeners(bound)
        self._left = left_by_listeners
        self.ports = self._listeners.ports | left_by_listeners

    def is_accepted(self, port: int, source: bytes) -> bool:
        return port in self._left or self._listeners.accepted(port, source)


_NEVER_OPEN = (PortClass.UNUSABLE, PortClass.BLOCKED)


def _count_reusable(table: SocketTable, sysctls: Sysctls, classes: bytes) -> _ByClass:
    """Count the rows whose TIME_WAIT is handed out again right now, by group and by class of port."""
    reusable: defaultdict[int, Counter[int]] = defaultdict(Counter)
    states = table.groups.states
    eligible = bytearray(len(states))
    for index in compress(count(), map(TcpState.TIME_WAIT.__eq__, states)) if TcpState.TIME_WAIT in states else ():
        eligible[index] = may_be_reused(table.groups[index], sysctls)
    if not any(eligible):
        return reusable
    pieces = [_old_enough(rows, eligible, reusable_below_ms(sysctls)) for rows in table.pieces()]
    reusable.update(_count_by_class(pieces, chain.from_iterable(rows.port_of for rows in pieces), classes))
    return reusable


def _old_enough(rows: Rows, eligible: bytearray, limit_ms: int) -> Rows:
    """Return those of the rows that are of an eligible group and have less time left than the limit."""
    is_old = map(limit_ms.__gt__, rows.time_wait_left_ms_of)
    chosen = bytes(map(and_, map(eligible.__getitem__, rows.group_of), is_old))
    return Rows(*(tuple(compress(column, chosen)) for column in rows))


_Row = tuple["SocketGroup", int, int]
"""Group, port, and milliseconds left."""


def _rows_of(key_indices: set[int], table: SocketTable, accepted: _Accepted) -> dict[int, list[_Row]]:
    """Return all rows of some keys, accepted sockets left out."""
    rows: dict[int, list[_Row]] = {}
    if not key_indices:
        return rows
    key_of = table.groups.connect_key_of
    asked = [one in key_indices for one in key_of]
    all_rows = zip(table.group_of, table.port_of, table.time_wait_left_ms_of, strict=True)
    for index, port, left in compress(all_rows, map(asked.__getitem__, table.group_of)):
        group = table.groups[index]
        if not accepted.is_accepted(port, group.source):
            rows.setdefault(key_of[index], []).append((group, port, left))
    return rows


def _recounted(tally: _Tally, rows: Iterable[_Row], sysctls: Sysctls, classes: bytes) -> _Tally:
    """Count the ports anew of a pool that has sockets on devices: one port may then have several sockets."""
    limit = reusable_below_ms(sysctls)
    holders: defaultdict[int, list[tuple[SocketGroup, bool]]] = defaultdict(list)
    for group, port, left in rows:
        holders[port].append((group, may_be_reused(group, sysctls) and left < limit))
    tally.held = len(holders)
    stopping = [
        any(not group.device and not reusable for group, reusable in sockets)
        for port, sockets in holders.items()
        if classes[port] not in _NEVER_OPEN
    ]
    tally.stopping_unbound = sum(stopping)
    available = [(classes[port], sockets) for port, sockets in holders.items() if classes[port] in OPEN_CLASSES]
    tally.in_use = len(available)
    tally.time_wait = sum(all(group.state == TcpState.TIME_WAIT for group, _ in sockets) for _, sockets in available)
    again = [(kind, sockets) for kind, sockets in available if all(reusable for _, reusable in sockets)]
    tally.reusable = len(again)
    tally.in_use_certain = sum(kind == PortClass.SHARED for kind, _ in available)
    tally.reusable_certain = sum(
        kind == PortClass.SHARED and all(is_group_on_loopback(group) for group, _ in sockets) for kind, sockets in again
    )
    return tally
