"""The TCP connections of one reading, counted by connect key: sockets by state, and ports by what they do to connect().

There may be as many connections as ports, times as many keys. So the sockets of every key are counted in a few passes
that run no bytecode for each row. The ports of a key are counted only when somebody asks for the key.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, compress, count, takewhile
from operator import and_
from typing import TYPE_CHECKING, NamedTuple

from ephmon.facts.sockets import Rows, TcpState
from ephmon.model.pools.port_classes import OPEN_CLASSES, Listeners, PortClass, mark_ports
from ephmon.model.pools.time_wait import Reuse, groups_open_to_reuse, reusable_below_ms, reuse_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ephmon.facts.snapshot import Sysctls
    from ephmon.facts.socket_groups import ConnectKey, SocketGroup
    from ephmon.facts.sockets import SocketTable, TcpSockets
    from ephmon.model.pools.port_classes import TcpPorts

_IS_CLASS = [bytes(value == one for value in range(256)) for one in PortClass]
"""For each class, the translation table that turns a byte of classes into 1 where it is that class."""


@dataclass(slots=True)
class KeyCounts:
    """The sockets of one connect key by state, and its ports by what they do to the next connect() with the key."""

    states: dict[int, int] = field(default_factory=dict)
    held: int = 0
    """Ports of the range, blocked ones included."""
    in_use: int = 0
    time_wait: int = 0
    reusable: int = 0
    stopping_unbound: int = 0
    """Ports not certainly blocked that a socket cannot take if it is bound to no device."""
    in_use_certain: int = 0
    """Those of `in_use` that are certainly shared."""
    reusable_certain: int = 0
    """Those of `reusable` that are certainly shared, and whose peer is known to use timestamps."""
    only_on_devices: int = 0
    """Those of `in_use` that stop only a socket that is bound to the same device as one of theirs."""
    uses_timestamps: bool | None = None
    """What live connections show; None if that is not known."""


class ConnectionCounts:
    """The connections of one namespace, counted by connect key. Accepted sockets are left out: they have no pool."""

    def __init__(self, sysctls: Sysctls, tcp: TcpSockets, ports: TcpPorts) -> None:
        table = tcp.connections
        self._groups = table.groups
        self._sysctls = sysctls
        self._timestamps = tcp.timestamps
        self._numbers = _count_by_class(table.pieces(), table.ports, ports.classes)
        accepted = _Accepted(tcp.bound, ports.left_by_listeners)
        _leave_out_accepted(self._numbers, table, accepted, ports.classes)
        self._reusable = _count_reusable(table, sysctls, ports.classes)
        self.keys = table.groups.connect_keys
        self.number_of = [0] * len(self.keys)
        """How many sockets each key has; 0 if all of them were accepted."""
        key_of = table.groups.connect_key_of
        for numbers in self._numbers.values():
            for index, number in numbers.items():
                self.number_of[key_of[index]] += number
        # Two sockets of one key may share a port only if they are bound to different devices. So only keys with such
        # sockets need their rows looked at; for all others the number of sockets is the number of ports.
        on_devices = {key_of[group] for group in table.groups.on_devices if self.number_of[key_of[group]]}
        self._of_key = {
            key_index: self._recounted(self._sum_of_groups(key_index), rows, ports.classes)
            for key_index, rows in _rows_of(on_devices, table, accepted).items()
        }
        # Then each socket takes one port of the capacity, so the number of sockets answers `lost_and_held`.
        self._each_takes_one = not self._reusable and not on_devices and self._numbers.keys() <= set(OPEN_CLASSES)

    def lost_and_held(self, key: ConnectKey) -> tuple[int, int]:
        """Return how many ports of the capacity connect() cannot get with the key, and how many its sockets hold."""
        key_index = self.keys.find(key)
        if key_index is not None and self._each_takes_one:
            return self.number_of[key_index], self.number_of[key_index]
        counts = self.of_key(key)
        return counts.in_use - counts.reusable, counts.held

    def of_key(self, key: ConnectKey) -> KeyCounts:
        """Return the counts of a key, all 0 for a key without a socket."""
        key_index = self.keys.find(key)
        if key_index is None:
            return KeyCounts()
        counts = self._of_key.get(key_index)
        if counts is None:
            counts = self._of_key[key_index] = self._sum_of_groups(key_index)
        return counts

    def _sum_of_groups(self, key_index: int) -> KeyCounts:
        # There may be as many keys as sockets, so nothing is looked up that nobody knows.
        known = self._timestamps.of(self.keys[key_index]) if self._timestamps.seen else None
        counts = KeyCounts(uses_timestamps=known)
        for index in self._groups_of(key_index):
            group = self._groups[index]
            reuse = reuse_of(group, self._sysctls, uses_timestamps=known) if self._reusable else Reuse.NEVER
            for port_class, numbers in self._numbers.items():
                if number := numbers.get(index):
                    old = self._reusable[port_class].get(index, 0) if reuse else 0
                    _add_sockets(counts, port_class, _Alike(group.state, number, old, reuse))
        return counts

    def _recounted(self, counts: KeyCounts, rows: Iterable[_Row], classes: bytes) -> KeyCounts:
        """Return the counts of a key that has sockets on devices, its ports counted anew.

        Several sockets may share a port. The sockets by state are right already.
        """
        limit = reusable_below_ms(self._sysctls)
        sockets_on: defaultdict[int, list[tuple[SocketGroup, Reuse]]] = defaultdict(list)
        for group, port, left in rows:
            reuse = reuse_of(group, self._sysctls, uses_timestamps=counts.uses_timestamps)
            sockets_on[port].append((group, reuse if left < limit else Reuse.NEVER))
        after = KeyCounts(states=counts.states, held=len(sockets_on), uses_timestamps=counts.uses_timestamps)
        for port, sockets in sockets_on.items():
            _add_port(after, PortClass(classes[port]), sockets)
        return after

    def _groups_of(self, key_index: int) -> Iterator[int]:
        """Yield the indices of the groups of a key."""
        key_of, order = self._groups.connect_key_of, self._groups_by_key
        start = bisect_left(order, key_index, key=key_of.__getitem__)
        candidates = map(order.__getitem__, range(start, len(order)))
        return takewhile(lambda index: key_of[index] == key_index, candidates)

    @cached_property
    def _groups_by_key(self) -> Sequence[int]:
        """The indices of all groups in the order of their keys."""
        key_of = self._groups.connect_key_of
        # They mostly are in that order: groups and keys are both numbered as the dump shows them. So sorting is cheap.
        return sorted(range(len(key_of)), key=key_of.__getitem__)

    @cached_property
    def by_number_of_sockets(self) -> Sequence[int]:
        """The indices of the keys that have sockets, those with the most sockets first."""
        return sorted(compress(count(), self.number_of), key=self.number_of.__getitem__, reverse=True)


def _add_port(counts: KeyCounts, port_class: PortClass, sockets: Sequence[tuple[SocketGroup, Reuse]]) -> None:
    """Add a port of a key that may have several sockets, each bound to another device."""
    if port_class not in OPEN_CLASSES:
        return
    # connect() on an unbound socket conflicts with sockets that are bound to no device (inet_bound_dev_eq()).
    unbound = [reuse for group, reuse in sockets if not group.device]
    counts.stopping_unbound += Reuse.NEVER in unbound
    # A port is handed out again only if each socket on it is a TIME_WAIT that may be reused.
    reuse = min(reuse for _, reuse in sockets)
    counts.in_use += 1
    counts.time_wait += all(group.state == TcpState.TIME_WAIT for group, _ in sockets)
    counts.reusable += reuse >= Reuse.LIKELY
    counts.only_on_devices += reuse < Reuse.LIKELY and all(one >= Reuse.LIKELY for one in unbound)
    if port_class == PortClass.SHARED:
        counts.in_use_certain += 1
        counts.reusable_certain += reuse == Reuse.CERTAIN


class _Alike(NamedTuple):
    """Sockets of one group on ports of one class. No two of them have the same port."""

    state: int
    number: int
    old_time_waits: int
    """How many of them are TIME_WAITs that are old enough to be handed out again."""
    reuse: Reuse
    """Whether those are."""


def _add_sockets(counts: KeyCounts, port_class: int, sockets: _Alike) -> None:
    """Add sockets of one group on ports of one class."""
    state, number, old_time_waits, reuse = sockets
    counts.states[state] = counts.states.get(state, 0) + number
    counts.held += number
    # Sockets on blocked ports take nothing of the capacity. They still belong to the pool, so they are counted above.
    if port_class not in OPEN_CLASSES:
        return
    counts.stopping_unbound += number - old_time_waits
    counts.in_use += number
    if state == TcpState.TIME_WAIT:
        counts.time_wait += number
    if reuse >= Reuse.LIKELY:
        counts.reusable += old_time_waits
    if port_class == PortClass.SHARED:
        counts.in_use_certain += number
        if reuse == Reuse.CERTAIN:
            counts.reusable_certain += old_time_waits


_ByClass = Mapping[int, Counter[int]]
"""For each `PortClass` that occurs, the number of rows by the index of their group."""


def _count_by_class(pieces: Iterable[Rows], ports: Iterable[int], classes: bytes) -> _ByClass:
    """Count rows by group and by the class of their port.

    Args:
        pieces: The rows.
        ports: The ports that they are on.
        classes: The class of every port.
    """
    counts: _ByClass = {port_class: Counter() for port_class in {classes[port] for port in ports}}
    for rows in pieces:
        if len(counts) == 1:  # as on a host where nothing blocks a port; no need to look at each port then
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
    # Only rows on these few ports are looked at one by one.
    may_be_accepted = mark_ports(accepted.ports)
    rows = zip(table.group_of, table.port_of, strict=True)
    for group, port in compress(rows, map(may_be_accepted.__getitem__, table.port_of)):
        if accepted.is_accepted(port, table.groups[group].source):
            counts[classes[port]][group] -= 1


class _Accepted:
    """Tells which sockets were accepted, by the listeners that there are and the ports of listeners that are gone."""

    def __init__(self, bound: SocketTable, left_by_listeners: frozenset[int]) -> None:
        self._listeners = Listeners(bound)
        self._left = left_by_listeners
        self.ports = self._listeners.ports | left_by_listeners

    def is_accepted(self, port: int, source: bytes) -> bool:
        return port in self._left or self._listeners.have_accepted(port, source)


def _count_reusable(table: SocketTable, sysctls: Sysctls, classes: bytes) -> _ByClass:
    """Count the rows whose TIME_WAIT is handed out again if it had timestamps, by group and by class of port."""
    reusable: defaultdict[int, Counter[int]] = defaultdict(Counter)
    open_to_reuse = groups_open_to_reuse(table.groups, sysctls)
    if not open_to_reuse:
        return reusable
    eligible = bytearray(len(table.groups))
    for index in open_to_reuse:
        eligible[index] = 1
    pieces = [_old_enough(rows, eligible, reusable_below_ms(sysctls)) for rows in table.pieces()]
    reusable.update(_count_by_class(pieces, chain.from_iterable(rows.port_of for rows in pieces), classes))
    return reusable


def _old_enough(rows: Rows, eligible: bytearray, limit_ms: int) -> Rows:
    """Return the rows whose group is eligible (1 by index) and which have less time left than the limit."""
    # Both conditions become one mask with map(), so that no bytecode runs for each row.
    is_old = map(limit_ms.__gt__, rows.time_wait_left_ms_of)
    chosen = bytes(map(and_, map(eligible.__getitem__, rows.group_of), is_old))
    return Rows(*(tuple(compress(column, chosen)) for column in rows))


_Row = tuple["SocketGroup", int, int]
"""Group, port, and milliseconds that a TIME_WAIT has left."""


def _rows_of(key_indices: set[int], table: SocketTable, accepted: _Accepted) -> dict[int, list[_Row]]:
    """Return all rows of some keys, by the index of the key; accepted sockets are left out."""
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
