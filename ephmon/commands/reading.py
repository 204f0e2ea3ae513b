"""Reads the configuration and, once, the kernel, as most commands do first."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ephmon.config.settings import BackendChoice, Config, load
from ephmon.errors import KernelError, Reason, quote
from ephmon.facts.namespaces import OWN_NETNS
from ephmon.kernel.bpf.backend import BpfBackend
from ephmon.kernel.source import SocketSource
from ephmon.model.pools.peer_timestamps import AT_ONCE, with_timestamps
from ephmon.model.pools.survey import leaves_doubt

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ephmon.facts.snapshot import NamespaceSnapshot, Snapshot
    from ephmon.facts.socket_groups import ConnectKey
    from ephmon.facts.timestamps import TimestampQuestion
    from ephmon.model.pools.survey import NamespaceSurvey

DEFAULT_CONFIG = Path("/etc/ephmon/config.yaml")


def load_config(path: Path | None) -> Config:
    """Return the configuration from `path`, else from the default file if it exists, else the defaults.

    Raises:
        ConfigError: The file cannot be read or is not valid.
    """
    if path is not None:
        return load(path)
    return load(DEFAULT_CONFIG) if os.path.lexists(DEFAULT_CONFIG) else Config()


def read_snapshot(config: Config, proc: Path, asked: ConnectKey | None = None) -> Snapshot:
    """Poll once, with the backend and the deadline of the configuration; `asked` is the one pool that is asked for.

    Raises:
        KernelError: The kernel could not be read.
    """
    seconds, mode = config.poll.deadline_seconds, config.poll.backend
    if mode == BackendChoice.BPF:
        return _read_by_bpf(proc, mode, seconds)
    source = _open_source(proc, mode)
    snapshot = source.read(seconds)
    # To load the BPF program takes longer than a dump on most hosts, so only doubt is worth it.
    if mode == BackendChoice.AUTO and leaves_doubt(snapshot):
        walked = _read_by_bpf(proc, mode, seconds)
        if all(namespace.binds is not None for namespace in walked.namespaces):
            return walked

    def ask(questions: Sequence[TimestampQuestion]) -> Mapping[ConnectKey, list[bool]]:
        return source.read_timestamps(questions, seconds)

    return with_timestamps(snapshot, {}, time.monotonic(), ask, most=AT_ONCE, first=asked)


def _read_by_bpf(proc: Path, mode: BackendChoice, seconds: float) -> Snapshot:
    bpf = BpfBackend(proc=proc, clock=time.monotonic, compares=False)
    try:
        return _open_source(proc, mode, bpf).read(seconds)
    finally:
        bpf.close()


def _open_source(proc: Path, mode: BackendChoice, bpf: BpfBackend | None = None) -> SocketSource:
    return SocketSource(proc=proc, clock=time.monotonic, wall_clock=time.time, mode=mode, bpf=bpf)


def survey_of(surveys: Iterable[NamespaceSurvey], netns: str = OWN_NETNS) -> NamespaceSurvey:
    """Return the survey of one namespace.

    Raises:
        KernelError: The namespace was not read.
    """
    for one in surveys:
        if one.namespace.netns == netns:
            return one
    raise KernelError(f"The network namespace {quote(netns)} was not read.", reason=Reason.UNAVAILABLE)


def ports_to_keep(namespace: NamespaceSnapshot, config: Config) -> frozenset[int] | None:
    """Return the ports that advice for a wider range must reserve: listening ports and those of deliveries.

    None if the backend does not show which ports are listening.
    """
    if namespace.listening_ports is None:
        return None
    return namespace.listening_ports | config.rules.own_ports
