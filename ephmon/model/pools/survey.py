"""The survey: all pools of a snapshot, counted, before anybody chooses which of them to show."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from heapq import heappop, heappush, nsmallest
from ipaddress import ip_address
from itertools import chain
from operator import attrgetter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from ephmon.facts.addresses import ANY_OF_LENGTH
from ephmon.model.pools.evidence import NO_ANSWERS, Evidence, weigh
from ephmon.model.pools.kinds import PoolKind, share_of_usable
from ephmon.model.pools.port_classes import usable_ports
from ephmon.model.pools.tcp_bind_and_udp import AddressPools
from ephmon.model.pools.tcp_connect import ConnectPools, connect_key

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Sequence

    from ephmon.facts.snapshot import NamespaceSnapshot, Snapshot
    from ephmon.facts.sockets import SocketTable, TcpSockets, UdpSockets
    from ephmon.model.pools.kinds import Pool, PoolKey
    from ephmon.model.pools.port_classes import TcpPorts
    from ephmon.model.rules import DestinationPattern

Key = TypeVar("Key")


class PoolSet(Protocol[Key]):
    """All pools of one kind in one namespace, under keys of the kind's own.

    A host may have tens of thousands of pools and show fifty: all are put in order by what costs nothing to know, and
    only as many are looked at more closely as that leaves in question.
    """

    kind: PoolKind
    netns: str

    def __len__(self) -> int:
        """How many pools exist."""

    def __iter__(self) -> Iterator[Key]:
        """The keys of the pools that exist."""

    def most_lost_first(self) -> Iterator[tuple[int, int, Key]]:
        """Yield each pool with the most that each part of its `rank` may be, the greatest first part first."""

    def rank(self, key: Key) -> tuple[int, int]:
        """Return what pools are ordered by, the worst greatest: usable ports it cannot get, then ports it holds."""

    def held(self, key: Key) -> int:
        """Return how many ports of the range the pool's sockets hold."""

    def destination(self, key: Key) -> tuple[bytes, int] | None:
        """Return the packed address and the port that the pool leads to, None where it leads nowhere."""

    def find(self, key: PoolKey) -> Key | None:
        """Return the own key of a pool that exists, None for others."""

    def pool(self, key: Key) -> Pool:
        """Return a pool, also one that does not exist."""


class Ranked(NamedTuple):
    """A pool that is not built yet, and what it is ordered by among those of all kinds and namespaces."""

    utilisation: float
    held: int
    pools: PoolSet[Any]
    key: Any

    @property
    def worst_first(self) -> tuple[float, int, str, str, Any]:
        """The same as `worst_first` of the pool, which need not be built for it."""
        return _worst_first(self.utilisation, self.held, self.pools.netns, self.pools.kind, self.key)


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceSurvey:
    """The pools of one namespace."""

    namespace: NamespaceSnapshot
    usable: int
    ports: TcpPorts | None
    """None where TCP could not be read."""
    evidence: Evidence | None
    """What to remember of the ports for the next survey."""
    pool_sets: tuple[PoolSet[Any], ...]
    """One for each kind whose protocol could be read."""
    torn: int = 0
    """Pools that seem to hold more ports than there are, because sockets moved while they were read."""

    def pools_of(self, kind: PoolKind) -> PoolSet[Any] | None:
        """Return the pools of a kind, None where its protocol could not be read."""
        return next((pools for pools in self.pool_sets if pools.kind == kind), None)

    def ranked(self, ignored: Sequence[DestinationPattern]) -> list[Ranked]:
        """Return all pools that are not ignored, in no order."""
        return [entry for pools in self.pool_sets for entry in self._most_utilised_first(pools, ignored)]

    def worst(
        self, ignored: Sequence[DestinationPattern], *, number: int, at_least: float = 0.0, held: int = 0
    ) -> list[Ranked]:
        """Return the worst pools, at most `number`, worst first.

        Args:
            ignored: These are left out.
            number: How many at most.
            at_least: The utilisation ratio that they have at least.
            held: So many ports of the range do their sockets hold at least.
        """
        entries: list[Ranked] = []
        best: list[float] = []  # the highest `number` utilisations so far, as a heap

        def to_beat() -> float:
            return max(at_least, best[0]) if len(best) == number else at_least

        for pools in self.pool_sets:
            for entry in self._most_utilised_first(pools, ignored, at_least=to_beat, held=held):
                if entry.held >= held and entry.utilisation >= at_least:
                    entries.append(entry)
                    heappush(best, entry.utilisation)
                    if len(best) > number:
                        heappop(best)
        return nsmallest(number, entries, key=attrgetter("worst_first"))

    def worst_utilisation(
        self, pools: PoolSet[Key], ignored: Sequence[DestinationPattern], but: Container[Key] = ()
    ) -> float | None:
        """Return the highest utilisation of pools that are not ignored, but some; None if there is no other."""
        worst: float | None = None

        def more() -> float:
            return 0.0 if worst is None else math.nextafter(worst, 2.0)

        for entry in self._most_utilised_first(pools, ignored, at_least=more):
            if entry.key not in but:
                worst = max(worst or 0.0, entry.utilisation)
        return worst

    def _most_utilised_first(
        self,
        pools: PoolSet[Any],
        ignored: Sequence[DestinationPattern],
        *,
        at_least: Callable[[], float] = lambda: 0.0,
        held: int = 0,
    ) -> Iterator[Ranked]:
        """Yield pools, at least those that may have the utilisation `at_least()` and hold so many ports.

        What is asked for may grow meanwhile.
        """
        for lost, most_held, key in pools.most_lost_first():
            if most_held < held or share_of_usable(lost, self.usable) < at_least():
                return
            if not (ignored and is_ignored(pools.destination(key), ignored)):
                lost_truly, held_truly = pools.rank(key)
                yield Ranked(share_of_usable(lost_truly, self.usable), held_truly, pools, key)

    def find(self, key: PoolKey, ignored: Sequence[DestinationPattern]) -> Pool | None:
        """Return a pool that exists and is not ignored, None for others."""
        for pools in self.pool_sets:
            own = pools.find(key)
            if own is not None and not is_ignored(pools.destination(own), ignored):
                return pools.pool(own)
        return None


NO_EVIDENCE: Mapping[int, Evidence] = MappingProxyType({})
NO_ANSWERS_AT_ALL: Mapping[int, Mapping[int, bool]] = MappingProxyType({})


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
    likely_binder_ports: int = 1,
) -> Classified:
    """Return the class of every TCP port of each namespace.

    Args:
        snapshot: What was read.
        evidence: What is remembered of each namespace, by its inode.
        answers: What the probe found in each namespace, by its inode; see `weigh`.
        likely_binder_ports: See `weigh`.
    """
    return {
        namespace.inode: ClassifiedPorts(
            *weigh(
                namespace.sysctls,
                namespace.tcp,
                evidence.get(namespace.inode) or Evidence(),
                answers=answers.get(namespace.inode, NO_ANSWERS),
                likely_binder_ports=likely_binder_ports,
            )
        )
        for namespace in snapshot.namespaces
        if namespace.tcp is not None
    }


def survey(snapshot: Snapshot, classified: Classified | None = None) -> tuple[NamespaceSurvey, ...]:
    """Count the pools of each namespace; without `classified`, by what this one snapshot shows of the ports."""
    known = classify(snapshot) if classified is None else classified
    return tuple(_survey(namespace, snapshot.taken_at, known.get(namespace.inode)) for namespace in snapshot.namespaces)


def _survey(namespace: NamespaceSnapshot, taken_at: float, classified: ClassifiedPorts | None) -> NamespaceSurvey:
    usable = usable_ports(namespace.sysctls)
    pool_sets: list[PoolSet[Any]] = []
    torn = 0
    if namespace.tcp is not None and classified is not None:
        connect = ConnectPools(namespace.netns, taken_at, namespace.sysctls, namespace.tcp, classified.ports)
        torn = connect.torn
        pool_sets += [connect, _tcp_bind(namespace, namespace.tcp, taken_at, classified.evidence.binders)]
    if namespace.udp is not None:
        pool_sets += _udp(namespace, namespace.udp, taken_at)
    return NamespaceSurvey(
        namespace=namespace,
        usable=len(usable) - usable.count(0),
        ports=classified.ports if classified else None,
        evidence=classified.evidence if classified else None,
        pool_sets=tuple(pool_sets),
        torn=torn,
    )


def every_pool(surveys: Iterable[NamespaceSurvey], ignored: Sequence[DestinationPattern]) -> list[Pool]:
    """Return all pools that are not ignored, worst utilisation first, then most ports held."""
    entries = chain.from_iterable(one.ranked(ignored) for one in surveys)
    return sorted((entry.pools.pool(entry.key) for entry in entries), key=worst_first)


def worst_first(pool: Pool) -> tuple[float, int, str, str, Any]:
    """Return what pools are sorted by, wherever they are shown: utilisation, then ports held, then their keys."""
    key = pool.key
    own = connect_key(key) or ip_address(key.source).packed
    return _worst_first(pool.utilisation, pool.held, key.netns, key.kind, own)


def _worst_first(utilisation: float, held: int, netns: str, kind: str, own: Any) -> tuple[float, int, str, str, Any]:
    # The key comes last, so that equal pools keep their order from poll to poll, whatever the order of the sockets.
    return -utilisation, -held, netns, kind, own


def _tcp_bind(namespace: NamespaceSnapshot, tcp: TcpSockets, taken_at: float, sources: Iterable[bytes]) -> AddressPools:
    return AddressPools(
        PoolKind.TCP_BIND,
        namespace.netns,
        taken_at=taken_at,
        sysctls=namespace.sysctls,
        tables=(tcp.bound, tcp.connections),
        sources=sources,
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


def is_ignored(destination: tuple[bytes, int] | None, patterns: Sequence[DestinationPattern]) -> bool:
    """Tell whether a destination (packed address, port) is one of those that are left out."""
    if destination is None:
        return False
    address, port = ip_address(destination[0]), destination[1]
    return any(address in pattern.network and pattern.port in (None, port) for pattern in patterns)
