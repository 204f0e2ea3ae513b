"""What is known of failed connect() calls since the start: batches of events in, counters and the last events out.

Anybody on the host can cause such events, at any rate, toward any destination and in namespaces of their own. So all
that is kept is bounded, what other namespaces do takes no place from our own, and only `own` is a reason for an alert.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from ephmon.facts.namespaces import OTHER_NETNS, OWN_NETNS, UNKNOWN_NETNS

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from ephmon.facts.failed_calls import Destination, ExhaustionBatch, ExhaustionEvent

LABELS = (OWN_NETNS, OTHER_NETNS, UNKNOWN_NETNS)
"""The values of the label `netns`."""
STAY_SECONDS = 600.0
"""So long a destination keeps its place after its last event, or after its pool left the list."""
MOST_EVENTS = 100
"""The last events of our own namespace that are remembered, and the last of all others."""
MOST_LATEST = 500
"""Of so many pools the last failure is remembered."""
MOST_NAMESPACES = 32
"""So many other namespaces are told apart."""


class Count(NamedTuple):
    """The failed calls toward one destination."""

    events: int
    active_at: float
    """Monotonic seconds of the last batch in which it had an event or its pool was listed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exhaustions:
    """The failed connect() calls since the start."""

    totals: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(LABELS, 0))
    """Every event that was read, by label; each label is there from the beginning."""
    namespaces: Mapping[int, int] = field(default_factory=dict)
    """Events of other namespaces by inode, where it is known: of those that had one last, which come last.

    One that leaves and comes back begins at 0; `totals` has all.
    """
    destinations: Mapping[Destination, Count] = field(default_factory=dict)
    """A bounded choice of destinations."""
    events: tuple[ExhaustionEvent, ...] = ()
    """The last events of each kind of namespace, oldest first."""
    latest: tuple[ExhaustionEvent, ...] = ()
    """The last event toward each destination of our own namespace, from each source, oldest first; a bounded number."""
    lost: int = 0
    """Events that happened and were not read. Together with `totals`, all there were, our own probe's left out."""


def counted(
    previous: Exhaustions, batch: ExhaustionBatch, *, listed: Collection[Destination], top: int, now: float
) -> Exhaustions:
    """Return what is known after one more batch.

    Args:
        previous: What was known before it.
        batch: What happened since.
        listed: The destinations of the listed pools; they are counted from 0 on.
        top: How many destinations are counted one by one, at most.
        now: Monotonic seconds.
    """
    totals, namespaces = Counter(previous.totals), dict(previous.namespaces)
    for (label, inode), number in batch.totals.items():
        totals[label] += number
        if label == OTHER_NETNS and inode is not None:
            namespaces[inode] = namespaces.pop(inode, 0) + number
    return Exhaustions(
        totals=dict(totals),
        namespaces=dict([*namespaces.items()][-MOST_NAMESPACES:]),
        destinations=_destinations(previous.destinations, batch.destinations, listed, top, now),
        events=_remembered((*previous.events, *batch.events)),
        latest=_latest((*previous.latest, *batch.latest)),
        lost=previous.lost + batch.lost,
    )


def _destinations(
    previous: Mapping[Destination, Count],
    events: Mapping[Destination, int],
    listed: Collection[Destination],
    top: int,
    now: float,
) -> dict[Destination, Count]:
    """Return the destinations that are counted one by one from now on.

    Listed pools come first, then our own namespace; among equals those that are in place and were active of late, so
    that a client that picks destinations cannot churn series; then whoever was active last.
    """
    counts = dict(previous)
    for key in {**dict.fromkeys(listed), **events}:
        before = counts.get(key, Count(0, now))
        counts[key] = Count(before.events + events.get(key, 0), now)
    wanted = set(listed)

    def claim(key: Destination) -> tuple[bool, bool, bool, float, int]:
        is_in_place = key in previous and now - counts[key].active_at < STAY_SECONDS
        return key in wanted, key.netns == OWN_NETNS, is_in_place, counts[key].active_at, counts[key].events

    return {key: counts[key] for key in sorted(counts, key=claim, reverse=True)[:top]}


def _remembered(events: tuple[ExhaustionEvent, ...]) -> tuple[ExhaustionEvent, ...]:
    """Return the last events of our own namespace and the last of others, in the order of their times."""
    own = [event for event in events if event.netns.label == OWN_NETNS][-MOST_EVENTS:]
    others = [event for event in events if event.netns.label != OWN_NETNS][-MOST_EVENTS:]
    return tuple(sorted((*own, *others), key=lambda event: event.at_monotonic))


def _latest(events: tuple[ExhaustionEvent, ...]) -> tuple[ExhaustionEvent, ...]:
    """Return the last event of each pool, of the pools that failed last."""
    found: dict[tuple[bytes, bytes, int], ExhaustionEvent] = {}
    for event in sorted(events, key=lambda event: event.at_monotonic):
        ends = (event.source, event.destination, event.destination_port)
        found.pop(ends, None)
        found[ends] = event
    return tuple(found.values())[-MOST_LATEST:]
