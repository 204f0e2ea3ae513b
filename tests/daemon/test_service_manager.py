"""What the service manager is told arrives as systemd reads it, and nobody who listens badly holds the daemon up."""

from __future__ import annotations

import logging
import os
import socket
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from ephmon.daemon.service_manager import LONGEST_STATUS, ServiceManager, status_line
from ephmon.model.pace import BudgetKey, Pace
from tests.builders import make_alert, make_pool, make_report

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PID = 4711


@contextmanager
def listening(name: str) -> Iterator[socket.socket]:
    """Bind a datagram socket as a service manager does; `@` stands for the null byte of an abstract address."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{name[1:]}" if name.startswith("@") else name)
        listener.setblocking(False)
        yield listener


def messages(listener: socket.socket) -> list[str]:
    """Return what has arrived, in order."""
    found = []
    while True:
        try:
            found.append(listener.recv(1 << 16).decode())
        except BlockingIOError:
            return found


@contextmanager
def supervised(folder: Path, **environ: str) -> Iterator[tuple[ServiceManager, socket.socket]]:
    name = str(folder / "notify")
    with listening(name) as listener:
        manager = ServiceManager.from_environment({"NOTIFY_SOCKET": name, **environ}, PID)
        yield manager, listener
        manager.stopping()


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_the_socket_is_found_by_path_and_by_abstract_address(tmp_path: Path, kind: str) -> None:
    name = str(tmp_path / "notify") if kind == "path" else f"@ephmon-test-{os.getpid()}"
    with listening(name) as listener:
        manager = ServiceManager.from_environment({"NOTIFY_SOCKET": name}, PID)
        manager.reloading(12.5)
        manager.stopping()

        assert messages(listener) == ["RELOADING=1\nMONOTONIC_USEC=12500000", "STOPPING=1\nSTATUS=Stopping."]


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:9999"}])
def test_where_nobody_listens_nothing_is_said_and_nothing_fails(environ: dict[str, str]) -> None:
    manager = ServiceManager.from_environment({"WATCHDOG_USEC": "1000000", **environ}, PID)
    manager.wake_up(5.0)
    manager.ready(make_report())
    manager.reloading(1.0)
    manager.stopping()

    assert manager.longest_sleep_seconds == float("inf")


def test_readiness_is_said_once_and_the_status_when_it_changes(tmp_path: Path) -> None:
    quiet, busy = make_report(listed=[]), make_report(listed=[make_pool()])
    with supervised(tmp_path) as (manager, listener):
        for report in (quiet, quiet, busy, busy):
            manager.ready(report)

        assert messages(listener) == [
            "READY=1\nSTATUS=No pool holds enough ports to be listed.",
            f"STATUS={status_line(busy)}",
        ]


def test_readiness_is_said_again_after_a_reload_though_the_status_is_the_same(tmp_path: Path) -> None:
    with supervised(tmp_path) as (manager, listener):
        manager.ready(make_report(listed=[]))
        manager.reloading(1.0)
        manager.ready(make_report(listed=[]))

        ready = "READY=1\nSTATUS=No pool holds enough ports to be listed."
        assert messages(listener) == [ready, "RELOADING=1\nMONOTONIC_USEC=1000000", ready]


def test_readiness_that_did_not_arrive_is_said_again(tmp_path: Path) -> None:
    name = str(tmp_path / "notify")
    manager = ServiceManager.from_environment({"NOTIFY_SOCKET": name}, PID)
    manager.ready(make_report(listed=[]))
    with listening(name) as listener:
        manager.ready(make_report(listed=[]))
        manager.stopping()

        assert messages(listener)[0].startswith("READY=1\n")


def test_a_service_manager_that_reads_nothing_holds_nobody_up(tmp_path: Path) -> None:
    """Its queue is full after net.unix.max_dgram_qlen datagrams; a send that waits would never return."""
    with supervised(tmp_path, WATCHDOG_USEC="60000000") as (manager, listener):
        for _ in range(5000):
            manager.wake_up(5.0)

        assert "WATCHDOG=1" in messages(listener)


@pytest.mark.parametrize(
    ("environ", "longest_sleep"),
    [
        ({"WATCHDOG_USEC": "60000000"}, 30.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(PID)}, 1.5),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, float("inf")),
        ({"WATCHDOG_USEC": "0"}, float("inf")),
        ({"WATCHDOG_USEC": "soon"}, float("inf")),
        ({"WATCHDOG_USEC": "\N{SUPERSCRIPT TWO}"}, float("inf")),
        ({}, float("inf")),
    ],
)
def test_the_loop_wakes_twice_while_the_watchdog_of_this_process_waits(
    tmp_path: Path, environ: dict[str, str], longest_sleep: float
) -> None:
    with supervised(tmp_path, **environ) as (manager, listener):
        manager.wake_up(5.0)

        assert manager.longest_sleep_seconds == longest_sleep
        assert ("WATCHDOG=1" in messages(listener)) is (longest_sleep < float("inf"))


def test_the_watchdog_waits_for_the_deadline_of_a_poll_and_no_longer_than_it_must(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each change is one line in the log."""
    monkeypatch.setattr(logging.getLogger("ephmon"), "propagate", True)
    with supervised(tmp_path, WATCHDOG_USEC="60000000") as (manager, listener), caplog.at_level("INFO", "ephmon"):
        for deadline_seconds in (5.0, 5.0, 60.0, 60.0, 5.0):
            manager.wake_up(deadline_seconds)

        assert messages(listener) == [
            "EXTEND_TIMEOUT_USEC=20000000",
            "WATCHDOG=1",
            "WATCHDOG=1",
            "WATCHDOG=1",
            "WATCHDOG_USEC=130000000",
            "WATCHDOG=1",
            "WATCHDOG=1",
            "WATCHDOG_USEC=60000000",
        ]
    assert len(caplog.records) == 2


# --- the status ---------------------------------------------------------------------------------------------------


def test_the_status_names_the_worst_pool() -> None:
    pools = [make_pool(in_use=26000, blocked=0), make_pool(destination="10.0.0.8")]

    assert status_line(make_report(listed=pools)) == (
        "Worst pool: tcp_connect from 10.0.0.1 to 10.0.0.9:443, 92.1 % used, 2232 ports remain."
    )


def test_the_status_says_that_polls_are_stretched_and_how_many_alerts_fire() -> None:
    pace = Pace(full=12.34, limited_by=BudgetKey.USUAL)
    report = replace(make_report(listed=[], alerts=[make_alert()]), pace=pace)

    assert status_line(report) == (
        "No pool holds enough ports to be listed. 1 alert fires. "
        "Polls come every 12.3 s instead of 5 s, because poll.cpu_budget allows no more."
    )


def test_the_status_of_a_failed_first_poll_is_its_reason_and_no_figure() -> None:
    report = make_report(success=False, error="It is masked.", taken_at=None, listed=[])

    assert status_line(report) == (
        "The last poll failed: It is masked. The kernel has not been read successfully yet, so there are no figures."
    )


def test_the_status_of_a_failed_later_poll_says_how_old_its_figures_are() -> None:
    report = make_report(success=False, error="It is masked.", listed=[])

    assert status_line(report) == (
        "The last poll failed: It is masked. The figures are of 2026-01-02T03:04:05.006Z. "
        "No pool holds enough ports to be listed."
    )


def test_the_status_is_one_line_that_systemd_takes_whatever_an_error_holds() -> None:
    report = make_report(success=False, error="a\nREADY=1\n\x1b[31m\udcff" + "\N{SNOWMAN}" * 9999, listed=[])
    status = status_line(report)

    assert status.isprintable()
    assert len(status) <= LONGEST_STATUS
    assert len(f"READY=1\nSTATUS={status}".encode()) <= 4096
    assert status.endswith("No pool holds enough ports to be listed.")
