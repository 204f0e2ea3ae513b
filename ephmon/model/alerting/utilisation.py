"""EphmonPoolNearExhaustion and EphmonPortsBlocked: how full pools are, by themselves and by what blocks ports for all.

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
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ephmon.model.alerting.blocked import pools_to_name
from ephmon.model.alerting.judged_namespace import OVER, JudgedNamespace, judge_ratio
from ephmon.model.alerting.state_machine import AlertKey, AlertName, Judgement, Observation, Signal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ephmon.model.alerting.state_machine import Alert
    from ephmon.model.alerting.thresholds import Severity, Threshold
    from ephmon.model.pools.kinds import Pool


def observe_pools(namespace: JudgedNamespace, pools: Iterable[Pool], *, is_full: bool) -> dict[AlertKey, Observation]:
    """Judge the utilisation of pools, and the blocked ports together with the pools that they cover."""
    previous = namespace.previous
    observations = {}
    covered = []
    for pool in pools:
        key = AlertKey(AlertName.POOL_NEAR_EXHAUSTION, namespace.netns, pool.key)
        judgements = _judge_utilisation(pool.utilisation, namespace.thresholds.of(pool.key), pool.proven_utilisation)
        if namespace.is_covered(pool):
            fires_by_itself = previous.is_firing(key) and not previous.is_firing(namespace.blocked_key)
            # Below the threshold, an alert that fires already is no reason to start another: a blocked share that
            # wavers around `clear` would start and end the alert of blocked ports again and again.
            if not fires_by_itself or namespace.is_blocked_share_urgent():
                covered.append((pool, _keeping_what_fires(judgements, previous.states.get(key))))
            # An alert of the pool goes on until the one that covers it fires, so that there is always one.
            if not fires_by_itself:
                if is_full and key in previous.states:
                    observations[key] = Observation(value=pool.utilisation, judgements=OVER, pools=(pool,))
                continue
        observations[key] = Observation(value=pool.utilisation, judgements=judgements, pools=(pool,))
    return observations | _of_blocked_ports(namespace, covered, is_full=is_full)


def _of_blocked_ports(
    namespace: JudgedNamespace, covered: Iterable[tuple[Pool, dict[Severity, Judgement]]], *, is_full: bool
) -> dict[AlertKey, Observation]:
    if namespace.blocked is None:
        return {}
    pools = {pool.key: pool for pool, _ in covered}
    judgements = [judgements for _, judgements in covered]
    general = namespace.thresholds.general()
    if is_full:
        judgements.append(_judge_utilisation(namespace.blocked.share, general))
    else:
        before = namespace.previous.states.get(namespace.blocked_key)
        pools = {pool.key: pool for pool in (before.pools if before else ())} | pools
    merged = {severity: _worst(one[severity] for one in judgements) for severity in general if judgements}
    if not is_full:
        merged = {severity: worst for severity, worst in merged.items() if worst.signal is Signal.REACHED}
    if not merged:
        return {}
    observation = Observation(value=namespace.blocked.share, judgements=merged, pools=pools_to_name(pools.values()))
    return {namespace.blocked_key: observation}


def _judge_utilisation(
    value: float, thresholds: Mapping[Severity, Threshold], lasting: float = 0.0
) -> dict[Severity, Judgement]:
    return {severity: judge_ratio(value, threshold, lasting) for severity, threshold in thresholds.items()}


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
