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
from ephmon.config.secrets import read_token, read_webhook_url
from ephmon.config.settings import Config, HttpConfig, ListenAddress, TlsConfig, Watched
from ephmon.daemon import signals
from ephmon.daemon.extras import Extras
from ephmon.daemon.owner_watch import OwnerWatch
from ephmon.daemon.poller import Poller
from ephmon.daemon.search_timer import SearchTimer
from ephmon.daemon.service_manager import ServiceManager
from ephmon.delivery.settings import DeliverySettings
from ephmon.errors import ConfigError, EphmonError, KernelError, Reason, shortages_explained
from ephmon.facts.namespaces import OWN_NETNS
from ephmon.http.access import AccessRules
from ephmon.http.rendering import publication_of
from ephmon.http.server import HttpServer
from ephmon.http.tls import RenewedTls, TlsFiles
from ephmon.kernel.bpf.backend import BpfBackend
from ephmon.kernel.proc import sysctl
from ephmon.kernel.source import SocketSource
from ephmon.log import Line
from ephmon.model.pace import Poll
from ephmon.model.report import ReloadStatus
from ephmon.model.state import initial_state
from ephmon.model.step import after_defect, after_failed_poll, next_full_poll, with_cost, with_pace
from ephmon.outputs.metrics.exposition import process_registry
from ephmon.outputs.text import changes, start_lines

if TYPE_CHECKING:
    from collections.abc import Callable

    from ephmon.facts.snapshot import PortRange
    from ephmon.model.report import Report
    from ephmon.model.state import State
    from ephmon.supervision.loop_thread import LoopThread

LONGEST_SLEEP_SECONDS = 10.0
"""The loop wakes at least this often, so that the HTTP side can tell a waiting daemon from a wedged one."""
EXHAUSTION_SECONDS = 1.0
"""While failed connect() calls are counted, the loop asks for them this often."""
SWITCH_SECONDS = 0.001
"""How long a thread keeps the interpreter lock while another one waits for it.

A scrape that comes during a poll waits this long, several times. Python's default of 5 ms made scrapes slow while a
million sockets were read.
"""
EXPIRY_INTERVALS = 3
"""Data older than so many intervals is no longer served: two polls in a row may fail before a scrape fails."""

_log = logging.getLogger("ephmon.daemon")


def _reads_alike(one: Config, other: Config) -> bool:
    """Tell whether both configurations have the kernel read in the same way."""
    return (one.poll.backend, one.namespaces.watch) == (other.poll.backend, other.namespaces.watch)


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
        # One for as long as the daemon runs, so that what it counts never falls.
        self._bpf = BpfBackend(proc=proc, clock=clock)
        self._source = self._open_source(config)
        self._poller = Poller(
            self._source,
            OwnerWatch(proc, clock, signals.no_stop_requested),
            config.poll,
            clock=clock,
            wanted=signals.no_stop_requested,
        )
        self._search_timer = SearchTimer(clock)
        self._state = initial_state(config.rules, ReloadStatus(successful=True, succeeded_at=wall_clock()))
        self._process = process_registry()
        self._server = HttpServer(
            (config.listen.host, config.listen.port),
            monotonic=clock,
            tls=self._open_tls(config.tls),
            access=_access_rules(config.http),
        )
        self._webhook_url = read_webhook_url(config.notify.webhook)
        self._extras = Extras(config, proc, clock, wall_clock)
        self._service_manager = ServiceManager.from_environment(os.environ, os.getpid())
        self._checked_source_ports: PortRange | None = None
        self._handing_out_cpu_seconds = 0.0
        """CPU time that it took to deliver, publish and log the latest poll."""

    def run(self) -> None:
        """Serve and poll until SIGTERM or SIGINT.

        Raises:
            ListenError: The address cannot be listened on.
            ThreadError: There is no thread or no descriptor for what it needs.
            LostThreadError: A thread ended and could not be started again.
        """
        signals.block()
        sys.setswitchinterval(SWITCH_SECONDS)
        self._server.start()
        try:
            self._log_address()
            self._deliver(self._config, self._webhook_url)
            self._extras.configure(self._config)
            # Not part of the first poll, because what that costs decides when the next one comes.
            self._source.prepare(self._config.poll.deadline_seconds)
            self._loop()
        finally:
            self._service_manager.stopping()
            self._extras.close()
            self._server.stop()
            self._bpf.close()
        log.write(_log, Line(logging.INFO, "Stopped."))

    def _loop(self) -> None:
        polled_at = narrowly_polled_at = -math.inf
        failed_lately = False
        while True:
            now = self._clock()
            self._server.beat()
            self._watch_threads(now)
            report, failed_here = self._extras.count_failed_calls(self._state.report, now)
            self._state = replace(self._state, report=report)
            failed_lately = failed_here or failed_lately
            # Asked anew after each wait, because a poll or a reload may have changed the pace.
            pace = self._state.report.pace
            # A connect() that has just failed asks for a look at its destination now, even if no pool is nearly full.
            # Every poll, full or narrow, is such a look.
            is_narrow = self._poller.can_poll_narrowly
            narrow = pace.soonest if failed_lately and is_narrow else pace.narrow or math.inf
            full = min(pace.full, pace.soonest_full) if failed_lately and not is_narrow else pace.full
            if now >= polled_at + full:
                failed_lately = False
                polled_at = narrowly_polled_at = now
                self._tick(next_full_poll(self._state), self._poller.full)
            elif now >= narrowly_polled_at + narrow:
                failed_lately = False
                narrowly_polled_at = now
                self._tick(Poll.NARROW, self._poller.narrow)
            pace = self._state.report.pace
            next_poll = min(polled_at + pace.full, narrowly_polled_at + (pace.narrow or math.inf))
            self._service_manager.ready(self._state.report)
            longest_sleep = min(
                EXHAUSTION_SECONDS if self._extras.counts_failed_calls else LONGEST_SLEEP_SECONDS,
                self._service_manager.longest_sleep_seconds,
            )
            received = signals.wait(min(max(0.0, next_poll - self._clock()), longest_sleep))
            if received in signals.STOP:
                return
            if received == signals.RELOAD:
                self._service_manager.reloading(self._clock())
                self._reload()
                self._service_manager.ready(self._state.report)

    def _watch_threads(self, now: float) -> None:
        """Start threads that have ended again, and give a sign of life if all of them give one.

        A service manager that gets none for long starts the process anew, which is right for a thread that hangs too.
        """
        for thread in self._threads:
            thread.watch()
        if not any(thread.is_silent(now) for thread in self._threads):
            self._service_manager.wake_up(self._config.poll.deadline_seconds)

    def _tick(self, kind: Poll, poll: Callable[[State], State]) -> None:
        """Poll once and hand out the result. Every error is logged and counted, and the loop goes on."""
        cpu_before, started = time.thread_time(), self._clock()
        previous = self._state
        try:
            self._state = self._search_timer.with_search_time(poll(previous), self._config.poll)
        except Exception as error:  # noqa: BLE001 - an error in ephmon must not end a monitor; the log has its traceback
            defect = self._log_defect(error, previous.report)
            self._state = after_failed_poll(previous, defect, Reason.DEFECT, self._clock() - started, kind)
        polled = time.thread_time()
        # The cost of a poll includes handing out its result, which comes after the pace is chosen. So the pace reckons
        # with what it cost to hand out the last one.
        self._state = with_cost(self._state, kind, polled - cpu_before + self._handing_out_cpu_seconds)
        self._hand_out(previous.report)
        now = time.thread_time()
        self._handing_out_cpu_seconds = now - polled
        totals = self._state.report.totals
        totals = replace(totals, cpu_seconds=totals.cpu_seconds + now - cpu_before)
        self._state = self._state.with_report(totals=totals)

    def _hand_out(self, previous: Report) -> None:
        """Deliver, publish and log the result of a poll; an error in one of these does not keep the others from it.

        So an alert that has begun is logged and delivered even if the result cannot be published. The result stays, but
        the poll counts as failed.
        """
        self._state = replace(self._state, report=self._extras.deliver(self._state.report))
        is_failed = False
        for step in (self._publish, lambda: self._log_changes(previous)):
            try:
                step()
            except Exception as error:  # noqa: BLE001 - as in `_tick`
                defect = self._log_defect(error, previous)
                if not is_failed:
                    self._state = after_defect(self._state, defect)
                is_failed = True
        self._state = replace(self._state, report=self._extras.keep_incident(self._state.report))
        if is_failed:
            with suppress(Exception):  # if the error is in publishing, the page that is served expires
                self._publish()

    def _log_defect(self, error: Exception, previous: Report) -> str:
        """Log an error in ephmon with its traceback, unless the last poll had the same one, and return it as text."""
        defect = f"{type(error).__name__}: {error}"
        if previous.error != defect:
            _log.error("A defect of ephmon made the poll fail, please report it", exc_info=error)
        return defect

    def _log_changes(self, previous: Report) -> None:
        report = self._state.report
        if previous.taken_at is None and report.taken_at is not None:
            self._log_what_is_not_seen(report)
        self._warn_about_source_ports(report)
        for line in changes.poll_lines(previous, report):
            log.write(_log, line)

    def _publish(self) -> None:
        report = replace(
            self._extras.with_status(self._state.report),
            http=self._server.status(),
            log_lines_lost=log.losses()._asdict(),
            thread_restarts={thread.name: thread.restarts for thread in self._threads},
        )
        self._state = replace(self._state, report=report)
        taken = report.taken_at_monotonic
        self._server.publish(
            publication_of(
                report,
                kernel_release=os.uname().release,
                process_registry=self._process,
                expires_at=None if taken is None else taken + EXPIRY_INTERVALS * report.pace.full,
            )
        )

    def _reload(self) -> None:
        """Read the configuration file again and take it over, completely or not at all."""
        try:
            with shortages_explained():
                self._take_over(self._read_config())
        except EphmonError as error:
            reason, defect = str(error), None
        except Exception as error:  # noqa: BLE001 - whatever a reload meets, the daemon goes on as it was
            reason, defect = log.defect_sentence(error), error
        else:
            log.write(_log, Line(logging.INFO, "The configuration was reloaded."))
            self._republish()
            return
        log.write(_log, Line(logging.ERROR, f"The configuration is kept as it was: {reason}"), defect)
        reload = replace(self._state.report.reload, successful=False, error=reason)
        self._state = self._state.with_report(reload=reload)
        self._republish()

    def _take_over(self, config: Config) -> None:
        """Go on with another configuration.

        Raises:
            EphmonError: It cannot be taken over; nothing has changed.
        """
        if config.listen != self._config.listen:
            raise ConfigError(
                f"listen cannot change by a reload ({self._config.listen} to {config.listen}); restart ephmon."
            )
        # First all that may fail, in the end what cannot.
        tls, access = self._open_tls(config.tls), _access_rules(config.http)
        source = self._source if _reads_alike(config, self._config) else self._open_source(config)
        reload = ReloadStatus(successful=True, succeeded_at=self._wall_clock())
        state = with_pace(self._state.with_rules(config.rules, reload))
        self._deliver(config, read_webhook_url(config.notify.webhook))
        self._server.use(tls, access)
        is_access_new = (config.http, config.tls) != (self._config.http, self._config.tls)
        self._source, self._state, self._config = source, state, config
        self._bpf.retry()
        if not source.uses_bpf:
            self._bpf.close()
        self._poller.configure(config.poll, source)
        log.set_up(config.log.level, config.log.format)
        if is_access_new:
            self._warn_about_access()
        self._extras.configure(config)

    def _republish(self) -> None:
        """Publish what a reload changed; an error in publishing is counted by the next poll."""
        with suppress(Exception):
            self._publish()

    def _open_source(self, config: Config) -> SocketSource:
        return SocketSource(
            proc=self._proc,
            clock=self._clock,
            wall_clock=self._wall_clock,
            mode=config.poll.backend,
            wanted=signals.no_stop_requested,
            bpf=self._bpf,
            every_namespace=config.namespaces.watch is Watched.ALL,
        )

    def _open_tls(self, tls: TlsConfig) -> RenewedTls | None:
        if not tls.certificate:
            return None
        client_ca = Path(tls.client_ca) if tls.client_ca else None
        files = TlsFiles(certificate=Path(tls.certificate), key=Path(tls.key), client_ca=client_ca)
        return RenewedTls(files, monotonic=self._clock)

    @property
    def _threads(self) -> tuple[LoopThread, ...]:
        return self._server.thread, self._extras.delivery.thread

    @property
    def _listen(self) -> str:
        """The address that the daemon listens on, with the port that the kernel chose if the configured one is 0."""
        return str(ListenAddress(host=self._config.listen.host, port=self._server.port))

    def _deliver(self, config: Config, webhook_url: str) -> None:
        is_tls = bool(config.tls.certificate)
        url = start_lines.external_url(config.listen.host, self._listen, is_tls=is_tls)
        notify = config.notify
        self._extras.delivery.configure(
            DeliverySettings(
                source_ports=notify.source_ports,
                labels=notify.labels,
                alertmanager_urls=notify.alertmanager.urls,
                webhook_url=webhook_url,
                external_url=url,
            )
        )

    def _log_address(self) -> None:
        is_tls = bool(self._config.tls.certificate)
        log.write(_log, start_lines.serving(__version__, self._listen, os.getpid(), is_tls=is_tls))
        self._warn_about_access()

    def _warn_about_access(self) -> None:
        config = self._config
        line = start_lines.access_at_risk(
            config.listen.host,
            self._listen,
            is_tls=bool(config.tls.certificate),
            asks_for_certificate=bool(config.tls.client_ca),
            asks_for_token=bool(config.http.token_file),
        )
        if line is not None:
            log.write(_log, line)

    def _log_what_is_not_seen(self, report: Report) -> None:
        log.write(_log, start_lines.not_seen(self._conntrack_count(), namespaces=report.namespaces_read))
        own = report.namespace(OWN_NETNS)
        line = None if own is None else start_lines.listen_port_at_risk(self._server.port, own.sysctls)
        if line is not None:
            log.write(_log, line)

    def _warn_about_source_ports(self, report: Report) -> None:
        """Warn once for each value of notify.source_ports."""
        source_ports = self._config.notify.source_ports
        if source_ports == self._checked_source_ports or not self._extras.delivery.is_running or not report.success:
            return
        self._checked_source_ports = source_ports
        own = report.namespace(OWN_NETNS)
        line = None if own is None else start_lines.source_ports_at_risk(source_ports, own.sysctls)
        if line is not None:
            log.write(_log, line)

    def _conntrack_count(self) -> int | None:
        try:
            return sysctl.read_conntrack_count(self._proc)
        except KernelError as error:
            log.write(_log, Line(logging.WARNING, str(error)))
            return None


def _access_rules(http: HttpConfig) -> AccessRules:
    return AccessRules(hosts=http.hosts, token=read_token(http))
