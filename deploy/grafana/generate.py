#!/usr/bin/env python3
"""Writes the dashboards, host.json and fleet.json, beside this file, or into the directory that is given.

`host.py`, `health.py` and `fleet.py` say what is shown, `panels.py` and `dashboards.py` how that is written down.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from dashboards import dashboard
from fleet import FLEET
from host import HOST

DASHBOARDS = {"host.json": HOST, "fleet.json": FLEET}


def write(directory: Path) -> None:
    """Write all dashboards."""
    for name, content in DASHBOARDS.items():
        text = json.dumps(dashboard(content), indent=2, sort_keys=True)
        (directory / name).write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
