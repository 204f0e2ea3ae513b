"""What ephmon says of a namespace: functions for `Namespace.call`, so that they read the agent's namespace."""

from __future__ import annotations

import time
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ephmon.kernel.source import SocketSource
from ephmon.model.pools import PoolKind
from ephmon.model.survey import survey
from ephmon.model.tcp_connect import Tuple

if TYPE_CHECKING:
    from ephmon.model.pools import Pool
    from ephmon.model.survey import NamespaceSurvey, PoolSet

DEADLINE_SECONDS = 20.0


def look(mode: str = "inet_diag") -> NamespaceSurvey:
    """Read the namespace once."""
    source = SocketSource(proc=Path("/proc"), clock=time.monotonic, wall_clock=time.time, mode=mode)
    (namespace,) = survey(source.read(DEADLINE_SECONDS))
    return namespace


def pools_of(kind: PoolKind, mode: str = "inet_diag") -> PoolSet[Any]:
    """Read the namespace once and return its pools of a kind."""
    pools = look(mode).pools_of(kind)
    assert pools is not None
    return pools


def predict(destination: str, port: int, source: str, mode: str = "inet_diag") -> Pool:
    """Return the tcp_connect pool from `source` toward a destination."""
    pools = pools_of(PoolKind.TCP_CONNECT, mode)
    return pools.pool(Tuple(ip_address(source).packed, ip_address(destination).packed, port))


def destinations(mode: str = "inet_diag") -> set[tuple[str, int]]:
    """Return the destinations of all tcp_connect pools."""
    pools = pools_of(PoolKind.TCP_CONNECT, mode)
    return {(str(ip_address(key.destination)), key.destination_port) for key in pools}
