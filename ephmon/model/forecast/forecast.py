"""When a pool will be exhausted, from what full polls saw of it and from the release schedule of its TIME_WAITs.

A straight line through the ports in use would raise a false alarm at the start of every burst. Short connections fill a
pool for the first minute, and then as many ports come back each second as are taken. So there are two rates:

closing
    Connections per second that this host closes. Each keeps its port for the time that a TIME_WAIT lasts, and no
    longer. The rows of TIME_WAITs say when their connections were closed, so this rate is counted.
growth
    Ports per second by which all other taken ports become more: connections that stay, and ports that others block. It
    lasts until the pool is full. It counts as 0 where it does not stand out from the noise.

With R ports that remain now, and F(t) TIME_WAITs that will have ended by the time t, so many ports remain at t:

    R + F(t) - (closing + growth) * t                  while no TIME_WAIT that begins now has ended,
    what is left then - growth * (t - that time)       from there on.

The pool is exhausted when that is 0. A TIME_WAIT keeps its port for HOLD_SECONDS, or for a shorter time where the
kernel hands it out again (`ephmon.model.pools.time_wait`). TIME_WAITs never keep more ports than `tcp_max_tw_buckets`.

What is assumed, and where it is wrong:

- Both rates go on as they are. They are measured over the latest 15 seconds (at least three polls) or more. Where the
  two halves of that time differ by more than a factor of two, the smaller one counts. So a step is not taken for a
  trend, and a load that has just begun is underestimated for a few polls.
- A load of long connections looks as if none ever closed, until the first ones do. Until then it is forecast like a
  leak. Nobody can tell the two apart within the first lifetime.
- A pool that rises and falls (a saw-tooth) is believed to turn where it turned last, if that was within the history.
  Its first rise is taken for growth, and so is every rise that takes longer than the history.
- Connections that open and close between two polls and leave no TIME_WAIT are not seen. They hold no port for long, so
  the time to exhaustion does not suffer, but `opens_per_second` is a lower bound.
- Kinds other than tcp_connect: udp_* leave no TIME_WAIT, so there is only growth. For tcp_bind the schedule is that of
  the TIME_WAITs of its source address, scaled to the ports on which TIME_WAIT is all there is.
- While a pool is exhausted, only connections that get a port can be seen, not the load. After ports come back there may
  be no forecast for a few polls, however many connections wait for them.
- A FIN_WAIT2 whose process has gone counts as live. It becomes a TIME_WAIT, or ends by itself.
- The TIME_WAITs of other pools count toward `tcp_max_tw_buckets` too. They are left out, so where they matter the
  forecast comes although the limit would prevent it.
- TIME_WAITs on blocked ports count like the others, although the kernel does not hand those ports out again sooner.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from ephmon.model.forecast.history import HISTORY_SECONDS
from ephmon.model.forecast.release_schedule import TIME_WAIT_SECONDS
from ephmon.model.forecast.trend import LEAST_POLLS, Noise, closing_rate, growth_rate, start_of_latest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ephmon.model.forecast.history import History, Point, PoolSample

HORIZON_SECONDS = 3600.0
"""There is no forecast of what is further ahead."""
HORIZON_PER_SECOND_SEEN = 30.0
"""Nor of what is so many times further ahead than the time is long over which the rates were measured: 15 seconds carry
a forecast of 7.5 minutes at most."""

_RECENT_SECONDS = 15.0
"""The shortest time that a rate is measured over: three polls at the default interval, so that an urgent rise counts
soon."""
_LONGER_SECONDS = (30.0, 60.0, HISTORY_SECONDS)
"""Growth that is too slow to stand out from the noise of 15 seconds may stand out over these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Where a pool is heading."""

    opens_per_second: float
    """Connections opened per second over the recent polls, at least.

    It is the growth of the ports that the pool's sockets hold plus the TIME_WAITs released. What opens and vanishes
    between two polls is missing.
    """
    growth_per_second: float
    """Change per second of the ports that the next allocation cannot get, over the recent polls."""
    sustainable_opens_per_second: float | None
    """Capacity / 60 s. If this host closes more connections a second, their TIME_WAITs fill the pool.

    None where TIME_WAITs keep no port, or where there may be fewer of them than ports.
    """
    seconds_to_exhaustion: float | None
    """Until the next allocation fails, 0 if it fails now; None if the pool is not heading there."""


def forecast(history: History, sample: PoolSample) -> Forecast | None:
    """Return where the pool is heading, None if the history has fewer than LEAST_POLLS points.

    Args:
        history: All samples, the latest included.
        sample: The latest one.
    """
    points = history.points
    if len(points) < LEAST_POLLS:
        return None
    recent = points[start_of_latest(points, _RECENT_SECONDS) :]
    first, last = recent[0], recent[-1]
    span = last.at - first.at
    opens = last.live - first.live + last.closed - first.closed
    # A TIME_WAIT that is handed out again keeps no port for a minute, so no rate fills the pool with them.
    keeps_ports = sample.leaves_time_wait and sample.reusable_after is None
    can_fill = keeps_ports and sample.most_time_wait >= sample.capacity
    return Forecast(
        # A connection that the peer closes leaves no TIME_WAIT here, so the sum is negative where many of those end.
        opens_per_second=max(0.0, opens / span),
        growth_per_second=(first.remaining - last.remaining) / span,
        sustainable_opens_per_second=sample.capacity / TIME_WAIT_SECONDS if can_fill else None,
        seconds_to_exhaustion=_seconds_to_exhaustion(sample, points),
    )


def _seconds_to_exhaustion(sample: PoolSample, points: Sequence[Point]) -> float | None:
    """Return the first answer, measured over longer and longer times, that lies within the horizon of its time."""
    if sample.remaining <= 0:
        return 0.0
    if points[0].closed == points[-1].closed and len({point.taken for point in points}) == 1:
        return None  # nothing happens, as in most pools
    noise, recent = Noise.of(points), start_of_latest(points, _RECENT_SECONDS)
    closing = closing_rate(points, recent)
    # The shortest time comes first: it knows best what the load does now. dict.fromkeys() drops equal starts, which a
    # short history has, and keeps their order.
    for start in dict.fromkeys((recent, *(start_of_latest(points, seconds) for seconds in _LONGER_SECONDS))):
        growth = growth_rate(points, start, noise)
        if start != recent and growth == 0:
            continue  # what was found over the shorter times stands
        seconds = _seconds_until_full(sample, closing, growth)
        if seconds <= min(HORIZON_SECONDS, HORIZON_PER_SECOND_SEEN * (points[-1].at - points[start].at)):
            return seconds
        if growth < 0:
            return None  # ports come back; a longer time would show a rise that is over
    return None


def _seconds_until_full(sample: PoolSample, closing: float, growth: float) -> float:
    """Return when no port remains if both rates go on, infinity if that never happens."""
    rate, hold = max(0.0, closing + growth), sample.hold_seconds
    # So many ports remain, but for growth, once there are as many TIME_WAITs as there may be.
    least = sample.remaining + sample.kept_by_time_wait - sample.most_time_wait
    # If even a whole hold time without a release does not use the ports up, the pool is not full within that time.
    if rate * hold >= sample.remaining:
        before, left = 0.0, float(sample.remaining)
        for time in (*map(float, range(1, int(hold))), hold):
            left_then = max(sample.remaining + sample.released_by(time) - rate * time, least - growth * time)
            if left_then <= 0:
                return before + (time - before) * left / (left - left_then)
            before, left = time, left_then
    if growth <= 0:
        return inf
    # From here on a port comes back for each connection that is closed, so only growth uses ports up.
    left_then = max(sample.remaining + sample.released_by(hold) - rate * hold, least - growth * hold)
    return hold + left_then / growth
