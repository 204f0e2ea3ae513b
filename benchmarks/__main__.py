"""The command: `python -m benchmarks [--list] [SCENARIO ...]`. Prints Markdown; what it is doing goes to stderr."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from benchmarks import bind_table, hotspots, memory, poll, proxy, results, scrape, soak, survival, walker
from benchmarks.machine import describe_machine
from benchmarks.measurement import NOT_MEASURED
from benchmarks.scenario import NotMeasuredError, Options, Scenario, find_program
from tests.agent import AgentError

SCENARIOS = {
    scenario.name: scenario
    for family in (poll, bind_table, walker, hotspots, memory, scrape, proxy, soak, survival)
    for scenario in family.SCENARIOS
}
_NODE_EXPORTER = ("prometheus-node-exporter", "node_exporter")
"""What Debian calls it, and its makers."""


def main(arguments: list[str]) -> int:
    """Run the scenarios that are asked for and return the exit status."""
    parsed = _parser().parse_args(arguments)
    if parsed.list:
        print("\n".join(f"{one.name:20} {one.summary}{' (long)' if one.is_long else ''}" for one in SCENARIOS.values()))
        return 0
    options = Options(
        quick=parsed.quick, rounds=parsed.rounds, node_exporter=parsed.node_exporter or find_program(*_NODE_EXPORTER)
    )
    chosen = _chosen(parsed)
    if parsed.into:  # before hours of work, not after
        _renew(parsed.into, [results.section(scenario.name, "") for scenario in chosen], dry=True)
    sections = []
    for scenario in chosen:
        print(f"{scenario.name}: {scenario.summary} ...", file=sys.stderr, flush=True)
        sections.append(_section(scenario, options))
        print(sections[-1], end="\n\n", flush=True)
        if parsed.into:
            _renew(parsed.into, sections[-1:])
    print(results.bounds("\n".join(sections)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure ephmon beside other tools.")
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="see --list")
    parser.add_argument("--list", action="store_true", help="name the scenarios and what they measure")
    parser.add_argument("--all", action="store_true", help="run the long ones too")
    parser.add_argument("--quick", action="store_true", help="only show that they run; the numbers mean nothing")
    parser.add_argument("--rounds", type=positive_number, metavar="N", help="how often measurements are repeated")
    parser.add_argument("--node-exporter", metavar="PROGRAM", help="where node_exporter is")
    parser.add_argument("--into", type=Path, metavar="FILE", help="also replace the sections of these names in a page")
    return parser


def _chosen(parsed: argparse.Namespace) -> list[Scenario]:
    if unknown := [name for name in parsed.scenarios if name not in SCENARIOS]:
        sys.exit(f"There is no scenario {unknown[0]}; --list names them.")
    if parsed.scenarios:
        return [SCENARIOS[name] for name in parsed.scenarios]
    if parsed.quick and not parsed.all:
        return [scenario for scenario in SCENARIOS.values() if scenario.is_smoke]
    return [scenario for scenario in SCENARIOS.values() if parsed.all or not scenario.is_long]


def _section(scenario: Scenario, options: Options) -> str:
    """Run a scenario and return its section, between comments that tell where it begins and ends."""
    machine, started = describe_machine(), time.monotonic()
    try:
        result = scenario.run(options)
    except (NotMeasuredError, AgentError) as error:
        result = f"{NOT_MEASURED}: {error}.\n"
    took = f"`python -m benchmarks {scenario.name}` took {time.monotonic() - started:.0f} s on {machine}."
    return results.section(scenario.name, f"{result}\n{took}\n")


def _renew(file: Path, sections: list[str], *, dry: bool = False) -> None:
    """Put sections into a page, or only see whether that can be done; what is wrong ends the program."""
    try:
        page = file.read_text(encoding="utf-8")
        for section in sections:
            page = results.renewed(page, section)
        if not dry:
            file.write_text(page, encoding="utf-8")
    except (OSError, results.NoSuchSectionError) as error:
        sys.exit(str(error))


def positive_number(text: str) -> int:
    """Return a whole number above 0; argparse names this function to who gives another."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
