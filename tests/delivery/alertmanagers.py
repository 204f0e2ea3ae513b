"""A real Alertmanager in a network namespace, and what it knows.

It listens on port 9093 of loopback, and announces alerts to whoever listens on port 8080.
"""

from __future__ import annotations

import itertools
import json
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from tests.processes import Program, eventually, fetch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.namespaces import Namespace
    from tests.processes import Reply

PORT = 9093
HOOK_PORT = 8080
HOOK = "what Alertmanager sends"
"""The tag of the receiver of its announcements, where tests have one."""
# Announces at once, and what changes after a second.
_CONFIG = f"""
route: {{receiver: hook, group_wait: 0s, group_interval: 1s, repeat_interval: 4h}}
receivers: [{{name: hook, webhook_configs: [{{url: "http://127.0.0.1:{HOOK_PORT}/"}}]}}]
"""
_source_ports = itertools.cycle(range(20000, 30000))


@contextmanager
def alertmanager(ns: Namespace, folder: Path) -> Iterator[Program]:
    """An Alertmanager with its memory in the folder; it is told to stop, unless it was killed."""
    folder.mkdir(exist_ok=True)
    config = folder / "alertmanager.yml"
    config.write_text(_CONFIG, encoding="utf-8")
    command = ns.command(
        "prometheus-alertmanager",
        f"--config.file={config}",
        f"--storage.path={folder}",
        f"--web.listen-address=127.0.0.1:{PORT}",
        "--cluster.listen-address=",
    )
    with Program(command) as program:
        try:
            eventually(lambda: _is_ready(ns), bool)
            yield program
        finally:
            program.stop()


def alerts(ns: Namespace) -> list[dict[str, Any]]:
    """Return the alerts that are active, as Alertmanager tells them."""
    found: list[dict[str, Any]] = json.loads(_get(ns, "/api/v2/alerts").body)
    return found


def remembers_its_announcement(ns: Namespace) -> bool:
    """Return whether it has recorded the first announcement, which it does a moment after the receiver's answer.

    It looks into its record before each announcement of a group, and finishes with one before it begins the next.
    """
    metrics = _get(ns, "/metrics").body
    (looked,) = (line for line in metrics.splitlines() if line.startswith("alertmanager_nflog_queries_total "))
    return float(looked.split()[1]) >= 2


def moment(text: str) -> float:
    """Return a time of Alertmanager in seconds since the epoch."""
    return datetime.fromisoformat(text).timestamp()


def _is_ready(ns: Namespace) -> bool:
    try:
        return _get(ns, "/-/ready").status == 200
    except OSError:
        return False


def _get(ns: Namespace, path: str) -> Reply:
    """Ask from a port outside every range that a test sets, each time another: it works where no port is left."""
    return ns.call(fetch, path, port=PORT, source=("127.0.0.1", next(_source_ports)))
