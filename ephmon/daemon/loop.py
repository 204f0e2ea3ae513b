"""The daemon: starts, polls, reloads and stops. It wires kernel, model and outputs and decides nothing about ports.

One thread polls and waits; its one wait is for a signal or for the time of the next poll (`ephmon.daemon.signals`).
A second thread serves HTTP and shares nothing with this one but finished bytes.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ephmon import __version__, log
from ephmon.config.secrets import read_webhook_url
from ephmon.config.settings import Config, ListenAddress, ProbeChoice, Switch, TlsConfig
from ephmon.daemon import signals
from ephmon.daemon.exhaustion_watch import ExhaustionWatch
from ephmon.daemon.incident_log import IncidentLog
from ephmon.daemon.owner_watch import OwnerWatch
from ephmon.daemon.service_manager import ServiceManager
from ephmon.delivery.notification import notifications_of
from ephmon.delivery.service import Delivery
from ephmon.delivery.settings import DeliverySettings
from ephmon.errors import ConfigError, EphmonError, KernelError
from ephmon.http.rendering import publication_of
from ephmon.http.server import HttpServer
from ephmon.http.tls import TlsFiles, build_tls_context
from ephmon.kernel.deadline import Deadline
from ephmon.kernel.probe import ProbeByTurns
from ephmon.kernel.proc import sysctl
from ephmon.kernel.source import SocketSource
from ephmon.log import Line
from ephmon.model.pace import Poll
from ephmon.model.report import ReloadStatus, Report, initial_report
from ephmon.model.step import (
    build_report,
    failed_report,
    narrow_destinations,
    next_full_poll,
    paced,
    ports_in_doubt,
    refreshed_report,
)
from ephmon.outputs.metrics.exposition import process_registry
from ephmon.outputs.text import changes, start_lines

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from ephmon.facts.snapshot import PortRange, Snapshot

LONGEST_SLEEP_SECONDS = 10.0
"""The loop wakes at least this often, so that the HTTP side can tell a waiting daemon from a wedged one."""
EXHAUSTION_SECONDS = 1.0
"""While failed connect() calls are counted, the loop asks for them this often."""
MOST_PROBED_PORTS = 2_000
"""So many ports in doubt are probed in one poll, 12 microseconds each, 22 if blocked; the rest has its turn later."""
PROBE_SECONDS = 1.0
"""How long the probe may take of a poll."""
PROBE_CUT = f"The probe was cut after {PROBE_SECONDS:g} s; its answers count, and the next polls ask about the rest."
SWITCH_SECONDS = 0.001
EXPIRY_INTERVALS = 3
"""Data older than so many intervals is no longer served."""

_log = logging.getLogger("ephmon.daemon.loop")


class Daemon:
    """One run of the daemon, from start to stop.

    Args:
        read_config: Reads the configuration, at start and at each reload.
        proc: Where procfs is mounted.
        clock: The monotonic clock, seconds.
        wall_clock: Seconds since the epoch.

    Raises:
        EphmonError: The configuration is wrong, or files that it names cannot be used.
    """

    def __init__(
        self,
        read_config: Callable[[], Config],
        *,
        proc: Path,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._read_config = read_config
        self._config = config = read_config()
        self._proc = proc
        self._clock = clock
        self._wall_clock = wall_clock
        self._source = self._open_source(config)
        self._probe = ProbeByTurns(MOST_PROBED_PORTS)
        reload = ReloadStatus(successful=True, succeeded_at=wall_clock())
        self._report = initial_report(config.rules, reload)
        self._process = process_registry()
        self._server = HttpServer(
            (config.listen.host, config.listen.port), monotonic=clock, tls=_tls_context(config.tls)
        )
        self._webhook_url = read_webhook_url(config.notify.webhook)
        self._delivery = Delivery()
        self._exhaustions = ExhaustionWatch(proc)
        self._incidents = IncidentLog(clock, wall_clock)
        self._owners = OwnerWatch(proc, clock, signals.not_told_to_stop)
        self._service_manager = ServiceManager.from_environment(os.environ, os.getpid())
        self._checked_source_ports: PortRange | None = None
        self._said_what_is_not_seen = False
        self._narrow_error: str | None = None

    def run(self) -> None:
        """Serve and poll until SIGTERM or SIGINT.

        Raises:
            ListenError: The address cannot be listened on.
        """
        signals.block()
        # A scrape that comes during a poll waits so long for the interpreter, several times; 5 ms is the default.
        sys.setswitchinterval(SWITCH_SECONDS)
        self._server.start()
        try:
            self._say_where()
            self._deliver(self._config, self._webhook_url)
            _warn(self._exhaustions.go_by(self._config.exhaustions))
            self._incidents.go_by(self._config.incidents)
            self._loop()
        finally:
            self._service_manager.stopping()
            self._delivery.close()
            self._incidents.close()
            _warn(self._exhaustions.close())
            self._server.stop()
        log.write(_log, Line(logging.INFO, "Stopped."))

    def _count_exhaustions(self, now: float) -> bool:
        """Take in the connect() calls that have failed, and tell whether one of our own namespace did."""
        previous = self._report
        try:
            self._report, failed_here = self._exhaustions.updated(previous, now)
        except Exception:  # noqa: BLE001 - a defect of ours must not end a monitor; it is told with its place
            _log.exception("A defect of ephmon ends the counting of failed connect() calls, please report it")
            self._exhaustions.give_up()
            return False
        required = self._config.exhaustions.enabled == Switch.ON
        for line in changes.exhaustion_lines(previous, self._report, required=required):
            log.write(_log, line)
        return failed_here

    def _loop(self) -> None:
        polled_at = narrowly_polled_at = -math.inf
        failed_lately = False
        while True:
            self._server.beat()
            self._service_manager.wake_up(self._config.poll.deadline_seconds)
            now = self._clock()
            failed_lately = self._count_exhaustions(now) or failed_lately
            # Asked anew after each wait, because a poll or a reload may have changed the pace.
            pace = self._report.pace
            narrow = pace.soonest if failed_lately and self._source.reads_tcp_by_inet_diag else pace.narrow or math.inf
            if now >= polled_at + pace.full:
                failed_lately = False
                polled_at = narrowly_polled_at = now
                self._tick(next_full_poll(self._report), self._poll)
            elif now >= narrowly_polled_at + narrow:
                failed_lately = False
                narrowly_polled_at = now
                self._tick(Poll.NARROW, self._poll_narrowly)
            pace = self._report.pace
            next_poll = min(polled_at + pace.full, narrowly_polled_at + (pace.narrow or math.inf))
            self._service_manager.ready(self._report)
            longest_sleep = min(
                EXHAUSTION_SECONDS if self._exhaustions.is_on else LONGEST_SLEEP_SECONDS,
                self._service_manager.longest_sleep_seconds,
            )
            received = signals.wait(min(max(0.0, next_poll - self._clock()), longest_sleep))
            if received in signals.STOP:
                return
            if received == signals.RELOAD:
                self._service_manager.reloading(self._clock())
                self._reload()
                self._service_manager.ready(self._report)

    def _tick(self, kind: Poll, poll: Callable[[Report], Report]) -> None:
        """Poll once and publish. Whatever goes wrong is logged and counted, and the loop goes on."""
        cpu_before, started = time.thread_time(), self._clock()
        previous = found = self._report
        try:
            found = poll(previous)
            self._report = paced(found, previous.costs.after(kind, time.thread_time() - cpu_before))
            if self._delivery.is_running:
                self._delivery.update(notifications_of(self._report))
            self._publish()
            for line in changes.poll_lines(previous, self._report):
                log.write(_log, line)
            self._incidents.update(self._report)
        except Exception as error:  # noqa: BLE001 - a defect of ours must not end a monitor; it is told with its place
            defect = f"{type(error).__name__}: {error}"
            if previous.error != defect:
                _log.exception("A defect of ephmon made the poll fail, please report it")
            # What the poll found counts all the same, above all that alerts are pending or have begun to fire.
            found = replace(found, totals=previous.totals)
            self._report = failed_report(found, defect, "defect", self._clock() - started)
            with suppress(Exception):  # if the defect lies in rendering, what is served expires by itself
                self._publish()
        spent = time.thread_time() - cpu_before
        totals = self._report.totals
        self._report = replace(
            self._report,
            totals=replace(totals, cpu_seconds=totals.cpu_seconds + spent),
            costs=previous.costs.after(kind, spent),
        )

    def _poll(self, previous: Report) -> Report:
        started = self._clock()
        try:
            evidence = next_full_poll(previous) is Poll.FULL
            snapshot = self._source.read(self._config.poll.deadline_seconds, evidence=evidence)
            if not self._said_what_is_not_seen:
                self._said_what_is_not_seen = True
                self._say_what_is_not_seen(snapshot)
            self._say_which_source_ports_are_at_risk(snapshot)
            report = self._owners.look(self._conclude(snapshot, previous))
        except KernelError as error:
            if error.reason == "stopped":
                return previous
            return failed_report(previous, str(error), error.reason, self._clock() - started)
        return replace(report, duration_seconds=self._clock() - started)

    def _poll_narrowly(self, previous: Report) -> Report:
        """Read only what leads to the destinations that are watched.

        Everything if the sysctls have changed, or if the source has not read TCP by inet_diag (a reload may have
        exchanged it since the pace was chosen).
        """
        if not self._source.reads_tcp_by_inet_diag:
            return self._poll(previous)
        destinations = narrow_destinations(previous, self._clock())
        if not destinations:
            return previous  # what failed is ignored, or has had its time while something else was polled
        try:
            narrow = self._source.read_toward(destinations, self._config.poll.deadline_seconds)
        except KernelError as error:
            if error.reason == "stopped":
                return previous
            self._say_of_narrow_polls(str(error))
            return replace(previous, totals=previous.totals.counted(Poll.NARROW, failure=error.reason))
        self._say_of_narrow_polls(None)
        return refreshed_report(narrow, previous, self._clock()) or self._poll(previous)

    def _say_of_narrow_polls(self, error: str | None) -> None:
        """Log that narrow polls fail, for another reason than before, or succeed again."""
        if error == self._narrow_error:
            return
        self._narrow_error = error
        if error is None:
            log.write(_log, Line(logging.INFO, "Urgent polls in between full polls succeed again."))
        else:
            log.write(_log, Line(logging.WARNING, f"Urgent polls in between full polls fail: {error}"))

    def _conclude(self, snapshot: Snapshot, previous: Report) -> Report:
        """Build the report, after asking the kernel about ports in doubt if the configuration wants it."""
        if self._config.poll.probe == ProbeChoice.NEVER:
            return replace(build_report(snapshot, previous, self._clock()), probe_error=None, probe_available=None)
        if next_full_poll(previous) is Poll.COUNTING:
            return build_report(snapshot, previous, self._clock())
        in_doubt = ports_in_doubt(snapshot, previous)
        deadline = Deadline(PROBE_SECONDS, self._clock, signals.not_told_to_stop)
        try:
            answers = {inode: self._probe.ask(ports, deadline) for inode, ports in in_doubt.items()}
        except KernelError as error:
            if error.reason == "stopped":
                raise
            report = build_report(snapshot, previous, self._clock())
            return replace(report, probe_error=str(error), probe_available=False)
        is_cut = any(len(answers[inode]) < min(len(ports), MOST_PROBED_PORTS) for inode, ports in in_doubt.items())
        report = build_report(snapshot, previous, self._clock(), answers)
        return replace(report, probe_error=PROBE_CUT if is_cut else None, probe_available=True)

    def _publish(self) -> None:
        taken = self._report.taken_at_monotonic
        expires_at = None if taken is None else taken + EXPIRY_INTERVALS * self._report.pace.full
        self._server.publish(
            publication_of(
                self._report,
                kernel_release=os.uname().release,
                process_registry=self._process,
                expires_at=expires_at,
                delivery=self._delivery.status(),
                incidents=self._incidents.status(),
            )
        )

    def _reload(self) -> None:
        """Take over the configuration file as it is now, as a whole or not at all."""
        try:
            config = self._read_config()
            if config.listen != self._config.listen:
                raise ConfigError(
                    f"listen cannot change by a reload ({self._config.listen} to {config.listen}); restart ephmon."
                )
            context = _tls_context(config.tls)
            self._deliver(config, read_webhook_url(config.notify.webhook))
        except EphmonError as error:
            log.write(_log, Line(logging.ERROR, f"The configuration is kept as it was: {error}"))
            reload = replace(self._report.reload, successful=False, error=str(error))
            self._report = replace(self._report, reload=reload)
            self._republish()
            return
        self._server.use_tls(context)
        if config.poll.backend != self._config.poll.backend:
            self._source = self._open_source(config)
        log.set_up(config.log.level, config.log.format)
        self._config = config
        _warn(self._exhaustions.go_by(config.exhaustions))
        self._incidents.go_by(config.incidents)
        reload = ReloadStatus(successful=True, succeeded_at=self._wall_clock())
        self._report = paced(replace(self._report, rules=config.rules, reload=reload), self._report.costs)
        self._republish()
        log.write(_log, Line(logging.INFO, "The configuration was reloaded."))

    def _republish(self) -> None:
        """Publish what a reload changed; what a defect keeps from being rendered, the next poll meets and counts."""
        with suppress(Exception):
            self._publish()

    def _open_source(self, config: Config) -> SocketSource:
        return SocketSource(
            proc=self._proc,
            clock=self._clock,
            wall_clock=self._wall_clock,
            mode=config.poll.backend,
            wanted=signals.not_told_to_stop,
        )

    @property
    def _listen(self) -> str:
        """Where the daemon listens, with the port that the kernel chose if it was left to it."""
        return str(ListenAddress(host=self._config.listen.host, port=self._server.port))

    def _deliver(self, config: Config, webhook_url: str) -> None:
        is_tls = bool(config.tls.certificate)
        url = start_lines.external_url(config.listen.host, self._listen, is_tls=is_tls)
        notify = config.notify
        self._delivery.configure(
            DeliverySettings(
                source_ports=notify.source_ports,
                labels=notify.labels,
                alertmanager_urls=notify.alertmanager.urls,
                webhook_url=webhook_url,
                external_url=url,
            )
        )

    def _say_where(self) -> None:
        host, tls = self._config.listen.host, self._config.tls
        for line in start_lines.serving(
            __version__,
            host,
            self._listen,
            os.getpid(),
            is_tls=bool(tls.certificate),
            asks_for_certificate=bool(tls.client_ca),
        ):
            log.write(_log, line)

    def _say_what_is_not_seen(self, snapshot: Snapshot) -> None:
        log.write(_log, start_lines.not_seen(self._conntrack_count()))
        for namespace in snapshot.namespaces:
            line = start_lines.listen_port_at_risk(self._server.port, namespace.sysctls)
            if line is not None:
                log.write(_log, line)

    def _say_which_source_ports_are_at_risk(self, snapshot: Snapshot) -> None:
        """Warn once for each range of source ports that the configuration names."""
        source_ports = self._config.notify.source_ports
        if source_ports == self._checked_source_ports or not self._delivery.is_running:
            return
        self._checked_source_ports = source_ports
        for namespace in snapshot.namespaces:
            line = start_lines.source_ports_at_risk(source_ports, namespace.sysctls)
            if line is not None:
                log.write(_log, line)

    def _conntrack_count(self) -> int | None:
        try:
            return sysctl.read_conntrack_count(self._proc)
        except KernelError as error:
            log.write(_log, Line(logging.WARNING, str(error)))
            return None


def _warn(sentence: str | None) -> None:
    if sentence is not None:
        log.write(_log, Line(logging.WARNING, sentence))


def _tls_context(tls: TlsConfig) -> ssl.SSLContext | None:
    if not tls.certificate:
        return None
    client_ca = Path(tls.client_ca) if tls.client_ca else None
    return build_tls_context(TlsFiles(certificate=Path(tls.certificate), key=Path(tls.key), client_ca=client_ca))
