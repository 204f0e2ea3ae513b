"""Pools of the kind tcp_connect: what connect() on a socket without a port draws from.

Key: (namespace, source, destination, destination port). The kernel hands out one local port to any number of
connections as long as their 4-tuples differ, so each such key has the whole range to itself, less the ports that are
blocked for everybody (`ephmon.model.tcp_ports`). An allocation fails with EADDRNOTAVAIL when every port of the capacity
is in use for this key and none of them is a TIME_WAIT that may be reused (`ephmon.model.time_wait`).

A pool exists once a socket of its tuple is inside the range, on a blocked port too. Sockets that were accepted are
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

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from ipaddress import ip_address
from itertools import compress
from operator import add
from typing import TYPE_CHECKING, NamedTuple

from ephmon.model.pools import Pool, PoolKey, PoolKind, by_state_name
from ephmon.model.snapshot import TcpState
from ephmon.model.tcp_ports import OPEN_CLASSES, PORTS, Listeners, PortClass, TcpPorts
from ephmon.model.time_wait import may_be_reused, on_loopback, reusable_below_ms

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ephmon.model.snapshot import SocketGroup, SocketTable, Sysctls, TcpSockets

FAILURE_ERRNO = "EADDRNOTAVAIL"

# Rows are counted by group and by class of their port at once, as group * _CLASSES + class.
_CLASSES = len(PortClass)


class Tuple(NamedTuple):
    """A pool's key within its namespace; addresses packed."""

    source: bytes
    destination: bytes
    destination_port: int


def own_key(key: PoolKey) -> Tuple | None:
    """Return the key within the namespace of a tcp_connect pool, None for other kinds."""
    if key.destination is None or key.destination_port is None:
        return None
    return Tuple(ip_address(key.source).packed, ip_address(key.destination).packed, key.destination_port)


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
    """All tcp_connect pools of one namespace at one moment, counted; a Pool is built only for those that are asked for.

    A host may have tens of thousands of destinations and list fifty of them.
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
        self._tallies = _tally(sysctls, tcp, ports)

    def __len__(self) -> int:
        return len(self._tallies)

    def __iter__(self) -> Iterator[Tuple]:
        return iter(self._tallies)

    @property
    def torn(self) -> int:
        """How many pools hold more ports than there are: the sockets moved while they were being read."""
        capacity = self._ports.usable - self._ports.blocked
        return sum(tally.in_use > capacity for tally in self._tallies.values())

    def rank(self, key: Tuple) -> tuple[int, int]:
        """Return what pools are ordered by, the worst greatest: usable ports it cannot get, then ports it holds."""
        tally = self._tallies[key]
        usable = self._ports.usable
        return min(usable, self._ports.blocked + tally.in_use - tally.reusable), tally.held

    def find(self, key: PoolKey) -> Tuple | None:
        """Return the key within the namespace of a pool that exists, None for others."""
        own = own_key(key) if (key.netns, key.kind) == (self.netns, self.kind) else None
        return own if own in self._tallies else None

    def destination(self, key: Tuple) -> tuple[bytes, int]:
        """Return the packed address and the port that the pool leads to."""
        return key.destination, key.destination_port

    def held(self, key: Tuple) -> int:
        """Return how many ports of the range the pool's sockets hold, blocked ones included."""
        return self._tallies[key].held

    def pool(self, key: Tuple) -> Pool:
        """Return the pool of the key, also of one that has no socket yet."""
        tally = self._tallies.get(key) or _Tally()
        ports = self._ports
        capacity = ports.usable - ports.blocked
        remaining = max(0, capacity - tally.in_use + tally.reusable)
        least, most = self._bounds(tally, remaining)
        return Pool(
            key=PoolKey(
                netns=self.netns,
                kind=self.kind,
                source=str(ip_address(key.source)),
                destination=str(ip_address(key.destination)),
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


def _tally(sysctls: Sysctls, tcp: TcpSockets, ports: TcpPorts) -> dict[Tuple, _Tally]:
    """Count the connections by pool."""
    table = tcp.connections
    counts = _count_by_class(table.group_of, table.port_of, ports.classes)
    accepted = _Accepted(tcp.bound, ports.left_by_listeners)
    _leave_out_accepted(counts, table, accepted, ports.classes)
    reusable = _count_reusable(table, sysctls, ports.classes)
    tallies: defaultdict[Tuple, _Tally] = defaultdict(_Tally)
    on_devices = set()
    for code, number in counts.items():
        if not number:
            continue  # all of them were accepted
        index, port_class = divmod(code, _CLASSES)
        group = table.groups[index]
        key = Tuple(group.source, group.destination, group.destination_port)
        _add_sockets(tallies[key], group, port_class, number, reusable[code])
        if group.device:
            on_devices.add(key)
    for key, rows in _rows_of(on_devices, table, accepted).items():
        _recount_ports(tallies[key], rows, sysctls, ports.classes)
    return dict(tallies)


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
        if reusable and on_loopback(group):
            tally.reusable_certain += reusable


def _count_by_class(groups: Iterable[int], ports: Sequence[int], classes: bytes) -> Counter[int]:
    """Count rows by group and class of port, without running bytecode for each."""
    held = {classes[port] for port in set(ports)}
    if len(held) == 1:
        (only,) = held
        return Counter({group * _CLASSES + only: number for group, number in Counter(groups).items()})
    scaled = range(0, _CLASSES << 32, _CLASSES)
    return Counter(map(add, map(scaled.__getitem__, groups), map(classes.__getitem__, ports)))


def _leave_out_accepted(counts: Counter[int], table: SocketTable, accepted: _Accepted, classes: bytes) -> None:
    """Take accepted sockets out of the counts."""
    if not accepted.ports:
        return
    suspicious = bytearray(PORTS)
    for port in accepted.ports:
        suspicious[port] = 1
    rows = zip(table.group_of, table.port_of, strict=True)
    for group, port in compress(rows, map(suspicious.__getitem__, table.port_of)):
        if accepted.is_accepted(port, table.groups[group].source):
            counts[group * _CLASSES + classes[port]] -= 1


class _Accepted:
    """Tells accepted sockets, which have no pool: by the listeners that there are, and by the ports of those gone."""

    def __init__(self, bound: SocketTable, left_by_listeners: frozenset[int]) -> None:
        self._listeners = Listeners(bound)
        self._left = left_by_listeners
        self.ports = self._listeners.ports | left_by_listeners

    def is_accepted(self, port: int, source: bytes) -> bool:
        return port in self._left or self._listeners.accepted(port, source)


_NEVER_OPEN = (PortClass.UNUSABLE, PortClass.BLOCKED)


def _count_reusable(table: SocketTable, sysctls: Sysctls, classes: bytes) -> Counter[int]:
    """Count the rows whose TIME_WAIT is handed out again right now, by group and class of port."""
    eligible = [may_be_reused(group, sysctls) for group in table.groups]
    if not any(eligible):
        return Counter()
    old_enough = map(reusable_below_ms(sysctls).__gt__, table.time_wait_left_ms_of)
    rows = zip(table.group_of, table.port_of, old_enough, strict=True)
    chosen = [(group, port) for group, port, old in compress(rows, map(eligible.__getitem__, table.group_of)) if old]
    return (
        _count_by_class([group for group, _ in chosen], [port for _, port in chosen], classes) if chosen else Counter()
    )


_Row = tuple["SocketGroup", int, int]
"""Group, port, and milliseconds left."""


def _rows_of(keys: set[Tuple], table: SocketTable, accepted: _Accepted) -> dict[Tuple, list[_Row]]:
    """Return all rows of some pools, accepted sockets left out."""
    rows: dict[Tuple, list[_Row]] = {}
    if not keys:
        return rows
    key_of = [Tuple(group.source, group.destination, group.destination_port) for group in table.groups]
    asked = [key in keys for key in key_of]
    all_rows = zip(table.group_of, table.port_of, table.time_wait_left_ms_of, strict=True)
    for index, port, left in compress(all_rows, map(asked.__getitem__, table.group_of)):
        if not accepted.is_accepted(port, table.groups[index].source):
            rows.setdefault(key_of[index], []).append((table.groups[index], port, left))
    return rows


def _recount_ports(tally: _Tally, rows: Iterable[_Row], sysctls: Sysctls, classes: bytes) -> None:
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
        kind == PortClass.SHARED and all(on_loopback(group) for group, _ in sockets) for kind, sockets in again
    )
