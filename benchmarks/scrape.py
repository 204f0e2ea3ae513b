"""Scenario `scrape-1m`: how long a scrape takes while a poll of many sockets is under way."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from benchmarks import contenders
from benchmarks.load import Population, populated
from benchmarks.measurement import percentile, table, verdict
from benchmarks.poll import CALL_SECONDS
from benchmarks.polling import EphmonPoll, PollKind
from benchmarks.running_daemon import PORT, polls_made, running_daemon, wait_for_polls
from benchmarks.scenario import Options, Scenario

if TYPE_CHECKING:
    from tests.namespaces import Namespace

MOST_MS = 20.0
_SECONDS = 30.0
_PAUSE_SECONDS = 0.01
_TIMEOUT_SECONDS = 60.0
_NEVER_SECONDS = 3000.0


def scrape_for(seconds: float) -> list[float]:
    """Scrape over and over, each time over a new connection, and return the seconds that each took; for an agent."""
    end = time.monotonic() + seconds
    latencies = []
    while (started := time.monotonic()) < end:
        contenders.scrape(PORT, _TIMEOUT_SECONDS)
        latencies.append(time.monotonic() - started)
        time.sleep(_PAUSE_SECONDS)
    return latencies


def measure(population: Population, options: Options) -> str:
    """Scrape a daemon that polls without a pause, and one that rests."""
    population = options.sized(population)
    seconds = options.seconds(_SECONDS)
    with populated(population) as namespace:
        poll_seconds = _poll_seconds(namespace)
        # A report expires after three intervals, so this is as often as the daemon can and still serves its pools.
        busy, polls = _latencies(namespace, poll_seconds / 2, seconds)
        resting, _ = _latencies(namespace, _NEVER_SECONDS, seconds)
    head = (
        f"{population}; a poll takes {poll_seconds:.2f} s; {seconds:g} s each, {polls:.0f} polls without a pause.\n\n"
    )
    return head + table(
        ("scrapes while the daemon", "p99 ms", "bound", "", "median ms", "max ms", "scrapes"),
        [_row("polls without a pause", busy, verdict(_p99_ms(busy), MOST_MS)), _row("rests", resting, ("", ""))],
    )


def _poll_seconds(namespace: Namespace) -> float:
    agent = namespace.another_agent()
    agent.call_within(CALL_SECONDS, contenders.set_up, EphmonPoll, PollKind.EVIDENCE)
    cost = agent.call_within(CALL_SECONDS, contenders.run)
    agent.close()
    return cost.wall_seconds


def _latencies(namespace: Namespace, interval_seconds: float, seconds: float) -> tuple[list[float], float]:
    """Return the seconds that scrapes took, and how many polls were made meanwhile."""
    with running_daemon(namespace, interval_seconds) as daemon:
        before = polls_made(wait_for_polls(daemon, 1, CALL_SECONDS))
        latencies = namespace.call_within(seconds + CALL_SECONDS, scrape_for, seconds)
        return latencies, polls_made(daemon.metrics()) - before


def _p99_ms(latencies: list[float]) -> float:
    return percentile(latencies, 0.99) * 1e3


def _row(name: str, latencies: list[float], bound: tuple[str, str]) -> tuple[str, ...]:
    median, most = percentile(latencies, 0.5) * 1e3, max(latencies) * 1e3
    return (name, f"**{_p99_ms(latencies):.1f}**", *bound, f"{median:.1f}", f"{most:.1f}", f"{len(latencies):,}")


SCENARIOS = (
    Scenario(
        name="scrape-1m",
        summary="scrapes during polls of a million sockets",
        run=partial(measure, Population(established=1_000_000, destinations=1_000)),
        is_smoke=True,
    ),
)
