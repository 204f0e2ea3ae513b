"""Facts: whether the connections of a destination use TCP timestamps, as live connections showed.

The kernel reuses a TIME_WAIT only if its connection used timestamps. It does not show whether it did. Of live
connections it does: TCPI_OPT_TIMESTAMPS in `tcpi_options` of struct tcp_info (include/uapi/linux/tcp.h). So those stand
for the TIME_WAITs with the same key.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from ephmon.facts.socket_groups import ConnectKey

SETTLING_SECONDS = 64.0
"""After so long every TIME_WAIT of the time before is gone: it lasts 60 seconds, and its timer is up to 4 late."""
KEPT_SECONDS = 600.0
"""What was seen is believed for so long. A peer may be replaced by another, or its setting may be changed."""
ASK_AGAIN_SECONDS = 30.0
MOST_KEPT = 1_000
"""So many keys are remembered, those that were seen last."""


class TimestampQuestion(NamedTuple):
    """Live connections of one key that are to be asked whether they use TCP timestamps."""

    key: ConnectKey
    device: int
    """Interface index that their sockets are bound to, 0 if none."""
    ports: tuple[int, ...]
    """Their local ports."""


class _Seen(NamedTuple):
    """When a live connection with timestamps and one without were seen last, in monotonic seconds."""

    with_at: float = -math.inf
    without_at: float = -math.inf

    @property
    def last_at(self) -> float:
        return max(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerTimestamps:
    """What is known at one moment of the connect keys of one namespace. Times are monotonic seconds."""

    now: float = 0.0
    is_on: bool | None = None
    """Whether `net.ipv4.tcp_timestamps` is on, None before that was read."""
    unknown_until: float = -math.inf
    seen: Mapping[ConnectKey, _Seen] = field(default_factory=dict)

    def of(self, key: ConnectKey) -> bool | None:
        """Tell whether the connections of a key use timestamps; None if nobody has seen, or has seen both lately."""
        seen = self.seen.get(key)
        if seen is None or self.now < self.unknown_until:
            return None
        if abs(seen.with_at - seen.without_at) <= SETTLING_SECONDS:
            return None
        return seen.with_at > seen.without_at

    def seen_lately(self) -> Iterator[ConnectKey]:
        """Yield the keys whose live connections need not be asked again yet."""
        return (key for key, one in self.seen.items() if self.now - one.last_at < ASK_AGAIN_SECONDS)

    def at(self, now: float, *, is_on: bool) -> PeerTimestamps:
        """Return what is still known at a later moment; `is_on` as above, and after a change nothing is."""
        if self.is_on not in (None, is_on):
            return PeerTimestamps(now=now, is_on=is_on, unknown_until=now + SETTLING_SECONDS)
        seen = {key: one for key, one in self.seen.items() if now - one.last_at < KEPT_SECONDS}
        return replace(self, now=now, is_on=is_on, seen=seen)

    def with_answers(self, answers: Mapping[ConnectKey, Collection[bool]]) -> PeerTimestamps:
        """Return what is known after live connections were asked: by key, whether each of them uses timestamps."""
        seen = dict(self.seen)
        for key, used in ((key, used) for key, used in answers.items() if used):
            before = seen.get(key, _Seen())
            seen[key] = _Seen(
                self.now if True in used else before.with_at, self.now if False in used else before.without_at
            )
        latest = sorted(seen.items(), key=lambda entry: entry[1].last_at, reverse=True)[:MOST_KEPT]
        return replace(self, seen=dict(latest))


NOTHING_KNOWN = PeerTimestamps()
