"""Which pools connect() calls failed of late: the events of our own namespace by pool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ephmon.facts.addresses import address_text
from ephmon.facts.failed_calls import Destination
from ephmon.facts.namespaces import OWN_NETNS
from ephmon.model.pools.ignored_destinations import is_ignored
from ephmon.model.pools.kinds import PoolKey, PoolKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ephmon.facts.failed_calls import ExhaustionEvent
    from ephmon.model.failures.counters import Exhaustions
    from ephmon.model.rules import DestinationPattern

QUIET_SECONDS = 60.0
"""Without a failed connect() for so long it is over: ports that ran out leave TIME_WAIT within the same time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecentFailures:
    """The connect() calls of one pool that failed of late because no port was left."""

    key: PoolKey
    count: int
    """Since the start, toward the pool's destination; 1 where that is not counted."""
    last_at: float
    """When the last one failed, monotonic seconds."""
    call: ExhaustionEvent | None = None
    """The last one, and who made it if that is known."""


def recent_failures(
    exhaustions: Exhaustions, ignored: Sequence[DestinationPattern], now: float
) -> tuple[RecentFailures, ...]:
    """Return the pools of our own namespace that a call failed of within QUIET_SECONDS, the latest last.

    Ignored destinations are left out.
    """
    found: dict[PoolKey, RecentFailures] = {}
    for event in exhaustions.latest:
        if now - event.at_monotonic >= QUIET_SECONDS:
            continue
        if is_ignored((event.destination, event.destination_port), ignored):
            continue
        key = PoolKey(
            netns=OWN_NETNS,
            kind=PoolKind.TCP_CONNECT,
            source=address_text(event.source),
            destination=address_text(event.destination),
            destination_port=event.destination_port,
        )
        seen = exhaustions.destinations.get(Destination(OWN_NETNS, event.destination, event.destination_port))
        found[key] = RecentFailures(
            key=key,
            count=seen.events if seen else 1,
            last_at=event.at_monotonic,
            call=event,
        )
    return tuple(found.values())
