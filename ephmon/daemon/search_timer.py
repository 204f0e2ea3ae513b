"""Measures the cost of a long search of connect() once it matters, and says once if that cannot be done."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import TYPE_CHECKING

from ephmon import log
from ephmon.config.settings import ProbeChoice
from ephmon.errors import KernelError, shortages_explained
from ephmon.facts.namespaces import OWN_NETNS
from ephmon.kernel.search_time import PORTS, measure_search_time
from ephmon.log import Line
from ephmon.model.pools.connect_search import MANY_PORTS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ephmon.config.settings import PollConfig
    from ephmon.model.pools.kinds import Pool
    from ephmon.model.state import State

RETRY_SECONDS = 600.0
LEAST_REMAINING = 2 * PORTS
"""The measurement holds ports for some milliseconds. It waits while a pool has so few left that they may be missed."""

_log = logging.getLogger(__name__)


class SearchTimer:
    """Measures once. Until a pool searches many ports, nobody needs to know, and no port is taken for it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._retry_at = -math.inf
        self._has_failed = False

    def with_search_time(self, state: State, config: PollConfig) -> State:
        """Return the state with the processor time for each port searched, if it matters and can be measured."""
        is_known = state.search_seconds is not None
        if is_known or config.probe == ProbeChoice.NEVER or self._clock() < self._retry_at or not _matters(state):
            return state
        own = state.report.namespace(OWN_NETNS)
        if own is None:
            return state
        try:
            with shortages_explained():
                return replace(state, search_seconds=measure_search_time(own.sysctls))
        except KernelError as error:
            self._retry_at = self._clock() + RETRY_SECONDS
            if not self._has_failed:
                self._has_failed = True
                message = f"The cost of connect() cannot be measured, so EphmonConnectSlow cannot fire: {error}"
                log.write(_log, Line(logging.INFO, message))
            return state


def _matters(state: State) -> bool:
    pools = [one.pool for one in state.report.listed]
    return any((pool.search_ports or 0) >= MANY_PORTS for pool in pools) and not _are_few_left(pools)


def _are_few_left(pools: Sequence[Pool]) -> bool:
    """Tell whether some ports are left that nobody has, and so few that the measurement might take most of them."""
    if any(not pool.remaining and not pool.is_doubted for pool in pools):
        return False  # every port has an owner already
    return any(pool.remaining < LEAST_REMAINING for pool in pools)
