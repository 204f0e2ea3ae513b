"""The signals that the daemon obeys: blocked, and waited for where it waits anyway.

No handler is installed, so none can interrupt anything: a signal stays pending until the loop's one wait takes it
(man 2 sigtimedwait). They must be blocked before any thread starts, because threads inherit the mask.
"""

from __future__ import annotations

import signal

STOP = frozenset({signal.SIGTERM, signal.SIGINT})
RELOAD = signal.SIGHUP
_OBEYED = STOP | {RELOAD}


def block() -> None:
    """Keep the signals pending from now on, in this thread and in those that it starts."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _OBEYED)


def wait(seconds: float) -> int | None:
    """Wait for a signal, at most so long, and return its number, None if there was none."""
    received = signal.sigtimedwait(_OBEYED, seconds)
    return received.si_signo if received else None


def not_told_to_stop() -> bool:
    """Tell whether no signal to stop is pending."""
    return not signal.sigpending() & STOP
