"""How a dashboard is written down: the JSON model of a classic dashboard, with rows, places and variables.

In come rows of panels, out goes what `json.dumps` takes. Each metric in a query gets the matchers of the dashboard's
variables here, so that none is forgotten.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from panels import COLUMNS, Json, Panel, Query, reference, steps

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
SCHEMA_VERSION = 39
"""That of Grafana 10.4; later ones bring it up to theirs when they load it."""

_METRIC = re.compile(r"\b((?:ephmon|process)_\w+|up)\b(?:\{([^}]*)\})?")
_HAS_DESTINATION = re.compile(r"ephmon_(pool|destination)_")


class Row(NamedTuple):
    """Panels under a heading, from left to right; those that stand side by side are of one height."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    """A dashboard; a `destination` variable narrows what has a destination."""

    uid: str
    title: str
    description: str
    rows: tuple[Row, ...]
    has_destination: bool = False


def dashboard(content: Dashboard) -> Json:
    """Return the JSON model."""
    return {
        "annotations": {"list": []},
        "description": content.description,
        "editable": False,
        "fiscalYearStartMonth": 0,
        "graphTooltip": 1,
        "id": None,
        "links": [_links()],
        "panels": _placed(content),
        "refresh": "30s",
        "schemaVersion": SCHEMA_VERSION,
        "tags": ["ephmon"],
        "templating": {"list": _variables(content)},
        "time": {"from": "now-1h", "to": "now"},
        "timepicker": {},
        "timezone": "browser",
        "title": content.title,
        "uid": content.uid,
        "weekStart": "",
    }


def _links() -> Json:
    """Return the links to all dashboards of ephmon, which keep the time and the variables."""
    return {
        "asDropdown": False,
        "icon": "external link",
        "includeVars": True,
        "keepTime": True,
        "tags": ["ephmon"],
        "targetBlank": False,
        "title": "ephmon",
        "tooltip": "",
        "type": "dashboards",
        "url": "",
    }


def _placed(content: Dashboard) -> list[Json]:
    placed: list[Json] = []
    top = 0
    for row in content.rows:
        placed.append(_heading(row.title, len(placed) + 1, top))
        top, left, height = top + 1, 0, 0
        for panel in row.panels:
            if left + panel.width > COLUMNS:
                top, left = top + height, 0
            place = {"h": panel.height, "w": panel.width, "x": left, "y": top}
            placed.append(_panel(panel, len(placed) + 1, place, has_destination=content.has_destination))
            left, height = left + panel.width, panel.height
        top += height
    return placed


def _heading(title: str, number: int, top: int) -> Json:
    return {
        "collapsed": False,
        "gridPos": {"h": 1, "w": COLUMNS, "x": 0, "y": top},
        "id": number,
        "panels": [],
        "title": title,
        "type": "row",
    }


def _panel(panel: Panel, number: int, place: Json, *, has_destination: bool) -> Json:
    written: Json = {
        "datasource": DATASOURCE,
        "description": panel.description,
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "thresholds": steps("green"), **panel.defaults},
            "overrides": list(panel.overrides),
        },
        "gridPos": place,
        "id": number,
        "options": panel.options,
        "targets": [
            _target(panel.type, query, reference(index), has_destination=has_destination)
            for index, query in enumerate(panel.queries)
        ],
        "title": panel.title,
        "type": panel.type,
    }
    if panel.transformations:
        written["transformations"] = list(panel.transformations)
    return written


def _target(panel_type: str, query: Query, letter: str, *, has_destination: bool) -> Json:
    is_of_now = panel_type in ("stat", "table")
    target = {
        "datasource": DATASOURCE,
        "editorMode": "code",
        "expr": _with_matchers(query.expr, has_destination=has_destination),
        "instant": is_of_now,
        "range": not is_of_now,
        "refId": letter,
    }
    return {**target, "format": "table"} if panel_type == "table" else {**target, "legendFormat": query.name}


def _with_matchers(expression: str, *, has_destination: bool) -> str:
    """Return the expression with the matchers of the variables on each metric."""

    def selector(found: re.Match[str]) -> str:
        metric, own = found.groups()
        matchers = ['job=~"$job"', 'instance=~"$instance"']
        if has_destination and _HAS_DESTINATION.match(metric):
            matchers.append('destination=~"$destination"')
        return f"{metric}{{{', '.join([*matchers, *([own] if own else [])])}}}"

    return _METRIC.sub(selector, expression)


def _variables(content: Dashboard) -> list[Json]:
    hosts = [
        _variable("job", "Job", "ephmon_poll_success", ".+"),
        _variable("instance", "Instance", 'ephmon_poll_success{job=~"$job"}', ".+"),
    ]
    if content.has_destination:
        # Kinds of pools without a destination have an empty one, so all of them are more than any.
        pools = _with_matchers("ephmon_pool_utilisation_ratio", has_destination=False)
        hosts.append(_variable("destination", "Destination", pools, ".*"))
    return [_datasource(), *hosts]


def _datasource() -> Json:
    return {
        "hide": 0,
        "includeAll": False,
        "label": "Data Source",
        "multi": False,
        "name": "datasource",
        "options": [],
        "query": "prometheus",
        "refresh": 1,
        "regex": "",
        "skipUrlSync": False,
        "type": "datasource",
    }


def _variable(name: str, label: str, metric: str, all_value: str) -> Json:
    """Return a variable with the values that a label of the metric has; it is read again when the time changes."""
    query = f"label_values({metric}, {name})"
    return {
        "allValue": all_value,
        "current": {"text": ["All"], "value": ["$__all"]},
        "datasource": DATASOURCE,
        "hide": 0,
        "includeAll": True,
        "label": label,
        "multi": True,
        "name": name,
        "options": [],
        "query": {"qryType": 1, "query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery"},
        "refresh": 2,
        "regex": "",
        "skipUrlSync": False,
        "sort": 1,
        "type": "query",
    }
