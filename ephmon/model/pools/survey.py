"""The survey: all pools of a snapshot, counted, before anybody chooses which of them to show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from ephmon.facts.addresses import ANY_OF_LENGTH
from ephmon.facts.namespaces import OWN_NETNS
from ephmon.model.pools.bind_table.bind_pools import BindTableBindPools
from ephmon.model.pools.bind_table.connect_pools import BindTableConnectPools
from ephmon.model.pools.bind_table.ports import classes_of
from ephmon.model.pools.classify_ports import NO_ANSWERS, Evidence, classify_ports
from ephmon.model.pools.ignored_destinations import is_ignored
from ephmon.model.pools.kinds import PoolKind
from ephmon.model.pools.port_classes import count_usable
from ephmon.model.pools.ranking import every_pool_unordered, worst_first, worst_pools
from ephmon.model.pools.tcp_bind_and_udp import AddressPools
from ephmon.model.pools.tcp_connect import ConnectPools
from ephmon.model.pools.time_wait import groups_open_to_reuse

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from ephmon.facts.snapshot import NamespaceSnapshot, Snapshot
    from ephmon.facts.socket_groups import ConnectKey
    from ephmon.facts.sockets import SocketTable, TcpSockets, UdpSockets
    from ephmon.model.pools.kinds import Pool, PoolKey
    from ephmon.model.pools.port_classes import TcpPorts
    from ephmon.model.pools.ranking import PoolSet, RankedPool
    from ephmon.model.rules import DestinationPattern


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceSurvey:
    """The pools of one namespace. In all methods, pools that lead to a destination in `ignored` are left out."""

    namespace: NamespaceSnapshot
    usable: int
    ports: TcpPorts | None
    """None where TCP could not be read."""
    evidence: Evidence | None
    """What to remember of the ports for the next survey."""
    pool_sets: tuple[PoolSet[Any], ...]
    """One for each kind whose protocol could be read."""
    overfull: int = 0
    """Pools that seem to hold more ports than there are, because sockets changed while they were read."""

    def pools_of(self, kind: PoolKind) -> PoolSet[Any] | None:
        """Return the pools of a kind, None where its protocol could not be read."""
        return next((pools for pools in self.pool_sets if pools.kind == kind), None)

    def worst(
        self, ignored: Sequence[DestinationPattern], *, number: int, at_least: float = 0.0, held: int = 0
    ) -> list[RankedPool]:
        """Return the worst pools of all kinds, worst first; see `worst_pools`."""
        return worst_pools(self.pool_sets, ignored, number=number, at_least=at_least, held=held)

    def find(self, key: PoolKey, ignored: Sequence[DestinationPattern]) -> Pool | None:
        """Return a pool, None if it does not exist."""
        for pools in self.pool_sets:
            own = pools.find(key)
            if own is not None and not is_ignored(pools.destination(own), ignored):
                return pools.pool(own)
        return None


NO_EVIDENCE: Mapping[int, Evidence] = MappingProxyType({})
NO_ANSWERS_AT_ALL: Mapping[int, Mapping[int, bool]] = MappingProxyType({})


_NOTHING_TO_REMEMBER = Evidence()
"""Of a bind table. One for all, because it takes 270 KiB, and there may be a thousand namespaces."""


class ClassifiedPorts(NamedTuple):
    """The TCP ports of one namespace, and what to remember of them."""

    ports: TcpPorts
    evidence: Evidence


Classified = Mapping[int, ClassifiedPorts]
"""By the inode of the namespace; one whose TCP could not be read is not there."""


def classify(
    snapshot: Snapshot,
    *,
    evidence: Mapping[int, Evidence] = NO_EVIDENCE,
    answers: Mapping[int, Mapping[int, bool]] = NO_ANSWERS_AT_ALL,
) -> Classified:
    """Return the class of every TCP port of each namespace.

    Args:
        snapshot: What was read.
        evidence: What is remembered of each namespace, by its inode.
        answers: What the probe found in each namespace, by its inode; see `classify_ports`.
    """
    return {
        namespace.inode: ports
        for namespace in snapshot.namespaces
        if (ports := _classify(namespace, evidence, answers)) is not None
    }


def _classify(
    namespace: NamespaceSnapshot, evidence: Mapping[int, Evidence], answers: Mapping[int, Mapping[int, bool]]
) -> ClassifiedPorts | None:
    if namespace.binds is not None:
        return ClassifiedPorts(classes_of(namespace.binds.table), _NOTHING_TO_REMEMBER)
    if namespace.tcp is None:
        return None
    known = evidence.get(namespace.inode) or Evidence()
    answered = answers.get(namespace.inode, NO_ANSWERS)
    return ClassifiedPorts(*classify_ports(namespace.sysctls, namespace.tcp, known, answers=answered))


def leaves_doubt(snapshot: Snapshot) -> bool:
    """Tell whether the TCP sockets of a snapshot, as they were read, leave some number of a pool uncertain."""
    classified = classify(snapshot)
    return any(
        (ports := classified[namespace.inode].ports).ambiguous > 0
        or bool(ports.blind_to)
        or bool(namespace.tcp.connections.groups.devices)
        or bool(groups_open_to_reuse(namespace.tcp.connections.groups, namespace.sysctls))
        for namespace in snapshot.namespaces
        if namespace.tcp is not None
    )


def survey(
    snapshot: Snapshot, classified: Classified | None = None, *, doubted: Collection[ConnectKey] = ()
) -> tuple[NamespaceSurvey, ...]:
    """Count the pools of each namespace.

    Args:
        snapshot: What was read.
        classified: The classes of the ports; without them, what this one snapshot shows counts.
        doubted: The pools of our own namespace that a failed connect() puts in doubt.
    """
    known = classify(snapshot) if classified is None else classified
    return tuple(
        _survey(
            namespace, snapshot.taken_at, known.get(namespace.inode), doubted if namespace.netns == OWN_NETNS else ()
        )
        for namespace in snapshot.namespaces
    )


def _survey(
    namespace: NamespaceSnapshot, taken_at: float, classified: ClassifiedPorts | None, doubted: Collection[ConnectKey]
) -> NamespaceSurvey:
    pool_sets: list[PoolSet[Any]] = []
    overfull = 0
    if namespace.binds is not None and classified is not None:
        table, ports = namespace.binds.table, classified.ports
        counted = BindTableConnectPools(namespace.netns, taken_at, table, ports, doubted=doubted)
        overfull = counted.overfull
        pool_sets += [counted, BindTableBindPools(namespace.netns, taken_at, table, ports)]
    elif namespace.tcp is not None and classified is not None:
        connect = ConnectPools(
            namespace.netns, taken_at, namespace.sysctls, namespace.tcp, classified.ports, doubted=doubted
        )
        overfull = connect.overfull
        pool_sets += [connect, _tcp_bind(namespace, namespace.tcp, taken_at, classified.evidence.binders)]
    if namespace.udp is not None:
        pool_sets += _udp(namespace, namespace.udp, taken_at)
    return NamespaceSurvey(
        namespace=namespace,
        usable=count_usable(namespace.sysctls),
        ports=classified.ports if classified else None,
        evidence=classified.evidence if classified else None,
        pool_sets=tuple(pool_sets),
        overfull=overfull,
    )


def every_pool(surveys: Iterable[NamespaceSurvey], ignored: Sequence[DestinationPattern]) -> list[Pool]:
    """Return all pools that are not ignored, worst first."""
    entries = (entry for survey in surveys for entry in every_pool_unordered(survey.pool_sets, ignored))
    return sorted((entry.build() for entry in entries), key=worst_first)


def _tcp_bind(namespace: NamespaceSnapshot, tcp: TcpSockets, taken_at: float, sources: Iterable[bytes]) -> AddressPools:
    return AddressPools(
        PoolKind.TCP_BIND,
        namespace.netns,
        taken_at=taken_at,
        sysctls=namespace.sysctls,
        tables=(tcp.bound, tcp.connections),
        sources=sources,
        # A reading that only counts does not show bound, unconnected sockets.
        is_blind=bool(tcp.blind_to) or not tcp.has_evidence,
    )


def _udp(namespace: NamespaceSnapshot, udp: UdpSockets, taken_at: float) -> tuple[AddressPools, AddressPools]:
    sources = {PoolKind.UDP_CONNECT: _families(udp.sockets), PoolKind.UDP_BIND: udp.bound_to_any_port}
    connect, bind = (
        AddressPools(
            kind,
            namespace.netns,
            taken_at=taken_at,
            sysctls=namespace.sysctls,
            tables=(udp.sockets,),
            sources=addresses,
            is_blind=bool(udp.blind_to),
        )
        for kind, addresses in sources.items()
    )
    return connect, bind


def _families(sockets: SocketTable) -> frozenset[bytes]:
    """Return the wildcards of the families that the sockets are of."""
    return frozenset(ANY_OF_LENGTH[len(group.source)] for group in sockets.groups)
