"""Tasks of an event loop that go on after an error."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ephmon.supervision.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0


async def keep_running(run: Callable[[], Awaitable[None]], report: Callable[[Exception], None]) -> None:
    """Run a coroutine until it returns. After an error, report it and run it again after a pause.

    A task that ended by an error would not do its work any more, and nothing would say so.
    """
    backoff, now = Backoff(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS), asyncio.get_running_loop().time
    while True:
        started = now()
        try:
            return await run()
        except Exception as error:  # noqa: BLE001 - whatever it is, the task has to go on
            report(error)
            if now() - started > LONGEST_PAUSE_SECONDS:
                backoff.succeeded()
            await asyncio.sleep(backoff.failed())
