"""Scenarios `proxy-*`: what polling each second costs a HAProxy under load.

wrk, HAProxy and the servers behind it (a second HAProxy) have a network namespace each; ephmon polls the one in the
middle, which also holds idle connections as those of a busy proxy. Runs with and without ephmon take turns.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.load import Population, load, own_table
from benchmarks.measurement import Spread, cpu_seconds_of, table, verdict
from benchmarks.running_daemon import running_daemon, wait_for_polls
from benchmarks.scenario import NotMeasuredError, Options, Scenario, program
from tests.namespaces import Namespace, connect

if TYPE_CHECKING:
    from collections.abc import Iterator

_CONNECTIONS = 100
_PAIRS = 12
_SECONDS = 10.0
MOST_DIFFERENCE = 0.01
_CLIENT, _FRONT, _BACK, _SERVER = "10.9.1.1/24", "10.9.1.2/24", "10.9.2.1/24", "10.9.2.2/24"
_PORT = 8000
_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}

_DEFAULTS = """\
defaults
  mode http
  maxconn 400
  timeout connect 5s
  timeout client 30s
  timeout server 30s
"""
_FRONT_CONFIG = f"""\
{_DEFAULTS}
listen front
  bind :{_PORT}
  server back 10.9.2.2:{_PORT}
"""
_BACK_CONFIG = f"""\
{_DEFAULTS}
frontend back
  bind :{_PORT}
  http-request return status 200 content-type text/plain string "{"x" * 1000}"
"""


class Run(NamedTuple):
    """What wrk says of one run, and the share of one processor that ephmon took meanwhile."""

    requests_per_second: float
    p99_ms: float
    ephmon_share: float = 0.0


@dataclass(slots=True)
class Side:
    """All runs with or all runs without ephmon."""

    runs: list[Run] = field(default_factory=list)

    @property
    def rate(self) -> Spread:
        """Requests per second."""
        return Spread(tuple(run.requests_per_second for run in self.runs))

    @property
    def p99(self) -> Spread:
        """Milliseconds that one request of a hundred takes longer than."""
        return Spread(tuple(run.p99_ms for run in self.runs))

    @property
    def ephmon_share(self) -> Spread:
        """Shares of one processor."""
        return Spread(tuple(run.ephmon_share for run in self.runs))


def measure(population: Population, options: Options) -> str:
    """Let wrk ask through HAProxy, by turns with and without ephmon."""
    population = options.sized(population)
    pairs = options.rounds_or(_PAIRS)
    seconds = options.seconds(_SECONDS)
    without, with_ephmon = Side(), Side()
    with _proxied() as (client, proxy):
        load(proxy, population)
        _run_wrk(client, 1.0)
        for pair in range(pairs):
            for polls in (pair % 2 == 0, pair % 2 == 1):
                run = _with_polls(client, proxy, seconds) if polls else _run_wrk(client, seconds)
                (with_ephmon if polls else without).runs.append(run)
    head = f"{population} beside the {2 * _CONNECTIONS} connections of the load; {pairs} pairs of {seconds:g} s. "
    share = with_ephmon.ephmon_share.times(100).written(1)
    return f"{head}ephmon took {share} % of one processor.\n\n{_result(without, with_ephmon)}"


def _result(without: Side, with_ephmon: Side) -> str:
    rows = [
        _row("requests per second", without.rate, with_ephmon.rate, more_is_worse=False, digits=0),
        _row("p99 latency, ms", without.p99, with_ephmon.p99, more_is_worse=True, digits=2),
    ]
    half = len(without.runs) // 2
    if half:
        one, other = Side(without.runs[: 2 * half : 2]), Side(without.runs[1 : 2 * half : 2])
        rows += [_noise("requests per second", one.rate, other.rate), _noise("p99 latency", one.p99, other.p99)]
    return table(("", "difference", "bound", "", "without ephmon", "with ephmon"), rows)


def _row(name: str, without: Spread, with_ephmon: Spread, *, more_is_worse: bool, digits: int) -> tuple[str, ...]:
    difference = with_ephmon.median / without.median - 1
    _, kept = verdict(difference if more_is_worse else -difference, MOST_DIFFERENCE)
    return (
        name,
        _written(without, with_ephmon),
        f"<= {MOST_DIFFERENCE:.0%} {'more' if more_is_worse else 'fewer'}",
        kept,
        without.written(digits),
        with_ephmon.written(digits),
    )


def _noise(name: str, one: Spread, other: Spread) -> tuple[str, ...]:
    """Return the row that says how much two halves of the runs without ephmon differ."""
    return (f"{name}, every other run without ephmon against the rest", _written(one, other), "", "", "", "")


def _written(before: Spread, after: Spread) -> str:
    differences = [ratio - 1 for ratio in after.over(before).values]
    return f"**{after.median / before.median - 1:+.1%}** ({min(differences):+.1%} to {max(differences):+.1%})"


@contextmanager
def _proxied() -> Iterator[tuple[Namespace, Namespace]]:
    """Set up the three namespaces and both HAProxys; yield those of wrk and of the proxy.

    Raises:
        NotMeasuredError: A program is not installed.
    """
    program("wrk")
    haproxy = program("haproxy")
    with Namespace() as client, Namespace(beside=client) as proxy, Namespace(beside=proxy) as server:
        proxy.call(own_table)
        connect(client, proxy, addresses=(_CLIENT, _FRONT))
        connect(proxy, server, addresses=(_BACK, _SERVER), device="veth1")
        with _running(server, haproxy, _BACK_CONFIG), _running(proxy, haproxy, _FRONT_CONFIG):
            yield client, proxy


@contextmanager
def _running(namespace: Namespace, haproxy: str, config: str) -> Iterator[None]:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "haproxy.cfg")
        file.write_text(config, encoding="ascii")
        command = namespace.command(haproxy, "-db", "-f", str(file))
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                yield
            finally:
                process.kill()


def _with_polls(client: Namespace, proxy: Namespace, seconds: float) -> Run:
    with running_daemon(proxy, 1.0) as daemon:
        wait_for_polls(daemon, 1, 60)
        cpu, wall = cpu_seconds_of(daemon.pid), time.monotonic()
        run = _run_wrk(client, seconds)
        return run._replace(ephmon_share=(cpu_seconds_of(daemon.pid) - cpu) / (time.monotonic() - wall))


def _run_wrk(client: Namespace, seconds: float) -> Run:
    url = f"http://10.9.1.2:{_PORT}/"
    arguments = ["-t", "1", "-c", str(_CONNECTIONS), "-d", f"{seconds:.0f}s", "--latency", url]
    deadline = time.monotonic() + 10
    while True:
        done = subprocess.run(
            client.command(program("wrk"), *arguments),
            capture_output=True,
            text=True,
            timeout=seconds + 60,
            check=False,
        )
        if done.returncode == 0:
            return parse(done.stdout)
        if time.monotonic() > deadline:  # HAProxy may take a moment to listen
            raise NotMeasuredError(f"wrk fails: {(done.stderr or done.stdout).strip()[:200]}")


def parse(output: str) -> Run:
    """Return what wrk printed.

    Raises:
        NotMeasuredError: It prints something else, or requests failed.
    """
    rate = re.search(r"^Requests/sec:\s+([\d.]+)$", output, re.MULTILINE)
    latency = re.search(r"^\s+99%\s+([\d.]+)(us|ms|s|m)$", output, re.MULTILINE)
    if rate is None or latency is None or "Non-2xx" in output:
        raise NotMeasuredError(f"wrk does not print what it should: {output!r}")
    return Run(float(rate[1]), float(latency[1]) * _UNITS[latency[2]])


SCENARIOS = tuple(
    Scenario(
        name=name,
        summary=f"HAProxy under load with and without ephmon, beside {population}",
        run=partial(measure, population),
        is_smoke=name == "proxy-10k",
    )
    for name, population in {
        "proxy-10k": Population(established=10_000, destinations=100),
        "proxy-120k": Population(established=120_000, destinations=1_000),
    }.items()
)
