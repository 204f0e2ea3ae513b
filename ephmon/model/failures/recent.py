"""The pools of our own namespace for which a connect() failed within the last minute."""

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
"""After so long without a failed connect() the failures are over. It is about as long as a TIME_WAIT keeps a port."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecentFailures:
    """The connect() calls of one pool that failed recently because no port was left."""

    key: PoolKey
    count: int
    """Failures toward the pool's destination since the start; 1 if that destination is not counted."""
    last_at: float
    """When the last call failed, monotonic seconds."""
    call: ExhaustionEvent | None = None
    """The last call, with who made it if that is known."""
    uids: frozenset[int | None] = frozenset()
    """Whose calls failed; None stands for a user who is not known."""


def recent_failures(
    exhaustions: Exhaustions, ignored: Sequence[DestinationPattern], now: float
) -> tuple[RecentFailures, ...]:
    """Return the pools of our own namespace for which a call failed within QUIET_SECONDS, the latest last.

    Args:
        exhaustions: All failed calls.
        ignored: Destinations that are left out.
        now: Monotonic seconds.
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
        before = found.pop(key, None)  # so that the latest comes last
        seen = exhaustions.destinations.get(Destination(OWN_NETNS, event.destination, event.destination_port))
        found[key] = RecentFailures(
            key=key,
            count=seen.events if seen else 1,
            last_at=event.at_monotonic,
            call=event,
            uids=(before.uids if before else frozenset()) | {event.uid},
        )
    return tuple(found.values())
