"""Measurements and their words: what something cost, the spread over repetitions, ratios, and tables in Markdown."""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.scenario import NotMeasuredError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

MIB = 1 << 20
NOT_MEASURED = "not measured"


class Cost(NamedTuple):
    """What doing something once took."""

    wall_seconds: float
    cpu_seconds: float
    """User and system time of the process that did it."""


@dataclass(frozen=True, slots=True)
class Spread:
    """The repetitions of one measurement."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.values)

    def times(self, factor: float) -> Spread:
        """Return the same in another unit."""
        return Spread(tuple(value * factor for value in self.values))

    def over(self, other: Spread) -> Spread:
        """Return the ratios of measurements that were taken in the same rounds."""
        return Spread(tuple(mine / theirs for mine, theirs in zip(self.values, other.values, strict=True) if theirs))

    def written(self, digits: int) -> str:
        """Return the median with the least and the greatest value."""
        low, high = min(self.values), max(self.values)
        return f"{self.median:,.{digits}f} ({low:,.{digits}f}-{high:,.{digits}f})"


def spent(action: Callable[[], object]) -> Cost:
    """Do something in this process and return what it cost."""
    cpu, wall = time.process_time(), time.perf_counter()
    action()
    return Cost(time.perf_counter() - wall, time.process_time() - cpu)


def spent_by_program(command: Sequence[str]) -> Cost:
    """Run a program to its end, its output thrown away, and return what it cost with its start.

    Raises:
        NotMeasuredError: It failed.
    """
    wall = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise NotMeasuredError(f"{' '.join(command)} failed with status {process.returncode}")
    return Cost(time.perf_counter() - wall, usage.ru_utime + usage.ru_stime)


def peak_memory_of_program(command: Sequence[str]) -> int:
    """Run a program once more and return its greatest resident memory in bytes, looked at each millisecond.

    The maximum that wait4() gives is no use: it begins with what the process that started the program had.
    """
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, memory(process.pid, "VmHWM"))
        time.sleep(0.001)
    return peak


def memory(pid: int | str, field: str) -> int:
    """Return a field of /proc/PID/status in bytes, such as `VmRSS` or `VmHWM` (man 5 proc), 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)


def cpu_seconds_of(pid: int) -> float:
    """Return the processor time of all threads of a process, from their schedstat in nanoseconds."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text(encoding="ascii").split()[0]) for task in tasks) / 1e9


def percentile(values: Iterable[float], ratio: float) -> float:
    """Return the smallest value that at least this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[max(1, math.ceil(round(ratio * len(ordered), 6))) - 1]


def verdict(value: float, bound: float) -> tuple[str, str]:
    """Return the cells that say what the bound is and whether the value keeps it."""
    return f"<= {bound:g}", "kept" if value <= bound else "missed"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown, the first column to the left and the others to the right."""
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"
