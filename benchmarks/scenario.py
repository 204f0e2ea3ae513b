"""What a scenario is, and what it may be told."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.load import Population

_QUICK_SOCKETS, _QUICK_DESTINATIONS, _QUICK_ROUNDS = 300, 30, 2


class NotMeasuredError(Exception):
    """A scenario cannot be measured here; the message says why in a few words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How the scenarios are run."""

    quick: bool = False
    """Whether to show in seconds that they run; the numbers mean nothing."""
    rounds: int | None = None
    """How often measurements are repeated; None for what each scenario thinks best."""
    node_exporter: str | None = None
    """The program, None where there is none."""

    def rounds_or(self, default: int) -> int:
        """Return how often to repeat."""
        return _QUICK_ROUNDS if self.quick else self.rounds or default

    def sized(self, population: Population) -> Population:
        """Return the population, a small one of its kind for a quick run."""
        if not self.quick:
            return population
        return replace(
            population,
            established=min(population.established, _QUICK_SOCKETS),
            accepted=min(population.accepted, _QUICK_SOCKETS),
            time_wait=min(population.time_wait, _QUICK_SOCKETS),
            destinations=min(population.destinations, _QUICK_DESTINATIONS),
        )

    def seconds(self, default: float) -> float:
        """Return how long to measure at a stretch."""
        return 1.0 if self.quick else default


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One thing to measure. `run` returns the results in Markdown, or raises NotMeasuredError."""

    name: str
    summary: str
    run: Callable[[Options], str]
    is_long: bool = False
    """Runs only if it is asked for."""
    is_smoke: bool = False
    """Belongs to the quick run, which has one scenario of each way to measure."""


def program(name: str) -> str:
    """Return the path of a program.

    Raises:
        NotMeasuredError: It is not installed.
    """
    path = find_program(name)
    if path is None:
        raise NotMeasuredError(f"{name} is not installed")
    return path


def find_program(*names: str) -> str | None:
    """Return the path of the first of these programs that is installed, None if none is.

    Looks also where Debian keeps the programs of the administrator, which not everybody's PATH has.
    """
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    return next(filter(None, (shutil.which(name, path=path) for name in names)), None)
