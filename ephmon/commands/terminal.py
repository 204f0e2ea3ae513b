"""Prints answers to standard output and errors to standard error."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from ephmon.errors import EphmonError

if TYPE_CHECKING:
    from typing import TextIO


class OutputError(EphmonError):
    """The answer cannot be printed."""


def print_answer(text: str) -> None:
    """Write to standard output; characters that its encoding lacks are escaped.

    Raises:
        BrokenPipeError: Nobody reads standard output any more.
        OutputError: It is closed, or the disk behind it is full.
    """
    if sys.stdout is None:
        raise OutputError("Standard output is closed, so the answer cannot be printed; redirect it to /dev/null.")
    encoding = sys.stdout.encoding
    try:
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except OSError as error:
        _discard(sys.stdout)
        if isinstance(error, BrokenPipeError):
            raise
        raise OutputError(f"The answer cannot be written to standard output: {error.strerror}.") from error


def print_error(error: Exception) -> None:
    """Write the lines of an error to standard error; if that is impossible, only the exit status reports it."""
    if sys.stderr is None:
        return
    try:
        for line in str(error).splitlines():
            sys.stderr.write(f"ephmon: {line}\n")
    except OSError:
        _discard(sys.stderr)


def _discard(stream: TextIO) -> None:
    """Discard the buffer of a stream: Python would write it again at exit, fail, and change the exit status."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
