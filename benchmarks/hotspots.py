"""Scenarios `hotspots-*`: where a poll spends its time, by cProfile."""

from __future__ import annotations

import cProfile
from functools import partial
from heapq import nlargest
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.load import Population, populated
from benchmarks.measurement import Spread, table
from benchmarks.polling import READINGS, EphmonPoll, PollKind, Stages
from benchmarks.scenario import Options, Scenario

if TYPE_CHECKING:
    from types import CodeType

_ROWS = 10
_CALL_SECONDS = 300.0


class Hotspot(NamedTuple):
    """One function: how often it was called and how many seconds were spent in itself, both per poll."""

    function: str
    calls: float
    own_seconds: float
    share: float


def profile(kind: PollKind, polls: int) -> list[Hotspot]:
    """Poll this namespace and return the functions that took most, without what they called; for an agent."""
    poll = EphmonPoll(kind)
    poll.run()
    profiler = cProfile.Profile()
    profiler.enable()
    for _ in range(polls):
        poll.run()
    profiler.disable()
    entries = profiler.getstats()
    total = sum(entry.inlinetime for entry in entries)
    worst = nlargest(_ROWS, entries, key=attrgetter("inlinetime"))
    return [
        Hotspot(_name(one.code), one.callcount / polls, one.inlinetime / polls, one.inlinetime / total) for one in worst
    ]


def stages(kind: PollKind, polls: int) -> list[Stages]:
    """Poll this namespace and return what the stages took in each poll; for an agent."""
    poll = EphmonPoll(kind)
    return [poll.stages() for _ in range(polls)]


def _name(code: CodeType | str) -> str:
    """Return what a table calls a function; one that is written in C has no code, only a text."""
    return code if isinstance(code, str) else f"{Path(code.co_filename).name}:{code.co_firstlineno} {code.co_name}"


def show(population: Population, options: Options) -> str:
    """Profile each kind of poll of a population."""
    population = options.sized(population)
    polls = options.rounds_or(5)
    sections = [f"{population}; {polls} polls. The profiler makes Python code slower than it is.\n"]
    with populated(population) as namespace:
        for kind in READINGS:
            # Apart from each other, or the profiler's memory would weigh on what is not profiled.
            plain, profiled = namespace.another_agent(), namespace.another_agent()
            sections.append(_stages(kind, plain.call_within(_CALL_SECONDS, stages, kind, polls)))
            sections.append(_hotspots(kind, profiled.call_within(_CALL_SECONDS, profile, kind, polls)))
    return "\n".join(sections)


def _stages(kind: PollKind, polls: list[Stages]) -> str:
    spreads = (Spread(seconds).times(1e3).written(1) for seconds in zip(*polls, strict=True))
    return table((f"{kind}, CPU ms", *Stages._fields), [("each poll", *spreads)])


def _hotspots(kind: PollKind, hotspots: list[Hotspot]) -> str:
    rows = [
        (f"`{one.function}`", f"{one.calls:,.0f}", f"{one.own_seconds * 1e3:.1f}", f"{one.share:.1%}")
        for one in hotspots
    ]
    return table((kind, "calls a poll", "own ms a poll", "share"), rows)


SCENARIOS = tuple(
    Scenario(
        name=name,
        summary=f"where a poll spends its time: {population}",
        run=partial(show, population),
        is_smoke=name == "hotspots-120k",
    )
    for name, population in {
        "hotspots-120k": Population(established=120_000, destinations=1_000),
        "hotspots-60k-pools": Population(established=120_000, destinations=60_000),
        "hotspots-time-wait": Population(time_wait=100_000, destinations=100),
    }.items()
)
