"""Faults, one after another: what ephmon does, what it says, and that it recovers; docs/proof/faults.md lists them."""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest

from tests import sockets
from tests.faults.campaign import CASES, THEMES
from tests.faults.case import Case, Ending, Fault, Refusal, is_said, table
from tests.faults.stage import HERE, LOW, PORT, PORTS, Stage
from tests.namespaces import Namespace
from tests.processes import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from _pytest.mark import ParameterSet

PAGE = Path(__file__).parents[2] / "docs" / "proof" / "faults.md"


@pytest.fixture(name="ns")
def _ns() -> Iterator[Namespace]:
    with Namespace() as ns:
        ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", f"{LOW} {LOW + PORTS - 1}")
        ns.call(sockets.listen, HERE, PORT, tag="server")
        yield ns


def parameters(kind: type[Case]) -> list[ParameterSet]:
    """Return the cases of a kind, with the markers of what they need."""
    return [
        pytest.param(case, id=case.name, marks=[getattr(pytest.mark, one)(why) for one, why in case.needs.items()])
        for case in CASES
        if isinstance(case, kind)
    ]


@pytest.fixture(name="folder")
def _folder() -> Iterator[Path]:
    """A folder that every user can look into, unlike pytest's own."""
    with TemporaryDirectory(prefix="ephmon-fault-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.parametrize("fault", parameters(Fault))
def test_ephmon_survives(fault: Fault, ns: Namespace, folder: Path) -> None:
    with Stage(ns, folder) as stage:
        stage.start(fault.start)
        with fault.inject(stage):
            for check in fault.meanwhile:
                check.require(stage)
        stage.recover()
        for check in fault.afterwards:
            check.require(stage)
        stage.stop()
        lines = stage.daemon.lines
    assert [text for text in fault.says if not any(is_said(text, line) for line in lines)] == [], lines
    assert len(lines) <= fault.most_lines


@pytest.mark.parametrize("refusal", parameters(Refusal))
def test_ephmon_refuses_to_start(refusal: Refusal, ns: Namespace, folder: Path) -> None:
    with Stage(ns, folder) as stage:
        stage.prepare(refusal.start)
        result = run(ns.command(*stage.command(refusal.start)))
    assert (result.returncode, result.stdout) == (refusal.status, ""), result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert is_said(refusal.says, result.stderr)


@pytest.mark.parametrize("ending", parameters(Ending))
def test_ephmon_ends_in_good_order(ending: Ending, ns: Namespace, folder: Path) -> None:
    with Stage(ns, folder) as stage:
        stage.start(ending.start)
        ending.inject(stage)
        assert stage.daemon.wait() == ending.status
        lines = stage.daemon.lines
    assert [text for text in ending.says if not any(is_said(text, line) for line in lines)] == [], lines
    assert not any("Traceback" in line for line in lines)


def test_each_fault_has_a_name_of_its_own_and_something_that_ephmon_does() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 40
    assert [case.name for case in CASES if not case.does] == []


def test_the_page_lists_every_fault(golden: Callable[[Path, str], None]) -> None:
    page = PAGE.read_text(encoding="utf-8")
    around = re.fullmatch(r"(.*<!-- faults: begin -->\n).*(<!-- faults: end -->.*)", page, re.DOTALL)
    tables = "".join(f"\n## {theme}\n\n{table(cases)}\n" for theme, cases in THEMES.items())

    assert around is not None
    golden(PAGE, f"{around[1]}{tables}\n{around[2]}")
