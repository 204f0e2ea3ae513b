"""Runs fuzz targets in processes of their own and says how far they came."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.fuzz.target import Target

ROOT = Path(__file__).parents[2]
SECONDS_FOR_AN_INPUT = 30
"""What takes longer hangs."""
MOST_MIB = 512
"""What takes more memory takes all of it."""
_STARTED, _COUNTED = re.compile(r"^#\d+\tINITED"), re.compile(r"^#(\d+)\t")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """When a run ends; without any it runs until it is stopped."""

    executions: int | None = None
    """Of each process."""
    seconds: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How far one target came."""

    executions: int
    seconds: float
    """Since the corpus was read."""
    findings: tuple[Path, ...]
    has_ended_well: bool
    """False if libFuzzer gave up: an input hung or took all memory, and is among the findings."""
    output: str

    def __str__(self) -> str:
        rate = self.executions / self.seconds if self.seconds else 0.0
        return (
            f"{self.executions:,} executions in {self.seconds:.1f} s, {rate:,.0f} a second,"
            f" {len(self.findings)} findings"
        )


def run(
    target: Target,
    bounds: Bounds,
    folder: Path,
    *,
    seed: int,
    processes: int = 1,
    keeps: bool = False,
) -> Outcome:
    """Fuzz a target.

    Args:
        target: What to fuzz.
        bounds: When to stop.
        folder: Where what fails is kept.
        seed: The first process uses it, the next ones the numbers behind it. It decides all that a process tries.
        processes: How many at a time.
        keeps: Whether to go on from what earlier runs reached, and to keep what this one reaches. Then the seed does
            not decide alone.
    """
    findings = folder / target.name
    findings.mkdir(parents=True, exist_ok=True)
    before = _files(findings)
    with ExitStack() as held:
        corpora = [_written(target.inputs().values(), Path(held.enter_context(TemporaryDirectory())))]
        if keeps:
            reached = folder / "reached" / target.name
            reached.mkdir(parents=True, exist_ok=True)
            corpora.insert(0, reached)  # where libFuzzer adds to
        command = [sys.executable, "-m", "tests.fuzz.worker", target.check.__module__, target.name, str(findings)]
        command += [*_options(bounds, findings), *map(str, corpora)]
        running = [held.enter_context(_Worker([*command, f"-seed={seed + index}"])) for index in range(processes)]
        with ThreadPoolExecutor(processes) as threads:
            list(threads.map(_Worker.wait, running))
    return Outcome(
        executions=sum(worker.executions for worker in running),
        seconds=max(worker.seconds for worker in running),
        findings=tuple(file for file, _ in sorted(_files(findings) - before)),
        has_ended_well=all(worker.status == 0 for worker in running),
        output="".join(worker.output for worker in running),
    )


def _files(folder: Path) -> set[tuple[Path, int]]:
    """Return the files in a folder, each with the time when it was written."""
    return {(file, file.stat().st_mtime_ns) for file in folder.iterdir()}


def _written(inputs: Iterable[bytes], folder: Path) -> Path:
    for index, data in enumerate(inputs):
        (folder / f"{index:04}").write_bytes(data)
    return folder


def _options(bounds: Bounds, findings: Path) -> list[str]:
    """Return the options of libFuzzer."""
    options = [f"-timeout={SECONDS_FOR_AN_INPUT}", f"-rss_limit_mb={MOST_MIB}", f"-artifact_prefix={findings}/"]
    options += [f"-runs={bounds.executions}"] if bounds.executions is not None else []
    options += [f"-max_total_time={bounds.seconds}"] if bounds.seconds is not None else []
    # Without a control of the length, which would cut long input at first: half a document leads nowhere.
    return [*options, "-reload=0", "-len_control=0", "-print_final_stats=1"]


class _Worker:
    """One process of tests/fuzz/worker.py; a context manager that ends it."""

    def __init__(self, command: list[str]) -> None:
        self.executions, self.seconds, self.status, self.output = 0, 0.0, 0, ""
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": "0"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def wait(self) -> None:
        """Read what libFuzzer says until it has ended."""
        started = time.monotonic()
        said: IO[str] | None = self._process.stderr
        assert said is not None
        with said:
            for line in said:
                if _STARTED.match(line):
                    started = time.monotonic()
                elif (count := _COUNTED.match(line)) is not None:
                    self.executions = int(count[1])
                elif not line.startswith("INFO: "):
                    self.output += line
        self.status = self._process.wait()
        self.seconds = time.monotonic() - started
