"""The dashboards of Grafana are what their script makes, keep to the rules of dashboard-linter, and use all metrics.

Whether each query finds something is asked of a real Prometheus in tests/deployment/test_grafana_queries.py.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from ephmon.outputs.metrics.catalogue import METRICS
from tests.dashboards import FOLDER, MADE, NAMES, SELECTOR, TARGETS, Json, Target, panels, variables

ROOT = Path(__file__).parents[2]
EVERY = [(f"{name}: {panel['title']} ({panel['id']})", panel) for name in NAMES for panel in panels(name)]
PANELS = [pytest.param(panel, id=title) for title, panel in EVERY]
TABLES = [pytest.param(panel, id=title) for title, panel in EVERY if panel["type"] == "table"]
QUERIES = [pytest.param(target, id=str(target)) for target in TARGETS]
LINT: dict[str, Any] = yaml.safe_load((FOLDER / ".lint").read_text(encoding="utf-8"))["exclusions"]

UNITS = {"none", "percentunit", "s", "ops", "bytes", "dateTimeFromNow"}
"""Those in use; all are ids of packages/grafana-data/src/valueFormats/categories.ts."""
CORE_PANELS = {"stat", "state-timeline", "table", "timeseries"}
ALL_VALUES = {"job": ".+", "instance": ".+", "destination": ".*"}
UID = {"type": "prometheus", "uid": "${datasource}"}
LABELS = defaultdict(
    lambda: {"job", "instance"}, {metric.name: {*metric.labels, "job", "instance"} for metric in METRICS}
)
"""Those of each metric in Prometheus."""
CALLS = re.compile(r"(\w+)\((\w+)\{[^}]*\}\[([^]]+)\]")
"""A function of a metric over a time."""


# --- what the script makes ------------------------------------------------------------------------------------------


def test_the_script_makes_the_dashboards_that_are_there(tmp_path: Path) -> None:
    command = [sys.executable, "-B", str(FOLDER / "generate.py"), str(tmp_path)]
    subprocess.run(command, check=True, timeout=60)

    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_bytes() for path in FOLDER.glob("*.json")}
    assert set(made) == {f"{name}.json" for name in NAMES}


# --- the rules of dashboard-linter ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_dashboard_belongs_to_no_installation(name: str) -> None:
    """Whoever imports it gives it an id and a data source, and a link to it goes on working."""
    made = MADE[name]

    assert (made["id"], made["uid"], made["title"]) == (None, f"ephmon-{name}", f"ephmon / {name.title()}")
    assert made["tags"] == ["ephmon"]
    assert 39 <= made["schemaVersion"] <= 42


@pytest.mark.parametrize("name", NAMES)
def test_uneditable_dashboard(name: str) -> None:
    assert MADE[name]["editable"] is False


@pytest.mark.parametrize("name", NAMES)
def test_template_datasource_rule(name: str) -> None:
    (datasource,) = (variable for variable in variables(name).values() if variable["type"] == "datasource")

    assert (datasource["name"], datasource["label"], datasource["query"]) == ("datasource", "Data Source", "prometheus")


@pytest.mark.parametrize(
    ("name", "variable"), [(name, of) for name in NAMES for of in variables(name) if of != "datasource"]
)
def test_template_job_and_instance_rules(name: str, variable: str) -> None:
    """Several values or all, of the chosen data source, and read again when the time changes."""
    of = variables(name)[variable]

    assert (of["type"], of["label"], of["datasource"]) == ("query", variable.title(), UID)
    assert (of["multi"], of["includeAll"], of["allValue"]) == (True, True, ALL_VALUES[variable])
    assert of["refresh"] == 2
    assert list(variables(name))[:3] == ["datasource", "job", "instance"]


@pytest.mark.parametrize("panel", PANELS)
def test_panel_datasource_rule(panel: Json) -> None:
    assert panel["datasource"] == UID
    assert [query["datasource"] for query in panel["targets"]] == [UID] * len(panel["targets"])


@pytest.mark.parametrize("panel", PANELS)
def test_panel_title_description_rule(panel: Json) -> None:
    assert panel["title"]
    assert panel["description"].endswith(".")


@pytest.mark.parametrize("panel", PANELS)
def test_panel_units_rule(panel: Json) -> None:
    of_columns = [
        change["value"]
        for override in panel["fieldConfig"]["overrides"]
        for change in override["properties"]
        if change["id"] == "unit"
    ]

    assert {panel["fieldConfig"]["defaults"]["unit"], *of_columns} <= UNITS
    assert panel["type"] in CORE_PANELS


@pytest.mark.parametrize("panel", PANELS)
def test_panel_no_targets_rule(panel: Json) -> None:
    references = [query["refId"] for query in panel["targets"]]

    assert references
    assert len(set(references)) == len(references)


@pytest.mark.parametrize("target", QUERIES)
def test_target_job_and_instance_rules(target: Target) -> None:
    """Each metric has the matchers of the variables, that of the destination where it has one."""
    with_destination = target.dashboard == "host"
    for metric, matchers in SELECTOR.findall(target.expr):
        wanted = ['job=~"$job"', 'instance=~"$instance"']
        if with_destination and metric.startswith(("ephmon_pool_", "ephmon_destination_")):
            wanted.append('destination=~"$destination"')
        assert matchers.split(", ")[: len(wanted)] == wanted
        assert with_destination or "$destination" not in matchers


@pytest.mark.parametrize("target", QUERIES)
def test_target_rate_interval_rule(target: Target) -> None:
    excluded = {(entry["dashboard"], entry["panel"]) for entry in LINT["target-rate-interval-rule"]["entries"]}
    place = (MADE[target.dashboard]["title"], target.panel["title"])

    for function, metric, time in CALLS.findall(target.expr):
        if not metric.endswith("_total"):
            assert (function, time) in {("max_over_time", "$__range"), ("last_over_time", "$__range")}
        elif function == "increase":
            assert (time, place in excluded) == ("$__range", True)
        else:
            assert (function, time) == ("rate", "$__rate_interval")


@pytest.mark.parametrize("target", QUERIES)
def test_target_counter_agg_rule(target: Target) -> None:
    counters = [metric for metric, _ in SELECTOR.findall(target.expr) if metric.endswith("_total")]

    assert counters == [metric for _, metric, _ in CALLS.findall(target.expr) if metric.endswith("_total")]


def test_every_exception_from_the_rules_is_needed() -> None:
    """Of those that `.lint` lists for dashboard-linter."""
    needed = {
        (MADE[target.dashboard]["title"], target.panel["title"])
        for target in TARGETS
        if re.search(r"increase\([^]]*\$__range\]", target.expr)
    }

    excluded = [(entry["dashboard"], entry["panel"]) for entry in LINT["target-rate-interval-rule"]["entries"]]
    assert set(LINT) == {"target-rate-interval-rule"}
    assert sorted(excluded) == sorted(needed)


# --- what Grafana would draw ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_panels_fill_the_grid_and_do_not_overlap(name: str) -> None:
    """Each line of the grid is taken from its left to its right end, by panels of one height."""
    taken: dict[tuple[int, int], int] = {}
    for panel in MADE[name]["panels"]:
        place = panel["gridPos"]
        for y in range(place["y"], place["y"] + place["h"]):
            for x in range(place["x"], place["x"] + place["w"]):
                assert taken.setdefault((x, y), panel["id"]) == panel["id"]
                assert x < 24

    ids = [panel["id"] for panel in MADE[name]["panels"]]
    assert len(set(ids)) == len(ids)
    assert sorted({y for _, y in taken}) == list(range(max(y for _, y in taken) + 1))
    assert {sum(1 for x in range(24) if (x, y) in taken) for _, y in taken} == {24}


@pytest.mark.parametrize("target", QUERIES)
def test_the_labels_of_a_legend_are_there(target: Target) -> None:
    """The metrics have them, and no aggregation takes them away; the same goes for the columns of a table."""
    legend = set(re.findall(r"{{(\w+)}}", target.query.get("legendFormat", "")))
    of_metrics = [LABELS[metric] for metric, _ in SELECTOR.findall(target.expr)]
    kept = re.findall(r"^(?:\d+ \* )?(?:topk\(\d+, )?(?:sum|max|min|count) by \(([^)]*)\)", target.expr)

    assert legend <= set().union(*of_metrics)
    assert all(legend <= set(labels.split(", ")) for labels in kept)


@pytest.mark.parametrize("panel", TABLES)
def test_the_columns_of_a_table_are_there(panel: Json) -> None:
    """Each label in its order is one of the first query's, and each value is one of its queries'."""
    (order,) = (of["options"]["indexByName"] for of in panel["transformations"] if of["id"] == "organize")
    values = {name for name in order if name.startswith("Value")}
    first = panel["targets"][0]["expr"]
    labels = set().union(*(LABELS[metric] for metric, _ in SELECTOR.findall(first)))

    assert values - {"Value"} == {f"Value #{query['refId']}" for query in panel["targets"]}
    assert set(order) - values <= labels
    assert all(re.search(rf"\b{name}\b", first) for name in set(order) - values)


def test_thresholds_are_those_of_ephmon() -> None:
    """No ratio is written down where ephmon says which thresholds hold."""
    for name in NAMES:
        for panel in panels(name):
            steps = [step["value"] for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]]
            assert steps[0] is None
            assert all(value >= 1 for value in steps[1:])


# --- which metrics --------------------------------------------------------------------------------------------------


def test_the_metrics_in_use_exist_and_all_that_exist_are_in_use() -> None:
    """The page on dashboards names what is not drawn; there is nothing."""
    used = {metric for target in TARGETS for metric, _ in SELECTOR.findall(target.expr)}
    of_ephmon = {name for name in used if name.startswith("ephmon_")}

    assert of_ephmon == {metric.name for metric in METRICS}
    assert used - of_ephmon == {
        "process_cpu_seconds_total",
        "process_max_fds",
        "process_open_fds",
        "process_resident_memory_bytes",
        "up",
    }


@pytest.mark.parametrize("target", QUERIES)
def test_the_labels_that_a_query_matches_are_those_of_the_metric(target: Target) -> None:
    for metric, matchers in SELECTOR.findall(target.expr):
        assert set(re.findall(r"(\w+)=", matchers)) <= LABELS[metric]
