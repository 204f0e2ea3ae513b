"""Holds more against the kernel than the tests do: `python -m tests.kernel_truth memory`, `mixes` or `start`."""

from __future__ import annotations

import argparse
import os
import sys

from tests.kernel_truth import cold_start
from tests.kernel_truth.memory_fuzz import Found, Way, play
from tests.kernel_truth.mixes import Asks, connect_outcomes
from tests.kernel_truth.prediction import walk
from tests.kernel_truth.test_mixes import summary
from tests.namespaces import Namespace

_WAYS = {"with": Way.PROBE, "without": Way.NO_PROBE, "bpf": Way.BPF}
SECONDS = 900.0
"""An emulated machine takes its time."""


def main() -> int:
    """Return 1 if a number was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.kernel_truth", description=__doc__)
    parser.add_argument("--seed", type=int, default=1_000, help="the first seed; each run of a kind counts on from it")
    kinds = parser.add_subparsers(required=True)
    memory = kinds.add_parser("memory", help="sequences of what happens to sockets between polls")
    memory.add_argument("--numbers", type=int, default=500, help="numbers of TCP to compare in each way")
    memory.add_argument("--only", choices=_WAYS, help="with or without the probe, or by BPF; default: all of them")
    memory.set_defaults(run=lambda options: compare_memory(options.numbers, options.seed, only=_WAYS.get(options.only)))
    mixes = kinds.add_parser("mixes", help="random mixes of sockets, asked about by a user without a capability")
    mixes.add_argument("--number", type=int, default=100, help="how many mixes")
    mixes.set_defaults(run=lambda options: compare_mixes(options.number, options.seed))
    start = kinds.add_parser("start", help="the first polls of a daemon where nearly all ports are in doubt")
    start.add_argument("--sockets", type=int, default=28_000, help="how many sockets there are")
    start.set_defaults(run=lambda options: show_starts(options.sockets))
    options = parser.parse_args()
    print(f"Linux {os.uname().release}", flush=True)
    return 1 if options.run(options) else 0


def compare_memory(numbers: int, first_seed: int, *, only: Way | None) -> int:
    """Play sequences in each way, by one daemon and started anew, and return how many numbers were wrong."""
    wrong = 0
    with Namespace() as agent:
        for way in Way if only is None else [only]:
            if way is Way.BPF and only is None and not agent.call(can_walk):
                print(f"{way.value}: not to be had here", flush=True)
                continue
            for remembers in (True, False):
                found, seed = Found(), first_seed
                while found.of_tcp < numbers:
                    found.add(agent.call_within(SECONDS, play, [seed], way=way, remembers=remembers))
                    seed += 1
                of_kinds = ", ".join(f"{number} of {kind}" for kind, number in sorted(found.compared.items()))
                print(
                    f"{way.value}, {'one daemon' if remembers else 'started anew'}: {seed - first_seed} sequences, "
                    f"{found.polls} polls, {found.pools} pools, "
                    f"{found.compared.total()} numbers called exact ({of_kinds}), {len(found.wrong)} wrong",
                    flush=True,
                )
                for line in found.wrong[:5]:
                    print(f"  {line}", flush=True)
                wrong += len(found.wrong)
    return wrong


def can_walk() -> bool:
    """Tell whether TCP can be read by BPF here; runs in an agent."""
    return walk() is not None


def compare_mixes(number: int, first_seed: int) -> int:
    """Predict a pool in each of so many mixes, and return how many predictions with the probe were wrong."""
    with Namespace() as agent:
        seeds = list(range(first_seed, first_seed + number))
        outcomes = agent.call_within(SECONDS * 10, connect_outcomes, seeds, asks=Asks.ORDINARY_USER)
    print(summary("tcp_connect", outcomes))
    return sum(one.probed is None or one.probed.remaining != one.count for one in outcomes)


def show_starts(number: int) -> int:
    """Print what each poll costs and leaves in doubt, and return on how many hosts some ports are in doubt still."""
    unknown = 0
    for host in cold_start.HOSTS:
        with Namespace() as agent:
            costs = agent.call_within(SECONDS, cold_start.polls, host, number)
        print(host, flush=True)
        for one in costs:
            ports = f"{one.blocked:6} blocked, {one.ambiguous:6} in doubt"
            print(f"  {one.cpu_ms:6.0f} ms of CPU, {ports}, {sorted(one.alerts)}", flush=True)
        unknown += costs[-1].ambiguous > 0
    return unknown


if __name__ == "__main__":
    sys.exit(main())
