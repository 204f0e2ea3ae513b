"""What a command says and to whom: answers on standard output, complaints on standard error."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from ephmon.errors import EphmonError

if TYPE_CHECKING:
    from typing import TextIO


class OutputError(EphmonError):
    """The answer cannot be printed."""


def tell(text: str) -> None:
    """Write to standard output, what its encoding lacks as an escape.

    Raises:
        BrokenPipeError: Nobody reads it any more.
        OutputError: It is closed, or what is behind it is full.
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


def complain(error: Exception) -> None:
    """Write the lines of an error to standard error; where that cannot be, the exit status has to say it all."""
    if sys.stderr is None:
        return
    try:
        for line in str(error).splitlines():
            sys.stderr.write(f"ephmon: {line}\n")
    except OSError:
        _discard(sys.stderr)


def _discard(stream: TextIO) -> None:
    """Send what is left in the buffer nowhere: Python would write it once more at exit, fail and change the status."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
