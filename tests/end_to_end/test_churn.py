"""A local user who makes connect() fail toward ever new destinations: what that costs others in series and alerts."""

from __future__ import annotations

import errno
import os
import random
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests import sockets
from tests.namespaces import Namespace
from tests.processes import eventually, put
from tests.sockets import FillResult
from tests.tracing import host_pids, only_root, tracing_daemon

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.processes import Metrics

HERE, PORT = "127.0.0.1", 80
PORTS = 1000
NOBODY = 65_534
_IP_LOCAL_PORT_RANGE = 51  # include/uapi/linux/in.h
OWN = 'ephmon_connect_exhaustions_total{netns="own"}'
OF_USERS = 'ephmon_namespace_alert_active{alertname="EphmonConnectExhaustions",netns="own",severity="warning"}'
NEARLY_FULL = (
    f'ephmon_pool_alert_active{{destination="{HERE}",destination_port="{PORT}",kind="tcp_connect",netns="own",'
    f'severity="critical",source="{HERE}"}}'
)
CONFIG = "poll: {interval: 1s, cpu_budget: 1, urgent_cpu_budget: 1}\n"

pytestmark = [only_root, host_pids]


@pytest.fixture(name="ns")
def _ns() -> Iterator[Namespace]:
    with Namespace() as ns:
        ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", f"40000 {40000 + PORTS - 1}")
        ns.call(sockets.listen, HERE, PORT, tag="server")
        yield ns


def become_nobody() -> None:
    os.setresuid(NOBODY, NOBODY, NOBODY)


def fail_toward_anything(seconds: float) -> int:
    """Make connect() fail toward random addresses for a while, by a port range of one port that is taken."""
    ends_at = time.monotonic() + seconds
    failed = 0
    with socket.socket() as taken:
        taken.bind((HERE, 0))
        port = taken.getsockname()[1]
        while time.monotonic() < ends_at:
            with socket.socket() as ours:
                ours.setsockopt(socket.IPPROTO_IP, _IP_LOCAL_PORT_RANGE, struct.pack("=I", port << 16 | port))
                address = f"127.{random.randrange(1, 250)}.{random.randrange(256)}.{random.randrange(1, 255)}"
                failed += ours.connect_ex((address, random.randrange(1, 65536))) == errno.EADDRNOTAVAIL
            time.sleep(0.01)
    return failed


def churned(metrics: Metrics) -> set[str]:
    """Return the series of destinations and of alerts."""
    names = ("ephmon_destination_", "ephmon_pool_alert_active", "ephmon_pool_owner", "ephmon_pool_unknown_owner")
    return {series for series in metrics if series.startswith(names)}


def test_calls_that_fail_toward_ever_new_destinations_are_one_alert_and_a_bounded_number_of_series(
    ns: Namespace, tmp_path: Path
) -> None:
    attacker = ns.another_agent()
    attacker.call(become_nobody)
    config = put(tmp_path / "config.yaml", f"{CONFIG}exhaustions: {{top: 10}}\n")
    with tracing_daemon(ns, config) as daemon:
        daemon.wait_for(poll_success=1)
        failed, series = 0, set[str]()
        for _ in range(10):
            failed += attacker.call(fail_toward_anything, 1.0)
            series |= churned(daemon.metrics())
        eventually(daemon.metrics, lambda metrics: metrics[OWN] == failed)
        metrics = daemon.metrics()

    assert failed > 100
    destinations = {one for one in series if one.startswith("ephmon_destination_")}
    assert len(destinations) <= 3 * 10 + len(("own", "other", "unknown"))
    assert series == destinations
    assert sum(value for one, value in metrics.items() if one in destinations and 'netns="own"' in one) <= failed
    assert metrics['ephmon_destination_connect_exhaustions_total{destination="other",destination_port="",netns="own"}']
    assert metrics[OF_USERS] == 1
    (line,) = (line for line in daemon.lines if "level=warning" in line)
    assert f"EphmonConnectExhaustions fires as warning: connect() calls of uid {NOBODY} toward " in line


def test_a_real_alert_comes_through_meanwhile(ns: Namespace, tmp_path: Path) -> None:
    attacker = ns.another_agent()
    attacker.call(become_nobody)
    # The attacker calls from another thread, and the agent lives as long as the thread that made it.
    with tracing_daemon(ns, put(tmp_path / "config.yaml", CONFIG)) as daemon, ThreadPoolExecutor(1) as threads:
        daemon.wait_for(poll_success=1)
        attack = threads.submit(attacker.call, fail_toward_anything, 12.0)
        eventually(daemon.metrics, lambda metrics: metrics.get(OF_USERS) == 1)
        assert ns.call(sockets.fill, HERE, PORT, tag="clients", limit=950) == FillResult(950, 0)
        metrics = daemon.wait_for_polls(2)  # one of them may have begun before

        assert metrics[NEARLY_FULL] == 1
        assert not attack.done()
        assert attack.result() > 100
