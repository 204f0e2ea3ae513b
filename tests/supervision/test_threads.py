"""What ends a thread by an error is in the log, whole and once."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from ephmon.supervision import threads

if TYPE_CHECKING:
    import pytest


def test_an_error_that_ends_a_thread_is_one_record_with_its_traceback(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)  # put back in the end
    threads.log_errors()
    thread = threading.Thread(target=lambda: 1 // 0, name="search")
    threads.start(thread)
    thread.join(10.0)

    (record,) = caplog.records
    assert record.getMessage() == "A thread ended by a defect of ephmon, please report it."
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError
    assert capfd.readouterr().err == ""
