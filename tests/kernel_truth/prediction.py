"""What ephmon says of a namespace: functions for `Namespace.call`, so that they read the agent's namespace."""

from __future__ import annotations

import os
import time
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ephmon.facts.socket_groups import ConnectKey
from ephmon.kernel.bpf.backend import BpfBackend
from ephmon.kernel.source import SocketSource
from ephmon.model.pools.kinds import PoolKind
from ephmon.model.pools.peer_timestamps import AT_ONCE, with_timestamps
from ephmon.model.pools.survey import survey

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ephmon.facts.snapshot import Snapshot
    from ephmon.facts.timestamps import TimestampQuestion
    from ephmon.model.pools.kinds import Pool
    from ephmon.model.pools.ranking import PoolSet
    from ephmon.model.pools.survey import NamespaceSurvey

DEADLINE_SECONDS = 20.0
_walkers: list[BpfBackend] = []
"""The one of this process, because loading takes a while."""


def look(mode: str = "inet_diag") -> NamespaceSurvey:
    """Read the namespace once."""
    (namespace,) = survey(read_snapshot(mode))
    return namespace


def walk() -> NamespaceSurvey | None:
    """Read the namespace once from the kernel's bind table; None where this process or this kernel cannot."""
    if not _walkers:
        _walkers.append(BpfBackend(proc=Path("/proc"), clock=time.monotonic, compares=False))
    source = SocketSource(proc=Path("/proc"), clock=time.monotonic, wall_clock=time.time, mode="bpf", bpf=_walkers[0])
    snapshot = source.read(DEADLINE_SECONDS)
    if snapshot.namespaces[0].binds is None:
        assert os.geteuid() or not Path("/sys/kernel/btf/vmlinux").exists(), "root has to read it where there is BTF"
        return None
    (namespace,) = survey(snapshot)
    return namespace


def read_snapshot(mode: str = "inet_diag", *, evidence: bool = True) -> Snapshot:
    """Read the namespace once, and ask live connections whether they use TCP timestamps, as every command does."""
    source = SocketSource(proc=Path("/proc"), clock=time.monotonic, wall_clock=time.time, mode=mode)

    def ask(questions: Sequence[TimestampQuestion]) -> Mapping[ConnectKey, list[bool]]:
        return source.read_timestamps(questions, DEADLINE_SECONDS)

    return with_timestamps(source.read(DEADLINE_SECONDS, evidence=evidence), {}, time.monotonic(), ask, most=AT_ONCE)


def pools_of(kind: PoolKind, mode: str = "inet_diag") -> PoolSet[Any]:
    """Read the namespace once and return its pools of a kind."""
    pools = look(mode).pools_of(kind)
    assert pools is not None
    return pools


def predict(destination: str, port: int, source: str, mode: str = "inet_diag") -> Pool:
    """Return the tcp_connect pool from `source` toward a destination."""
    return pool_in(look(mode), PoolKind.TCP_CONNECT, source, (destination, port))


def pool_in(one: NamespaceSurvey, kind: PoolKind, source: str, destination: tuple[str, int] | None = None) -> Pool:
    """Return a pool of what was read, of any kind; only tcp_connect has a destination."""
    pools = one.pools_of(kind)
    assert pools is not None
    packed = ip_address(source).packed
    if destination is None:
        return pools.pool(packed)
    address, port = destination
    return pools.pool(ConnectKey(packed, ip_address(address).packed, port))


def destinations(mode: str = "inet_diag") -> set[tuple[str, int]]:
    """Return the destinations of all tcp_connect pools."""
    pools = pools_of(PoolKind.TCP_CONNECT, mode)
    return {(str(ip_address(key.destination)), key.destination_port) for key in pools}
