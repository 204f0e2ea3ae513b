"""docs/proof/faults.md lists all faults, as they are played."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from tests.faults.campaign import CASES, THEMES
from tests.faults.case import table

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE = Path(__file__).parents[2] / "docs" / "proof" / "faults.md"


def test_each_fault_has_a_name_of_its_own_and_something_that_ephmon_does() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 40
    assert [case.name for case in CASES if not case.does] == []


def test_the_page_lists_every_fault(golden: Callable[[Path, str], None]) -> None:
    page = PAGE.read_text(encoding="utf-8")
    around = re.fullmatch(r"(.*<!-- faults: begin -->\n).*(<!-- faults: end -->.*)", page, re.DOTALL)
    tables = "".join(f"\n## {theme}\n\n{table(cases)}\n" for theme, cases in THEMES.items())

    assert around is not None
    golden(PAGE, f"{around[1]}{tables}\n{around[2]}")
