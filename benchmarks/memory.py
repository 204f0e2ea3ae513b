"""Scenarios `memory-*`: resident memory of the daemon, idle and while it polls many sockets."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from benchmarks.load import Population, populated
from benchmarks.measurement import MIB, memory, table, verdict
from benchmarks.running_daemon import running_daemon, wait_for_polls
from benchmarks.scenario import Options, Scenario

_POLLS = 4
_SECONDS = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A population, and what the daemon may take at most while it polls it."""

    population: Population
    most_mib: float


def measure(case: Case, options: Options) -> str:
    """Let a daemon poll the population some times."""
    population = options.sized(case.population)
    polls = options.rounds_or(_POLLS)
    with populated(population) as namespace, running_daemon(namespace, 0.1) as daemon:
        wait_for_polls(daemon, polls, _SECONDS)
        peak, after = memory(daemon.pid, "VmHWM") / MIB, memory(daemon.pid, "VmRSS") / MIB
    rows = [
        ("peak RSS (VmHWM)", f"**{peak:.1f}**", *verdict(peak, case.most_mib)),
        ("RSS after a poll", f"{after:.1f}", "", ""),
    ]
    return f"{population}; {polls} polls.\n\n" + table(("the daemon", "MiB", "bound", ""), rows)


CASES = {
    "memory-idle": Case(population=Population(), most_mib=40),
    "memory-1m": Case(population=Population(established=1_000_000, destinations=1_000), most_mib=64),
    "memory-60k-pools": Case(population=Population(established=1_000_000, destinations=60_000), most_mib=128),
}

SCENARIOS = tuple(
    Scenario(
        name=name,
        summary=f"memory of the daemon with {case.population}",
        run=partial(measure, case),
        is_smoke=name == "memory-idle",
    )
    for name, case in CASES.items()
)
