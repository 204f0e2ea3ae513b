"""How long a read of the kernel may take, and whether its answer is still needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ephmon.errors import KernelError, Reason, StopRequestedError

if TYPE_CHECKING:
    from collections.abc import Callable


def _wanted() -> bool:
    return True


class Deadline:
    """A point on the monotonic clock after which a read is cancelled.

    Args:
        seconds: How long from now.
        clock: The monotonic clock, in seconds.
        wanted: Returns False once the answer is not needed any more, because the daemon is stopping.
    """

    __slots__ = ("_at", "_clock", "_wanted", "seconds")

    def __init__(self, seconds: float, clock: Callable[[], float], wanted: Callable[[], bool] = _wanted) -> None:
        self.seconds = seconds
        self._clock = clock
        self._wanted = wanted
        self._at = clock() + seconds

    def left(self) -> float:
        """Seconds that are left, never negative."""
        return max(0.0, self._at - self._clock())

    def has_passed(self) -> bool:
        """Tell whether the time is up.

        Raises:
            StopRequestedError: The answer is not needed any more.
        """
        if not self._wanted():
            raise StopRequestedError("The poll was cancelled because ephmon is stopping.")
        return self._clock() >= self._at

    def check(self) -> None:
        """Return if there is time left.

        Raises:
            KernelError: The time is up (reason `deadline`).
            StopRequestedError: The answer is not needed any more.
        """
        if self.has_passed():
            raise KernelError(
                f"The poll took longer than poll.deadline ({self.seconds:g} s) and was cancelled; raise poll.deadline.",
                reason=Reason.DEADLINE,
            )
