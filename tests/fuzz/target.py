"""What a fuzz target is, and what is demanded of every answer and of every error."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from tests.fuzz.mutation import Structure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HERE = Path(__file__).parent
CORPUS, REGRESSIONS = HERE / "corpus", HERE / "regressions"
RECORDED = HERE.parent / "kernel" / "data"
"""What a kernel wrote, as other tests read it too."""

P = ParamSpec("P")
T = TypeVar("T")

_LONGEST_LINE = 5000
"""Characters of a line of an error: a path of 4,096 bytes is named whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One parser, or a few that read the same files."""

    name: str
    parsers: tuple[str, ...]
    """Where they are, for the page of figures."""
    check: Callable[[bytes], object]
    """Parses an input and asserts what must hold of the answer. What it raises is a finding."""
    seeds: Callable[[], Sequence[bytes]] = tuple
    """Real input that stands elsewhere in the tree. More is in the folder `corpus/NAME`."""
    max_bytes: int = 4096
    """The longest input that is tried."""
    structure: Structure = Structure.BYTES
    executions: int = 10_000
    """In the suite, with a fixed seed."""

    def inputs(self) -> dict[str, bytes]:
        """Return the corpus by name: real input, and what once failed."""
        folders = {kind: folder / self.name for kind, folder in (("corpus", CORPUS), ("regressions", REGRESSIONS))}
        found = {f"recorded/{index}": seed for index, seed in enumerate(self.seeds())}
        for kind, folder in folders.items():
            found |= {f"{kind}/{file.name}": file.read_bytes() for file in sorted(folder.glob("*"))}
        return found


def answer(
    raises: type[Exception] | tuple[type[Exception], ...],
    parse: Callable[P, T],
    *args: P.args,
    **options: P.kwargs,
) -> T | None:
    """Return what a parser returns, None if it raises what it declares; the text of the error is checked."""
    try:
        return parse(*args, **options)
    except raises as error:
        check_message(str(error))
        return None


def check_message(message: str) -> None:
    """Assert that an error's text is one line that a terminal and a log can show, and is not empty or endless."""
    assert message, "the error says nothing"
    assert message.isprintable(), f"the error has more than one line, or shows what is not printable: {message!r}"
    assert len(message) <= _LONGEST_LINE, f"the error has {len(message)} characters"


def files(folder: Path, *patterns: str) -> list[bytes]:
    """Return the content of the files in a folder that match one of the patterns."""
    return [file.read_bytes() for pattern in patterns for file in sorted(folder.glob(pattern))]
