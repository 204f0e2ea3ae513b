"""What a fleet of hosts with ephmon costs a Prometheus: series, memory, disk, traffic and the time for the rules.

    python -m benchmarks.fleet [--hosts 200] [--top 50 10] [--seconds 630]

A real Prometheus in a network namespace, with the rules of deploy/prometheus, scrapes so many hosts every five seconds.
One process plays all of them: it renders, for each scrape, a report of that host with ephmon's own renderer. Each host
lists `--top` pools, all of which have moved since the scrape before; a tenth of them has a forecast and two alert. In
ten minutes each series has the 120 samples of a full chunk; then Prometheus writes what it has into a block, of which
the size is taken. Runs of several `--top` go on at the same time.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from statistics import median
from typing import TYPE_CHECKING

from tornado.httpserver import HTTPServer
from tornado.web import Application, RequestHandler

from benchmarks.__main__ import positive_number
from benchmarks.machine import describe_machine
from benchmarks.measurement import table
from benchmarks.scenario import NotMeasuredError, program
from ephmon.facts.failed_calls import Destination
from ephmon.model.alerting.thresholds import Severity
from ephmon.model.collectors import Health
from ephmon.model.failures.counters import Count, Exhaustions
from ephmon.model.pools.kinds import PoolKind
from ephmon.model.report import ListedPool, PollTotals, Report
from ephmon.outputs.metrics.exposition import process_registry, render
from tests.builders import make_alert, make_forecast, make_namespace_report, make_pool, make_report
from tests.namespaces import Namespace
from tests.processes import WAIT_SECONDS, environment, eventually, fetch, parse_metrics, put, python

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prometheus_client.registry import Collector

    from tests.processes import Metrics

RULES = Path(__file__).parents[1] / "deploy" / "prometheus"
HERE, HOSTS_PORT, PROMETHEUS_PORT = "127.0.0.1", 19100, 9090
SCRAPE_SECONDS = 5
ALERTS = 2
FLEET_HOSTS = 10_000
FLEET_SCRAPE_SECONDS = 15
USABLE = 28_232
SECONDS_A_DAY = 86_400
BLOCKS_A_DAY = 12
"""Prometheus cuts a block every two hours; what it merges later is smaller."""

_GROUP_DURATION = "prometheus_rule_group_last_duration_seconds"
_CONFIG = f"""\
global: {{scrape_interval: {SCRAPE_SECONDS}s, scrape_timeout: {SCRAPE_SECONDS}s}}
rule_files: [ephmon-*.yml]
scrape_configs:
  - job_name: ephmon
    file_sd_configs: [{{files: [targets.json]}}]
"""


def host_report(host: int, top: int, moment: int) -> Report:
    """Return what a host has to tell: a fixed set of pools for each host, whose figures differ at each moment."""
    figures = Random(f"{host} {moment}")
    pools = [_listed(Random(f"{host} pool {number}"), figures, number) for number in range(top)]
    ephemeral = {PoolKind.TCP_CONNECT: top + 5, PoolKind.TCP_BIND: 1, PoolKind.UDP_CONNECT: 1}
    report = make_report(
        taken_at=float(moment),
        listed=pools,
        namespaces=[
            make_namespace_report(
                blocked_ports=figures.randrange(20),
                pools=ephemeral,
                listed={PoolKind.TCP_CONNECT: top},
                worst=dict.fromkeys(ephemeral, figures.random()),
            )
        ],
        totals=PollTotals(polls={"full": moment, "narrow": moment // 2}, cpu_seconds=moment / 100),
        alerts=[make_alert(one.pool, severity=Severity.CRITICAL) for one in pools[:ALERTS]],
    )
    destinations = [(one.pool.key.netns, bytes([10, 0, 1, number]), 443) for number, one in enumerate(pools)]
    counts = {Destination(*one): Count(moment // 60, 0.0) for one in destinations}
    counted = replace(
        report,
        exhaustions=Exhaustions(destinations=counts),
        log_lines_lost={"stream": 0, "rate": 0},
        thread_restarts={"http": 0, "delivery": 0},
    )
    return counted.with_health(exhaustions=Health(available=True))


def _listed(nature: Random, figures: Random, number: int) -> ListedPool:
    in_use = min(USABLE - 100, nature.randrange(100, USABLE // 2) + figures.randrange(2000))
    time_wait = figures.randrange(in_use)
    pool = make_pool(destination=f"10.0.1.{number}", usable=USABLE, blocked=0, in_use=in_use, time_wait=time_wait)
    ahead = figures.uniform(60, 3600) if number % 10 == 0 else None
    forecast = make_forecast(opens_per_second=figures.uniform(0, 400), seconds_to_exhaustion=ahead)
    return ListedPool(pool=pool, peak_utilisation=min(1.0, pool.utilisation + 0.01), forecast=forecast)


def exposition(host: int, top: int, moment: int, process: Collector | None) -> bytes:
    """Return what a scrape of the host gets."""
    report = host_report(host, top, moment)
    return render(report, kernel_release=os.uname().release, process_registry=process, openmetrics=False)


class _Host(RequestHandler):
    def initialize(self, top: int, process: Collector) -> None:
        self._top, self._process = top, process

    def get(self, host: str) -> None:
        self.set_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.finish(exposition(int(host), self._top, int(time.time()), self._process))


async def play_hosts(top: int) -> None:
    """Answer for all hosts, by the number in the path, until killed."""
    application = Application([(r"/host/(\d+)", _Host, {"top": top, "process": process_registry()})])
    HTTPServer(application).listen(HOSTS_PORT, HERE)
    await asyncio.Event().wait()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What Prometheus took for so many hosts; sizes in bytes."""

    hosts: int
    top: int
    series: float
    """For each host, those that Prometheus makes for each target included; not those that the rules record."""
    recorded: float
    """Series that the rules record and alerts, of the whole fleet."""
    body: int
    gzipped: int
    """What one scrape sends."""
    memory: float
    """For each series: resident memory at its greatest, above that without targets."""
    empty: float
    """Resident memory without targets."""
    chunk_bytes: float
    """For each sample."""
    index_bytes: float
    """For each series in a block."""
    processor: float
    """Share of one processor."""
    rules: float
    """Seconds that an evaluation of all groups of rules takes: the sum of the medians."""
    failed: int
    """Hosts of which a scrape failed."""

    def row(self) -> list[str]:
        """Return what was measured."""
        return [
            str(self.top),
            f"{self.series:.0f}",
            f"{self.body / 1024:.1f} / {self.gzipped / 1024:.1f} KiB",
            f"{self.memory:,.0f}",
            f"{self.chunk_bytes:.2f}",
            f"{self.index_bytes:.0f}",
            f"{100 * self.processor:.0f} %",
            f"{1000 * self.rules:.0f} ms",
            str(self.failed),
        ]

    def extrapolated(self) -> list[str]:
        """Return what follows for a fleet."""
        series = self.series * FLEET_HOSTS
        samples = series / FLEET_SCRAPE_SECONDS
        day = samples * SECONDS_A_DAY * self.chunk_bytes + BLOCKS_A_DAY * series * self.index_bytes
        return [
            str(self.top),
            f"{series / 1e6:.1f} million",
            f"{samples:,.0f}",
            f"{(self.empty + series * self.memory) / (1 << 30):.0f} GiB",
            f"{day / (1 << 30):.0f} GiB",
            f"{8 * FLEET_HOSTS * self.gzipped / FLEET_SCRAPE_SECONDS / 1e6:.0f} Mbit/s",
            f"{self.processor * FLEET_HOSTS / self.hosts * SCRAPE_SECONDS / FLEET_SCRAPE_SECONDS:.1f}",
            f"{self.rules * FLEET_HOSTS / self.hosts:.1f} s",
        ]


def measured(hosts: int, top: int, seconds: float) -> Cost:
    """Let a Prometheus scrape so many hosts for so long, in a namespace of its own."""
    with Namespace() as ns, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in RULES.glob("ephmon-*.yml"):
            shutil.copy(file, folder)
        put(folder / "targets.json", "[]")
        put(folder / "prometheus.yml", _CONFIG)
        play = ns.command(*python("-m", "benchmarks.fleet", "--play", "--top", str(top)))
        with _running(play, folder / "hosts.log"), _running(_prometheus(ns, folder), folder / "log") as server:
            empty = eventually(lambda: _metrics(ns), bool)["process_resident_memory_bytes"]
            targets = [_target(host) for host in range(hosts)]
            put(folder / "targets.json", json.dumps(targets))
            seen = list(_watched(ns, seconds))
            now, peak = seen[-1], max(one["process_resident_memory_bytes"] for one in seen)
            block = folder / "data" / "snapshots" / ns.call_within(WAIT_SECONDS, snapshot)
            failed = hosts - int(_query(ns, "sum(min_over_time(up[1h]))"))
            scraped = _query(ns, "sum(scrape_samples_scraped) + count({__name__=~'up|scrape_.*'})")
            recorded = _query(ns, "count({__name__=~'.+:.+|ALERTS.*'})")
            assert server.poll() is None
        chunk_bytes, index_bytes = _sizes(block)
    body = exposition(0, top, int(time.time()), process_registry())
    return Cost(
        hosts=hosts,
        top=top,
        series=scraped / hosts,
        recorded=recorded,
        body=len(body),
        gzipped=len(gzip.compress(body, 1)),
        memory=(peak - empty) / now["prometheus_tsdb_head_series"],
        empty=empty,
        chunk_bytes=chunk_bytes,
        index_bytes=index_bytes,
        processor=now["process_cpu_seconds_total"] / seconds,
        rules=sum(median(one[group] for one in seen) for group in now if group.startswith(_GROUP_DURATION)),
        failed=failed,
    )


def _prometheus(ns: Namespace, folder: Path) -> list[str]:
    return ns.command(
        program("prometheus"),
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address={HERE}:{PROMETHEUS_PORT}",
        "--web.enable-admin-api",
    )


def _target(host: int) -> dict[str, object]:
    labels = {"instance": f"web{host:05}.example.net:19100", "__metrics_path__": f"/host/{host}"}
    return {"targets": [f"{HERE}:{HOSTS_PORT}"], "labels": labels}


@contextmanager
def _running(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (
        log.open("wb") as file,
        subprocess.Popen(command, env=environment(), stdin=subprocess.DEVNULL, stderr=file) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def _metrics(ns: Namespace) -> Metrics:
    """Return Prometheus' own metrics, nothing while it starts."""
    try:
        return parse_metrics(ns.call(fetch, "/metrics", port=PROMETHEUS_PORT).body)
    except ConnectionRefusedError:
        return {}


def _watched(ns: Namespace, seconds: float) -> Iterator[Metrics]:
    """Yield Prometheus' own metrics every few seconds."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        time.sleep(min(SCRAPE_SECONDS, left))
        yield _metrics(ns)


def _query(ns: Namespace, expression: str) -> float:
    path = "/api/v1/query?query=" + expression.replace("+", "%2B").replace(" ", "%20")
    result = json.loads(ns.call(fetch, path, port=PROMETHEUS_PORT).body)["data"]["result"]
    if not result:
        raise NotMeasuredError(f"Prometheus has nothing for {expression}")
    return float(result[0]["value"][1])


def snapshot() -> str:
    """Let the Prometheus of this namespace write all it has into blocks; return the name of their directory."""
    connection = http.client.HTTPConnection(HERE, PROMETHEUS_PORT, timeout=WAIT_SECONDS)
    connection.request("POST", "/api/v1/admin/tsdb/snapshot")
    return str(json.loads(connection.getresponse().read())["data"]["name"])


def _sizes(blocks: Path) -> tuple[float, float]:
    """Return the bytes of chunks for each sample and those of the index for each series in a block."""
    stats = [json.loads(meta.read_text(encoding="utf-8"))["stats"] for meta in blocks.glob("*/meta.json")]
    chunks = sum(file.stat().st_size for file in blocks.glob("*/chunks/*"))
    index = sum(file.stat().st_size for file in blocks.glob("*/index"))
    return chunks / sum(one["numSamples"] for one in stats), index / sum(one["numSeries"] for one in stats)


def main(arguments: Sequence[str]) -> int:
    """Measure and print the tables; with --play be the hosts instead."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet", description="Measure what a fleet costs.")
    parser.add_argument("--hosts", type=positive_number, default=200)
    parser.add_argument("--top", type=positive_number, nargs="+", default=[50, 10], help="pools that a host lists")
    parser.add_argument("--seconds", type=positive_number, default=630)
    parser.add_argument("--play", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.play:
        asyncio.run(play_hosts(options.top[0]))
    machine = describe_machine()
    with ThreadPoolExecutor(len(options.top)) as threads:
        runs = [threads.submit(measured, options.hosts, top, options.seconds) for top in options.top]
        costs = [one.result() for one in runs]
    head = ["pools listed", "series a host", "body / gzip", "memory a series, B", "chunks a sample, B"]
    head += ["index a series, B", "processor", "all rules", "hosts with a failed scrape"]
    print(table(head, [cost.row() for cost in costs]))
    head = ["pools listed", "series", "samples/s", "memory", "disk a day", "traffic", "processors", "all rules"]
    print(table(head, [cost.extrapolated() for cost in costs]))
    recorded = ", ".join(f"{cost.recorded:.0f}" for cost in costs)
    print(f"{options.hosts} hosts, {options.seconds} s; series that the rules made: {recorded}.")
    print(f"Measured on {machine}.")
    return 0


if __name__ == "__main__":
    # What is called in a namespace must be found there by its name, and this module is called otherwise when it is run.
    from benchmarks.fleet import main as run_all

    sys.exit(run_all(sys.argv[1:]))
