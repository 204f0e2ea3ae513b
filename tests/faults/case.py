"""A fault as a value: how the daemon is started, what is done to it, and what is expected of it then."""

from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from tests.processes import ephmon

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.faults.stage import Stage

CONFIG = "poll: {interval: 100ms, urgent_interval: 100ms, cpu_budget: 1, urgent_cpu_budget: 1}\n"

MOST_LINES = 40
"""So many lines the log has of a fault at most, unless the case says otherwise."""


class Check(NamedTuple):
    """Something that ephmon does under a fault: the sentence that the documentation has, and what proves it."""

    sentence: str
    require: Callable[[Stage], None]


def run_with_configuration(folder: Path) -> list[str]:
    """Return the command line of the daemon with the configuration of the folder."""
    return ephmon("run", "--config", folder / "config.yaml")


def prepare_nothing(_stage: Stage) -> None:
    """Do nothing before the daemon starts."""


def read_by_the_test(_stage: Stage) -> AbstractContextManager[None]:
    """Let the test read what is logged."""
    return nullcontext()


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """How the daemon is started."""

    config: str = CONFIG
    """The configuration; FOLDER stands for the folder of the case."""
    prefix: tuple[str, ...] = ()
    """What stands in front of the command line, such as `prlimit --nofile=64 --`."""
    command: Callable[[Path], list[str]] = run_with_configuration
    """Makes the command line from the folder of the case."""
    prepare: Callable[[Stage], None] = prepare_nothing
    """What is done before."""
    output: Callable[[Stage], AbstractContextManager[int | None]] = read_by_the_test
    """Opens the descriptor that it logs to, None for a pipe that the test reads."""
    is_polling: bool = True
    """Whether the first poll succeeds, which is waited for then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What happens to a running daemon, and what it does and says."""

    name: str
    done: str
    """What is done, as the documentation says it."""
    inject: Callable[[Stage], AbstractContextManager[None]]
    """Does it for the length of a block."""
    start: Start = field(default_factory=Start)
    meanwhile: Sequence[Check] = ()
    """What it does while the fault lasts."""
    afterwards: Sequence[Check] = ()
    """What it does after the fault, beside what it always does then (`stage.recover`)."""
    says: Sequence[str] = ()
    """What stands in lines of the log, in this order or another; `…` stands for any text."""
    most_lines: int = MOST_LINES
    needs: Mapping[str, str] = field(default_factory=dict)
    """Markers of `tests.machine.NEEDS` and their reasons."""

    @property
    def does(self) -> str:
        """What ephmon does, in sentences."""
        return " ".join(check.sentence for check in (*self.meanwhile, *self.afterwards))


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A start that cannot be: one sentence on standard error, and an exit status."""

    name: str
    done: str
    start: Start
    says: str
    """The sentence, with `…` for any text."""
    status: int = 1
    needs: Mapping[str, str] = field(default_factory=dict)

    @property
    def does(self) -> str:
        """What ephmon does, in a sentence."""
        return f"It does not start and exits with status {self.status}."


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """A fault that ends the daemon in good order."""

    name: str
    done: str
    start: Start
    inject: Callable[[Stage], None]
    says: Sequence[str] = ()
    status: int = 0
    needs: Mapping[str, str] = field(default_factory=dict)

    @property
    def does(self) -> str:
        """What ephmon does, in a sentence."""
        return f"It ends with status {self.status}."


Case = Fault | Refusal | Ending


def is_said(pattern: str, line: str) -> bool:
    """Tell whether a line contains a text in which `…` stands for any text."""
    return re.search(".*".join(map(re.escape, pattern.split("…"))), line) is not None


def table(cases: Sequence[Case]) -> str:
    """Return the cases as a table in Markdown."""
    rows = [("fault", "what is done", "what ephmon does", "what it says"), ("---",) * 4]
    for case in cases:
        says = [case.says] if isinstance(case, Refusal) else case.says
        quoted = "<br>".join(f"`{_in_a_cell(one)}`" for one in says) or "-"
        rows.append((case.name, case.done, case.does, quoted))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _in_a_cell(text: str) -> str:
    return text.strip().replace("|", "\\|")
