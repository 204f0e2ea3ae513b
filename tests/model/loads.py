"""Simulated loads: connections that open and close at known times, what polls see of them, and when ports run out.

A load is any number of connections; `run` lets a pool serve it and returns the readings of its polls and the moment of
the first connection that got no port.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from ephmon.model.forecast.forecast import Forecast, forecast
from ephmon.model.forecast.history import History, PoolSample
from ephmon.model.forecast.release_schedule import TIME_WAIT_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

CAPACITY = 28_232
"""The ports of the default range."""
BATCH_SECONDS = 2.048
"""The kernel releases TIME_WAITs in batches that are so many seconds apart, 512 ticks of 250 in a second."""


class Connection(NamedTuple):
    """One connection of a load; times in seconds."""

    opened: float
    lifetime: float = math.inf
    leaves_time_wait: bool = True
    """This host closes it."""


@dataclass(frozen=True, slots=True)
class Run:
    """What became of a load."""

    readings: tuple[PoolSample, ...]
    failed_at: float | None
    """When the first connection got no port; the load ends there."""

    def forecasts(self) -> Iterator[tuple[float, Forecast | None]]:
        """Yield the time of each poll and its forecast."""
        history = History()
        for reading in self.readings:
            history = history.after(reading)
            yield reading.at, forecast(history, reading)

    def foretold(self) -> list[tuple[float, float]]:
        """Return the time and the seconds to exhaustion of each forecast that there is any."""
        return [
            (at, one.seconds_to_exhaustion)
            for at, one in self.forecasts()
            if one is not None and one.seconds_to_exhaustion is not None
        ]

    def error_before(self, seconds: float) -> float | None:
        """Return how many seconds too late the last forecast foretells the failure that was made so long before it.

        Negative: too early. None: there was no forecast.
        """
        assert self.failed_at is not None
        at, found = [pair for pair in self.forecasts() if pair[0] <= self.failed_at - seconds][-1]
        foretold = None if found is None else found.seconds_to_exhaustion
        return None if foretold is None else at + foretold - self.failed_at


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """What serves a load."""

    capacity: int = CAPACITY
    reusable_after: float | None = None
    """The age from which TIME_WAITs are handed out again."""
    in_batches: bool = True
    """Whether TIME_WAITs are released late, as by a real kernel."""

    def released(self, closed: float) -> float:
        """Return when the TIME_WAIT of a connection closed then is gone."""
        ends = closed + TIME_WAIT_SECONDS
        return math.ceil(ends / BATCH_SECONDS) * BATCH_SECONDS if self.in_batches and ends < math.inf else ends

    def free_again(self, one: Connection) -> float:
        """Return when the port of a connection can be had again."""
        closed = one.opened + one.lifetime
        if not one.leaves_time_wait:
            return closed
        return self.released(closed) if self.reusable_after is None else closed + self.reusable_after

    def reading(self, at: float, taken: int, closings: Sequence[float]) -> PoolSample:
        """Return what a poll sees, given the ports that cannot be had and when connections were closed, in order."""
        first, last = bisect_right(closings, at, key=self.released), bisect_right(closings, at)
        reused = first
        if (age := self.reusable_after) is not None:
            reused = bisect_left(closings, True, first, last, key=lambda closed: at - closed <= age)
        # Counted by where each second begins, because there are tens of thousands of them in each of hundreds of polls.
        seconds = (
            bisect_left(closings, second, first, last, key=lambda closed: int(closed + TIME_WAIT_SECONDS - at))
            for second in range(1, TIME_WAIT_SECONDS)
        )
        edges = [first, *seconds, last]
        return PoolSample(
            at=at,
            usable=self.capacity,
            capacity=self.capacity,
            remaining=self.capacity - taken,
            held=taken + reused - first,
            schedule=tuple(end - begin for begin, end in pairwise(edges)),
            reusable_after=self.reusable_after,
        )


def run(load: Iterable[Connection], *, until: float, interval: float = 5.0, kernel: Kernel | None = None) -> Run:
    """Let a pool serve a load, polled from time 0 on until the time is over or a connection gets no port."""
    serving = kernel or Kernel()
    connections = sorted(load)
    opened = [one.opened for one in connections]
    free_again = sorted(map(serving.free_again, connections))
    closings = sorted(one.opened + one.lifetime for one in connections if one.leaves_time_wait)
    failed_at = next(
        (at for place, at in enumerate(opened) if place - bisect_right(free_again, at) >= serving.capacity), None
    )
    end = until if failed_at is None else min(until, failed_at)
    polls = [interval * number for number in range(int(end / interval) + 1)]
    readings = (serving.reading(at, bisect_right(opened, at) - bisect_right(free_again, at), closings) for at in polls)
    return Run(tuple(readings), failed_at)


def ramp(seconds: float, *, ports: int = CAPACITY, start: float = 0.0) -> list[Connection]:
    """Open so many connections, evenly, and close none."""
    return [Connection(start + seconds * i / ports) for i in range(1, ports + 2)]


def churn(
    per_second: float, *, until: float, start: float = 0.0, lifetime: float = 0.2, seed: int | None = None
) -> Iterator[Connection]:
    """Open short connections at a rate: evenly, or with a seed at random moments and for random times."""
    random = None if seed is None else Random(seed)
    at = start
    while at < until:
        yield Connection(at, random.expovariate(1 / lifetime) if random else lifetime)
        at += random.expovariate(per_second) if random else 1 / per_second


def saw_tooth(
    *, low: int, high: int, rise: float, fall: float, until: float, leaves_time_wait: bool
) -> list[Connection]:
    """Open `high` - `low` connections evenly, close them evenly, pause for 10 seconds, again and again, above `low`."""
    found = [Connection(number / low) for number in range(low)]
    start = 10.0
    while start < until:
        for share in (number / (high - low) for number in range(high - low)):
            opened = start + rise * share
            found.append(Connection(opened, start + rise + fall * share - opened, leaves_time_wait))
        start += rise + fall + 10
    return found
