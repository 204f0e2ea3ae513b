"""Which pools are the worst: the one order in which pools are shown, judged and listed.

The order is: highest utilisation first, then most ports held, then the key.

A host may have tens of thousands of pools and show fifty. So pools are ranked lazily. What is known of every pool for
free is the number of its sockets, and that bounds how bad it can be. Pools are looked at in the order of this bound,
and no longer than the bound of the next one can still make a difference.
"""

from __future__ import annotations

import math
from heapq import heappop, heappush, nsmallest
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from ephmon.facts.addresses import packed_address
from ephmon.model.pools.ignored_destinations import is_ignored
from ephmon.model.pools.kinds import PoolKind, share_of_usable
from ephmon.model.pools.tcp_connect import connect_key

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Sequence

    from ephmon.model.pools.kinds import Pool, PoolKey
    from ephmon.model.rules import DestinationPattern

Key = TypeVar("Key")


class PoolSet(Protocol[Key]):
    """All pools of one kind in one namespace. Each has a key of the kind's own, as building a `PoolKey` takes time."""

    kind: PoolKind
    netns: str
    usable: int
    """Usable ports of the namespace."""

    def __len__(self) -> int:
        """How many pools exist."""

    def __iter__(self) -> Iterator[Key]:
        """The keys of the pools that exist."""

    def by_upper_bound(self) -> Iterator[tuple[int, int, Key]]:
        """Yield each pool with upper bounds of both numbers of `lost_and_held`, the highest first bound first."""

    def lost_and_held(self, key: Key) -> tuple[int, int]:
        """Return how many usable ports the pool's next allocations cannot get, and how many its sockets hold."""

    def destination(self, key: Key) -> tuple[bytes, int] | None:
        """Return the packed address and the port that the pool leads to, None for a kind without a destination."""

    def find(self, key: PoolKey) -> Key | None:
        """Return the own key of a pool that exists, None for others."""

    def pool(self, key: Key) -> Pool:
        """Return a pool, also one that does not exist."""


class RankedPool(NamedTuple):
    """A pool that is not built yet, with what it is ordered by."""

    utilisation: float
    held: int
    pools: PoolSet[Any]
    key: Any

    @property
    def worst_first(self) -> tuple[float, int, str, str, Any]:
        """The sort key of the pool, as `worst_first` returns it for the pool once it is built."""
        return _worst_first(self.utilisation, self.held, self.pools.netns, self.pools.kind, self.key)

    def build(self) -> Pool:
        """Return the pool itself."""
        return self.pools.pool(self.key)


def worst_first(pool: Pool) -> tuple[float, int, str, str, Any]:
    """Return the sort key of a pool: utilisation, then ports held, both descending, then what identifies it."""
    key = pool.key
    own = connect_key(key) or packed_address(key.source)
    return _worst_first(pool.utilisation, pool.held, key.netns, key.kind, own)


def _worst_first(utilisation: float, held: int, netns: str, kind: str, own: Any) -> tuple[float, int, str, str, Any]:
    # The key comes last, so that equal pools keep their order from poll to poll, whatever the order of the sockets.
    return -utilisation, -held, netns, kind, own


def every_pool_unordered(
    pool_sets: Iterable[PoolSet[Any]], ignored: Sequence[DestinationPattern]
) -> Iterator[RankedPool]:
    """Yield all pools that are not ignored."""
    for pools in pool_sets:
        yield from _by_utilisation_bound(pools, ignored)


def worst_pools(
    pool_sets: Iterable[PoolSet[Any]],
    ignored: Sequence[DestinationPattern],
    *,
    number: int,
    at_least: float = 0.0,
    held: int = 0,
) -> list[RankedPool]:
    """Return the worst pools, worst first.

    Args:
        pool_sets: The pools to choose from.
        ignored: Destinations that are left out.
        number: How many pools to return at most.
        at_least: The utilisation ratio that each has at least.
        held: How many ports of the range the sockets of each hold at least.
    """
    entries: list[RankedPool] = []
    best: list[float] = []  # the highest `number` utilisations so far, as a heap

    # Once there are `number` pools, one that cannot reach the lowest of them makes no difference any more. One that can
    # equal it still does, as the number of ports held decides then.
    def to_beat() -> float:
        return max(at_least, best[0]) if len(best) == number else at_least

    for pools in pool_sets:
        for entry in _by_utilisation_bound(pools, ignored, at_least=to_beat, held=held):
            if entry.held >= held and entry.utilisation >= at_least:
                entries.append(entry)
                heappush(best, entry.utilisation)
                if len(best) > number:
                    heappop(best)
    return nsmallest(number, entries, key=attrgetter("worst_first"))


def worst_utilisation(
    pools: PoolSet[Key], ignored: Sequence[DestinationPattern], but: Container[Key] = ()
) -> float | None:
    """Return the highest utilisation of the pools that are not ignored, None if there are none.

    Args:
        pools: The pools.
        ignored: Destinations that are left out.
        but: Own keys of pools that are left out too.
    """
    worst: float | None = None

    # Only a pool that may exceed the worst one is of interest, so one that may only equal it is not looked at.
    def to_beat() -> float:
        return 0.0 if worst is None else math.nextafter(worst, 2.0)

    for entry in _by_utilisation_bound(pools, ignored, at_least=to_beat):
        if entry.key not in but:
            worst = max(worst or 0.0, entry.utilisation)
    return worst


def _by_utilisation_bound(
    pools: PoolSet[Any],
    ignored: Sequence[DestinationPattern],
    *,
    at_least: Callable[[], float] = lambda: 0.0,
    held: int = 0,
) -> Iterator[RankedPool]:
    """Yield the pools that may have the utilisation `at_least()` and hold so many ports, and perhaps some others.

    Args:
        pools: The pools to choose from.
        ignored: Destinations that are left out.
        at_least: Asked before each pool, because the caller's demand may have grown with the pools yielded so far.
        held: How many ports of the range the sockets of the pool hold at least.
    """
    for most_lost, most_held, key in pools.by_upper_bound():
        # Bounds fall from pool to pool, so no later pool can do what this one cannot.
        if most_held < held or share_of_usable(most_lost, pools.usable) < at_least():
            return
        if not (ignored and is_ignored(pools.destination(key), ignored)):
            lost, held_by_pool = pools.lost_and_held(key)
            yield RankedPool(share_of_usable(lost, pools.usable), held_by_pool, pools, key)
