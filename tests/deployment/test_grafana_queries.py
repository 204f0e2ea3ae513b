"""Every query of every dashboard finds something, in a real Prometheus that scrapes a daemon under load.

The load has all that the panels are about: a pool that is full and connect() calls that fail, TIME_WAITs, ports that
are blocked, alerts that are sent, incidents that are kept, and a poll that fails.
"""

from __future__ import annotations

import errno
import json
import math
import re
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from ephmon.outputs.metrics.catalogue import METRICS
from tests import sockets, tracing
from tests.certificates import make_certificate
from tests.dashboards import FOLDER, NAMES, TARGETS, Target, variables
from tests.delivery import delivering
from tests.namespaces import Namespace
from tests.processes import eventually, put
from tests.prometheus import ask, prometheus
from tests.sockets import FillResult, Recipe
from tests.tracing import failures, host_pids, only_root, tracing_daemon

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.processes import Running

HERE, PORT = "127.0.0.1", 7412
FULL, FULL_PORT = "10.8.0.1", tracing.PORT
"""Toward where no port is left; connections to an address of the host's own come from that same address."""
HOOK_PORT = 8080
INSTANCE = "127.0.0.1:19100"
PORTS, BLOCKED, TIME_WAITS = 1000, 300, 100
CONFIG = """\
poll: {{interval: 1s, cpu_budget: 1, urgent_cpu_budget: 1}}
thresholds: {{warning: {{utilisation: 0.2, for: 0s}}}}
incidents: {{directory: {incidents}}}
notify: {{webhook: {{url: "http://127.0.0.1:8080/"}}}}
tls: {{certificate: {tls.certificate}, key: {tls.key}}}
"""
"""So many ports are blocked that it is above the warning."""
SCRAPES = (
    (FOLDER.parent / "prometheus" / "prometheus.yml").read_text(encoding="utf-8")
    + """
  - job_name: prometheus
    scrape_interval: 1s
    static_configs:
      - targets: ["127.0.0.1:9090"]
"""
)
"""A job beside that of ephmon, as there always are."""
VARIABLES = {
    "$__rate_interval": "10s",
    "$__range": "60s",
    "$job": ".+",
    "$instance": ".+",
    "$destination": ".*",
}
"""What Grafana would put in, with All chosen and Prometheus scraping each second."""
_RANGE_FILE = "/proc/sys/net/ipv4/ip_local_port_range"

pytestmark = [only_root, host_pids]


@dataclass(frozen=True, slots=True)
class Found:
    """What Prometheus had."""

    results: Mapping[str, list[dict[str, Any]]]
    """By query: its series."""
    values: Mapping[str, list[str]]
    """By query of a variable: the values of its label."""
    names: frozenset[str]
    """All metrics of the job."""
    pools: list[dict[str, Any]]
    """What the daemon's API says of them."""


def fail_a_poll(daemon: Running) -> None:
    """Let it find an empty file where the port range stands, until a poll has failed for it."""
    # Below /proc/sys/net everybody sees files of their own network namespace, so the mount has to be made from within.
    inside = ["nsenter", f"--target={daemon.pid}", "--mount", "--net", "--"]
    subprocess.run([*inside, "mount", "--bind", "/dev/null", _RANGE_FILE], check=True, timeout=10)
    daemon.wait_for(poll_success=0)
    subprocess.run([*inside, "umount", _RANGE_FILE], check=True, timeout=10)
    daemon.wait_for(poll_success=1)


def load(ns: Namespace) -> None:
    """Block ports, leave TIME_WAITs toward one port, and take all ports toward another until connect() fails."""
    ns.call(sockets.write_sysctl, "net.ipv4.tcp_tw_reuse", 0)
    # Without it a late RST may delete a TIME_WAIT before its time.
    ns.call(sockets.write_sysctl, "net.ipv4.tcp_rfc1337", 1)
    ns.call(sockets.listen, FULL, FULL_PORT, tag="server")
    ns.call(sockets.listen, HERE, PORT, tag="other server")
    assert ns.call(sockets.open_sockets, Recipe(bind=(HERE, 0)), tag="blockers", limit=BLOCKED).count == BLOCKED
    assert ns.call(sockets.fill, HERE, PORT, tag="short", limit=TIME_WAITS) == FillResult(TIME_WAITS, 0)
    ns.call(sockets.accept_all, "other server", tag="accepted")
    ns.call(sockets.close, "short")
    ns.call(sockets.close, "accepted")
    assert ns.call(sockets.fill, FULL, FULL_PORT, tag="clients") == FillResult(PORTS - BLOCKED, errno.EADDRNOTAVAIL)
    assert ns.call(failures, FULL, 40) == 40


def substituted(text: str) -> str:
    """Return a query with a value for each variable."""
    for name, value in VARIABLES.items():
        text = text.replace(name, value)
    assert "$" not in text
    return text


def series(ns: Namespace, target: Target, now: int) -> list[dict[str, Any]]:
    """Ask as Grafana would, and return the series."""
    query = substituted(target.expr)
    if target.query["range"]:
        answer = ask(ns, "query_range", query=query, start=str(now - 30), end=str(now), step="1")
    else:
        answer = ask(ns, "query", query=query, time=str(now))
    result: list[dict[str, Any]] = answer["result"]
    return result


def legend(target: Target, labels: Mapping[str, str]) -> str:
    """Return the name of a series as Grafana makes it."""
    return re.sub(r"{{(\w+)}}", lambda name: labels.get(name[1], ""), target.query["legendFormat"])


def label_values(ns: Namespace, query: str) -> list[str]:
    """Answer a variable's `label_values(SELECTOR, LABEL)`."""
    (found,) = re.findall(r"^label_values\((.*), (\w+)\)$", query)
    selector, label = found
    values: list[str] = ask(ns, f"label/{label}/values", **{"match[]": substituted(selector)})
    return values


def ask_all(ns: Namespace, daemon: Running) -> Found:
    """Wait until every query has found something, but no longer than 20 seconds, and ask them all at one moment."""
    deadline = time.monotonic() + 20
    waiting = list(TARGETS)

    def nothing_is_missing() -> bool:
        while waiting and series(ns, waiting[0], int(time.time())):
            del waiting[0]
        return not waiting

    eventually(nothing_is_missing, lambda done: done or time.monotonic() > deadline)
    now = int(time.time())
    found = {str(target): series(ns, target, now) for target in TARGETS}
    queries = [of["query"]["query"] for name in NAMES for of in variables(name).values() if of["type"] == "query"]
    names = frozenset(ask(ns, "label/__name__/values", **{"match[]": '{job="ephmon"}'}))
    pools = json.loads(daemon.get("/api/v1/pools").body)["pools"]
    return Found(found, {query: label_values(ns, query) for query in queries}, names, pools)


@pytest.fixture(scope="module", name="found")
def _found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Found]:
    folder = tmp_path_factory.mktemp("grafana")
    incidents = folder / "incidents"
    incidents.mkdir()
    tls = make_certificate(folder, "ephmon")
    config = put(folder / "config.yaml", CONFIG.format(incidents=incidents, tls=tls))
    over_tls = f"scrape_interval: 1s\n    scheme: https\n    tls_config: {{ca_file: {tls.certificate}}}"
    scrapes = SCRAPES.replace("scrape_interval: 5s", over_tls)
    with Namespace(addresses=[f"{FULL}/32"]) as ns:
        ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", f"40000 {40000 + PORTS - 1}")
        ns.call(delivering.receive, "hook", HOOK_PORT)
        with tracing_daemon(ns, config) as daemon, prometheus(ns, folder / "prometheus", scrapes):
            daemon.authority = str(tls.certificate)
            daemon.wait_for(poll_success=1)
            eventually(lambda: ask(ns, "query", query="count(up == 1) == 2")["result"], bool)
            fail_a_poll(daemon)
            load(ns)
            yield ask_all(ns, daemon)


@pytest.mark.parametrize("target", [pytest.param(target, id=str(target)) for target in TARGETS])
def test_a_query_finds_numbers(target: Target, found: Found) -> None:
    result = found.results[str(target)]

    assert result
    points = [point for one in result for point in one.get("values", [one.get("value")])]
    assert all(math.isfinite(float(value)) for _, value in points)


@pytest.mark.parametrize(
    "target", [pytest.param(target, id=str(target)) for target in TARGETS if "legendFormat" in target.query]
)
def test_no_two_series_of_a_query_have_one_legend(target: Target, found: Found) -> None:
    """Figures of a stat need no name if there is one of them."""
    legends = [legend(target, one["metric"]) for one in found.results[str(target)]]

    assert len(set(legends)) == len(legends)
    assert all(name.strip() for name in legends) or target.panel["type"] == "stat"


def test_nothing_is_of_other_jobs(found: Found) -> None:
    """Though all jobs are chosen."""
    instances = {one["metric"].get("instance") for result in found.results.values() for one in result}
    (hosts,) = found.results["fleet: Hosts (2), A"]
    (not_scraped,) = found.results["fleet: Not scraped (3), A"]

    assert instances == {None, INSTANCE}
    assert (hosts["value"][1], not_scraped["value"][1]) == ("1", "0")


@pytest.mark.parametrize("name", NAMES)
def test_variables_have_values(name: str, found: Found) -> None:
    values = {
        of["name"]: found.values[of["query"]["query"]] for of in variables(name).values() if of["type"] == "query"
    }

    assert (values["job"], values["instance"]) == (["ephmon"], [INSTANCE])
    assert HERE in values.get("destination", [HERE])


def test_every_metric_is_in_prometheus(found: Found) -> None:
    assert {metric.name for metric in METRICS} <= found.names


def test_the_states_of_the_fullest_pool_add_up_to_the_usable_ports(found: Found) -> None:
    states = {key: dict(found.results[key][0]["values"]) for key in found.results if "States of the fullest" in key}
    last = max(set.intersection(*map(set, states.values())))
    ports = [int(points[last]) for points in states.values()]

    assert ports == [PORTS - BLOCKED, 0, 0, BLOCKED, 0]


def test_the_sustainable_rate_is_that_of_the_api(found: Found) -> None:
    (key,) = [key for key in found.results if "sustainable rate" in key and key.endswith("B")]
    (of_the_full_pool,) = [pool for pool in found.pools if pool["destination_port"] == FULL_PORT]
    drawn = float(found.results[key][0]["values"][-1][1])

    assert drawn == (PORTS - BLOCKED) / 60
    assert of_the_full_pool["sustainable_opens_per_second"] == pytest.approx(drawn, rel=1e-3)
