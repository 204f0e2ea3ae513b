"""What full polls saw of one pool in the last two minutes, in less than 2 KB."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from struct import Struct
from typing import NamedTuple

from ephmon.model.forecast.release_schedule import (
    EMPTY_SCHEDULE,
    HOLD_SECONDS,
    LATE_SECONDS,
    TIME_WAIT_SECONDS,
    Schedule,
    ended_by,
)

HISTORY_SECONDS = 120.0
"""How far back the history reaches."""

_SPACING_SECONDS = 4.0
"""How far apart the points are at least, but for the newest. A little less than the default interval of 5 seconds, so
that each of those polls leaves a point although some come a few milliseconds early. It bounds a history to 31 points,
also while full polls come every second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSample:
    """What one full poll saw of a pool. Counts are ports."""

    at: float
    """Monotonic seconds."""
    usable: int
    capacity: int
    remaining: int
    held: int
    """Ports that the pool's own sockets hold, blocked ports included."""
    schedule: Schedule = EMPTY_SCHEDULE
    """Its TIME_WAITs by the seconds that they have left."""
    reusable_after: float | None = None
    """The age in seconds from which the kernel hands out its TIME_WAITs again; None if it never does."""
    leaves_time_wait: bool = True
    """False for UDP."""
    most_time_wait: float = inf
    """How many TIME_WAITs the namespace may have, `tcp_max_tw_buckets`. A connection that is closed beyond them leaves
    none (inet_twsk_alloc(), net/ipv4/inet_timewait_sock.c)."""

    @property
    def hold_seconds(self) -> float:
        """How long a TIME_WAIT keeps its port."""
        return HOLD_SECONDS if self.reusable_after is None else self.reusable_after

    def released_by(self, seconds: float) -> float:
        """Return how many of the ports that TIME_WAITs keep now will be free so many seconds from now."""
        if self.reusable_after is None:
            # A TIME_WAIT with less than a second left may be late already, so it is not given LATE_SECONDS once more.
            in_time = ended_by(self.schedule, min(seconds, 1))
            return max(in_time, ended_by(self.schedule, seconds - LATE_SECONDS))
        # Older TIME_WAITs are reusable now: they are in `remaining` already.
        younger = TIME_WAIT_SECONDS - self.reusable_after
        return ended_by(self.schedule, younger + seconds) - ended_by(self.schedule, younger)

    def closed_within(self, seconds: float) -> float:
        """Return how many connections this host closed in the last so many seconds, of at most TIME_WAIT_SECONDS."""
        return sum(self.schedule) - ended_by(self.schedule, TIME_WAIT_SECONDS - seconds)

    @property
    def kept_by_time_wait(self) -> float:
        """How many ports TIME_WAITs keep."""
        if self.reusable_after is None:
            return sum(self.schedule)
        return self.released_by(self.reusable_after)


class Point(NamedTuple):
    """What the history keeps of a sample."""

    at: float
    """Monotonic seconds."""
    live: float
    """Ports of the pool's own sockets that are not in TIME_WAIT."""
    taken: float
    """Ports that the next allocation cannot get for another reason than a TIME_WAIT of the pool."""
    closed: float
    """Connections that this host closed since the history began."""
    remaining: float


_PACKED = Struct(f"={len(Point._fields)}d")


@dataclass(frozen=True, slots=True)
class History:
    """The points of one pool, oldest first."""

    # Packed, because up to 10,000 pools may have a history, and a Point takes six objects.
    packed: bytes = b""
    usable: int = 0
    reusable_after: float | None = None

    @property
    def points(self) -> tuple[Point, ...]:
        """The points, oldest first."""
        return tuple(Point(*values) for values in _PACKED.iter_unpack(self.packed))

    def after(self, sample: PoolSample) -> History:
        """Return the history with one more sample.

        The history starts again where the port range or the reuse of TIME_WAITs has changed: ports taken before and
        after cannot be compared.
        """
        is_comparable = (self.usable, self.reusable_after) == (sample.usable, sample.reusable_after)
        kept = self._kept_at(sample.at) if is_comparable else b""
        closed = 0.0
        if kept:
            # The newest point counts the connections closed so far, also if the new sample takes its place.
            latest = _point(self.packed, -1)
            closed = latest.closed + sample.closed_within(sample.at - latest.at)
        new = _PACKED.pack(
            sample.at,
            max(0, sample.held - sum(sample.schedule)),
            sample.usable - sample.remaining - sample.kept_by_time_wait,
            closed,
            sample.remaining,
        )
        return History(kept + new, sample.usable, sample.reusable_after)

    def _kept_at(self, now: float) -> bytes:
        """Return the points that stay beside a new one at `now`, packed."""
        kept, size = self.packed, _PACKED.size
        # The newest point is always the newest poll; it stays only if it is far enough from the point before it.
        if len(kept) > size and _point(kept, -1).at - _point(kept, -2).at < _SPACING_SECONDS:
            kept = kept[:-size]
        # A rate over no time would divide by zero, so of two samples of one moment only the later one stays.
        while kept and _point(kept, -1).at >= now:
            kept = kept[:-size]
        while kept and now - _point(kept, 0).at > HISTORY_SECONDS:
            kept = kept[size:]
        return kept


def _point(packed: bytes, index: int) -> Point:
    """Return one of the points, the last for -1."""
    return Point(*_PACKED.unpack_from(packed, (index * _PACKED.size) % len(packed)))
