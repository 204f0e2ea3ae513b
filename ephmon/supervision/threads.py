"""The one way to start a thread."""

from __future__ import annotations

import logging
import threading

from ephmon import log
from ephmon.errors import EphmonError
from ephmon.log import Line

ADVICE = "allow ephmon more threads (TasksMax= of its unit, pids.max of its cgroup, ulimit -u) or memory"


_log = logging.getLogger(__name__)


class ThreadError(EphmonError):
    """The kernel refused a thread, or what a thread needs."""


def start(thread: threading.Thread) -> None:
    """Start a thread.

    Raises:
        ThreadError: There is no thread to be had now (EAGAIN or ENOMEM of man 2 clone). It may work later.
    """
    try:
        thread.start()
    except RuntimeError as error:
        raise ThreadError(f"No thread can be started now; {ADVICE}.") from error


def log_errors() -> None:
    """Write to the log what ends a thread by an error, in one record; Python would print it beside the log."""
    threading.excepthook = _log_error


def _log_error(ended: threading.ExceptHookArgs) -> None:
    name = ended.thread.name if ended.thread else "unknown"
    message = "A thread ended by a defect of ephmon, please report it."
    log.write(_log, Line(logging.ERROR, message, {"thread": name}), ended.exc_value)
