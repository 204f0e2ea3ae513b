"""The dashboards of Grafana as the repository holds them, for tests."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parents[1] / "deploy" / "grafana"
NAMES = ("host", "fleet")
Json = dict[str, Any]

MADE: dict[str, Json] = {name: json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")) for name in NAMES}
SELECTOR = re.compile(r"\b((?:ephmon|process)_\w+|up)\b(?:\{([^}]*)\})?")
"""A metric and, where it has some, its matchers."""


class Target(NamedTuple):
    """A query of a panel."""

    dashboard: str
    panel: Json
    query: Json

    @property
    def expr(self) -> str:
        """What Prometheus is asked, with Grafana's variables in it."""
        return str(self.query["expr"])

    def __str__(self) -> str:
        return f"{self.dashboard}: {self.panel['title']} ({self.panel['id']}), {self.query['refId']}"


def panels(name: str) -> list[Json]:
    """Return the panels of a dashboard, without the headings of rows."""
    return [panel for panel in MADE[name]["panels"] if panel["type"] != "row"]


def variables(name: str) -> dict[str, Json]:
    """Return the variables of a dashboard by name, in their order."""
    return {variable["name"]: variable for variable in MADE[name]["templating"]["list"]}


TARGETS = [Target(name, panel, query) for name in NAMES for panel in panels(name) for query in panel["targets"]]
