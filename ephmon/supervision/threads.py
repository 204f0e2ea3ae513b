"""The one way to start a thread."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ephmon.errors import EphmonError

if TYPE_CHECKING:
    import threading

ADVICE = "allow ephmon more threads (TasksMax= of its unit, pids.max of its cgroup, ulimit -u) or memory"


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
