"""The kinds of panels that the dashboards are made of, each with the look that it has everywhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

Json = dict[str, Any]

COLUMNS = 24
"""The width of Grafana's grid."""


class Query(NamedTuple):
    """What a panel asks Prometheus, metrics without the matchers of variables."""

    expr: str
    name: str = ""
    """The legend of its series, as a template, or the title of its column in a table."""
    unit: str = ""
    """The unit of its column, if that is not the panel's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A panel; `custom`, `defaults` and `options` are added to what its type has anyway."""

    type: str
    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    width: int
    height: int
    defaults: Json = field(default_factory=dict)
    """Of all its fields."""
    overrides: tuple[Json, ...] = ()
    options: Json = field(default_factory=dict)
    transformations: tuple[Json, ...] = ()


def stat(title: str, description: str, unit: str, *queries: Query, **defaults: Any) -> Panel:
    """Return a panel that shows the present value of each query in large figures."""
    options = {
        "colorMode": "value",
        "graphMode": "none",
        "justifyMode": "auto",
        "orientation": "auto",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "textMode": "auto",
    }
    return Panel(
        type="stat",
        title=title,
        description=description,
        unit=unit,
        queries=queries,
        width=4,
        height=4,
        defaults=defaults,
        overrides=SEVERITY_COLOURS,
        options=options,
    )


def series(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    width: int = 12,
    custom: Json | None = None,
    **defaults: Any,
) -> Panel:
    """Return a panel of lines over time; lines named `warning`, `critical` or `sustainable` are limits, and dashed."""
    style = {"drawStyle": "line", "fillOpacity": 0, "lineWidth": 2, "showPoints": "never", "spanNulls": False}
    return Panel(
        type="timeseries",
        title=title,
        description=description,
        unit=unit,
        queries=queries,
        width=width,
        height=9,
        defaults={"min": 0, "custom": {**style, **(custom or {})}, **defaults},
        overrides=(*SEVERITY_COLOURS, _LIMIT),
        options={
            "legend": {
                "calcs": ["lastNotNull", "max"],
                "displayMode": "table",
                "placement": "bottom",
                "showLegend": True,
            },
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    )


def states(title: str, description: str, *queries: Query, values: tuple[Json, ...], width: int = 12) -> Panel:
    """Return a panel of coloured bars over time, one for each series; `values` are what `value` returns."""
    return Panel(
        type="state-timeline",
        title=title,
        description=description,
        unit="none",
        queries=queries,
        width=width,
        height=9,
        defaults={"mappings": list(values), "custom": {"fillOpacity": 80, "lineWidth": 0}},
        options={
            "alignValue": "left",
            "legend": {"calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": False},
            "mergeValues": True,
            "rowHeight": 0.8,
            "showValue": "auto",
            "tooltip": {"mode": "single", "sort": "none"},
        },
    )


def table(
    title: str,
    description: str,
    *columns: Query,
    labels: tuple[str, ...] = (),
    overrides: tuple[Json, ...] = (),
    width: int = COLUMNS,
) -> Panel:
    """Return a table of the present: the labels first, then a column for each query, with most in the first one on top.

    A query without a name has no column; it is there for its labels.
    """
    values = {f"Value #{reference(number)}": column.name for number, column in enumerate(columns)}
    if len(columns) == 1:
        values = {"Value": columns[0].name, **values}  # how the only query's column is called depends on the version
    units = tuple(override("byName", column.name, unit=column.unit) for column in columns if column.unit)
    return Panel(
        type="table",
        title=title,
        description=description,
        unit="none",
        queries=columns,
        width=width,
        height=9,
        defaults={"custom": {"align": "auto", "cellOptions": {"type": "auto"}, "filterable": True}},
        overrides=(*units, *overrides),
        options={
            "cellHeight": "sm",
            "showHeader": True,
            "sortBy": [{"desc": True, "displayName": columns[0].name}] if columns[0].name else [],
        },
        transformations=(
            {"id": "merge", "options": {}},
            {
                "id": "organize",
                "options": {
                    "excludeByName": dict.fromkeys(("Time", *(key for key, name in values.items() if not name)), True),
                    "indexByName": {name: number for number, name in enumerate((*labels, *values))},
                    "renameByName": {key: name for key, name in values.items() if name},
                },
            },
        ),
    )


def override(matcher: str, options: str, **properties: Any) -> Json:
    """Return what is different for some fields; `custom_x` stands for `custom.x`."""
    return {
        "matcher": {"id": matcher, "options": options},
        "properties": [
            {"id": name.replace("custom_", "custom."), "value": properties[name]} for name in sorted(properties)
        ],
    }


def value(number: int, text: str, colour: str) -> Json:
    """Return how a value is shown."""
    return {"type": "value", "options": {str(number): {"color": colour, "index": number, "text": text}}}


def steps(first: str, **colours: float) -> Json:
    """Return thresholds: the colour from the bottom on, and others from a number on."""
    above = [{"color": colour, "value": number} for colour, number in colours.items()]
    return {"mode": "absolute", "steps": [{"color": first, "value": None}, *above]}


def fixed(colour: str) -> Json:
    """Return a colour that does not depend on the value."""
    return {"fixedColor": colour, "mode": "fixed"}


SEVERITY_COLOURS = (
    override("byName", "warning", color=fixed("orange")),
    override("byName", "critical", color=fixed("red")),
)
_LIMIT = override(
    "byRegexp",
    "/^(warning|critical|sustainable)( |$)/",
    custom_lineStyle={"dash": [10, 10], "fill": "dash"},
    custom_lineWidth=1,
)


def reference(number: int) -> str:
    """Return the reference of a panel's query: A, B, C and so on."""
    return chr(ord("A") + number)


def of_ephmon(expression: str) -> str:
    """Return what is ephmon's of a metric that others have too; with all jobs chosen, theirs would be there."""
    return f"{expression} and on (job, instance) ephmon_poll_success"


THRESHOLDS = Query("max by (severity) (ephmon_threshold_utilisation_ratio)", "{{severity}}")
FAILED = 'ephmon_connect_exhaustions_total{netns="own"}'
SEVERITIES = (value(1, "warning", "orange"), value(2, "critical", "red"))
YES_OR_NO = (value(0, "no", "red"), value(1, "yes", "green"))

FILLING = {"color": {"mode": "continuous-GrYlRd"}, "min": 0, "max": 1}
NONE_OR_SOME = steps("green", red=1)
BARS = {"drawStyle": "bars", "fillOpacity": 60, "lineWidth": 0}
STACKED = {"fillOpacity": 40, "lineWidth": 1, "stacking": {"group": "A", "mode": "normal"}}

RATIO_CELLS = override(
    "byRegexp",
    "/^(utilisation|peak)$/",
    custom_cellOptions={"mode": "basic", "type": "gauge", "valueDisplayMode": "text"},
    **FILLING,
)
ALERT_CELLS = override(
    "byName", "alert", custom_cellOptions={"mode": "basic", "type": "color-background"}, mappings=list(SEVERITIES)
)
