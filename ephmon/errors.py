"""The errors that ephmon raises on purpose, named for who can fix them.

Each carries one plain sentence that names what is wrong and, where there is one, the fix. Any other exception that
escapes is a defect of ephmon.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class EphmonError(Exception):
    """The base of all errors that ephmon raises on purpose."""


class UsageError(EphmonError):
    """The command line asks for something impossible: exit status 2."""


class ConfigError(EphmonError):
    """The configuration is wrong: exit status 2. The message has one line with one sentence for each mistake."""


class Reason(StrEnum):
    """What could not be done, in one word."""

    KERNEL = "kernel"
    """Whatever has no word of its own."""
    DEADLINE = "deadline"
    """The poll took longer than poll.deadline."""
    INTERRUPTED = "interrupted"
    """A dump was inconsistent twice in a row (NLM_F_DUMP_INTR)."""
    MALFORMED = "malformed"
    """A netlink reply cannot be trusted."""
    NETLINK = "netlink"
    """The kernel refused a netlink request."""
    PROCFS = "procfs"
    """A file of /proc cannot be read."""
    SYSCTL = "sysctl"
    """A setting cannot be read, or changed while the sockets were read."""
    UNAVAILABLE = "unavailable"
    """No interface to the sockets is available."""
    MEMORY = "memory"
    """No memory was left."""
    DESCRIPTORS = "descriptors"
    """No file descriptor was left."""
    DEFECT = "defect"
    """An error in ephmon itself."""
    PROBE = "probe"
    ROUTE = "route"
    TRACEFS = "tracefs"


POLL_FAILURES = (
    Reason.KERNEL,
    Reason.DEADLINE,
    Reason.INTERRUPTED,
    Reason.MALFORMED,
    Reason.NETLINK,
    Reason.PROCFS,
    Reason.SYSCTL,
    Reason.UNAVAILABLE,
    Reason.MEMORY,
    Reason.DESCRIPTORS,
    Reason.DEFECT,
)
"""Why a poll can fail: the values of the label `reason` of `ephmon_poll_failures_total`. The others end no poll."""


class StopRequestedError(EphmonError):
    """Nobody waits for the answer any more, because ephmon was told to stop."""


class KernelError(EphmonError):
    """The kernel could not be read, so there is no answer: a failed poll, never a zero."""

    reason = Reason.KERNEL

    def __init__(self, message: str, *, reason: Reason | None = None) -> None:
        super().__init__(message)
        if reason is not None:
            self.reason = reason


_SHORTAGES = {
    errno.EMFILE: (
        Reason.DESCRIPTORS,
        "raise the limit of open files: LimitNOFILE= in the systemd unit, or ulimit -n",
    ),
    errno.ENFILE: (
        Reason.DESCRIPTORS,
        "the whole host has too many open files; close some, or raise fs.file-max",
    ),
    errno.ENOMEM: (Reason.MEMORY, "allow ephmon more memory: MemoryMax= in the systemd unit, or ulimit -v"),
}


def shortage(error: OSError) -> str | None:
    """Return what to do where descriptors or memory ran short, whatever was to be opened; None for another error."""
    _, advice = _SHORTAGES.get(error.errno or 0, (None, None))
    return advice


@contextmanager
def shortages_explained() -> Iterator[None]:
    """Say in one sentence what ran short, where only an error number would reach the user.

    Raises:
        KernelError: No descriptor, or no memory, was left.
    """
    try:
        yield
    except (OSError, MemoryError) as error:
        number = errno.ENOMEM if isinstance(error, MemoryError) else error.errno
        if number not in _SHORTAGES:
            raise
        reason, advice = _SHORTAGES[number]
        raise KernelError(f"{os.strerror(number)}; {advice}.", reason=reason) from error


def errno_text(number: int) -> str:
    """Return an errno in words and with its name, such as `Permission denied (EACCES)`.

    What a kernel sends may be any number of 32 bits, and os.strerror() takes none above 2147483647.
    """
    name = errno.errorcode.get(number)
    return f"{os.strerror(number)} ({name})" if name else f"error {number}"


def quote(text: str, limit: int = 60) -> str:
    """Return text of unknown origin so that it fits into one line of a message.

    A word of printable ASCII stays as it is, anything else is quoted and escaped. What is longer than `limit`
    characters is cut, and "..." takes the place of the rest.
    """
    cut = text if len(text) <= limit else text[:limit] + "..."
    is_plain_word = cut != "" and all("!" <= character <= "~" for character in cut)
    return cut if is_plain_word else repr(cut)
