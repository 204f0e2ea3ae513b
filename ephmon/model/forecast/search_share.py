"""Which share of a core the searches of connect() take in a pool, from what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ephmon.model.forecast.forecast import Forecast
    from ephmon.model.pools.kinds import Pool


def search_share(pool: Pool, forecast: Forecast | None, seconds_per_port: float | None) -> float | None:
    """Return the share of a core, at least; None where something that it takes was not measured.

    It is the rate at which connections were opened, times the ports that each of them looks at, times the processor
    time for each port. The first and the last are lower bounds, and so is the result.

    Args:
        pool: A pool; only tcp_connect pools are searched like this.
        forecast: Of the pool.
        seconds_per_port: Processor time of a search for each port, as measured on this kernel.
    """
    rate = None if forecast is None else forecast.opens_per_second
    if rate is None or pool.search_ports is None or seconds_per_port is None:
        return None
    return rate * pool.search_ports * seconds_per_port
