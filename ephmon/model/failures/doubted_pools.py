"""What a failed connect() says of a pool that seems to have room: which pools it puts in doubt, and what it may mean.

The kernel reports such a call only of a socket that had no port yet, and it tried every port that the socket may have.
So one of the `Cause`s holds. Which one is not known: the kernel shows neither a port range of the socket's own
(IP_LOCAL_PORT_RANGE) nor what the pool was like at that moment.

From then on the pool is in doubt: its estimate is its lower bound (`remaining_min`). The doubt ends in one of two ways:

- It is settled once the two bounds meet. The kernel has answered about each port, or the TIME_WAITs in question have
  ended, or a connection has shown that the peer speaks timestamps. Nothing of this rule has to be undone then, because
  the estimate lies between the bounds.
- It has grown old after DOUBT_SECONDS without another such call.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING

from ephmon.facts.socket_groups import ConnectKey

if TYPE_CHECKING:
    from ephmon.model.failures.counters import Exhaustions
    from ephmon.model.pools.kinds import Pool

DOUBT_SECONDS = 600.0
"""Programs that wait ever longer before they try again rarely wait longer than this."""
MOST_DOUBTED = 20
"""At most so many pools are in doubt, those with the latest failures: any user can make calls fail at will."""


class Cause(Enum):
    """Why connect() may have found no port in a pool that seems to have room."""

    PORTS_IN_DOUBT = auto()
    """Ports of which nobody knows whether connect() may share them are blocked."""
    NO_TIMESTAMPS = auto()
    """The peer speaks no TCP timestamps, so the kernel does not give its TIME_WAITs out again."""
    OWN_RANGE = auto()
    """The socket has a port range of its own, and that one is full."""
    FULL_BETWEEN_POLLS = auto()
    """The pool was full and has room again."""


def doubted_pools(exhaustions: Exhaustions | None, now: float) -> frozenset[ConnectKey]:
    """Return the pools of our own namespace that failed calls put in doubt, at most MOST_DOUBTED.

    Args:
        exhaustions: All failed calls; None if none were ever counted.
        now: Monotonic seconds.
    """
    latest = exhaustions.latest if exhaustions else ()
    lately = [event for event in latest if now - event.at_monotonic < DOUBT_SECONDS]
    keys = dict.fromkeys(
        ConnectKey(event.source, event.destination, event.destination_port) for event in reversed(lately)
    )
    return frozenset([*keys][:MOST_DOUBTED])


def possible_causes(pool: Pool) -> tuple[Cause, ...]:
    """Return what may have made a call fail toward a pool that seems to have room; nothing if it has none."""
    if not (pool.remaining or pool.is_doubted):
        return ()
    return (
        *((Cause.PORTS_IN_DOUBT,) if pool.in_doubt else ()),
        *((Cause.NO_TIMESTAMPS,) if pool.reusable_unproven else ()),
        Cause.OWN_RANGE,
        Cause.FULL_BETWEEN_POLLS,
    )
