"""Calls that fail toward a pool that seems to have room: the daemon believes them and says what the reason can be."""

from __future__ import annotations

import errno
import json
from typing import TYPE_CHECKING, Any

import pytest

from tests import sockets
from tests.namespaces import Namespace, connect
from tests.processes import Running, eventually, put
from tests.sockets import FillResult, Recipe
from tests.tracing import PORT, failures, host_pids, only_root, tracing_daemon

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HERE, THERE = "10.9.0.1", "10.9.0.2"
CONFIG = """\
poll: {interval: 1s, urgent_interval: 500ms, cpu_budget: 1, urgent_cpu_budget: 1}
pools: {ignore_destinations: ["127.0.0.1:19100"]}
"""
FAILED, FULL = "EphmonConnectExhaustions", "EphmonPoolNearExhaustion"

pytestmark = [only_root, host_pids]


@pytest.fixture(name="hosts")
def _hosts() -> Iterator[tuple[Namespace, Namespace]]:
    """A client with 200 ports, and a server that speaks no TCP timestamps and listens on `PORT`."""
    with Namespace() as client, Namespace(beside=client) as server:
        connect(client, server, addresses=(f"{HERE}/24", f"{THERE}/24"))
        client.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", "40000 40199")
        client.call(sockets.write_sysctl, "net.ipv4.tcp_tw_reuse", 1)
        # Without it a RST of the server, which answers a segment that comes after its end, deletes a TIME_WAIT here.
        client.call(sockets.write_sysctl, "net.ipv4.tcp_rfc1337", 1)
        server.call(sockets.write_sysctl, "net.ipv4.tcp_timestamps", 0)
        server.call(sockets.listen, THERE, PORT, tag="server")
        yield client, server


def alerts(daemon: Running) -> dict[str, dict[str, Any]]:
    return {alert["alertname"]: alert for alert in json.loads(daemon.get("/api/v1/pools").body)["alerts"]}


def severities(daemon: Running) -> dict[str, str]:
    return {name: alert["severity"] for name, alert in alerts(daemon).items()}


def test_a_socket_that_runs_out_of_a_range_of_its_own_is_a_warning_without_a_contradiction(
    hosts: tuple[Namespace, Namespace], tmp_path: Path
) -> None:
    client, _ = hosts
    recipe = Recipe(port_range=(40100, 40109), connect=(THERE, PORT))
    with tracing_daemon(client, put(tmp_path / "config.yaml", CONFIG)) as daemon:
        daemon.wait_for(poll_success=1)
        assert client.call(sockets.open_sockets, recipe, tag="few", limit=11) == FillResult(10, errno.EADDRNOTAVAIL)
        eventually(lambda: severities(daemon), lambda found: found == {FAILED: "warning"})
        # What a poll in between could not know, the next full one does.
        summary = eventually(lambda: alerts(daemon)[FAILED]["summary"], lambda said: "Now 190 of 200" in said)

        assert summary.startswith(f"1 connect() call of tcp_connect from {HERE} to {THERE}:{PORT} found no port. ")
        assert (
            "Possible causes: the socket has a port range of its own; the pool was full between two polls." in summary
        )
    fires = next(line for line in daemon.lines if f"{FAILED} fires" in line)
    assert "IP_LOCAL_PORT_RANGE" in fires
    assert "idle" not in fires


def test_a_peer_that_speaks_no_timestamps_leaves_its_pool_full_in_spite_of_reuse(
    hosts: tuple[Namespace, Namespace], tmp_path: Path
) -> None:
    client, server = hosts
    assert client.call(sockets.fill, THERE, PORT, tag="leaving", limit=195) == FillResult(195, 0)
    assert server.call(sockets.accept_all, "server", tag="accepted") == 195
    client.call(sockets.close, "leaving")
    server.call(sockets.close, "accepted")
    with tracing_daemon(client, put(tmp_path / "config.yaml", CONFIG)) as daemon:
        daemon.wait_for(poll_success=1)
        assert client.call(sockets.fill, THERE, PORT, tag="last") == FillResult(5, errno.EADDRNOTAVAIL)
        assert client.call(failures, THERE, 10) == 10
        both = {FAILED: "critical", FULL: "critical"}
        eventually(lambda: severities(daemon), lambda found: found == both)
        series = f'destination="{THERE}",destination_port="{PORT}",kind="tcp_connect",netns="own",source="{HERE}"'
        metrics = daemon.metrics()

        assert metrics[f"ephmon_pool_remaining_ports{{{series}}}"] == 0
        assert metrics[f"ephmon_pool_utilisation_ratio{{{series}}}"] == 1


def test_ports_that_bind_chose_are_suspected_after_a_failure_if_the_kernel_is_not_asked(
    hosts: tuple[Namespace, Namespace], tmp_path: Path
) -> None:
    """All of these are toward one destination, and it is another that cannot be reached."""
    client, server = hosts
    server.call(sockets.listen, THERE, PORT + 1, tag="other")
    bound = Recipe(bind=(HERE, 0), connect=(THERE, PORT + 1))
    assert client.call(sockets.open_sockets, bound, tag="bound", limit=170) == FillResult(170, 0)
    config = CONFIG.replace("poll: {", "poll: {probe: never, ")
    with tracing_daemon(client, put(tmp_path / "config.yaml", config)) as daemon:
        daemon.wait_for(poll_success=1)
        assert client.call(sockets.fill, THERE, PORT, tag="last") == FillResult(30, errno.EADDRNOTAVAIL)
        # Not asked by HTTP, which needs a port too.
        line = daemon.wait_for_line(f"{FAILED} fires as critical")

        assert "ports in doubt are blocked" in line
