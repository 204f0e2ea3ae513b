"""Which pools are listed: a bounded, calm choice among any number of pools.

The worst `top` pools are wanted. A pool stays listed for a while after it has left them, while there is room, and only
`top` new ones may come in within the same time, so that somebody who picks destinations cannot churn the series of a
time-series database. A pool that was listed within that time and comes back is not new, as long as it is among the
latest that were; nor are those of the very first choice.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ephmon.model.pools.kinds import PoolKey

STAY_SECONDS = 600.0
"""How long a listed pool stays after it left the top, and the time within which newcomers are counted."""
KEPT_READINGS = 60
"""Into how many parts the window of the peak is divided at most."""
REMEMBERED_PER_PLACE = 3
"""How many pools are remembered as listed of late, for each that may be listed at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolMemory:
    """What is remembered of a listed pool. Times are monotonic seconds."""

    last_at_top: float
    peaks: tuple[tuple[float, float], ...] = ()
    """(time, utilisation) of the readings that may still become the peak of the window: falling, oldest first."""

    @property
    def peak(self) -> float:
        """The highest utilisation of the window."""
        return self.peaks[0][1] if self.peaks else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ListingMemory:
    """The listed pools, and what was listed of late."""

    listed: Mapping[PoolKey, PoolMemory] = field(default_factory=dict)
    seen: Mapping[PoolKey, float] = field(default_factory=dict)
    """When each pool of the last STAY_SECONDS was listed last; of those the latest, at most three times `top`."""
    entries: tuple[float, ...] = ()
    """When the newcomers of the last STAY_SECONDS came in; at most `top`."""
    is_first: bool = True


def choose(
    previous: ListingMemory, ranked: Sequence[PoolKey], existing: Sequence[PoolKey], top: int, now: float
) -> ListingMemory:
    """Return the next listing.

    Args:
        previous: The listing so far.
        ranked: The pools that may be listed, worst first; more than `top` are not looked at.
        existing: Those of the pools listed so far that exist, worst first.
        top: How many are listed at most.
        now: Monotonic seconds.
    """
    seen = {key: at for key, at in previous.seen.items() if now - at < STAY_SECONDS}
    entries = [at for at in previous.entries if now - at < STAY_SECONDS]
    listed = {}
    for key in ranked[:top]:
        if key not in seen and not previous.is_first:
            if len(entries) >= top:
                continue
            entries.append(now)
        listed[key] = replace(previous.listed.get(key, PoolMemory(last_at_top=now)), last_at_top=now)
    for key in existing:
        if key not in listed and len(listed) < top and now - previous.listed[key].last_at_top < STAY_SECONDS:
            listed[key] = previous.listed[key]
    return ListingMemory(
        listed=listed,
        seen=_latest(seen | dict.fromkeys(listed, now), REMEMBERED_PER_PLACE * top),
        entries=tuple(entries[-top:]),
        is_first=False,
    )


def _latest(seen: Mapping[PoolKey, float], number: int) -> dict[PoolKey, float]:
    """Return the entries with the latest times: pools that take turns would otherwise keep all of them alive."""
    return dict(sorted(seen.items(), key=itemgetter(1), reverse=True)[:number])


def remember(listed: PoolMemory, utilisation: float, now: float, window_seconds: float) -> PoolMemory:
    """Return `listed` with one more reading, without those that can no longer be the peak.

    At most KEPT_READINGS and one are kept: a reading below one that is not much older is passed over, so the peak may
    be forgotten early by that part of the window.
    """
    kept = tuple((at, ratio) for at, ratio in listed.peaks if now - at < window_seconds and ratio > utilisation)
    if kept and now - kept[-1][0] < window_seconds / KEPT_READINGS:
        return replace(listed, peaks=kept)
    return replace(listed, peaks=(*kept, (now, utilisation)))
