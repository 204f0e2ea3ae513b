"""The stage of a fault: a daemon in a network namespace with a server in it, and what every case ends with."""

from __future__ import annotations

import itertools
import re
import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self, TypeVar

from tests import sockets
from tests.processes import Running, eventually, fetch, put
from tests.sockets import FillResult

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.faults.case import Start
    from tests.namespaces import Namespace
    from tests.processes import Metrics, Reply

T = TypeVar("T")

HERE, PORT = "127.0.0.1", 7411
PORTS = 1000
LOW = 40_000
MOST_FAILED_POLLS = 3
"""So many polls may still fail after a fault has ended."""
FULL = 950
"""So many of the ports make a critical alert."""
_DEFECT = re.compile(r"Traceback|[Dd]efect (of|in) ephmon")


class Scraped(Running):
    """A daemon that is asked from ports outside the range: where no port is left, this works and changes nothing."""

    _source_ports = itertools.cycle(range(10_000, 19_000))

    def get(self, path: str) -> Reply:
        """Send it a GET request on its default address."""
        return self._ns.call(fetch, path, source=(HERE, next(self._source_ports)))


class Stage:
    """What a case has to do with."""

    def __init__(self, ns: Namespace, folder: Path) -> None:
        self.ns = ns
        self.folder = folder
        self.config = folder / "config.yaml"
        self._daemon: Scraped | None = None
        self._started = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._started.close()

    @property
    def daemon(self) -> Scraped:
        """The daemon that runs."""
        assert self._daemon is not None
        return self._daemon

    def start(self, start: Start) -> None:
        """Start the daemon, and wait for its first poll if that should succeed."""
        self.prepare(start)
        output = self._started.enter_context(start.output(self))
        self._daemon = self._started.enter_context(Scraped(self.ns, self.command(start), stderr=output))
        if start.is_polling:
            self._daemon.wait_for(poll_success=1)

    def prepare(self, start: Start) -> None:
        """Do what comes before the start."""
        put(self.config, self.text(start.config))
        start.prepare(self)

    def keep(self, held: AbstractContextManager[T]) -> T:
        """Enter a context that is left when the case has ended."""
        return self._started.enter_context(held)

    def reload(self, config: str) -> None:
        """Write the configuration and have it read."""
        put(self.config, self.text(config))
        self.daemon.signal(signal.SIGHUP)

    def pass_time(self, seconds: float, clock: str = "monotonic") -> None:
        """Let a clock of a daemon that `hastened` runs be so many seconds ahead, and wake it."""
        put(self.folder / clock, str(seconds))
        self.daemon.signal(signal.SIGHUP)

    def command(self, start: Start) -> list[str]:
        """Return the command line."""
        return [*start.prefix, *start.command(self.folder)]

    def text(self, template: str) -> str:
        """Return a text in which FOLDER is the folder of the case."""
        return template.replace("FOLDER", str(self.folder))

    def fill(self, number: int = FULL) -> None:
        """Open connections until the pool is nearly full, which fires a critical alert."""
        assert self.ns.call(sockets.fill, HERE, PORT, tag="clients", limit=number) == FillResult(number, 0)

    def value(self, name: str) -> float:
        """Return a metric, named without its prefix `ephmon_`; 0 if it is not there."""
        return self.daemon.metrics().get(f"ephmon_{name}", 0.0)

    def wait_for_value(self, name: str, least: float) -> float:
        """Wait until a metric, named without its prefix, is that large."""
        return eventually(lambda: self.value(name), lambda value: value >= least)

    def failures(self) -> float:
        """Return how many polls have failed so far."""
        return failed_polls(eventually(self.daemon.metrics, bool))

    def recover(self) -> None:
        """Require that polls succeed again after at most three more have failed, and that it is ready."""
        failed = self.failures()
        metrics = self.daemon.wait_for(poll_success=1)
        assert failed_polls(metrics) <= failed + MOST_FAILED_POLLS
        self.daemon.wait_for_polls(1)
        eventually(lambda: self.daemon.get("/-/ready").status, lambda status: status == 200)

    def stop(self) -> None:
        """Require that SIGTERM ends it in good order, and that nothing was a defect."""
        assert self.daemon.stop() == 0
        assert [line for line in self.daemon.lines if _DEFECT.search(line)] == [], self.daemon.lines


def failed_polls(metrics: Metrics) -> float:
    """Return how many polls have failed, whatever the reason."""
    return sum(value for series, value in metrics.items() if series.startswith("ephmon_poll_failures_total"))
