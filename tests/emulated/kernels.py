"""Debian's older kernels, each in an emulated machine: all that is held against the kernel holds there too.

It takes minutes and downloads packages, so pytest runs it only where it is named, as ./script/test does.
"""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

EMULATE = Path(__file__).parents[2] / "script" / "emulate"
SERIES = ("6.1", "6.12")
SECONDS = 2400.0


class Machine(NamedTuple):
    """A machine that runs, and the file that its console is written to."""

    process: subprocess.Popen[bytes]
    console: Path


@pytest.fixture(scope="module", name="machines")
def _machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Machine]]:
    """All machines at once, because each has one processor."""
    with ExitStack() as running:
        machines = {}
        for series in SERIES:
            path = tmp_path_factory.mktemp("machine") / "console"
            with path.open("wb") as console:
                process = subprocess.Popen([EMULATE, series], stdin=subprocess.DEVNULL, stdout=console, stderr=console)
            running.callback(process.wait, timeout=60.0)
            running.callback(process.terminate)
            machines[series] = Machine(process, path)
        yield machines


@pytest.mark.parametrize("series", SERIES)
def test_all_tests_pass_on(machines: dict[str, Machine], series: str) -> None:
    """They ran on that kernel, the random mixes among them, and with the probe every prediction was exact."""
    machine = machines[series]
    status = machine.process.wait(SECONDS)
    console = machine.console.read_text(encoding="utf-8", errors="replace")
    assert status == 0, console
    sys.stdout.writelines(f"{line}\n" for line in console.splitlines() if re.search(r"\d+ (mixes|passed)\b", line))
    (mixes,) = re.findall(r"\btcp_connect: (\d+) mixes, .*? with the probe exact (\d+)", console)

    assert f"all tests passed on Linux {series}." in console
    assert int(mixes[0]) == int(mixes[1]) > 0
