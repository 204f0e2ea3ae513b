"""One process that fuzzes one target.

Its arguments are a module with targets, the name of one, the folder for findings, and what libFuzzer takes.

atheris measures which of our branches an input reaches, and libFuzzer keeps and changes those that reach new ones. An
input that fails does not end the run. One that takes all memory or never ends does: libFuzzer keeps it and exits.
"""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import atheris

from tests.fuzz.findings import Findings
from tests.fuzz.mutation import mutate

if TYPE_CHECKING:
    from tests.fuzz.target import Target

MOST_CPU_SECONDS = 1.0
"""For one input: hundreds of times what one takes. More means that time grows faster than the input."""
INSTRUMENTED = ["ephmon", "tornado"]


class SlowInputError(Exception):
    """An input took far longer than others of its length."""


def _require_fast(data: bytes, spent: float) -> None:
    if spent > MOST_CPU_SECONDS:
        raise SlowInputError(f"{len(data)} bytes took {spent:.2f} s")


def main() -> None:
    """Fuzz until libFuzzer's options say that it is enough; never returns."""
    program, module, name, folder, *options = sys.argv
    with atheris.instrument_imports(include=[*INSTRUMENTED, module]):
        targets: tuple[Target, ...] = importlib.import_module(module).TARGETS
    target = next(target for target in targets if target.name == name)
    findings = Findings(Path(folder))

    def check(data: bytes) -> None:
        started = time.process_time()
        try:
            target.check(data)
            _require_fast(data, time.process_time() - started)
        except Exception as error:  # noqa: BLE001 - whatever a parser raises that it does not declare is a finding
            findings.keep(data, error)

    def change(data: bytes, most: int, seed: int) -> bytes:
        return mutate(data, most, seed, atheris.Mutate, target.structure)

    atheris.Setup([program, f"-max_len={target.max_bytes}", *options], check, custom_mutator=change)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
