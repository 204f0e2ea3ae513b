"""The conditions: what a poll says of each alert.

Pools and thresholds in, observations for `ephmon.model.alerting.state_machine` out.

EphmonPoolNearExhaustion
    The utilisation ratio of a pool, held against the thresholds of the first override that matches it, else against
    the general ones. Every pool counts, listed or not, however few ports it holds: in a range of five ports, or where
    most are blocked, the last two matter. Only destinations that are ignored do not.
EphmonPortsBlocked
    The share of the usable ports that are blocked for every connect(), held against the general thresholds: one
    program that binds many ports lifts all tcp_connect pools at once. While it fires it stands for those whose own
    share is smaller than the blocked one: it takes the severity of the worst of them and names the worst five. So that
    they do not fire one by one before it does, it stands for them from the moment its share is in the band where it
    would go on firing (`clear` of the warning), and starts there as soon as one of them that does not fire yet reaches
    a threshold. With no usable port at all everything is blocked.
EphmonPoolExhaustionForecast
    The pool is more than half full and runs out within a minute at the present rate, and fires by no threshold yet.
EphmonConnectExhaustions
    The kernel failed a connect() for want of a port. Critical only where the pool, or the blocked share, is above its
    warning threshold too: a socket with a port range of its own runs out in an empty pool, and any user can make one.

What was not read is not judged: without TCP there is no observation of TCP pools, and their alerts are held. A narrow
poll judges the pools that it read; of the blocked share it can only tell that a pool which that stands for got worse.
"""

from __future__ import annotations

from heapq import nsmallest
from itertools import chain
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from ephmon.model.alerting.state_machine import SUMMARY, AlertKey, AlertName, Judgement, Observation, Signal, step
from ephmon.model.failures.recent import QUIET_SECONDS
from ephmon.model.pools.kinds import PoolKind
from ephmon.model.pools.survey import worst_first
from ephmon.model.rules import Severity

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from ephmon.model.alerting.state_machine import Alert, Alerts, Moment
    from ephmon.model.failures.recent import RecentFailures
    from ephmon.model.forecast.follow import Followed
    from ephmon.model.pools.kinds import Pool, PoolKey
    from ephmon.model.pools.survey import NamespaceSurvey
    from ephmon.model.rules import Rules, Threshold, Thresholds

MOST_JUDGED = 1_000
"""So many pools of a namespace are judged at a poll, or twice `max_active` if that is more: the fullest ones.

Those whose alerts are not inactive are judged besides.

They cost some 10 microseconds each; only blocked ports or a very low threshold bring more of them near one.
"""
MOST_FAILING = 10
"""Pools that are not scarce, but toward which connect() failed: so many alert at once."""
MOST_NAMED = 5
"""Pools that EphmonPortsBlocked names."""
TAKE_OVER_MARGIN = 0.05
"""EphmonPortsBlocked stands for a pool that fires by itself only where its own share is smaller by this, so that the
two do not take turns when the shares are about equal."""

FORECAST_SECONDS = 60.0
"""A forecast starts to count here. A ramp that takes 10 minutes is warned of by the thresholds 3 minutes before its
end; one that takes a minute leaves them seconds, and that is what the forecast is for."""
FORECAST_CLEAR_SECONDS = 120.0
FORECAST_UTILISATION = 0.5
"""A pool that is emptier has room for a burst, and its forecast rests on what it did while it was nearly empty."""
FORECAST_CLEAR_UTILISATION = 0.45
FORECAST_FOR_SECONDS = 4.0
"""Two polls at the default interval have to agree, since a forecast errs most where a load changes. It is less than the
interval, because every other time they are some milliseconds closer together, and a third would be waited for."""


def after_full_poll(
    surveys: Sequence[NamespaceSurvey],
    previous: Alerts,
    rules: Rules,
    at: Moment,
    *,
    followed: Mapping[PoolKey, Followed] = MappingProxyType({}),
    exhaustions: Sequence[RecentFailures] | None = None,
) -> Alerts:
    """Return the alerts after a poll that read everything, but for protocols that are missing.

    Args:
        surveys: The pools of each namespace.
        previous: The alerts before.
        rules: What is in force now.
        at: When the poll was.
        followed: Where pools are heading, for those of which that is known.
        exhaustions: Pools of which connect() calls failed; of namespaces that are watched only. None if nobody counts.
    """
    observations: dict[AlertKey, Observation] = {}
    for one in surveys:
        netns = one.namespace.netns
        failed = [recent for recent in exhaustions or () if recent.key.netns == netns]
        ahead = _seconds_ahead(followed, netns)
        asked = [key.pool for key in previous.states if key.pool and key.netns == netns]
        pools = _near(one, [*asked, *ahead, *(recent.key for recent in failed)], rules)
        share = _blocked_share(one.ports.blocked, one.usable) if one.ports else None
        namespace = _Namespace(netns, share, previous, rules.thresholds)
        observations |= namespace.of_pools(pools.values(), is_full=True)
        observations |= namespace.of_forecasts((pools[key], seconds) for key, seconds in ahead.items() if key in pools)
        observations |= namespace.of_exhaustions(failed, pools, at)
    read = {one.namespace.netns: {pools.kind for pools in one.pool_sets} for one in surveys}

    def looked_at(key: AlertKey) -> bool:
        if key == SUMMARY:
            return not any(one.namespace.missing for one in surveys)
        if key.name is AlertName.CONNECT_EXHAUSTIONS:
            return exhaustions is not None
        kind = key.pool.kind if key.pool else PoolKind.TCP_CONNECT
        return key.netns not in read or kind in read[key.netns]  # a namespace that is not there any more has no pools

    return step(previous, observations, looked_at, at, rules.max_active)


def after_narrow_poll(
    pools: Iterable[Pool],
    previous: Alerts,
    rules: Rules,
    at: Moment,
    *,
    exhaustions: Iterable[RecentFailures] = (),
) -> Alerts:
    """Return the alerts after a poll that read these tcp_connect pools alone; what blocks ports is as known before.

    Of `exhaustions` those of the pools that were read are judged.
    """
    observations: dict[AlertKey, Observation] = {}
    by_netns: dict[str, dict[PoolKey, Pool]] = {}
    for pool in pools:
        by_netns.setdefault(pool.key.netns, {})[pool.key] = pool
    for netns, found in by_netns.items():
        one = next(iter(found.values()))
        namespace = _Namespace(netns, _blocked_share(one.blocked, one.usable), previous, rules.thresholds)
        observations |= namespace.of_pools(found.values(), is_full=False)
        observations |= namespace.of_exhaustions((recent for recent in exhaustions if recent.key in found), found, at)
    return step(previous, observations, lambda _: False, at, rules.max_active)


class _Namespace(NamedTuple):
    """What the pools of one namespace are judged by."""

    netns: str
    blocked_share: float | None
    """None where TCP could not be read."""
    previous: Alerts
    thresholds: Thresholds

    @property
    def _blocked(self) -> AlertKey:
        return AlertKey(AlertName.PORTS_BLOCKED, self.netns)

    def of_pools(self, pools: Iterable[Pool], *, is_full: bool) -> dict[AlertKey, Observation]:
        """Judge the utilisation of pools, and the blocked share with those that it stands for."""
        observations = {}
        stood_for = []
        for pool in pools:
            key = AlertKey(AlertName.POOL_NEAR_EXHAUSTION, self.netns, pool.key)
            judgements = _judged(pool.utilisation, self.thresholds.of(pool.key))
            if self._stands_for(pool):
                fires_by_itself = self.previous.is_firing(key) and not self.previous.is_firing(self._blocked)
                # In the band, what is told already is no reason to start: a share that wanders around `clear` would
                # start and end the alert again and again.
                if not fires_by_itself or self._is_above_band():
                    stood_for.append((pool, _as_it_fires(judgements, self.previous.states.get(key))))
                if not fires_by_itself:
                    continue  # one that does goes on until the alert that stands for it fires
            observations[key] = Observation(value=pool.utilisation, judgements=judgements, pools=(pool,))
        return observations | self._of_share(stood_for, is_full=is_full)

    def of_forecasts(self, forecasts: Iterable[tuple[Pool, float]]) -> dict[AlertKey, Observation]:
        """Judge how soon pools run out, but for those of which there is an alert already."""
        observations = {}
        for pool, seconds in forecasts:
            key = AlertKey(AlertName.POOL_EXHAUSTION_FORECAST, self.netns, pool.key)
            if not self._fires_now(pool):
                judgement = _judged_ahead(pool, seconds, self.previous.states.get(key))
                observations[key] = Observation(value=seconds, judgements={Severity.WARNING: judgement}, pools=(pool,))
        return observations

    def of_exhaustions(
        self, recent: Iterable[RecentFailures], pools: Mapping[PoolKey, Pool], at: Moment
    ) -> dict[AlertKey, Observation]:
        """Judge the failed connect() calls; what failed too long ago is left out, and so ends."""
        observations = {}
        for one in self._foremost(recent, pools, at):
            pool = pools.get(one.key)
            # Between the severities, so that a pool which empties meanwhile does not take the alert up and down.
            critical = Signal.REACHED if self._is_scarce(pool) else Signal.BETWEEN
            observations[AlertKey(AlertName.CONNECT_EXHAUSTIONS, self.netns, one.key)] = Observation(
                value=one.count,
                judgements={Severity.CRITICAL: Judgement(critical), Severity.WARNING: Judgement(Signal.REACHED)},
                pools=() if pool is None else (pool,),
                call=one.call,
            )
        return observations

    def _foremost(
        self, recent: Iterable[RecentFailures], pools: Mapping[PoolKey, Pool], at: Moment
    ) -> list[RecentFailures]:
        """Return the failures that may alert: of scarce pools all, of others a few, those that alert already first.

        Any user can make calls fail toward any number of destinations, by a port range of the socket's own.
        """
        lately = [one for one in recent if at.monotonic - one.last_at < QUIET_SECONDS]
        scarce = [one for one in lately if self._is_scarce(pools.get(one.key))]
        alerting = {key.pool for key in self.previous.states if key.name is AlertName.CONNECT_EXHAUSTIONS}
        others = sorted(
            (one for one in lately if one not in scarce), key=lambda one: (one.key not in alerting, -one.count, one.key)
        )
        return [*scarce, *others[:MOST_FAILING]]

    def _is_in_band(self) -> bool:
        """Tell whether so many ports are blocked that an alert of them would go on firing."""
        return self.blocked_share is not None and self.blocked_share >= self.thresholds.warning.clear

    def _is_above_band(self) -> bool:
        """Tell whether so many ports are blocked that an alert of them starts for that alone."""
        return self.blocked_share is not None and self.blocked_share >= self.thresholds.warning.utilisation

    def _stands_for(self, pool: Pool) -> bool:
        """Tell whether the blocked ports are the larger part of what the pool cannot get, and are many."""
        if self.blocked_share is None or not self._is_in_band() or pool.key.kind != PoolKind.TCP_CONNECT:
            return False
        own_share = (pool.in_use - pool.reusable) / pool.usable if pool.usable else 0.0
        fires = self.previous.is_firing(AlertKey(AlertName.POOL_NEAR_EXHAUSTION, self.netns, pool.key))
        return own_share + fires * TAKE_OVER_MARGIN < self.blocked_share

    def _of_share(
        self, stood_for: Iterable[tuple[Pool, dict[Severity, Judgement]]], *, is_full: bool
    ) -> dict[AlertKey, Observation]:
        if self.blocked_share is None:
            return {}
        pools = {pool.key: pool for pool, _ in stood_for}
        judgements = [judgements for _, judgements in stood_for]
        general = {Severity.CRITICAL: self.thresholds.critical, Severity.WARNING: self.thresholds.warning}
        if is_full:
            judgements.append(_judged(self.blocked_share, general))
        else:
            before = self.previous.states.get(self._blocked)
            pools = {pool.key: pool for pool in (before.pools if before else ())} | pools
        merged = {severity: _worst(one[severity] for one in judgements) for severity in general if judgements}
        if not is_full:
            merged = {severity: worst for severity, worst in merged.items() if worst.signal is Signal.REACHED}
        if not merged:
            return {}
        named = tuple(nsmallest(MOST_NAMED, pools.values(), key=worst_first))
        return {self._blocked: Observation(value=self.blocked_share, judgements=merged, pools=named)}

    def _fires_now(self, pool: Pool) -> bool:
        key = AlertKey(AlertName.POOL_NEAR_EXHAUSTION, self.netns, pool.key)
        is_stood_for = self._stands_for(pool) and self.previous.is_firing(self._blocked)
        return is_stood_for or self.previous.is_firing(key)

    def _is_scarce(self, pool: Pool | None) -> bool:
        """Tell whether the pool, or the share of ports that nobody can connect from, is above its warning threshold."""
        if self._is_above_band():
            return True
        if pool is None:
            return False
        return pool.utilisation >= self.thresholds.of(pool.key)[Severity.WARNING].utilisation


def _blocked_share(blocked: int, usable: int) -> float:
    return blocked / usable if usable else 1.0


def _near(one: NamespaceSurvey, asked: Iterable[PoolKey], rules: Rules) -> dict[PoolKey, Pool]:
    """Return the pools that are near a threshold, and those that are asked for, exist and are not ignored."""
    lowest = min(threshold.clear for threshold in _every_threshold(rules.thresholds))
    number = max(MOST_JUDGED, 2 * rules.max_active)
    near = one.worst(rules.listing.ignore_destinations, number=number, at_least=lowest)
    found = {pool.key: pool for pool in (entry.pools.pool(entry.key) for entry in near)}
    for key in asked:
        if key not in found and (pool := one.find(key, rules.listing.ignore_destinations)) is not None:
            found[key] = pool
    return found


def _seconds_ahead(followed: Mapping[PoolKey, Followed], netns: str) -> dict[PoolKey, float]:
    """Return when pools of the namespace run out, for those that do so soon enough to matter."""
    forecasts = ((key, one.forecast) for key, one in followed.items() if key.netns == netns)
    known = ((key, forecast.seconds_to_exhaustion) for key, forecast in forecasts if forecast is not None)
    return {key: seconds for key, seconds in known if seconds is not None and seconds < FORECAST_CLEAR_SECONDS}


def _every_threshold(thresholds: Thresholds) -> Iterator[Threshold]:
    special = chain.from_iterable((override.warning, override.critical) for override in thresholds.overrides)
    return (threshold for threshold in (thresholds.warning, thresholds.critical, *special) if threshold is not None)


def _judged(value: float, thresholds: Mapping[Severity, Threshold]) -> dict[Severity, Judgement]:
    return {severity: _held_against(value, threshold) for severity, threshold in thresholds.items()}


def _held_against(value: float, threshold: Threshold) -> Judgement:
    if value >= threshold.utilisation:
        signal = Signal.REACHED
    else:
        signal = Signal.BETWEEN if value >= threshold.clear else Signal.BELOW
    return Judgement(signal, threshold.for_seconds)


def _judged_ahead(pool: Pool, seconds: float, alert: Alert | None) -> Judgement:
    """Return what a forecast says; one whose pool has not filled further since the last poll is as good as refuted."""
    is_rising = alert is None or all(pool.utilisation > before.utilisation for before in alert.pools)
    if seconds < FORECAST_SECONDS and pool.utilisation >= FORECAST_UTILISATION and is_rising:
        signal = Signal.REACHED
    else:
        is_near = seconds < FORECAST_CLEAR_SECONDS and pool.utilisation >= FORECAST_CLEAR_UTILISATION
        signal = Signal.BETWEEN if is_near else Signal.BELOW
    return Judgement(signal, FORECAST_FOR_SECONDS)


def _as_it_fires(judgements: Mapping[Severity, Judgement], alert: Alert | None) -> dict[Severity, Judgement]:
    """Return the judgements for the alert that stands for a pool: what fires in its band is as bad as it was."""
    return {
        severity: judgement._replace(signal=Signal.REACHED)
        if alert is not None and judgement.signal is Signal.BETWEEN and alert.fires_as(severity)
        else judgement
        for severity, judgement in judgements.items()
    }


def _worst(judgements: Iterable[Judgement]) -> Judgement:
    """Return the worst signal, with the shortest `for` of those that say so."""
    return max(judgements, key=lambda judgement: (judgement.signal, -judgement.for_seconds))
