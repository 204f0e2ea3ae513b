"""Golden files, and what the tests need of whoever runs them.

A golden file is expected output that is long enough to stand in a file of its own. `pytest --update-golden` writes what
the code says now; read the difference before you commit it.
"""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

# How long an example takes says more about what else the machine does than about the code.
settings.register_profile("ephmon", deadline=None)
settings.load_profile("ephmon")

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files instead of comparing them")


NEEDED_DESCRIPTORS = 8192
"""More than any agent opens."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "only_root(what): a test of what root alone may do; others leave it out")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < NEEDED_DESCRIPTORS:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, NEEDED_DESCRIPTORS))
        except ValueError:  # not permitted
            raise pytest.UsageError(
                f"The tests open up to {NEEDED_DESCRIPTORS} files in one process, but the hard limit is {hard}; "
                f"raise it as root: prlimit --pid {os.getppid()} --nofile=:{NEEDED_DESCRIPTORS}"
            ) from None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    for item in items:
        for marker in item.iter_markers("only_root"):
            item.add_marker(pytest.mark.skip(reason=f"only root {marker.args[0]}"))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    """Say behind all else how many tests were left out."""
    yield
    left_out = [report for report in terminalreporter.getreports("skipped") if "only_root" in report.keywords]
    if left_out:
        terminalreporter.write_line(f"{len(left_out)} tests need root and did not run; run them as root too.")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[Path, str], None]:
    """A function that asserts that a file holds exactly this text, or with --update-golden makes it so."""

    def check(path: Path, text: str) -> None:
        if request.config.getoption("--update-golden"):
            path.write_text(text, encoding="utf-8")
        assert path.read_text(encoding="utf-8") == text, f"if the new text is right, run pytest --update-golden {path}"

    return check
