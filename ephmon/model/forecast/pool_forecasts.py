"""What lies ahead of the listed pools: after each full poll their histories go on and are forecast anew.

Narrow polls add nothing to a history: they come at other distances, and what blocks ports is an older fact in them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ephmon.facts.addresses import packed_address
from ephmon.facts.socket_groups import SocketGroup
from ephmon.facts.sockets import NO_SOCKETS, TcpState
from ephmon.model.forecast.forecast import Forecast, History, Reading, forecast
from ephmon.model.forecast.release_schedule import NOTHING, Schedule, schedules_from, schedules_toward
from ephmon.model.pools.kinds import PoolKind
from ephmon.model.pools.tcp_connect import connect_key
from ephmon.model.pools.time_wait import TIME_WAIT_MS, may_be_reused, reusable_below_ms

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ephmon.facts.snapshot import Sysctls
    from ephmon.facts.socket_groups import ConnectKey
    from ephmon.model.pools.kinds import Pool, PoolKey
    from ephmon.model.pools.survey import NamespaceSurvey


class Followed(NamedTuple):
    """A pool's history with the latest poll in it, and what follows from it."""

    history: History
    forecast: Forecast | None


def follow(
    surveys: Sequence[NamespaceSurvey], pools: Sequence[Pool], previous: Mapping[PoolKey, History], now: float
) -> dict[PoolKey, Followed]:
    """Return what to keep and to tell of each of these pools; other histories end.

    Args:
        surveys: What the full poll read, of all namespaces.
        pools: The pools to follow.
        previous: The histories so far.
        now: Monotonic seconds.
    """
    followed = {}
    for one in surveys:
        mine = [pool for pool in pools if pool.key.netns == one.namespace.netns]
        for pool, reading in _readings(one, mine, now):
            history = previous.get(pool.key, History()).after(reading)
            followed[pool.key] = Followed(history, forecast(history, reading))
    return followed


def _readings(one: NamespaceSurvey, pools: Sequence[Pool], now: float) -> Iterator[tuple[Pool, Reading]]:
    table = one.namespace.tcp.connections if one.namespace.tcp else NO_SOCKETS
    connect_keys = {pool.key: own for pool in pools if (own := connect_key(pool.key)) is not None}
    sources = {pool.key: packed_address(pool.key.source) for pool in pools if pool.key.kind == PoolKind.TCP_BIND}
    toward, bound = schedules_toward(table, connect_keys.values()), schedules_from(table, frozenset(sources.values()))
    for pool in pools:
        schedule, reusable_after = NOTHING, None
        if own := connect_keys.get(pool.key):
            schedule, reusable_after = toward.get(own, NOTHING), _reusable_after(own, one.namespace.sysctls)
        elif source := sources.get(pool.key):
            schedule = _scaled(bound.get(source, NOTHING), pool.time_wait)
        yield pool, _reading(pool, now, schedule, reusable_after)


def _reading(pool: Pool, now: float, schedule: Schedule, reusable_after: float | None) -> Reading:
    return Reading(
        at=now,
        usable=pool.usable,
        capacity=pool.capacity,
        remaining=pool.remaining,
        held=pool.held,
        schedule=schedule,
        reusable_after=reusable_after,
        leaves_time_wait=pool.key.kind in (PoolKind.TCP_CONNECT, PoolKind.TCP_BIND),
    )


def _reusable_after(own: ConnectKey, sysctls: Sysctls) -> float | None:
    """Return the age in seconds from which a TIME_WAIT of the key is handed out again, None if it never is."""
    if not may_be_reused(SocketGroup(TcpState.TIME_WAIT, *own), sysctls):
        return None
    return (TIME_WAIT_MS - reusable_below_ms(sysctls)) / 1000


def _scaled(schedule: Schedule, ports: int) -> Schedule:
    """Return the schedule of so many ports: one that served several destinations is in it several times."""
    rows = sum(schedule)
    return tuple(number * ports / rows for number in schedule) if rows else NOTHING
