"""A daemon that reads every network namespace of the host by BPF, on the real kernel.

Other tests make namespaces meanwhile, so these look only at their own, by their inodes.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ephmon.model.advice.inside import enter
from tests import sockets
from tests.builders import make_namespace_report
from tests.namespaces import Namespace
from tests.processes import Running, ephmon_with_libbpf, eventually, put

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.only_root("loads a BPF program")

CONFIG = """\
poll: {interval: 100ms, cpu_budget: 1, urgent_cpu_budget: 1}
namespaces: {watch: all}
pools: {top: 2000, min_in_use: 1}
"""
HERE, PORT = "127.0.0.1", 8080
SECONDS = 10
FULL = f"""
ip link set lo up
echo 40000 40099 >/proc/sys/net/ipv4/ip_local_port_range
exec python3 -c '
import socket
server = socket.create_server(("{HERE}", {PORT}))
clients = [socket.create_connection(("{HERE}", {PORT})) for _ in range(100)]
print("full", flush=True)
input()
'
"""
"""A shell's way to hold all ports of a namespace toward one destination."""


@pytest.fixture(name="own")
def _own() -> Iterator[Namespace]:
    with Namespace() as ns:
        yield ns


@pytest.fixture(name="config")
def _config() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ephmon-test-") as folder:
        yield put(Path(folder) / "config.yaml", CONFIG)


def started(ns: Namespace, config: Path) -> Running:
    return Running(ns, ephmon_with_libbpf("run", "--config", config))


def prepare(ns: Namespace, *, ports: int, held: int) -> str:
    """Give a namespace a range of so many ports, hold some of them toward one destination, and return its name."""
    ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", f"40000 {40000 + ports - 1}")
    ns.call(sockets.listen, HERE, PORT, tag="server")
    assert ns.call(sockets.fill, HERE, PORT, tag="clients", limit=held).count == held
    return f"netns:{ns.call(inode)}"


def inode() -> int:
    return Path("/proc/self/ns/net").stat().st_ino


def remaining(metrics: dict[str, float], netns: str) -> float | None:
    labels = f'destination="{HERE}",destination_port="{PORT}",kind="tcp_connect",netns="{netns}",source="{HERE}"'
    return metrics.get(f"ephmon_pool_remaining_ports{{{labels}}}")


def test_every_namespace_has_the_numbers_that_the_kernel_gives_there(own: Namespace, config: Path) -> None:
    with ExitStack() as stack:
        others = [stack.enter_context(Namespace()) for _ in range(10)]
        names = [prepare(ns, ports=100 + 2 * index, held=7 * index + 1) for index, ns in enumerate(others)]
        with started(own, config) as daemon:
            daemon.wait_for(poll_success=1)
            metrics = eventually(daemon.metrics, lambda now: all(remaining(now, name) is not None for name in names))
            daemon.stop()
        filled = [ns.call(sockets.fill, HERE, PORT, tag="fill").count for ns in others]

    assert [remaining(metrics, name) for name in names] == filled
    assert metrics['ephmon_namespaces{state="read"}'] >= 11


def test_a_full_namespace_raises_an_alert_that_names_it(own: Namespace, config: Path) -> None:
    with Namespace() as other:
        name = prepare(other, ports=100, held=100)
        with started(own, config) as daemon:
            line = daemon.wait_for_line(f"in {name} is at 100.0%: none of 100 ports is left")
            daemon.stop()

    assert "EphmonPoolNearExhaustion fires as critical: tcp_connect from " in line


def test_a_namespace_of_a_user_namespace_is_read_and_raises_no_alert(own: Namespace, config: Path) -> None:
    """Whoever has no privilege makes one like that."""
    command = ["unshare", "--user", "--map-root-user", "--net", "sh", "-ec", FULL]
    with subprocess.Popen(
        command, user=65534, group=65534, extra_groups=[], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as owner:
        try:
            assert owner.stdout is not None
            assert owner.stdout.readline() == b"full\n"
            name = f"netns:{Path(f'/proc/{owner.pid}/ns/net').stat().st_ino}"
            with started(own, config) as daemon:
                metrics = eventually(daemon.metrics, lambda now: remaining(now, name) == 0)
                daemon.wait_for_polls(3)
                alerts = json.loads(daemon.get("/api/v1/pools").body)["alerts"]
                daemon.stop()
        finally:
            owner.kill()

    assert metrics[f'ephmon_worst_pool_utilisation_ratio{{kind="tcp_connect",netns="{name}"}}'] == 1
    assert [alert for alert in alerts if alert["netns"] == name] == []


def test_the_command_of_an_advice_leads_into_the_namespace() -> None:
    with Namespace() as other:
        name = prepare(other, ports=100, held=1)
        command = enter(make_namespace_report(netns=name, inode=other.call(inode)))
        shell = subprocess.run(
            ["sh", "-c", command],
            input="cat /proc/sys/net/ipv4/ip_local_port_range\n",
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=True,
            env={**os.environ, "SHELL": "/bin/sh"},
        )

    assert shell.stdout.split() == ["40000", "40099"]


def test_a_namespace_that_is_gone_is_forgotten_and_not_kept_alive(own: Namespace, config: Path) -> None:
    with ExitStack() as living:
        # Made before the daemon starts, which then has seen nobody else with this inode.
        name = prepare(living.enter_context(Namespace()), ports=100, held=100)
        with started(own, config) as daemon:
            daemon.wait_for_line(f"in {name} is at 100.0%")
            living.close()
            gone = eventually(daemon.metrics, lambda now: f'netns="{name}"' not in str(list(now)))
            daemon.stop()

    assert gone["ephmon_poll_success"] == 1
    assert any("EphmonPoolNearExhaustion is resolved" in line and f"netns={name} " in line for line in daemon.lines)
