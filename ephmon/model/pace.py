"""How often to poll: no more than the CPU budget allows, and closer where a pool is about to run out.

A *full* poll reads everything. Its cost grows with the sockets of the host, so it comes no more often than a share of
one core permits (`poll.cpu_budget`). When a pool is above its warning threshold, up to `poll.urgent_cpu_budget` may be
spent: half of it on full polls, half on *narrow* ones in between, which read the sockets toward the destinations in
question alone. Where it is the blocked ports that are many, or a pool without a destination is what fills, there is no
destination to look at, and full polls come at the urgent interval instead.

A full poll gathers evidence of how each port was chosen, or it only counts, which is cheaper. While evidence at every
poll fits into the budget it is gathered at every poll. Where it does not, it is gathered at every fourth, unless it
settles most ports (then it would be missed) or something needs a closer look.

The cost that counts is the middle one of the last three polls, so that one dear poll does not blind the daemon.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from statistics import median
from typing import TYPE_CHECKING

from ephmon.model.pools.connect import destination_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ephmon.facts.failed_calls import Destination
    from ephmon.model.alerting.blocked import BlockedPorts
    from ephmon.model.alerting.thresholds import Thresholds
    from ephmon.model.pools.kinds import Pool
    from ephmon.model.rules import PollingRules

REMEMBERED_COSTS = 3
POLLS_PER_EVIDENCE = 4
"""Where evidence is dear, one poll out of so many gathers it."""
MOST_WATCHED = 16
"""So many destinations are watched by narrow polls at once; each costs every socket a test in the kernel."""


class Poll(StrEnum):
    """The kinds of polls, which differ in what they ask of the kernel."""

    FULL = "full"
    """Everything, with evidence."""
    COUNTING = "counting"
    """Everything, without evidence."""
    NARROW = "narrow"
    """The sockets toward some destinations."""

    @property
    def scope(self) -> str:
        """What polls are counted by: `full` or `narrow`."""
        return "narrow" if self is Poll.NARROW else "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """What needs a closer look."""

    destinations: tuple[Destination, ...] = ()
    """Where the tcp_connect pools lead to that are at or above their warning thresholds, the fullest first."""
    everything: bool = False
    """Full polls are needed to see it: blocked ports are many, or a pool without a destination fills."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """CPU seconds of the latest polls of each kind, at most REMEMBERED_COSTS."""

    full: tuple[float, ...] = ()
    """Of full polls that gathered evidence."""
    counting: tuple[float, ...] = ()
    """Of full polls that only counted."""
    narrow: tuple[float, ...] = ()

    def after(self, kind: Poll, seconds: float) -> Costs:
        """Return the costs with those of one more poll."""
        costs = {Poll.FULL: self.full, Poll.COUNTING: self.counting, Poll.NARROW: self.narrow}
        costs[kind] = (*costs[kind], seconds)[-REMEMBERED_COSTS:]
        return Costs(full=costs[Poll.FULL], counting=costs[Poll.COUNTING], narrow=costs[Poll.NARROW])


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How often to poll from now on, in seconds."""

    full: float
    narrow: float | None = None
    """None: no narrow polls."""
    soonest: float = 1.0
    """No narrow poll comes sooner than this after another poll, also not one that a failed connect() asks for."""
    polls_per_evidence: int = 1
    """One full poll out of so many gathers evidence."""
    is_stretched: bool = False
    """The budget makes full polls rarer than the configuration asks for."""


def watch(pools: Sequence[Pool], blocked: Sequence[BlockedPorts], thresholds: Thresholds) -> Watch:
    """Return what needs a closer look.

    Args:
        pools: The listed pools, the fullest first.
        blocked: The blocked ports of each namespace.
        thresholds: The thresholds of the pools.
    """
    near = [pool for pool in pools if thresholds.severity_at(pool.key, pool.utilisation) is not None]
    destinations = dict.fromkeys(destination_of(pool.key) for pool in near)
    return Watch(
        destinations=tuple(one for one in destinations if one is not None)[:MOST_WATCHED],
        everything=any(ports.severity(thresholds) for ports in blocked) or None in destinations,
    )


def pace(rules: PollingRules, costs: Costs, watched: Watch, *, evidence_settles_much: bool = True) -> Pace:
    """Return how often to poll, given what polls cost, what is watched, and whether evidence settles most ports."""
    full, narrow = _middle(costs.full), _middle(costs.narrow)
    half = rules.urgent_cpu_budget / 2
    soonest = max(rules.urgent_interval_seconds, narrow / half)
    polls = 1
    if watched.everything:
        wanted = min(rules.interval_seconds, rules.urgent_interval_seconds)
        interval = max(wanted, full / rules.urgent_cpu_budget)
    elif watched.destinations:
        interval = max(rules.interval_seconds, full / half)
    else:
        affordable = rules.cpu_budget * rules.interval_seconds
        polls = 1 if evidence_settles_much or full <= affordable else POLLS_PER_EVIDENCE
        counting = _middle(costs.counting) or full
        interval = max(rules.interval_seconds, (full + (polls - 1) * counting) / polls / rules.cpu_budget)
    is_narrow = bool(watched.destinations) and not watched.everything and soonest < interval
    return Pace(
        full=interval,
        narrow=soonest if is_narrow else None,
        soonest=soonest,
        polls_per_evidence=polls,
        is_stretched=interval > rules.interval_seconds,
    )


def _middle(costs: Sequence[float]) -> float:
    return median(costs) if costs else 0.0
