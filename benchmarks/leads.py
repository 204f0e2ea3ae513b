"""How early alerts come: a HAProxy runs out of ports at various speeds, and ephmon watches on its defaults.

    python -m benchmarks.leads [--parallel N] [--only SECONDS ...]

Clients and the service behind the proxy share one network namespace; HAProxy and ephmon share another, with a range of
1,000 ports. For each connection of a client HAProxy opens one to the service and keeps it, until the kernel gives it no
port. The connections come at random moments (exponential gaps, fixed seeds), 1,000 of them within the seconds of the
ramp, or all at once. The polls of the runs of one ramp are shifted against its start by even parts of their interval.

When an alert fires is read from ephmon's log, when the first connect() fails from HAProxy's; both write the time of the
same clock. All runs take eight minutes.
"""

from __future__ import annotations

import argparse
import math
import re
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from random import Random
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.__main__ import positive_number
from benchmarks.machine import describe_machine
from benchmarks.measurement import table
from benchmarks.scenario import NotMeasuredError, program
from ephmon.config.settings import Config
from ephmon.model.alerting.state_machine import AlertName
from ephmon.model.alerting.thresholds import Severity, Thresholds
from tests import sockets
from tests.namespaces import Namespace, connect
from tests.processes import Running, ephmon, eventually

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

PORTS = 1000
SURPLUS = 50
"""So many connections come after those that get a port."""
RANGE = f"40000 {40000 + PORTS - 1}"
CLIENT, PROXY, BITS = "10.9.1.1", "10.9.1.2", 24
SERVICE_PORT, PROXY_PORT = 8080, 8000
RUNS = {180: 4, 120: 6, 90: 6, 60: 8, 30: 6, 10: 6, 5: 6, 2: 6, 0: 6}
"""How many runs of each ramp, in seconds; 0 is a burst. Long ones first, so that the processors are never idle."""
LONG_SECONDS = 60
WARNING, CRITICAL = Thresholds().warning, Thresholds().critical
PARALLEL = 8
INTERVAL_SECONDS = Config().poll.interval_seconds

_HAPROXY_CONFIG = f"""\
global
  log stdout format rfc5424 daemon err
  maxconn {2 * (PORTS + SURPLUS)}
defaults
  log global
  mode tcp
  retries 0
  timeout connect 10s
  timeout client 10m
  timeout server 10m
listen front
  bind {PROXY}:{PROXY_PORT}
  server service {CLIENT}:{SERVICE_PORT}
"""
_NO_PORT = re.compile(r"^<\d+>1 (\S+) .*Connect\(\) failed for backend front: no free ports\.", re.MULTILINE)
_POOL = re.escape(f"{CLIENT}:{SERVICE_PORT}")
_FIRES = re.compile(rf'^time=(\S+) level=\w+ msg="(\w+) fires as (\w+): .* destination={_POOL} ')
_NAMES = {
    AlertName.POOL_EXHAUSTION_FORECAST: "forecast",
    AlertName.POOL_NEAR_EXHAUSTION: "threshold",
    AlertName.CONNECT_EXHAUSTIONS: "failed connect()",
}
LEADS = ("first_lead", "threshold_lead", "critical_lead")
LEADS_HEAD = ("lead", "of the threshold", "of critical")


@dataclass(frozen=True, slots=True)
class Alert:
    """One line of the log that says that an alert on the pool toward the service fires."""

    at: float
    """Seconds since the epoch, as all times here."""
    name: str
    severity: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What happened in one run; leads are seconds by which an alert came before the first connect() that failed."""

    ramp: int
    """Seconds in which as many connections come as there are ports."""
    polled_before: float
    """How many seconds before the start of the ramp the last poll was."""
    opened_at: Sequence[float]
    """When each client connected."""
    failed_at: float
    alerts: Sequence[Alert]

    @property
    def first(self) -> Alert:
        """The first alert."""
        return self.alerts[0]

    @property
    def first_lead(self) -> float:
        """The lead of the first alert, whatever its severity."""
        return self.failed_at - self.first.at

    @property
    def threshold_lead(self) -> float:
        """The lead of the first alert that tells of a threshold, warning or critical."""
        return self.failed_at - next(one.at for one in self.alerts if one.name == AlertName.POOL_NEAR_EXHAUSTION)

    @property
    def critical_lead(self) -> float:
        """The lead of the first critical alert."""
        return self.failed_at - next(one.at for one in self.alerts if one.severity == Severity.CRITICAL)

    @property
    def delays(self) -> tuple[float, float]:
        """Seconds from the connection that reached a threshold to the alert: of the warning's, and of the critical."""
        leads = (self.threshold_lead, self.critical_lead)
        reached = (self.opened_at[math.ceil(PORTS * one.utilisation) - 1] for one in (WARNING, CRITICAL))
        warning, critical = (self.failed_at - lead - at for lead, at in zip(leads, reached, strict=True))
        return warning, critical

    @property
    def keeps_the_claim(self) -> bool:
        """Whether an alert came before the failure, or on a short ramp the critical one within an interval after it."""
        if self.ramp >= LONG_SECONDS:
            return self.first_lead > 0
        return self.critical_lead >= -INTERVAL_SECONDS

    def row(self) -> list[str]:
        """Return what the table of all runs says of it."""
        return [
            f"{self.ramp} s" if self.ramp else "burst",
            f"{self.polled_before:.1f} s",
            f"{self.failed_at - self.opened_at[0]:.2f} s",
            f"{_NAMES[AlertName(self.first.name)]}, {self.first.severity}",
            *(f"{lead:+.2f} s" for lead in (self.first_lead, self.threshold_lead, self.critical_lead)),
        ]


def ramp(seconds: float, seed: int) -> list[float]:
    """Connect to the proxy at random moments, keep the connections and return the moments. Runs with the clients.

    A connection that finds the proxy without a port is closed by it, which is not this function's concern.
    """
    random, kept = Random(seed), sockets.held.setdefault("clients", [])
    due, moments = time.time(), []
    for _ in range(PORTS + SURPLUS):
        due += random.expovariate(PORTS / seconds) if seconds else 0.0
        time.sleep(max(0.0, due - time.time()))
        moments.append(time.time())
        kept.append(socket.create_connection((PROXY, PROXY_PORT)))
    return moments


def measured(seconds: int, polled_before: float, seed: int) -> Run:
    """Run one ramp in namespaces of its own, which begins so long after a poll."""
    with (
        Namespace() as clients,
        Namespace(beside=clients) as proxy,
        tempfile.TemporaryDirectory() as directory,
    ):
        connect(clients, proxy, addresses=(f"{CLIENT}/{BITS}", f"{PROXY}/{BITS}"))
        proxy.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", RANGE)
        clients.call(sockets.listen, CLIENT, SERVICE_PORT, tag="service")
        config = Path(directory, "defaults.yaml")
        config.write_text("{}\n", encoding="ascii")
        log = Path(directory, "haproxy.log")
        with _haproxy(proxy, log), Running(proxy, ephmon("run", "--config", config)) as daemon:
            polled_at = _time(daemon.wait_for_line(f"{PORTS} ports are usable.").split()[0])
            # Two polls, so that the daemon has settled.
            time.sleep(max(0.0, polled_at + INTERVAL_SECONDS + polled_before - time.time()))
            opened_at = clients.call_within(2 * seconds + 60, ramp, seconds, seed)
            if not any(" fires as critical" in line for line in daemon.lines):
                daemon.wait_for_line(" fires as critical")
            daemon.stop()
        failures = _NO_PORT.findall(log.read_text(encoding="utf-8"))
        if not failures:
            raise NotMeasuredError(f"HAProxy had a port for each connection of a ramp of {seconds} s")
        return Run(
            ramp=seconds,
            polled_before=polled_before,
            opened_at=opened_at,
            failed_at=datetime.fromisoformat(failures[0]).timestamp(),
            alerts=tuple(alerts(daemon.lines)),
        )


@contextmanager
def _haproxy(namespace: Namespace, log: Path) -> Iterator[None]:
    """Run HAProxy, and wait until it listens."""
    config = log.with_suffix(".cfg")
    config.write_text(_HAPROXY_CONFIG, encoding="ascii")
    command = namespace.command(program("haproxy"), "-db", "-f", str(config))
    with (
        log.open("wb") as file,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.DEVNULL) as process,
    ):
        try:
            eventually(lambda: namespace.call(listeners), lambda found: PROXY_PORT in found)
            yield
        finally:
            process.kill()


def listeners() -> set[int]:
    """Return the ports on which somebody listens in the namespace of the caller; to try a connection would take one."""
    rows = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    return {int(local.rpartition(":")[2], 16) for _, local, _, state, *_ in map(str.split, rows) if state == "0A"}


def alerts(lines: Iterable[str]) -> Iterator[Alert]:
    """Yield the alerts on the pool that HAProxy draws from, as the daemon's log says they fire."""
    for line in lines:
        if found := _FIRES.match(line):
            time_text, name, severity = found.groups()
            yield Alert(_time(f"time={time_text}"), name, severity)


def _time(field: str) -> float:
    """Return the seconds of a field of the log, as time=2026-01-31T12:00:00.000Z."""
    return datetime.fromisoformat(field.removeprefix("time=")).timestamp()


def planned(only: Sequence[int]) -> Iterator[tuple[int, float, int]]:
    """Yield the arguments of each run."""
    for seconds, number in RUNS.items():
        for count in range(number):
            if not only or seconds in only:
                yield seconds, count * INTERVAL_SECONDS / number, 1000 * seconds + count


def summary(runs: Sequence[Run]) -> str:
    """Return the table of the leads by ramp."""
    rows = []
    for ramp_seconds in dict.fromkeys(run.ramp for run in runs):
        mine = [run for run in runs if run.ramp == ramp_seconds]
        leads = [_spread([getattr(run, lead) for run in mine]) for lead in LEADS]
        kept = sum(run.first_lead > 0 for run in mine)
        rows.append([f"{ramp_seconds} s" if ramp_seconds else "burst", f"{kept} of {len(mine)}", *leads])
    return table(["ports gone within", "alert before the failure", *(f"{lead}, s" for lead in LEADS_HEAD)], rows)


def _spread(leads: Sequence[float]) -> str:
    return f"{median(leads):+.1f} ({min(leads):+.1f} to {max(leads):+.1f})"


def verdict(runs: Sequence[Run]) -> str:
    """Return the claims with how many runs keep them, and how long alerts took once a threshold was reached."""
    long = [run for run in runs if run.ramp >= LONG_SECONDS]
    short = [run for run in runs if run.ramp < LONG_SECONDS]
    text = (
        f"Ramps of {LONG_SECONDS} s and longer with an alert before the first connect() that failed: "
        f"{sum(run.keeps_the_claim for run in long)} of {len(long)}. Shorter ones and bursts with the critical alert "
        f"no later than a poll's interval, {INTERVAL_SECONDS:g} s, after it: "
        f"{sum(run.keeps_the_claim for run in short)} of {len(short)}."
    )
    for threshold, delays in zip((WARNING, CRITICAL), zip(*(run.delays for run in long), strict=True), strict=False):
        text += (
            f" On long ramps from {threshold.utilisation:.0%} to its alert: {min(delays):.1f} to {max(delays):.1f} s."
        )
    return text


def main(arguments: Sequence[str]) -> int:
    """Run all ramps and print the tables; the exit status is 1 if a run does not keep the claim."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.leads", description="Measure how early alerts come.")
    parser.add_argument("--parallel", type=positive_number, default=PARALLEL, help="how many runs at the same time")
    parser.add_argument("--only", type=int, nargs="+", default=[], metavar="SECONDS", help="only these ramps")
    options = parser.parse_args(arguments)
    machine = describe_machine()
    with ThreadPoolExecutor(options.parallel) as threads:
        started = [threads.submit(measured, *run) for run in planned(options.only)]
        runs = sorted((one.result() for one in started), key=lambda run: (-run.ramp, run.polled_before))
    print(summary(runs))
    head = ["ports gone within", "last poll before the start", "first failure after", "first alert", *LEADS_HEAD]
    print(table(head, [run.row() for run in runs]))
    print(verdict(runs))
    print(f"\nMeasured on {machine}, {options.parallel} runs at the same time.")
    return 0 if all(run.keeps_the_claim for run in runs) else 1


if __name__ == "__main__":
    # What is called in a namespace must be found there by its name, and this module is called otherwise when it is run.
    from benchmarks.leads import main as run_all

    sys.exit(run_all(sys.argv[1:]))
