"""The forecasts of the listed pools: each full poll adds to their histories and forecasts them again.

A narrow poll adds nothing. It comes at other intervals, and it takes the blocked ports from the last full poll, so its
ports taken do not compare with those of full polls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ephmon.facts.addresses import packed_address
from ephmon.facts.bind_counts import SECONDS_OF_A_CELL, total
from ephmon.facts.socket_groups import SocketGroup
from ephmon.facts.sockets import NO_SOCKETS, TcpState
from ephmon.model.forecast.forecast import Forecast, forecast
from ephmon.model.forecast.history import History, PoolSample
from ephmon.model.forecast.release_schedule import (
    EMPTY_SCHEDULE,
    Schedule,
    schedule_of,
    schedules_from,
    schedules_toward,
)
from ephmon.model.pools.kinds import PoolKey, PoolKind
from ephmon.model.pools.tcp_connect import connect_key
from ephmon.model.pools.time_wait import reusable_after_ms

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from ephmon.facts.snapshot import Sysctls
    from ephmon.facts.socket_groups import ConnectKey
    from ephmon.model.pools.kinds import Pool
    from ephmon.model.pools.survey import NamespaceSurvey


class PoolForecasts(NamedTuple):
    """Where pools are heading, and what to remember of them for the next full poll."""

    forecasts: dict[PoolKey, Forecast]
    """Without the pools of which too few polls are known."""
    histories: dict[PoolKey, History]


def forecast_pools(
    surveys: Sequence[NamespaceSurvey], pools: Sequence[Pool], previous: Mapping[PoolKey, History], now: float
) -> PoolForecasts:
    """Return the forecasts and histories of these pools; the histories of all others end.

    Args:
        surveys: What the full poll read, of all namespaces.
        pools: The pools to forecast.
        previous: The histories so far.
        now: Monotonic seconds.
    """
    found = PoolForecasts({}, {})
    for survey in surveys:
        own = [pool for pool in pools if pool.key.netns == survey.namespace.netns]
        for key, sample in _samples(survey, own, now):
            history = found.histories[key] = previous.get(key, History()).after(sample)
            pool_forecast = forecast(history, sample)
            if pool_forecast is not None:
                found.forecasts[key] = pool_forecast
    return found


def _samples(survey: NamespaceSurvey, pools: Sequence[Pool], now: float) -> Iterator[tuple[PoolKey, PoolSample]]:
    """Yield what the poll saw of each pool of the namespace."""
    connect_keys = {pool.key: own for pool in pools if (own := connect_key(pool.key)) is not None}
    sources = {pool.key: packed_address(pool.key.source) for pool in pools if pool.key.kind == PoolKind.TCP_BIND}
    toward, bound = _schedules(survey, connect_keys.values(), frozenset(sources.values()))
    for pool in pools:
        schedule, reusable_after = EMPTY_SCHEDULE, None
        if own := connect_keys.get(pool.key):
            schedule = toward.get(own, EMPTY_SCHEDULE)
            reusable_after = _reusable_after(own, survey.namespace.sysctls, uses_timestamps=pool.peer_timestamps)
        elif source := sources.get(pool.key):
            schedule = _scaled(bound.get(source, EMPTY_SCHEDULE), pool.time_wait)
        yield pool.key, _sample(pool, now, schedule, reusable_after, survey.namespace.sysctls)


def _schedules(
    survey: NamespaceSurvey, keys: Collection[ConnectKey], sources: Collection[bytes]
) -> tuple[Mapping[ConnectKey, Schedule], Mapping[bytes, Schedule]]:
    """Return the schedules toward some destinations, and those of some local addresses."""
    if survey.namespace.binds is None:
        table = survey.namespace.tcp.connections if survey.namespace.tcp else NO_SOCKETS
        return schedules_toward(table, keys), schedules_from(table, sources)
    binds = survey.namespace.binds.table
    toward = {key: total(counts for _, counts in binds.sockets_of(key)).ends_in for key in keys}
    bound = {source: binds.time_waits_from(source) for source in sources}
    return (
        {key: schedule_of(cells, SECONDS_OF_A_CELL) for key, cells in toward.items()},
        {source: schedule_of(cells, SECONDS_OF_A_CELL) for source, cells in bound.items()},
    )


def _sample(pool: Pool, now: float, schedule: Schedule, reusable_after: float | None, sysctls: Sysctls) -> PoolSample:
    return PoolSample(
        at=now,
        usable=pool.usable,
        capacity=pool.capacity,
        remaining=pool.remaining,
        held=pool.held,
        schedule=schedule,
        reusable_after=reusable_after,
        leaves_time_wait=pool.key.kind in (PoolKind.TCP_CONNECT, PoolKind.TCP_BIND),
        most_time_wait=sysctls.tcp_max_tw_buckets,
    )


def _reusable_after(key: ConnectKey, sysctls: Sysctls, *, uses_timestamps: bool | None) -> float | None:
    """Return the age in seconds from which the kernel hands out a TIME_WAIT of the key again, None if it never does."""
    group = SocketGroup(TcpState.TIME_WAIT, *key)
    age_ms = reusable_after_ms(group, sysctls, uses_timestamps=uses_timestamps)
    return None if age_ms is None else age_ms / 1000


def _scaled(schedule: Schedule, ports: int) -> Schedule:
    """Return the schedule of so many ports; a port that served several destinations is in `schedule` several times."""
    rows = sum(schedule)
    return tuple(number * ports / rows for number in schedule) if rows else EMPTY_SCHEDULE
