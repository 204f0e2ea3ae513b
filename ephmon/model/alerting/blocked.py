"""Blocked ports: how many of the usable ports no connect() can take, how urgent that is, and which pools it covers.

One program that binds many ports raises the utilisation of all tcp_connect pools of its namespace. That is one alert
(EphmonPortsBlocked), not one for each pool. The alert covers the pools that blocked ports are the main trouble of, and
these have no alert of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import nsmallest
from typing import TYPE_CHECKING

from ephmon.model.alerting.thresholds import severity_reached
from ephmon.model.pools.kinds import PoolKind, share_of_usable
from ephmon.model.pools.ranking import worst_first

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ephmon.model.alerting.thresholds import Severity, Thresholds
    from ephmon.model.pools.kinds import Pool
    from ephmon.model.pools.survey import NamespaceSurvey

MOST_NAMED = 5
"""EphmonPortsBlocked names at most so many of the pools that it covers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockedPorts:
    """The blocked ports of a namespace at one moment."""

    netns: str
    blocked: int
    usable: int

    @classmethod
    def of_namespace(cls, survey: NamespaceSurvey) -> BlockedPorts | None:
        """Return the blocked ports of a namespace, None where TCP could not be read."""
        if survey.ports is None:
            return None
        return cls(netns=survey.namespace.netns, blocked=survey.ports.blocked, usable=survey.usable)

    @classmethod
    def behind(cls, pool: Pool) -> BlockedPorts:
        """Return the blocked ports that a tcp_connect pool was counted with."""
        return cls(netns=pool.key.netns, blocked=pool.blocked, usable=pool.usable)

    @property
    def share(self) -> float:
        """Blocked ports / usable ports; 1.0 where no port is usable, since no connect() gets one there either."""
        return share_of_usable(self.blocked, self.usable)

    @property
    def leave_none(self) -> bool:
        """Whether no connect() gets a port, wherever it leads."""
        return self.blocked >= self.usable

    def severity(self, thresholds: Thresholds) -> Severity | None:
        """Return the most urgent severity whose general threshold the share reaches, `for` ignored."""
        return severity_reached(self.share, thresholds.general())

    def are_many(self, thresholds: Thresholds) -> bool:
        """Tell whether an alert of them that fires already would go on firing."""
        return self.share >= thresholds.warning.clear

    def outweigh(self, pool: Pool, *, margin: float = 0.0) -> bool:
        """Tell whether they take more of a tcp_connect pool's ports than its own connections do.

        Args:
            pool: A pool of the namespace.
            margin: They have to take so much more, as a share of the usable ports.
        """
        if pool.key.kind != PoolKind.TCP_CONNECT:
            return False  # other kinds may draw from blocked ports
        if not self.usable:
            return True
        return share_of_usable(pool.in_use - pool.reusable, self.usable) + margin < self.share

    def covers(self, pool: Pool, thresholds: Thresholds, *, margin: float = 0.0) -> bool:
        """Tell whether EphmonPortsBlocked speaks for a pool, so that the pool needs no alert of its own.

        It covers pools as soon as the blocked share reaches `clear` of the general warning, although by itself it
        starts only at `utilisation`. Otherwise, as blocked ports grow, the pools would alert one by one before it does.

        Args:
            pool: A pool of the namespace.
            thresholds: Those in force.
            margin: As in `outweigh`.
        """
        return self.are_many(thresholds) and self.outweigh(pool, margin=margin)


def pools_to_name(pools: Iterable[Pool]) -> tuple[Pool, ...]:
    """Return the pools that EphmonPortsBlocked names, of those that it covers: the worst MOST_NAMED, worst first."""
    return tuple(nsmallest(MOST_NAMED, pools, key=worst_first))
