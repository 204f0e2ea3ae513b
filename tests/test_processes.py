"""Programs that a test starts: how it fails when one of them ends by itself."""

from __future__ import annotations

import os
import re
import signal
from typing import NoReturn

import pytest

from tests.namespaces import Namespace
from tests.processes import Program, Running, eventually

ENDS = ["sh", "-c", "echo there is no tracefs >&2; exit 32"]
HOW = r"ended with status 32:\nthere is no tracefs$"
STAYS = ["sleep", "600"]


def test_whoever_waits_is_reported_at_once_why_a_program_has_ended() -> None:
    with Program(STAYS), Program(ENDS), pytest.raises(AssertionError, match=HOW):
        eventually(bool, bool)


def test_so_it_is_with_a_daemon_whose_log_is_read() -> None:
    with Namespace() as ns, Running(ns, ENDS), pytest.raises(AssertionError, match=HOW):
        eventually(bool, bool)


def wait_and_fail(program: Program) -> NoReturn:
    with program:
        os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT)
        raise ValueError("no pool")


def test_another_failure_has_it_as_a_note() -> None:
    with pytest.raises(ValueError, match="no pool") as caught:
        wait_and_fail(Program(ENDS))

    (note,) = caught.value.__notes__
    assert re.search(HOW, note)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_program_that_the_test_ends_is_not_missed(number: signal.Signals) -> None:
    with Program(STAYS) as program:
        program.signal(number)
        os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT)
        program.require_running()


def test_one_that_was_waited_for_is_not_missed_either() -> None:
    with Program(ENDS) as program:
        assert program.wait() == 32
        program.require_running()
