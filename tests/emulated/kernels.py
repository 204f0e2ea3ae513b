"""Debian's older kernels: all that is compared with the kernel holds there too.

Each boots twice. As it is installed, on an emulated PC, it runs the tests on modules and on BPF. As user-mode Linux,
which is Debian's build of the same source, it runs all others, which take an emulated processor ten minutes. It
downloads packages, so pytest runs it only where it is named, as ./script/test does.
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
KINDS = ("process", "both")
"""The machines of script/emulate."""
SECONDS = 2400.0


class Machine(NamedTuple):
    """A machine that runs, and the file that its console is written to."""

    process: subprocess.Popen[bytes]
    console: Path

    def passed_tests(self, series: str) -> str:
        """Wait until all tests passed there, print how many, and return what came from the console."""
        status = self.process.wait(SECONDS)
        console = self.console.read_text(encoding="utf-8", errors="replace")
        assert status == 0, console
        assert f"all tests passed on Linux {series}." in console
        sys.stdout.writelines(f"{line}\n" for line in console.splitlines() if re.search(r"\d+ (mixes|passed)\b", line))
        return console


@pytest.fixture(scope="module", name="machines")
def _machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, str], Machine]]:
    """All machines at once, because each has one processor."""
    with ExitStack() as running:
        machines = {}
        for kind in KINDS:
            for series in SERIES:
                path = tmp_path_factory.mktemp("machine") / "console"
                with path.open("wb") as console:
                    command = [str(EMULATE), series, kind]
                    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=console, stderr=console)
                running.callback(process.wait, timeout=60.0)
                running.callback(process.terminate)
                machines[series, kind] = Machine(process, path)
        yield machines


@pytest.mark.parametrize("series", SERIES)
def test_the_tests_on_modules_pass_on_the_kernel_that_is_installed(
    machines: dict[tuple[str, str], Machine], series: str
) -> None:
    console = machines[series, "both"].passed_tests(series)

    assert re.findall(r"tests/emulated/(\w+)\.py::test_.* PASSED", console)


@pytest.mark.parametrize("series", SERIES)
def test_the_tests_on_bpf_pass_on_the_kernel_that_is_installed(
    machines: dict[tuple[str, str], Machine], series: str
) -> None:
    console = machines[series, "both"].passed_tests(series)
    (mixes,) = re.findall(r"bind table: (\d+) mixes, right (\d+)", console)

    assert int(mixes[0]) == int(mixes[1]) > 0


@pytest.mark.parametrize("series", SERIES)
def test_the_tests_on_the_kernel_pass_and_every_prediction_with_the_probe_is_exact(
    machines: dict[tuple[str, str], Machine], series: str
) -> None:
    console = machines[series, "process"].passed_tests(series)
    (mixes,) = re.findall(r"\btcp_connect: (\d+) mixes, .*? with the probe exact (\d+)", console)

    assert int(mixes[0]) == int(mixes[1]) > 0
