"""A bounded run of each target with a fixed seed; `script/fuzz` runs the same without a bound."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.fuzz import planted
from tests.fuzz.campaign import Bounds, run
from tests.fuzz.targets import TARGETS

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("atheris", reason="atheris is there for CPython 3.11 to 3.13 on x86-64")

SEED = 1


@pytest.mark.parametrize("name", TARGETS)
def test_mutated_input_is_answered_as_it_must_be(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    outcome = run(target, Bounds(executions=target.executions), tmp_path, seed=SEED)

    assert outcome.findings == (), outcome.output
    assert outcome.has_ended_well, outcome.output
    assert outcome.executions >= target.executions


def test_a_mistake_behind_four_branches_is_found_and_found_again_from_the_seed(tmp_path: Path) -> None:
    outcomes = [
        run(planted.HIDDEN_MISTAKE, Bounds(executions=80_000), tmp_path / folder, seed=SEED) for folder in ("1", "2")
    ]

    first, again = ([(file.name, file.read_bytes()) for file in outcome.findings] for outcome in outcomes)
    assert first == again
    ((name, data),) = first
    assert name.startswith("IndexError-planted.py-")
    assert data.startswith(b"\x7fELF")
    assert "planted" in outcomes[0].output


def test_an_input_that_takes_all_memory_is_kept(tmp_path: Path) -> None:
    outcome = run(planted.GREEDY, Bounds(executions=60_000), tmp_path, seed=SEED)

    assert not outcome.has_ended_well
    (kept,) = outcome.findings
    assert b"!" in kept.read_bytes()


def test_an_input_that_takes_long_is_kept(tmp_path: Path) -> None:
    outcome = run(planted.SLOW, Bounds(executions=12), tmp_path, seed=SEED)

    # On a busy machine libFuzzer keeps it once more: what takes ten seconds is a slow unit.
    (kept,) = (file.name for file in outcome.findings if not file.name.startswith("slow-unit-"))
    assert kept.startswith("SlowInputError-")
