"""EphmonConnectExhaustions: the kernel failed a connect() that found no port.

As long as there is doubt, the estimate of the pool is its lower bound (`ephmon.model.failures.doubted_pools`). The
alert is critical only where the pool, or the blocked share, is above its warning threshold: a socket with a port range
of its own runs out in an empty pool, and any user can make one. Calls of one user toward many pools that are nearly
empty are one alert, which names the user.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ephmon.model.alerting.state_machine import (
    AlertKey,
    AlertName,
    Judgement,
    Observation,
    Phase,
    Signal,
    UserFailures,
)
from ephmon.model.alerting.thresholds import Severity
from ephmon.model.failures.recent import QUIET_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ephmon.model.alerting.judged_namespace import JudgedNamespace
    from ephmon.model.alerting.state_machine import Moment
    from ephmon.model.failures.recent import RecentFailures
    from ephmon.model.pools.kinds import Pool, PoolKey

MOST_FAILING = 10
"""At most so many alerts of failed calls toward pools that are not full, of each namespace."""
MOST_ALONE = 3
"""A user whose calls fail toward more pools than this, all of them nearly empty, has one alert for all of them."""
FEW_PORTS = 10
"""A pool that uses fewer ports is nearly empty: hardly anybody draws from it but whoever failed."""


def observe_failed_calls(
    namespace: JudgedNamespace,
    recent: Iterable[RecentFailures],
    pools: Mapping[PoolKey, Pool],
    at: Moment,
    *,
    is_full: bool,
) -> dict[AlertKey, Observation]:
    """Judge the failed connect() calls; calls that failed too long ago are left out, so their alerts end."""
    lately = [one for one in recent if at.monotonic - one.last_at < QUIET_SECONDS]
    of_users = _failures_of_single_users(namespace, lately, pools)
    # A narrow poll sees some of the pools, so it starts this alert and does not change its figures.
    may_change = is_full or not namespace.previous.is_firing(_users_key(namespace))
    observations = _of_users(namespace, of_users) if may_change else {}
    folded = {one.key for failures in of_users.values() for one in failures}
    for one in _failures_to_judge(namespace, [one for one in lately if one.key not in folded], pools):
        pool = pools.get(one.key)
        key = AlertKey(AlertName.CONNECT_EXHAUSTIONS, namespace.netns, one.key)
        observations[key] = Observation(
            value=one.count,
            judgements=_judge_failures(
                is_scarce=namespace.is_scarce(pool), is_settled=_is_settled(namespace, key, pool)
            ),
            pools=() if pool is None else (pool,),
            call=one.call,
        )
    return observations


def _judge_failures(*, is_scarce: bool, is_settled: bool = False) -> dict[Severity, Judgement]:
    # BETWEEN, not BELOW: an alert that was critical stays so while its pool empties and fills again.
    roomy = Signal.BELOW if is_settled else Signal.BETWEEN
    critical = Signal.REACHED if is_scarce else roomy
    return {Severity.CRITICAL: Judgement(critical), Severity.WARNING: Judgement(Signal.REACHED)}


def _is_settled(namespace: JudgedNamespace, key: AlertKey, pool: Pool | None) -> bool:
    """Tell whether the pool of an alert was in doubt at the poll before, and is not any more."""
    before = namespace.previous.states.get(key)
    was_doubted = before is not None and any(one.is_doubted for one in before.pools)
    return was_doubted and pool is not None and not pool.is_doubted


def _users_key(namespace: JudgedNamespace) -> AlertKey:
    return AlertKey(AlertName.CONNECT_EXHAUSTIONS, namespace.netns)


def _failures_of_single_users(
    namespace: JudgedNamespace, lately: Iterable[RecentFailures], pools: Mapping[PoolKey, Pool]
) -> dict[int | None, list[RecentFailures]]:
    """Return the failures that one alert stands for: by user, toward pools that hardly anybody else draws from.

    Only of users whose calls fail toward many such pools, and of those that the alert has named already.
    """
    by_user: dict[int | None, list[RecentFailures]] = {}
    for one in lately:
        pool = pools.get(one.key)
        is_nearly_empty = pool is None or pool.in_use < FEW_PORTS
        if is_nearly_empty and len(one.uids) == 1 and not namespace.is_full_by_itself(pool):
            (uid,) = one.uids
            by_user.setdefault(uid, []).append(one)
    before = namespace.previous.states.get(_users_key(namespace))
    named = {user.uid for user in before.users} if before and before.phase is Phase.FIRING else set()
    return {uid: ones for uid, ones in by_user.items() if len(ones) > MOST_ALONE or uid in named}


def _of_users(
    namespace: JudgedNamespace, failures: Mapping[int | None, list[RecentFailures]]
) -> dict[AlertKey, Observation]:
    if not failures:
        return {}
    users = sorted(
        (UserFailures(uid, len(ones)) for uid, ones in failures.items()), key=lambda user: -user.destinations
    )
    latest = max(failures[users[0].uid], key=lambda one: one.last_at)
    observation = Observation(
        value=sum(user.destinations for user in users),
        judgements=_judge_failures(is_scarce=namespace.is_blocked_share_urgent()),
        call=latest.call,
        users=tuple(users),
    )
    return {_users_key(namespace): observation}


def _failures_to_judge(
    namespace: JudgedNamespace, lately: Iterable[RecentFailures], pools: Mapping[PoolKey, Pool]
) -> list[RecentFailures]:
    """Return the failures that may alert: all toward scarce pools, and a few of the others.

    Those that alert already go first. The others are bounded, because any user can make calls fail toward any
    number of destinations: a socket may have a port range of its own (IP_LOCAL_PORT_RANGE).
    """
    lately = list(lately)
    scarce = [one for one in lately if namespace.is_scarce(pools.get(one.key))]
    alerting = {key.pool for key in namespace.previous.states if key.name is AlertName.CONNECT_EXHAUSTIONS}
    others = sorted(
        (one for one in lately if one not in scarce), key=lambda one: (one.key not in alerting, -one.count, one.key)
    )
    return [*scarce, *others[:MOST_FAILING]]
