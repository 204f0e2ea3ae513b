"""A task that ends by an error is run again."""

from __future__ import annotations

import asyncio

import pytest

from ephmon.supervision import tasks
from ephmon.supervision.tasks import keep_running


def test_it_is_run_again_after_each_error_until_it_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "FIRST_PAUSE_SECONDS", 0.01)
    errors = [ValueError("first"), OSError("second")]
    reported: list[Exception] = []

    async def run() -> None:
        if len(reported) < len(errors):
            raise errors[len(reported)]

    asyncio.run(keep_running(run, reported.append))

    assert reported == errors


def test_it_can_be_cancelled() -> None:
    async def run() -> None:
        task = asyncio.create_task(keep_running(asyncio.Event().wait, lambda _: None))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
