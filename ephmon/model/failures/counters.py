"""Counters of failed connect() calls since the start, and the last such calls: batches of events are added to them.

Any user of the host can cause such events, at any rate, toward any destination and in namespaces of their own. So:

- Everything that is kept is bounded, and so is what is new in an hour.
- Events of other namespaces never push out those of our own.
- Only events of our own namespace are a reason for an alert.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from ephmon.facts.namespaces import OTHER_NETNS, OWN_NETNS, UNKNOWN_NETNS
from ephmon.model.newcomers import Admission, Newcomers

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from ephmon.facts.failed_calls import Destination, ExhaustionBatch, ExhaustionEvent

LABELS = (OWN_NETNS, OTHER_NETNS, UNKNOWN_NETNS)
"""The values of the label `netns`."""
NEW_SECONDS = 3600.0
"""Within so long at most NEW_PER_COUNTED * `top` new destinations of a label are counted one by one.

Those of listed pools are always.
"""
NEW_PER_COUNTED = 3
STAY_SECONDS = 600.0
"""How long a destination stays counted after its last event, or after its pool left the list."""
MOST_EVENTS = 100
"""How many of the last events of our own namespace are remembered, and how many of the last of all others."""
MOST_LATEST = 500
"""Of how many pools the last failure is remembered, once for each user."""
MOST_LATEST_OF_USER = 100
"""The same for one user."""
MOST_NAMESPACES = 32
"""How many other namespaces are counted one by one."""


class Count(NamedTuple):
    """The failed calls toward one destination."""

    events: int
    active_at: float
    """Monotonic seconds of the last batch in which the destination had an event or its pool was listed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exhaustions:
    """The failed connect() calls since the start."""

    totals: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(LABELS, 0))
    """Every event that was read, by label. Each label is there from the start, so that its first increase is seen."""
    namespaces: Mapping[int, int] = field(default_factory=dict)
    """Events of other namespaces by inode, where it is known: of the MOST_NAMESPACES that had an event last.

    The latest comes last. A namespace that was dropped and comes back starts at 0; `totals` has all its events.
    """
    destinations: Mapping[Destination, Count] = field(default_factory=dict)
    """A bounded choice of destinations, see `_chosen`."""
    others: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(LABELS, 0))
    """Events toward all other destinations, by label. Those of one that is counted no longer are not added."""
    newcomers: Mapping[str, Newcomers[Destination]] = field(default_factory=dict)
    """The destinations that were counted in the last NEW_SECONDS, by label."""
    events: tuple[ExhaustionEvent, ...] = ()
    """The last events of each kind of namespace, oldest first."""
    latest: tuple[ExhaustionEvent, ...] = ()
    """The last event of each user toward each destination of our own namespace, from each source, oldest first.

    A bounded number.
    """
    lost: int = 0
    """Events that happened and were not read. With `totals` they are all events but those of our own probe."""


def add_batch(
    previous: Exhaustions, batch: ExhaustionBatch, *, listed: Collection[Destination], top: int, now: float
) -> Exhaustions:
    """Return the counters after one more batch.

    Args:
        previous: The counters before it.
        batch: What happened since.
        listed: The destinations of the listed pools. They are counted from 0 on, also without an event.
        top: How many destinations are counted one by one at most.
        now: Monotonic seconds.
    """
    totals, namespaces = Counter(previous.totals), dict(previous.namespaces)
    for (label, inode), number in batch.totals.items():
        totals[label] += number
        if label == OTHER_NETNS and inode is not None:
            # Popped first, so that it moves to the end: the namespaces with the latest events come last and stay.
            namespaces[inode] = namespaces.pop(inode, 0) + number
    admissions = {
        label: Admission(
            previous.newcomers.get(label, Newcomers()), most=NEW_PER_COUNTED * top, seconds=NEW_SECONDS, now=now
        )
        for label in LABELS
    }
    counts = _counts(previous.destinations, batch.destinations, listed, now)
    destinations = _chosen(counts, previous.destinations, listed, admissions, top=top, now=now)
    return Exhaustions(
        totals=dict(totals),
        namespaces=dict([*namespaces.items()][-MOST_NAMESPACES:]),
        destinations=destinations,
        others=_others(previous.others, batch, destinations),
        newcomers={
            label: admission.after([key for key in destinations if key.netns == label], NEW_PER_COUNTED * top)
            for label, admission in admissions.items()
        },
        events=_last_events((*previous.events, *batch.events)),
        latest=_last_of_each_pool((*previous.latest, *batch.latest)),
        lost=previous.lost + batch.lost,
    )


def _counts(
    previous: Mapping[Destination, Count],
    events: Mapping[Destination, int],
    listed: Collection[Destination],
    now: float,
) -> dict[Destination, Count]:
    """Return the counters of all destinations that there are."""
    counts = dict(previous)
    for key in {**dict.fromkeys(listed), **events}:
        before = counts.get(key, Count(0, now))
        counts[key] = Count(before.events + events.get(key, 0), now)
    return counts


def _chosen(
    counts: Mapping[Destination, Count],
    previous: Collection[Destination],
    listed: Collection[Destination],
    admissions: Mapping[str, Admission[Destination]],
    *,
    top: int,
    now: float,
) -> dict[Destination, Count]:
    """Return the destinations that are counted one by one from now on: at most `top`.

    These come first: destinations of listed pools, then those of our own namespace, then those that are counted already
    and were active within STAY_SECONDS, then those that were active last, then those with most events. Of new ones only
    those come in that are admitted.
    """
    is_listed = set(listed)

    def priority(key: Destination) -> tuple[bool, bool, bool, float, int]:
        stays = key in previous and now - counts[key].active_at < STAY_SECONDS
        return key in is_listed, key.netns == OWN_NETNS, stays, counts[key].active_at, counts[key].events

    chosen: dict[Destination, Count] = {}
    for key in sorted(counts, key=priority, reverse=True):
        if len(chosen) == top:
            break
        if key in is_listed or key in previous or admissions[key.netns].admits(key):
            chosen[key] = counts[key]
    return chosen


def _others(previous: Mapping[str, int], batch: ExhaustionBatch, counted: Collection[Destination]) -> dict[str, int]:
    """Return the events by label that no destination counts, after one more batch."""
    others = Counter(previous)
    for (label, _), number in batch.totals.items():
        others[label] += number
    for destination, number in batch.destinations.items():
        if destination in counted:
            others[destination.netns] -= number
    return dict(others)


def _last_events(events: tuple[ExhaustionEvent, ...]) -> tuple[ExhaustionEvent, ...]:
    """Return the last events of our own namespace and the last of all others, oldest first."""
    own = [event for event in events if event.netns.label == OWN_NETNS][-MOST_EVENTS:]
    others = [event for event in events if event.netns.label != OWN_NETNS][-MOST_EVENTS:]
    return tuple(sorted((*own, *others), key=lambda event: event.at_monotonic))


def _last_of_each_pool(events: tuple[ExhaustionEvent, ...]) -> tuple[ExhaustionEvent, ...]:
    """Return the last event of each user toward each of the pools that failed last, oldest first.

    So many of a user and in all: a user who fails toward ever new destinations must not hide the failures of others.
    """
    seen: set[tuple[bytes, bytes, int, int | None]] = set()
    of_user: Counter[int | None] = Counter()
    last: list[ExhaustionEvent] = []
    for event in sorted(events, key=lambda event: event.at_monotonic, reverse=True):
        key = (event.source, event.destination, event.destination_port, event.uid)
        if key not in seen and of_user[event.uid] < MOST_LATEST_OF_USER:
            seen.add(key)
            of_user[event.uid] += 1
            last.append(event)
    return tuple(reversed(last[:MOST_LATEST]))
