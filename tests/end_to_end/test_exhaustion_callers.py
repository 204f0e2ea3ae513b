"""A running daemon counts failed connect() calls of every kind of caller, whatever it is called, with few rights."""

from __future__ import annotations

import errno
import json
import os
import socket
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests import io_uring, sockets
from tests.cgroups import Cgroups
from tests.namespaces import Namespace
from tests.processes import Running, ephmon, eventually, put, with_readable_code
from tests.tracing import host_pids, only_root, seeing_tracefs, stopping, tracing_daemon

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.processes import Metrics

pytestmark = [only_root, host_pids]

HERE, HERE6 = "127.0.0.1", "::1"
PORT = 7421
"""The first of the ports to connect to: each kind of caller has one, on which another address never runs out."""
PORTS, LATER = 100, 25
"""The size of the range, and how often a caller goes on after the call that found no port."""
OWN = 'ephmon_connect_exhaustions_total{netns="own"}'
AVAILABLE = 'ephmon_collector_available{collector="exhaustions"}'
CONFIG = """\
poll: {interval: 30s, cpu_budget: 1, urgent_cpu_budget: 1}
pools: {ignore_destinations: ["127.0.0.1:19100"]}
"""

kept: list[socket.socket | ThreadPoolExecutor] = []
"""What callers have opened stays open: connections keep their ports, and threads can be asked who they are."""


def run_out(address: str, port: int, *, blocks: bool = True, later: int = LATER) -> int:
    """Connect until that fails for want of a port, and then some more; return how many calls failed so."""
    failed = 0
    while failed <= later:
        ours = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        ours.setblocking(blocks)
        error = ours.connect_ex((address, port))
        assert error in {0, errno.EINPROGRESS, errno.EADDRNOTAVAIL}
        if error == errno.EADDRNOTAVAIL:
            failed += 1
            ours.close()
        else:
            kept.append(ours)
    return failed


def run_out_in_threads(address: str, port: int) -> int:
    threads = ThreadPoolExecutor(4)
    kept.append(threads)
    return sum(threads.map(run_out, [address] * 4, [port] * 4))


def run_out_by_io_uring(address: str, port: int) -> int:
    """Take the ports by connect(), and fail by io_uring from then on."""
    failed = run_out(address, port, later=0)
    for _ in range(LATER):
        with socket.socket() as ours:
            failed += io_uring.connect(ours, (address, port)) == errno.EADDRNOTAVAIL
    return failed


CALLERS: dict[str, Callable[[Namespace, int], int]] = {
    "IPv4": lambda ns, port: ns.call(run_out, HERE, port),
    "IPv6": lambda ns, port: ns.call(run_out, HERE6, port),
    "v4-mapped": lambda ns, port: ns.call(run_out, f"::ffff:{HERE}", port),
    "non-blocking": lambda ns, port: ns.call(run_out, HERE, port, blocks=False),
    "non-blocking, IPv6": lambda ns, port: ns.call(run_out, HERE6, port, blocks=False),
    "threads": lambda ns, port: ns.call(run_out_in_threads, HERE, port),
    **({"io_uring": lambda ns, port: ns.call(run_out_by_io_uring, HERE, port)} if io_uring.is_available() else {}),
}


@pytest.fixture(name="ns")
def _ns() -> Iterator[Namespace]:
    """A small range, and a listener for each kind of caller."""
    with Namespace() as ns:
        ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", f"40000 {40000 + PORTS - 1}")
        for place in range(len(CALLERS)):
            for address in (HERE, HERE6):
                ns.call(sockets.listen, address, PORT + place, tag="servers")
        yield ns


def toward(metrics: Metrics, port: int) -> float:
    """Return how many calls of our own namespace toward a port of this host were counted.

    A worker of io_uring may be gone before it is asked for its namespace, so those of nobody knows which count too.
    """
    return sum(
        metrics.get(
            f'ephmon_destination_connect_exhaustions_total{{destination="{address}",destination_port="{port}",'
            f'netns="{netns}"}}',
            0,
        )
        for address in (HERE, HERE6)
        for netns in ("own", "unknown")
    )


def test_as_many_events_are_counted_as_each_client_counts_failures(ns: Namespace, tmp_path: Path) -> None:
    ports = {kind: PORT + place for place, kind in enumerate(CALLERS)}
    with tracing_daemon(ns, put(tmp_path / "config.yaml", CONFIG)) as daemon:
        daemon.wait_for(poll_success=1)
        failed = {kind: call(ns, ports[kind]) for kind, call in CALLERS.items()}

        def counted() -> dict[str, float]:
            metrics = daemon.metrics()
            return {kind: toward(metrics, port) for kind, port in ports.items()}

        assert eventually(counted, lambda seen: seen == failed) == failed
        metrics = daemon.metrics()

    assert failed == dict.fromkeys(CALLERS, 1 + LATER) | {"threads": 4 * (1 + LATER)}
    assert sum(failed.values()) - LATER <= metrics[OWN] <= sum(failed.values())
    assert metrics["ephmon_exhaustion_events_lost_total"] == 0


def name_yourself(name: bytes) -> None:
    Path("/proc/self/comm").write_bytes(name)


def test_hostile_names_of_a_process_and_of_its_unit_are_valid_text(ns: Namespace, tmp_path: Path) -> None:
    unit, shown = os.fsdecode(b'\xff\xfe"\\{}.service'), '\ufffd\ufffd"\\{}.service'
    config = put(tmp_path / "config.yaml", CONFIG.replace("interval: 30s", "interval: 100ms"))
    with Cgroups(ns) as cgroups:
        cgroups.make(unit)
        beside = ["nsenter", f"--mount=/proc/{cgroups.observer.pid}/ns/mnt", "--"]
        command = [*beside, *seeing_tracefs(*ephmon("run", "--config", config))]
        with cgroups.agent(unit) as client, stopping(Running(ns, command)) as daemon:
            daemon.wait_for(poll_success=1)
            client.call(name_yourself, b'\xff\xfe"\n')
            failed = client.call(run_out, HERE, PORT)
            line = daemon.wait_for_line("EphmonConnectExhaustions fires")
            eventually(
                daemon.metrics, lambda metrics: metrics.get(OWN) == failed and any("owner=" in one for one in metrics)
            )
            text, page = daemon.get("/metrics").body, daemon.get("/").body
            events = json.loads(daemon.get("/api/v1/exhaustions").body)["events"]

    samples = [one for family in text_string_to_metric_families(text) for one in family.samples]
    assert {one.labels["owner"] for one in samples if "owner" in one.labels} == {shown}
    names = {(event["command"], event["owner"]) for event in events if event["netns"] == "own"}
    assert names == {(r"\xff\xfe" + '"' + r"\n", shown)}
    assert line.isprintable()
    assert page.replace("\n", "").isprintable()


NOBODY = ("--reuid=65534", "--regid=65534", "--clear-groups")


def nobody_with(capability: str) -> tuple[str, ...]:
    """Return the options of setpriv that leave somebody who is not root one capability."""
    return (*NOBODY, *(f"--{kind}=-all,+{capability}" for kind in ("inh-caps", "ambient-caps", "bounding-set")))


@pytest.mark.parametrize(
    ("rights", "counts"),
    [
        pytest.param(("--bounding-set=-all", "--inh-caps=-all"), True, id="root without capabilities"),
        pytest.param((*NOBODY, "--bounding-set=-all"), False, id="nobody"),
        pytest.param(nobody_with("dac_override"), True, id="nobody with CAP_DAC_OVERRIDE"),
        pytest.param(nobody_with("dac_read_search"), False, id="nobody with CAP_DAC_READ_SEARCH"),
        pytest.param(nobody_with("sys_ptrace"), False, id="nobody with CAP_SYS_PTRACE"),
        pytest.param(nobody_with("perfmon"), False, id="nobody with CAP_PERFMON"),
        pytest.param(nobody_with("sys_admin"), False, id="nobody with CAP_SYS_ADMIN"),
    ],
)
def test_it_takes_the_rights_that_the_page_names(ns: Namespace, rights: tuple[str, ...], *, counts: bool) -> None:
    """docs/exhaustions.md: root without any capability, or CAP_DAC_OVERRIDE. Without it, all else works."""
    with tempfile.TemporaryDirectory(prefix="ephmon-test-") as folder:
        Path(folder).chmod(0o755)
        config = put(Path(folder) / "config.yaml", CONFIG)
        command = seeing_tracefs(*with_readable_code(), "setpriv", *rights, "--", *ephmon("run", "--config", config))
        with stopping(Running(ns, command)) as daemon:
            assert daemon.wait_for(poll_success=1)[AVAILABLE] == counts
            failed = ns.call(run_out, HERE, PORT)
            if counts:
                eventually(daemon.metrics, lambda metrics: metrics.get(OWN) == failed)
            else:
                assert OWN not in daemon.metrics()
    grants = [line for line in daemon.lines if "prepare an instance for ephmon" in line]
    assert len(grants) == (not counts)
