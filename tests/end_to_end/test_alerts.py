"""Alerts as a running daemon tells them, of real sockets in a namespace with a hundred ports."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests import sockets
from tests.namespaces import Namespace
from tests.processes import Metrics, Running, ephmon, eventually, put, run
from tests.sockets import FillResult, Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HERE, PORT = "127.0.0.1", 80
QUICK = """\
poll: {interval: 100ms, urgent_interval: 100ms, cpu_budget: 1, urgent_cpu_budget: 1}
pools: {ignore_destinations: ["127.0.0.1:19100"]}
"""
"""The test's own requests leave TIME_WAITs toward the daemon, many within a second."""
AT_ONCE = QUICK + "thresholds: {warning: {for: 0s}}\n"


@pytest.fixture(name="ns")
def _ns() -> Iterator[Namespace]:
    with Namespace() as ns:
        ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", "40000 40099")
        for port in (PORT, PORT + 1, PORT + 2):
            ns.call(sockets.listen, HERE, port, tag="servers")
        yield ns


@pytest.fixture(name="config")
def _config(tmp_path: Path) -> Path:
    return put(tmp_path / "config.yaml", AT_ONCE)


def connect(ns: Namespace, number: int, port: int = PORT) -> None:
    """Open so many connections; they are closed by `sockets.abort` of the tag `clients`."""
    assert ns.call(sockets.fill, HERE, port, tag="clients", limit=number) == FillResult(number, 0)


def of_pool(severity: str, port: int = PORT) -> str:
    labels = f'destination="{HERE}",destination_port="{port}",kind="tcp_connect",netns="own",severity="{severity}"'
    return f'ephmon_pool_alert_active{{{labels},source="{HERE}"}}'


def of_namespace(severity: str) -> str:
    return f'ephmon_namespace_alert_active{{alertname="EphmonPortsBlocked",netns="own",severity="{severity}"}}'


def alerts_of(daemon: Running) -> list[dict[str, Any]]:
    """Return the alerts as JSON has them; on a busy host the data of quick polls may have expired, and it has none."""
    found = eventually(lambda: json.loads(daemon.get("/api/v1/pools").body), lambda document: "alerts" in document)
    alerts: list[dict[str, Any]] = found["alerts"]
    return alerts


def active(metrics: Metrics) -> set[str]:
    return {series for series in metrics if "_alert_active{" in series}


OF_BIND = (
    'ephmon_pool_alert_active{destination="",destination_port="",kind="tcp_bind",netns="own",severity="warning",'
    f'source="{HERE}"}}'
)


def wait_for(daemon: Running, *series: str) -> Metrics:
    return eventually(daemon.metrics, lambda metrics: active(metrics) == set(series))


def said(daemon: Running, text: str) -> list[str]:
    return [line for line in daemon.lines if text in line]


def test_a_pool_that_fills_is_reported_of_and_so_is_its_end(ns: Namespace, config: Path) -> None:
    with Running(ns, ephmon("run", "--config", config)) as daemon:
        daemon.wait_for(poll_success=1)
        connect(ns, 75)
        warning = wait_for(daemon, of_pool("warning"))
        connect(ns, 20)
        critical = wait_for(daemon, of_pool("critical"))
        listed = alerts_of(daemon)
        page = daemon.get("/").body
        ns.call(sockets.abort, "clients")
        ended = wait_for(daemon)
        daemon.stop()

    severities = ('ephmon_alerts_active{severity="warning"}', 'ephmon_alerts_active{severity="critical"}')
    assert [[found[one] for one in severities] for found in (warning, critical, ended)] == [[1, 0], [0, 1], [0, 0]]
    assert [(alert["alertname"], alert["severity"], alert["value"]) for alert in listed] == [
        ("EphmonPoolNearExhaustion", "critical", 0.95)
    ]
    assert f"tcp_connect from {HERE} to {HERE}:{PORT} is at 95.0%" in page
    assert [line.count("level=error") for line in said(daemon, "EphmonPoolNearExhaustion fires as critical")] == [1]
    assert [line.count("level=info") for line in said(daemon, "EphmonPoolNearExhaustion is resolved.")] == [1]


def test_a_program_that_binds_most_ports_is_one_alert(ns: Namespace, config: Path) -> None:
    """One for all pools of connect(); what the program itself draws from is full as well, which is another matter."""
    ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", "40000 40999")
    for port in (PORT, PORT + 1, PORT + 2):
        connect(ns, 20, port)
    assert ns.call(sockets.open_sockets, Recipe(bind=(HERE, 0)), tag="binder", limit=750) == FillResult(750, 0)
    with Running(ns, ephmon("run", "--config", config)) as daemon:
        wait_for(daemon, of_namespace("warning"), OF_BIND)
        ns.call(sockets.close, "binder")
        wait_for(daemon)
        daemon.stop()

    assert len(said(daemon, " fires as ")) == 2


def test_alerts_are_held_while_polls_fail(ns: Namespace, config: Path) -> None:
    connect(ns, 95)
    with Running(ns, ["unshare", "--mount", "--", *ephmon("run", "--config", config)]) as daemon:
        wait_for(daemon, of_pool("critical"))
        mounts = f"--mount=/proc/{daemon.pid}/ns/mnt"
        masked = ns.command("nsenter", mounts, "--", "mount", "-t", "tmpfs", "none", "/proc/sys")
        assert run(masked).returncode == 0
        ns.call(sockets.abort, "clients")
        expired = eventually(daemon.metrics, lambda metrics: not any("ephmon_usable_ports" in one for one in metrics))
        assert run(ns.command("nsenter", mounts, "--", "umount", "/proc/sys")).returncode == 0
        wait_for(daemon)
        daemon.stop()

    assert active(expired) == {of_pool("critical")}
    assert len(said(daemon, "is resolved")) == 1


def test_a_reload_keeps_what_fires(ns: Namespace, config: Path) -> None:
    connect(ns, 75)
    with Running(ns, ephmon("run", "--config", config)) as daemon:
        wait_for(daemon, of_pool("warning"))
        before = alerts_of(daemon)
        put(config, QUICK + "thresholds: {warning: {for: 1h}, critical: {utilisation: 0.75}}\n")
        daemon.signal(signal.SIGHUP)
        wait_for(daemon, of_pool("critical"))
        after = alerts_of(daemon)
        daemon.stop()

    assert [alert["since"] for alert in after] == [alert["since"] for alert in before]
    assert said(daemon, "is resolved") == []
