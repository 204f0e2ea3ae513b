"""The daemon's end of incidents: notices them, and has them written where the configuration says.

They are written by a thread that lives no longer than that takes, one at a time: a disk that is slow or hangs delays
no poll. What a report holds never changes, so the thread needs nothing but that. While nothing happens there is no
thread, and nothing of what writing takes is loaded.
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
from ephmon.log import Line
from ephmon.model.alerting.state_machine import Moment
from ephmon.model.incident_status import FailureReason, IncidentStatus
from ephmon.model.incidents import PAUSE_SECONDS, Told, look

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ephmon.daemon.incident_folder import Folder
    from ephmon.model.incidents import Incident
    from ephmon.model.report import Report
    from ephmon.model.rules import DestinationPattern

CLOSE_SECONDS = 2.0
"""What is being written when the daemon stops may still be finished within this time."""

_log = logging.getLogger("ephmon.incidents")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """An incident on its way to the disk."""

    folder: IncidentsConfig
    report: Report
    incident: Incident
    at: Moment
    """When it was noticed."""
    told: Told
    """What is told once it is there."""


class _Outcome(NamedTuple):
    """What became of a task."""

    failure: FailureReason | None = None
    latest_age: float | None = None
    """How long ago somebody else has kept an incident of the same reason, where that is too short; nothing is kept."""


HUNG_SECONDS = 60.0
"""What is not written by then is told to hang."""
HANGS = (
    "Incidents cannot be kept: writing to incidents.directory has not ended for a minute; look at its disk or mount, "
    "or name another directory and reload."
)


class _Worker(threading.Thread):
    """A thread that leaves behind what became of its task; the daemon reads that when it has ended."""

    def __init__(self, work: Callable[[], _Outcome], task: _Task | None, started: float) -> None:
        # What hangs in a dead disk must not keep the daemon from stopping.
        super().__init__(name="incident", daemon=True)
        self.started = started
        """Monotonic seconds."""
        self.hangs = False
        """Whether it has been told that it takes too long."""
        self._work = work
        self.task = task
        self.outcome = _Outcome(failure=FailureReason.DEFECT)

    def run(self) -> None:
        """Do the work."""
        self.outcome = self._work()


class IncidentLog:
    """Keeps incidents; only its threads wait for a disk.

    Args:
        clock: The monotonic clock, seconds.
        wall_clock: Seconds since the epoch.
    """

    def __init__(self, clock: Callable[[], float], wall_clock: Callable[[], float]) -> None:
        self._clock = clock
        self._wall_clock = wall_clock
        self._config = IncidentsConfig()
        self._is_checked = True
        self._told = Told()
        self._status = IncidentStatus()
        self._worker: _Worker | None = None
        self._said: str | None = None
        """What was said last of why incidents cannot be kept. A thread's while there is one."""

    def go_by(self, config: IncidentsConfig) -> None:
        """Keep incidents as the configuration says from now on, and see at once whether that can be done."""
        if config.directory != self._config.directory:
            self._is_checked = not config.directory
        self._config = config
        self._is_free()

    def update(self, report: Report, ignored: Sequence[DestinationPattern]) -> None:
        """Take a report into account that has been published, and have an incident written if one is due.

        Failed calls toward `ignored` destinations are no reason for one.

        While another is being written, none is due: it comes with a later report.
        """
        if not (self._is_free() and self._config.directory):
            return
        at = Moment(self._clock(), self._wall_clock())
        incident, told = look(self._told, report, ignored, at.monotonic)
        if incident is None:
            self._told = told
        else:
            task = _Task(folder=self._config, report=report, incident=incident, at=at, told=told)
            self._start(partial(self._keep, task), task)

    def status(self) -> IncidentStatus | None:
        """Return how the keeping of incidents fares, None where none are kept."""
        self._collect()
        return self._status if self._config.directory else None

    def close(self) -> None:
        """Give what is being written a little time; what is not finished by then is lost."""
        if self._worker is not None:
            self._worker.join(CLOSE_SECONDS)

    def _is_free(self) -> bool:
        """Tell whether nothing is being written; a directory that is new is looked at first."""
        self._collect()
        if self._worker is not None and self._worker.hangs and not self._is_checked:
            self._worker = None  # it is left to the disk that it hangs in; the new directory may be on another
        if self._worker is None and not self._is_checked:
            self._is_checked = True
            self._said = None
            self._start(partial(self._check, self._config))
        return self._worker is None

    def _start(self, work: Callable[[], _Outcome], task: _Task | None = None) -> None:
        worker = _Worker(work, task, self._clock())
        try:
            worker.start()
        except RuntimeError as error:  # no thread can be had
            worker.outcome = self._failed(f"{error}; allow ephmon more threads.", FailureReason.SYSTEM)
            self._take(worker)
        else:
            self._worker = worker

    def _collect(self) -> None:
        """Take over what a thread has left behind that has ended."""
        worker = self._worker
        if worker is None:
            return
        if not worker.is_alive():
            self._worker = None
            self._take(worker)
        elif not worker.hangs and self._clock() - worker.started >= HUNG_SECONDS:
            worker.hangs = True
            self._count_failure(FailureReason.SYSTEM)
            log.write(_log, Line(logging.WARNING, HANGS))

    def _count_failure(self, reason: FailureReason) -> None:
        failures = {**self._status.failures, reason: self._status.failures[reason] + 1}
        self._status = replace(self._status, failures=failures)

    def _take(self, worker: _Worker) -> None:
        task, outcome = worker.task, worker.outcome
        if task is None:
            return
        reason, noticed_at = task.incident.reason, task.at.monotonic
        if outcome.failure is not None:
            self._count_failure(outcome.failure)
            self._told = self._told.delayed(reason, noticed_at)
        elif outcome.latest_age is not None:
            self._told = self._told.delayed(reason, noticed_at - outcome.latest_age)
        else:
            self._status = replace(self._status, written=self._status.written + 1)
            self._told = task.told

    # What follows runs in the thread.

    def _check(self, config: IncidentsConfig) -> _Outcome:
        return self._guarded(lambda: _folder(config).check(self._wall_clock()))

    def _keep(self, task: _Task) -> _Outcome:
        return self._guarded(lambda: self._kept(task))

    def _guarded(self, work: Callable[[], _Outcome | None]) -> _Outcome:
        # Only who keeps incidents needs what this drags in, here and below.
        from ephmon.daemon.incident_folder import FolderError  # noqa: PLC0415

        try:
            return work() or _Outcome()
        except FolderError as error:
            return self._failed(str(error), error.reason)
        except Exception as error:  # noqa: BLE001 - a defect of ours must not cost more than this incident
            message = f"a defect of ephmon, please report it: {log.error_location(error)}."
            return self._failed(message, FailureReason.DEFECT)

    def _kept(self, task: _Task) -> _Outcome:
        from ephmon.outputs.documents import api  # noqa: PLC0415
        from ephmon.outputs.documents.incident import Origin, document  # noqa: PLC0415

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

    def _failed(self, message: str, reason: FailureReason) -> _Outcome:
        """Say, unless it was said last, why incidents cannot be kept."""
        if message != self._said:
            self._said = message
            log.write(_log, Line(logging.WARNING, f"Incidents cannot be kept: {message}"))
        return _Outcome(failure=reason)


def _folder(config: IncidentsConfig) -> Folder:
    from ephmon.daemon.incident_folder import Folder  # noqa: PLC0415

    return Folder(directory=config.directory, max_files=config.max_files, max_bytes=config.max_mib << 20)
