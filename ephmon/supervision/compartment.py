"""Compartments: what an extra raises stays in the extra."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, TypeVar

from ephmon import log
from ephmon.errors import StopRequestedError
from ephmon.log import Line
from ephmon.supervision.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

FIRST_PAUSE_SECONDS = 10.0
LONGEST_PAUSE_SECONDS = 600.0

_log = logging.getLogger(__name__)


class Compartment:
    """Runs one extra. An error in ephmon switches it off for a while, and everything else goes on.

    Args:
        name: The extra, as `collector_available` names it.
        clock: The monotonic clock, in seconds.
    """

    def __init__(self, name: str, clock: Callable[[], float]) -> None:
        self._name = name
        self._clock = clock
        self._backoff = Backoff(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
        self._retry_at = -math.inf
        self._reason: str | None = None

    def run(self, work: Callable[[], T], otherwise: Callable[[str], T]) -> T:
        """Do the work and return what it returns.

        Args:
            work: What the extra does.
            otherwise: What is done instead when that fails, or has failed lately. Gets the reason, as one sentence.

        Raises:
            StopRequestedError: Nobody waits for the answer any more. This is no failure.
        """
        if self._reason is not None and self._clock() < self._retry_at:
            return otherwise(self._reason)
        try:
            result = work()
        except StopRequestedError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not reach what goes on without the extra
            reason = self._switch_off(error)
        else:
            self._switch_on()
            return result
        # Not in the `except`, because the traceback there would keep what the extra had read in memory.
        return otherwise(reason)

    def retry_now(self) -> None:
        """Try again at once, because the configuration was read again."""
        self._retry_at = -math.inf

    def _switch_off(self, error: Exception) -> str:
        is_news = self._reason is None
        pause = self._backoff.failed()
        self._retry_at = self._clock() + pause
        self._reason = log.defect_sentence(error)
        if is_news:
            message = f"A defect of ephmon switches the collector {self._name} off, please report it."
            log.write(_log, Line(logging.ERROR, message, {"retry_seconds": pause}), error)
        return self._reason

    def _switch_on(self) -> None:
        if self._reason is not None:
            self._reason = None
            self._backoff.succeeded()
            log.write(_log, Line(logging.INFO, f"The collector {self._name} works again."))
