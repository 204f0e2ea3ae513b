"""Who holds the ports that were asked about: which sockets to read, what they answer, and which processes to look at.

`ephmon.daemon.owner_reader` reads the `OwnedSockets`. How owners are named is in `ephmon.model.owners.names`, how their
ports are counted in `ephmon.model.owners.shares`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain, compress, islice
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from ephmon.facts.addresses import PORTS
from ephmon.facts.owned_sockets import OwnerTable
from ephmon.facts.sockets import Protocol
from ephmon.model.owners.questions import BLOCKED_PORTS, PortSet
from ephmon.model.owners.shares import (
    RecentOwners,
    blocked_owners,
    pool_owners,
    port_bits,
    sockets_of_blocked,
    sockets_of_pool,
)
from ephmon.model.pools.kinds import PoolKind
from ephmon.model.pools.port_classes import OPEN_CLASSES, PortClass, usable_ports
from ephmon.model.pools.tcp_connect import connect_key

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from ephmon.facts.addresses import Endpoint
    from ephmon.facts.snapshot import Sysctls
    from ephmon.model.owners.questions import OwnerQuestions
    from ephmon.model.owners.shares import Owners
    from ephmon.model.pools.kinds import PoolKey
    from ephmon.model.pools.port_classes import TcpPorts

MOST_INODES = 1 << 16
"""So many sockets are looked for among the descriptors of processes. No pool has more, but blocked ports may."""

_EMPTY = OwnerTable(groups=(), ports_of=(), inodes_of=())


class PortState(NamedTuple):
    """The ports of one namespace, as the latest poll saw them: which of them count for an answer."""

    sysctls: Sysctls
    tcp: TcpPorts | None
    """The class of each port; None where TCP could not be read."""

    def usable(self) -> list[int]:
        """Return the ports that an allocation may draw from."""
        return _of_classes(bytes(usable_ports(self.sysctls)), (PortClass.SHARED,))

    def open(self) -> list[int]:
        """Return the ports that a TCP connect() may take, those of the capacity."""
        return _of_classes(self.tcp.classes, OPEN_CLASSES) if self.tcp else []

    def blocked(self) -> list[int]:
        """Return the ports that no TCP connect() can take."""
        return _of_classes(self.tcp.classes, (PortClass.BLOCKED,)) if self.tcp else []


def _of_classes(classes: bytes, wanted: Collection[PortClass]) -> list[int]:
    is_wanted = bytes(value in wanted for value in range(256))
    return list(compress(range(PORTS), classes.translate(is_wanted)))


class SocketQuery(NamedTuple):
    """Which sockets have to be read for an answer."""

    destinations: frozenset[Endpoint]
    """The TCP connections toward these."""
    ports_of: Mapping[Protocol, list[int]]
    """All sockets of a protocol on these ports."""


def socket_query(questions: OwnerQuestions, ports: PortState) -> SocketQuery:
    """Return what to read: narrowly where pools have a destination, else all sockets on the ports in question."""
    connect_keys = [connect_key(key) for key in questions.pools]
    protocols = {key.kind.protocol for key in questions.pools if key.kind is not PoolKind.TCP_CONNECT}
    ports_of = dict.fromkeys(protocols, ports.usable()) if protocols else {}
    if questions.blocked:
        ports_of.setdefault(Protocol.TCP, ports.blocked())
    return SocketQuery(frozenset(key.peer for key in connect_keys if key), ports_of)


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnedSockets:
    """The sockets that were read for an answer."""

    toward: OwnerTable = _EMPTY
    """The connections toward the destinations."""
    on_ports: Mapping[Protocol, OwnerTable] = field(default_factory=dict)
    paths: Mapping[int, str] = field(default_factory=dict)
    """The paths of the cgroups that are known, by id."""

    def table(self, port_set: PortSet) -> OwnerTable:
        """Return sockets that include all those on the ports."""
        if port_set is BLOCKED_PORTS:
            return self.on_ports.get(Protocol.TCP, _EMPTY)
        if port_set.kind is PoolKind.TCP_CONNECT:
            return self.toward
        return self.on_ports.get(port_set.kind.protocol, _EMPTY)

    @property
    def sockets_left_out(self) -> int:
        """How many sockets were not taken in because there were too many."""
        return sum(table.sockets_left_out for table in (self.toward, *self.on_ports.values()))


NO_RECENT_OWNERS: Mapping[PortSet, RecentOwners] = MappingProxyType({})


class OwnerAnswers(NamedTuple):
    """Who holds the ports that were asked about."""

    pools: Mapping[PoolKey, Owners]
    blocked: Owners | None
    """None if that was not asked."""
    recent: Mapping[PortSet, RecentOwners]
    """What to remember for the next answers to the same questions."""


def find_owners(
    questions: OwnerQuestions,
    sockets: OwnedSockets,
    ports: PortState,
    now: float,
    recent: Mapping[PortSet, RecentOwners] = NO_RECENT_OWNERS,
) -> OwnerAnswers:
    """Return who holds the ports, at `now` in monotonic seconds."""
    remembered: dict[PortSet, RecentOwners] = {}
    owners: dict[PoolKey, Owners] = {}
    is_connect = {key: key.kind is PoolKind.TCP_CONNECT for key in questions.pools}
    capacity = {one: port_bits(ports.open() if one else ports.usable()) for one in set(is_connect.values())}
    for key in questions.pools:
        owners[key], remembered[key] = pool_owners(
            key,
            sockets.table(key),
            sockets.paths,
            ports=capacity[is_connect[key]],
            recent=recent.get(key, RecentOwners()),
            now=now,
        )
    blocked = None
    if questions.blocked:
        blocked, remembered[BLOCKED_PORTS] = blocked_owners(
            sockets.table(BLOCKED_PORTS),
            sockets.paths,
            blocked=port_bits(ports.blocked()),
            recent=recent.get(BLOCKED_PORTS, RecentOwners()),
            now=now,
        )
    return OwnerAnswers(owners, blocked, remembered)


class ProcessQuery(NamedTuple):
    """How to find the processes that have some sockets open."""

    inodes: frozenset[int]
    """Of the sockets: what to look for among the descriptors of each process."""
    cgroup_ids: frozenset[int]
    """The cgroups whose processes to look at."""
    uids: frozenset[int]
    """The users whose processes to look at, for sockets whose cgroup is not known."""


def process_query(sockets: OwnedSockets, port_set: PortSet) -> ProcessQuery:
    """Return how to find the processes that hold these ports."""
    table = sockets.table(port_set)
    chosen = sockets_of_blocked(table) if port_set is BLOCKED_PORTS else sockets_of_pool(port_set, table)
    inodes = frozenset(islice(chain.from_iterable(table.inodes_of[index] for index in chosen), MOST_INODES))
    groups = [table.groups[index] for index in chosen]
    known_cgroups = frozenset(group.cgroup_id for group in groups if group.cgroup_id in sockets.paths)
    without_cgroup = (group for group in groups if group.cgroup_id not in sockets.paths)
    return ProcessQuery(
        inodes=inodes - {0},
        cgroup_ids=_known(known_cgroups),
        uids=_known(group.uid for group in without_cgroup),
    )


def _known(numbers: Iterable[int | None]) -> frozenset[int]:
    return frozenset(number for number in numbers if number is not None)
