"""Scenarios `walk-latency`, `-churn`, `-bounds` and `-loads`: whether walks over the bind table by BPF are safe.

They show what a walker that never rests does to connect(), whether it misses sockets beside churn without saying so,
whether what is beyond a bound is counted, and what is left after the program was loaded a thousand times.
"""

from __future__ import annotations

import os
import socket
import time
from array import array
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.bind_table import dump, walk, why_not
from benchmarks.load import Population, load, populated
from benchmarks.measurement import MIB, Spread, percentile, table, verdict
from benchmarks.poll import CALL_SECONDS
from benchmarks.scenario import NotMeasuredError, Options, Scenario
from ephmon.kernel.bpf.reader import MOST_NAMESPACES, MOST_POOLS, MOST_PORTS, BindTableReader
from ephmon.kernel.deadline import Deadline
from tests.kernel.bpf.churn import walk_beside_churn
from tests.kernel.bpf.lifetimes import WARM_UP, load_and_unload
from tests.kernel.bpf.walks import close_with_reset, make_namespaces
from tests.namespaces import Namespace

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.contenders import Contender
    from ephmon.facts.bind_table import Losses
    from tests.namespaces import Agent

_SOCKETS = Population(established=120_000, destinations=120)
_ROUNDS, _SECONDS, _LEAD_SECONDS = 9, 2.0, 0.5
_ADDRESS = "127.0.0.1", 8000
_STABLE, _CHURN_SECONDS = 15_000, 60.0
_CROWDED, _SOCKETS_OF_A_NAMESPACE = 11, 28_000
_TIMES, _MOST_SECONDS = 1000, 7200.0
_ALONE, _COMPUTING, _WALKING, _DUMPING = "nothing", "a loop of Python", "a walker, every namespace", "a bare dump"
_MOST_TIMES = 1.15
"""What a walker may make of the median of connect(), against a loop that leaves the kernel alone."""


class Computing:
    """Takes a processor and leaves the kernel alone, as a contender."""

    def run(self) -> int:
        """Compute for some milliseconds."""
        return sum(range(100_000))


BESIDE: dict[str, Callable[[], Contender | Computing]] = {
    _COMPUTING: Computing,
    _WALKING: partial(walk, own_only=False),
    _DUMPING: dump,
}


class Latency(NamedTuple):
    """How long calls of connect() took, in microseconds."""

    median: float
    p99: float
    p999: float
    calls: int


def measure_latency(options: Options) -> str:
    """Let connect() run beside each of them by turns."""
    _require_bpf()
    population, rounds, seconds = options.sized(_SOCKETS), options.rounds_or(_ROUNDS), options.seconds(_SECONDS)
    found: defaultdict[str, list[Latency]] = defaultdict(list)
    runs: defaultdict[str, int] = defaultdict(int)
    with populated(population) as namespace, ThreadPoolExecutor(1) as thread:
        client = namespace.another_agent()
        others = {name: _restless(namespace, make) for name, make in BESIDE.items()}
        for _ in range(rounds):
            found[_ALONE].append(client.call_within(CALL_SECONDS, connect_for, seconds))
            for name, other in others.items():
                working = thread.submit(other.call_within, CALL_SECONDS, run_for, seconds + 2 * _LEAD_SECONDS)
                time.sleep(_LEAD_SECONDS)
                found[name].append(client.call_within(CALL_SECONDS, connect_for, seconds))
                runs[name] += working.result()
    longest = seconds + 2 * _LEAD_SECONDS
    rows = [_row(name, found, runs[name] / rounds / longest if name in BESIDE else None) for name in found]
    head = ("connect() beside", "median, times that beside a loop", "bound", "", "median us", "99 % us", "99.9 % us")
    calls = sum(one.calls for latencies in found.values() for one in latencies)
    return f"{population}; {rounds} rounds of {seconds:g} s, {calls:,} calls.\n\n" + table((*head, "runs/s"), rows)


def _restless(namespace: Namespace, make: Callable[[], Contender | Computing]) -> Agent:
    agent = namespace.another_agent()
    agent.call_within(CALL_SECONDS, prepare, make)
    return agent


def _row(name: str, found: dict[str, list[Latency]], runs_per_second: float | None) -> list[str]:
    medians, p99, p999 = (Spread(tuple(values)) for values in list(zip(*found[name], strict=True))[:3])
    against = medians.over(Spread(tuple(one.median for one in found[_COMPUTING])))
    ratio = against.median
    judged = verdict(ratio, _MOST_TIMES) if name == _WALKING else ("", "")
    times = "" if name == _COMPUTING else f"**{ratio:.2f}** ({min(against.values):.2f}-{max(against.values):.2f})"
    runs = "" if runs_per_second is None else f"{runs_per_second:.1f}"
    return [name, times, *judged, medians.written(1), p99.written(1), p999.written(1), runs]


_made: list[Contender | Computing] = []


def prepare(make: Callable[[], Contender | Computing]) -> None:
    """Make what is to run on the last processor; for an agent."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    _made.append(make())


def run_for(seconds: float) -> int:
    """Run it again and again, and return how often; for an agent."""
    end, times = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        _made[0].run()
        times += 1
    return times


def connect_for(seconds: float) -> Latency:
    """Connect over loopback on the first processor, and reset both ends; for an agent.

    The listener takes each connection outside the time that is measured. The handshake is inside.
    """
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    took = array("q")
    end = time.monotonic() + seconds
    with socket.create_server(_ADDRESS) as server:
        while time.monotonic() < end:
            client = socket.socket()
            started = time.perf_counter_ns()
            client.connect(_ADDRESS)
            took.append(time.perf_counter_ns() - started)
            close_with_reset(client, server.accept()[0])
    median, p99, p999 = (percentile(took, ratio) / 1e3 for ratio in (0.5, 0.99, 0.999))
    return Latency(median, p99, p999, len(took))


# --- what a walk sees -----------------------------------------------------------------------------------------------


def measure_churn(options: Options) -> str:
    """Walk while others connect, and count what walks missed of sockets that stayed."""
    _require_bpf()
    stable, seconds = (300, 1.0) if options.quick else (_STABLE, _CHURN_SECONDS)
    with Namespace() as namespace:
        found = namespace.call_within(seconds + CALL_SECONDS, walk_beside_churn, stable, seconds)
    rows = [
        ("readings that said they lost nothing", f"{len(found.whole):,}"),
        ("of these, missed or doubled a stable socket", f"**{found.missed_silently}**"),
        ("walks that were repeated, because something had changed", f"{found.repeated:,}"),
        ("readings that said they may have lost some, after a second walk", f"{len(found.flagged):,}"),
        ("least stable sockets that one of these saw", f"{min(found.flagged, default=stable):,}"),
    ]
    made = f"{stable:,} stable sockets beside {found.connects_per_second:,.0f} connects/s for {seconds:g} s.\n\n"
    return made + table(("", "readings"), rows)


def exceed_bounds(options: Options) -> str:
    """Make more pools, ports and namespaces than a walk has room for, and read what it says of that.

    Toward many destinations, connect() gives the same ports again, so not every socket has one of its own.
    """
    _require_bpf()
    each = 300 if options.quick else _SOCKETS_OF_A_NAMESPACE
    number = 5 if options.quick else MOST_NAMESPACES + 10
    population = Population(established=each, destinations=each)
    with ExitStack() as stack:
        spaces = [stack.enter_context(Namespace()) for _ in range(_CROWDED)]
        for space in spaces:
            load(space, population)
        walker = spaces[0].another_agent()
        crowded, ports = walker.call_within(CALL_SECONDS, walk_every_namespace)
        walker.call_within(CALL_SECONDS, make_namespaces, number, is_reserving=False)
        many, _ = spaces[0].another_agent().call_within(CALL_SECONDS, walk_every_namespace)
    made = _CROWDED * each
    rows = [
        _bound_row("sockets, each in a pool of its own", made, MOST_POOLS, crowded.pools),
        _bound_row("ports of all namespaces", ports, MOST_PORTS, crowded.ports),
        _bound_row("namespaces", number + _CROWDED, MOST_NAMESPACES, many.namespaces),
    ]
    return f"{_CROWDED} namespaces: {population} in each.\n\n" + table(("", "made", "room for", "told as lost"), rows)


def walk_every_namespace() -> tuple[Losses, int]:
    """Return what a walk lost, and how many ports it counted in all namespaces; for an agent."""
    table = BindTableReader().read(Deadline(CALL_SECONDS, time.monotonic), own_only=False)
    return table.losses, sum(one.outside.in_use for one in table.namespaces)


def _bound_row(what: str, made: int, bound: int, lost: int) -> list[str]:
    if lost < made - bound:
        raise NotMeasuredError(f"{made - bound:,} of the {what} had no room, and only {lost:,} were told as lost")
    return [what, f"{made:,}", f"{bound:,}", f"**{lost:,}**"]


def _require_bpf() -> None:
    if missing := why_not():
        raise NotMeasuredError(missing.removesuffix("."))


# --- loading --------------------------------------------------------------------------------------------------------


def load_many_times(options: Options) -> str:
    """Load, walk and unload."""
    _require_bpf()
    times, kernel_before = options.rounds_or(_TIMES), vmalloc_bytes()
    with Namespace() as namespace:
        lives = namespace.call_within(_MOST_SECONDS, load_and_unload, times)
    before, after = lives.before, lives.after
    rows = [
        ("programs, maps and BTFs of these loads", "", f"{lives.known:,} known meanwhile", f"**{len(lives.left)}**"),
        ("RSS, MiB", f"{before.rss_bytes / MIB:.2f}", f"{after.rss_bytes / MIB:.2f}", ""),
        ("descriptors", f"{before.descriptors}", f"{after.descriptors}", ""),
        ("maps in memory", f"{before.mapped_maps}", f"{after.mapped_maps}", ""),
        ("files in bpffs", f"{before.pins}", f"{after.pins}", ""),
        ("VmallocUsed of the host, MiB", f"{kernel_before / MIB:.1f}", f"{vmalloc_bytes() / MIB:.1f}", ""),
    ]
    took = f"{times:,} loads after {WARM_UP} to warm up, {lives.seconds / times * 1e3:.0f} ms each with a walk.\n\n"
    return took + table(("", "before", "after", "left"), rows)


def vmalloc_bytes() -> int:
    """Return how much memory the kernel's areas for large blocks hold, which maps of BPF are (man 5 proc)."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmallocUsed:"))


SCENARIOS = (
    Scenario(
        name="walk-latency",
        summary=f"connect() beside a walker that never rests: {_SOCKETS}",
        run=measure_latency,
    ),
    Scenario(
        name="walk-churn",
        summary=f"{_STABLE:,} sockets that stay, walked beside as many connects as five processes make",
        run=measure_churn,
    ),
    Scenario(
        name="walk-bounds",
        summary="more pools, ports and namespaces than a walk has room for",
        run=exceed_bounds,
        is_long=True,
    ),
    Scenario(
        name="walk-loads",
        summary="what is left after the BPF program was loaded and unloaded a thousand times",
        run=load_many_times,
        is_long=True,
    ),
)
