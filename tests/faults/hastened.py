"""The daemon with clocks that a test moves, and with deliveries that wait for less: what takes minutes takes a second.

All else is as `ephmon run` has it.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from unittest.mock import patch

from ephmon import log
from ephmon.config.settings import load
from ephmon.daemon.loop import Daemon
from ephmon.delivery import service
from ephmon.delivery.settings import DeliveryTimes
from tests.processes import python

TIMES = DeliveryTimes(
    deadline_seconds=2.5, pause_seconds=0.1, first_retry_seconds=0.2, resend_seconds=1.0, longest_retry_seconds=0.5
)
"""The intervals of deliveries."""


def hastened(folder: Path) -> list[str]:
    """Return the command line of such a daemon, with the configuration of the folder.

    The files `monotonic` and `wall` of the folder say how many seconds the clocks are ahead.
    """
    return python("-c", "from tests.faults import hastened; hastened.serve()", str(folder))


def serve() -> None:
    """Run the daemon."""
    here = Path(sys.argv[1])
    config = load(here / "config.yaml")
    log.set_up(config.log.level, config.log.format)
    with patch.object(service, "DeliveryTimes", lambda: TIMES):
        Daemon(
            lambda: load(here / "config.yaml"),
            proc=Path("/proc"),
            clock=lambda: time.monotonic() + _seconds(here / "monotonic"),
            wall_clock=lambda: time.time() + _seconds(here / "wall"),
        ).run()


def _seconds(file: Path) -> float:
    return float(file.read_text(encoding="ascii")) if file.exists() else 0.0
