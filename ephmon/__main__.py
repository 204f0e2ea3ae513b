"""The command `ephmon`, also as `python -m ephmon`: what must be done before the modules of a command are loaded."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from typing import NoReturn

from ephmon.daemon import signals
from ephmon.errors import EphmonError, shortages_explained

_UNKNOWN = 3
"""What a monitoring plugin exits with that has no answer; 1 would be a warning."""


def entry_point() -> NoReturn:
    """Run the command line of this process and exit.

    Signals wait until the command can obey them, which takes half a second: a SIGHUP would end the daemon, and Ctrl-C
    would print the traceback of an import.
    """
    signals.block()
    try:
        with shortages_explained():
            from ephmon.cli import main  # noqa: PLC0415 - see above
    except EphmonError as error:
        sys.stderr.write(f"ephmon: {error}\n")
        sys.exit(_UNKNOWN if "check" in sys.argv else 1)
    _exit(main(sys.argv[1:]))


def _exit(status: int) -> NoReturn:
    """End the process without the end of the interpreter, in which each thread that still runs calls pthread_exit().

    That loads libgcc_s, and aborts the process where no memory or no descriptor is left for it.
    """
    logging.shutdown()  # which writes the lines that wait
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # closed, or nobody reads it; the command has said so if it matters
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    entry_point()
