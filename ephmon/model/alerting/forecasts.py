"""EphmonPoolExhaustionForecast: the pool is more than half full, runs out within a minute and fires by no threshold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ephmon.model.alerting.judged_namespace import OVER, JudgedNamespace
from ephmon.model.alerting.state_machine import AlertKey, AlertName, Judgement, Observation, Signal
from ephmon.model.alerting.thresholds import Severity

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ephmon.model.alerting.state_machine import Alert
    from ephmon.model.forecast.forecast import Forecast
    from ephmon.model.pools.kinds import Pool, PoolKey

FORECAST_SECONDS = 60.0
"""A pool has to run out within this time. If a pool fills within 10 minutes, the thresholds warn 3 minutes before its
end. If it fills within one minute, they warn seconds before it, and then the forecast is earlier."""
FORECAST_CLEAR_SECONDS = 120.0
FORECAST_UTILISATION = 0.5
"""An emptier pool has room for a burst, and its forecast only knows what it did while it was nearly empty."""
FORECAST_CLEAR_UTILISATION = 0.45
FORECAST_FOR_SECONDS = 4.0
"""Two polls at the default interval have to agree, because a forecast errs most where a load changes. This is less than
the interval: half of the time two polls are some milliseconds closer together, and a third poll would be needed."""


def seconds_to_exhaustion(forecasts: Mapping[PoolKey, Forecast], netns: str) -> dict[PoolKey, float]:
    """Return when pools of the namespace run out, in seconds; only those whose forecast may alert."""
    known = ((key, one.seconds_to_exhaustion) for key, one in forecasts.items() if key.netns == netns)
    return {key: seconds for key, seconds in known if seconds is not None and seconds < FORECAST_CLEAR_SECONDS}


def observe_forecasts(
    namespace: JudgedNamespace, forecasts: Iterable[tuple[Pool, float]]
) -> dict[AlertKey, Observation]:
    """Judge how soon pools run out, except pools that have an alert already."""
    observations = {}
    for pool, seconds in forecasts:
        key = AlertKey(AlertName.POOL_EXHAUSTION_FORECAST, namespace.netns, pool.key)
        judgement = _judge_forecast(pool, seconds, namespace.previous.states.get(key))
        judgements = OVER if namespace.has_an_alert_already(pool) else {Severity.WARNING: judgement}
        observations[key] = Observation(value=seconds, judgements=judgements, pools=(pool,))
    return observations


def _judge_forecast(pool: Pool, seconds: float, alert: Alert | None) -> Judgement:
    """Return the judgement of a forecast. It alerts only while the pool still fills from poll to poll."""
    is_rising = alert is None or all(pool.utilisation > before.utilisation for before in alert.pools)
    if seconds < FORECAST_SECONDS and pool.utilisation >= FORECAST_UTILISATION and is_rising:
        signal = Signal.REACHED
    else:
        is_near = seconds < FORECAST_CLEAR_SECONDS and pool.utilisation >= FORECAST_CLEAR_UTILISATION
        signal = Signal.BETWEEN if is_near else Signal.BELOW
    return Judgement(signal, FORECAST_FOR_SECONDS)
