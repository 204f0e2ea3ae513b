"""The Report: the one value that every output renders, and the function that builds it from a Snapshot."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from heapq import nsmallest
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING

from ephmon.model.listing import Listing, choose, remember
from ephmon.model.pace import Costs, Pace, Watch, pace, watch
from ephmon.model.pools import PoolKind
from ephmon.model.snapshot import NO_SOCKETS, Backend, Protocol, TcpSockets
from ephmon.model.survey import NO_ANSWERS_AT_ALL, survey, worst_first
from ephmon.model.tcp_connect import ConnectPools, own_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ephmon.model.evidence import Evidence
    from ephmon.model.pools import Pool, PoolKey
    from ephmon.model.rules import ListingRules, Rules
    from ephmon.model.snapshot import NarrowSnapshot, Snapshot, Sysctls
    from ephmon.model.survey import NamespaceSurvey, Ranked
    from ephmon.model.tcp_connect import Tuple
    from ephmon.model.tcp_ports import TcpPorts


FULL, NARROW = "full", "narrow"
"""The scopes of polls, as they are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceReport:
    """The port range of one network namespace and what is true of it as a whole. Counts are ports."""

    netns: str
    inode: int
    port_range_low: int
    port_range_high: int
    reserved_ports: int
    """Reserved ports that lie inside the range."""
    usable_ports: int
    blocked_ports: int | None
    """None where TCP could not be read."""
    ambiguous_ports: int | None
    blind_to: tuple[str, ...]
    tcp_tw_reuse: int
    pools: Mapping[PoolKind, int]
    """How many pools of each kind exist; a kind whose protocol could not be read is absent."""
    listed: Mapping[PoolKind, int]
    """How many of them are listed."""
    worst: Mapping[PoolKind, float]
    """The highest utilisation ratio of the pools of each kind, listed or not; absent where there is none."""
    worst_unlisted: Mapping[PoolKind, float] = field(default_factory=dict)
    """The same of the pools that are not listed, which narrow polls do not look at."""
    torn_pools: int = 0
    """Pools that seemed to hold more ports than there are, because sockets moved while they were read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedPool:
    """A pool that is listed, with what is remembered of it."""

    pool: Pool
    peak_utilisation: float
    """The highest utilisation ratio seen in the last `peak_window`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PollTotals:
    """Counters since the daemon started."""

    polls: Mapping[str, int] = field(default_factory=dict)
    """By scope: `full`, `narrow`."""
    failures: Mapping[str, int] = field(default_factory=dict)
    """By reason, a closed set of words."""
    cpu_seconds: float = 0.0

    def counted(self, *, scope: str = FULL, failure: str | None = None) -> PollTotals:
        """Return the totals after one more poll, which failed for the reason `failure` if there is one."""
        failures = dict(self.failures)
        if failure is not None:
            failures[failure] = failures.get(failure, 0) + 1
        return replace(self, polls={**self.polls, scope: self.polls.get(scope, 0) + 1}, failures=failures)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReloadStatus:
    """How the last reading of the configuration went."""

    successful: bool
    succeeded_at: float
    """When a configuration was last taken over, seconds since the epoch."""
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Remembered:
    """What the next poll needs to know of the ports of a namespace."""

    sysctls: Sysctls
    ports: TcpPorts
    evidence: Evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What ephmon knows after a poll, successful or not.

    After a failed poll the facts are those of the last good one, `success` is False and `error` says why.
    """

    success: bool
    error: str | None
    """One sentence; None after a good poll."""
    taken_at: float | None
    """When the facts were read, seconds since the epoch; None before the first good poll."""
    taken_at_monotonic: float | None
    """The same moment on the monotonic clock: what expiry counts from."""
    duration_seconds: float | None
    """How long the last full poll took, good or not."""
    pace: Pace
    """How often polls come from now on."""
    backends: Mapping[str, str]
    """Protocol -> backend, for the protocols that could be read."""
    missing: Mapping[str, str]
    """Protocol -> one sentence why it could not be read."""
    fallbacks: Mapping[str, str] = field(default_factory=dict)
    """Protocol -> one sentence why it is read by procfs."""
    namespaces: tuple[NamespaceReport, ...]
    listed: tuple[ListedPool, ...]
    """Worst utilisation first, then most ports held."""
    totals: PollTotals
    reload: ReloadStatus
    rules: Rules
    listing: Listing = field(default=Listing())
    """What the next report needs to know of the choice of listed pools."""
    remembered: Mapping[int, Remembered] = field(default_factory=dict)
    """What is remembered of the ports of each namespace, by its inode."""
    costs: Costs = field(default=Costs())
    """What the latest polls cost."""
    probe_available: bool | None = None
    """Whether ports in doubt could be probed; None if that was not asked for."""
    probe_error: str | None = None
    """Why they could not, or not all, be probed, as one sentence."""


def initial_report(rules: Rules, reload: ReloadStatus) -> Report:
    """Return the report before the first poll: nothing is known."""
    return Report(
        success=False,
        error=None,
        taken_at=None,
        taken_at_monotonic=None,
        duration_seconds=None,
        pace=Pace(full=rules.polling.interval_seconds),
        backends={},
        missing={},
        namespaces=(),
        listed=(),
        totals=PollTotals(),
        reload=reload,
        rules=rules,
    )


def build_report(
    snapshot: Snapshot,
    previous: Report,
    now: float,
    answers: Mapping[int, Mapping[int, bool]] = NO_ANSWERS_AT_ALL,
) -> Report:
    """Return the report after a good poll.

    Args:
        snapshot: What the poll read.
        previous: The report before; it also carries the rules and all that is remembered.
        now: Monotonic seconds.
        answers: What the probe found, by the inode of the namespace.
    """
    surveys = survey(
        snapshot,
        evidence=_evidence(previous),
        answers=answers,
        likely_binder_ports=previous.rules.listing.min_in_use,
    )
    return report_of(surveys, snapshot, previous, now)


def ports_in_doubt(snapshot: Snapshot, previous: Report) -> dict[int, list[int]]:
    """Return the ports that the probe should be asked about, by the inode of the namespace."""
    surveys = survey(snapshot, evidence=_evidence(previous))
    return {one.namespace.inode: one.ports.unanswered() for one in surveys if one.ports}


def report_of(surveys: Sequence[NamespaceSurvey], snapshot: Snapshot, previous: Report, now: float) -> Report:
    """Return the report after a good poll whose pools are counted already."""
    rules = previous.rules.listing
    ranked = [one.ranked(rules.ignore_destinations) for one in surveys]
    top = _worst(chain.from_iterable(ranked), rules)
    existing = _still_there(surveys, previous.listing, rules)
    listing = choose(previous.listing, list(top), list(existing), rules.top, now)
    pools = sorted((top.get(key) or existing[key] for key in listing.listed), key=worst_first)
    remembered = {
        pool.key: remember(listing.listed[pool.key], pool.utilisation, now, rules.peak_window_seconds) for pool in pools
    }
    return replace(
        previous,
        success=True,
        error=None,
        taken_at=snapshot.taken_at,
        taken_at_monotonic=now,
        duration_seconds=snapshot.duration_seconds,
        backends={protocol: backend for one in surveys for protocol, backend in one.namespace.backends.items()},
        missing={protocol: reason for one in surveys for protocol, reason in one.namespace.missing.items()},
        fallbacks={protocol: reason for one in surveys for protocol, reason in one.namespace.fallbacks.items()},
        namespaces=tuple(_namespace_report(*one, pools) for one in zip(surveys, ranked, strict=True)),
        listed=tuple(ListedPool(pool=pool, peak_utilisation=remembered[pool.key].peak) for pool in pools),
        totals=previous.totals.counted(),
        listing=replace(listing, listed=remembered),
        remembered=_remember_ports(surveys, previous),
    )


def _evidence(report: Report) -> dict[int, Evidence]:
    return {inode: remembered.evidence for inode, remembered in report.remembered.items()}


def _remember_ports(surveys: Iterable[NamespaceSurvey], previous: Report) -> dict[int, Remembered]:
    """Return what to remember of the namespaces that are there, as before where TCP could not be read this time."""
    remembered = {}
    for one in surveys:
        inode = one.namespace.inode
        if one.ports and one.evidence:
            sysctls = one.namespace.sysctls
            remembered[inode] = Remembered(sysctls=sysctls, ports=one.ports, evidence=one.evidence)
        elif inode in previous.remembered:
            remembered[inode] = previous.remembered[inode]
    return remembered


def refreshed_report(narrow: NarrowSnapshot, previous: Report, now: float) -> Report | None:
    """Return the report after a narrow poll: the listed pools toward the destinations that were read, and what follows.

    What blocks ports is taken as the last full poll saw it, so no figure is exact. None if the sysctls have changed
    since, so that a full poll is due.
    """
    remembered = previous.remembered.get(narrow.inode)
    if remembered is None or remembered.sysctls != narrow.sysctls:
        return None
    tcp = TcpSockets(bound=NO_SOCKETS, explicit_ports=frozenset(), connections=narrow.connections)
    pools = ConnectPools(narrow.netns, narrow.taken_at, narrow.sysctls, tcp, remembered.ports, ports_are_current=False)
    fresh = {
        one.pool.key: pools.pool(own) for one in previous.listed if (own := _watched(one.pool.key, narrow)) is not None
    }
    window = previous.rules.listing.peak_window_seconds
    listing = dict(previous.listing.listed)
    for key, pool in fresh.items():
        listing[key] = remember(listing[key], pool.utilisation, now, window)
    pools_now = sorted((fresh.get(one.pool.key, one.pool) for one in previous.listed), key=worst_first)
    listed = tuple(ListedPool(pool=pool, peak_utilisation=listing[pool.key].peak) for pool in pools_now)
    return replace(
        previous,
        listed=listed,
        namespaces=tuple(_with_worst(namespace, listed) for namespace in previous.namespaces),
        listing=replace(previous.listing, listed=listing),
        totals=previous.totals.counted(scope=NARROW),
    )


def _watched(key: PoolKey, narrow: NarrowSnapshot) -> Tuple | None:
    """Return the pool's key within the namespace if a narrow poll looked at it."""
    own = own_key(key) if key.netns == narrow.netns else None
    return own if own and (own.destination, own.destination_port) in narrow.destinations else None


def _with_worst(namespace: NamespaceReport, listed: Iterable[ListedPool]) -> NamespaceReport:
    """Return the namespace with its worst tcp_connect pool: of the listed ones now, of the others when read last."""
    kind = PoolKind.TCP_CONNECT
    ratios = [
        one.pool.utilisation for one in listed if (one.pool.key.netns, one.pool.key.kind) == (namespace.netns, kind)
    ]
    worst = max([*ratios, namespace.worst_unlisted.get(kind, 0.0)])
    return replace(namespace, worst={**namespace.worst, kind: worst}) if ratios else namespace


def watch_of(report: Report) -> Watch:
    """Return what needs a closer look than full polls at their usual interval."""
    shares = [
        namespace.blocked_ports / namespace.usable_ports
        for namespace in report.namespaces
        if namespace.blocked_ports and namespace.usable_ports
    ]
    watched = watch([one.pool for one in report.listed], shares, report.rules.thresholds)
    if watched.destinations and report.backends.get(Protocol.TCP) != Backend.INET_DIAG:
        return Watch(everything=True)  # only inet_diag can read the sockets toward some destinations alone
    return watched


def paced(report: Report, costs: Costs) -> Report:
    """Return the report with what polls cost by now, and how often they come from now on."""
    chosen = pace(report.rules.polling, costs, watch_of(report))
    return replace(report, costs=costs, pace=chosen)


def failed_report(previous: Report, error: str, reason: str, duration_seconds: float) -> Report:
    """Return the report after a poll that failed: the facts of the last good one, and why there are none newer."""
    return replace(
        previous,
        success=False,
        error=error,
        duration_seconds=duration_seconds,
        totals=previous.totals.counted(failure=reason),
    )


def _namespace_report(one: NamespaceSurvey, ranked: Iterable[Ranked], listed: Iterable[Pool]) -> NamespaceReport:
    namespace, sysctls = one.namespace, one.namespace.sysctls
    low, high = sysctls.port_range
    own_keys = {(pools.kind, pools.find(pool.key)) for pool in listed for pools in one.pool_sets}
    worst: dict[PoolKind, float] = {}
    worst_unlisted: dict[PoolKind, float] = {}
    for utilisation, _, pools, key in ranked:
        worst[pools.kind] = max(worst.get(pools.kind, 0.0), utilisation)
        if (pools.kind, key) not in own_keys:
            worst_unlisted[pools.kind] = max(worst_unlisted.get(pools.kind, 0.0), utilisation)
    kinds = [pool.key.kind for pool in listed if pool.key.netns == namespace.netns]
    blind_to = {blindness for sockets in (namespace.tcp, namespace.udp) if sockets for blindness in sockets.blind_to}
    return NamespaceReport(
        netns=namespace.netns,
        inode=namespace.inode,
        port_range_low=low,
        port_range_high=high,
        reserved_ports=sysctls.port_range.size - one.usable,
        usable_ports=one.usable,
        blocked_ports=one.ports.blocked if one.ports else None,
        ambiguous_ports=one.ports.ambiguous if one.ports else None,
        blind_to=tuple(sorted(blind_to)),
        tcp_tw_reuse=sysctls.tcp_tw_reuse,
        pools={pools.kind: len(pools) for pools in one.pool_sets},
        listed={pools.kind: kinds.count(pools.kind) for pools in one.pool_sets},
        worst=worst,
        worst_unlisted=worst_unlisted,
        torn_pools=one.torn,
    )


def _worst(ranked: Iterable[Ranked], rules: ListingRules) -> dict[PoolKey, Pool]:
    """Return the pools that may be listed, as many as may, worst first."""
    candidates = (entry for entry in ranked if entry.held >= rules.min_in_use)
    chosen = nsmallest(rules.top, candidates, key=attrgetter("worst_first"))
    return {pool.key: pool for pool in (entry.pools.pool(entry.key) for entry in chosen)}


def _still_there(surveys: Sequence[NamespaceSurvey], listing: Listing, rules: ListingRules) -> dict[PoolKey, Pool]:
    """Return those of the pools listed so far that still exist and are not ignored, worst first."""
    found = [
        pool
        for one in surveys
        for key in listing.listed
        if (pool := one.find(key, rules.ignore_destinations)) is not None
    ]
    return {pool.key: pool for pool in sorted(found, key=worst_first)}
