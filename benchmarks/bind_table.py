"""Scenarios `walk-*`: a walk over the bind table by BPF beside the bare inet_diag dump of the same sockets."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.contenders import BareDump
from benchmarks.load import Population, populated
from benchmarks.measurement import MIB, NOT_MEASURED, memory, spent, table, verdict
from benchmarks.poll import Entry, measure
from benchmarks.scenario import Options, Scenario
from ephmon.kernel.bpf.load import BpfUnavailableError
from ephmon.kernel.bpf.reader import BindTableReader
from ephmon.kernel.deadline import Deadline
from ephmon.kernel.netlink import inet_diag
from ephmon.kernel.proc.sysctl import read_sysctls

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.measurement import Cost
    from benchmarks.poll import Result

_DEADLINE_SECONDS = 120.0
DUMP, OWN, EVERY = "bare dump", "walk, own namespace", "walk, every namespace"
BOUNDS = {"walk-120k": 0.4, "walk-1m": 0.35}
"""Of the processor time of the bare dump, for a walk over the own namespace."""


class Walk:
    """Walks over the bind table, as a contender."""

    def __init__(self, *, own_only: bool) -> None:
        self._own_only = own_only
        self._reader = BindTableReader()

    def run(self) -> Cost:
        """Walk once."""
        return spent(self._walk)

    def peak_bytes(self) -> int:
        """Return the peak of this process."""
        return memory("self", "VmHWM")

    def _walk(self) -> None:
        table_ = self._reader.read(Deadline(_DEADLINE_SECONDS, time.monotonic), own_only=self._own_only)
        # What is asked of every pool, to rank them.
        table_.namespaces[0].pool_table.column("held")


def walk(*, own_only: bool) -> Walk:
    """Make a contender; for an agent."""
    return Walk(own_only=own_only)


def dump() -> BareDump:
    """Make the dump of all connections inside the range as a contender; for an agent."""
    low, high = read_sysctls(Path("/proc")).port_range
    inside = [inet_diag.local_port_at_least(low), inet_diag.local_port_at_most(high)]
    return BareDump([inet_diag.tcp_request(inet_diag.CONNECTION_STATES, inside)])


def compare(name: str, rounds: int, options: Options) -> str:
    """Measure walks and dumps by turns."""
    population = POPULATIONS[name]
    sized = options.sized(population)
    rounds = options.rounds_or(rounds)
    missing = why_not()
    entries = [
        Entry(DUMP, dump),
        Entry(OWN, partial(walk, own_only=True), missing=missing),
        Entry(EVERY, partial(walk, own_only=False), missing=missing),
    ]
    with populated(sized) as namespace:
        results = measure(namespace, [entry for entry in entries if not entry.missing], rounds)
    rows = [_row(entry, results, BOUNDS.get(name) if entry.name == OWN else None) for entry in entries]
    head = ("", "times the bare dump", "bound", "", "CPU ms", "peak RSS MiB")
    return f"{sized}; {rounds} rounds.\n\n{table(head, rows)}"


def why_not() -> str:
    """Return why the table cannot be walked here, nothing if it can."""
    try:
        BindTableReader().close()
    except BpfUnavailableError as error:
        return str(error)
    return ""


def _row(entry: Entry, results: Mapping[str, Result], bound: float | None) -> list[str]:
    if entry.missing:
        return [entry.name, f"{NOT_MEASURED}: {entry.missing}", "", "", "", ""]
    cpu, bare = results[entry.name].cpu, results[DUMP].cpu
    peak = f"{results[entry.name].peak_bytes / MIB:.1f}"
    if entry.name == DUMP:
        return [entry.name, "", "", "", cpu.times(1e3).written(1), peak]
    ratio, ratios = cpu.median / bare.median, cpu.over(bare).values
    spread = f"**{ratio:.2f}** ({min(ratios):.2f}-{max(ratios):.2f})"
    judged = ("", "") if bound is None else verdict(ratio, bound)
    return [entry.name, spread, *judged, cpu.times(1e3).written(1), peak]


POPULATIONS: Mapping[str, Population] = {
    "walk-120k": Population(established=120_000, destinations=120),
    "walk-60k-pools": Population(established=120_000, destinations=60_000),
    "walk-1m": Population(established=1_000_000, destinations=60_000),
    "walk-inbound": Population(established=12_000, destinations=100, accepted=108_000),
    "walk-time-wait": Population(time_wait=100_000, destinations=100),
}

SCENARIOS = tuple(
    Scenario(
        name=name,
        summary=f"a walk over the bind table beside the bare dump: {population}",
        run=partial(compare, name, 9),
        is_smoke=name == "walk-120k",
    )
    for name, population in POPULATIONS.items()
)
