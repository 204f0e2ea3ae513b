"""What an extra raises switches that extra off for a while, and reaches nobody else."""

from __future__ import annotations

import logging

import pytest

from ephmon.errors import StopRequestedError
from ephmon.supervision.compartment import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, Compartment


class Extra:
    """An extra that fails while it is told to, and counts how often it was tried."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.tried = 0
        self.now = 0.0
        self.compartment = Compartment("owners", lambda: self.now)

    def run(self) -> str:
        return self.compartment.run(self._work, lambda reason: f"off: {reason}")

    def _work(self) -> str:
        self.tried += 1
        if self.error is not None:
            raise self.error
        return "done"


@pytest.fixture(name="extra")
def _extra() -> Extra:
    return Extra()


@pytest.mark.parametrize("error", [ZeroDivisionError("secret"), ModuleNotFoundError("gone"), MemoryError(), OSError(5)])
def test_an_error_switches_it_off_with_a_reason_that_names_the_place_alone(extra: Extra, error: Exception) -> None:
    extra.error = error

    assert extra.run() == f"off: A defect of ephmon, please report it: {type(error).__name__} in {place()}."


def place() -> str:
    code = Extra._work.__code__
    return f"{code.co_qualname} line {code.co_firstlineno + 3}"


def test_it_is_tried_again_after_a_pause_that_doubles_up_to_ten_minutes(extra: Extra) -> None:
    extra.error = ZeroDivisionError()
    pauses: list[float] = []
    tried_at = 0.0
    extra.run()
    while len(pauses) < 9:
        before = extra.tried
        extra.now += 1.0
        extra.run()
        if extra.tried > before:
            pauses.append(extra.now - tried_at)
            tried_at = extra.now

    assert pauses[:4] == [FIRST_PAUSE_SECONDS * 2**power for power in range(4)]
    assert pauses[-1] == LONGEST_PAUSE_SECONDS


def test_it_works_again_as_soon_as_it_succeeds_and_both_are_logged_once(
    extra: Extra, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    extra.error = ZeroDivisionError()
    for _ in range(3):
        extra.run()
        extra.now += FIRST_PAUSE_SECONDS * 4
    extra.error = None

    assert [extra.run(), extra.run()] == ["done", "done"]
    assert [record.getMessage() for record in caplog.records] == [
        "A defect of ephmon switches the collector owners off, please report it.",
        "The collector owners works again.",
    ]


def test_a_reload_tries_it_at_once(extra: Extra) -> None:
    extra.error = ZeroDivisionError()
    extra.run()
    extra.error = None
    extra.compartment.retry_now()

    assert extra.run() == "done"


def test_a_requested_stop_is_no_failure(extra: Extra) -> None:
    extra.error = StopRequestedError()

    with pytest.raises(StopRequestedError):
        extra.run()
    extra.error = None
    assert extra.run() == "done"
