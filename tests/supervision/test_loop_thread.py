"""A thread with an event loop goes on whatever ends it, and says so when it cannot."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import resource
import threading
from typing import TYPE_CHECKING

import pytest

from ephmon.supervision import loop_thread
from ephmon.supervision.loop_thread import GIVE_UP_SECONDS, SILENT_SECONDS, LoopThread, LostThreadError
from ephmon.supervision.threads import ADVICE, ThreadError
from tests.processes import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Serving:
    """What runs in the thread: it notes each start, and fails when it is told to."""

    def __init__(self) -> None:
        self.starts = 0
        self.defects: list[str] = []
        self._fail: Callable[[], object] | None = None

    async def serve(self, stopping: asyncio.Event) -> None:
        self.starts += 1
        failing = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._fail = lambda: loop.call_soon_threadsafe(failing.set)
        waits = [asyncio.ensure_future(event.wait()) for event in (stopping, failing)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if failing.is_set():
            raise ZeroDivisionError

    def fail(self) -> None:
        eventually(lambda: self._fail, lambda fail: fail is not None)
        fail, self._fail = self._fail, None
        assert fail is not None
        fail()


@pytest.fixture(name="serving")
def _serving() -> Serving:
    return Serving()


@pytest.fixture(name="clock")
def _clock() -> list[float]:
    """The monotonic clock of the thread, which stands still; tests set it."""
    return [1000.0]


@pytest.fixture(name="thread")
def _thread(serving: Serving, clock: list[float]) -> Iterator[LoopThread]:
    thread = LoopThread("serving", serving.serve, report_defect=serving.defects.append, clock=lambda: clock[0])
    yield thread
    assert thread.stop(10.0)


def ended(thread: LoopThread, clock: list[float]) -> None:
    eventually(lambda: thread.is_silent(clock[0]), bool)


def no_thread(_thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")  # as CPython says it


def test_it_is_started_again_after_an_error_and_counts_that(
    thread: LoopThread, serving: Serving, clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    thread.start()
    serving.fail()
    ended(thread, clock)

    thread.watch()
    assert thread.restarts == 0
    clock[0] += loop_thread.FIRST_PAUSE_SECONDS
    thread.watch()

    eventually(lambda: serving.starts, lambda starts: starts == 2)
    assert thread.restarts == 1
    assert not thread.is_silent(clock[0])
    first, second = (record.getMessage() for record in caplog.records)
    assert first == "The serving thread ended; ephmon starts it again."
    assert second == "The serving thread was started again."


def test_it_is_started_again_after_its_loop_could_not_wait(
    serving: Serving, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """epoll_wait() fails with ENOMEM."""
    loops: list[asyncio.SelectorEventLoop] = []

    def new_event_loop() -> asyncio.SelectorEventLoop:
        loops.append(asyncio.SelectorEventLoop())
        return loops[-1]

    def refuse(_seconds: float | None) -> list[object]:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(asyncio, "new_event_loop", new_event_loop)
    thread = LoopThread("serving", serving.serve, report_defect=serving.defects.append, clock=lambda: clock[0])
    thread.start()
    eventually(lambda: serving.starts, bool)
    loops[0]._selector.select = refuse  # type: ignore[attr-defined]
    thread.call(lambda: None)
    ended(thread, clock)
    thread.watch()
    clock[0] += loop_thread.FIRST_PAUSE_SECONDS
    thread.watch()

    eventually(lambda: serving.starts, lambda starts: starts == 2)
    assert thread.stop(10.0)


def test_the_pause_before_a_start_doubles_while_it_ends_soon_again(
    thread: LoopThread, serving: Serving, clock: list[float]
) -> None:
    thread.start()
    pauses = []
    for _ in range(3):
        serving.fail()
        ended(thread, clock)
        before, restarts = clock[0], thread.restarts
        while thread.restarts == restarts:
            thread.watch()
            clock[0] += 0.25
        pauses.append(clock[0] - 0.25 - before)

    assert pauses == [0.5, 1.0, 2.0]


def test_a_thread_that_is_refused_at_the_start_is_an_error_with_advice(
    thread: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading.Thread, "start", no_thread)

    with pytest.raises(ThreadError, match=r"^No thread can be started now; ") as caught:
        thread.start()

    assert ADVICE in str(caught.value)
    assert not thread.is_started


def test_without_a_descriptor_for_its_loop_it_says_so_and_nothing_else(
    thread: LoopThread, capfd: pytest.CaptureFixture[str]
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, limits[1]))
    try:
        with pytest.raises(ThreadError, match=r"^The serving thread cannot be started\. Too many open files"):
            thread.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    assert capfd.readouterr() == ("", "")


def test_a_thread_that_cannot_be_started_again_ends_the_process_after_a_minute(
    thread: LoopThread, serving: Serving, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    thread.start()
    serving.fail()
    ended(thread, clock)
    thread.watch()
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    clock[0] += GIVE_UP_SECONDS - 1.0
    thread.watch()
    clock[0] += loop_thread.LONGEST_PAUSE_SECONDS + 1.0

    with pytest.raises(
        LostThreadError, match=r"^The serving thread cannot be started again, so ephmon ends: No thread"
    ):
        thread.watch()


def test_a_loop_that_hangs_is_silent_and_one_that_turns_is_not(
    thread: LoopThread, serving: Serving, clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    thread.start()
    eventually(lambda: serving.starts, bool)
    hanging, going_on = threading.Event(), threading.Event()

    def hang() -> None:
        hanging.set()
        going_on.wait(30.0)

    thread.call(hang)
    assert hanging.wait(30.0)
    for _ in range(6):
        clock[0] += SILENT_SECONDS / 3
        thread.watch()

    assert thread.is_silent(clock[0])
    going_on.set()
    eventually(lambda: thread.is_silent(clock[0]), lambda silent: not silent)
    thread.watch()
    said = [(record.levelno, record.getMessage()) for record in caplog.records]
    assert said == [
        (logging.ERROR, "The serving thread hangs; if it goes on, the watchdog of the service manager ends ephmon.")
    ]


def test_a_process_that_stood_still_as_a_whole_has_no_loop_that_hangs(
    thread: LoopThread, serving: Serving, clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    thread.start()
    eventually(lambda: serving.starts, bool)
    thread.watch()
    clock[0] += SILENT_SECONDS * 2
    thread.watch()

    assert not thread.is_silent(clock[0])
    assert caplog.records == []


def test_an_error_in_a_callback_is_reported_and_ends_nothing(
    thread: LoopThread, serving: Serving, clock: list[float]
) -> None:
    thread.start()
    thread.call(lambda: 1 // 0)

    eventually(lambda: serving.defects, bool)
    assert serving.defects[0].startswith("ZeroDivisionError in ")
    assert not thread.is_silent(clock[0])


def test_a_task_that_was_forgotten_is_reported_in_the_words_of_asyncio(thread: LoopThread, serving: Serving) -> None:
    async def wait_for_ever() -> None:
        await asyncio.get_running_loop().create_future()

    async def forget() -> None:
        asyncio.ensure_future(wait_for_ever())  # noqa: RUF006 - nothing refers to it, and that is the point
        await asyncio.sleep(0)
        gc.collect()

    thread.start()
    kept: list[asyncio.Task[None]] = []
    thread.call(lambda: kept.append(asyncio.get_running_loop().create_task(forget())))

    eventually(lambda: serving.defects, bool)
    assert serving.defects == ["Task was destroyed but it is pending"]
