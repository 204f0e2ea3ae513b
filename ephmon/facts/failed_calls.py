"""Facts: connect() calls that failed because no port was left, as the kernel traced them.

`ephmon.kernel` builds these values, `ephmon.model.failures.counters` adds them up.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ephmon.facts.namespaces import Netns


class Destination(NamedTuple):
    """Where a connect() leads to, and from which network namespace."""

    netns: str
    """Its label."""
    address: bytes
    """Packed; an IPv4-mapped IPv6 address is given as its IPv4 address."""
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExhaustionEvent:
    """One connect() that failed because no port was left."""

    at: float
    """Seconds since the epoch."""
    at_monotonic: float
    """Seconds of CLOCK_MONOTONIC."""
    netns: Netns
    source: bytes
    """The address that routing or bind() chose, packed."""
    destination: bytes
    """Packed."""
    destination_port: int
    family: int
    """The address family of the socket. AF_INET6 with IPv4 addresses is an IPv4-mapped connection."""
    thread_id: int
    """The id of the thread that called connect(), in the host's pid namespace."""
    pid: int | None = None
    """The process it belonged to, None if it was gone."""
    command: str | None = None
    """The name of the thread, usually that of its program, as `escaped` writes it. None if it was gone."""
    uid: int | None = None
    """The effective user id of the caller, None if it was gone."""
    cgroup: str | None = None
    """The path of its cgroup (cgroup2), None if it was gone or has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExhaustionBatch:
    """What happened since the last batch. Its size is bounded, however many events there were."""

    totals: Mapping[Netns, int] = field(default_factory=dict)
    """How many events were read, by namespace."""
    destinations: Mapping[Destination, int] = field(default_factory=dict)
    """The same by destination. Only so many destinations are counted; events to others are left out here."""
    events: tuple[ExhaustionEvent, ...] = ()
    """The latest events of our own namespace and of all others, oldest first."""
    latest: tuple[ExhaustionEvent, ...] = ()
    """The latest event of our own namespace for each source, destination and user, of so many of them."""
    lost: int = 0
    """Events that the kernel counted but overwrote before they were read."""
