"""What keeps owners from being known fails no poll and holds none up, and while nothing alerts nothing is done."""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ephmon.daemon import owner_reader
from ephmon.daemon.owner_watch import CUT, OwnerWatch
from ephmon.errors import StopRequestedError
from ephmon.facts.sockets import Backend, Protocol
from ephmon.kernel.proc.processes import Search
from ephmon.model.collectors import Collector, Health
from ephmon.model.report import ReloadStatus, Report
from ephmon.model.rules import Rules
from ephmon.model.state import State, initial_state
from tests.builders import make_alert, make_owners, make_pool, make_report
from tests.namespaces import Namespace

if TYPE_CHECKING:
    from collections.abc import Callable

    from ephmon.model.report import Report

PROC = Path("/proc")


def state_of(report: Report) -> State:
    return replace(initial_state(Rules(), ReloadStatus(successful=True, succeeded_at=0.0)), report=report)


def alerting() -> State:
    return state_of(make_report(alerts=[make_alert(make_pool())]))


def owners_of(report: Report) -> Health | None:
    return report.collectors.get(Collector.OWNERS)


def processes_of(report: Report) -> Health | None:
    return report.collectors.get(Collector.PROCESSES)


def watch(
    proc: Path = PROC, clock: Callable[[], float] = time.monotonic, wanted: Callable[[], bool] = lambda: True
) -> OwnerWatch:
    return OwnerWatch(proc, clock, wanted)


def test_while_nothing_alerts_nothing_is_read_or_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no procfs to read, and what would read it cannot be imported."""
    monkeypatch.setitem(sys.modules, "ephmon.daemon.owner_reader", None)
    before = make_report(owners={make_pool().key: make_owners(("haproxy.service", 3))})
    after = watch(tmp_path).add_owners(state_of(before))

    assert (after.owners, owners_of(after), processes_of(after)) == ({}, Health(available=True), None)


def test_while_nothing_alerts_it_is_known_all_the_same_whether_owners_could_be_reported() -> None:
    assert owners_of(watch().add_owners(state_of(make_report(backends={Protocol.TCP: Backend.PROCFS})))) == Health(
        available=False
    )
    assert owners_of(watch().add_owners(state_of(make_report(backends={Protocol.UDP: Backend.INET_DIAG})))) == Health(
        available=False
    )


def test_what_the_kernel_refuses_stands_in_the_report(tmp_path: Path) -> None:
    after = watch(tmp_path).add_owners(alerting())

    assert after.success
    assert after.owners == {}
    health = owners_of(after)
    assert health is not None
    assert not health.available
    assert str(tmp_path) in (health.reason or "")


def test_what_takes_too_long_is_cut_and_said() -> None:
    """The clock goes on by a minute each time that it is looked at."""
    steps = count(0.0, 60.0)
    after = watch(clock=lambda: next(steps)).add_owners(alerting())

    assert (after.owners, owners_of(after)) == ({}, Health(available=False, reason=CUT))


def test_who_is_reported_to_stop_stops() -> None:
    with pytest.raises(StopRequestedError):
        watch(wanted=lambda: False).add_owners(alerting())


def test_a_poll_does_not_wait_for_processes_and_they_are_looked_for_once_for_an_alert() -> None:
    with Namespace() as ns:
        during, after, searched = ns.call(look_while_a_search_goes_on)

    assert (processes_of(during), owners_of(during)) == (None, Health(available=True))
    assert processes_of(after) == Health(available=False, reason="Not permitted.")
    assert searched == [[make_pool().key], [make_pool(destination_port=80).key]]


def look_while_a_search_goes_on() -> tuple[Report, Report, list[list[object]]]:
    """Look three times: when the search begins, while it goes on and another pool alerts, and when it has ended."""
    goes_on = threading.Event()
    searched: list[list[object]] = []

    def search() -> list[Search]:
        goes_on.wait(60)
        return [Search(processes=(), is_complete=False, problem="Not permitted.")]

    def process_search(_self: object, held: list[object]) -> Callable[[], list[Search]]:
        searched.append(held)
        return search

    two = state_of(make_report(alerts=[make_alert(make_pool()), make_alert(make_pool(destination_port=80))]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner_reader.OwnerReader, "process_search", process_search)
        daemon = watch()
        daemon.add_owners(alerting())
        during = daemon.add_owners(two)
        goes_on.set()
        assert daemon._thread is not None
        daemon._thread.join(60)
        after = daemon.add_owners(two)
        daemon.add_owners(two)
    return during, after, searched


def test_a_search_that_ends_by_a_defect_says_so_in_the_health_of_processes() -> None:
    looking = watch()

    def fail() -> list[Search]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):  # for the log of the thread
        looking._search([], fail)

    health = processes_of(looking.add_owners(state_of(make_report())))
    assert health is not None
    assert not health.available
    assert health.reason is not None
    assert health.reason.startswith("A defect of ephmon, please report it: ZeroDivisionError in ")
