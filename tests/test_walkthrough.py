"""The walkthrough on real components: HAProxy runs out of ports, and Prometheus knew from ephmon that it would.

The story of docs/walkthrough.md, told once by `_tell` with the files and the load of that page and a poll and a scrape
each second; the tests then look at what was seen on the way. A TIME_WAIT lasts 60 seconds, and from the first to the
failures there pass about ten.
"""

from __future__ import annotations

import errno
import http.client
import json
import os
import re
import subprocess
import sys
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import quote

import pytest

from ephmon.outputs.catalogue import METRICS
from tests import sockets
from tests.namespaces import Namespace
from tests.sockets import FillResult

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "walkthrough.md").read_text(encoding="utf-8")
SCRAPE = ROOT / "deploy" / "prometheus" / "prometheus.yml"

PORTS = 1000
HOST, SHOP_PORT, SEARCH_PORT = "10.8.0.1", 8080, 8081
SHOP_PROXY, SEARCH_PROXY = 8000, 8001
PROMETHEUS, HAPROXY = 9090, 8404
WAIT_SECONDS = 40.0
NO_FREE_PORTS = "Connect() failed for backend shop: no free ports."
SHOP = f'{{kind="tcp_connect",destination="{HOST}",destination_port="{SHOP_PORT}"}}'
SEARCH = f'{{kind="tcp_connect",destination="{HOST}",destination_port="{SEARCH_PORT}"}}'
ALL_SERVED, NONE_SERVED = "200", "000"


def from_the_page(name: str) -> str:
    """Return the file that the page writes, or appends to another, with `cat`."""
    (text,) = re.findall(rf"^cat >>? {re.escape(name)} <<'END'\n(.*?)^END$", PAGE, re.MULTILINE | re.DOTALL)
    return str(text)


def shell_function(name: str) -> str:
    """Return a shell function of the page."""
    (text,) = re.findall(rf"^{name}\(\) \{{.*?^\}}$", PAGE, re.MULTILINE | re.DOTALL)
    return str(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What there is to see at one moment of the story."""

    answers: Mapping[str, int]
    """What the requests before it got: how many by HTTP status, 000 for a connection closed without an answer."""
    metrics: Mapping[str, float]
    """What Prometheus says of the shop's pool, by name without `ephmon_pool_`."""
    held: int
    """Ports of the range that `ss` lists toward the shop."""
    time_wait: int
    """TIME_WAITs of the whole namespace, as /proc/net/sockstat has them and node_sockstat_TCP_tw exports them."""
    refused: int
    """How often HAProxy has logged that there are no free ports toward the shop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """What was seen."""

    busy: Moment
    full: Moment
    failing: Moment
    relieved: Moment
    next_connect: FillResult
    """What the kernel said to a connect() of our own while HAProxy failed."""
    search_answers: Mapping[str, int]
    """What the other service answered while connections toward the shop failed."""
    table: str
    """What `ephmon pools` printed meanwhile."""
    wrk: str
    """What wrk printed once HAProxy kept its connections."""
    cured_connections: float
    """How many connections toward the shop HAProxy opened for wrk's requests."""
    cured_errors: float
    metric_names: frozenset[str]
    ephmon_log: str
    directory: Path
    """Where all programs worked."""


class Stage:
    """The namespace of the walkthrough and the programs that run in it."""

    def __init__(self, ns: Namespace, directory: Path) -> None:
        self._ns = ns
        self.directory = directory
        self._processes: list[subprocess.Popen[bytes]] = []
        # Proxies of the host cannot be reached from inside, and ephmon is imported from where this test imports it.
        plain = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        self._environment = {**plain, "PYTHONPATH": os.pathsep.join(sys.path)}

    def write(self, name: str, text: str) -> None:
        (self.directory / name).write_text(text, encoding="utf-8")

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a program; what it prints goes to NAME.out and NAME.err."""
        with self._open(f"{name}.out") as stdout, self._open(f"{name}.err") as stderr:
            process = subprocess.Popen(
                self._ns.command(*arguments), cwd=self.directory, env=self._environment, stdout=stdout, stderr=stderr
            )
        self._processes.append(process)
        return process

    def _open(self, name: str) -> BinaryIO:
        return (self.directory / name).open("wb")

    def read(self, name: str) -> str:
        return (self.directory / name).read_text(encoding="utf-8")

    def output_of(self, *arguments: str) -> str:
        """Run a program to its end and return what it prints."""
        command = self._ns.command(*arguments)
        done = subprocess.run(
            command, cwd=self.directory, env=self._environment, stdout=subprocess.PIPE, timeout=60, check=True
        )
        return done.stdout.decode()

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        process.wait(WAIT_SECONDS)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait(WAIT_SECONDS)

    def ephmon(self, *arguments: str) -> tuple[str, ...]:
        return (sys.executable, "-P", "-m", "ephmon", *arguments, "--config", "ephmon.yaml")

    def ask(self, port: int, number: int) -> dict[str, int]:
        """Send requests through the proxy, one connection each, and count the answers by HTTP status."""
        counted = self.output_of("bash", "-c", f"{shell_function('ask')}\nask {port} {number}")
        return {status: int(count) for count, status in map(str.split, counted.splitlines())}

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Ask Prometheus and return labels and value of each sample."""
        answer = json.loads(self._ns.call(get, PROMETHEUS, f"/api/v1/query?query={quote(expression)}"))
        return [(sample["metric"], float(sample["value"][1])) for sample in answer["data"]["result"]]

    def value(self, expression: str) -> float:
        ((_, value),) = self.query(expression)
        return value

    def when(self, expression: str) -> None:
        """Wait until Prometheus has a sample for an expression that is a comparison."""
        path = f"/api/v1/query?query={quote(expression)}"
        self._ns.call(wait_for_a_sample, PROMETHEUS, path)

    def moment(self, answers: Mapping[str, int]) -> Moment:
        names = ("in_use_ports", "time_wait_ports", "reusable_ports", "remaining_ports", "utilisation_ratio")
        rows = self.output_of("ss", "-Htan", f"dport = :{SHOP_PORT}").splitlines()
        return Moment(
            answers=answers,
            metrics={name: self.value(f"ephmon_pool_{name}{SHOP}") for name in names},
            held=len(rows),
            time_wait=self._ns.call(time_waits),
            refused=self.read("proxy.out").count(NO_FREE_PORTS),
        )

    def haproxy(self, name: str) -> float:
        """Ask HAProxy itself for one of its metrics of the shop."""
        exposition = self._ns.call(get, HAPROXY, "/metrics")
        (value,) = re.findall(rf'^{name}{{proxy="shop"}} (\S+)$', exposition, re.MULTILINE)
        return float(value)


def get(port: int, path: str) -> str:
    """GET from the loopback device of the caller's namespace; raises OSError while nobody answers as it should."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read().decode()
    finally:
        connection.close()
    if response.status != http.HTTPStatus.OK:
        raise OSError(f"port {port}{path} answered {response.status}: {body}")
    return body


def wait_for_a_sample(port: int, path: str) -> None:
    """Return once a query of Prometheus has a result."""
    deadline = time.monotonic() + WAIT_SECONDS
    answer: Any = None
    while time.monotonic() < deadline:
        try:
            answer = json.loads(get(port, path))
            if answer["data"]["result"]:
                return
        except OSError as error:  # Prometheus is not there yet
            answer = error
        time.sleep(0.05)
    raise TimeoutError(f"{path}: {answer} after {WAIT_SECONDS:g} s")


def time_waits() -> int:
    """Return the number of TIME_WAITs of the caller's namespace, from /proc/net/sockstat."""
    (number,) = re.findall(r"^TCP:.* tw (\d+)", Path("/proc/net/sockstat").read_text(encoding="ascii"), re.MULTILINE)
    return int(number)


def wait_for_listeners(ports: set[int]) -> None:
    """Return once there are listening sockets on all the ports; to try a connection would take a port."""
    deadline = time.monotonic() + WAIT_SECONDS
    while missing := ports - _listening():
        if time.monotonic() > deadline:
            raise TimeoutError(f"nobody listens on {missing} after {WAIT_SECONDS:g} s")
        time.sleep(0.02)


def _listening() -> set[int]:
    """Return the ports of /proc/net/tcp in the state LISTEN (10), see man 5 proc."""
    rows = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    return {int(local.rpartition(":")[2], 16) for _, local, _, state, *_ in map(str.split, rows) if state == "0A"}


@pytest.fixture(scope="module", name="story")
def _story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    with Namespace(addresses=[f"{HOST}/32"]) as ns, closing(Stage(ns, tmp_path_factory.mktemp("walkthrough"))) as stage:
        return _tell(ns, stage)


def _open_the_stage(ns: Namespace, stage: Stage) -> subprocess.Popen[bytes]:
    """Start everything, wait until Prometheus has scraped it, and return the proxy."""
    ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", f"40000 {40000 + PORTS - 1}")
    stage.write("services.cfg", from_the_page("services.cfg"))
    stage.write("proxy.cfg", from_the_page("proxy.cfg"))
    stage.write("ephmon.yaml", "poll: {interval: 1s}\n")
    scrape = SCRAPE.read_text(encoding="utf-8") + from_the_page("prometheus.yml")
    stage.write("prometheus.yml", scrape.replace("scrape_interval: 5s", "scrape_interval: 1s"))
    stage.start("services", "haproxy", "-db", "-f", "services.cfg")
    proxy = _start_the_proxy(ns, stage)
    stage.start("ephmon", *stage.ephmon("run"))
    stage.start(
        "prometheus",
        "prometheus",
        "--config.file=prometheus.yml",
        "--storage.tsdb.path=data",
        f"--web.listen-address=127.0.0.1:{PROMETHEUS}",
    )
    ns.call(wait_for_listeners, {SHOP_PORT, SEARCH_PORT})
    stage.when("count(up == 1) == 2")
    return proxy


def _start_the_proxy(ns: Namespace, stage: Stage) -> subprocess.Popen[bytes]:
    proxy = stage.start("proxy", "haproxy", "-db", "-f", "proxy.cfg")
    ns.call(wait_for_listeners, {SHOP_PROXY, SEARCH_PROXY, HAPROXY})
    return proxy


def _tell(ns: Namespace, stage: Stage) -> Story:
    proxy = _open_the_stage(ns, stage)

    answers = stage.ask(SHOP_PROXY, 700)
    stage.ask(SEARCH_PROXY, 700)
    stage.when(f"ephmon_pool_remaining_ports{SEARCH} == 300 and on() ephmon_pool_remaining_ports{SHOP} == 300")
    busy = stage.moment(answers)

    answers = stage.ask(SHOP_PROXY, 300)
    stage.when(f"ephmon_pool_remaining_ports{SHOP} == 0")
    full = stage.moment(answers)

    answers = stage.ask(SHOP_PROXY, 100)
    search_answers = stage.ask(SEARCH_PROXY, 100)
    next_connect = ns.call(sockets.fill, HOST, SHOP_PORT, tag="own", limit=1)
    table = stage.output_of(*stage.ephmon("pools", "--destination", HOST))
    stage.when('haproxy_backend_connection_errors_total{proxy="shop"} == 100')
    failing = stage.moment(answers)

    ns.call(sockets.write_sysctl, "net.ipv4.tcp_tw_reuse", 1)
    stage.when(f"ephmon_pool_remaining_ports{SHOP} == {PORTS}")
    relieved = stage.moment(stage.ask(SHOP_PROXY, 100))

    stage.stop(proxy)
    stage.write("proxy.cfg", stage.read("proxy.cfg").replace("mode tcp", "mode http"))
    _start_the_proxy(ns, stage)
    report = stage.output_of("wrk", "-t1", "-c20", "-d3s", f"http://127.0.0.1:{SHOP_PROXY}/")

    return Story(
        busy=busy,
        full=full,
        failing=failing,
        relieved=relieved,
        next_connect=next_connect,
        search_answers=search_answers,
        table=table,
        wrk=report,
        cured_connections=stage.haproxy("haproxy_backend_connection_attempts_total"),
        cured_errors=stage.haproxy("haproxy_backend_connection_errors_total"),
        metric_names=frozenset(labels["__name__"] for labels, _ in stage.query('{job="ephmon"}')),
        ephmon_log=stage.read("ephmon.err"),
        directory=stage.directory,
    )


def test_prometheus_takes_the_scrape_configuration_and_finds_ephmon_up(story: Story, tmp_path: Path) -> None:
    longer = tmp_path / "prometheus.yml"
    longer.write_text(SCRAPE.read_text(encoding="utf-8") + from_the_page("prometheus.yml"), encoding="utf-8")

    for file in (SCRAPE, longer):
        assert subprocess.run(["promtool", "check", "config", str(file)], timeout=60, check=False).returncode == 0
    assert "up" in story.metric_names


def test_every_metric_of_the_metrics_page_is_in_prometheus_but_for_failures_that_did_not_happen(story: Story) -> None:
    assert {metric.name for metric in METRICS} - story.metric_names == {"ephmon_poll_failures_total"}


def test_remaining_is_what_the_kernel_has_left(story: Story) -> None:
    """700 of 1,000 ports are held, ephmon says that 300 remain, and exactly so many connections succeed."""
    assert story.busy.answers == {ALL_SERVED: 700}
    assert (story.busy.held, story.busy.metrics["in_use_ports"]) == (700, 700)
    assert story.busy.metrics["remaining_ports"] == 300
    assert story.full.answers == {ALL_SERVED: 300}
    assert story.full.held == PORTS
    assert story.failing.answers == {NONE_SERVED: 100}


def test_prometheus_has_the_empty_pool_before_haproxy_fails_for_the_first_time(story: Story) -> None:
    assert story.full.metrics == {
        "in_use_ports": PORTS,
        "time_wait_ports": PORTS,
        "reusable_ports": 0,
        "remaining_ports": 0,
        "utilisation_ratio": 1.0,
    }
    assert story.full.refused == 0
    assert story.failing.metrics == story.full.metrics
    assert story.failing.refused == 100


def test_connect_fails_as_ephmon_says_it_does(story: Story) -> None:
    assert story.next_connect == FillResult(0, errno.EADDRNOTAVAIL)
    assert "At 100.0 the next tcp_connect fails with EADDRNOTAVAIL." in story.table


def test_the_table_names_the_pool_that_is_empty_first(story: Story) -> None:
    rows = [line.split() for line in story.table.splitlines() if line.startswith("tcp_connect")]

    assert rows[0][:8] == ["tcp_connect", HOST, f"{HOST}:{SHOP_PORT}", "100.0", "1000", "1000", "0", "0"]
    assert rows[1][:8] == ["tcp_connect", HOST, f"{HOST}:{SEARCH_PORT}", "80.0", "800", "800", "0", "200"]


def test_a_count_of_the_whole_host_does_not_tell(story: Story) -> None:
    """There were more TIME_WAITs than ports while nothing failed, and one service works while the other fails."""
    assert story.busy.time_wait > PORTS
    assert story.search_answers == {ALL_SERVED: 100}


def test_reusing_time_wait_gives_the_ports_back_at_once(story: Story) -> None:
    assert story.relieved.answers == {ALL_SERVED: 100}
    assert story.relieved.metrics["reusable_ports"] > 0
    assert story.relieved.refused == story.failing.refused


def test_a_proxy_that_keeps_its_connections_needs_few_ports(story: Story) -> None:
    (requests,) = re.findall(r"^ +(\d+) requests in ", story.wrk, re.MULTILINE)

    assert int(requests) > 5 * PORTS
    assert "Non-2xx" not in story.wrk
    assert story.cured_connections < 100
    assert story.cured_errors == 0


def test_ephmon_had_nothing_to_complain_about(story: Story) -> None:
    assert re.findall(r"level=(?:warning|error) .*", story.ephmon_log) == []


def test_no_process_is_left(story: Story) -> None:
    """All programs of the story worked in one directory, and nobody else does."""
    left = []
    for directory in Path("/proc").glob("[0-9]*/cwd"):
        with suppress(OSError):  # it has just ended, or is another user's
            if directory.readlink() == story.directory:
                left.append(directory.parent.name)

    assert left == []
