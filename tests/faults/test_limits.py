"""Faults of what a process may have: threads, descriptors, memory, the size of files."""

from __future__ import annotations

import time
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.delivery import delivering
from tests.faults.case import CONFIG, Fault, Refusal, Start, parameters
from tests.faults.checks import (
    ALERT_FIRES,
    ALERT_IS_DELIVERED,
    KEEPS_THE_CONFIGURATION,
    POLLS_GO_ON,
    SAYS_THAT_POLLS_FAIL,
    WRITES_THE_INCIDENT,
)
from tests.faults.hastened import hastened
from tests.faults.starts import HOOK, HOOK_PORT, INCIDENTS, PAUSE_SECONDS, make_incidents
from tests.faults.tools import as_user, forbidding, limited, set_limit, status_of
from tests.machine import NEEDED_DESCRIPTORS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults.case import Case
    from tests.faults.stage import Stage

ANOTHER_USER = {"only_root": "starts the daemon as another user"}
FREE_DESCRIPTORS = 2


@contextmanager
def _no_thread(stage: Stage) -> Iterator[None]:
    """Let an alert fire while no thread can be started, and while its receiver is away."""
    with limited(stage, "nproc", 1):
        stage.fill()
        stage.wait_for_value('notifications_failed_total{reason="connection",receiver="webhook"}', 1)
        yield
    stage.ns.call(delivering.receive, "hook", HOOK_PORT)


@contextmanager
def _fill_without_threads(stage: Stage) -> Iterator[None]:
    with limited(stage, "nproc", 1):
        stage.fill()
        yield


@contextmanager
def _threads_for_delivery_alone(stage: Stage) -> Iterator[None]:
    """Let an alert fire of a daemon that could start no thread beyond its own since its start."""
    stage.ns.call(delivering.receive, "hook", HOOK_PORT)
    stage.fill()
    yield
    set_limit(stage, "nproc", 100)


@contextmanager
def _no_descriptor(stage: Stage) -> Iterator[None]:
    with limited(stage, "nofile", 3):
        yield


def _lasting_descriptors(stage: Stage) -> set[int]:
    """Return the descriptors that it has all the time, and not only for a poll or a scrape."""
    lasting = set(range(NEEDED_DESCRIPTORS))
    for _ in range(30):
        lasting &= {int(link.name) for link in Path(f"/proc/{stage.daemon.pid}/fd").iterdir()}
        time.sleep(0.01)
    return lasting


@contextmanager
def _receiver_without_descriptor(stage: Stage) -> Iterator[None]:
    """Add a receiver by a reload while two descriptors are free: too few for an event loop."""
    taken = _lasting_descriptors(stage)
    free = (number for number in count() if number not in taken)
    with limited(stage, "nofile", next(islice(free, FREE_DESCRIPTORS, None))):
        stage.reload(CONFIG + HOOK)
        yield
    stage.reload(CONFIG)


@contextmanager
def _no_memory(stage: Stage) -> Iterator[None]:
    used = int(status_of(stage.daemon.pid)["VmSize"].split()[0]) * 1024
    with limited(stage, "as", used):
        yield


@contextmanager
def _no_memory_at_reload(stage: Stage) -> Iterator[None]:
    used = int(status_of(stage.daemon.pid)["VmSize"].split()[0]) * 1024
    big = CONFIG + "".join(f"# {'x' * 1000}\n" for _ in range(900))
    with limited(stage, "as", used):
        stage.reload(big)
        stage.daemon.wait_for_line("The configuration is kept as it was: ")
    yield
    stage.reload(CONFIG)


@contextmanager
def _no_large_file(stage: Stage) -> Iterator[None]:
    with limited(stage, "fsize", 0):
        stage.fill()
        stage.daemon.wait_for_line("Incidents cannot be written: ")
        yield
    stage.pass_time(PAUSE_SECONDS)


@contextmanager
def _no_thread_for_an_incident(stage: Stage) -> Iterator[None]:
    with limited(stage, "nproc", 1):
        stage.fill()
        stage.daemon.wait_for_line("Incidents cannot be written: ")
        yield
    stage.pass_time(PAUSE_SECONDS)


CASES: tuple[Case, ...] = (
    Fault(
        name="no thread as an alert fires",
        done="RLIMIT_NPROC is 1 as the alert fires, and its receiver comes up later.",
        inject=_no_thread,
        start=Start(config=CONFIG + HOOK, prefix=as_user(), command=hastened),
        meanwhile=[POLLS_GO_ON, ALERT_FIRES],
        afterwards=[ALERT_IS_DELIVERED],
        needs=ANOTHER_USER,
    ),
    Fault(
        name="no thread for names",
        done="RLIMIT_NPROC is 4 from the start on: none is left to look up a name.",
        inject=_threads_for_delivery_alone,
        start=Start(config=CONFIG + HOOK, prefix=as_user("prlimit", "--nproc=4:100", "--"), command=hastened),
        meanwhile=[POLLS_GO_ON, ALERT_FIRES],
        afterwards=[ALERT_IS_DELIVERED],
        needs=ANOTHER_USER,
    ),
    Fault(
        name="no thread to look for processes",
        done="RLIMIT_NPROC is 1 as an alert fires.",
        inject=_fill_without_threads,
        start=Start(prefix=as_user()),
        meanwhile=[POLLS_GO_ON, ALERT_FIRES],
        says=["Not all processes that hold ports can be named: …allow ephmon more threads"],
        needs=ANOTHER_USER,
    ),
    Fault(
        name="no thread for an incident",
        done="RLIMIT_NPROC is 1 as an incident is due.",
        inject=_no_thread_for_an_incident,
        start=Start(config=CONFIG + INCIDENTS, prefix=as_user(), command=hastened, prepare=make_incidents),
        meanwhile=[POLLS_GO_ON, ALERT_FIRES],
        afterwards=[WRITES_THE_INCIDENT],
        says=["Incidents cannot be written: …allow ephmon more threads"],
        needs=ANOTHER_USER,
    ),
    Fault(
        name="files may have no content",
        done="RLIMIT_FSIZE is 0 as an incident is due.",
        inject=_no_large_file,
        start=Start(config=CONFIG + INCIDENTS, command=hastened, prepare=make_incidents),
        meanwhile=[POLLS_GO_ON, ALERT_FIRES],
        afterwards=[WRITES_THE_INCIDENT],
        says=["Incidents cannot be written: …File too large"],
    ),
    Fault(
        name="no descriptor",
        done="RLIMIT_NOFILE is 3 while it runs.",
        inject=_no_descriptor,
        meanwhile=[SAYS_THAT_POLLS_FAIL],
        says=["The poll failed: …Too many open files", "Polls succeed again."],
    ),
    Fault(
        name="no descriptor for a new receiver",
        done="RLIMIT_NOFILE leaves two as a reload adds a receiver.",
        inject=_receiver_without_descriptor,
        meanwhile=[KEEPS_THE_CONFIGURATION, POLLS_GO_ON],
        says=["The configuration is kept as it was: The delivery thread cannot be started. Too many open files"],
    ),
    Fault(
        name="no memory for a poll",
        done="RLIMIT_AS is what it has.",
        inject=_no_memory,
        meanwhile=[SAYS_THAT_POLLS_FAIL],
        says=["The poll failed: …memory"],
    ),
    Fault(
        name="no memory for a reload",
        done="RLIMIT_AS is what it has, and a configuration of 900 KB is reloaded.",
        inject=_no_memory_at_reload,
        meanwhile=[KEEPS_THE_CONFIGURATION],
        says=["The configuration is kept as it was: …memory"],
    ),
    Refusal(
        name="five descriptors",
        done="RLIMIT_NOFILE is 5 when it starts.",
        start=Start(prefix=("prlimit", "--nofile=5", "--")),
        says="ephmon: …Too many open files",
    ),
    Refusal(
        name="six descriptors",
        done="RLIMIT_NOFILE is 6 when it starts.",
        start=Start(prefix=("prlimit", "--nofile=6", "--")),
        says="ephmon: …Too many open files",
    ),
    Refusal(
        name="no second thread",
        done="RLIMIT_NPROC is 1 when it starts.",
        start=Start(prefix=as_user("prlimit", "--nproc=1", "--")),
        says="ephmon: …thread",
        needs=ANOTHER_USER,
    ),
    Refusal(
        name="bind() is forbidden",
        done="seccomp lets it fail with EPERM.",
        start=Start(prefix=forbidding("refuse(seccomp.BIND)")),
        says="ephmon: Cannot listen on 127.0.0.1:19100: Operation not permitted",
    ),
    Refusal(
        name="getsockname() is forbidden",
        done="seccomp lets it fail with EPERM.",
        start=Start(prefix=forbidding("refuse(seccomp.GETSOCKNAME)")),
        says="ephmon: Cannot listen on 127.0.0.1:19100: Operation not permitted",
    ),
)


@pytest.mark.parametrize("case", parameters(CASES))
def test_ephmon_does_and_says_what_it_should(case: Case, stage: Stage) -> None:
    case.play(stage)
