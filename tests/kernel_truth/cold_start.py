"""A daemon that starts on a host where nearly every port of the default range is in doubt; functions for an agent."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from tests import sockets
from tests.kernel_truth.polls import Polls
from tests.namespaces import bring_loopback_up
from tests.sockets import FillResult, Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

RANGE = (32_768, 60_999)
HERE, PORT = "127.0.0.1", 80
HOLDERS = 2
"""Processes, because one may not have as many descriptors as it takes."""
MOST_POLLS = 12
HOSTS = {
    "connect() chose all": (Recipe(connect=(HERE, PORT)),) * 2,
    "bind() chose all": (Recipe(bind=("127.0.0.3", 0), connect=(HERE, PORT)),) * 2,
    "each chose half": (Recipe(connect=(HERE, PORT)), Recipe(bind=("127.0.0.3", 0), connect=(HERE, PORT))),
}


class Cost(NamedTuple):
    """One poll."""

    cpu_ms: float
    blocked: int
    ambiguous: int
    alerts: frozenset[str]


def polls(host: str, number: int) -> list[Cost]:
    """Return the first polls of a daemon, until no port is in doubt, beside so many sockets."""
    sockets.close_all()
    sockets.write_sysctl("net.ipv4.ip_local_port_range", "{} {}".format(*RANGE))
    sockets.write_sysctl("net.core.somaxconn", 65_535)
    bring_loopback_up()
    sockets.listen(HERE, PORT, tag="server", backlog=65_535)
    ports = range(RANGE[0], RANGE[0] + number)
    holders = [_hold(recipe, ports[first::HOLDERS]) for first, recipe in enumerate(HOSTS[host])]
    try:
        return list(_costs())
    finally:
        for pid in holders:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _costs() -> Iterator[Cost]:
    daemon = Polls(probe=True)
    for _ in range(MOST_POLLS):
        began = time.process_time()
        report = daemon.poll()
        spent = time.process_time() - began
        (namespace,) = report.namespaces
        alerts = frozenset(f"{alert.key.name} {alert.severity}" for alert in report.alerts.firing)
        yield Cost(1_000 * spent, namespace.blocked_ports or 0, namespace.ambiguous_ports or 0, alerts)
        if not namespace.ambiguous_ports:
            return


def _hold(recipe: Recipe, ports: Sequence[int]) -> int:
    """Return a process that holds a socket on each of the ports.

    Each is limited to its port, of which no reading shows anything. In the whole range every call beyond half of the
    ports would walk the taken ones, which takes minutes in all.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            for port in ports:
                limited = replace(recipe, port_range=(port, port))
                assert sockets.open_sockets(limited, tag="held", limit=1) == FillResult(1, 0)
            os.write(writing, b"!")
            signal.pause()
        finally:
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read(1) == b"!"
    return pid
