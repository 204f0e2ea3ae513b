"""How fast the ports of a pool are taken: the two rates of the forecast, and what of a change may be chance.

Both rates are slopes over the recent points of a history. A slope counts only where both halves of its time agree, so a
single step is not taken for a trend.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import inf, sqrt
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ephmon.model.forecast.history import Point

LEAST_POLLS = 3
"""A rate needs so many points: two halves of a time have three ends."""

_SIGMAS = 3.0
"""How many standard deviations stand out from the noise. Chance exceeds three in about one of 370 cases."""
_LEAST_CHANGES = 5
"""The median of fewer changes of pace says little; then the noise is bounded by the number of connections alone."""
_AGREEING = 2.0
"""Two slopes agree if the larger is at most so many times the smaller."""
_MEDIAN_OF_SIZE = 0.6745
"""The median of the absolute value of a normal variable, in standard deviations."""


@dataclass(frozen=True, slots=True)
class Noise:
    """How much the number of live connections changes by chance."""

    live: float
    """Connections open now. As they open independently, the variance of their number is at most that number."""
    wander: float
    """Standard deviation of the change in one second. It grows with the square root of the time, as a random walk's."""

    @classmethod
    def of(cls, points: Sequence[Point]) -> Noise:
        """Measure the noise from how much the pace changes between points; a steady trend adds nothing to that."""
        # A random walk of deviation w has a pace of deviation w / sqrt(t) over t seconds. So the difference of two
        # paces, divided by that root, is one measurement of w, however far apart the polls were.
        changes = [
            abs((c.taken - b.taken) / (c.at - b.at) - (b.taken - a.taken) / (b.at - a.at))
            / sqrt(1 / (c.at - b.at) + 1 / (b.at - a.at))
            for (a, b), (_, c) in pairwise(pairwise(points))
        ]
        # The median, because one step of the load is a huge change of pace and would make everything else look small.
        wander = median(changes) / _MEDIAN_OF_SIZE if len(changes) >= _LEAST_CHANGES else inf
        return cls(points[-1].live, wander)

    def hides(self, change: float, seconds: float) -> bool:
        """Tell whether a change of so many ports in so many seconds may be chance."""
        size = abs(change)
        if size <= _SIGMAS * sqrt(size):  # a few ports: their own opening times alone explain it
            return True
        # Each bound holds by itself, so the smaller one is closer. The difference of two counts has twice the variance.
        return size <= _SIGMAS * min(sqrt(2 * self.live), self.wander * sqrt(seconds))


def start_of_latest(points: Sequence[Point], seconds: float) -> int:
    """Return the index from which the latest points span so many seconds, 0 if all points span less.

    They are LEAST_POLLS points at least.
    """
    return next((i for i in range(len(points) - LEAST_POLLS, 0, -1) if points[-1].at - points[i].at >= seconds), 0)


def closing_rate(points: Sequence[Point], recent: int) -> float:
    """Return how many connections this host closes each second; `recent` is the index where the recent points start."""
    times, closed = [point.at for point in points], [point.closed for point in points]
    of_late = _agreed_slope(times[recent:], closed[recent:])
    # A load that has just stopped: the latest poll saw less than half of the closings, and chance does not explain it.
    seconds, latest = times[-1] - times[-2], closed[-1] - closed[-2]
    expected = of_late * seconds
    if latest < expected / _AGREEING and expected - latest > _SIGMAS * sqrt(expected):
        return latest / seconds
    # The whole history measures a steady load more closely, so it is used unless it differs by more than chance.
    overall = (closed[-1] - closed[0]) / (times[-1] - times[0])
    is_chance = abs(overall - of_late) * (times[-1] - times[recent]) <= _SIGMAS * sqrt(closed[-1] - closed[recent])
    return overall if is_chance else of_late


def growth_rate(points: Sequence[Point], start: int, noise: Noise) -> float:
    """Return by how many ports a second `taken` grows since a point, 0 where that is not believed to go on.

    Negative where `taken` falls.

    Args:
        points: The history.
        start: Index of the point to measure from.
        noise: That of the history.
    """
    times, taken = [point.at for point in points[start:]], [point.taken for point in points[start:]]
    middle, last = _middle(times), len(times) - 1
    # Both halves have to show the change, else it is one step.
    if any(noise.hides(taken[j] - taken[i], times[j] - times[i]) for i, j in ((0, middle), (middle, last))):
        return 0.0
    earlier, later = _slopes_of_halves(times, taken)
    # A rise that slows down ends at a new level, and one that the latest poll did not see has ended already.
    if earlier > _AGREEING * later > 0 or _has_stopped(points, later, noise):
        return 0.0
    growth = _agreed_slope(times, taken)
    return 0.0 if growth > 0 and _turned_before(points, growth, noise) else growth


def _has_stopped(points: Sequence[Point], growth: float, noise: Noise) -> bool:
    """Tell whether the latest poll saw less than half of the growth that it should have seen."""
    *_, before, now = points
    seconds, change = now.at - before.at, now.taken - before.taken
    lacking = growth * seconds - change
    return abs(change) < abs(growth) * seconds / _AGREEING and not noise.hides(lacking, seconds)


def _turned_before(points: Sequence[Point], growth: float, noise: Noise) -> bool:
    """Tell whether `taken` was as high before and fell again although ports remained, as a saw-tooth does."""
    now = points[-1]
    index = max(range(len(points) - 1), key=lambda i: points[i].taken)
    peak = points[index]
    trough = min(points[index:], key=lambda point: point.taken)
    fell = not noise.hides(peak.taken - trough.taken, trough.at - peak.at)
    # Polls do not see the very top: `taken` may have risen on until shortly before the poll after the peak.
    before = points[max(0, index - 1)]
    slope = max(growth, (peak.taken - before.taken) / (peak.at - before.at) if index else 0.0)
    unseen = slope * (points[index + 1].at - peak.at)
    # If the unseen rise could have used up what remained, the pool may have turned because it was exhausted.
    return fell and now.taken - peak.taken <= unseen < peak.remaining


def _agreed_slope(times: Sequence[float], values: Sequence[float]) -> float:
    """Return the slope over all points, or 0 if the halves differ in sign.

    Where one half is more than _AGREEING times as steep, it is the slope of the flatter half: a load that has just
    begun is underestimated rather than overestimated.
    """
    earlier, later = _slopes_of_halves(times, values)
    if earlier * later <= 0:
        return 0.0
    smaller, larger = sorted((earlier, later), key=abs)
    if abs(larger) > _AGREEING * abs(smaller):
        return smaller
    return (values[-1] - values[0]) / (times[-1] - times[0])


def _slopes_of_halves(times: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Return the slopes of the earlier and of the later half of the time."""
    middle = _middle(times)
    return (
        (values[middle] - values[0]) / (times[middle] - times[0]),
        (values[-1] - values[middle]) / (times[-1] - times[middle]),
    )


def _middle(times: Sequence[float]) -> int:
    """Return the index of the time nearest to the middle, neither the first nor the last."""
    centre = (times[0] + times[-1]) / 2
    return min(range(1, len(times) - 1), key=lambda i: abs(times[i] - centre))
