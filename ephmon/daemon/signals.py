"""The signals that the daemon obeys: it blocks them, and its one wait between polls takes them.

No handler is installed, so no signal can interrupt anything: it stays pending until the wait takes it (man 2
sigtimedwait). The signals must be blocked before any thread starts, because threads inherit the mask.
"""

from __future__ import annotations

import signal

STOP = frozenset({signal.SIGTERM, signal.SIGINT})
RELOAD = signal.SIGHUP
_OBEYED = STOP | {RELOAD}


def block() -> None:
    """Block the signals in this thread and in all threads that it starts later."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _OBEYED)


def unblock() -> None:
    """Take the signals as other programs do: one that is pending is obeyed at once."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _OBEYED)


def end_by_them() -> None:
    """Let each of the signals end this process at once: it is about to end, and what it still prints may hang."""
    for number in _OBEYED:
        signal.signal(number, signal.SIG_DFL)
    unblock()


def wait(seconds: float) -> int | None:
    """Wait for a signal for at most so many seconds and return its number, None if none came."""
    received = signal.sigtimedwait(_OBEYED, seconds)
    return received.si_signo if received else None


def no_stop_requested() -> bool:
    """Tell whether neither SIGTERM nor SIGINT is pending."""
    return not signal.sigpending() & STOP
