"""SECURITY.md: each claim has a test, and each test that it names is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.faults.campaign import CASES

ROOT = Path(__file__).parents[1]
_SECTION = (ROOT / "SECURITY.md").read_text(encoding="utf-8").partition("## What others can and cannot do to it\n")[2]
ROWS = [row for row in re.findall(r"^\| (.*) \| (.*) \|$", _SECTION, re.MULTILINE) if row[1] not in {"shown by", "---"}]
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
_FAULT = "fault: "


def _is_there(reference: str) -> bool:
    if reference.startswith(_FAULT):
        return reference.removeprefix(_FAULT) in {case.name for case in CASES}
    found = _TEST.fullmatch(reference)
    return found is not None and found[2] in _functions(ROOT / found[1])


def _functions(module: Path) -> set[str]:
    if not module.exists():
        return set()
    return {node.name for node in ast.parse(module.read_text("utf-8")).body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(("claim", "shown_by"), ROWS, ids=[claim for claim, _ in ROWS])
def test_a_claim_names_tests_that_are_there(claim: str, shown_by: str) -> None:
    assert [reference for reference in shown_by.split("; ") if not _is_there(reference)] == [], claim


def test_every_kind_of_attacker_has_claims() -> None:
    assert len(re.findall("^### ", _SECTION, re.MULTILINE)) == 4
    assert len(ROWS) >= 40


def test_a_test_or_a_fault_that_is_not_there_is_found() -> None:
    assert not _is_there("`tests/test_security_page.py::test_nothing`")
    assert not _is_there("`tests/nowhere.py::test_nothing`")
    assert not _is_there("fault: none of them")
    assert not _is_there("")
