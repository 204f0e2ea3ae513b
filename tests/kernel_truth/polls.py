"""The polls of a daemon without its threads: what it reads, asks, remembers and judges, one poll when told to."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from ephmon.config.settings import PollConfig, ProbeChoice
from ephmon.daemon.owner_watch import OwnerWatch
from ephmon.daemon.poller import Poller
from ephmon.facts.sockets import Backend, Protocol
from ephmon.kernel.bpf.backend import BpfBackend
from ephmon.kernel.source import SocketSource
from ephmon.model.alerting.thresholds import Threshold, Thresholds
from ephmon.model.report import ReloadStatus
from ephmon.model.rules import ListingRules, Rules
from ephmon.model.state import initial_state

if TYPE_CHECKING:
    from ephmon.model.report import Report

PATIENCE_SECONDS = 20.0
_RULES = Rules(
    listing=ListingRules(min_in_use=0, top=1_000),
    thresholds=Thresholds(warning=Threshold(utilisation=0.7, for_seconds=0.0, clear=0.65)),
)
"""Every pool is listed, and every alert starts at once."""


class Polls:
    """A daemon that polls the namespace of the caller, as an agent does.

    Args:
        probe: Whether it asks the kernel about ports in doubt.
        backend: By which it reads TCP.
    """

    def __init__(self, *, probe: bool, backend: Backend = Backend.INET_DIAG) -> None:
        choice = ProbeChoice.AUTO if probe else ProbeChoice.NEVER
        proc = Path("/proc")
        self._backend = backend
        self._bpf = BpfBackend(proc=proc, clock=time.monotonic)
        self._poller = Poller(
            SocketSource(proc=proc, clock=time.monotonic, wall_clock=time.time, mode=backend, bpf=self._bpf),
            OwnerWatch(proc, time.monotonic, lambda: True),
            PollConfig(deadline_seconds=PATIENCE_SECONDS, probe=choice),
            clock=time.monotonic,
            wanted=lambda: True,
        )
        self.restart()

    def restart(self) -> None:
        """Forget everything."""
        self._state = initial_state(_RULES, ReloadStatus(successful=True, succeeded_at=0.0))

    def poll(self) -> Report:
        """Poll once and return what the daemon says then."""
        self._state = self._poller.full(self._state)
        report = self._state.report
        assert report.success, report.error
        (namespace,) = report.namespaces
        assert namespace.backends[Protocol.TCP] is self._backend, namespace.missing
        return report

    def close(self) -> None:
        """Give back to the kernel what the backend has of it."""
        self._bpf.close()
