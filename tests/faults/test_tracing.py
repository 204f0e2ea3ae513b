"""Faults of tracefs, through which failed connect() calls are counted, and floods of such calls."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.faults.case import CONFIG, Check, Fault, Start, parameters
from tests.faults.checks import POLLS_GO_ON
from tests.faults.hastened import hastened
from tests.faults.tools import after, in_its_mounts
from tests.processes import eventually
from tests.tracing import HERE, exhaust, failures, seeing_tracefs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults.case import Case
    from tests.faults.stage import Stage

RETRY_SECONDS = 61
NEEDS = {"only_root": "mounts tracefs", "host_pids": "the kernel names callers of connect() by them"}
AVAILABLE = 'collector_available{collector="exhaustions"}'
OWN = 'connect_exhaustions_total{netns="own"}'
LOST = "exhaustion_events_lost_total"
FLOOD = 20_000
STALE = "ephmon-1-0123abcd"
COUNTING = Start(config=CONFIG + "exhaustions: {enabled: on}\n", prefix=tuple(seeing_tracefs()), command=hastened)


def _instances(stage: Stage) -> Path:
    return Path(f"/proc/{stage.daemon.pid}/root/sys/kernel/tracing/instances")


@contextmanager
def _switched_off(stage: Stage) -> Iterator[None]:
    (instance,) = _instances(stage).glob(f"ephmon-{stage.daemon.pid}-*")
    (instance / "tracing_on").write_text("0", encoding="ascii")
    stage.daemon.wait_for(**{AVAILABLE: 0})
    yield
    stage.pass_time(RETRY_SECONDS)


@contextmanager
def _mounted_later(stage: Stage) -> Iterator[None]:
    stage.daemon.wait_for(**{AVAILABLE: 0})
    yield
    in_its_mounts(stage, "umount", "/sys/kernel/tracing")
    in_its_mounts(stage, *seeing_tracefs()[-4:-1], "true")
    stage.pass_time(RETRY_SECONDS)


@contextmanager
def _killed(stage: Stage) -> Iterator[None]:
    """Kill the daemon, which leaves its instance behind, and start another."""
    left = next(_instances(stage).glob(f"ephmon-{stage.daemon.pid}-*")).name
    stage.daemon.signal(signal.SIGKILL)
    stage.daemon.wait()
    stage.start(COUNTING)
    stage.daemon.wait_for(**{AVAILABLE: 1})
    assert not (_instances(stage) / left).exists()
    yield


@contextmanager
def _flood(stage: Stage) -> Iterator[None]:
    exhaust(stage.ns, HERE)
    yield


@contextmanager
def _flood_while_stopped(stage: Stage) -> Iterator[None]:
    exhaust(stage.ns, HERE)
    stage.daemon.signal(signal.SIGSTOP)
    made = stage.ns.call(failures, HERE, FLOOD)
    stage.daemon.signal(signal.SIGCONT)
    _require_all(stage, made)
    yield


def _require_all(stage: Stage, made: int) -> None:
    eventually(lambda: stage.value(OWN) + stage.value(LOST), lambda counted: counted >= made)


def _counts_every_call(stage: Stage) -> None:
    _require_all(stage, stage.ns.call(failures, HERE, FLOOD))


def _counts_again(stage: Stage) -> None:
    stage.daemon.wait_for(**{AVAILABLE: 1})


COUNTS_AGAIN = Check("A minute later it counts again.", _counts_again)


@contextmanager
def _failing_call(stage: Stage) -> Iterator[None]:
    exhaust(stage.ns, HERE)
    yield


def _tells_its_own(stage: Stage) -> None:
    stage.wait_for_value(OWN, 1)
    stage.wait_for_value('alerts_active{severity="critical"}', 1)


CASES: tuple[Case, ...] = (
    Fault(
        name="tracing is switched off",
        done="Root writes 0 to `tracing_on` of its instance.",
        inject=_switched_off,
        start=COUNTING,
        meanwhile=[POLLS_GO_ON],
        afterwards=[COUNTS_AGAIN],
        says=[
            "Failed connect() calls are not counted: …tracing_on is off; switch it on",
            "Failed connect() calls are counted.",
        ],
        needs=NEEDS,
    ),
    Fault(
        name="tracefs is hidden",
        done="An empty file system is mounted over it when it starts.",
        inject=_mounted_later,
        start=Start(config=COUNTING.config, command=hastened, prefix=after("mount -t tmpfs none /sys/kernel/tracing")),
        meanwhile=[POLLS_GO_ON],
        afterwards=[COUNTS_AGAIN],
        says=["Failed connect() calls are not counted: No tracefs is mounted at /sys/kernel/tracing; mount one: "],
        needs=NEEDS,
    ),
    Fault(
        name="it was killed while it counted",
        done="SIGKILL leaves its tracing instance behind; then another start.",
        inject=_killed,
        start=COUNTING,
        meanwhile=[POLLS_GO_ON, Check("The new daemon removes what was left and counts.", _counts_again)],
        needs=NEEDS,
    ),
    Fault(
        name="a flood of failed calls",
        done=f"A client makes {FLOOD:,} connect() calls that fail, as fast as it can.",
        inject=_flood,
        start=COUNTING,
        meanwhile=[Check("It counts every call, or counts it as lost.", _counts_every_call), POLLS_GO_ON],
        needs=NEEDS,
    ),
    Fault(
        name="a flood while it stands still",
        done=f"{FLOOD:,} connect() calls fail between SIGSTOP and SIGCONT.",
        inject=_flood_while_stopped,
        start=COUNTING,
        meanwhile=[Check("It counts every call, or counts it as lost.", lambda _: None), POLLS_GO_ON],
        needs=NEEDS,
    ),
    Fault(
        name="clocks of a time namespace",
        done="Its monotonic clock and that of its boot are 100,000 s ahead (man 7 time_namespaces); then a call fails.",
        inject=_failing_call,
        start=Start(
            config=COUNTING.config,
            prefix=("unshare", "--time", "--monotonic", "100000", "--boottime", "100000", "--", *seeing_tracefs()),
        ),
        meanwhile=[Check("It counts the call as its own and alerts.", _tells_its_own)],
        needs=NEEDS,
    ),
)


@pytest.mark.parametrize("case", parameters(CASES))
def test_ephmon_does_and_says_what_it_should(case: Case, stage: Stage) -> None:
    case.play(stage)
