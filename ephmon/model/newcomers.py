"""How many new things may appear in a time, so that nobody starts and ends series and alerts without end.

What was there lately and comes back is not new. Any user of the host can pick ever new destinations, and each would
have a series of its own in Prometheus for as long as that keeps data.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Key = TypeVar("Key")


@dataclass(frozen=True, slots=True, kw_only=True)
class Newcomers(Generic[Key]):
    """What was there lately. Times are monotonic seconds."""

    seen: Mapping[Key, float] = field(default_factory=dict)
    """When each key was there last."""
    entries: tuple[float, ...] = ()
    """When each new key came in."""


class Admission(Generic[Key]):
    """Decides which keys come in at one moment.

    Args:
        before: What was there lately.
        most: So many new keys come in within `seconds` at most.
        seconds: How long a key is known after it was there last.
        now: The moment, in monotonic seconds.
    """

    def __init__(self, before: Newcomers[Key], *, most: int, seconds: float, now: float) -> None:
        self._seen = {key: at for key, at in before.seen.items() if now - at < seconds}
        self._entries = [at for at in before.entries if now - at < seconds]
        self._most = most
        self._now = now

    def admits(self, key: Key) -> bool:
        """Tell whether a key comes in: it is known, or one more new one may come in, which it then does."""
        if key in self._seen:
            return True
        if len(self._entries) >= self._most:
            return False
        self._entries.append(self._now)
        self._seen[key] = self._now
        return True

    def after(self, present: Iterable[Key], remembered: int) -> Newcomers[Key]:
        """Return what is remembered afterwards: the keys that are there now, and so many in all, the latest."""
        # Without this bound, keys that take turns would all stay known, and never be new again.
        seen = sorted({**self._seen, **dict.fromkeys(present, self._now)}.items(), key=itemgetter(1), reverse=True)
        return Newcomers(seen=dict(seen[:remembered]), entries=tuple(self._entries[-self._most :]))
