"""connect() gets dear once half of the ports are taken: real calls are timed beside what ephmon says of them."""

from __future__ import annotations

import json
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest

from ephmon.daemon.search_timer import LEAST_REMAINING
from tests import sockets
from tests.namespaces import Namespace
from tests.processes import Running, ephmon, eventually, put, run
from tests.sockets import FillResult

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

HERE, PORT = "127.0.0.1", 80
RANGE = (30_000, 38_191)
HALF = 4_096
OPENS = "ephmon_pool_opens_per_second"
CONFIG = """\
poll: {interval: 500ms, urgent_interval: 500ms, cpu_budget: 1, urgent_cpu_budget: 1}
"""


@pytest.fixture(name="ns")
def _ns() -> Iterator[Namespace]:
    """A host with 8,192 ports of which half, less sixteen, are in use toward one destination."""
    with Namespace() as ns:
        ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", "{} {}".format(*RANGE))
        ns.call(sockets.write_sysctl, "net.core.somaxconn", 65_535)
        ns.call(sockets.listen, HERE, PORT, tag="server", backlog=65_535)
        fill(ns, HALF - 16)
        yield ns


def fill(ns: Namespace, number: int) -> None:
    assert ns.call(sockets.fill, HERE, PORT, tag="clients", limit=number) == FillResult(number, 0)


def seconds_of_search(calls: int) -> float:
    """Return how long connect() takes without its handshake: the upper end of the quickest quarter of so many calls.

    The SYN waits for the first write (TCP_FASTOPEN_CONNECT, TCP_FASTOPEN_NO_COOKIE), so nothing but the search is left.
    The sockets stay open until all are done.
    """
    times, opened = [], []
    for _ in range(calls):
        ours = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        opened.append(ours)
        for option in (34, 30):  # include/uapi/linux/tcp.h
            ours.setsockopt(socket.IPPROTO_TCP, option, 1)
        started = time.perf_counter()
        ours.connect((HERE, PORT))
        times.append(time.perf_counter() - started)
    for ours in opened:
        ours.close()
    return sorted(times)[calls // 4]


def pool(ns: Namespace) -> dict[str, Any]:
    document = json.loads(run(ns.command(*ephmon("pools", "--json"))).stdout)
    (found,) = (one for one in document["pools"] if one["destination_port"] == PORT)
    assert isinstance(found, dict)
    return found


def test_the_step_in_what_connect_costs_is_where_ephmon_says(ns: Namespace) -> None:
    before, cheap = pool(ns), ns.call(seconds_of_search, 9)
    fill(ns, 100)
    after, dear = pool(ns), ns.call(seconds_of_search, 9)

    assert before["utilisation_ratio"] < after["utilisation_ratio"] < 0.52
    # Sixteen of the first parity are left, wherever they are, and then none.
    assert 100 < before["connect_search_ports"] < 500
    assert HALF < after["connect_search_ports"] < HALF + 2
    assert dear > 5 * cheap


def test_it_is_told_at_the_terminal_with_what_helps(ns: Namespace) -> None:
    fill(ns, 100)
    said = run(ns.command(*ephmon("pools", "--destination", f"{HERE}:{PORT}"))).stdout

    assert f"Each connect() of tcp_connect from {HERE} to {HERE}:{PORT} looks at about 4097 ports to find one." in said
    assert "1. Widen the port range from 8192 to 55296 ports" in said


def test_the_daemon_measures_what_a_search_costs_and_exports_it(ns: Namespace, tmp_path: Path) -> None:
    labels = f'destination="{HERE}",destination_port="{PORT}",kind="tcp_connect",netns="own",source="{HERE}"'
    ports, share = (f"ephmon_pool_connect_search_{what}{{{labels}}}" for what in ("ports", "cpu_ratio"))
    with Running(ns, ephmon("run", "--config", put(tmp_path / "config.yaml", CONFIG))) as daemon:
        before = daemon.wait_for(poll_success=1)
        assert before[ports] < HALF
        assert share not in before
        fill(ns, 100)

        def observe() -> dict[str, float]:
            fill(ns, 5)
            return dict(daemon.metrics())

        metrics = eventually(observe, lambda found: found.get(share, 0.0) > 0)
        assert HALF < metrics[ports] < HALF + 3
        assert metrics[share] < 1
        page = daemon.get("/").body
        assert f"to {HERE}:{PORT} looks at about 409" in page
        daemon.stop()


def test_no_port_is_taken_for_the_measurement_where_few_are_left(ns: Namespace, tmp_path: Path) -> None:
    few = LEAST_REMAINING // 2
    fill(ns, RANGE[1] - RANGE[0] + 1 - few - (HALF - 16))
    with Running(ns, ephmon("run", "--config", put(tmp_path / "config.yaml", CONFIG))) as daemon:

        def observe() -> dict[str, float]:
            fill(ns, 1)
            return dict(daemon.metrics())

        metrics = eventually(observe, lambda found: sum_of(OPENS, found) > 0)
        daemon.stop()

    assert sum_of("ephmon_pool_connect_search_ports", metrics) > HALF
    assert sum_of("ephmon_pool_connect_search_cpu_ratio", metrics) == 0
    assert not [line for line in daemon.lines if "cannot be measured" in line]


def sum_of(name: str, metrics: Mapping[str, float]) -> float:
    """Add up the series of a metric, 0 if there are none."""
    return sum(value for series, value in metrics.items() if series.startswith(f"{name}{{"))


def test_without_a_measurement_the_ports_are_exported_alone_and_one_line_says_why(
    ns: Namespace, tmp_path: Path
) -> None:
    fill(ns, 100)
    ns.call(sockets.write_sysctl, "net.ipv4.tcp_fastopen", 0)
    with Running(ns, ephmon("run", "--config", put(tmp_path / "config.yaml", CONFIG))) as daemon:
        line = daemon.wait_for_line("The cost of connect() cannot be measured")
        fill(ns, 5)
        metrics = eventually(daemon.metrics, lambda found: any(OPENS in series for series in found))
        daemon.stop()

    assert "EphmonConnectSlow cannot fire" in line
    assert "net.ipv4.tcp_fastopen" in line
    assert sum("cannot be measured" in line for line in daemon.lines) == 1
    names = {series.partition("{")[0] for series in metrics}
    assert "ephmon_pool_connect_search_ports" in names
    assert "ephmon_pool_connect_search_cpu_ratio" not in names
