"""The conditions: what a poll says of each alert.

Pools and thresholds in, observations for `ephmon.model.alerting.state_machine` out. Each kind of condition has a module
of its own: `utilisation`, `forecasts`, `failed_calls` and `slow_searches`.

Only what was read is judged: without TCP there is no observation of TCP pools, and their alerts stay as they are. A
narrow poll judges the pools that it read. It knows no new blocked ports, so it can only make EphmonPortsBlocked worse.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from ephmon.model.alerting.blocked import BlockedPorts
from ephmon.model.alerting.failed_calls import observe_failed_calls
from ephmon.model.alerting.forecasts import observe_forecasts, seconds_to_exhaustion
from ephmon.model.alerting.judged_namespace import JudgedNamespace
from ephmon.model.alerting.slow_searches import observe_searches
from ephmon.model.alerting.state_machine import SUMMARY, AlertKey, AlertName, Observation, Phase, step
from ephmon.model.alerting.utilisation import observe_pools
from ephmon.model.pools.kinds import PoolKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ephmon.model.alerting.state_machine import Alert, Alerts, Moment
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
        if not one.namespace.may_alert:
            continue
        netns = one.namespace.netns
        failed = [recent for recent in exhaustions or () if recent.key.netns == netns]
        ahead = seconds_to_exhaustion(forecasts, netns)
        alerting = [key.pool for key in previous.states if key.pool and key.netns == netns]
        pools = _pools_to_judge(one, [*alerting, *ahead, *(recent.key for recent in failed)], rules)
        namespace = JudgedNamespace(netns, BlockedPorts.of_namespace(one), previous, rules.thresholds)
        observations |= observe_pools(namespace, pools.values(), is_full=True)
        observations |= observe_forecasts(
            namespace, ((pools[key], seconds) for key, seconds in ahead.items() if key in pools)
        )
        observations |= observe_failed_calls(namespace, failed, pools, at, is_full=True)
    observations |= observe_searches(search_shares, rules.connect_search_share)
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
        namespace = JudgedNamespace(netns, blocked, previous, rules.thresholds)
        observations |= observe_pools(namespace, found.values(), is_full=False)
        failed = [recent for recent in exhaustions if recent.key in found]
        observations |= observe_failed_calls(namespace, failed, found, at, is_full=False)
    return step(previous, observations, lambda _: False, at, rules.max_active)


_COVERED_BY_BLOCKED_PORTS = (AlertName.POOL_NEAR_EXHAUSTION, AlertName.POOL_EXHAUSTION_FORECAST)


def is_covered(alert: Alert, alerts: Alerts) -> bool:
    """Tell whether an alert of a pool ended because EphmonPortsBlocked fires and now covers the pool."""
    if alert.phase is not Phase.RESOLVED or alert.key.name not in _COVERED_BY_BLOCKED_PORTS:
        return False
    blocked_ports_fire = alerts.is_firing(AlertKey(AlertName.PORTS_BLOCKED, alert.key.netns))
    return blocked_ports_fire and any(BlockedPorts.behind(pool).outweigh(pool) for pool in alert.pools)


def _pools_to_judge(one: NamespaceSurvey, besides: Iterable[PoolKey], rules: Rules) -> dict[PoolKey, Pool]:
    """Return the pools that are near a threshold, and of the others `besides` those that exist and are not ignored."""
    number = max(MOST_JUDGED, 2 * rules.max_active)
    near = one.worst(rules.listing.ignore_destinations, number=number, at_least=rules.thresholds.lowest_clear())
    found = {pool.key: pool for pool in (entry.pools.pool(entry.key) for entry in near)}
    for key in besides:
        if key not in found and (pool := one.find(key, rules.listing.ignore_destinations)) is not None:
            found[key] = pool
    return found
