"""Scenario `soak`: whether the daemon's memory stays as it is over thousands of polls of sockets that come and go."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.load import Population, populated, replace_some
from benchmarks.measurement import MIB, memory, table
from benchmarks.running_daemon import polls_made, running_daemon, wait_for_polls
from benchmarks.scenario import Options, Scenario

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.namespaces import Namespace
    from tests.processes import Running

_POLLS, _QUICK_POLLS = 2_000, 20
_REPLACED_AT_ONCE = 200
_POPULATION = Population(established=5_000, destinations=500)
_CHURNED_DESTINATIONS = 50_000
"""So many destinations take turns: pools come and go with the sockets, which is what could pile up."""
_WARM_UP = 0.1
"""The share of the polls after which memory is looked at."""


class Sample(NamedTuple):
    """How much memory the daemon had after how many polls."""

    polls: float
    rss_bytes: int


def run(options: Options) -> str:
    """Poll ten times a second, replace sockets as fast as that goes, and fit a line to the memory."""
    polls = _QUICK_POLLS if options.quick else _POLLS
    with populated(Population()) as namespace, running_daemon(namespace, 0.1) as daemon:
        samples, replaced = _observe(namespace, daemon, polls, options)
    rss = [sample.rss_bytes / MIB for sample in samples]
    head = f"{polls:,} polls, {replaced:,} sockets replaced toward {_CHURNED_DESTINATIONS:,} destinations by turns.\n\n"
    return head + table(
        ("the daemon's RSS", "MiB"),
        [
            ("after the warm-up", f"{rss[0]:.2f}"),
            ("at the end", f"{rss[-1]:.2f}"),
            ("least, greatest", f"{min(rss):.2f}, {max(rss):.2f}"),
            ("slope, for each 1,000 polls", f"{_slope(samples) * 1000 / MIB:+.3f}"),
        ],
    )


def _observe(namespace: Namespace, daemon: Running, polls: int, options: Options) -> tuple[Sequence[Sample], int]:
    wait_for_polls(daemon, 1, 60)
    population = options.sized(_POPULATION)
    samples, replaced = [], 0
    made = 0.0
    while made < polls:
        replaced += namespace.call(replace_some, population.established, _REPLACED_AT_ONCE, _CHURNED_DESTINATIONS)
        made = polls_made(daemon.metrics())
        if made >= polls * _WARM_UP:
            samples.append(Sample(made, memory(daemon.pid, "VmRSS")))
    return samples, replaced


def _slope(samples: Sequence[Sample]) -> float:
    """Return the bytes that each poll adds, by least squares."""
    return statistics.linear_regression([one.polls for one in samples], [one.rss_bytes for one in samples]).slope


SCENARIOS = (
    Scenario(
        name="soak",
        summary=f"memory of the daemon over {_POLLS:,} polls while sockets come and go",
        run=run,
        is_long=True,
        is_smoke=True,
    ),
)
