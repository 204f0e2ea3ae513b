"""Golden files, what the tests need of whoever runs them, the second pass, and what starts first of many at a time.

A golden file is expected output that is long enough to stand in a file of its own. `pytest --update-golden` writes what
the code says now; read the difference before you commit it. `pytest --on-packages` runs what tests/second_pass.py says.
`pytest --mixes 1/3` plays a third of the random mixes of sockets, for a kernel on which all of them take minutes, and
`pytest --hypothesis-profile=thorough` tries ten times as many examples.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.machine import NEEDS, permit_descriptors
from tests.second_pass import may_run_again, runs_again

# How long an example takes says more about what else the machine does than about the code.
settings.register_profile("ephmon", deadline=None)
settings.register_profile("thorough", settings.get_profile("ephmon"), max_examples=1000)
settings.load_profile("ephmon")

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TESTS = Path(__file__).parent
LONGEST = (
    "faults/test_receivers.py",
    "faults/test_limits.py",
    "end_to_end/test_demo.py",
    "end_to_end/test_incident_page.py",
    "end_to_end/test_walkthrough.py",
    "test_benchmarks.py",
    "deployment/test_grafana_queries.py",
    "deployment/test_prometheus_rules.py",
    "kernel_truth/test_mixes.py",
    "end_to_end/test_delivery.py",
)
"""Files that take long and mostly wait: they start first, so that no processor is idle at the end for one of them."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files instead of comparing them")
    parser.addoption("--on-packages", action="store_true", help="run what tests/second_pass.py runs again")
    parser.addoption(
        "--mixes",
        type=_share,
        default=slice(None),
        metavar="N/M",
        help="of the random mixes, play one in M, from the Nth on",
    )


def _share(text: str) -> slice:
    first, _, step = text.partition("/")
    return slice(int(first) - 1, None, int(step))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not even import files of which nothing runs again: that takes seconds."""
    if not config.getoption("--on-packages") or not collection_path.match("test_*.py"):
        return None
    try:
        return not may_run_again(collection_path.relative_to(TESTS).as_posix()) or None
    except LookupError as error:
        raise pytest.UsageError(*error.args) from None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Look each test up in the tables of the second pass, and start the longest first if many run at a time."""
    kept: list[pytest.Item] = []
    left: list[pytest.Item] = []
    for item in items:
        path = item.path.relative_to(TESTS).as_posix()
        # What has another name runs where it is named alone, in a machine or container of its own.
        try:
            is_kept = not item.path.name.startswith("test_") or runs_again(path, item.name.partition("[")[0])
        except LookupError as error:
            raise pytest.UsageError(*error.args) from None
        (kept if is_kept or not config.getoption("--on-packages") else left).append(item)
    if left:
        config.hook.pytest_deselected(items=left)
    if hasattr(config, "workerinput"):  # a worker of pytest-xdist
        kept.sort(key=_rank)
    items[:] = kept
    _skip_what_cannot_run(items)


def _rank(item: pytest.Item) -> int:
    path = item.path.relative_to(TESTS).as_posix()
    return LONGEST.index(path) if path in LONGEST else len(LONGEST)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "only_root(what): a test that does what only root may do")
    config.addinivalue_line("markers", "host_pids(why): a test that needs process ids as the kernel numbers them")
    config.addinivalue_line("markers", "host_cgroups(why): a test that needs to see the whole hierarchy of cgroups")
    try:
        permit_descriptors()
    except PermissionError as error:
        raise pytest.UsageError(*error.args) from None


def _skip_what_cannot_run(items: list[pytest.Item]) -> None:
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
