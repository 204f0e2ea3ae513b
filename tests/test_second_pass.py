"""The second pass leaves out no test that a dependency could fail."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import ephmon
from tests.second_pass import AGAIN, ONCE, SOME_AGAIN, runs_again

TESTS = Path(__file__).parent
PACKAGE = Path(ephmon.__file__).parent
DEPENDENCY = re.compile(r"^ *(?:import|from) (?:prometheus_client|psutil|tornado|yaml)\b", re.MULTILINE)


def test_the_tests_of_a_module_that_imports_a_dependency_run_again() -> None:
    modules = [path for path in PACKAGE.rglob("*.py") if DEPENDENCY.search(path.read_text(encoding="utf-8"))]
    tests = [path.relative_to(PACKAGE).with_name(f"test_{path.name}").as_posix() for path in modules]

    assert len(tests) >= 5
    assert [path for path in tests if not runs_again(path, "any test")] == []


def test_a_file_of_tests_that_is_in_no_table_is_refused() -> None:
    with pytest.raises(LookupError, match=r"^tests/new/test_one\.py is in no table of tests/second_pass\.py"):
        runs_again("new/test_one.py", "test_one")


def test_the_tables_name_what_there_is_and_nothing_twice() -> None:
    assert [name for name in (*AGAIN, *SOME_AGAIN, *ONCE) if not (TESTS / name).exists()] == []
    assert len({*AGAIN, *SOME_AGAIN, *ONCE}) == len(AGAIN) + len(SOME_AGAIN) + len(ONCE)


@pytest.mark.parametrize("path", SOME_AGAIN)
def test_what_runs_again_of_a_file_is_there(path: str) -> None:
    defined = re.findall(r"^def (test_\w+)\(", (TESTS / path).read_text(encoding="utf-8"), re.MULTILINE)

    assert [test for test in SOME_AGAIN[path] if test not in defined] == []
