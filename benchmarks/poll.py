"""Scenarios `poll-*` and `scaling`: a poll of ephmon beside the kernel's share of it and the other ways to look."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from benchmarks import contenders
from benchmarks.contenders import BareDump, FileReading, NodeExporter, Program
from benchmarks.load import Population, load, open_files, populated, time_waits
from benchmarks.measurement import MIB, NOT_MEASURED, Spread, table, verdict
from benchmarks.polling import READINGS, EphmonPoll, PollKind, requests_of
from benchmarks.psutil_connections import PsutilConnections
from benchmarks.scenario import Options, Scenario, find_program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from benchmarks.contenders import Contender
    from benchmarks.measurement import Cost
    from tests.namespaces import Agent, Namespace

CALL_SECONDS = 300.0
SS, PROCFS, PSUTIL, EXPORTER = "`ss -tanH`", "reading /proc/net/tcp and tcp6", "psutil", "node_exporter, tcpstat"
_MOST_SOCKETS_FOR_PSUTIL = 20_000
_MOST_FILES_FOR_PSUTIL = 100_000
_SCALE = (10_000, 40_000, 160_000, 640_000)
_SCALE_DESTINATIONS = 1_000


class Bound(NamedTuple):
    """The ratio of processor time that a kind of poll should keep to something else."""

    kind: PollKind
    against: str
    ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A population and what should be true of polling it."""

    population: Population
    rounds: int
    bounds: Sequence[Bound] = ()


class Entry(NamedTuple):
    """Something to measure: how it is named, how it is made in its agent, and why it is left out, if it is."""

    name: str
    make: Callable[..., Contender]
    arguments: tuple[object, ...] = ()
    missing: str = ""


@dataclass(slots=True)
class Result:
    """What one entry took in each round, and at most."""

    costs: list[Cost] = field(default_factory=list)
    peak_bytes: int = 0

    @property
    def wall(self) -> Spread:
        """Seconds."""
        return Spread(tuple(cost.wall_seconds for cost in self.costs))

    @property
    def cpu(self) -> Spread:
        """Seconds of processor time."""
        return Spread(tuple(cost.cpu_seconds for cost in self.costs))


def bare(kind: PollKind) -> str:
    """Return how the bare dump of the requests of such a poll is named."""
    return "bare dump" if len(READINGS) == 1 else f"bare dump, requests of the {kind.removeprefix('ephmon ')}"


FEW_POOLS = (
    Bound(PollKind.EVIDENCE, bare(PollKind.EVIDENCE), 1.6),
    Bound(PollKind.COUNTING, bare(PollKind.COUNTING), 1.25),
    Bound(PollKind.COUNTING, SS, 0.6),
    Bound(PollKind.BPF, bare(PollKind.COUNTING), 0.5),
)
MANY_POOLS = (
    Bound(PollKind.EVIDENCE, bare(PollKind.EVIDENCE), 1.6),
    Bound(PollKind.COUNTING, bare(PollKind.COUNTING), 1.6),
    Bound(PollKind.BPF, bare(PollKind.COUNTING), 0.35),
)


def compare(comparison: Comparison, options: Options) -> str:
    """Measure all ways to look at a population, one after the other in each round."""
    population = options.sized(comparison.population)
    rounds = options.rounds_or(comparison.rounds)
    with populated(population) as namespace:
        entries = list(_entries(namespace, comparison.population, options))
        results = measure(namespace, [entry for entry in entries if not entry.missing], rounds)
        left = f", {namespace.call(time_waits):,} TIME_WAIT left at the end" if population.time_wait else ""
    return "\n".join(
        [
            f"{population}; {rounds} rounds{left}.\n",
            _ratios(results, comparison.bounds),
            _costs(entries, results, population.sockets),
        ]
    )


def measure(namespace: Namespace, entries: Sequence[Entry], rounds: int) -> Mapping[str, Result]:
    """Give each entry an agent of its own and let them take turns."""
    agents = {entry.name: _agent(namespace, entry) for entry in entries}
    results: defaultdict[str, Result] = defaultdict(Result)
    for _ in range(rounds):
        for name, agent in agents.items():
            results[name].costs.append(agent.call_within(CALL_SECONDS, contenders.run))
    for name, agent in agents.items():
        results[name].peak_bytes = agent.call_within(CALL_SECONDS, contenders.peak_bytes)
        agent.close()
    return results


def polls(namespace: Namespace) -> Iterator[Entry]:
    """Yield each kind of poll, after the bare dump of its requests if it dumps sockets."""
    for kind in READINGS:
        if kind is not PollKind.BPF:
            yield Entry(bare(kind), BareDump, (_requests_of(namespace, kind),))
        yield Entry(kind, EphmonPoll, (kind,))


def _entries(namespace: Namespace, population: Population, options: Options) -> Iterator[Entry]:
    yield from polls(namespace)
    ss = find_program("ss")
    yield Entry(SS, Program, ([ss, "-tanH"],), "" if ss else "ss is not installed")
    yield Entry(PROCFS, FileReading, (["/proc/net/tcp", "/proc/net/tcp6"],))
    exporter = options.node_exporter
    yield Entry(EXPORTER, NodeExporter, (exporter,), "" if exporter else "node_exporter is not installed")
    yield Entry(PSUTIL, PsutilConnections, (), _why_not_psutil(population))


def _why_not_psutil(population: Population) -> str:
    """Return why psutil would take too long, if it would: it looks through what all processes have open."""
    if population.sockets > _MOST_SOCKETS_FOR_PSUTIL:
        return f"above {_MOST_SOCKETS_FOR_PSUTIL:,} sockets"
    if open_files() > _MOST_FILES_FOR_PSUTIL:
        return f"above {_MOST_FILES_FOR_PSUTIL:,} files are open on this host"
    return ""


def _agent(namespace: Namespace, entry: Entry) -> Agent:
    agent = namespace.another_agent()
    agent.call_within(CALL_SECONDS, contenders.set_up, entry.make, *entry.arguments)
    return agent


def _requests_of(namespace: Namespace, kind: PollKind) -> object:
    agent = namespace.another_agent()
    requests = agent.call_within(CALL_SECONDS, requests_of, kind)
    agent.close()
    return requests


def _ratios(results: Mapping[str, Result], bounds: Sequence[Bound]) -> str:
    bound_of = {(bound.kind, bound.against): bound.ratio for bound in bounds}
    return table(
        ("compared", "CPU, times", "bound", "", "wall, times"),
        [_ratio(results, kind, against, bound_of.get((kind, against))) for kind, against in _pairs(results)],
    )


def _pairs(results: Mapping[str, Result]) -> Iterator[tuple[PollKind, str]]:
    bare_dumps = {bare(kind) for kind in READINGS}
    for kind in READINGS:
        # What reads no sockets by dumps of its own is held against the cheapest of them.
        own = bare(PollKind.COUNTING if kind is PollKind.BPF else kind)
        yield from ((kind, name) for name in results if name == own or name not in {*bare_dumps, *READINGS})


def _ratio(results: Mapping[str, Result], kind: PollKind, against: str, bound: float | None) -> list[str]:
    ours, theirs = results[kind], results[against]
    ratio = ours.cpu.median / theirs.cpu.median
    return [
        f"{kind} / {against}",
        _spread_of_ratio(ours.cpu, theirs.cpu),
        *(("", "") if bound is None else verdict(ratio, bound)),
        _spread_of_ratio(ours.wall, theirs.wall),
    ]


def _spread_of_ratio(ours: Spread, theirs: Spread) -> str:
    """Return the ratio of the medians, with the least and the greatest ratio of one round."""
    ratios = ours.over(theirs).values
    return f"**{ours.median / theirs.median:.2f}** ({min(ratios):.2f}-{max(ratios):.2f})"


def _costs(entries: Sequence[Entry], results: Mapping[str, Result], sockets: int) -> str:
    return table(
        ("", "CPU ms", "wall ms", "CPU us a socket", "peak RSS MiB"),
        [_cost(entry, results, sockets) for entry in entries],
    )


def _cost(entry: Entry, results: Mapping[str, Result], sockets: int) -> list[str]:
    if entry.missing:
        return [entry.name, f"{NOT_MEASURED}: {entry.missing}", "", "", ""]
    result = results[entry.name]
    return [
        entry.name,
        result.cpu.times(1e3).written(1),
        result.wall.times(1e3).written(1),
        f"{result.cpu.median * 1e6 / max(sockets, 1):.2f}",
        f"{result.peak_bytes / MIB:.1f}",
    ]


def scale(options: Options) -> str:
    """Measure polls and bare dumps while sockets are added."""
    rounds = options.rounds_or(5)
    sizes = (100, 200, 400) if options.quick else _SCALE
    cpu_seconds: defaultdict[str, list[Spread]] = defaultdict(list)
    with populated(Population()) as namespace:
        for before, after in pairwise((0, *sizes)):
            load(namespace, Population(established=after - before, destinations=_SCALE_DESTINATIONS))
            for name, result in measure(namespace, list(polls(namespace)), rounds).items():
                cpu_seconds[name].append(result.cpu)
    head = ("", "sockets", "CPU ms", "us a socket", "us a socket that was added")
    return f"{_SCALE_DESTINATIONS:,} destinations; {rounds} rounds.\n\n" + table(
        head, [row for name, spreads in cpu_seconds.items() for row in _growth(name, sizes, spreads)]
    )


def _growth(name: str, sizes: Sequence[int], cpu_seconds: Sequence[Spread]) -> Iterator[tuple[str, ...]]:
    before, seconds_before = 0, 0.0
    for size, spread in zip(sizes, cpu_seconds, strict=True):
        added = (spread.median - seconds_before) / (size - before)
        yield (
            name,
            f"{size:,}",
            spread.times(1e3).written(1),
            f"{spread.median / size * 1e6:.2f}",
            f"{added * 1e6:.2f}" if before else "",
        )
        before, seconds_before = size, spread.median


COMPARISONS: Mapping[str, Comparison] = {
    "poll-10k": Comparison(population=Population(established=10_000, destinations=100), rounds=15),
    "poll-120k": Comparison(
        population=Population(established=120_000, destinations=1_000), rounds=11, bounds=FEW_POOLS
    ),
    "poll-1m": Comparison(population=Population(established=1_000_000, destinations=1_000), rounds=5, bounds=FEW_POOLS),
    "poll-60k-pools": Comparison(
        population=Population(established=120_000, destinations=60_000), rounds=7, bounds=MANY_POOLS
    ),
    "poll-inbound": Comparison(
        population=Population(established=12_000, destinations=100, accepted=108_000), rounds=11
    ),
    "poll-time-wait": Comparison(population=Population(time_wait=100_000, destinations=100), rounds=7),
}

SCENARIOS = (
    *(
        Scenario(
            name=name,
            summary=f"a poll beside other ways to look: {comparison.population}",
            run=partial(compare, comparison),
            is_smoke=name in ("poll-10k", "poll-inbound", "poll-time-wait"),
        )
        for name, comparison in COMPARISONS.items()
    ),
    Scenario(name="scaling", summary="what a socket costs as sockets are added", run=scale, is_smoke=True),
)
