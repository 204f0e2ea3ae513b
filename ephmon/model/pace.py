"""How often to poll: no more than the CPU budgets allow, and more often where a pool is about to run out.

A *full* poll reads everything. Its cost grows with the sockets of the host, so full polls come only as often as
`poll.cpu_budget` allows, which is a share of one core. While a pool is above its warning threshold, polls may use
`poll.urgent_cpu_budget`: half of it for full polls, half for *narrow* polls in between, which read only the sockets
toward the destinations in question. Two conditions have no such destination: many blocked ports, and a pool without a
destination that fills. Then full polls come at the urgent interval, and may use all of that budget. So they do for all
pools where the backend cannot read a part alone, as `bpf`, to which all sockets cost little.

A pool that runs out never makes full polls rarer. If half of the urgent budget allows fewer of them than the usual
budget does, the usual interval stays, and narrow polls get the rest of the urgent budget.

A full poll gathers evidence of how each port was chosen, or it only counts, which is cheaper. While evidence at every
poll fits into the budget, every poll gathers it. Otherwise every fourth poll does. Two things make every poll gather it
all the same: a pool that is about to run out, and ports most of which only evidence can classify, so that counting
would be a poor estimate.

The cost that counts is the median of the last three polls, so that one expensive poll does not blind the daemon.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from ephmon.model.pools.tcp_connect import destination_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ephmon.facts.failed_calls import Destination
    from ephmon.model.alerting.blocked import BlockedPorts
    from ephmon.model.alerting.thresholds import Thresholds
    from ephmon.model.pools.kinds import Pool
    from ephmon.model.rules import PollingRules

REMEMBERED_COSTS = 3
POLLS_PER_EVIDENCE = 4
"""Where evidence is expensive, one full poll out of so many gathers it."""
MOST_WATCHED = 16
"""Narrow polls read at most so many destinations, because the kernel compares every socket with each of them."""


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


class BudgetKey(StrEnum):
    """The configuration keys that bound the CPU time of polls."""

    USUAL = "poll.cpu_budget"
    URGENT = "poll.urgent_cpu_budget"


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """What needs more polls than usual."""

    destinations: tuple[Destination, ...] = ()
    """Where the tcp_connect pools lead to that are at or above their warning thresholds, the fullest first."""
    everything: bool = False
    """Whether it takes full polls: many ports are blocked, or a pool without a destination fills."""


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
    """From one full poll to the next."""
    narrow: float | None = None
    """From one narrow poll to the next; None: no narrow polls."""
    soonest: float = 1.0
    """No narrow poll comes sooner than this after another poll, not even where connect() failed."""
    soonest_full: float = 1.0
    """The same of full polls, where connect() failed and there are no narrow ones."""
    polls_per_evidence: int = 1
    """One full poll out of so many gathers evidence."""
    limited_by: BudgetKey | None = None
    """The budget that makes full polls rarer than `poll.interval`; None if they are not."""


class _FullPolls(NamedTuple):
    """One way to make full polls."""

    interval: float
    cost: float
    """CPU seconds of one poll, on average."""
    polls_per_evidence: int
    budget: BudgetKey
    """What the interval depends on if polls are expensive."""

    @property
    def cpu_share(self) -> float:
        """The share of one core that they use."""
        return self.cost / self.interval


def watch(pools: Sequence[Pool], blocked: Sequence[BlockedPorts], thresholds: Thresholds) -> Watch:
    """Return what needs more polls than usual.

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
    usual = _usual_full_polls(rules, costs, evidence_settles_much=evidence_settles_much)
    urgent = _urgent_full_polls(rules, costs, watched)
    # The usual polls may have the larger budget, or be cheaper because most of them only count.
    polls = usual if urgent is None or usual.interval < urgent.interval else urgent
    cost = _median(costs.narrow)
    soonest = max(rules.urgent_interval_seconds, cost / (rules.urgent_cpu_budget / 2))
    left = rules.urgent_cpu_budget - polls.cpu_share
    narrow = max(soonest, cost / left) if left > 0 else math.inf
    has_narrow = bool(watched.destinations) and not watched.everything and narrow < polls.interval
    return Pace(
        full=polls.interval,
        narrow=narrow if has_narrow else None,
        soonest=soonest,
        soonest_full=max(rules.urgent_interval_seconds, _median(costs.full) / rules.urgent_cpu_budget),
        polls_per_evidence=polls.polls_per_evidence,
        limited_by=polls.budget if polls.interval > rules.interval_seconds else None,
    )


def _usual_full_polls(rules: PollingRules, costs: Costs, *, evidence_settles_much: bool) -> _FullPolls:
    """Return the full polls while nothing is urgent."""
    full = _median(costs.full)
    is_affordable = full <= rules.cpu_budget * rules.interval_seconds
    every = 1 if evidence_settles_much or is_affordable else POLLS_PER_EVIDENCE
    counting = _median(costs.counting) or full  # before the first poll that only counts, nothing better is known
    cost = (full + (every - 1) * counting) / every
    return _FullPolls(max(rules.interval_seconds, cost / rules.cpu_budget), cost, every, BudgetKey.USUAL)


def _urgent_full_polls(rules: PollingRules, costs: Costs, watched: Watch) -> _FullPolls | None:
    """Return the full polls while something is watched, None while nothing is."""
    if watched.everything:
        wanted, share = min(rules.interval_seconds, rules.urgent_interval_seconds), rules.urgent_cpu_budget
    elif watched.destinations:
        wanted, share = rules.interval_seconds, rules.urgent_cpu_budget / 2
    else:
        return None
    cost = _median(costs.full)
    return _FullPolls(max(wanted, cost / share), cost, 1, BudgetKey.URGENT)


def _median(costs: Sequence[float]) -> float:
    return median(costs) if costs else 0.0
