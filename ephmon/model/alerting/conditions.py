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

from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from ephmon.model.alerting.blocked import BlockedPorts, pools_to_name
from ephmon.model.alerting.state_machine import (
    SUMMARY,
    AlertKey,
    AlertName,
    Judgement,
    Observation,
    Phase,
    Signal,
    step,
)
from ephmon.model.alerting.thresholds import Severity
from ephmon.model.failures.recent import QUIET_SECONDS
from ephmon.model.pools.kinds import PoolKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ephmon.model.alerting.state_machine import Alert, Alerts, Moment
    from ephmon.model.alerting.thresholds import Threshold, Thresholds
    from ephmon.model.failures.recent import RecentFailures
    from ephmon.model.forecast.forecast import Forecast
    from ephmon.model.pools.kinds import Pool, PoolKey
    from ephmon.model.pools.survey import NamespaceSurvey
    from ephmon.model.rules import Rules

MOST_JUDGED = 1_000
"""So many pools of a namespace are judged at a poll, or twice `max_active` if that is more: the fullest ones.

Those whose alerts are not inactive are judged besides.

They cost some 10 microseconds each; only blocked ports or a very low threshold bring more of them near one.
"""
MOST_FAILING = 10
"""Pools that are not scarce, but toward which connect() failed: so many alert at once."""
TAKE_OVER_MARGIN = 0.05
"""EphmonPortsBlocked takes a pool over whose own alert fires only where blocked ports take so much more of it than its
own connections. Else the two alerts would take turns while both shares are about equal."""

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
    forecasts: Mapping[PoolKey, Forecast] = MappingProxyType({}),
    exhaustions: Sequence[RecentFailures] | None = None,
) -> Alerts:
    """Return the alerts after a poll that read everything, but for protocols that are missing.

    Args:
        surveys: The pools of each namespace.
        previous: The alerts before.
        rules: What is in force now.
        at: When the poll was.
        forecasts: Where pools are heading, for those of which that is known.
        exhaustions: Pools of which connect() calls failed; of namespaces that are watched only. None if nobody counts.
    """
    observations: dict[AlertKey, Observation] = {}
    for one in surveys:
        netns = one.namespace.netns
        failed = [recent for recent in exhaustions or () if recent.key.netns == netns]
        ahead = _seconds_ahead(forecasts, netns)
        asked = [key.pool for key in previous.states if key.pool and key.netns == netns]
        pools = _near(one, [*asked, *ahead, *(recent.key for recent in failed)], rules)
        namespace = _Namespace(netns, BlockedPorts.of_namespace(one), previous, rules.thresholds)
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
        blocked = BlockedPorts.behind(next(iter(found.values())))
        namespace = _Namespace(netns, blocked, previous, rules.thresholds)
        observations |= namespace.of_pools(found.values(), is_full=False)
        observations |= namespace.of_exhaustions((recent for recent in exhaustions if recent.key in found), found, at)
    return step(previous, observations, lambda _: False, at, rules.max_active)


_COVERED_BY_BLOCKED_PORTS = (AlertName.POOL_NEAR_EXHAUSTION, AlertName.POOL_EXHAUSTION_FORECAST)


def is_covered(alert: Alert, alerts: Alerts) -> bool:
    """Tell whether an alert of a pool ended because EphmonPortsBlocked, which fires, speaks for the pool now."""
    if alert.phase is not Phase.RESOLVED or alert.key.name not in _COVERED_BY_BLOCKED_PORTS:
        return False
    blocked_ports_fire = alerts.is_firing(AlertKey(AlertName.PORTS_BLOCKED, alert.key.netns))
    return blocked_ports_fire and any(BlockedPorts.behind(pool).outweigh(pool) for pool in alert.pools)


_OVER = {severity: Judgement(Signal.BELOW) for severity in Severity}
"""What a poll says of an alert that ends whatever the figures are."""


class _Namespace(NamedTuple):
    """What the pools of one namespace are judged by."""

    netns: str
    blocked: BlockedPorts | None
    """None where TCP could not be read."""
    previous: Alerts
    thresholds: Thresholds

    @property
    def _blocked_key(self) -> AlertKey:
        return AlertKey(AlertName.PORTS_BLOCKED, self.netns)

    def of_pools(self, pools: Iterable[Pool], *, is_full: bool) -> dict[AlertKey, Observation]:
        """Judge the utilisation of pools, and the blocked ports together with the pools that they cover."""
        observations = {}
        covered = []
        for pool in pools:
            key = AlertKey(AlertName.POOL_NEAR_EXHAUSTION, self.netns, pool.key)
            judgements = _judged(pool.utilisation, self.thresholds.of(pool.key))
            if self._is_covered(pool):
                fires_by_itself = self.previous.is_firing(key) and not self.previous.is_firing(self._blocked_key)
                # In the band, an alert that fires already is no reason to start another: a share that wanders around
                # `clear` would start and end the alert of blocked ports again and again.
                if not fires_by_itself or self._blocked_ports_start():
                    covered.append((pool, _as_it_fires(judgements, self.previous.states.get(key))))
                # An alert of the pool goes on until the one that covers it fires, so that there is always one.
                if not fires_by_itself:
                    if is_full and key in self.previous.states:
                        observations[key] = Observation(value=pool.utilisation, judgements=_OVER, pools=(pool,))
                    continue
            observations[key] = Observation(value=pool.utilisation, judgements=judgements, pools=(pool,))
        return observations | self._of_blocked_ports(covered, is_full=is_full)

    def of_forecasts(self, forecasts: Iterable[tuple[Pool, float]]) -> dict[AlertKey, Observation]:
        """Judge how soon pools run out, but for those of which there is an alert already."""
        observations = {}
        for pool, seconds in forecasts:
            key = AlertKey(AlertName.POOL_EXHAUSTION_FORECAST, self.netns, pool.key)
            judgement = _judged_ahead(pool, seconds, self.previous.states.get(key))
            judgements = _OVER if self._fires_now(pool) else {Severity.WARNING: judgement}
            observations[key] = Observation(value=seconds, judgements=judgements, pools=(pool,))
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

    def _blocked_ports_start(self) -> bool:
        """Tell whether so many ports are blocked that an alert of them starts for that alone."""
        return self.blocked is not None and self.blocked.severity(self.thresholds) is not None

    def _is_covered(self, pool: Pool) -> bool:
        """Tell whether EphmonPortsBlocked is to speak for the pool."""
        if self.blocked is None:
            return False
        fires = self.previous.is_firing(AlertKey(AlertName.POOL_NEAR_EXHAUSTION, self.netns, pool.key))
        return self.blocked.covers(pool, self.thresholds, margin=TAKE_OVER_MARGIN if fires else 0.0)

    def _of_blocked_ports(
        self, covered: Iterable[tuple[Pool, dict[Severity, Judgement]]], *, is_full: bool
    ) -> dict[AlertKey, Observation]:
        if self.blocked is None:
            return {}
        pools = {pool.key: pool for pool, _ in covered}
        judgements = [judgements for _, judgements in covered]
        general = self.thresholds.general()
        if is_full:
            judgements.append(_judged(self.blocked.share, general))
        else:
            before = self.previous.states.get(self._blocked_key)
            pools = {pool.key: pool for pool in (before.pools if before else ())} | pools
        merged = {severity: _worst(one[severity] for one in judgements) for severity in general if judgements}
        if not is_full:
            merged = {severity: worst for severity, worst in merged.items() if worst.signal is Signal.REACHED}
        if not merged:
            return {}
        observation = Observation(value=self.blocked.share, judgements=merged, pools=pools_to_name(pools.values()))
        return {self._blocked_key: observation}

    def _fires_now(self, pool: Pool) -> bool:
        key = AlertKey(AlertName.POOL_NEAR_EXHAUSTION, self.netns, pool.key)
        is_covered_now = self._is_covered(pool) and self.previous.is_firing(self._blocked_key)
        return is_covered_now or self.previous.is_firing(key)

    def _is_scarce(self, pool: Pool | None) -> bool:
        """Tell whether the pool, or the share of ports that nobody can connect from, is above its warning threshold."""
        if self._blocked_ports_start():
            return True
        return pool is not None and self.thresholds.severity_at(pool.key, pool.utilisation) is not None


def _near(one: NamespaceSurvey, asked: Iterable[PoolKey], rules: Rules) -> dict[PoolKey, Pool]:
    """Return the pools that are near a threshold, and those that are asked for, exist and are not ignored."""
    number = max(MOST_JUDGED, 2 * rules.max_active)
    near = one.worst(rules.listing.ignore_destinations, number=number, at_least=rules.thresholds.lowest_clear())
    found = {pool.key: pool for pool in (entry.pools.pool(entry.key) for entry in near)}
    for key in asked:
        if key not in found and (pool := one.find(key, rules.listing.ignore_destinations)) is not None:
            found[key] = pool
    return found


def _seconds_ahead(forecasts: Mapping[PoolKey, Forecast], netns: str) -> dict[PoolKey, float]:
    """Return when pools of the namespace run out, for those that do so soon enough to matter."""
    known = ((key, one.seconds_to_exhaustion) for key, one in forecasts.items() if key.netns == netns)
    return {key: seconds for key, seconds in known if seconds is not None and seconds < FORECAST_CLEAR_SECONDS}


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
