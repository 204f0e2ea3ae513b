"""What the daemon does beside its polls: failed calls, deliveries, incidents, each in a compartment of its own."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from ephmon import log
from ephmon.config.settings import Switch
from ephmon.daemon.exhaustion_watch import ExhaustionWatch
from ephmon.daemon.incident_log import IncidentLog
from ephmon.delivery.notification import notifications_of
from ephmon.delivery.service import Delivery
from ephmon.log import Line
from ephmon.model.collectors import Collector, Health, unavailable
from ephmon.outputs.text import changes
from ephmon.supervision.compartment import Compartment

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ephmon.config.settings import Config
    from ephmon.model.report import Report

_EXTRAS = (Collector.EXHAUSTIONS, Collector.DELIVERY, Collector.INCIDENTS)

_log = logging.getLogger("ephmon.daemon")


class Extras:
    """Takes reports and gives back what it knows, with the health of each extra. No error leaves it.

    Args:
        config: What to do; `configure` starts it.
        proc: Where procfs is mounted.
        clock: The monotonic clock, seconds.
        wall_clock: Seconds since the epoch.
    """

    def __init__(self, config: Config, proc: Path, clock: Callable[[], float], wall_clock: Callable[[], float]) -> None:
        self.delivery = Delivery(clock=clock, wall_clock=wall_clock)
        """Configured by the daemon itself, because a reload fails if there is no thread for it."""
        self._config = config
        self._exhaustions = ExhaustionWatch(proc)
        self._incidents = IncidentLog(clock, wall_clock)
        self._compartments = {collector: Compartment(collector, clock) for collector in _EXTRAS}

    @property
    def counts_failed_calls(self) -> bool:
        """Whether failed connect() calls are counted at the moment."""
        return self._exhaustions.is_on

    def configure(self, config: Config) -> None:
        """Do what the configuration says from now on; what an error had switched off is tried again at once."""
        self._config = config
        for compartment in self._compartments.values():
            compartment.retry_now()
        self._in(Collector.EXHAUSTIONS, lambda: _warn(self._exhaustions.configure(config.exhaustions)))
        self._in(Collector.INCIDENTS, lambda: self._incidents.configure(config.incidents))

    def close(self) -> None:
        """End everything: what is being sent or written has a moment left."""
        self.delivery.close()
        self._incidents.close()
        _warn(self._exhaustions.close())

    def count_failed_calls(self, previous: Report, now: float) -> tuple[Report, bool]:
        """Return the report with the connect() calls that failed since, and whether one failed in our own namespace.

        `now` are monotonic seconds. What is new is logged.
        """

        def count() -> tuple[Report, bool]:
            report, failed_here = self._exhaustions.collect(previous, now)
            required = self._config.exhaustions.enabled == Switch.ON
            for line in changes.exhaustion_lines(previous, report, required=required):
                log.write(_log, line)
            return report, failed_here

        return self._compartments[Collector.EXHAUSTIONS].run(
            count, lambda reason: (previous.with_health(exhaustions=unavailable(reason)), False)
        )

    def deliver(self, report: Report) -> Report:
        """Send what the alerts of a report have changed to, if there are receivers."""

        def deliver() -> Health:
            self.delivery.update(notifications_of(report))
            return Health(available=True)

        if not self.delivery.is_running:
            return report.with_health(delivery=None)
        return report.with_health(delivery=self._compartments[Collector.DELIVERY].run(deliver, unavailable))

    def keep_incident(self, report: Report) -> Report:
        """Start to write an incident if the report makes one due and the configuration asks for that."""

        def keep() -> Health:
            self._incidents.update(report, self._config.listing.ignore_destinations)
            return self._incidents.health()

        if not self._config.incidents.directory:
            return report.with_health(incidents=None)
        return report.with_health(incidents=self._compartments[Collector.INCIDENTS].run(keep, unavailable))

    def with_status(self, report: Report) -> Report:
        """Return the report with the counts of deliveries and incidents."""
        return replace(report, delivery=self.delivery.status(), incidents=self._incidents.status())

    def _in(self, collector: Collector, work: Callable[[], None]) -> None:
        self._compartments[collector].run(work, lambda _reason: None)


def _warn(sentence: str | None) -> None:
    if sentence is not None:
        log.write(_log, Line(logging.WARNING, sentence))
