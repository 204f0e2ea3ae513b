"""One step: the state before a poll, and what it read or why it failed, become the state after it."""

from __future__ import annotations

from dataclasses import replace
from heapq import nsmallest
from itertools import chain
from operator import attrgetter
from types import MappingProxyType
from typing import TYPE_CHECKING

from ephmon.errors import Reason
from ephmon.facts.namespaces import OWN_NETNS
from ephmon.facts.sockets import NO_SOCKETS, Capability, Protocol, TcpSockets
from ephmon.facts.timestamps import NOTHING_KNOWN
from ephmon.model.alerting.conditions import judge_full_poll, judge_narrow_poll
from ephmon.model.alerting.state_machine import Moment
from ephmon.model.collectors import Health
from ephmon.model.failures.doubted_pools import doubted_pools
from ephmon.model.failures.recent import recent_failures
from ephmon.model.forecast.pool_forecasts import forecast_pools
from ephmon.model.forecast.search_share import search_share
from ephmon.model.pace import MOST_WATCHED, Poll, Watch, pace, watch
from ephmon.model.pools.kinds import PoolKind
from ephmon.model.pools.listing import choose, remember
from ephmon.model.pools.probe_questions import Questions, questions
from ephmon.model.pools.ranking import worst_first, worst_utilisation
from ephmon.model.pools.survey import NO_ANSWERS_AT_ALL, Classified, classify, survey
from ephmon.model.pools.tcp_connect import ConnectPools, connect_key, destination_of
from ephmon.model.report import MOST_NAMESPACES, ListedPool, NamespaceReport, PollTotals
from ephmon.model.state import NamespaceMemory, State

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ephmon.facts.failed_calls import Destination
    from ephmon.facts.snapshot import NarrowReading, NarrowSnapshot, Snapshot
    from ephmon.facts.socket_groups import ConnectKey
    from ephmon.model.alerting.thresholds import Thresholds
    from ephmon.model.failures.recent import RecentFailures
    from ephmon.model.pools.kinds import Pool, PoolKey
    from ephmon.model.pools.listing import ListingMemory
    from ephmon.model.pools.ranking import RankedPool
    from ephmon.model.pools.survey import NamespaceSurvey
    from ephmon.model.rules import DestinationPattern, ListingRules

NOT_YET_ASKED: Mapping[int, int] = MappingProxyType({})
JUST_NOW_SECONDS = 5.0
"""A destination that connect() failed toward so lately is looked at by a narrow poll."""


def classify_with_memory(
    snapshot: Snapshot, state: State, answers: Mapping[int, Mapping[int, bool]] = NO_ANSWERS_AT_ALL
) -> Classified:
    """Return the class of every port, given what is remembered and what the probe answered, by inode."""
    return classify(
        snapshot,
        evidence={inode: memory.evidence for inode, memory in state.namespaces.items()},
        answers=answers,
    )


def questions_about(
    snapshot: Snapshot,
    classified: Classified,
    thresholds: Thresholds,
    *,
    after: Mapping[int, int] = NOT_YET_ASKED,
    most: int | None = None,
) -> dict[int, Questions]:
    """Return what to ask of the kernel in each namespace, by its inode: `ephmon.model.pools.probe_questions`.

    Args:
        snapshot: What was read.
        classified: The class of every port, without answers.
        thresholds: What pools and blocked ports are held against.
        after: The port of each namespace that was asked about last, by its inode.
        most: How many ports to ask about that cannot matter.
    """
    ratios = thresholds.ratios()
    return {
        namespace.inode: questions(
            namespace.tcp,
            one.ports,
            ratios,
            after=after.get(namespace.inode, 0),
            blocked_once=one.evidence.blocked_once(),
            most=most,
        )
        for namespace in snapshot.namespaces
        if namespace.tcp is not None and (one := classified.get(namespace.inode)) is not None and one.ports.ambiguous
    }


def conclude(snapshot: Snapshot, previous: State, now: float, classified: Classified | None = None) -> State:
    """Return the state after a poll that read everything; `now` are monotonic seconds.

    `classified` are the classes of the ports where they are known already, because the kernel was asked about some.
    """
    known = classify_with_memory(snapshot, previous) if classified is None else classified
    doubted = doubted_pools(previous.report.exhaustions, now)
    return after_full_poll(survey(snapshot, known, doubted=doubted), snapshot, previous, now)


def after_full_poll(surveys: Sequence[NamespaceSurvey], snapshot: Snapshot, previous: State, now: float) -> State:
    """Return the state after a poll that read everything.

    Args:
        surveys: The pools of the snapshot, counted.
        snapshot: What the poll read.
        previous: The state before it.
        now: Monotonic seconds.
    """
    rules, before = previous.rules.listing, previous.report
    top = _worst(surveys, rules)
    existing = _still_there(surveys, previous.listing, rules)
    listing = choose(previous.listing, list(top), list(existing), rules.top, now)
    pools = sorted((top.get(key) or existing[key] for key in listing.listed), key=worst_first)
    remembered = {
        pool.key: remember(listing.listed[pool.key], pool.utilisation, now, rules.peak_window_seconds) for pool in pools
    }
    forecasts, histories = forecast_pools(surveys, pools, previous.histories, now)
    namespaces = _remember_ports(surveys, previous)
    listed = tuple(
        ListedPool(
            pool=pool,
            peak_utilisation=remembered[pool.key].peak,
            forecast=forecasts.get(pool.key),
            search_share=search_share(pool, forecasts.get(pool.key), previous.search_seconds),
        )
        for pool in pools
    )
    reports = [
        _namespace_report(one, pools, previous.rules.listing.ignore_destinations, _kept(one, namespaces, previous))
        for one in surveys
    ]
    listed_namespaces = _list_namespaces(reports, previous.listed_namespaces, now)
    shown = tuple(one for one in reports if one.netns == OWN_NETNS or one.netns in listed_namespaces.listed)
    report = replace(
        before.with_health(
            tcp=_health(surveys, Protocol.TCP), udp=_health(surveys, Protocol.UDP), bpf=_bpf_health(snapshot)
        ),
        success=True,
        error=None,
        taken_at=snapshot.taken_at,
        taken_at_monotonic=now,
        duration_seconds=snapshot.duration_seconds,
        backend_disagreements=snapshot.bpf.disagreements if snapshot.bpf else before.backend_disagreements,
        namespaces=shown,
        namespaces_read=len(reports),
        pools_elsewhere=sum(sum(one.pools.values()) for one in reports) - sum(sum(one.pools.values()) for one in shown),
        listed=listed,
        totals=before.totals.counted(),
        alerts=judge_full_poll(
            surveys,
            before.alerts,
            previous.rules,
            Moment(now, snapshot.taken_at),
            forecasts=forecasts,
            search_shares={
                one.pool.key: (one.pool, one.search_share) for one in listed if one.search_share is not None
            },
            # Also while nobody counts any more: what is remembered grows old, and so the alerts end.
            exhaustions=None if before.exhaustions is None else _recent_failures(previous, now),
        ),
    )
    return replace(
        previous,
        report=report,
        listing=replace(listing, listed=remembered),
        listed_namespaces=listed_namespaces,
        histories=histories,
        namespaces=namespaces,
        counting_polls=0 if _has_evidence(snapshot) else previous.counting_polls + 1,
    )


def _list_namespaces(
    reports: Iterable[NamespaceReport], previous: ListingMemory[str], now: float
) -> ListingMemory[str]:
    """Choose the namespaces beside our own that are listed: those that may alert first, then by their fullest pool."""
    others = sorted(
        (one for one in reports if one.netns != OWN_NETNS),
        key=lambda one: (not one.may_alert, -max(one.worst.values(), default=0.0), one.netns),
    )
    ranked = [one.netns for one in others]
    return choose(previous, ranked, [netns for netns in ranked if netns in previous.listed], MOST_NAMESPACES, now)


def _health(surveys: Iterable[NamespaceSurvey], protocol: Protocol) -> Health:
    """Return how a protocol could be read; a namespace in which it could not counts for all."""
    reasons = [one.namespace.missing.get(protocol) for one in surveys]
    reason = next(filter(None, reasons), None)
    return Health(available=reason is None, reason=reason)


def _bpf_health(snapshot: Snapshot) -> Health | None:
    if snapshot.bpf is None:
        return None
    return Health(available=snapshot.bpf.refusal is None, reason=snapshot.bpf.refusal)


def _kept(one: NamespaceSurvey, namespaces: Mapping[int, NamespaceMemory], state: State) -> frozenset[int] | None:
    memory = namespaces.get(one.namespace.inode)
    if memory is None or memory.listening_ports is None:
        return None
    return memory.listening_ports | state.rules.own_ports


def _recent_failures(state: State, now: float) -> tuple[RecentFailures, ...]:
    exhaustions = state.report.exhaustions
    return recent_failures(exhaustions, state.rules.listing.ignore_destinations, now) if exhaustions else ()


def narrow_destinations(state: State, now: float) -> tuple[Destination, ...]:
    """Return what a narrow poll is to look at: where connect() failed a moment ago, and what is watched."""
    latest = (one for one in reversed(_recent_failures(state, now)) if now - one.last_at < JUST_NOW_SECONDS)
    failed = [destination for one in latest if (destination := destination_of(one.key)) is not None]
    return tuple(dict.fromkeys((*failed, *watch_of(state).destinations)))[:MOST_WATCHED]


def _has_evidence(snapshot: Snapshot) -> bool:
    return all(namespace.tcp is None or namespace.tcp.has_evidence for namespace in snapshot.namespaces)


def _remember_ports(surveys: Iterable[NamespaceSurvey], previous: State) -> dict[int, NamespaceMemory]:
    """Return what to remember of the namespaces that are there, as before where TCP could not be read this time."""
    remembered = {}
    for one in surveys:
        namespace, before = one.namespace, previous.namespaces.get(one.namespace.inode)
        if namespace.identity is not None:
            continue  # read by BPF alone, which needs no memory, and there may be a thousand of these
        if one.ports and one.evidence:
            listening_ports = namespace.listening_ports
            if listening_ports is None and before is not None:
                listening_ports = before.listening_ports
            remembered[namespace.inode] = NamespaceMemory(
                sysctls=namespace.sysctls,
                ports=one.ports,
                evidence=one.evidence,
                listening_ports=listening_ports,
                timestamps=namespace.tcp.timestamps if namespace.tcp else NOTHING_KNOWN,
            )
        elif before is not None:
            remembered[namespace.inode] = before
    return remembered


def after_narrow_poll(narrow: NarrowSnapshot, previous: State, now: float) -> State | None:
    """Return the state after a narrow poll: the listed pools toward the destinations that were read, and what follows.

    What blocks ports is taken as the last full poll saw it, so no figure is exact. None if the sysctls of a namespace
    have changed since, so that a full poll is due.
    """
    before = previous.report
    failures = _recent_failures(previous, now)
    keys = dict.fromkeys((*(one.pool.key for one in before.listed), *(one.key for one in failures)))
    read: dict[PoolKey, Pool] = {}
    doubted = doubted_pools(before.exhaustions, now)
    for one in narrow.namespaces:
        memory = previous.namespaces.get(one.inode)
        if memory is None or memory.sysctls != one.sysctls:
            return None
        tcp = TcpSockets(bound=NO_SOCKETS, named=NO_SOCKETS, connections=one.connections, timestamps=memory.timestamps)
        pools = ConnectPools(
            one.netns,
            narrow.taken_at,
            one.sysctls,
            tcp,
            memory.ports,
            ports_are_current=False,
            doubted=doubted if one.netns == OWN_NETNS else (),
        )
        read |= {key: pools.pool(own) for key in keys if (own := _watched(key, one)) is not None}
    fresh = {one.pool.key: read[one.pool.key] for one in before.listed if one.pool.key in read}
    window = previous.rules.listing.peak_window_seconds
    listing = dict(previous.listing.listed)
    for key, pool in fresh.items():
        listing[key] = remember(listing[key], pool.utilisation, now, window)
    pools_now = sorted((fresh.get(one.pool.key, one.pool) for one in before.listed), key=worst_first)
    known = {one.pool.key: one for one in before.listed}
    listed = tuple(replace(known[pool.key], pool=pool, peak_utilisation=listing[pool.key].peak) for pool in pools_now)
    report = replace(
        before,
        listed=listed,
        namespaces=tuple(_with_worst(namespace, listed) for namespace in before.namespaces),
        totals=before.totals.counted(Poll.NARROW),
        narrow_poll_error=None,
        alerts=judge_narrow_poll(
            read.values(), before.alerts, previous.rules, Moment(now, narrow.taken_at), exhaustions=failures
        ),
    )
    return replace(previous, report=report, listing=replace(previous.listing, listed=listing))


def _watched(key: PoolKey, narrow: NarrowReading) -> ConnectKey | None:
    """Return the pool's key within the namespace if a narrow poll looked at it there."""
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


def watch_of(state: State) -> Watch:
    """Return what needs a closer look than full polls at their usual interval."""
    report = state.report
    blocked = [namespace.blocked for namespace in report.namespaces if namespace.blocked]
    watched = watch([one.pool for one in report.listed], blocked, state.rules.thresholds)
    backends = {namespace.netns: namespace.backends.get(Protocol.TCP) for namespace in report.namespaces}
    for destination in watched.destinations:
        backend = backends.get(destination.netns)
        if backend is None or Capability.NARROW_POLLS not in backend.capabilities:
            return Watch(everything=True)
    return watched


def with_pace(state: State) -> State:
    """Return the state with how often polls come from now on, by what they have cost so far."""
    settles_much = any(memory.evidence.settles_much for memory in state.namespaces.values())
    chosen = pace(state.rules.polling, state.costs, watch_of(state), evidence_settles_much=settles_much)
    return state.with_report(pace=chosen)


def next_full_poll(state: State) -> Poll:
    """Return whether the next full poll gathers evidence; it does while a failed connect() puts a pool in doubt."""
    if doubted_pools(state.report.exhaustions, state.report.taken_at_monotonic or 0.0):
        return Poll.FULL
    return Poll.FULL if state.counting_polls + 1 >= state.report.pace.polls_per_evidence else Poll.COUNTING


def with_cost(state: State, kind: Poll, seconds: float) -> State:
    """Return the state after a poll that took so much CPU time, with how often polls come from now on."""
    costs = replace(state, costs=state.costs.after(kind, seconds))
    return with_pace(costs if kind is Poll.NARROW else costs.with_report(full_poll_cpu_seconds=seconds))


def after_failed_poll(
    previous: State, error: str, reason: Reason, duration_seconds: float, kind: Poll = Poll.FULL
) -> State:
    """Return the state after a poll that failed: the facts of the last good one, and why there are none newer."""
    return previous.with_report(
        success=False,
        error=error,
        duration_seconds=duration_seconds,
        totals=previous.report.totals.counted(kind, failure=reason),
    )


def after_defect(state: State, error: str) -> State:
    """Return the state after a poll that succeeded and could not be handed out: what it found stands, as a failure."""
    return state.with_report(success=False, error=error, totals=state.report.totals.failed(Reason.DEFECT))


def after_repeated_poll(previous: State) -> State:
    """Return the state after a poll that failed by a defect and is made again at once, in another way."""
    return previous.with_report(totals=previous.report.totals.counted(failure=Reason.DEFECT))


def after_failed_narrow_poll(previous: State, error: str, reason: Reason) -> State:
    """Return the state after a narrow poll that failed: all is as the last full poll left it."""
    totals: PollTotals = previous.report.totals.counted(Poll.NARROW, failure=reason)
    return previous.with_report(totals=totals, narrow_poll_error=error)


def _namespace_report(
    one: NamespaceSurvey,
    listed: Iterable[Pool],
    ignored: Sequence[DestinationPattern],
    kept_ports: frozenset[int] | None,
) -> NamespaceReport:
    namespace, sysctls = one.namespace, one.namespace.sysctls
    here = [pool for pool in listed if pool.key.netns == namespace.netns]
    worst = {pools.kind: worst_utilisation(pools, ignored) for pools in one.pool_sets}
    worst_unlisted = {
        pools.kind: worst_utilisation(pools, ignored, {pools.find(pool.key) for pool in here})
        for pools in one.pool_sets
    }
    kinds = [pool.key.kind for pool in here]
    blind_to = {blindness for sockets in (namespace.tcp, namespace.udp) if sockets for blindness in sockets.blind_to}
    return NamespaceReport(
        netns=namespace.netns,
        inode=namespace.inode,
        sysctls=sysctls,
        reserved_ports=sysctls.port_range.size - one.usable,
        usable_ports=one.usable,
        blocked_ports=one.ports.blocked if one.ports else None,
        ambiguous_ports=one.ports.ambiguous if one.ports else None,
        blind_to=tuple(sorted(blind_to)),
        pools={pools.kind: len(pools) for pools in one.pool_sets},
        listed={pools.kind: kinds.count(pools.kind) for pools in one.pool_sets},
        worst={kind: ratio for kind, ratio in worst.items() if ratio is not None},
        worst_unlisted={kind: ratio for kind, ratio in worst_unlisted.items() if ratio is not None},
        overfull_pools=one.overfull,
        backends=namespace.backends,
        missing=namespace.missing,
        fallbacks=namespace.fallbacks,
        kept_ports=kept_ports,
        mount=namespace.identity.mount if namespace.identity else None,
        may_alert=namespace.may_alert,
    )


def _worst(surveys: Iterable[NamespaceSurvey], rules: ListingRules) -> dict[PoolKey, Pool]:
    """Return the pools that may be listed, as many as may, worst first.

    Those of namespaces that may not alert come last: anybody could fill up such a namespace to have others unlisted.
    """
    chosen: list[RankedPool] = []
    for may_alert in (True, False):
        worst = chain.from_iterable(
            one.worst(rules.ignore_destinations, number=rules.top, held=rules.min_in_use)
            for one in surveys
            if one.namespace.may_alert is may_alert
        )
        chosen += nsmallest(rules.top - len(chosen), worst, key=attrgetter("worst_first"))
    return {pool.key: pool for pool in (entry.pools.pool(entry.key) for entry in chosen)}


def _still_there(
    surveys: Sequence[NamespaceSurvey], listing: ListingMemory[PoolKey], rules: ListingRules
) -> dict[PoolKey, Pool]:
    """Return those of the pools listed so far that still exist and are not ignored, worst first."""
    found = [
        pool
        for one in surveys
        for key in listing.listed
        if (pool := one.find(key, rules.ignore_destinations)) is not None
    ]
    return {pool.key: pool for pool in sorted(found, key=worst_first)}
