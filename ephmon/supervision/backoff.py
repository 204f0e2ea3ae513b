"""How long to wait before something that failed is tried again."""

from __future__ import annotations


class Backoff:
    """A pause that doubles with each failure in a row.

    Args:
        first: The pause after the first failure, in seconds.
        longest: The longest pause, in seconds.
    """

    def __init__(self, first: float, longest: float) -> None:
        self._first = first
        self._longest = longest
        self._next = first

    def failed(self) -> float:
        """Return how many seconds to wait after one more failure."""
        pause, self._next = self._next, min(2 * self._next, self._longest)
        return pause

    def succeeded(self) -> None:
        """Begin with the first pause again."""
        self._next = self._first
