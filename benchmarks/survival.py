"""Scenario `survival`: an hour in which everything around the daemon fails by turns, and whether it stays as it is.

A pool fills until connect() fails and empties again, sockets come and go toward many destinations, the configuration
is read again every 15 s, every other time a wrong one, and the receivers of alerts are up, down, wrong or silent.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import statistics
import tempfile
import threading
import time
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.load import replace_some
from benchmarks.measurement import MIB, NOT_MEASURED, memory, table
from benchmarks.running_daemon import polls_made
from benchmarks.scenario import NotMeasuredError, Options, Scenario
from tests import sockets
from tests.namespaces import Namespace
from tests.processes import Running, ephmon, eventually, put
from tests.tracing import seeing_tracefs, stopping

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.processes import Metrics

_SECONDS, _QUICK_SECONDS = 3600.0, 4.0
_WARM_UP = 0.1
"""The share of the time after which memory is looked at."""
_LONGEST = 15.0
"""How many times as long it may go on, until there are two samples."""
_RANGE = "20000 21999"
_HERE, _POOL_PORT = "127.0.0.1", 80
_RECEIVERS = 9001, 9002
_FAILED_CALLS = 'ephmon_connect_exhaustions_total{netns="own"}'
_HELD, _CHURNED, _DESTINATIONS = 400, 200, 20_000
_SECONDS_BETWEEN_RELOADS, _SECONDS_BETWEEN_FAILURES = 15.0, 20.0
_CONFIG = """\
poll: {{interval: 100ms, urgent_interval: 100ms, cpu_budget: 1, urgent_cpu_budget: 1}}
pools: {{top: {top}, ignore_destinations: ["127.0.0.1:19100"]}}
thresholds: {{warning: {{for: 0s}}, critical: {{for: 0s}}}}
notify:
  labels: {{instance: web1}}
  alertmanager: {{urls: ["http://localhost:9001"]}}
  webhook: {{url: "http://127.0.0.1:9002/hook"}}
log: {{level: error}}
"""
_WRONG = "poll: {interval: never}\n"


class _Receiver:
    """Takes posts as its mode says, and remembers how each alert fared last. Lives in the namespace."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener: socket.socket | None = None
        self._held: list[socket.socket] = []
        self.mode = "down"
        self.states: dict[str, str] = {}
        """The status that was accepted last, by the labels of the alert."""

    def set_mode(self, mode: str) -> None:
        """Be `up`, `down`, `wrong` (status 500) or `silent`."""
        self.mode = mode
        while self._held:
            self._held.pop().close()
        if mode == "down" and self._listener is not None:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        elif mode != "down" and self._listener is None:
            self._listener = socket.create_server((_HERE, self._port), backlog=64)
            threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                peer, _ = listener.accept()
                if self.mode == "silent":
                    self._held.append(peer)
                    continue
                with peer, suppress(OSError):
                    peer.settimeout(5.0)
                    self._answer(peer)

    def _answer(self, peer: socket.socket) -> None:
        with peer.makefile("rb") as request:
            length = 0
            while line := request.readline().strip():
                if line.lower().startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
            body = json.loads(request.read(length))
        status = HTTPStatus.OK if self.mode == "up" else HTTPStatus.INTERNAL_SERVER_ERROR
        if status is HTTPStatus.OK:
            for alert in body if isinstance(body, list) else body["alerts"]:
                over = alert["status"] == "resolved" if "status" in alert else _is_past(alert["endsAt"])
                self.states[json.dumps(alert["labels"], sort_keys=True)] = "resolved" if over else "firing"
        peer.sendall(f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Length: 0\r\n\r\n".encode())


def _is_past(moment: str) -> bool:
    return moment <= time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


_receivers: dict[int, _Receiver] = {}


def receive(port: int, mode: str) -> None:
    """Let the receiver on a port behave like this from now on."""
    _receivers.setdefault(port, _Receiver(port)).set_mode(mode)


def states(port: int) -> dict[str, str]:
    """Return how each alert fared last, by its labels, as the receiver on a port accepted it."""
    return dict(_receivers[port].states)


class Sample(NamedTuple):
    """What the daemon had after how many polls."""

    polls: float
    rss_bytes: int
    descriptors: int
    threads: int


def run(options: Options) -> str:
    """Let everything fail by turns, and fit a line to the memory."""
    seconds = _QUICK_SECONDS if options.quick else _SECONDS
    with tempfile.TemporaryDirectory() as folder, Namespace() as namespace:
        namespace.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", _RANGE)
        namespace.call(sockets.listen, _HERE, _POOL_PORT, tag="pool-server")
        config = put(Path(folder, "config.yaml"), _CONFIG.format(top=50))
        command = ephmon("run", "--config", config)
        # Only root sees failed calls.
        with stopping(Running(namespace, command if os.geteuid() else seeing_tracefs(*command))) as daemon:
            daemon.wait_for(poll_success=1)
            return _report(daemon, namespace, _Hour(namespace, daemon, config), seconds)


class _Hour:
    """What happens, step by step."""

    def __init__(self, namespace: Namespace, daemon: Running, config: Path) -> None:
        self._namespace = namespace
        self._daemon = daemon
        self._config = config
        self._modes = self._turns()
        self._reloaded_at = self._failed_at = time.monotonic()
        self.reloads = self.fills = self.replaced = self.refused = 0

    @staticmethod
    def _turns() -> Iterator[tuple[str, str]]:
        while True:
            yield from (("up", "down"), ("down", "wrong"), ("wrong", "silent"), ("silent", "up"), ("up", "up"))

    def step(self) -> None:
        """Fill the pool, let calls fail, empty it; replace sockets; reload and change the receivers if it is time."""
        result = self._namespace.call(sockets.fill, _HERE, _POOL_PORT, tag="pool", limit=sockets.ALL_PORTS)
        self.fills += 1
        self.refused += result.errno == errno.EADDRNOTAVAIL
        self._namespace.call(sockets.accept_all, "pool-server", tag="accepted")  # or its queue is full after some steps
        self._namespace.call(sockets.abort, "accepted")
        self.replaced += self._namespace.call(replace_some, _HELD, _CHURNED, _DESTINATIONS)
        time.sleep(0.5)
        self._namespace.call(sockets.abort, "pool")
        now = time.monotonic()
        if now - self._reloaded_at >= _SECONDS_BETWEEN_RELOADS:
            self._reloaded_at = now
            self.reloads += 1
            put(self._config, _WRONG if self.reloads % 2 else _CONFIG.format(top=50 + self.reloads % 4))
            self._daemon.signal(signal.SIGHUP)
        if now - self._failed_at >= _SECONDS_BETWEEN_FAILURES:
            self._failed_at = now
            for port, mode in zip(_RECEIVERS, next(self._modes), strict=True):
                self._namespace.call(receive, port, mode)
        time.sleep(0.5)

    def end(self, *, waits_for_alerts: bool) -> Metrics:
        """Bring the receivers back, wait until nothing is pending, and return the metrics.

        The last alert ends a minute after the last failed call; a quick run does not wait for that.
        """
        for port in _RECEIVERS:
            self._namespace.call(receive, port, "up")
        return eventually(
            self._daemon.metrics, lambda metrics: _pending(metrics) == 0 and not (waits_for_alerts and _firing(metrics))
        )


def _pending(metrics: Metrics) -> float:
    return sum(value for name, value in metrics.items() if name.startswith("ephmon_notifications_pending"))


def _firing(metrics: Metrics) -> float:
    return sum(value for name, value in metrics.items() if name.startswith("ephmon_alerts_active"))


def _report(daemon: Running, namespace: Namespace, hour: _Hour, seconds: float) -> str:
    started = time.monotonic()
    samples: list[Sample] = []
    # A line takes two samples with a poll between them, which a busy machine may not get to in the time of a quick run.
    while (passed := time.monotonic() - started) < seconds or len({sample.polls for sample in samples}) < 2:
        if passed > _LONGEST * seconds:
            raise NotMeasuredError(f"the daemon made too few polls in {passed:.0f} s")
        hour.step()
        if passed >= seconds * _WARM_UP:
            samples.append(_sample(daemon))
    metrics = hour.end(waits_for_alerts=seconds > _QUICK_SECONDS)
    told = [state for port in _RECEIVERS for state in namespace.call(states, port).values()]
    rss = [sample.rss_bytes / MIB for sample in samples]
    slope = statistics.linear_regression([one.polls for one in samples], [one.rss_bytes for one in samples]).slope
    return table(
        (f"{seconds / 60:g} minutes", ""),
        [
            (
                "polls, and how many failed",
                f"{polls_made(metrics):,.0f}, {_sum(metrics, 'ephmon_poll_failures_total'):g}",
            ),
            ("times that the pool was filled until connect() failed", f"{hour.refused:,} of {hour.fills:,}"),
            ("failed connect() calls that were counted", _counted(metrics)),
            ("sockets replaced", f"{hour.replaced:,}"),
            ("reloads, half of them of a wrong configuration", f"{hour.reloads:,}"),
            ("posts", f"{_sum(metrics, 'ephmon_notifications_total'):,.0f}"),
            ("posts that failed", f"{_sum(metrics, 'ephmon_notifications_failed_total'):,.0f}"),
            ("alerts at the receivers in the end, and how many still fire", f"{len(told):,}, {told.count('firing')}"),
            ("alerts whose end a receiver never got", f"{_sum(metrics, 'ephmon_notifications_dropped_total'):g}"),
            ("threads started again", f"{_sum(metrics, 'ephmon_thread_restarts_total'):g}"),
            ("RSS after the warm-up, at the end, MiB", f"{rss[0]:.2f}, {rss[-1]:.2f}"),
            ("slope of RSS for each 1,000 polls, MiB", f"{slope * 1000 / MIB:+.3f}"),
            ("descriptors, least and greatest", _extent([one.descriptors for one in samples])),
            ("threads, least and greatest", _extent([one.threads for one in samples])),
        ],
    )


def _sample(daemon: Running) -> Sample:
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{daemon.pid}/status").read_text().splitlines())
    descriptors = len(list(Path(f"/proc/{daemon.pid}/fd").iterdir()))
    return Sample(polls_made(daemon.metrics()), memory(daemon.pid, "VmRSS"), descriptors, int(status["Threads"]))


def _counted(metrics: Metrics) -> str:
    return f"{metrics[_FAILED_CALLS]:,.0f}" if _FAILED_CALLS in metrics else NOT_MEASURED


def _sum(metrics: Metrics, name: str) -> float:
    return sum(value for series, value in metrics.items() if series.partition("{")[0] == name)


def _extent(values: list[int]) -> str:
    return f"{min(values)}, {max(values)}"


SCENARIOS = (
    Scenario(
        name="survival",
        summary="an hour in which pools, configurations and receivers fail by turns",
        run=run,
        is_long=True,
        is_smoke=True,
    ),
)
