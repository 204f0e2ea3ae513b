"""Imports point one way only: the kernel is read at one edge, the answer leaves by the other, the middle is pure."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

import ephmon

ROOT = Path(__file__).parents[1]
PACKAGE = Path(ephmon.__file__).parent

_MODEL = ("ephmon.model", "ephmon.facts")
_RUNNING = ("ephmon.supervision", "ephmon.log")

MAY_IMPORT: dict[str, tuple[str, ...]] = {
    # package or module: what it may import, with all that lies below
    "ephmon.facts": ("ephmon.facts",),
    "ephmon.kernel": ("ephmon.kernel", "ephmon.facts", "ephmon.supervision"),
    "ephmon.model": _MODEL,
    "ephmon.config": ("ephmon.config", *_MODEL, "ephmon.regular_file"),
    "ephmon.outputs": ("ephmon.outputs", *_MODEL, "ephmon.log", "ephmon.regular_file"),
    "ephmon.supervision": ("ephmon.supervision", "ephmon.log"),
    "ephmon.http": ("ephmon.http", "ephmon.outputs", *_MODEL, *_RUNNING, "ephmon.regular_file"),
    "ephmon.delivery": ("ephmon.delivery", "ephmon.outputs", *_MODEL, *_RUNNING, "ephmon.regular_file"),
    "ephmon.daemon": ("ephmon",),
    "ephmon.commands": ("ephmon",),
    "ephmon.cli": ("ephmon",),
    "ephmon.__main__": ("ephmon.cli", "ephmon.daemon.signals"),
    "ephmon.log": ("ephmon.log", "ephmon.outputs.text.wording", "ephmon.supervision.threads"),
}
"""The flow, from the edge where the kernel is read to the edges where the answer leaves.

What is not in the table may import nothing of ephmon.
"""

OPEN_TO_ALL = {"ephmon", "ephmon.errors"}
"""The version and the errors."""

IMPURE = re.compile(
    r"asyncio|concurrent|ctypes|datetime|fcntl|http|io|logging|mmap|multiprocessing|os|pathlib|platform|random|resource"
    r"|select|selectors|shutil|signal|socket|ssl|subprocess|sys|tempfile|threading|time|urllib"
    r"|prometheus_client|psutil|tornado|yaml"
)
"""What the model does without: the clock, the system, and whatever reads or writes."""

STARTS_A_PROGRAM = re.compile(
    r"exec[lv]p?e?|spawn[lv]p?e?|posix_spawnp?|fork(pty)?|popen|system|create_subprocess_(exec|shell)"
)
"""The members of os and asyncio that start a process."""

SAYS_NOTHING = frozenset({"common", "helper", "helpers", "manager", "managers", "misc", "util", "utils"})


def _module(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


SOURCES = {_module(path): path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}


def _imports(source: str) -> set[str]:
    """Return what a source imports, at its head or anywhere else: `from a import b` is a.b if that is a module."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            found |= {name if (name := f"{base}.{alias.name}") in SOURCES else base for alias in node.names}
    return found


def _refused_imports(module: str, source: str) -> set[str]:
    """Return what a module imports of ephmon and must not; relative imports are refused altogether."""
    allowed = MAY_IMPORT.get(_stage(module), ())
    ours = {name for name in _imports(source) if name.partition(".")[0] in ("ephmon", "")}
    return {name for name in ours - OPEN_TO_ALL if not _lies_in(name, allowed)}


def _lies_in(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _ways_to_start_a_program(source: str) -> set[str]:
    """Return the names by which a source can start another program."""
    found = {name for name in _imports(source) if name.partition(".")[0] in ("subprocess", "multiprocessing", "pty")}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner, members = node.value.id, [node.attr]
        elif isinstance(node, ast.ImportFrom):
            owner, members = node.module or "", [alias.name for alias in node.names]
        else:
            continue
        if owner in ("os", "asyncio"):
            found |= {member for member in members if STARTS_A_PROGRAM.fullmatch(member)}
    return found


@pytest.mark.parametrize("module", SOURCES)
def test_a_module_imports_only_what_its_stage_may(module: str) -> None:
    assert _refused_imports(module, SOURCES[module]) == set()


def test_the_daemon_is_imported_by_the_commands_alone_and_the_commands_by_the_command_line() -> None:
    assert _users("ephmon.daemon") <= {"ephmon.__main__", "ephmon.cli", "ephmon.commands"}
    assert _users("ephmon.commands") <= {"ephmon.cli"}
    assert _users("ephmon.cli") <= {"ephmon.__main__"}


def _users(package: str) -> set[str]:
    """Return the other packages that import something of a package."""
    found = (module for module, source in SOURCES.items() if any(_lies_in(one, (package,)) for one in _imports(source)))
    return {_stage(module) for module in found if not _lies_in(module, (package,))}


def _stage(module: str) -> str:
    return ".".join(module.split(".")[:2])


@pytest.mark.parametrize("module", [module for module in SOURCES if _lies_in(module, ("ephmon.model",))])
def test_the_model_is_pure(module: str) -> None:
    """It imports nothing of the system and opens, prints and asks nothing."""
    roots = {name.partition(".")[0] for name in _imports(SOURCES[module])}
    calls = {
        node.func.id
        for node in ast.walk(ast.parse(SOURCES[module]))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }

    assert {root for root in roots if IMPURE.fullmatch(root)} == set()
    assert calls & {"open", "print", "input", "exec", "eval", "__import__"} == set()


@pytest.mark.parametrize("module", SOURCES)
def test_no_program_is_ever_started(module: str) -> None:
    assert _ways_to_start_a_program(SOURCES[module]) == set()


def test_module_names_say_what_is_inside() -> None:
    trees = (PACKAGE, ROOT / "tests", ROOT / "benchmarks")
    names = {
        part for tree in trees for path in tree.rglob("*.py") for part in path.relative_to(tree).with_suffix("").parts
    }

    assert {name.removeprefix("test_") for name in names} & SAYS_NOTHING == set()


def test_no_folder_outgrows_a_glance() -> None:
    """Five modules at the top and fifteen in a folder: a folder with more does two things."""
    sizes = Counter(path.parent for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")

    assert sizes.pop(PACKAGE) <= 5
    assert {str(folder.relative_to(PACKAGE)): size for folder, size in sizes.items() if size > 15} == {}


@pytest.mark.parametrize(
    ("module", "source", "refused"),
    [
        ("ephmon.model.pools.kinds", "from ephmon.facts import snapshot", set()),
        ("ephmon.model.pools.kinds", "from ephmon.kernel.proc.sysctl import read", {"ephmon.kernel.proc.sysctl"}),
        ("ephmon.model.pools.kinds", "from ephmon.errors import KernelError", set()),
        ("ephmon.facts.snapshot", "from ephmon.model.report import Report", {"ephmon.model.report"}),
        ("ephmon.kernel.source", "import ephmon.facts.snapshot", set()),
        ("ephmon.kernel.source", "from ephmon.model.pools import kinds", {"ephmon.model.pools.kinds"}),
        ("ephmon.kernel.source", "def f():\n    from ephmon.outputs.text import table", {"ephmon.outputs.text.table"}),
        ("ephmon.outputs.text.table", "from ephmon import __version__", set()),
        ("ephmon.outputs.text.table", "from ephmon.kernel import source", {"ephmon.kernel.source"}),
        ("ephmon.outputs.text.table", "from ephmon.model.report import Report", set()),
        ("ephmon.outputs.text.table", "from . import wording", {"."}),
        ("ephmon.outputs.text.table", "from ...model import report", {"...model"}),
        ("ephmon.outputs.text.table", "from ephmon.http.server import HttpServer", {"ephmon.http.server"}),
        ("ephmon.config.settings", "from ephmon.model.rules import Rules", set()),
        ("ephmon.config.settings", "from ephmon.kernel import source", {"ephmon.kernel.source"}),
        ("ephmon.some_new_module", "from ephmon.kernel import source", {"ephmon.kernel.source"}),
        ("ephmon.model.report", "if TYPE_CHECKING:\n    from ephmon.outputs import page", {"ephmon.outputs.page"}),
    ],
)
def test_an_import_against_the_flow_is_found(module: str, source: str, refused: set[str]) -> None:
    assert _refused_imports(module, source) == refused


@pytest.mark.parametrize(
    ("source", "ways"),
    [
        ("import subprocess", {"subprocess"}),
        ("from subprocess import run", {"subprocess"}),
        ("import os\nos.execv('/bin/true', [])", {"execv"}),
        ("from os import posix_spawn", {"posix_spawn"}),
        ("import asyncio\nawait asyncio.create_subprocess_exec('true')", {"create_subprocess_exec"}),
        ("import platform\nplatform.system()", set()),
    ],
)
def test_a_way_to_start_a_program_is_found(source: str, ways: set[str]) -> None:
    assert _ways_to_start_a_program(source) == ways
