"""Failed connect() calls as a running daemon counts them, of real clients that run out of ports."""

from __future__ import annotations

import errno
import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import sockets
from tests.namespaces import Namespace
from tests.processes import Running, ephmon, eventually, put, run
from tests.sockets import ALL_PORTS, FillResult, Recipe
from tests.tracing import (
    PORT,
    failures,
    host_pids,
    in_time_namespace,
    only_root,
    seeing_tracefs,
    stopping,
    tracing_daemon,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = "127.0.0.1"
PORTS = 100
SOURCE_AND_DESTINATION = f'destination="{HERE}",destination_port="{PORT}"'
OWN = 'ephmon_connect_exhaustions_total{netns="own"}'
TOWARD = f'ephmon_destination_connect_exhaustions_total{{{SOURCE_AND_DESTINATION},netns="own"}}'
AVAILABLE = 'ephmon_collector_available{collector="exhaustions"}'
ALERT = (
    f'ephmon_pool_alert_active{{{SOURCE_AND_DESTINATION},kind="tcp_connect",netns="own",severity="critical",'
    f'source="{HERE}"}}'
)
CONFIG = """\
poll: {interval: 30s, cpu_budget: 1, urgent_cpu_budget: 1}
pools: {ignore_destinations: ["127.0.0.1:19100"]}
thresholds: {warning: {utilisation: 0.98, clear: 0.5}, critical: {utilisation: 1.0, clear: 0.6}}
"""
"""Full polls are too rare to see anything; it is the failures that make the daemon look."""

pytestmark = [only_root, host_pids]


@pytest.fixture(name="ns")
def _ns() -> Iterator[Namespace]:
    with Namespace() as ns:
        ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", f"40000 {40000 + PORTS - 1}")
        ns.call(sockets.listen, HERE, PORT, tag="server")
        yield ns


def test_every_call_that_failed_is_counted_looked_into_and_told_of(ns: Namespace, tmp_path: Path) -> None:
    """Counted from 0 on; the alert and the pool's figures come long before the next full poll would."""
    with tracing_daemon(ns, put(tmp_path / "config.yaml", CONFIG)) as daemon:
        before = daemon.wait_for(poll_success=1)
        assert (before[AVAILABLE], before[OWN], before["ephmon_exhaustion_events_lost_total"]) == (1, 0, 0)

        assert ns.call(sockets.fill, HERE, PORT, tag="clients", limit=ALL_PORTS) == FillResult(
            PORTS, errno.EADDRNOTAVAIL
        )
        failed = 1 + ns.call(failures, HERE, 40)
        metrics = eventually(daemon.metrics, lambda metrics: metrics.get(TOWARD) == failed and ALERT in metrics)

        assert failed == 41
        assert metrics[OWN] == failed
        assert metrics['ephmon_polls_total{scope="full"}'] == 1
        document = json.loads(daemon.get("/api/v1/exhaustions").body)
        assert document["totals"]["own"] == failed
        # Whoever else is on the host may make calls too.
        ours = [one for one in document["destinations"] if one["netns"] == "own"]
        assert ours == [{"netns": "own", "destination": HERE, "destination_port": PORT, "events": failed}]
        last = [event for event in document["events"] if event["netns"] == "own"][-1]
        assert (last["source"], last["destination"]) == (HERE, HERE)
        assert last["command"].startswith("python")
        assert last["uid"] == 0
    log = "\n".join(daemon.lines)
    assert "EphmonConnectExhaustions fires as critical" in log
    assert "The last one was made by python" in log


def test_failures_alert_in_a_time_namespace_too(ns: Namespace, tmp_path: Path) -> None:
    """As in a container that was moved to another host with its clocks (CRIU)."""
    command = ephmon("run", "--config", put(tmp_path / "config.yaml", CONFIG))
    with stopping(Running(ns, seeing_tracefs(*in_time_namespace(100_000, 200_000, *command)))) as daemon:
        daemon.wait_for(poll_success=1)
        assert ns.call(sockets.fill, HERE, PORT, tag="clients", limit=ALL_PORTS).errno == errno.EADDRNOTAVAIL
        metrics = eventually(daemon.metrics, lambda metrics: ALERT in metrics)

        assert metrics[OWN] == 1


def test_without_tracefs_all_else_works_and_one_line_says_what_to_grant(ns: Namespace, tmp_path: Path) -> None:
    config = put(tmp_path / "config.yaml", CONFIG + "exhaustions: {enabled: on}\n")
    unseen = ["unshare", "--mount", "--propagation", "private", "--", "sh", "-ec"]
    hide = 'mount -t tmpfs none /sys/kernel/tracing; exec "$@"'
    with Running(ns, [*unseen, hide, "sh", *ephmon("run", "--config", config)]) as daemon:
        metrics = daemon.wait_for(poll_success=1)

        assert metrics[AVAILABLE] == 0
        assert OWN not in metrics
        document = json.loads(daemon.get("/api/v1/exhaustions").body)
        assert (document["available"], document["totals"]) == (False, None)
        daemon.stop()
    assert sum("Failed connect() calls are not counted: " in line for line in daemon.lines) == 1


def test_switched_off_nothing_is_said_of_it(ns: Namespace, tmp_path: Path) -> None:
    with tracing_daemon(ns, put(tmp_path / "config.yaml", CONFIG + "exhaustions: {enabled: off}\n")) as daemon:
        metrics = daemon.wait_for(poll_success=1)

        assert AVAILABLE not in metrics
        assert OWN not in metrics
    assert not any("connect() calls" in line for line in daemon.lines)


def test_a_probe_of_the_command_line_is_no_failure(ns: Namespace, tmp_path: Path) -> None:
    """It asks for ports that others hold, and is refused for each; a real failure after it is the only one counted."""
    recipe = Recipe(bind=(HERE, 0), connect=(HERE, PORT))
    for _ in range(20):
        assert ns.call(sockets.open_sockets, recipe, tag="bound", limit=1) == FillResult(1, 0)
    with tracing_daemon(ns, put(tmp_path / "config.yaml", CONFIG)) as daemon:
        daemon.wait_for(poll_success=1)
        assert run(ns.command(*ephmon("headroom", f"{HERE}:{PORT}", "--probe"))).returncode == 0
        assert ns.call(sockets.fill, HERE, PORT, tag="clients", limit=ALL_PORTS).errno == errno.EADDRNOTAVAIL
        metrics = eventually(daemon.metrics, lambda metrics: metrics.get(OWN, 0) > 0)

        assert metrics[OWN] == 1


def test_an_instance_that_cannot_be_removed_does_not_end_the_daemon(ns: Namespace, tmp_path: Path) -> None:
    quick = CONFIG.replace("interval: 30s", "interval: 1s")
    config = put(tmp_path / "config.yaml", quick)
    with tracing_daemon(ns, config) as daemon:
        daemon.wait_for(poll_success=1)
        (instance,) = Path(f"/proc/{daemon.pid}/root/sys/kernel/tracing/instances").glob(f"ephmon-{daemon.pid}-*")
        with (instance / "trace").open(encoding="utf-8"):
            put(config, quick + "exhaustions: {enabled: off}\n")
            daemon.signal(signal.SIGHUP)
            daemon.wait_for_line("cannot be removed")
            metrics = eventually(daemon.metrics, lambda metrics: AVAILABLE not in metrics)
        instance.rmdir()

        assert metrics["ephmon_poll_success"] == 1
