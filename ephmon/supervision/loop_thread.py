"""A thread with an event loop, which is started again when it ends without being asked to."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import threading
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ephmon import log
from ephmon.errors import EphmonError, KernelError, shortages_explained
from ephmon.log import Line
from ephmon.supervision.backoff import Backoff
from ephmon.supervision.threads import ThreadError, start

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

BEAT_SECONDS = 1.0
"""The loop gives a sign of life this often."""
SILENT_SECONDS = 30.0
"""A loop that has given none for so long hangs. Many times `BEAT_SECONDS`, because a busy host delays it."""
GIVE_UP_SECONDS = 60.0
"""After so long without the thread the process had better be started anew."""
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
STABLE_SECONDS = 60.0
"""A thread that has run for so long gets the first pause again when it ends."""

_DESCRIPTORS_OF_A_LOOP = 3
"""Of epoll, and of the two sockets by which other threads wake it."""

_log = logging.getLogger(__name__)


class LostThreadError(EphmonError):
    """A thread cannot be started again, so the process must be."""


@dataclass(slots=True)
class _Running:
    loop: asyncio.AbstractEventLoop
    stopping: asyncio.Event
    thread: threading.Thread
    started_at: float
    beaten_at: float
    error: str = "without an error"
    """What ended the thread."""


class LoopThread:
    """Runs one coroutine in the event loop of a thread, until `stop`.

    `start`, `watch` and `stop` belong to one thread; `call` may be called from any.

    Args:
        name: The name of the thread, and of what it does, in the log.
        serve: Returns the coroutine, each time that the thread starts. It must end soon after the event is set.
        report_defect: Gets the location of each error in a callback of the loop.
        clock: The monotonic clock, in seconds.
    """

    def __init__(
        self,
        name: str,
        serve: Callable[[asyncio.Event], Coroutine[Any, Any, None]],
        *,
        report_defect: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        self.name = name
        self.restarts = 0
        """How many times the thread was started again."""
        self._serve = serve
        self._report_defect = report_defect
        self._clock = clock
        self._running: _Running | None = None
        self._backoff = Backoff(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
        self._lost_at: float | None = None
        """Since when the thread is missing."""
        self._retry_at = -math.inf
        self._hangs = False
        self._watched_at = -math.inf

    @property
    def is_started(self) -> bool:
        """Whether it was started and not stopped, also while the thread is missing."""
        return self._running is not None

    def is_silent(self, now: float) -> bool:
        """Tell whether there should be a thread and it is missing, or its loop hangs."""
        running = self._running
        return running is not None and (not running.thread.is_alive() or now - running.beaten_at > SILENT_SECONDS)

    def start(self) -> None:
        """Start the thread.

        Raises:
            ThreadError: There is no thread or no descriptor to be had now.
        """
        self._running = self._start()

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Let the loop call a function; do nothing while there is no loop."""
        if self._running is not None:
            with suppress(RuntimeError):  # the loop is closed
                self._running.loop.call_soon_threadsafe(function, *arguments)

    def watch(self) -> None:
        """Start the thread again if it has ended, after a pause that doubles while it ends soon again.

        Raises:
            LostThreadError: It could not be started for a minute.
        """
        running, now = self._running, self._clock()
        if running is None:
            return
        watched_at, self._watched_at = self._watched_at, now
        if running.thread.is_alive():
            if now - watched_at > SILENT_SECONDS / 2:
                running.beaten_at = now  # the whole process stood still (SIGSTOP, a frozen cgroup), not only the loop
            self._report_hanging(now)
            return
        if self._lost_at is None:
            self._lost_at = now
            if now - running.started_at >= STABLE_SECONDS:
                self._backoff.succeeded()
            self._retry_at = now + self._backoff.failed()
            message = f"The {self.name} thread ended; ephmon starts it again."
            log.write(_log, Line(logging.ERROR, message, {"error": running.error}))
        if now < self._retry_at:
            return
        try:
            self._running = self._start()
        except ThreadError as error:
            if now - self._lost_at >= GIVE_UP_SECONDS:
                raise LostThreadError(
                    f"The {self.name} thread cannot be started again, so ephmon ends: {error}"
                ) from error
            self._retry_at = now + self._backoff.failed()
            return
        self._lost_at = None
        self.restarts += 1
        log.write(_log, Line(logging.WARNING, f"The {self.name} thread was started again."))

    def _report_hanging(self, now: float) -> None:
        hangs, before = self.is_silent(now), self._hangs
        self._hangs = hangs
        if hangs and not before:
            message = f"The {self.name} thread hangs; if it goes on, the watchdog of the service manager ends ephmon."
            log.write(_log, Line(logging.ERROR, message))

    def stop(self, seconds: float) -> bool:
        """Let the coroutine end, and tell whether the thread has ended within so many seconds."""
        running, self._running = self._running, None
        if running is None:
            return True
        with suppress(RuntimeError):  # the loop is closed
            running.loop.call_soon_threadsafe(running.stopping.set)
        running.thread.join(seconds)
        return not running.thread.is_alive()

    def _start(self) -> _Running:
        try:
            # Half an event loop would complain when it is collected.
            with shortages_explained(), ExitStack() as tried:
                for _ in range(_DESCRIPTORS_OF_A_LOOP):
                    tried.callback(os.close, os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
            loop = asyncio.new_event_loop()
        except (OSError, KernelError) as error:
            raise ThreadError(f"The {self.name} thread cannot be started. {error}") from error
        loop.set_exception_handler(log.defect_handler(self._report_defect))
        now = self._clock()
        thread = threading.Thread(name=self.name, daemon=True)
        running = _Running(loop, asyncio.Event(), thread, started_at=now, beaten_at=now)
        thread.run = lambda: self._run(running)  # type: ignore[method-assign]
        try:
            start(thread)
        except ThreadError:
            loop.close()
            raise
        return running

    def _run(self, running: _Running) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: running.loop) as runner:
                runner.run(self._serve_and_beat(running))
        except BaseException as error:  # noqa: BLE001 - the thread ends in any case, and `watch` says why
            running.error = log.error_location(error)

    async def _serve_and_beat(self, running: _Running) -> None:
        self._beat(running)
        await self._serve(running.stopping)

    def _beat(self, running: _Running) -> None:
        running.beaten_at = self._clock()
        running.loop.call_later(BEAT_SECONDS, self._beat, running)
