"""Writes incidents from the daemon, in a thread of their own.

A slow or hanging disk must not delay a poll, so each incident is written by a thread that ends with it, one at a time.
A report never changes, so the thread needs no lock. While no incident is due there is no thread.
"""

from __future__ import annotations

import logging
import os
import platform
import threading
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from ephmon import __version__, log
from ephmon.config.settings import IncidentsConfig
from ephmon.daemon.incident_folder import Folder, FolderError
from ephmon.log import Line
from ephmon.model.alerting.state_machine import Moment
from ephmon.model.collectors import Health
from ephmon.model.incidents import PAUSE_SECONDS, Reported, due_incident
from ephmon.model.status import IncidentFailure, IncidentStatus
from ephmon.outputs.documents import api
from ephmon.outputs.documents.incident import Origin, document
from ephmon.supervision import threads

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ephmon.model.incidents import Incident
    from ephmon.model.report import Report
    from ephmon.model.rules import DestinationPattern

CLOSE_SECONDS = 2.0
"""How long the daemon waits, when it stops, for an incident that is being written."""

_log = logging.getLogger("ephmon.incidents")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """An incident that is being written."""

    folder: IncidentsConfig
    report: Report
    incident: Incident
    at: Moment
    """When it became due."""
    reported: Reported
    """What has been reported once it is written."""


class _Outcome(NamedTuple):
    """The result of a task."""

    failure: IncidentFailure | None = None
    latest_age: float | None = None
    """Age in seconds of an incident with the same reason by another daemon, if it is too recent to write one more."""


HUNG_SECONDS = 60.0
"""After this time an unfinished write is reported as hanging."""
HANGS = (
    "Incidents cannot be written: a write to incidents.directory has hung for a minute. "
    "Check its disk or mount, or set another directory and reload."
)


class _Worker(threading.Thread):
    """A thread that stores the result of its task; the daemon reads it when the thread has ended."""

    def __init__(self, work: Callable[[], _Outcome], task: _Task | None, started: float) -> None:
        # A daemon thread, because one that hangs in a dead disk must not keep the process from ending.
        super().__init__(name="incident", daemon=True)
        self.started = started
        """Monotonic seconds."""
        self.hangs = False
        """Whether the log has reported that it hangs."""
        self._work = work
        self.task = task
        self.outcome = _Outcome(failure=IncidentFailure.DEFECT)

    def run(self) -> None:
        """Do the work."""
        self.outcome = self._work()


class IncidentLog:
    """Writes incidents; only its threads wait for a disk.

    Args:
        clock: The monotonic clock, seconds.
        wall_clock: Seconds since the epoch.
    """

    def __init__(self, clock: Callable[[], float], wall_clock: Callable[[], float]) -> None:
        self._clock = clock
        self._wall_clock = wall_clock
        self._config = IncidentsConfig()
        self._is_checked = True
        self._reported = Reported()
        self._status = IncidentStatus()
        self._worker: _Worker | None = None
        self._said: str | None = None
        """The last logged reason why incidents cannot be written. Belongs to the thread while there is one."""

    def configure(self, config: IncidentsConfig) -> None:
        """Write incidents to this directory from now on, and check at once whether it can be written."""
        if config.directory != self._config.directory:
            self._is_checked = not config.directory
        self._config = config
        self._is_free()

    def update(self, report: Report, ignored: Sequence[DestinationPattern]) -> None:
        """Start to write an incident if the published report makes one due.

        Failed calls toward `ignored` destinations are no reason for an incident. While one is being written, the next
        one waits for a later report.
        """
        if not (self._is_free() and self._config.directory):
            return
        at = Moment(self._clock(), self._wall_clock())
        incident, reported = due_incident(self._reported, report, ignored, at.monotonic)
        if incident is None:
            self._reported = reported
        else:
            task = _Task(folder=self._config, report=report, incident=incident, at=at, reported=reported)
            self._start(partial(self._keep, task), task)

    def status(self) -> IncidentStatus | None:
        """Return the counts of written and failed incidents, None if incidents.directory is not set."""
        self._collect()
        return self._status if self._config.directory else None

    def health(self) -> Health:
        """Return whether incidents can be written, as far as the latest attempt has shown."""
        reason = self._said
        return Health(available=reason is None, reason=reason and f"Incidents cannot be written: {reason}")

    def close(self) -> None:
        """Wait a little for an incident that is being written; an unfinished one is lost."""
        if self._worker is not None:
            self._worker.join(CLOSE_SECONDS)

    def _is_free(self) -> bool:
        """Tell whether nothing is being written; a new directory is checked first."""
        self._collect()
        if self._worker is not None and self._worker.hangs and not self._is_checked:
            self._worker = None  # the new directory may be on another disk than the one that this thread hangs in
        if self._worker is None and not self._is_checked:
            self._is_checked = True
            self._said = None
            self._start(partial(self._check, self._config))
        return self._worker is None

    def _start(self, work: Callable[[], _Outcome], task: _Task | None = None) -> None:
        worker = _Worker(work, task, self._clock())
        try:
            threads.start(worker)
        except threads.ThreadError as error:
            worker.outcome = self._failed(str(error), IncidentFailure.SYSTEM)
            self._take(worker)
        else:
            self._worker = worker

    def _collect(self) -> None:
        """Take the result of a thread that has ended."""
        worker = self._worker
        if worker is None:
            return
        if not worker.is_alive():
            self._worker = None
            self._take(worker)
        elif not worker.hangs and self._clock() - worker.started >= HUNG_SECONDS:
            worker.hangs = True
            self._count_failure(IncidentFailure.SYSTEM)
            log.write(_log, Line(logging.WARNING, HANGS))

    def _count_failure(self, reason: IncidentFailure) -> None:
        failures = {**self._status.failures, reason: self._status.failures[reason] + 1}
        self._status = replace(self._status, failures=failures)

    def _take(self, worker: _Worker) -> None:
        task, outcome = worker.task, worker.outcome
        if task is None:
            return
        reason, due_at = task.incident.reason, task.at.monotonic
        if outcome.failure is not None:
            self._count_failure(outcome.failure)
            self._reported = self._reported.delayed(reason, due_at)
        elif outcome.latest_age is not None:
            self._reported = self._reported.delayed(reason, due_at - outcome.latest_age)
        else:
            self._status = replace(self._status, written=self._status.written + 1)
            self._reported = task.reported

    # The methods below run in the thread.

    def _check(self, config: IncidentsConfig) -> _Outcome:
        return self._guarded(lambda: _folder(config).check(self._wall_clock()))

    def _keep(self, task: _Task) -> _Outcome:
        return self._guarded(lambda: self._write(task))

    def _guarded(self, work: Callable[[], _Outcome | None]) -> _Outcome:
        try:
            return work() or _Outcome()
        except FolderError as error:
            return self._failed(str(error), error.reason)
        except Exception as error:  # noqa: BLE001 - an error in ephmon must cost no more than this incident
            message = f"a defect of ephmon, please report it: {log.error_location(error)}."
            return self._failed(message, IncidentFailure.DEFECT)

    def _write(self, task: _Task) -> _Outcome:
        folder, reason, at = _folder(task.folder), task.incident.reason, task.at.wall
        age = folder.age_of_latest(reason, at)
        if age is not None and age < PAUSE_SECONDS:
            return _Outcome(latest_age=age)
        system = os.uname()
        origin = Origin(system.nodename, __version__, platform.python_version(), system.release)
        content = api.encode(document(task.report, task.incident, at=at, origin=origin))
        path = folder.write(content, reason=reason, at=at)
        self._said = None
        log.write(_log, Line(logging.INFO, "An incident was written.", {"file": path, "reason": reason}))
        return _Outcome()

    def _failed(self, message: str, reason: IncidentFailure) -> _Outcome:
        """Log why incidents cannot be written, unless that was the last thing logged."""
        if message != self._said:
            self._said = message
            log.write(_log, Line(logging.WARNING, f"Incidents cannot be written: {message}"))
        return _Outcome(failure=reason)


def _folder(config: IncidentsConfig) -> Folder:
    return Folder(directory=config.directory, max_files=config.max_files, max_bytes=config.max_mib << 20)
