"""Which pools are listed, so that they have series and rows: a bounded number that changes slowly.

The same is done with network namespaces.

- The worst `top` pools are listed.
- A pool that leaves these stays listed for STAY_SECONDS more, while there is room.
- At most `top` new pools are listed within STAY_SECONDS (`ephmon.model.newcomers`).
- A pool that was listed within STAY_SECONDS and comes back is not new, if it is among the latest such pools.
- The pools of the first choice are not new either: they were there when ephmon started.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Generic, TypeVar

from ephmon.model.newcomers import Admission, Newcomers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Key = TypeVar("Key")

STAY_SECONDS = 600.0
"""How long a pool stays listed after it left the worst, and the time in which new pools are counted."""
KEPT_READINGS = 60
"""A peak keeps at most so many readings of its window, plus one: of the default minute, one for each second."""
REMEMBERED_PER_LISTED = 3
"""How many pools are remembered as listed recently, for each pool that may be listed at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolMemory:
    """What is remembered of a listed pool. Times are monotonic seconds."""

    last_at_top: float
    """When it was among the worst `top` pools last."""
    peaks: tuple[tuple[float, float], ...] = ()
    """(time, utilisation) of the readings that may still become the peak of the window, oldest first.

    Their utilisation falls. A reading below a later one never is the peak again, so it is not kept.
    """

    @property
    def peak(self) -> float:
        """The highest utilisation of the window."""
        return self.peaks[0][1] if self.peaks else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ListingMemory(Generic[Key]):
    """The listed pools, and those that were listed recently. Times are monotonic seconds."""

    listed: Mapping[Key, PoolMemory] = field(default_factory=dict)
    newcomers: Newcomers[Key] = field(default_factory=Newcomers)
    """The pools of the last STAY_SECONDS, the latest REMEMBERED_PER_LISTED * `top` of them."""
    is_first: bool = True


def choose(
    previous: ListingMemory[Key], ranked: Sequence[Key], existing: Sequence[Key], top: int, now: float
) -> ListingMemory[Key]:
    """Return the next listing.

    Args:
        previous: The listing so far.
        ranked: The pools that may be listed, worst first. Only the first `top` are looked at.
        existing: The pools listed so far that still exist, worst first.
        top: How many pools are listed at most.
        now: Monotonic seconds.
    """
    # The pools of the first choice are not new.
    before = Newcomers(seen=dict.fromkeys(ranked[:top], now)) if previous.is_first else previous.newcomers
    admission = Admission(before, most=top, seconds=STAY_SECONDS, now=now)
    listed = {
        key: replace(previous.listed.get(key, PoolMemory(last_at_top=now)), last_at_top=now)
        for key in ranked[:top]
        if admission.admits(key)
    }
    for key in existing:
        if key not in listed and len(listed) < top and now - previous.listed[key].last_at_top < STAY_SECONDS:
            listed[key] = previous.listed[key]
    newcomers = admission.after(listed, REMEMBERED_PER_LISTED * top)
    return ListingMemory(listed=listed, newcomers=newcomers, is_first=False)


def remember(listed: PoolMemory, utilisation: float, now: float, window_seconds: float) -> PoolMemory:
    """Return the memory of a listed pool after one more reading.

    Args:
        listed: The memory before it.
        utilisation: The utilisation ratio that was read.
        now: Monotonic seconds.
        window_seconds: How far back the peak reaches.
    """
    kept = tuple((at, ratio) for at, ratio in listed.peaks if now - at < window_seconds and ratio > utilisation)
    # A reading soon after a higher one is left out. It could only become the peak for its last moment in the window, so
    # the peak is forgotten too early by at most 1 / KEPT_READINGS of the window.
    if kept and now - kept[-1][0] < window_seconds / KEPT_READINGS:
        return replace(listed, peaks=kept)
    return replace(listed, peaks=(*kept, (now, utilisation)))
