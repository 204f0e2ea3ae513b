"""Incident files, from this host or any other."""

from __future__ import annotations

import json

from ephmon.outputs.documents.incident_reading import IncidentError, Part, parse
from ephmon.outputs.text.incident import render, worst_pool
from tests.fuzz.mutation import Structure
from tests.fuzz.target import Target, answer

_WIDTHS = (None, 80)


def check_incident(data: bytes) -> None:
    """Read a file and show it: as text that a terminal can take, as the row of a list, and as JSON."""
    incident = answer(IncidentError, parse, data)
    if incident is None:
        return
    assert json.loads(incident.json()) == json.loads(data)
    for width in _WIDTHS:
        text = answer(IncidentError, _render, incident, width)
        assert text is None or all(line.isprintable() for line in text.split("\n"))
    pool = answer(IncidentError, worst_pool, incident)
    assert pool is None or pool.key.source.isprintable()
    for name in ("at", "reason", "summary"):
        answer(IncidentError, incident.text, name)


def _render(incident: Part, width: int | None) -> str:
    return render(incident, width=width)


TARGETS = (
    Target(
        name="incident",
        parsers=(
            "outputs.documents.incident_reading.parse",
            "outputs.text.incident.render",
            "outputs.text.incident.worst_pool",
        ),
        check=check_incident,
        max_bytes=16 * 1024,
        structure=Structure.JSON,
        executions=1_000,
    ),
)
