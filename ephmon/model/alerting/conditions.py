"""The conditions: what a poll says of each alert.

Pools and thresholds in, observations for `ephmon.model.alerting.state_machine` out.

EphmonPoolNearExhaustion
    The utilisation ratio of a pool reached a threshold of the first override that matches the pool, or else a general
    one. Every pool is judged, listed or not, even if it holds few ports: in a range of five ports, or where most ports
    are blocked, the last two matter. Only ignored destinations are not judged.
EphmonPortsBlocked
    The share of the usable ports that are blocked for every connect() reached a general threshold. One program that
    binds many ports lifts all tcp_connect pools at once. So this alert covers the pools whose own share is smaller
    than the blocked one (`ephmon.model.alerting.blocked`): it takes the severity of the worst of them and names the
    worst five. Between `clear` and the threshold of the warning it starts as soon as a pool that it covers, and that
    does not fire yet, reaches a threshold. Where no port is usable, all are blocked.
EphmonPoolExhaustionForecast
    The pool is more than half full, runs out within a minute at its present rate, and fires by no threshold yet.
EphmonConnectExhaustions
    The kernel failed a connect() that found no port. As long as there is doubt, the estimate of the pool is its lower
    bound (`ephmon.model.failures.doubted_pools`). The alert is critical only where the pool, or the blocked share, is
    above its warning threshold: a socket with a port range of its own runs out in an empty pool, and any user can make
    one. Calls of one user toward many pools that are nearly empty are one alert, which names the user.
EphmonConnectSlow
    The searches of connect() take more than a share of a core (`ephmon.model.pools.connect_search`), by the rate and by
    the time for each port that were measured. Nothing fails, so it is a warning.

Only what was read is judged: without TCP there is no observation of TCP pools, and their alerts stay as they are. A
narrow poll judges the pools that it read. It knows no new blocked ports, so it can only make EphmonPortsBlocked worse.
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
    UserFailures,
    step,
)
from ephmon.model.alerting.thresholds import Severity, Threshold
from ephmon.model.failures.recent import QUIET_SECONDS
from ephmon.model.pools.connect_search import MANY_PORTS
from ephmon.model.pools.kinds import PoolKind, share_of_usable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ephmon.model.alerting.state_machine import Alert, Alerts, Moment
    from ephmon.model.alerting.thresholds import Thresholds
    from ephmon.model.failures.recent import RecentFailures
    from ephmon.model.forecast.forecast import Forecast
    from ephmon.model.pools.kinds import Pool, PoolKey
    from ephmon.model.pools.survey import NamespaceSurvey
    from ephmon.model.rules import Rules

MOST_JUDGED = 1_000
"""So many pools of a namespace are judged at most, the fullest ones; the daemon judges those with an alert besides.

The daemon takes twice `max_active` if that is more. One pool takes some 0.08 ms of CPU, so 1,000 take about what
`poll.cpu_budget` allows one poll by default. `ephmon check` could judge more, but would then find what the daemon does
not. Only blocked ports or a very low threshold bring more pools near a threshold.
"""
MOST_FAILING = 10
"""At most so many alerts of failed calls toward pools that are not full, of each namespace."""
MOST_ALONE = 3
"""A user whose calls fail toward more pools than this, all of them nearly empty, has one alert for all of them."""
FEW_PORTS = 10
"""A pool that uses fewer ports is nearly empty: hardly anybody draws from it but whoever failed."""
TAKE_OVER_MARGIN = 0.05
"""EphmonPortsBlocked takes a pool over whose own alert fires only where blocked ports take so much more of it than its
own connections. Else the two alerts would take turns while both shares are about equal."""

FORECAST_SECONDS = 60.0
"""A pool has to run out within this time. If a pool fills within 10 minutes, the thresholds warn 3 minutes before its
end. If it fills within one minute, they warn seconds before it, and then the forecast is earlier."""
FORECAST_CLEAR_SECONDS = 120.0
FORECAST_UTILISATION = 0.5
"""An emptier pool has room for a burst, and its forecast only knows what it did while it was nearly empty."""
FORECAST_CLEAR_UTILISATION = 0.45
SEARCH_FOR_SECONDS = 10.0
"""The rate is an average over polls, and a burst that is over in a moment needs no alert."""
SEARCH_CLEAR = 0.5
"""The alert of slow searches ends below this part of where it starts, because the rate of a load wavers."""
FORECAST_FOR_SECONDS = 4.0
"""Two polls at the default interval have to agree, because a forecast errs most where a load changes. This is less than
the interval: half of the time two polls are some milliseconds closer together, and a third poll would be needed."""


def judge_full_poll(
    surveys: Sequence[NamespaceSurvey],
    previous: Alerts,
    rules: Rules,
    at: Moment,
    *,
    forecasts: Mapping[PoolKey, Forecast] = MappingProxyType({}),
    exhaustions: Sequence[RecentFailures] | None = None,
    search_shares: Mapping[PoolKey, tuple[Pool, float]] = MappingProxyType({}),
) -> Alerts:
    """Return the alerts after a poll that read everything but missing protocols.

    Args:
        surveys: The pools of each namespace.
        previous: The alerts before the poll.
        rules: The rules in force now.
        at: When the poll was.
        forecasts: Of the pools that have one.
        exhaustions: The pools toward which connect() failed lately; None if failed calls are not counted.
        search_shares: Pools with the share of a core that their searches take.
    """
    observations: dict[AlertKey, Observation] = {}
    for one in surveys:
        netns = one.namespace.netns
        failed = [recent for recent in exhaustions or () if recent.key.netns == netns]
        ahead = _seconds_to_exhaustion(forecasts, netns)
        alerting = [key.pool for key in previous.states if key.pool and key.netns == netns]
        pools = _pools_to_judge(one, [*alerting, *ahead, *(recent.key for recent in failed)], rules)
        namespace = _Namespace(netns, BlockedPorts.of_namespace(one), previous, rules.thresholds)
        observations |= namespace.of_pools(pools.values(), is_full=True)
        observations |= namespace.of_forecasts((pools[key], seconds) for key, seconds in ahead.items() if key in pools)
        observations |= namespace.of_exhaustions(failed, pools, at, is_full=True)
    observations |= _of_searches(search_shares, rules.connect_search_share)
    read = {one.namespace.netns: {pools.kind for pools in one.pool_sets} for one in surveys}

    def looked_at(key: AlertKey) -> bool:
        if key == SUMMARY:
            return not any(one.namespace.missing for one in surveys)
        if key.name is AlertName.CONNECT_EXHAUSTIONS:
            return exhaustions is not None
        kind = key.pool.kind if key.pool else PoolKind.TCP_CONNECT
        return key.netns not in read or kind in read[key.netns]  # a namespace that is gone has no pools

    return step(previous, observations, looked_at, at, rules.max_active)


def judge_narrow_poll(
    pools: Iterable[Pool],
    previous: Alerts,
    rules: Rules,
    at: Moment,
    *,
    exhaustions: Iterable[RecentFailures] = (),
) -> Alerts:
    """Return the alerts after a poll that read only some tcp_connect pools, which know the blocked ports from before.

    Args:
        pools: The pools that were read.
        previous: The alerts before the poll.
        rules: The rules in force now.
        at: When the poll was.
        exhaustions: The pools toward which connect() failed lately; only those that were read are judged.
    """
    observations: dict[AlertKey, Observation] = {}
    by_netns: dict[str, dict[PoolKey, Pool]] = {}
    for pool in pools:
        by_netns.setdefault(pool.key.netns, {})[pool.key] = pool
    for netns, found in by_netns.items():
        blocked = BlockedPorts.behind(next(iter(found.values())))
        namespace = _Namespace(netns, blocked, previous, rules.thresholds)
        observations |= namespace.of_pools(found.values(), is_full=False)
        failed = [recent for recent in exhaustions if recent.key in found]
        observations |= namespace.of_exhaustions(failed, found, at, is_full=False)
    return step(previous, observations, lambda _: False, at, rules.max_active)


_COVERED_BY_BLOCKED_PORTS = (AlertName.POOL_NEAR_EXHAUSTION, AlertName.POOL_EXHAUSTION_FORECAST)


def is_covered(alert: Alert, alerts: Alerts) -> bool:
    """Tell whether an alert of a pool ended because EphmonPortsBlocked fires and now covers the pool."""
    if alert.phase is not Phase.RESOLVED or alert.key.name not in _COVERED_BY_BLOCKED_PORTS:
        return False
    blocked_ports_fire = alerts.is_firing(AlertKey(AlertName.PORTS_BLOCKED, alert.key.netns))
    return blocked_ports_fire and any(BlockedPorts.behind(pool).outweigh(pool) for pool in alert.pools)


_OVER = {severity: Judgement(Signal.BELOW) for severity in Severity}
"""The judgements of an alert that has to end, whatever its figures are."""


class _Namespace(NamedTuple):
    """What it takes to judge the pools of one namespace."""

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
            judgements = _judge_utilisation(pool.utilisation, self.thresholds.of(pool.key), pool.proven_utilisation)
            if self._is_covered(pool):
                fires_by_itself = self.previous.is_firing(key) and not self.previous.is_firing(self._blocked_key)
                # Below the threshold, an alert that fires already is no reason to start another: a blocked share that
                # wavers around `clear` would start and end the alert of blocked ports again and again.
                if not fires_by_itself or self._is_blocked_share_urgent():
                    covered.append((pool, _keeping_what_fires(judgements, self.previous.states.get(key))))
                # An alert of the pool goes on until the one that covers it fires, so that there is always one.
                if not fires_by_itself:
                    if is_full and key in self.previous.states:
                        observations[key] = Observation(value=pool.utilisation, judgements=_OVER, pools=(pool,))
                    continue
            observations[key] = Observation(value=pool.utilisation, judgements=judgements, pools=(pool,))
        return observations | self._of_blocked_ports(covered, is_full=is_full)

    def of_forecasts(self, forecasts: Iterable[tuple[Pool, float]]) -> dict[AlertKey, Observation]:
        """Judge how soon pools run out, except pools that have an alert already."""
        observations = {}
        for pool, seconds in forecasts:
            key = AlertKey(AlertName.POOL_EXHAUSTION_FORECAST, self.netns, pool.key)
            judgement = _judge_forecast(pool, seconds, self.previous.states.get(key))
            judgements = _OVER if self._has_an_alert_already(pool) else {Severity.WARNING: judgement}
            observations[key] = Observation(value=seconds, judgements=judgements, pools=(pool,))
        return observations

    def of_exhaustions(
        self, recent: Iterable[RecentFailures], pools: Mapping[PoolKey, Pool], at: Moment, *, is_full: bool
    ) -> dict[AlertKey, Observation]:
        """Judge the failed connect() calls; calls that failed too long ago are left out, so their alerts end."""
        lately = [one for one in recent if at.monotonic - one.last_at < QUIET_SECONDS]
        of_users = self._failures_of_single_users(lately, pools)
        # A narrow poll sees some of the pools, so it starts this alert and does not change its figures.
        observations = self._of_users(of_users) if is_full or not self.previous.is_firing(self._users_key) else {}
        folded = {one.key for failures in of_users.values() for one in failures}
        for one in self._failures_to_judge([one for one in lately if one.key not in folded], pools):
            pool = pools.get(one.key)
            key = AlertKey(AlertName.CONNECT_EXHAUSTIONS, self.netns, one.key)
            observations[key] = Observation(
                value=one.count,
                judgements=self._judge_failures(
                    is_scarce=self._is_scarce(pool), is_settled=self._is_settled(key, pool)
                ),
                pools=() if pool is None else (pool,),
                call=one.call,
            )
        return observations

    @staticmethod
    def _judge_failures(*, is_scarce: bool, is_settled: bool = False) -> dict[Severity, Judgement]:
        # BETWEEN, not BELOW: an alert that was critical stays so while its pool empties and fills again.
        roomy = Signal.BELOW if is_settled else Signal.BETWEEN
        critical = Signal.REACHED if is_scarce else roomy
        return {Severity.CRITICAL: Judgement(critical), Severity.WARNING: Judgement(Signal.REACHED)}

    def _is_settled(self, key: AlertKey, pool: Pool | None) -> bool:
        """Tell whether the pool of an alert was in doubt at the poll before, and is not any more."""
        before = self.previous.states.get(key)
        was_doubted = before is not None and any(one.is_doubted for one in before.pools)
        return was_doubted and pool is not None and not pool.is_doubted

    @property
    def _users_key(self) -> AlertKey:
        return AlertKey(AlertName.CONNECT_EXHAUSTIONS, self.netns)

    def _failures_of_single_users(
        self, lately: Iterable[RecentFailures], pools: Mapping[PoolKey, Pool]
    ) -> dict[int | None, list[RecentFailures]]:
        """Return the failures that one alert stands for: by user, toward pools that hardly anybody else draws from.

        Only of users whose calls fail toward many such pools, and of those that the alert has named already.
        """
        by_user: dict[int | None, list[RecentFailures]] = {}
        for one in lately:
            pool = pools.get(one.key)
            is_nearly_empty = pool is None or pool.in_use < FEW_PORTS
            if is_nearly_empty and len(one.uids) == 1 and not self._is_full_by_itself(pool):
                (uid,) = one.uids
                by_user.setdefault(uid, []).append(one)
        before = self.previous.states.get(self._users_key)
        named = {user.uid for user in before.users} if before and before.phase is Phase.FIRING else set()
        return {uid: ones for uid, ones in by_user.items() if len(ones) > MOST_ALONE or uid in named}

    def _of_users(self, failures: Mapping[int | None, list[RecentFailures]]) -> dict[AlertKey, Observation]:
        if not failures:
            return {}
        users = sorted(
            (UserFailures(uid, len(ones)) for uid, ones in failures.items()), key=lambda user: -user.destinations
        )
        latest = max(failures[users[0].uid], key=lambda one: one.last_at)
        observation = Observation(
            value=sum(user.destinations for user in users),
            judgements=self._judge_failures(is_scarce=self._is_blocked_share_urgent()),
            call=latest.call,
            users=tuple(users),
        )
        return {self._users_key: observation}

    def _failures_to_judge(
        self, lately: Iterable[RecentFailures], pools: Mapping[PoolKey, Pool]
    ) -> list[RecentFailures]:
        """Return the failures that may alert: all toward scarce pools, and a few of the others.

        Those that alert already go first. The others are bounded, because any user can make calls fail toward any
        number of destinations: a socket may have a port range of its own (IP_LOCAL_PORT_RANGE).
        """
        lately = list(lately)
        scarce = [one for one in lately if self._is_scarce(pools.get(one.key))]
        alerting = {key.pool for key in self.previous.states if key.name is AlertName.CONNECT_EXHAUSTIONS}
        others = sorted(
            (one for one in lately if one not in scarce), key=lambda one: (one.key not in alerting, -one.count, one.key)
        )
        return [*scarce, *others[:MOST_FAILING]]

    def _is_blocked_share_urgent(self) -> bool:
        """Tell whether the blocked share alone reaches a threshold, whatever the pools that it covers do."""
        return self.blocked is not None and self.blocked.severity(self.thresholds) is not None

    def _is_covered(self, pool: Pool) -> bool:
        """Tell whether EphmonPortsBlocked is to cover the pool."""
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
            judgements.append(_judge_utilisation(self.blocked.share, general))
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

    def _has_an_alert_already(self, pool: Pool) -> bool:
        key = AlertKey(AlertName.POOL_NEAR_EXHAUSTION, self.netns, pool.key)
        is_covered_now = self._is_covered(pool) and self.previous.is_firing(self._blocked_key)
        return is_covered_now or self.previous.is_firing(key)

    def _is_full_by_itself(self, pool: Pool | None) -> bool:
        """Tell whether the pool has reached its warning threshold, and not because blocked ports alone have reached it.

        Of a range of five ports, few are many.
        """
        if pool is None or not self._is_blocked_share_urgent():
            return pool is not None and self._is_scarce(pool)
        own_share = share_of_usable(pool.in_use - pool.reusable, pool.usable)
        return own_share >= self.thresholds.of(pool.key)[Severity.WARNING].utilisation

    def _is_scarce(self, pool: Pool | None) -> bool:
        """Tell whether the pool, or the blocked share, has reached its warning threshold."""
        if self._is_blocked_share_urgent():
            return True
        return pool is not None and self.thresholds.severity_at(pool.key, pool.utilisation) is not None


def _of_searches(shares: Mapping[PoolKey, tuple[Pool, float]], limit: float) -> dict[AlertKey, Observation]:
    """Judge the searches of connect()."""
    threshold = Threshold(utilisation=limit, for_seconds=SEARCH_FOR_SECONDS, clear=limit * SEARCH_CLEAR)
    return {
        AlertKey(AlertName.CONNECT_SLOW, key.netns, key): Observation(
            value=share, judgements={Severity.WARNING: _judge_ratio(share, threshold)}, pools=(pool,)
        )
        for key, (pool, share) in shares.items()
        if (pool.search_ports or 0) >= MANY_PORTS
    }


def _pools_to_judge(one: NamespaceSurvey, besides: Iterable[PoolKey], rules: Rules) -> dict[PoolKey, Pool]:
    """Return the pools that are near a threshold, and of the others `besides` those that exist and are not ignored."""
    number = max(MOST_JUDGED, 2 * rules.max_active)
    near = one.worst(rules.listing.ignore_destinations, number=number, at_least=rules.thresholds.lowest_clear())
    found = {pool.key: pool for pool in (entry.pools.pool(entry.key) for entry in near)}
    for key in besides:
        if key not in found and (pool := one.find(key, rules.listing.ignore_destinations)) is not None:
            found[key] = pool
    return found


def _seconds_to_exhaustion(forecasts: Mapping[PoolKey, Forecast], netns: str) -> dict[PoolKey, float]:
    """Return when pools of the namespace run out, in seconds; only those whose forecast may alert."""
    known = ((key, one.seconds_to_exhaustion) for key, one in forecasts.items() if key.netns == netns)
    return {key: seconds for key, seconds in known if seconds is not None and seconds < FORECAST_CLEAR_SECONDS}


def _judge_utilisation(
    value: float, thresholds: Mapping[Severity, Threshold], lasting: float = 0.0
) -> dict[Severity, Judgement]:
    return {severity: _judge_ratio(value, threshold, lasting) for severity, threshold in thresholds.items()}


def _judge_ratio(value: float, threshold: Threshold, lasting: float = 0.0) -> Judgement:
    """Return the judgement of a ratio; while `lasting` is not clear of the threshold, an alert that fires goes on.

    A pool does not recover by TIME_WAITs that the kernel gives back only if the peer uses timestamps, which nobody has
    seen.
    """
    if value >= threshold.utilisation:
        signal = Signal.REACHED
    else:
        signal = Signal.BETWEEN if max(value, lasting) >= threshold.clear else Signal.BELOW
    return Judgement(signal, threshold.for_seconds)


def _judge_forecast(pool: Pool, seconds: float, alert: Alert | None) -> Judgement:
    """Return the judgement of a forecast. It alerts only while the pool still fills from poll to poll."""
    is_rising = alert is None or all(pool.utilisation > before.utilisation for before in alert.pools)
    if seconds < FORECAST_SECONDS and pool.utilisation >= FORECAST_UTILISATION and is_rising:
        signal = Signal.REACHED
    else:
        is_near = seconds < FORECAST_CLEAR_SECONDS and pool.utilisation >= FORECAST_CLEAR_UTILISATION
        signal = Signal.BETWEEN if is_near else Signal.BELOW
    return Judgement(signal, FORECAST_FOR_SECONDS)


def _keeping_what_fires(judgements: Mapping[Severity, Judgement], alert: Alert | None) -> dict[Severity, Judgement]:
    """Return the judgements that a pool brings to the alert that covers it.

    A severity in which the pool's own alert fires stays reached until the pool is below `clear`, as it would alone.
    """
    return {
        severity: judgement._replace(signal=Signal.REACHED)
        if alert is not None and judgement.signal is Signal.BETWEEN and alert.fires_as(severity)
        else judgement
        for severity, judgement in judgements.items()
    }


def _worst(judgements: Iterable[Judgement]) -> Judgement:
    """Return the judgement with the worst signal; among equal signals the one with the shortest `for`."""
    return max(judgements, key=lambda judgement: (judgement.signal, -judgement.for_seconds))
