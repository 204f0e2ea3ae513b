"""Golden files, and what the tests need of whoever runs them.

A golden file is expected output that is long enough to stand in a file of its own. `pytest --update-golden` writes what
the code says now; read the difference before you commit it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.machine import NEEDS, permit_descriptors

# How long an example takes says more about what else the machine does than about the code.
settings.register_profile("ephmon", deadline=None)
settings.load_profile("ephmon")

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files instead of comparing them")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "only_root(what): a test that does what only root may do")
    config.addinivalue_line("markers", "host_pids(why): a test that needs process ids as the kernel numbers them")
    try:
        permit_descriptors()
    except PermissionError as error:
        raise pytest.UsageError(*error.args) from None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for name, (is_met, need) in NEEDS.items():
            for marker in [] if is_met else item.iter_markers(name):
                item.add_marker(pytest.mark.skip(reason=f"needs {need}: {marker.args[0]}"))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    """Say behind all else how many tests were left out, and where they run."""
    yield
    skipped = terminalreporter.getreports("skipped")
    for name, (is_met, need) in NEEDS.items():
        left_out = sum(name in report.keywords for report in skipped)
        if left_out and not is_met:
            terminalreporter.write_line(f"{left_out} tests did not run because they need {need}; run them there too.")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[Path, str], None]:
    """A function that asserts that a file holds exactly this text, or with --update-golden makes it so."""

    def check(path: Path, text: str) -> None:
        if request.config.getoption("--update-golden"):
            path.write_text(text, encoding="utf-8")
        assert path.read_text(encoding="utf-8") == text, f"if the new text is right, run pytest --update-golden {path}"

    return check
