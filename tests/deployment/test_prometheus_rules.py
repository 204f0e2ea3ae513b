"""The rules for Prometheus: promtool takes them, each is tested and has a page, and a real Prometheus raises alerts."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
import yaml

from benchmarks.fleet import host_report
from ephmon.config.settings import Config
from ephmon.errors import POLL_FAILURES
from ephmon.model.alerting.state_machine import AlertName
from ephmon.model.alerting.thresholds import Severity
from ephmon.model.collectors import Collector, Health
from ephmon.model.pools.kinds import PoolKind
from ephmon.model.report import ListedPool, PollTotals
from ephmon.model.status import DeliveryFailure, DeliveryStatus, HttpStatus, ReceiverKind
from ephmon.outputs.metrics.catalogue import METRICS
from ephmon.outputs.metrics.exposition import process_registry, render
from tests import sockets
from tests.builders import make_forecast, make_namespace_report, make_pool
from tests.namespaces import Namespace
from tests.processes import Program, Running, ephmon, eventually, fetch, put, run
from tests.sockets import FillResult, Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ephmon.model.report import Report

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "prometheus"
ALERTS, RECORDING, FLEET = (FOLDER / f"ephmon-{name}.yml" for name in ("alerts", "recording", "fleet"))
TESTS = sorted((FOLDER / "tests").glob("*.yml"))
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
INSTALLED_RUNBOOK = "usr/share/doc/ephmon/runbook.md"
PARTS = [("What", " it means"), ("How", " to check"), ("How", " to fix")]
WORD = re.compile(r"\b\w*:?ephmon_\w+(?::\w+)?\b")

PAGE = (ROOT / "docs" / "prometheus.md").read_text(encoding="utf-8")
CONFIG = "poll: {interval: 1s}\n"
SOURCE_PORTS = itertools.cycle(range(20000, 30000))
"""Outside the range: what the test asks takes no port of it."""
OF_EACH_TARGET = 5
"""`up`, `scrape_duration_seconds` and the like, which Prometheus makes for each target."""

HERE, PORT, PROMETHEUS = "127.0.0.1", 80, 9090


def rules(*files: Path) -> list[dict[str, Any]]:
    """Return the rules of the files, in their order."""
    documents = [yaml.safe_load(file.read_text(encoding="utf-8")) for file in files]
    return [rule for document in documents for group in document["groups"] for rule in group["rules"]]


ALERT_RULES = {rule["alert"]: rule for rule in rules(ALERTS)}
RECORDED = {rule["record"]: rule for rule in rules(RECORDING, FLEET)}
OF_THE_DAEMON = ("EphmonPoolNearExhaustion", "EphmonPortsBlocked", "EphmonTooManyAlerts")
"""The rules that repeat what the daemon says fires."""
ONLY_WITH_TRACING = {"instance:ephmon_connect_exhaustions:rate5m", "job:ephmon_connect_exhaustions:rate5m"}
"""Absent where failed calls cannot be counted, as for anybody but root."""
CASES = [case for file in TESTS for case in yaml.safe_load(file.read_text(encoding="utf-8"))["tests"]]
SECTIONS = dict(re.findall(r"^## (\w+)$\n(.*?)(?=^## |\Z)", RUNBOOK, re.MULTILINE | re.DOTALL))


def promtool(*arguments: str) -> str:
    """Return what promtool prints if it is content, and fail with that if it is not."""
    done = subprocess.run(
        ["promtool", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize("file", [ALERTS, RECORDING, FLEET], ids=lambda file: file.name)
def test_promtool_takes_the_rules(file: Path) -> None:
    promtool("check", "rules", "--lint=all", "--lint-fatal", str(file))


def test_promtool_takes_the_configuration_and_it_loads_all_rules() -> None:
    assert "3 rule files found" in promtool("check", "config", str(FOLDER / "prometheus.yml"))


@pytest.mark.parametrize("file", TESTS, ids=lambda file: file.name)
def test_the_rules_do_what_their_tests_say(file: Path) -> None:
    promtool("test", "rules", str(file))


@pytest.mark.parametrize("name", ALERT_RULES)
def test_an_alert_is_tested_as_firing_and_as_not_firing_and_as_resolving(name: str) -> None:
    """Resolving: in one case it fires, and later it does not."""
    per_case = [
        [bool(one["exp_alerts"]) for one in case.get("alert_rule_test", ()) if one["alertname"] == name]
        for case in CASES
    ]

    assert any(not case[0] for case in per_case if case)
    assert any(case[first:].count(False) for case in per_case if True in case for first in [case.index(True)])


def test_restarts_and_missing_data_are_tested() -> None:
    names = [case["name"] for case in CASES]

    assert sum("restart" in name for name in names) >= 3
    assert sum("missing data" in name for name in names) >= 3


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_series_is_tested(name: str) -> None:
    assert any(one["expr"] == name for case in CASES for one in case.get("promql_expr_test", ()))


@pytest.mark.parametrize("name", OF_THE_DAEMON)
def test_what_the_daemon_judges_is_not_judged_again(name: str) -> None:
    rule = ALERT_RULES[name]

    assert re.fullmatch(r"ephmon_(pool_alert_active|namespace_alert_active\{alertname=\"\w+\"\}) == 1", rule["expr"])
    assert "for" not in rule
    assert "labels" not in rule, "the severity is the daemon's"


def test_every_alert_of_the_daemon_is_reported_by_a_rule_of_its_name() -> None:
    assert {name.value for name in AlertName} <= set(ALERT_RULES)


@pytest.mark.parametrize("name", ALERT_RULES)
def test_an_alert_says_what_it_is_and_leads_to_its_page(name: str) -> None:
    rule = ALERT_RULES[name]
    annotations = rule["annotations"]

    assert set(annotations) == {"summary", "description", "runbook_url"}
    assert "{{" not in annotations["summary"]
    assert annotations["runbook_url"] == f"file:///{INSTALLED_RUNBOOK}#{name.lower()}"
    assert name in OF_THE_DAEMON or rule["labels"]["severity"] in set(Severity)


def test_the_debian_package_puts_the_runbook_where_the_alerts_say() -> None:
    package = (ROOT / "script" / "package").read_text(encoding="utf-8")

    assert "documentation=usr/share/doc/ephmon\n" in package
    assert 'for page in "$share"/doc/ephmon/*.md; do\n        put 644 "$page" "$documentation/${page##*/}"\n' in package


@pytest.mark.parametrize("name", sorted({*ALERT_RULES, *AlertName}))
def test_the_runbook_has_a_section_for_every_alert(name: str) -> None:
    assert re.findall(r"^\*\*(What|How)([^*]+)\.\*\*", SECTIONS[name], re.MULTILINE) == PARTS


def test_the_runbook_has_no_other_section() -> None:
    assert set(SECTIONS) == {*ALERT_RULES, *AlertName}


def test_the_page_for_a_host_that_is_down_looks_at_its_ports_first() -> None:
    (steps,) = re.findall(r"^\*\*How to check\.\*\*\n\n(1\. .*)$", SECTIONS["EphmonDown"], re.MULTILINE)

    assert "`ephmon pools`" in steps


def test_a_link_within_the_runbook_leads_to_a_section() -> None:
    assert set(re.findall(r"\]\(#(\w+)\)", RUNBOOK)) <= {name.lower() for name in SECTIONS}


@pytest.mark.parametrize("file", [ALERTS, RECORDING, FLEET, *TESTS], ids=lambda file: file.name)
def test_every_metric_exists(file: Path) -> None:
    known = {metric.name for metric in METRICS} | set(RECORDED)
    names = {name for name in WORD.findall(file.read_text(encoding="utf-8")) if not name.endswith("_test")}

    assert names
    assert names - known == set()


@pytest.mark.parametrize("expression", [rule["expr"] for rule in (*ALERT_RULES.values(), *RECORDED.values())])
def test_every_label_exists(expression: str) -> None:
    ours = {label for metric in METRICS for label in metric.labels}
    named = set(re.findall(r"(\w+)(?:=~?|!=|!~)\"", expression))
    for group in re.findall(r"\b(?:by|without|on|ignoring) \(([^)]*)\)", expression):
        named |= set(group.replace(" ", "").split(","))

    assert named <= ours | {"job", "instance"}


def test_the_page_names_every_alert_with_its_severity_and_every_recorded_series() -> None:
    alerts_of_the_page = dict(re.findall(r"^\| \[(Ephmon\w+)\].*\| ([\w' ]+) \|$", PAGE, re.MULTILINE))
    series_of_the_page = re.findall(r"^\| `(\w+:\w+:\w+)` \|", PAGE, re.MULTILINE)

    assert alerts_of_the_page == {
        name: rule.get("labels", {}).get("severity", "the daemon's") for name, rule in ALERT_RULES.items()
    }
    assert series_of_the_page == list(RECORDED)


def test_alertmanager_takes_the_inhibitions_of_the_page(tmp_path: Path) -> None:
    (rules_of_the_page,) = re.findall(r"^```yaml\n(inhibit_rules:\n.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    file = tmp_path / "alertmanager.yml"
    file.write_text("route: {receiver: nobody}\nreceivers: [{name: nobody}]\n" + rules_of_the_page, encoding="utf-8")
    done = subprocess.run(
        ["amtool", "check-config", str(file)], capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 0, done.stderr
    assert "3 inhibit rules" in done.stdout
    labels = {label for metric in METRICS for label in metric.labels} | {"instance"}
    assert {label for rule in yaml.safe_load(rules_of_the_page)["inhibit_rules"] for label in rule["equal"]} <= labels


def test_the_page_states_the_series_of_a_host() -> None:
    """Its formula, of a host with ten pools that all have ten series, and of one with all that a host may have."""
    formula = r"^    (\d+) \+ (\d+) L \+ (\d+) N \+ E \+ A \+ 7 W$"
    ((fixed, for_each_pool, for_each_namespace),) = re.findall(formula, PAGE, re.MULTILINE)
    (most,) = re.findall(r"; up to (\d+) with `notify`", PAGE)
    (by_default,) = re.findall(r"^At most (\d+) by default", PAGE, re.MULTILINE)
    forecast = make_forecast(opens_per_second=1.0, seconds_to_exhaustion=1.0)
    ten = [
        ListedPool(
            pool=make_pool(destination_port=port, search_ports=1.0),
            peak_utilisation=0.5,
            forecast=forecast,
            search_share=0.5,
        )
        for port in range(10)
    ]

    assert _series(host_report(1, 0, 0)) == int(fixed)
    assert _series(replace(host_report(1, 0, 0), listed=tuple(ten))) == int(fixed) + 10 * int(for_each_pool)
    two = dict.fromkeys((PoolKind.TCP_CONNECT, PoolKind.TCP_BIND), 1)
    blue = make_namespace_report(netns="blue", pools=two, listed={}, worst=dict.fromkeys(two, 0.5))
    with_another = replace(host_report(1, 0, 0), namespaces=(*host_report(1, 0, 0).namespaces, blue))
    assert _series(with_another) == int(fixed) + int(for_each_namespace)
    assert _series(_crowded(DELIVERY)) <= int(most)
    defaults = Config()
    assert int(by_default) == (
        int(most)
        + int(for_each_pool) * defaults.listing.top
        + defaults.exhaustions.top
        + defaults.alerts.max_active
        + 7 * 17
    )


DELIVERY = DeliveryStatus(
    attempts=dict.fromkeys(ReceiverKind, 1),
    failures={kind: dict.fromkeys(DeliveryFailure, 1) for kind in ReceiverKind},
    pending=dict.fromkeys(ReceiverKind, 1),
    succeeded_at=dict.fromkeys(ReceiverKind, 1.0),
    dropped=dict.fromkeys(ReceiverKind, 1),
)


def _crowded(delivery: DeliveryStatus | None = None) -> Report:
    """A host with all kinds of pools and collectors, on which polls have failed for each reason."""
    kinds = dict.fromkeys(PoolKind, 1)
    return replace(
        host_report(1, 0, 0),
        namespaces=(make_namespace_report(pools=kinds, listed={}, worst=dict.fromkeys(PoolKind, 0.5)),),
        totals=PollTotals(polls={"full": 1, "narrow": 1}, failures=dict.fromkeys(POLL_FAILURES, 1)),
        delivery=delivery,
        http=HttpStatus(certificate_expires_at=1.0),
    ).with_health(**{collector.value: Health(available=True) for collector in Collector})


def _series(report: Report) -> int:
    """Return how many series a host has in Prometheus."""
    registry = process_registry()
    body = render(report, kernel_release="6.1", process_registry=registry, openmetrics=False).decode()
    return OF_EACH_TARGET + sum(not line.startswith("#") for line in body.splitlines())


@pytest.fixture(name="ns")
def _ns() -> Iterator[Namespace]:
    with Namespace() as ns:
        ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", "40000 40999")
        ns.call(sockets.listen, HERE, PORT, tag="servers")
        yield ns


@contextmanager
def prometheus(ns: Namespace, folder: Path) -> Iterator[None]:
    """Run Prometheus with the example configuration and all rules, each second."""
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("tests"))
    for file in folder.glob("*.yml"):
        text = file.read_text(encoding="utf-8")
        file.write_text(re.sub(r"(interval): \d+s", r"\1: 1s", text), encoding="utf-8")
    command = ns.command(
        "prometheus",
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address={HERE}:{PROMETHEUS}",
    )
    with Program(command):
        yield


def asked(ns: Namespace, path: str) -> Any:
    """Return the data of an answer of Prometheus, None while it is starting."""
    try:
        reply = ns.call(fetch, path, port=PROMETHEUS, source=(HERE, next(SOURCE_PORTS)))
    except ConnectionRefusedError:
        return None
    return json.loads(reply.body)["data"] if reply.status == 200 else None


def alerts(ns: Namespace) -> dict[tuple[str, str], dict[str, str]]:
    """Return the labels of the alerts that are there, by name and state."""
    data = asked(ns, "/api/v1/alerts")
    return {(one["labels"]["alertname"], one["state"]): one["labels"] for one in data["alerts"]} if data else {}


def recorded(ns: Namespace) -> set[str]:
    """Return which recorded series have a sample now."""
    data = asked(ns, "/api/v1/query?query=" + quote('{__name__=~".+:.+"}'))
    return {one["metric"]["__name__"] for one in data["result"]} if data else set()


def test_a_real_prometheus_goes_on_to_tell_of_blocked_ports_when_no_port_is_left_to_scrape_from(
    ns: Namespace, tmp_path: Path
) -> None:
    """And `ephmon pools`, which the page of EphmonDown asks for first, works then."""
    config = put(tmp_path / "ephmon.yaml", CONFIG)
    recipe = Recipe(bind=(HERE, 0))
    assert ns.call(sockets.open_sockets, recipe, tag="binder", limit=920) == FillResult(920, 0)
    with prometheus(ns, tmp_path / "prometheus"), Running(ns, ephmon("run", "--config", config)):
        before = eventually(lambda: alerts(ns), lambda found: ("EphmonPortsBlocked", "firing") in found)
        eventually(lambda: alerts(ns), lambda found: ("EphmonDown", "pending") not in found)
        # Those that Prometheus used last cannot be bound while they are in TIME_WAIT, but reserved.
        ns.call(sockets.write_sysctl, "net.ipv4.ip_local_reserved_ports", "40000-40999")
        after = eventually(lambda: alerts(ns), lambda found: ("EphmonDown", "pending") in found)
        table = run(ns.command(*ephmon("pools")))
        errors = {one["lastError"] for one in asked(ns, "/api/v1/targets")["activeTargets"]}

    assert before["EphmonPortsBlocked", "firing"] == {
        "alertname": "EphmonPortsBlocked",
        "severity": "critical",
        "job": "ephmon",
        "instance": f"{HERE}:19100",
        "netns": "own",
    }
    assert ("EphmonPortsBlocked", "firing") in after
    assert [error for error in errors if "cannot assign requested address" not in error] == []
    assert table.returncode == 0
    assert "Ports 40000-40999: 0 usable (1000 reserved)" in table.stdout


def test_a_real_prometheus_tells_of_a_full_pool_and_goes_on_when_ephmon_is_gone(ns: Namespace, tmp_path: Path) -> None:
    assert ns.call(sockets.fill, HERE, PORT, tag="clients", limit=950) == FillResult(950, 0)
    config = put(tmp_path / "ephmon.yaml", CONFIG)
    with prometheus(ns, tmp_path / "prometheus"):
        with Running(ns, ephmon("run", "--config", config)) as daemon:
            firing = eventually(lambda: alerts(ns), lambda found: ("EphmonPoolNearExhaustion", "firing") in found)
            eventually(lambda: recorded(ns), lambda found: found >= set(RECORDED) - ONLY_WITH_TRACING)
            daemon.stop()
        after = eventually(lambda: alerts(ns), lambda found: ("EphmonDown", "pending") in found)
        groups = asked(ns, "/api/v1/rules")["groups"]

    assert firing["EphmonPoolNearExhaustion", "firing"] == {
        "alertname": "EphmonPoolNearExhaustion",
        "severity": "critical",
        "job": "ephmon",
        "instance": f"{HERE}:19100",
        "netns": "own",
        "kind": "tcp_connect",
        "source": HERE,
        "destination": HERE,
        "destination_port": str(PORT),
    }
    assert ("EphmonPoolNearExhaustion", "firing") in after
    assert {(rule["name"], rule["health"], rule.get("lastError")) for group in groups for rule in group["rules"]} == {
        (name, "ok", None) for name in (*ALERT_RULES, *RECORDED)
    }
