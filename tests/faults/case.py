"""A fault as a value: how the daemon is started, what is done to it, and what is expected of it then."""

from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.processes import ephmon, run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from _pytest.mark import ParameterSet

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

    def play(self, stage: Stage) -> None:
        """Make it, and require what is expected."""
        stage.start(self.start)
        with self.inject(stage):
            for check in self.meanwhile:
                check.require(stage)
        stage.recover()
        for check in self.afterwards:
            check.require(stage)
        stage.stop()
        lines = stage.daemon.lines
        _require_said(self.says, lines)
        assert len(lines) <= self.most_lines, lines


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

    def play(self, stage: Stage) -> None:
        """Start, and require the status and the sentence."""
        stage.prepare(self.start)
        result = run(stage.ns.command(*stage.command(self.start)))
        assert (result.returncode, result.stdout) == (self.status, ""), result
        assert result.stderr.count("\n") == 1, result.stderr
        _require_said([self.says], [result.stderr])


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

    def play(self, stage: Stage) -> None:
        """Make it, and require that the daemon ends as it should."""
        stage.start(self.start)
        self.inject(stage)
        assert stage.daemon.wait() == self.status, stage.daemon.lines
        lines = stage.daemon.lines
        _require_said(self.says, lines)
        assert not any("Traceback" in line for line in lines), lines


Case = Fault | Refusal | Ending


def parameters(cases: Sequence[Case]) -> list[ParameterSet]:
    """Return the cases by their names, with the markers of what they need."""
    return [
        pytest.param(case, id=case.name, marks=[getattr(pytest.mark, one)(why) for one, why in case.needs.items()])
        for case in cases
    ]


def _require_said(patterns: Sequence[str], lines: Sequence[str]) -> None:
    """Require that each pattern stands in some line; `…` stands for any text."""
    expressions = {pattern: ".*".join(map(re.escape, pattern.split("…"))) for pattern in patterns}
    missing = [one for one, expression in expressions.items() if not any(re.search(expression, line) for line in lines)]
    assert missing == [], lines


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
