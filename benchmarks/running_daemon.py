"""The daemon as a process in a namespace of a scenario: started, waited for and looked at from outside."""

from __future__ import annotations

import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.scenario import NotMeasuredError
from tests.processes import Running, ephmon

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.namespaces import Namespace
    from tests.processes import Metrics

PORT = 19100
_PAUSE_SECONDS = 0.1
# No budget stretches the interval: what polls do is measured at the pace that the scenario sets.
_CONFIG = """\
poll:
  interval: {interval_ms}ms
  urgent_interval: {interval_ms}ms
  deadline: 5m
  cpu_budget: 1.0
  urgent_cpu_budget: 1.0
log:
  level: error
"""


@contextmanager
def running_daemon(namespace: Namespace, interval_seconds: float) -> Iterator[Running]:
    """Start the daemon in a namespace and end it by SIGTERM."""
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory, "config.yaml")
        config.write_text(_CONFIG.format(interval_ms=max(100, round(interval_seconds * 1000))), encoding="utf-8")
        with Running(namespace, ephmon("run", "--config", config)) as daemon:
            yield daemon
            daemon.stop()


def wait_for_polls(daemon: Running, number: int, seconds: float) -> Metrics:
    """Wait until so many polls more were made and return the metrics.

    Raises:
        NotMeasuredError: A poll failed, or they take longer than this.
    """
    deadline = time.monotonic() + seconds
    enough = polls_made(daemon.metrics()) + number
    while polls_made(metrics := daemon.metrics()) < enough:
        if time.monotonic() > deadline:
            raise NotMeasuredError(f"the daemon did not make {number} polls in {seconds:g} s")
        time.sleep(_PAUSE_SECONDS)
    failures = {
        name: value for name, value in metrics.items() if name.startswith("ephmon_poll_failures_total") and value
    }
    if failures:
        raise NotMeasuredError(f"the daemon's polls fail, {failures}")
    return metrics


def polls_made(metrics: Metrics) -> float:
    """Return how many full polls were made."""
    return metrics.get('ephmon_polls_total{scope="full"}', 0.0)
