"""The walkthrough on real components: HAProxy runs out of ports, and Prometheus has it from ephmon before it fails.

The story of docs/walkthrough.md, told once with the files and the load of that page, but with a poll and a scrape each
second; the tests look at what was seen on the way. A TIME_WAIT lasts 60 seconds; the part of the story that needs the
first of them takes about ten.
"""

from __future__ import annotations

import errno
import json
import re
import subprocess
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from ephmon.outputs.metrics.catalogue import METRICS
from tests import sockets
from tests.namespaces import Namespace
from tests.processes import Program, environment, ephmon, eventually, fetch, parse_metrics
from tests.sockets import FillResult

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "walkthrough.md").read_text(encoding="utf-8")
SCRAPE = ROOT / "deploy" / "prometheus" / "prometheus.yml"

PORTS = 1000
HOST, SHOP_PORT, SEARCH_PORT = "10.8.0.1", 8080, 8081
SHOP_PROXY, SEARCH_PROXY = 8000, 8001
HAPROXY, PROMETHEUS = 8404, 9090
SHOP = f'{{kind="tcp_connect",destination="{HOST}",destination_port="{SHOP_PORT}"}}'
SEARCH = f'{{kind="tcp_connect",destination="{HOST}",destination_port="{SEARCH_PORT}"}}'
NO_FREE_PORTS = "Connect() failed for backend shop: no free ports."
SERVED, DROPPED = "200", "000"
"""How curl names an answer and a connection that was closed without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What there is to see after some requests to the shop."""

    answers: Mapping[str, int]
    """What those requests got: how many by HTTP status."""
    pool: Mapping[str, float]
    """What Prometheus says of the shop's pool, by metric without `ephmon_pool_`."""
    held: int
    """Sockets toward the shop that `ss` lists."""
    time_waits: int
    """TIME_WAITs of the whole namespace, as /proc/net/sockstat has them and node_exporter exports them."""
    failures_logged: int
    """How often HAProxy has logged that there are no free ports toward the shop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """What was seen from the beginning to the end."""

    busy: Moment
    full: Moment
    failing: Moment
    relieved: Moment
    search_answers: Mapping[str, int]
    """What the other service answered while connections toward the shop failed."""
    next_connect: FillResult
    """What the kernel said meanwhile to a connect() of our own."""
    table: str
    """What `ephmon pools` printed meanwhile."""
    wrk: str
    """What wrk printed once HAProxy kept its connections."""
    cured: Mapping[str, float]
    """What HAProxy counted while wrk ran."""
    metric_names: frozenset[str]
    """The metrics of the job `ephmon` in Prometheus, at the end."""
    ephmon_log: str
    directory: Path
    """Where all programs worked."""


class Stage:
    """The namespace of the walkthrough, a directory for its files, and the programs that run there."""

    def __init__(self, ns: Namespace, directory: Path) -> None:
        self._ns = ns
        self.directory = directory
        self._programs = ExitStack()

    def write(self, name: str, text: str) -> None:
        (self.directory / name).write_text(text, encoding="utf-8")

    def read(self, name: str) -> str:
        return (self.directory / name).read_text(encoding="utf-8")

    def start(self, name: str, *command: str) -> Program:
        """Start a program; what it prints goes to NAME.log."""
        program = Program(self._ns.command(*command), directory=self.directory, output=self.directory / f"{name}.log")
        return self._programs.enter_context(program)

    def output_of(self, *command: str) -> str:
        """Run a program to its end and return what it prints."""
        done = subprocess.run(
            self._ns.command(*command),
            cwd=self.directory,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            timeout=60,
            check=True,
        )
        return done.stdout

    def close(self) -> None:
        """Kill what was started and wait until it is gone."""
        self._programs.close()

    def ask(self, port: int, number: int) -> dict[str, int]:
        """Send requests through the proxy, each on a connection of its own, and count the answers by HTTP status."""
        counted = self.output_of("bash", "-c", f"{function_of_the_page('ask')}\nask {port} {number}")
        return {status: int(count) for count, status in map(str.split, counted.splitlines())}

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Return the labels and the value of each sample that Prometheus has for an expression."""
        try:
            reply = self._ns.call(fetch, f"/api/v1/query?query={quote(expression)}", port=PROMETHEUS)
        except ConnectionRefusedError:
            return []  # it is still starting
        if reply.status == 503:
            return []  # the same
        assert reply.status == 200, reply.body
        return [(sample["metric"], float(sample["value"][1])) for sample in json.loads(reply.body)["data"]["result"]]

    def wait_for(self, comparison: str) -> None:
        """Wait until a comparison holds in Prometheus."""
        try:
            eventually(lambda: self.query(comparison), bool)
        except AssertionError as error:
            seen = self.query('{__name__=~"up|ephmon_pool_remaining_ports|haproxy_backend_connection_errors_total"}')
            error.add_note("\n".join([f"Prometheus has no {comparison}, but:", *map(str, seen)]))
            raise

    def haproxy(self) -> dict[str, float]:
        """Return HAProxy's own metrics."""
        return parse_metrics(self._ns.call(fetch, "/metrics", port=HAPROXY).body)

    def moment(self, answers: Mapping[str, int]) -> Moment:
        """Look around."""
        samples = self.query(
            f'{{__name__=~"ephmon_pool_(in_use|time_wait|reusable|remaining|utilisation)_.*"}} and {SHOP}'
        )
        return Moment(
            answers=answers,
            pool={labels["__name__"].removeprefix("ephmon_pool_"): value for labels, value in samples},
            held=len(self.output_of("ss", "-Htan", f"dport = :{SHOP_PORT}").splitlines()),
            time_waits=self._ns.call(time_waits),
            # HAProxy writes each to its log, which is standard output, and once more to standard error.
            failures_logged=self.read("proxy.log").count(NO_FREE_PORTS) // 2,
        )


def file_of_the_page(name: str) -> str:
    """Return what the page writes, or appends, to a file with `cat`."""
    (text,) = re.findall(rf"^cat >>? {re.escape(name)} <<'END'\n(.*?)^END$", PAGE, re.MULTILINE | re.DOTALL)
    return str(text)


def function_of_the_page(name: str) -> str:
    """Return a shell function that the page defines."""
    (text,) = re.findall(rf"^{name}\(\) \{{.*?^\}}$", PAGE, re.MULTILINE | re.DOTALL)
    return str(text)


def scrape_configuration() -> str:
    """Return the configuration of Prometheus that the page puts together."""
    return SCRAPE.read_text(encoding="utf-8") + file_of_the_page("prometheus.yml")


def time_waits() -> int:
    """Return how many TIME_WAITs the namespace of the caller has."""
    (number,) = re.findall(r"^TCP:.* tw (\d+)", Path("/proc/net/sockstat").read_text(encoding="ascii"), re.MULTILINE)
    return int(number)


def listening() -> set[int]:
    """Return the ports on which somebody listens in the namespace of the caller; to try a connection would take one."""
    rows = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    return {int(local.rpartition(":")[2], 16) for _, local, _, state, *_ in map(str.split, rows) if state == "0A"}


@pytest.fixture(scope="module", name="story")
def _story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    with Namespace(addresses=[f"{HOST}/32"]) as ns, closing(Stage(ns, tmp_path_factory.mktemp("walkthrough"))) as stage:
        return _tell(ns, stage)


def _tell(ns: Namespace, stage: Stage) -> Story:
    proxy = _open(ns, stage)

    answers = stage.ask(SHOP_PROXY, 700)
    stage.ask(SEARCH_PROXY, 700)
    stage.wait_for(f"ephmon_pool_remaining_ports{SHOP} == 300 and on() ephmon_pool_remaining_ports{SEARCH} == 300")
    busy = stage.moment(answers)

    answers = stage.ask(SHOP_PROXY, 300)
    stage.wait_for(f"ephmon_pool_remaining_ports{SHOP} == 0")
    full = stage.moment(answers)

    answers = stage.ask(SHOP_PROXY, 100)
    search_answers = stage.ask(SEARCH_PROXY, 100)
    next_connect = ns.call(sockets.fill, HOST, SHOP_PORT, tag="own", limit=1)
    table = stage.output_of(*ephmon("pools", "--destination", HOST, "--config", "ephmon.yaml"))
    stage.wait_for('haproxy_backend_connection_errors_total{proxy="shop"} == 100')
    failing = stage.moment(answers)

    ns.call(sockets.write_sysctl, "net.ipv4.tcp_tw_reuse", 1)
    stage.wait_for(f"ephmon_pool_remaining_ports{SHOP} == {PORTS}")
    relieved = stage.moment(stage.ask(SHOP_PROXY, 100))

    _cure(ns, stage, proxy)
    return Story(
        busy=busy,
        full=full,
        failing=failing,
        relieved=relieved,
        search_answers=search_answers,
        next_connect=next_connect,
        table=table,
        wrk=stage.output_of("wrk", "-t1", "-c20", "-d3s", f"http://127.0.0.1:{SHOP_PROXY}/"),
        cured=stage.haproxy(),
        metric_names=frozenset(labels["__name__"] for labels, _ in stage.query('{job="ephmon"}')),
        ephmon_log=stage.read("ephmon.log"),
        directory=stage.directory,
    )


def _open(ns: Namespace, stage: Stage) -> Program:
    """Start everything, wait until Prometheus has scraped it, and return the proxy."""
    ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", f"40000 {40000 + PORTS - 1}")
    for name in ("services.cfg", "proxy.cfg"):
        stage.write(name, file_of_the_page(name))
    stage.write("ephmon.yaml", "poll: {interval: 1s}\n")
    stage.write("prometheus.yml", scrape_configuration().replace("scrape_interval: 5s", "scrape_interval: 1s"))
    stage.start("services", "haproxy", "-db", "-f", "services.cfg")
    proxy = _start_the_proxy(ns, stage)
    stage.start("ephmon", *ephmon("run", "--config", "ephmon.yaml"))
    address = f"127.0.0.1:{PROMETHEUS}"
    files = ("--config.file=prometheus.yml", "--storage.tsdb.path=data")
    stage.start("prometheus", "prometheus", *files, f"--web.listen-address={address}")
    eventually(lambda: ns.call(listening), {SHOP_PORT, SEARCH_PORT}.issubset)
    stage.wait_for("count(up == 1) == 2")
    return proxy


def _start_the_proxy(ns: Namespace, stage: Stage) -> Program:
    proxy = stage.start("proxy", "haproxy", "-db", "-f", "proxy.cfg")
    eventually(lambda: ns.call(listening), {SHOP_PROXY, SEARCH_PROXY, HAPROXY}.issubset)
    return proxy


def _cure(ns: Namespace, stage: Stage, proxy: Program) -> None:
    """Let the proxy speak HTTP, so that it keeps its connections."""
    proxy.stop()
    stage.write("proxy.cfg", stage.read("proxy.cfg").replace("mode tcp", "mode http"))
    _start_the_proxy(ns, stage)


@pytest.mark.parametrize("text", [SCRAPE.read_text(encoding="utf-8"), scrape_configuration()], ids=["alone", "longer"])
def test_prometheus_takes_the_scrape_configuration(text: str, tmp_path: Path) -> None:
    file = tmp_path / "prometheus.yml"
    file.write_text(text, encoding="utf-8")

    assert subprocess.run(["promtool", "check", "config", str(file)], timeout=60, check=False).returncode == 0


def test_every_metric_is_in_prometheus_but_for_what_did_not_happen(story: Story) -> None:
    """Other tests have what takes alerts, tracing, receivers, TLS or many free ports to appear."""
    absent = {metric.name for metric in METRICS} - story.metric_names
    takes_more = re.compile("alert|exhaustion|incident|notification|owner|search|tls")

    assert {name for name in absent if not takes_more.search(name)} == set()


def test_as_many_connections_succeed_as_ephmon_says_remain(story: Story) -> None:
    assert story.busy.answers == {SERVED: 700}
    assert story.busy.held == 700
    assert (story.busy.pool["in_use_ports"], story.busy.pool["remaining_ports"]) == (700, 300)
    assert story.full.answers == {SERVED: 300}
    assert story.failing.answers == {DROPPED: 100}


def test_prometheus_has_the_empty_pool_before_haproxy_fails_for_the_first_time(story: Story) -> None:
    assert story.full.pool == {
        "in_use_ports": PORTS,
        "time_wait_ports": PORTS,
        "reusable_ports": 0,
        "remaining_ports": 0,
        "utilisation_ratio": 1.0,
    }
    assert story.full.held == PORTS
    assert story.full.failures_logged == 0
    assert story.failing.pool == story.full.pool
    assert story.failing.failures_logged == 100


def test_connect_fails_as_ephmon_says_it_does(story: Story) -> None:
    assert story.next_connect == FillResult(0, errno.EADDRNOTAVAIL)
    assert "At 100.0 the next tcp_connect fails with EADDRNOTAVAIL." in story.table


def test_the_table_names_the_empty_pool_first(story: Story) -> None:
    rows = [line.split()[:8] for line in story.table.splitlines() if line.startswith(f"tcp_connect  {HOST}")]

    assert rows == [
        ["tcp_connect", HOST, f"{HOST}:{SHOP_PORT}", "100.0", "1000", "1000", "0", "0"],
        ["tcp_connect", HOST, f"{HOST}:{SEARCH_PORT}", "80.0", "800", "800", "0", "200"],
    ]


def test_a_count_of_the_whole_host_does_not_tell(story: Story) -> None:
    """There are more TIME_WAITs than ports while nothing fails, and later one service works while the other fails."""
    assert story.busy.time_waits > PORTS
    assert story.busy.failures_logged == 0
    assert story.search_answers == {SERVED: 100}


def test_reusing_time_wait_gives_the_ports_back_at_once(story: Story) -> None:
    assert story.relieved.answers == {SERVED: 100}
    assert story.relieved.held == PORTS
    assert story.relieved.pool["reusable_ports"] >= PORTS - 100
    assert story.relieved.failures_logged == story.failing.failures_logged


def test_a_proxy_that_keeps_its_connections_needs_few_ports(story: Story) -> None:
    (requests,) = re.findall(r"^ +(\d+) requests in ", story.wrk, re.MULTILINE)

    assert int(requests) > 2 * PORTS
    assert "Non-2xx" not in story.wrk
    assert story.cured['haproxy_backend_connection_attempts_total{proxy="shop"}'] < PORTS / 5
    assert story.cured['haproxy_backend_connection_errors_total{proxy="shop"}'] == 0


def test_ephmon_had_nothing_to_complain_about(story: Story) -> None:
    """It tells of the pool that ran out, which is what it is for, and of nothing else."""
    complaints = re.findall(r"level=(?:warning|error) .*", story.ephmon_log)

    # How much CPU time a poll takes, and so how often polls come, is a matter of the machine.
    assert [line for line in complaints if "EphmonPool" not in line and "Polls come" not in line] == []
    assert any("EphmonPoolNearExhaustion fires as critical" in line for line in complaints)


def test_what_the_page_looks_for_in_the_log_of_ephmon_is_there(story: Story) -> None:
    (pattern,) = re.findall(r"^grep -o '(.*)' ephmon\.log$", PAGE, re.MULTILINE)

    assert re.search(pattern, story.ephmon_log) is not None


def test_no_process_is_left(story: Story) -> None:
    """All programs of the story worked in one directory, in which nobody else does."""
    left = []
    for directory in Path("/proc").glob("[0-9]*/cwd"):
        with suppress(OSError):  # it has just ended, or is another user's
            if directory.readlink() == story.directory:
                left.append(directory.parent.name)

    assert left == []
