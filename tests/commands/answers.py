"""Commands run inside a network namespace: functions for `Namespace.call`."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from typing import NamedTuple

from ephmon.cli import main


class Answer(NamedTuple):
    """What a command left behind."""

    status: int
    out: str
    err: str


def answer(*words: str) -> Answer:
    """Run a command in the process that this is called in."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    with redirect_stdout(out), redirect_stderr(err):
        status = main(words)
    return Answer(status, *(stream.buffer.getvalue().decode() for stream in (out, err)))
