"""When a pool will be exhausted, from what full polls saw of it and from the release schedule of its TIME_WAITs.

A straight line through the ports in use would raise a false alarm at the start of every burst: short connections fill a
pool for the first minute, and then as many ports come back each second as are taken. So two things are told apart:

closing
    Connections per second that this host closes. Each keeps its port for the time that a TIME_WAIT lasts, and no
    longer. The rows of TIME_WAITs say when they were closed, so this is counted.
growth
    Ports per second by which all other ports that are taken become more: connections that stay, ports that others
    block. It lasts until the pool is full, and counts as 0 where it does not stand out from the noise.

With R ports that remain now, at the time t so many remain, F(t) being the TIME_WAITs that will have ended by then:

    R + F(t) - (closing + growth) * t                  while no TIME_WAIT that begins now has ended,
    what is left then - growth * (t - that time)       from there on.

The pool is exhausted where that is 0. A TIME_WAIT counts for HOLD_SECONDS, or, where the kernel hands its port out
again sooner (`ephmon.model.pools.time_wait`), for so long.

What is assumed, and where it is wrong:

- Both rates go on as they are. They are those of the latest 15 seconds (three polls at least) or more, and where the
  halves of that time differ by more than a factor of two, the smaller. So a step is no trend, and a load that has just
  begun is underestimated for a few polls.
- A load whose connections live for long looks as if none ever closed, until the first ones do. Until then it is
  forecast like a leak. This cannot be told from inside the first lifetime.
- A pool of connections that rises and falls (a saw-tooth) is believed to turn where it turned last, if that was within
  the history; its first rise, and every rise that takes longer than the history, is taken for growth.
- Connections that open and close between two polls and leave no TIME_WAIT are not seen at all. They hold no port for
  long, so the time to exhaustion does not suffer, but `opens_per_second` is a lower bound.
- Kinds other than tcp_connect: udp_* leave no TIME_WAIT, so growth is all there is. For tcp_bind the schedule is that
  of the TIME_WAITs of its source address, scaled to the ports on which TIME_WAIT is all there is.
- While a pool is exhausted the load cannot be seen, only what gets a port. Once ports come back there may be no
  forecast for a few polls, however many connections wait for them.
- A FIN_WAIT2 whose process has gone counts as live. It becomes a TIME_WAIT, or ends by itself.
- TIME_WAITs on blocked ports count like the others, though the kernel does not hand them out again sooner.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import inf, sqrt
from statistics import median
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from ephmon.model.forecast.release_schedule import NOTHING, SECONDS, Schedule, ended_by

if TYPE_CHECKING:
    from collections.abc import Sequence

LEAST_POLLS = 3
"""There is no forecast from fewer."""
HISTORY_SECONDS = 120.0
"""How far back the history reaches."""
HORIZON_SECONDS = 3600.0
"""There is no forecast of what is further ahead."""
HORIZON_PER_SECOND_SEEN = 30.0
"""Nor of what is so many times further ahead than the time is long over which it was seen to come."""
LATE_SECONDS = 2.0
"""How long a TIME_WAIT outlives its time, see `ephmon.model.forecast.release_schedule`."""
HOLD_SECONDS = SECONDS + LATE_SECONDS

_RECENT_SECONDS = 15.0
_LONGER_SECONDS = (30.0, 60.0, HISTORY_SECONDS)
_SPACING_SECONDS = 4.0
_SIGMAS = 3.0
"""How many standard deviations stand out from the noise."""
_LEAST_CHANGES = 5
"""From so many changes of pace on, the noise is measured and not only bounded."""
_AGREEING = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What one full poll saw of a pool. Counts are ports."""

    at: float
    """Monotonic seconds."""
    usable: int
    capacity: int
    remaining: int
    held: int
    """Ports that the pool's own sockets hold, on whichever ports."""
    schedule: Schedule = NOTHING
    """Its TIME_WAITs by the seconds that they have left."""
    reusable_after: float | None = None
    """The age in seconds from which its TIME_WAITs are handed out again; None if they never are."""
    leaves_time_wait: bool = True
    """False for UDP."""

    @property
    def hold_seconds(self) -> float:
        """How long a TIME_WAIT keeps its port."""
        return HOLD_SECONDS if self.reusable_after is None else self.reusable_after

    def released_by(self, seconds: float) -> float:
        """Return how many ports that TIME_WAITs keep now they will have released so many seconds from now."""
        if self.reusable_after is None:
            # What has no second left is late already.
            in_time = ended_by(self.schedule, min(seconds, 1))
            return max(in_time, ended_by(self.schedule, seconds - LATE_SECONDS))
        younger = SECONDS - self.reusable_after
        return ended_by(self.schedule, younger + seconds) - ended_by(self.schedule, younger)

    def closed_within(self, seconds: float) -> float:
        """Return how many TIME_WAITs are younger than this: all those that began, of times up to SECONDS."""
        return sum(self.schedule) - ended_by(self.schedule, SECONDS - seconds)

    @property
    def kept(self) -> float:
        """How many ports TIME_WAITs keep."""
        if self.reusable_after is None:
            return sum(self.schedule)
        return self.released_by(self.reusable_after)


class Point(NamedTuple):
    """What is kept of a reading."""

    at: float
    live: float
    """Ports of the pool's own sockets that are no TIME_WAIT."""
    taken: float
    """Ports that the next allocation cannot get for another reason than a TIME_WAIT of the pool."""
    closed: float
    """Connections closed since the history began."""
    remaining: float


_PACKED = Struct(f"={len(Point._fields)}d")


@dataclass(frozen=True, slots=True)
class History:
    """The readings of one pool that still count, in less than 2 KB: there may be a history for each of 10,000 pools."""

    packed: bytes = b""
    usable: int = 0
    reusable_after: float | None = None

    @property
    def points(self) -> tuple[Point, ...]:
        """What is kept, oldest first."""
        return tuple(Point(*values) for values in _PACKED.iter_unpack(self.packed))

    def after(self, reading: Reading) -> History:
        """Return the history with one more reading; it begins anew where the range or the reuse of ports changed."""
        is_same = (self.usable, self.reusable_after) == (reading.usable, reading.reusable_after)
        kept = self._kept_at(reading.at) if is_same else b""
        closed = 0.0
        if kept:
            latest = _point(self.packed, -1)
            closed = latest.closed + reading.closed_within(reading.at - latest.at)
        new = _PACKED.pack(
            reading.at,
            max(0, reading.held - sum(reading.schedule)),
            reading.usable - reading.remaining - reading.kept,
            closed,
            reading.remaining,
        )
        return History(kept + new, reading.usable, reading.reusable_after)

    def _kept_at(self, now: float) -> bytes:
        """Return the points without those that are too old, and without the latest if it follows too closely.

        What is told of the same moment twice counts once.
        """
        kept, size = self.packed, _PACKED.size
        if len(kept) > size and _point(kept, -1).at - _point(kept, -2).at < _SPACING_SECONDS:
            kept = kept[:-size]
        while kept and _point(kept, -1).at >= now:
            kept = kept[:-size]
        while kept and now - _point(kept, 0).at > HISTORY_SECONDS:
            kept = kept[size:]
        return kept


def _point(packed: bytes, place: int) -> Point:
    """Return one of the points, the last for -1."""
    return Point(*_PACKED.unpack_from(packed, (place * _PACKED.size) % len(packed)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Where a pool is heading."""

    opens_per_second: float
    """Connections opened per second of late: a lower bound, because what opens and vanishes between polls is not seen.

    The change of the ports that the pool's sockets hold, and the TIME_WAITs released, over the time.
    """
    growth_per_second: float
    """Change of the ports that the next allocation cannot get, of late."""
    sustainable_opens_per_second: float | None
    """Capacity / 60 s: the TIME_WAITs of so many, closed by this host, fill the pool. None where they keep no port."""
    seconds_to_exhaustion: float | None
    """Until the next allocation fails, 0 if it does so now; None if the pool is not heading there."""


def forecast(history: History, reading: Reading) -> Forecast | None:
    """Return where the pool is heading; None from fewer than LEAST_POLLS polls, not counting those in quick succession.

    Args:
        history: All readings, the latest included.
        reading: The latest one.
    """
    points = history.points
    if len(points) < LEAST_POLLS:
        return None
    recent = points[_start(points, _RECENT_SECONDS) :]
    first, last = recent[0], recent[-1]
    span = last.at - first.at
    opens = last.live - first.live + last.closed - first.closed
    keeps_ports = reading.leaves_time_wait and reading.reusable_after is None
    return Forecast(
        opens_per_second=max(0.0, opens / span),
        growth_per_second=(first.remaining - last.remaining) / span,
        sustainable_opens_per_second=reading.capacity / SECONDS if keeps_ports else None,
        seconds_to_exhaustion=_seconds_to_exhaustion(reading, points),
    )


def _seconds_to_exhaustion(reading: Reading, points: Sequence[Point]) -> float | None:
    """Return the first answer, over longer and longer spans, that lies no further ahead than its span allows."""
    if reading.remaining <= 0:
        return 0.0
    if points[0].closed == points[-1].closed and len({point.taken for point in points}) == 1:
        return None  # nothing happens, as in most pools
    noise, recent = _Noise.of(points), _start(points, _RECENT_SECONDS)
    closing = _closing(points, recent)
    for start in dict.fromkeys((recent, *(_start(points, seconds) for seconds in _LONGER_SECONDS))):
        growth = _growth(points, start, noise)
        if start != recent and growth == 0:
            continue  # what was found over the shorter spans stands
        seconds = _crossing(reading, closing, growth)
        if seconds <= min(HORIZON_SECONDS, HORIZON_PER_SECOND_SEEN * (points[-1].at - points[start].at)):
            return seconds
        if growth < 0:
            return None
    return None


def _crossing(reading: Reading, closing: float, growth: float) -> float:
    """Return when no port remains if both rates go on, infinity if that never comes."""
    rate, hold = max(0.0, closing + growth), reading.hold_seconds
    if rate * hold >= reading.remaining:  # else it is later, if at all, and there is no need to look
        before, left = 0.0, float(reading.remaining)
        for time in (*map(float, range(1, int(hold))), hold):
            left_then = reading.remaining + reading.released_by(time) - rate * time
            if left_then <= 0:
                return before + (time - before) * left / (left - left_then)
            before, left = time, left_then
    if growth <= 0:
        return inf
    return hold + (reading.remaining + reading.released_by(hold) - rate * hold) / growth


def _start(points: Sequence[Point], seconds: float) -> int:
    """Return where the latest points begin that reach back so far and are LEAST_POLLS at least, 0 if none do."""
    return next((i for i in range(len(points) - LEAST_POLLS, 0, -1) if points[-1].at - points[i].at >= seconds), 0)


def _closing(points: Sequence[Point], recent: int) -> float:
    """Return the rate of late, measured over the whole history if that agrees but for chance."""
    times, closed = [point.at for point in points], [point.closed for point in points]
    of_late = _agreed(times[recent:], closed[recent:])
    seconds, latest = times[-1] - times[-2], closed[-1] - closed[-2]
    expected = of_late * seconds
    if latest < expected / _AGREEING and expected - latest > _SIGMAS * sqrt(expected):
        return latest / seconds
    overall = (closed[-1] - closed[0]) / (times[-1] - times[0])
    is_chance = abs(overall - of_late) * (times[-1] - times[recent]) <= _SIGMAS * sqrt(closed[-1] - closed[recent])
    return overall if is_chance else of_late


def _growth(points: Sequence[Point], start: int, noise: _Noise) -> float:
    """Return the growth since a point, 0 where it is not seen in both halves of the time or not believed to go on."""
    times, taken = [point.at for point in points[start:]], [point.taken for point in points[start:]]
    middle, last = _middle(times), len(times) - 1
    if any(noise.hides(taken[j] - taken[i], times[j] - times[i]) for i, j in ((0, middle), (middle, last))):
        return 0.0
    earlier, later = _halves(times, taken)
    if earlier > _AGREEING * later > 0 or _has_stopped(points, later, noise):
        return 0.0
    growth = _agreed(times, taken)
    return 0.0 if growth > 0 and _turned_before(points, growth, noise) else growth


def _has_stopped(points: Sequence[Point], growth: float, noise: _Noise) -> bool:
    """Tell whether the latest poll saw much less of a growth than it should have."""
    *_, before, now = points
    seconds, change = now.at - before.at, now.taken - before.taken
    lacking = growth * seconds - change
    return abs(change) < abs(growth) * seconds / _AGREEING and not noise.hides(lacking, seconds)


def _agreed(times: Sequence[float], values: Sequence[float]) -> float:
    """Return the slope over all points, the smaller of the slopes of their halves if these differ, 0 if in sign."""
    earlier, later = _halves(times, values)
    if earlier * later <= 0:
        return 0.0
    smaller, larger = sorted((earlier, later), key=abs)
    if abs(larger) > _AGREEING * abs(smaller):
        return smaller
    return (values[-1] - values[0]) / (times[-1] - times[0])


def _halves(times: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Return the slopes of the earlier and of the later half of the time."""
    middle = _middle(times)
    return (
        (values[middle] - values[0]) / (times[middle] - times[0]),
        (values[-1] - values[middle]) / (times[-1] - times[middle]),
    )


def _middle(times: Sequence[float]) -> int:
    """Return the index of the time, neither the first nor the last, that comes nearest to the middle."""
    centre = (times[0] + times[-1]) / 2
    return min(range(1, len(times) - 1), key=lambda i: abs(times[i] - centre))


def _turned_before(points: Sequence[Point], growth: float, noise: _Noise) -> bool:
    """Tell whether the ports taken were as many before, and became fewer again although ports remained."""
    now = points[-1]
    place = max(range(len(points) - 1), key=lambda i: points[i].taken)
    peak = points[place]
    trough = min(points[place:], key=lambda point: point.taken)
    fell = not noise.hides(peak.taken - trough.taken, trough.at - peak.at)
    # It may have risen on until shortly before the next reading.
    before = points[max(0, place - 1)]
    slope = max(growth, (peak.taken - before.taken) / (peak.at - before.at) if place else 0.0)
    highest = slope * (points[place + 1].at - peak.at)
    return fell and now.taken - peak.taken <= highest < peak.remaining


@dataclass(frozen=True, slots=True)
class _Noise:
    """How far the number of live connections wanders by chance."""

    live: float
    """Connections: how many there are has a variance of at most as many, so a difference has twice that."""
    wander: float
    """Standard deviation of the change in one second; it grows with the root of the time."""

    @classmethod
    def of(cls, points: Sequence[Point]) -> _Noise:
        """Measure by how much the pace changes from one reading to the next; a steady trend has no part in that."""
        changes = [
            abs((c.taken - b.taken) / (c.at - b.at) - (b.taken - a.taken) / (b.at - a.at))
            / sqrt(1 / (c.at - b.at) + 1 / (b.at - a.at))
            for (a, b), (_, c) in pairwise(pairwise(points))
        ]
        # The median of the size of a normal variable is 0.6745 of its standard deviation.
        wander = median(changes) / 0.6745 if len(changes) >= _LEAST_CHANGES else inf
        return cls(points[-1].live, wander)

    def hides(self, change: float, seconds: float) -> bool:
        """Tell whether so large a change in so many seconds may be chance."""
        size = abs(change)
        if size <= _SIGMAS * sqrt(size):
            return True
        return size <= _SIGMAS * min(sqrt(2 * self.live), self.wander * sqrt(seconds))
