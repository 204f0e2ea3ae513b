"""EphmonConnectSlow: the searches of connect() take more than a share of a core.

The share is that of `ephmon.model.forecast.search_share`, from the rate and the time for each port that were measured.
Nothing fails, so it is a warning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ephmon.model.alerting.judged_namespace import judge_ratio
from ephmon.model.alerting.state_machine import AlertKey, AlertName, Observation
from ephmon.model.alerting.thresholds import Severity, Threshold
from ephmon.model.pools.connect_search import MANY_PORTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ephmon.model.pools.kinds import Pool, PoolKey

SEARCH_FOR_SECONDS = 10.0
"""The rate is an average over polls, and a burst that is over in a moment needs no alert."""
SEARCH_CLEAR = 0.5
"""The alert of slow searches ends below this part of where it starts, because the rate of a load wavers."""


def observe_searches(shares: Mapping[PoolKey, tuple[Pool, float]], limit: float) -> dict[AlertKey, Observation]:
    """Judge the searches of connect()."""
    threshold = Threshold(utilisation=limit, for_seconds=SEARCH_FOR_SECONDS, clear=limit * SEARCH_CLEAR)
    return {
        AlertKey(AlertName.CONNECT_SLOW, key.netns, key): Observation(
            value=share, judgements={Severity.WARNING: judge_ratio(share, threshold)}, pools=(pool,)
        )
        for key, (pool, share) in shares.items()
        if (pool.search_ports or 0) >= MANY_PORTS
    }
