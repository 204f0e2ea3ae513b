"""Commands run inside a network namespace: functions for `Namespace.call`."""

from __future__ import annotations

import io
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import pytest

from ephmon.cli import main
from ephmon.kernel.bpf import load

if TYPE_CHECKING:
    from collections.abc import Iterator


class Answer(NamedTuple):
    """What a command left behind."""

    status: int
    out: str
    err: str


def answer(*words: str) -> Answer:
    """Run a command in the process that this is called in, as on a host without libbpf: see `tests.processes`."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    with redirect_stdout(out), redirect_stderr(err), without_libbpf():
        status = main(words)
    return Answer(status, *(stream.buffer.getvalue().decode() for stream in (out, err)))


@contextmanager
def without_libbpf() -> Iterator[None]:
    """Let this process find no libbpf."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "Libbpf", _is_missing)
        yield


def _is_missing(name: str) -> NoReturn:
    raise OSError(f"{name}: cannot open shared object file: No such file or directory")
