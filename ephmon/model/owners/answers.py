"""Who holds the ports that were asked about: sockets with owners in, answers out, and who has the sockets' processes.

`ephmon.daemon.owner_reader` reads what stands in an `OwnerReading`; how owners are named and counted is in
`ephmon.model.owners.shares`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain, compress, islice
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from ephmon.facts.addresses import PORTS
from ephmon.facts.owned_sockets import OwnerTable
from ephmon.facts.sockets import Protocol
from ephmon.model.owners.shares import (
    Recent,
    blocked_owners,
    pool_owners,
    port_bits,
    sockets_of_blocked,
    sockets_of_pool,
)
from ephmon.model.pools.kinds import PoolKey, PoolKind
from ephmon.model.pools.port_classes import OPEN_CLASSES, PortClass, usable_ports
from ephmon.model.pools.tcp_connect import connect_key

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from ephmon.facts.addresses import Endpoint
    from ephmon.facts.snapshot import Sysctls
    from ephmon.model.owners.questions import OwnerQuestions
    from ephmon.model.owners.shares import Owners
    from ephmon.model.pools.port_classes import TcpPorts

MOST_INODES = 1 << 16
"""The processes of so many sockets are looked for: no pool has more, but blocked ports may."""

Held = PoolKey | None
"""Which ports are meant: those of a pool, or None for the blocked ports of the namespace."""
BLOCKED: Held = None

_EMPTY = OwnerTable(groups=(), ports_of=(), inodes_of=())


class Ground(NamedTuple):
    """The ports of one namespace, as the latest poll saw them."""

    sysctls: Sysctls
    ports: TcpPorts | None
    """None where TCP could not be read."""

    def usable(self) -> list[int]:
        """Return the ports that an allocation may draw from."""
        return _of_classes(bytes(usable_ports(self.sysctls)), (PortClass.SHARED,))

    def open(self) -> list[int]:
        """Return the ports that a TCP connect() may take, those of the capacity."""
        return _of_classes(self.ports.classes, OPEN_CLASSES) if self.ports else []

    def blocked(self) -> list[int]:
        """Return the ports that no TCP connect() can take."""
        return _of_classes(self.ports.classes, (PortClass.BLOCKED, PortClass.SUSPECT)) if self.ports else []


def _of_classes(classes: bytes, wanted: Collection[PortClass]) -> list[int]:
    is_wanted = bytes(value in wanted for value in range(256))
    return list(compress(range(PORTS), classes.translate(is_wanted)))


class ToRead(NamedTuple):
    """The sockets that have to be read for an answer."""

    destinations: frozenset[Endpoint]
    """The TCP connections toward these."""
    ports_of: Mapping[Protocol, list[int]]
    """All sockets of a protocol on these ports."""


def to_read(questions: OwnerQuestions, ground: Ground) -> ToRead:
    """Return what to read: narrowly where pools have a destination, else all sockets on the ports in question."""
    connect_keys = [connect_key(key) for key in questions.pools]
    protocols = {key.kind.protocol for key in questions.pools if key.kind is not PoolKind.TCP_CONNECT}
    ports_of = dict.fromkeys(protocols, ground.usable()) if protocols else {}
    if questions.blocked:
        ports_of.setdefault(Protocol.TCP, ground.blocked())
    return ToRead(frozenset(key.peer for key in connect_keys if key), ports_of)


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerReading:
    """What was read for an answer."""

    toward: OwnerTable = _EMPTY
    """The connections toward the destinations."""
    on_ports: Mapping[Protocol, OwnerTable] = field(default_factory=dict)
    paths: Mapping[int, str] = field(default_factory=dict)
    """The paths of the cgroups that are known, by id."""

    def table(self, held: Held) -> OwnerTable:
        """Return the sockets among which are those that hold these ports."""
        if held is None:
            return self.on_ports.get(Protocol.TCP, _EMPTY)
        if held.kind is PoolKind.TCP_CONNECT:
            return self.toward
        return self.on_ports.get(held.kind.protocol, _EMPTY)

    @property
    def sockets_left_out(self) -> int:
        """How many sockets were not taken in because there were too many."""
        return sum(table.sockets_left_out for table in (self.toward, *self.on_ports.values()))


NO_MEMORY: Mapping[Held, Recent] = MappingProxyType({})


class Holders(NamedTuple):
    """The answers."""

    pools: Mapping[PoolKey, Owners]
    blocked: Owners | None
    """None if that was not asked."""
    recent: Mapping[Held, Recent]
    """What to remember for the next answers to the same questions."""


def holders(
    questions: OwnerQuestions,
    reading: OwnerReading,
    ground: Ground,
    now: float,
    recent: Mapping[Held, Recent] = NO_MEMORY,
) -> Holders:
    """Return who holds the ports, at `now` in monotonic seconds."""
    remembered: dict[Held, Recent] = {}
    owners: dict[PoolKey, Owners] = {}
    is_connect = {key: key.kind is PoolKind.TCP_CONNECT for key in questions.pools}
    capacity = {one: port_bits(ground.open() if one else ground.usable()) for one in set(is_connect.values())}
    for key in questions.pools:
        owners[key], remembered[key] = pool_owners(
            key,
            reading.table(key),
            reading.paths,
            ports=capacity[is_connect[key]],
            recent=recent.get(key, Recent()),
            now=now,
        )
    blocked = None
    if questions.blocked:
        blocked, remembered[BLOCKED] = blocked_owners(
            reading.table(BLOCKED),
            reading.paths,
            blocked=port_bits(ground.blocked()),
            recent=recent.get(BLOCKED, Recent()),
            now=now,
        )
    return Holders(owners, blocked, remembered)


class Sought(NamedTuple):
    """What processes are known by that have some sockets open."""

    inodes: frozenset[int]
    cgroup_ids: frozenset[int]
    """The cgroups that they are in."""
    uids: frozenset[int]
    """The users that they run as, for the sockets whose cgroup is not known."""


def sought(reading: OwnerReading, held: Held) -> Sought:
    """Return by what to look for the processes that hold these ports."""
    table = reading.table(held)
    chosen = sockets_of_blocked(table) if held is None else sockets_of_pool(held, table)
    inodes = frozenset(islice(chain.from_iterable(table.inodes_of[place] for place in chosen), MOST_INODES))
    groups = [table.groups[place] for place in chosen]
    known = frozenset(group.cgroup_id for group in groups if group.cgroup_id in reading.paths)
    nameless = (group for group in groups if group.cgroup_id not in reading.paths)
    return Sought(
        inodes=inodes - {0},
        cgroup_ids=_but_none(known),
        uids=_but_none(group.uid for group in nameless),
    )


def _but_none(numbers: Iterable[int | None]) -> frozenset[int]:
    return frozenset(number for number in numbers if number is not None)
