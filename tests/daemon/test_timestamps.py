"""The daemon remembers whether a peer uses TCP timestamps: TIME_WAITs outlast the connections that show it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests import sockets
from tests.kernel_truth.differences import let_time_waits_grow_old
from tests.namespaces import Namespace
from tests.processes import Running, ephmon, put
from tests.sockets import FillResult, Recipe

if TYPE_CHECKING:
    from pathlib import Path

LOW, HIGH = 40_000, 40_099
HERE, PORT = "127.0.0.1", 80
LIVE, LEFT = 3, 60
POOL = f'destination="{HERE}",destination_port="{PORT}",kind="tcp_connect",netns="own",source="{HERE}"'
IN_USE, REUSABLE, REMAINING = (f"pool_{name}_ports{{{POOL}}}" for name in ("in_use", "reusable", "remaining"))


def leave_time_waits() -> None:
    """Connect without timestamps, end most of the connections, and switch timestamps on as if this were the peer."""
    sockets.write_sysctl("net.ipv4.ip_local_port_range", f"{LOW} {HIGH}")
    sockets.write_sysctl("net.ipv4.tcp_rfc1337", 1)
    sockets.write_sysctl("net.ipv4.tcp_timestamps", 0)
    sockets.listen(HERE, PORT, tag="server")
    for tag, number in (("live", LIVE), ("leaving", LEFT)):
        made = sockets.open_sockets(Recipe(connect=(HERE, PORT)), tag=tag, limit=number)
        assert made == FillResult(number, 0)
        sockets.accept_all("server", tag=f"accepted {tag}")
    sockets.close("leaving")
    sockets.close("accepted leaving")
    sockets.write_sysctl("net.ipv4.tcp_timestamps", 1)
    let_time_waits_grow_old()


def test_it_remembers_that_a_peer_uses_none(tmp_path: Path) -> None:
    config = put(tmp_path / "config.yaml", "poll: {interval: 100ms, cpu_budget: 1}\n")
    with Namespace() as ns:
        ns.call(leave_time_waits)
        with Running(ns, ephmon("run", "--config", config)) as daemon:
            daemon.wait_for(**{IN_USE: LEFT + LIVE, REUSABLE: 0})
            ns.call(sockets.abort, "live")
            after = daemon.wait_for(**{IN_USE: LEFT})
            daemon.stop()

    assert after[f"ephmon_{REUSABLE}"] == 0
    assert after[f"ephmon_{REMAINING}"] == HIGH + 1 - LOW - LEFT
