"""The daemon's end of incidents: a poll never waits for a disk, and what goes wrong is counted and said once."""

from __future__ import annotations

import logging
import stat
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from ephmon.config.settings import IncidentsConfig
from ephmon.daemon import incident_log
from ephmon.daemon.incident_folder import Folder, names
from ephmon.daemon.incident_log import HANGS, HUNG_SECONDS, IncidentLog
from ephmon.model.alerting.thresholds import Severity
from ephmon.model.incidents import PAUSE_SECONDS
from ephmon.outputs.documents.incident_reading import read
from ephmon.supervision import threads
from tests.builders import TAKEN_AT, make_alert, make_pool, make_report
from tests.processes import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from ephmon.model.alerting.state_machine import Alert
    from ephmon.model.status import IncidentStatus

CRITICAL = make_alert(make_pool(in_use=26000), severity=Severity.CRITICAL)
OTHER = make_alert(make_pool(in_use=27000, destination="10.0.0.8"), severity=Severity.CRITICAL)


class Keeper:
    """An IncidentLog with clocks that stand still until they are moved."""

    def __init__(self, place: Path | str, **changes: int) -> None:
        self.now = 1000.0
        self.config = IncidentsConfig(directory=str(place), **changes)
        self.log = IncidentLog(lambda: self.now, lambda: TAKEN_AT + self.now)
        self.log.configure(self.config)
        self.wait()

    def update(self, *alerts: Alert) -> IncidentStatus:
        """Have the log see a report, and wait until nothing is being written any more."""
        self.log.update(make_report(alerts=alerts), ())
        return self.wait()

    def wait(self) -> IncidentStatus:
        eventually(lambda: [thread.name for thread in threading.enumerate()], lambda found: "incident" not in found)
        status = self.log.status()
        assert status is not None
        return status


def failures(status: IncidentStatus) -> dict[str, int]:
    return {reason: number for reason, number in status.failures.items() if number}


@pytest.fixture(name="place")
def _place(tmp_path: Path) -> Path:
    path = tmp_path / "incidents"
    path.mkdir()
    return path


def said(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


def test_an_incident_becomes_a_file_that_can_be_read(place: Path) -> None:
    status = Keeper(place).update(CRITICAL)

    (name,) = names(str(place))
    incident = read(str(place / name))
    assert (incident.text("reason"), incident.text("at")) == ("critical", "2026-01-02T03:20:45.006Z")
    assert name == "ephmon-20260102T032045Z-critical.json"
    assert (status.written, failures(status)) == (1, {})


def test_what_is_kept_is_reported_for_as_long_as_it_lasts(place: Path) -> None:
    keeper = Keeper(place)
    keeper.update(CRITICAL)
    for _ in range(3):
        keeper.now += PAUSE_SECONDS
        assert keeper.update(CRITICAL).written == 1


def test_without_a_directory_nothing_is_kept_looked_at_or_counted() -> None:
    incidents = IncidentLog(lambda: 0.0, lambda: TAKEN_AT)
    incidents.configure(IncidentsConfig())
    incidents.update(make_report(alerts=[CRITICAL]), ())

    assert incidents.status() is None
    assert "incident" not in [thread.name for thread in threading.enumerate()]


def test_a_disk_that_hangs_delays_nobody(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Meanwhile nothing else is written, and what happens meanwhile is not forgotten."""
    released, write = threading.Event(), Folder.write

    def hang(folder: Folder, content: bytes, *, reason: str, at: float) -> str:
        assert released.wait(60)
        return write(folder, content, reason=reason, at=at)

    monkeypatch.setattr(Folder, "write", hang)
    keeper = Keeper(place)
    for _ in range(3):
        keeper.log.update(make_report(alerts=[CRITICAL]), ())
    keeper.now += PAUSE_SECONDS
    keeper.log.update(make_report(alerts=[CRITICAL, OTHER]), ())
    keeper.log.configure(replace(keeper.config, max_files=3))

    assert list(place.iterdir()) == []
    assert [thread.name for thread in threading.enumerate()].count("incident") == 1
    released.set()
    assert keeper.wait().written == 1
    assert keeper.update(CRITICAL, OTHER).written == 2


def test_a_disk_that_hangs_for_a_minute_is_reported_and_can_be_left(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    released, write, other = threading.Event(), Folder.write, tmp_path / "other"
    other.mkdir()

    def hang(folder: Folder, content: bytes, *, reason: str, at: float) -> str:
        assert folder.directory == str(other) or released.wait(60)
        return write(folder, content, reason=reason, at=at)

    monkeypatch.setattr(Folder, "write", hang)
    keeper = Keeper(place)
    keeper.log.update(make_report(alerts=[CRITICAL]), ())
    keeper.now += HUNG_SECONDS
    for _ in range(3):
        keeper.log.update(make_report(alerts=[CRITICAL]), ())
    status = keeper.log.status()

    assert status is not None
    assert (status.written, failures(status)) == (0, {"system": 1})
    assert said(caplog) == [HANGS]
    keeper.log.configure(replace(keeper.config, directory=str(other)))

    def kept() -> list[Path]:
        keeper.log.update(make_report(alerts=[CRITICAL]), ())
        return list(other.glob("*.json"))

    assert len(eventually(kept, bool)) == 1
    released.set()


def test_a_directory_that_cannot_be_used_is_said_before_it_is_needed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    status = Keeper(tmp_path / "absent").wait()

    (line,) = said(caplog)
    assert line.startswith(f"Incidents cannot be written: {tmp_path}/absent cannot be written (No such file")
    assert failures(status) == {}  # nothing is lost yet


def test_what_keeps_failing_is_counted_each_time_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keeper = Keeper(tmp_path / "absent")
    for _ in range(3):
        status = keeper.update(CRITICAL)
        assert failures(keeper.update(CRITICAL)) == failures(status)  # the next attempt comes after the pause
        keeper.now += PAUSE_SECONDS
    assert failures(status) == {"no_directory": 3}
    assert len(said(caplog)) == 1

    (tmp_path / "absent").touch()
    assert failures(keeper.update(CRITICAL)) == {"no_directory": 4}
    assert [line.partition("(")[2].partition(")")[0] for line in said(caplog)] == [
        "No such file or directory",
        "Not a directory",
    ]


def test_what_could_not_be_kept_is_kept_when_it_can(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keeper = Keeper(tmp_path / "later")
    keeper.update(CRITICAL)
    (tmp_path / "later").mkdir()
    keeper.now += PAUSE_SECONDS

    with caplog.at_level(logging.INFO):
        assert keeper.update(CRITICAL).written == 1
    assert said(caplog, logging.INFO) == ["An incident was written."]


def test_a_restart_begins_no_new_ten_minutes(place: Path) -> None:
    Keeper(place).update(CRITICAL)
    again = Keeper(place)
    again.now += 5

    assert again.update(CRITICAL).written == 0
    again.now += PAUSE_SECONDS - 6
    assert again.update(CRITICAL).written == 0
    again.now += 2
    assert again.update(CRITICAL).written == 1
    assert len(names(str(place))) == 2


def test_a_reload_changes_the_directory_and_the_bounds(place: Path, tmp_path: Path) -> None:
    keeper = Keeper(place)
    keeper.update(CRITICAL)
    other = tmp_path / "other"
    other.mkdir()
    keeper.log.configure(IncidentsConfig(directory=str(other), max_files=1))
    keeper.wait()
    for alerts in ([CRITICAL, OTHER], [], [CRITICAL]):
        keeper.now += PAUSE_SECONDS
        keeper.update(*alerts)

    assert (len(names(str(place))), len(names(str(other)))) == (1, 1)
    assert keeper.wait().written == 3


def test_a_reload_can_end_it_and_begin_it(place: Path) -> None:
    keeper = Keeper(place)
    keeper.log.configure(IncidentsConfig())
    keeper.log.update(make_report(alerts=[CRITICAL]), ())
    assert keeper.log.status() is None

    keeper.log.configure(keeper.config)
    keeper.wait()
    assert keeper.update(CRITICAL).written == 1


def test_a_reload_that_begins_it_again_says_again_what_is_wrong(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keeper = Keeper(tmp_path / "absent")
    for config in (IncidentsConfig(), keeper.config):
        keeper.log.configure(config)
    keeper.wait()

    assert len(said(caplog)) == 2


def test_a_defect_costs_the_incident_alone_and_is_said_with_its_place(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(incident_log, "document", fail)

    assert failures(Keeper(place).update(CRITICAL)) == {"defect": 1}
    assert said(caplog)[0].startswith(
        "Incidents cannot be written: a defect of ephmon, please report it: ZeroDivisionError in "
    )


def test_without_a_thread_to_be_had_it_has_failed(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    keeper = Keeper(place)

    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)

    assert failures(keeper.update(CRITICAL)) == {"system": 1}
    assert said(caplog) == [f"Incidents cannot be written: No thread can be started now; {threads.ADVICE}."]


def test_closing_waits_for_what_is_being_written(place: Path) -> None:
    keeper = Keeper(place)
    keeper.log.update(make_report(alerts=[CRITICAL]), ())
    keeper.log.close()

    assert len(names(str(place))) == 1
    assert stat.S_IMODE((place / names(str(place))[0]).stat().st_mode) == 0o640
