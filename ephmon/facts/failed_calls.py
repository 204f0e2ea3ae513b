"""Facts: connect() calls that failed because no port was left, as the kernel told of them.

`ephmon.kernel` builds these values, `ephmon.model.failures.counters` adds them up.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ephmon.facts.namespaces import Netns


class Destination(NamedTuple):
    """Where a connect() was to lead, and from which namespace."""

    netns: str
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
    """Packed, as the next: the address that routing or bind() chose."""
    destination: bytes
    destination_port: int
    family: int
    """The family of the socket: AF_INET6 with IPv4 addresses is an IPv4-mapped connection."""
    thread_id: int
    """The thread that called connect(), in the host's numbers."""
    pid: int | None = None
    """The process it belonged to, None if it was gone."""
    command: str | None = None
    """The name of the thread, mostly that of its program, None if it was gone: printable, all else escaped."""
    uid: int | None = None
    """The effective user id of the caller, None if it was gone."""
    cgroup: str | None = None
    """The path of its cgroup (cgroup2), None if it was gone or has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExhaustionBatch:
    """What happened since the last batch: a bounded value, however many events there were."""

    totals: Mapping[Netns, int] = field(default_factory=dict)
    """Every event that was read."""
    destinations: Mapping[Destination, int] = field(default_factory=dict)
    """The same events by destination; those toward destinations beyond a bound are left out."""
    events: tuple[ExhaustionEvent, ...] = ()
    """The last of each kind of namespace, oldest first."""
    latest: tuple[ExhaustionEvent, ...] = ()
    """The last toward each destination of our own namespace, from each source; those beyond a bound are left out."""
    lost: int = 0
    """Events that the kernel counted and nobody read."""
