"""A real Prometheus in a network namespace that scrapes what listens there, and what it answers.

It listens on port 9090 of loopback.
"""

from __future__ import annotations

import itertools
import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from tests.processes import Program, eventually, fetch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.namespaces import Namespace
    from tests.processes import Reply

PORT = 9090
_source_ports = itertools.cycle(range(20000, 30000))


@contextmanager
def prometheus(ns: Namespace, folder: Path, configuration: str) -> Iterator[None]:
    """Run a Prometheus with its data in the folder until the block ends; it is ready when the block begins."""
    folder.mkdir()
    config = folder / "prometheus.yml"
    config.write_text(configuration, encoding="utf-8")
    command = ns.command(
        "prometheus",
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{PORT}",
    )
    with Program(command):
        eventually(lambda: _is_ready(ns), bool)
        yield


def ask(ns: Namespace, endpoint: str, **parameters: str) -> Any:
    """Return the data of an endpoint such as `query`; the assertion that fails tells what it did not understand."""
    reply = _get(ns, f"/api/v1/{endpoint}?{urlencode(parameters)}")
    assert reply.status == 200, (parameters, reply.body)
    return json.loads(reply.body)["data"]


def _is_ready(ns: Namespace) -> bool:
    try:
        return _get(ns, "/-/ready").status == 200
    except OSError:
        return False


def _get(ns: Namespace, path: str) -> Reply:
    """Ask from a port outside every range that a test sets, each time another: it works where no port is left."""
    return ns.call(fetch, path, port=PORT, source=("127.0.0.1", next(_source_ports)))
