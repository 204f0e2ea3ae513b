"""Faults of time: signals at any moment, a process that stands still, clocks that jump, a crash."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.delivery import delivering
from tests.faults.case import CONFIG, Check, Ending, Fault, Refusal, Start, parameters, run_with_configuration
from tests.faults.checks import POLLS_GO_ON
from tests.faults.hastened import hastened
from tests.faults.stage import HERE
from tests.faults.starts import HOOK, HOOK_PORT
from tests.faults.tools import status_of
from tests.processes import eventually, python
from tests.sockets import Recipe, open_sockets

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults.case import Case
    from tests.faults.stage import Stage

MINUTE, DAY = 60.0, 86_400.0
ALERT = 'alerts_active{severity="critical"}'


def _signalled(number: signal.Signals, module: str) -> Start:
    """Return a start in which a signal comes as the daemon imports a module."""
    script = f"""
import os, runpy, sys
class Signal:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), {int(number)})
sys.meta_path.insert(0, Signal())
runpy.run_module("ephmon", run_name="__main__", alter_sys=True)
"""
    words = len(python())
    return Start(
        command=lambda folder: python("-c", script, *run_with_configuration(folder)[words + 2 :]), is_polling=False
    )


@contextmanager
def _starting(stage: Stage) -> Iterator[None]:
    stage.daemon.wait_for(poll_success=1)
    yield


def _wait_for_nothing(_stage: Stage) -> None:
    pass


@contextmanager
def _stopped(stage: Stage) -> Iterator[None]:
    """Stop the process for what it takes for a minute, and let it go on."""
    stage.fill()
    stage.wait_for_value(ALERT, 1)
    stage.daemon.signal(signal.SIGSTOP)
    eventually(lambda: status_of(stage.daemon.pid)["State"], lambda state: state.startswith("T"))
    (stage.folder / "monotonic").write_text(str(MINUTE), encoding="ascii")
    (stage.folder / "wall").write_text(str(MINUTE), encoding="ascii")
    stage.daemon.signal(signal.SIGCONT)
    yield


@contextmanager
def _clock(stage: Stage, clock: str, seconds: float) -> Iterator[None]:
    """Let an alert fire and a clock jump."""
    stage.fill()
    stage.wait_for_value(ALERT, 1)
    stage.pass_time(seconds, clock)
    yield


def _stays_one_alert(stage: Stage) -> None:
    assert stage.value(ALERT) == 1
    stage.daemon.wait_for_polls(3)
    assert stage.value(ALERT) == 1
    assert len(stage.ns.call(delivering.posts, "hook")) == 1


@contextmanager
def _killed(stage: Stage) -> Iterator[None]:
    stage.daemon.signal(signal.SIGKILL)
    stage.daemon.wait()
    stage.start(Start())
    yield


def _take_the_port(stage: Stage) -> None:
    stage.ns.call(open_sockets, Recipe(bind=(HERE, 19100), listen=1), tag="holder", limit=1)


def _receive(stage: Stage) -> None:
    stage.ns.call(delivering.receive, "hook", HOOK_PORT)


STAYS_ONE_ALERT = Check("The alert that fires stays, and is told once.", _stays_one_alert)
WITH_CLOCKS = Start(config=CONFIG + HOOK, command=hastened, prepare=_receive)


def _jump(name: str, done: str, clock: str, seconds: float) -> Fault:
    return Fault(
        name=name,
        done=done,
        inject=partial(_clock, clock=clock, seconds=seconds),
        start=WITH_CLOCKS,
        meanwhile=[STAYS_ONE_ALERT],
    )


CASES: tuple[Case, ...] = (
    *(
        Fault(
            name=f"SIGHUP as it imports {module}",
            done="The signal comes before the daemon runs.",
            inject=_starting,
            start=_signalled(signal.SIGHUP, module),
            meanwhile=[POLLS_GO_ON],
        )
        for module in ("ephmon.cli", "ephmon.daemon.loop")
    ),
    *(
        Ending(
            name=f"{number.name} as it imports {module}",
            done="The signal comes before the daemon runs.",
            start=_signalled(number, module),
            inject=_wait_for_nothing,
        )
        for number in (signal.SIGINT, signal.SIGTERM)
        for module in ("ephmon.cli", "ephmon.daemon.loop")
    ),
    Fault(
        name="the process stands still for a minute",
        done="SIGSTOP, clocks that are a minute ahead, SIGCONT.",
        inject=_stopped,
        start=WITH_CLOCKS,
        meanwhile=[STAYS_ONE_ALERT],
    ),
    _jump("the wall clock goes forward", "It jumps by a day while an alert fires.", "wall", DAY),
    _jump("the wall clock goes back", "It jumps back by a day while an alert fires.", "wall", -DAY),
    _jump("the host sleeps", "The monotonic clock jumps by a day while an alert fires.", "monotonic", DAY),
    Fault(
        name="it is killed",
        done="SIGKILL, and another start.",
        inject=_killed,
        meanwhile=[POLLS_GO_ON],
    ),
    Refusal(
        name="its port is taken",
        done="Another program listens on it.",
        start=Start(prepare=_take_the_port),
        says="ephmon: Cannot listen on 127.0.0.1:19100: the port is in use; stop the program that",
    ),
)


@pytest.mark.parametrize("case", parameters(CASES))
def test_ephmon_does_and_says_what_it_should(case: Case, stage: Stage) -> None:
    case.play(stage)
