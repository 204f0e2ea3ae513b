"""`script/fuzz`: fuzzes one target or all of them, for as long as is asked for."""

from __future__ import annotations

import argparse
import random
import sys
import traceback
from pathlib import Path

from tests.fuzz.targets import TARGETS

ROUND_SECONDS = 60
"""Without a bound, each of several targets gets so long before the next one, again and again."""


def main() -> int:
    """Return 1 if something was found, else 0."""
    options = _options()
    names = options.target or list(TARGETS)
    if options.input is not None:
        return _replay(names, options.input)
    try:
        import atheris  # noqa: F401

        from tests.fuzz import campaign
    except ImportError:
        sys.stderr.write("fuzz: this Python has no atheris; use CPython 3.11 to 3.13 on x86-64.\n")
        return 2
    seed = random.randrange(1, 1 << 31) if options.seed is None else options.seed
    is_bounded = options.executions is not None or options.seconds is not None
    seconds = options.seconds if is_bounded or len(names) == 1 else ROUND_SECONDS
    bounds = campaign.Bounds(executions=options.executions, seconds=seconds)
    found = False
    while True:
        for name in names:
            print(f"{name}: seed {seed}", flush=True)
            outcome = campaign.run(
                TARGETS[name],
                bounds,
                options.keep,
                seed=seed,
                processes=options.processes,
                keeps=options.seed is None,
            )
            print(f"{name}: {outcome}", flush=True)
            if outcome.findings or not outcome.has_ended_well:
                found = True
                print(
                    outcome.output,
                    *(f"try it again: script/fuzz {name} --input {file}" for file in outcome.findings),
                    sep="\n",
                )
        if is_bounded or len(names) == 1:
            return int(found)
        seed += options.processes


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="script/fuzz",
        description="Feeds parsers with mutated input, and checks their answers. What fails is kept as a file.",
    )
    parser.add_argument(
        "target", nargs="*", metavar="TARGET", help=f"what to fuzz, all if none is named: {', '.join(TARGETS)}"
    )
    parser.add_argument("--executions", type=int, metavar="N", help="stop each target after N inputs a process")
    parser.add_argument("--seconds", type=int, metavar="N", help="stop each target after N seconds")
    parser.add_argument(
        "--seed", type=int, metavar="N", help="try what was tried with this seed, from the corpus alone"
    )
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="run N processes at a time (1)")
    parser.add_argument(
        "--keep", type=Path, default=Path(".cache/fuzz"), metavar="FOLDER", help="where what fails is kept"
    )
    parser.add_argument("--input", type=Path, metavar="FILE", help="try one input, and show how it fails")
    options = parser.parse_args()
    unknown = [name for name in options.target if name not in TARGETS]
    if unknown:
        parser.error(f"there is no target {unknown[0]}; the targets are {', '.join(TARGETS)}")
    return options


def _replay(names: list[str], file: Path) -> int:
    data = file.read_bytes()
    failed = False
    for name in names:
        try:
            TARGETS[name].check(data)
        except Exception:  # noqa: BLE001 - shown
            failed = True
            traceback.print_exc()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
