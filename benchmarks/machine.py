"""The machine that the numbers are of, in one line."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING

import ephmon

if TYPE_CHECKING:
    from collections.abc import Iterator


def describe_machine() -> str:
    """Return kernel, processors, memory, load, versions and the day."""
    cpu = next(_values("/proc/cpuinfo", "model name"), platform.machine())
    memory_gib = int(next(_values("/proc/meminfo", "MemTotal")).split()[0]) / (1 << 20)
    return (
        f"{os.cpu_count()} x {cpu}, {memory_gib:.0f} GiB, Linux {os.uname().release}, Python "
        f"{platform.python_version()}, ephmon {ephmon.__version__}, load average before {os.getloadavg()[0]:.1f}, "
        f"{time.strftime('%Y-%m-%d', time.gmtime())}"
    )


def _values(path: str, key: str) -> Iterator[str]:
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            yield value.strip()
