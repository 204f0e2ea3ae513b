"""One poll of ephmon as the daemon makes it, and the requests that it sends: the one place that knows how."""

from __future__ import annotations

import os
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.measurement import Cost, memory, spent
from ephmon.facts.sockets import Backend
from ephmon.http.rendering import publication_of
from ephmon.kernel.bpf.backend import BpfBackend
from ephmon.kernel.netlink.sock_diag import Request, SockDiag
from ephmon.kernel.source import AUTO, SocketSource
from ephmon.model.report import ReloadStatus
from ephmon.model.rules import Rules
from ephmon.model.state import initial_state
from ephmon.model.step import conclude
from ephmon.outputs.metrics.exposition import process_registry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ephmon.facts.snapshot import Snapshot
    from ephmon.http.publication import Publication
    from ephmon.kernel.deadline import Deadline

_DEADLINE_SECONDS = 120.0


class PollKind(StrEnum):
    """The kinds of polls, named as the tables name them."""

    EVIDENCE = "ephmon poll, with evidence"
    """Gathers evidence for each port; the first poll always does."""
    COUNTING = "ephmon poll, counting only"
    BPF = "ephmon poll, by BPF"
    """Reads TCP from the kernel's bind table."""


class Stages(NamedTuple):
    """The processor seconds of one poll."""

    collect: float
    """Asking the kernel and tabulating what it answers."""
    conclude: float
    """Building the report."""
    scrape: float
    """Rendering and compressing OpenMetrics, which is done once a poll if somebody asks for it, and not by the poll."""


READINGS: Mapping[PollKind, Callable[[SocketSource], Snapshot]] = {
    PollKind.EVIDENCE: lambda source: source.read(_DEADLINE_SECONDS),
    PollKind.COUNTING: lambda source: source.read(_DEADLINE_SECONDS, evidence=False),
    PollKind.BPF: lambda source: source.read(_DEADLINE_SECONDS),
}
"""How a poll of each kind reads the kernel; a kind that is not here is not measured."""


class EphmonPoll:
    """Full polls of the namespace that it is made in, as a contender.

    From poll to poll it remembers what the daemon would.
    """

    def __init__(self, kind: PollKind) -> None:
        self._kind = kind
        self._source = SocketSource(
            proc=Path("/proc"),
            clock=time.monotonic,
            wall_clock=time.time,
            mode=Backend.BPF if kind is PollKind.BPF else AUTO,
            open_diag=self._open_diag,
            bpf=BpfBackend(proc=Path("/proc"), clock=time.monotonic) if kind is PollKind.BPF else None,
        )
        self._process = process_registry()
        self._sent: list[Request] | None = None
        reload = ReloadStatus(successful=True, succeeded_at=time.time())
        self._state = initial_state(Rules(), reload)
        self._poll(PollKind.BPF if kind is PollKind.BPF else PollKind.EVIDENCE)

    def run(self) -> Cost:
        """Poll once."""
        return spent(lambda: self._poll(self._kind))

    def peak_bytes(self) -> int:
        """Return the peak of this process."""
        return memory("self", "VmHWM")

    def requests(self) -> list[Request]:
        """Poll once more and return the requests that were sent to the kernel."""
        sent: list[Request] = []
        self._sent = sent
        self._poll(self._kind)
        self._sent = None
        return sent

    def stages(self) -> Stages:
        """Poll and scrape once more and return what each stage took."""
        started = time.process_time()
        snapshot = READINGS[self._kind](self._source)
        collected = time.process_time()
        publication = self._conclude(snapshot)
        concluded = time.process_time()
        _ = publication.openmetrics.gzipped
        return Stages(collected - started, concluded - collected, time.process_time() - concluded)

    def _poll(self, kind: PollKind) -> None:
        self._conclude(READINGS[kind](self._source))

    def _conclude(self, snapshot: Snapshot) -> Publication:
        self._state = conclude(snapshot, self._state, time.monotonic())
        return publication_of(
            self._state.report,
            kernel_release=os.uname().release,
            process_registry=self._process,
            expires_at=time.monotonic(),
        )

    def _open_diag(self) -> SockDiag:
        return SockDiag() if self._sent is None else _Recorder(self._sent)


class _Recorder(SockDiag):
    """Writes down the requests that pass through it."""

    def __init__(self, sent: list[Request]) -> None:
        super().__init__()
        self._sent = sent

    def dump(self, request: Request, consume: Callable[[int, bytearray], None], deadline: Deadline) -> None:
        self._sent.append(request)
        super().dump(request, consume, deadline)


def requests_of(kind: PollKind) -> list[Request]:
    """Return the requests of a poll of a kind in this namespace; for an agent."""
    return EphmonPoll(kind).requests()
