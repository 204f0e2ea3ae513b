"""The next report: from the one before, and what a poll read or why it failed."""

from __future__ import annotations

from dataclasses import replace
from heapq import nsmallest
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING

from ephmon.facts.sockets import NO_SOCKETS, Backend, Protocol, TcpSockets
from ephmon.model.alerting.conditions import after_full_poll, after_narrow_poll
from ephmon.model.alerting.state_machine import Moment
from ephmon.model.failures.recent import recent_failures
from ephmon.model.forecast.follow import follow
from ephmon.model.pace import MOST_WATCHED, Costs, Poll, Watch, pace, watch
from ephmon.model.pools.connect import ConnectPools, connect_key
from ephmon.model.pools.kinds import PoolKind
from ephmon.model.pools.listing import Listing, choose, remember
from ephmon.model.pools.survey import NO_ANSWERS_AT_ALL, survey, worst_first
from ephmon.model.report import ListedPool, NamespaceReport, Remembered, Report

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ephmon.facts.snapshot import NarrowSnapshot, Snapshot
    from ephmon.facts.socket_groups import ConnectKey
    from ephmon.model.failures.recent import RecentFailures
    from ephmon.model.pools.evidence import Evidence
    from ephmon.model.pools.kinds import Pool, PoolKey
    from ephmon.model.pools.survey import NamespaceSurvey
    from ephmon.model.rules import DestinationPattern, ListingRules

JUST_NOW_SECONDS = 5.0
"""A destination that connect() failed toward so lately is looked at by a narrow poll."""


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
    top = _worst(surveys, rules)
    existing = _still_there(surveys, previous.listing, rules)
    listing = choose(previous.listing, list(top), list(existing), rules.top, now)
    pools = sorted((top.get(key) or existing[key] for key in listing.listed), key=worst_first)
    remembered = {
        pool.key: remember(listing.listed[pool.key], pool.utilisation, now, rules.peak_window_seconds) for pool in pools
    }
    at = Moment(now, snapshot.taken_at)
    followed = follow(surveys, pools, previous.histories, now)
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
        namespaces=tuple(_namespace_report(one, pools, rules.ignore_destinations) for one in surveys),
        listed=tuple(
            ListedPool(pool=pool, peak_utilisation=remembered[pool.key].peak, forecast=followed[pool.key].forecast)
            for pool in pools
        ),
        totals=previous.totals.counted(),
        counting_polls=0 if _has_evidence(snapshot) else previous.counting_polls + 1,
        listing=replace(listing, listed=remembered),
        histories={key: one.history for key, one in followed.items()},
        remembered=_remember_ports(surveys, previous),
        alerts=after_full_poll(
            surveys,
            previous.alerts,
            previous.rules,
            at,
            followed=followed,
            # Also while nobody counts any more: what is remembered grows old, and so the alerts end.
            exhaustions=None if previous.exhaustions is None else _recent_failures(previous, now),
        ),
    )


def _recent_failures(report: Report, now: float) -> tuple[RecentFailures, ...]:
    ignored = report.rules.listing.ignore_destinations
    return recent_failures(report.exhaustions, ignored, now) if report.exhaustions else ()


def narrow_destinations(report: Report, now: float) -> tuple[tuple[bytes, int], ...]:
    """Return what a narrow poll is to look at: where connect() failed a moment ago, and what is watched."""
    latest = (one for one in reversed(_recent_failures(report, now)) if now - one.last_at < JUST_NOW_SECONDS)
    failed = [own.peer for one in latest if (own := connect_key(one.key)) is not None]
    return tuple(dict.fromkeys((*failed, *watch_of(report).destinations)))[:MOST_WATCHED]


def _has_evidence(snapshot: Snapshot) -> bool:
    return all(namespace.tcp is None or namespace.tcp.has_evidence for namespace in snapshot.namespaces)


def _evidence(report: Report) -> dict[int, Evidence]:
    return {inode: remembered.evidence for inode, remembered in report.remembered.items()}


def _remember_ports(surveys: Iterable[NamespaceSurvey], previous: Report) -> dict[int, Remembered]:
    """Return what to remember of the namespaces that are there, as before where TCP could not be read this time."""
    remembered = {}
    for one in surveys:
        namespace, before = one.namespace, previous.remembered.get(one.namespace.inode)
        if one.ports and one.evidence and namespace.tcp:
            listening_ports = namespace.tcp.listening_ports
            if listening_ports is None and before is not None:
                listening_ports = before.listening_ports
            remembered[namespace.inode] = Remembered(
                sysctls=namespace.sysctls, ports=one.ports, evidence=one.evidence, listening_ports=listening_ports
            )
        elif before is not None:
            remembered[namespace.inode] = before
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
    failures = _recent_failures(previous, now)
    keys = dict.fromkeys((*(one.pool.key for one in previous.listed), *(one.key for one in failures)))
    read = {key: pools.pool(own) for key in keys if (own := _watched(key, narrow)) is not None}
    fresh = {one.pool.key: read[one.pool.key] for one in previous.listed if one.pool.key in read}
    window = previous.rules.listing.peak_window_seconds
    listing = dict(previous.listing.listed)
    for key, pool in fresh.items():
        listing[key] = remember(listing[key], pool.utilisation, now, window)
    pools_now = sorted((fresh.get(one.pool.key, one.pool) for one in previous.listed), key=worst_first)
    forecasts = {one.pool.key: one.forecast for one in previous.listed}
    listed = tuple(
        ListedPool(pool=pool, peak_utilisation=listing[pool.key].peak, forecast=forecasts[pool.key])
        for pool in pools_now
    )
    return replace(
        previous,
        listed=listed,
        namespaces=tuple(_with_worst(namespace, listed) for namespace in previous.namespaces),
        listing=replace(previous.listing, listed=listing),
        totals=previous.totals.counted(Poll.NARROW),
        alerts=after_narrow_poll(
            read.values(), previous.alerts, previous.rules, Moment(now, narrow.taken_at), exhaustions=failures
        ),
    )


def _watched(key: PoolKey, narrow: NarrowSnapshot) -> ConnectKey | None:
    """Return the pool's key within the namespace if a narrow poll looked at it."""
    own = connect_key(key) if key.netns == narrow.netns else None
    return own if own and own.peer in narrow.destinations else None


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
    blocked = [namespace.blocked for namespace in report.namespaces if namespace.blocked]
    watched = watch([one.pool for one in report.listed], blocked, report.rules.thresholds)
    if watched.destinations and report.backends.get(Protocol.TCP) != Backend.INET_DIAG:
        return Watch(everything=True)  # only inet_diag can read the sockets toward some destinations alone
    return watched


def paced(report: Report, costs: Costs) -> Report:
    """Return the report with what polls cost by now, and how often they come from now on."""
    settles_much = any(remembered.evidence.settles_much for remembered in report.remembered.values())
    chosen = pace(report.rules.polling, costs, watch_of(report), evidence_settles_much=settles_much)
    return replace(report, costs=costs, pace=chosen)


def next_full_poll(report: Report) -> Poll:
    """Return whether the next full poll gathers evidence."""
    return Poll.FULL if report.counting_polls + 1 >= report.pace.polls_per_evidence else Poll.COUNTING


def failed_report(previous: Report, error: str, reason: str, duration_seconds: float) -> Report:
    """Return the report after a poll that failed: the facts of the last good one, and why there are none newer."""
    return replace(
        previous,
        success=False,
        error=error,
        duration_seconds=duration_seconds,
        totals=previous.totals.counted(failure=reason),
    )


def _namespace_report(
    one: NamespaceSurvey, listed: Iterable[Pool], ignored: Sequence[DestinationPattern]
) -> NamespaceReport:
    namespace, sysctls = one.namespace, one.namespace.sysctls
    low, high = sysctls.port_range
    worst = {pools.kind: one.worst_utilisation(pools, ignored) for pools in one.pool_sets}
    worst_unlisted = {
        pools.kind: one.worst_utilisation(pools, ignored, {pools.find(pool.key) for pool in listed})
        for pools in one.pool_sets
    }
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
        worst={kind: ratio for kind, ratio in worst.items() if ratio is not None},
        worst_unlisted={kind: ratio for kind, ratio in worst_unlisted.items() if ratio is not None},
        torn_pools=one.torn,
    )


def _worst(surveys: Iterable[NamespaceSurvey], rules: ListingRules) -> dict[PoolKey, Pool]:
    """Return the pools that may be listed, as many as may, worst first."""
    worst = chain.from_iterable(
        one.worst(rules.ignore_destinations, number=rules.top, held=rules.min_in_use) for one in surveys
    )
    chosen = nsmallest(rules.top, worst, key=attrgetter("worst_first"))
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
