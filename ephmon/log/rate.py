"""How many lines of a kind are written in a minute. Any user of the host can cause lines at any rate."""

from __future__ import annotations

from typing import NamedTuple

MOST_A_MINUTE = 60
"""Lines of one kind. All alerts that `alerts.max_active` allows by default may begin at once."""
WINDOW_SECONDS = 60.0


class Kind(NamedTuple):
    """Lines that count together. There is a fixed number of kinds, whatever happens on the host."""

    logger: str
    level: int
    name: str


class _Window:
    """The minute that began with a line of one kind."""

    def __init__(self, now: float) -> None:
        self.ends_at = now + WINDOW_SECONDS
        self.written = 0
        self.left_out = 0


class RateLimit:
    """Decides which lines are written, and counts the others. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._windows: dict[Kind, _Window] = {}

    def allows(self, kind: Kind, now: float) -> bool:
        """Tell whether one more line of a kind is written. Ask `ended` first."""
        window = self._windows.setdefault(kind, _Window(now))
        if window.written < MOST_A_MINUTE:
            window.written += 1
            return True
        window.left_out += 1
        return False

    def ended(self, now: float) -> list[tuple[Kind, int]]:
        """Return the kinds of which lines were left out in a minute that is over, and how many lines; only once."""
        over = {kind: window for kind, window in self._windows.items() if window.ends_at <= now}
        for kind in over:
            del self._windows[kind]
        return [(kind, window.left_out) for kind, window in over.items() if window.left_out]

    def next_end(self) -> float | None:
        """Return when the next minute in which lines were left out is over, None if there is none."""
        return min((window.ends_at for window in self._windows.values() if window.left_out), default=None)
