"""How right the forecast is: real connections until the real EADDRNOTAVAIL, and the errors of what was foretold.

    python -m benchmarks.forecast

Each load runs in a network namespace of its own with a range of 1,000 ports, all of them at the same time, for at most
seven minutes. Connections come at random moments (exponential gaps, fixed seeds). The namespace is polled each second;
one chain of reports sees every poll, another every fifth, as the daemon does by default.
"""

from __future__ import annotations

import errno
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random

from benchmarks.machine import describe_machine
from benchmarks.measurement import table
from ephmon.kernel.source import SocketSource
from ephmon.model.report import ReloadStatus, Report
from ephmon.model.rules import ListingRules, Rules
from ephmon.model.state import State, initial_state
from ephmon.model.step import conclude
from tests import sockets
from tests.namespaces import Namespace

PORTS = 1000
RANGE = f"40000 {40000 + PORTS - 1}"
PORT = 80
OWN, LOOPBACK = "10.8.0.1", "127.0.0.1"
BEFORE = (60, 30, 10)
"""At how many seconds before the failure a forecast is held against it."""
INTERVALS = (1, 5)
DEADLINE_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Connections that are opened at random moments."""

    title: str
    stay_per_second: float = 0.0
    """These stay open."""
    leave_per_second: float = 0.0
    """These are closed at once, by the client first, and leave a TIME_WAIT."""
    seconds: float = 420.0
    """When to give up."""
    address: str = OWN


LOADS = (
    Load(title="ramp, 10 connections/s that stay", stay_per_second=10),
    Load(title="ramp, 5 connections/s that stay", stay_per_second=5),
    Load(title="short connections at 120 % of the sustainable rate", leave_per_second=1.2 * PORTS / 60),
    Load(title="short connections at 200 %", leave_per_second=2 * PORTS / 60),
    Load(title="short connections at 60 %, and 4/s that stay", leave_per_second=0.6 * PORTS / 60, stay_per_second=4),
    Load(title="short connections at 60 %, and 1/s that stay", leave_per_second=0.6 * PORTS / 60, stay_per_second=1),
    Load(title="short connections at 30 %", leave_per_second=0.3 * PORTS / 60, seconds=180),
    Load(title="short connections at 60 %", leave_per_second=0.6 * PORTS / 60, seconds=180),
    Load(title="short connections at 80 %", leave_per_second=0.8 * PORTS / 60, seconds=180),
    Load(title="short connections at 300 %, reused (loopback)", leave_per_second=50, seconds=120, address=LOOPBACK),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was foretold and what came; times in seconds from the start."""

    foretold: dict[int, list[tuple[float, float | None]]]
    """By the interval of the polls: the time of each poll, and the seconds to exhaustion."""
    failed_at: float | None

    def error(self, interval: int, before: float) -> str:
        """Return by how much the failure came later (-) or earlier (+) than foretold so long before it."""
        if self.failed_at is None or self.failed_at < before:
            return ""
        at, seconds = max(made for made in self.foretold[interval] if made[0] <= self.failed_at - before)
        return "no forecast" if seconds is None else f"{at + seconds - self.failed_at:+.1f} s"

    def number(self, interval: int) -> str:
        """Return how many of the polls foretold something."""
        made = self.foretold[interval]
        return f"{sum(seconds is not None for _, seconds in made)} of {len(made)}"


def serve(load: Load, seed: int) -> Outcome:
    """Open the connections of a load and poll, in the namespace of the caller."""
    random, watching = Random(seed), Watching(load.address)
    with socket.create_server((load.address, PORT), backlog=4096) as server:
        kept: list[socket.socket] = []
        start = time.monotonic()
        due = {"poll": 0.0} | {
            kind: random.expovariate(rate)
            for kind, rate in (("stay", load.stay_per_second), ("leave", load.leave_per_second))
            if rate
        }
        while (at := min(due.values())) < load.seconds:
            kind = min(due, key=lambda one: due[one])
            time.sleep(max(0.0, start + at - time.monotonic()))
            if kind == "poll":
                watching.poll(time.monotonic() - start)
                due[kind] += 1
                continue
            due[kind] += random.expovariate(load.stay_per_second if kind == "stay" else load.leave_per_second)
            pair = connected(server, load.address)
            if pair is None:
                return Outcome(watching.foretold, time.monotonic() - start)
            if kind == "stay":
                kept.extend(pair)
            else:
                for end in pair:
                    end.close()
    return Outcome(watching.foretold, None)


def connected(server: socket.socket, address: str) -> tuple[socket.socket, socket.socket] | None:
    """Return both ends of a new connection, None if there is no port for it."""
    client = socket.socket()
    error = client.connect_ex((address, PORT))
    if error == errno.EADDRNOTAVAIL:
        client.close()
        return None
    if error:
        raise OSError(error, errno.errorcode[error])
    return client, server.accept()[0]


class Watching:
    """Polls as the daemon does, in two chains of states."""

    def __init__(self, destination: str) -> None:
        self._source = SocketSource(proc=Path("/proc"), clock=time.monotonic, wall_clock=time.time, mode="inet_diag")
        self._destination = destination
        blank = initial_state(
            Rules(listing=ListingRules(min_in_use=1)), ReloadStatus(successful=True, succeeded_at=time.time())
        )
        self._states: dict[int, State] = dict.fromkeys(INTERVALS, blank)
        self.foretold: dict[int, list[tuple[float, float | None]]] = {interval: [] for interval in INTERVALS}
        self._polls = 0

    def poll(self, at: float) -> None:
        """Read the kernel once and note what each chain whose turn it is foretells."""
        snapshot = self._source.read(DEADLINE_SECONDS)
        for interval in INTERVALS:
            if self._polls % interval == 0:
                self._states[interval] = conclude(snapshot, self._states[interval], time.monotonic())
                self.foretold[interval].append((at, self._seconds(self._states[interval].report)))
        self._polls += 1

    def _seconds(self, report: Report) -> float | None:
        listed = [one for one in report.listed if one.pool.key.destination == self._destination]
        forecasts = [one.forecast.seconds_to_exhaustion for one in listed if one.forecast is not None]
        return forecasts[0] if forecasts else None


def measured(load: Load, seed: int) -> Outcome:
    """Run a load in a namespace of its own."""
    with Namespace(addresses=[f"{OWN}/32"]) as namespace:
        for name, value in (("ip_local_port_range", RANGE), ("tcp_tw_reuse", 2), ("tcp_rfc1337", 1)):
            namespace.call(sockets.write_sysctl, f"net.ipv4.{name}", value)
        return namespace.call_within(load.seconds + 60, serve, load, seed)


def main() -> int:
    """Run all loads and print the tables."""
    with ThreadPoolExecutor(len(LOADS)) as threads:
        runs = [threads.submit(measured, load, seed) for seed, load in enumerate(LOADS, start=1)]
        outcomes = [one.result() for one in runs]
    failed = [(load, one) for load, one in zip(LOADS, outcomes, strict=True) if one.failed_at is not None]
    endless = [(load, one) for load, one in zip(LOADS, outcomes, strict=True) if one.failed_at is None]
    head = ["load", "polls each", "failed after", *(f"{before} s before" for before in BEFORE)]
    print(table(head, [row(load, one, interval) for load, one in failed for interval in INTERVALS]))
    head = ["load that did not fail", "seconds", *(f"polls with a forecast, each {i} s" for i in INTERVALS)]
    print(table(head, [(load.title, f"{load.seconds:.0f}", *map(one.number, INTERVALS)) for load, one in endless]))
    print(f"Measured on {describe_machine()}.")
    return 0


def row(load: Load, one: Outcome, interval: int) -> list[str]:
    """Return what polls at an interval foretold of a load that failed."""
    errors = [one.error(interval, before) for before in BEFORE]
    return [load.title, f"{interval} s", f"{one.failed_at:.0f} s", *errors]


if __name__ == "__main__":
    # What is called in a namespace must be found there by its name, and this module is called otherwise when it is run.
    from benchmarks.forecast import main as run

    sys.exit(run())
