"""Every port of the range is reserved, on a real kernel: all that ephmon says of it is the same."""

from __future__ import annotations

import errno
import json
from itertools import count
from typing import TYPE_CHECKING

import pytest

from tests import sockets
from tests.commands.answers import answer
from tests.namespaces import Namespace
from tests.processes import Metrics, Running, ephmon, eventually, fetch, parse_metrics, put
from tests.sockets import FillResult, Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HERE, PORTS = "127.0.0.1", (80, 81, 82)
UDP_POOLS = {("udp_connect", "0.0.0.0"), ("udp_bind", HERE)}
CONFIG = """\
poll: {interval: 2s, urgent_interval: 500ms, cpu_budget: 1, urgent_cpu_budget: 1}
pools: {min_in_use: 1}
"""
SPARE_PORTS = count(20_000)


@pytest.fixture(name="ns")
def _ns() -> Iterator[Namespace]:
    """A host whose ports are reserved after sockets have taken some of them."""
    with Namespace() as ns:
        ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", "40000 40099")
        for port in PORTS:
            ns.call(sockets.listen, HERE, port, tag="servers")
            assert ns.call(sockets.fill, HERE, port, tag="clients", limit=5) == FillResult(5, 0)
        udp = Recipe(udp=True, bind=(HERE, 0))
        assert ns.call(sockets.open_sockets, udp, tag="udp", limit=5) == FillResult(5, 0)
        ns.call(sockets.write_sysctl, "net.ipv4.ip_local_reserved_ports", "40000-40099")
        yield ns


@pytest.fixture(name="config")
def _config(tmp_path: Path) -> Path:
    return put(tmp_path / "config.yaml", CONFIG)


def get(ns: Namespace, path: str) -> str:
    """Ask the daemon from a port outside the range, as no other is left."""
    return ns.call(fetch, path, source=(HERE, next(SPARE_PORTS))).body


def metrics_of(ns: Namespace) -> Metrics:
    return parse_metrics(get(ns, "/metrics"))


def test_no_allocation_of_any_kind_succeeds(ns: Namespace) -> None:
    """What makes it right to call each pool full."""
    for recipe, error in [
        (Recipe(connect=(HERE, PORTS[0])), errno.EADDRNOTAVAIL),
        (Recipe(bind=(HERE, 0)), errno.EADDRINUSE),
        (Recipe(udp=True, bind=(HERE, 0)), errno.EADDRINUSE),
        (Recipe(udp=True, connect=(HERE, 53)), errno.EAGAIN),
    ]:
        assert ns.call(sockets.open_sockets, recipe, tag="more", limit=1) == FillResult(0, error)


def test_the_table_says_in_its_first_line_that_no_port_is_usable(ns: Namespace, config: Path) -> None:
    table = ns.call(answer, "pools", "--config", str(config))
    document = json.loads(ns.call(answer, "pools", "--json", "--config", str(config)).out)

    assert table.out.startswith("No port is usable: all 100 ports of the range are reserved.\n")
    assert {pool["utilisation_ratio"] for pool in document["pools"]} == {1.0}
    assert [pool["kind"] for pool in document["pools"]].count("tcp_connect") == len(PORTS)


def test_the_check_is_critical_once_for_all_pools_of_connect(ns: Namespace, config: Path) -> None:
    got = ns.call(answer, "check", "--config", str(config))
    more = [line for line in got.out.splitlines()[1:] if line.startswith(("CRITICAL", "WARNING"))]

    assert got.status == 2
    assert got.out.startswith("EPHMON CRITICAL - no port is usable: all ports of the range are reserved")
    assert sorted(line.split(" is at ")[0] for line in more) == [
        f"CRITICAL: {kind} at {source}" for kind, source in sorted(UDP_POOLS)
    ]


def test_the_daemon_raises_one_alert_for_all_pools_of_connect_and_polls_urgently(ns: Namespace, config: Path) -> None:
    with Running(ns, ephmon("run", "--config", config)) as daemon:
        daemon.wait_for_line("EphmonPortsBlocked fires as critical")
        metrics = eventually(lambda: metrics_of(ns), lambda found: found.get("ephmon_poll_interval_seconds") == 0.5)
        alerts = json.loads(get(ns, "/api/v1/pools"))["alerts"]
        page = get(ns, "/")
        daemon.stop()

    assert {(one["alertname"], one["severity"], one["pool"] and one["pool"]["kind"]) for one in alerts} == {
        ("EphmonPortsBlocked", "critical", None),
        *(("EphmonPoolNearExhaustion", "critical", kind) for kind, _ in UDP_POOLS),
    }
    assert metrics['ephmon_worst_pool_utilisation_ratio{kind="tcp_connect",netns="own"}'] == 1.0
    assert "No port is usable: all 100 ports of the range are reserved." in page
    assert any("EphmonPortsBlocked fires as critical" in line and "No port is usable" in line for line in daemon.lines)
