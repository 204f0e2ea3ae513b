"""A daemon and commands that read TCP from the kernel's bind table, on the real kernel."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests import sockets
from tests.kernel.bpf import walks
from tests.namespaces import Namespace
from tests.ordinary_user import command_of_nobody, readable_folder
from tests.processes import (
    Running,
    ephmon_with_libbpf,
    eventually,
    put,
    python_with_libbpf,
    run,
)
from tests.sockets import Recipe
from tests.tracing import seeing_tracefs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.only_root("loads a BPF program")

QUICK = "poll: {interval: 100ms, cpu_budget: 1, urgent_cpu_budget: 1}\n"
TCP = 'backend_info{{backend="{}",protocol="tcp"}}'
AVAILABLE = 'collector_available{collector="bpf"}'
HERE, PORT = "127.0.0.1", 8080
LABELS = f'destination="{HERE}",destination_port="{PORT}",kind="tcp_connect",netns="own",source="{HERE}"'
NEEDS = "Loading a BPF program takes the capabilities CAP_BPF and CAP_PERFMON, and this process lacks them."


@pytest.fixture(name="ns")
def _ns() -> Iterator[Namespace]:
    with Namespace() as ns:
        ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", "40000 40999")
        ns.call(sockets.listen, HERE, PORT, tag="server")
        yield ns


@pytest.fixture(name="config")
def _config() -> Iterator[Path]:
    """A file that everybody may read: who runs without capabilities is not root."""
    with readable_folder() as folder:
        yield put(folder / "config.yaml", QUICK)


def started(ns: Namespace, config: Path) -> Running:
    return Running(ns, ephmon_with_libbpf("run", "--config", config))


def open_some(ns: Namespace) -> None:
    """Hold 100 ports by connect(), 50 by bind(), and 30 by bind() and connect(), of which inet_diag knows no reason."""
    ns.call(sockets.open_sockets, Recipe(connect=(HERE, PORT)), tag="connected", limit=100)
    ns.call(sockets.open_sockets, Recipe(bind=(HERE, 0)), tag="bound", limit=50)
    ns.call(sockets.open_sockets, Recipe(bind=(HERE, 0), connect=(HERE, PORT)), tag="both", limit=30)


def test_the_daemon_prefers_the_bind_table_and_its_numbers_are_what_the_kernel_gives(
    ns: Namespace, config: Path
) -> None:
    open_some(ns)
    with started(ns, config) as daemon:
        metrics = daemon.wait_for(**{TCP.format("bpf"): 1, AVAILABLE: 1, "poll_success": 1})
        daemon.wait_for_polls(2)
        pools = json.loads(daemon.get("/api/v1/pools").body)["pools"]
        daemon.stop()
    by_kind = {pool["kind"]: pool for pool in pools}
    filled = ns.call(sockets.open_sockets, Recipe(connect=(HERE, PORT)), tag="fill", limit=sockets.ALL_PORTS)

    assert metrics[f"ephmon_pool_remaining_ports{{{LABELS}}}"] == filled.count == 1000 - 80 - 100
    assert metrics['ephmon_ambiguous_ports{netns="own"}'] == 0
    assert metrics['ephmon_blocked_ports{netns="own"}'] == 80
    assert (by_kind["tcp_connect"]["exact"], by_kind["tcp_bind"]["exact"]) == (True, True)
    # Scrapes leave some TIME_WAITs, whose ports bind() cannot get.
    assert 1000 - 180 - 50 <= by_kind["tcp_bind"]["remaining_ports"] <= 1000 - 180
    assert not [line for line in daemon.lines if "level=warning" in line]


def test_without_capabilities_it_says_once_why_and_reads_otherwise(ns: Namespace, config: Path) -> None:
    with Running(ns, [*command_of_nobody(), *ephmon_with_libbpf("run", "--config", config)]) as daemon:
        metrics = daemon.wait_for(**{TCP.format("inet_diag"): 1, "poll_success": 1})
        daemon.wait_for_polls(3)
        daemon.stop()

    assert metrics[f"ephmon_{AVAILABLE}"] == 0
    assert [line.partition(" level=")[2] for line in daemon.lines if "BPF" in line] == [
        f'info msg="TCP is not read by BPF: {NEEDS}"'
    ]


def test_where_nothing_else_may_be_used_tcp_is_missing_with_the_reason_and_udp_is_read(
    ns: Namespace, config: Path
) -> None:
    put(config, QUICK.replace("poll: {", "poll: {backend: bpf, "))
    with Running(ns, [*command_of_nobody(), *ephmon_with_libbpf("run", "--config", config)]) as daemon:
        line = daemon.wait_for_line("Sockets of tcp cannot be read")
        metrics = daemon.wait_for(**{'collector_available{collector="tcp"}': 0, "poll_success": 1})

    assert NEEDS in line
    assert metrics['ephmon_collector_available{collector="udp"}'] == 1


def test_another_backend_takes_the_program_out_of_the_kernel_and_back(ns: Namespace, config: Path) -> None:
    def maps(daemon: Running) -> int:
        return ns.call(walks.mapped_maps_of, daemon.pid)

    with started(ns, config) as daemon:
        daemon.wait_for(**{TCP.format("bpf"): 1})
        mapped = maps(daemon)
        put(config, QUICK.replace("poll: {", "poll: {backend: inet_diag, "))
        daemon.signal(signal.SIGHUP)
        daemon.wait_for(**{TCP.format("inet_diag"): 1})
        left = maps(daemon)
        put(config, QUICK)
        daemon.signal(signal.SIGHUP)
        daemon.wait_for(**{TCP.format("bpf"): 1})

    assert (mapped > 0, left) == (True, 0)


def test_two_daemons_read_side_by_side_and_what_is_killed_leaves_nothing(ns: Namespace, config: Path) -> None:
    open_some(ns)
    other = put(config.with_name("other.yaml"), QUICK + "listen: 127.0.0.1:19200\n")
    with started(ns, config) as one, started(ns, other) as two:
        one.wait_for(**{TCP.format("bpf"): 1})
        two.wait_for_line("Sockets of tcp are read by bpf.")
        one.wait_for_polls(5)
        loaded = {program for daemon in (one, two) for program in ns.call(walks.programs_of, daemon.pid)}
        for daemon in (one, two):
            daemon.signal(signal.SIGKILL)
            daemon.wait()
    # The kernel frees them a moment after the last descriptor is closed.
    eventually(lambda: [program for program in loaded if ns.call(walks.is_program, program)], lambda left: not left)

    assert len(loaded) == 2


def test_a_failed_connect_is_looked_at_before_the_next_poll_is_due(ns: Namespace, config: Path) -> None:
    put(config, "poll: {interval: 1h, urgent_interval: 100ms, cpu_budget: 1, urgent_cpu_budget: 1}\n")
    command = seeing_tracefs(*ephmon_with_libbpf("run", "--config", config))
    with Running(ns, command) as daemon:
        daemon.wait_for(**{"poll_success": 1, 'collector_available{collector="exhaustions"}': 1})
        ns.call(sockets.open_sockets, Recipe(connect=(HERE, PORT)), tag="fill", limit=sockets.ALL_PORTS)
        metrics = daemon.wait_for(**{f"pool_remaining_ports{{{LABELS}}}": 0})
        daemon.stop()

    assert metrics['ephmon_polls_total{scope="full"}'] >= 2


def headroom(ns: Namespace, *options: str) -> dict[str, Any]:
    command = ephmon_with_libbpf("headroom", f"{HERE}:{PORT}", "--json", *options)
    result = run(ns.command(*command))
    assert result.returncode == 0, result.stderr
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def test_commands_walk_the_table_where_a_dump_leaves_doubt_and_only_there(ns: Namespace) -> None:
    certain = headroom(ns)
    open_some(ns)
    doubtful = headroom(ns, "--no-probe")

    assert (certain["method"], certain["remaining_ports"], certain["exact"]) == ("inet_diag", 1000, True)
    assert (doubtful["method"], doubtful["remaining_ports"], doubtful["exact"]) == ("bpf", 820, True)


def test_ports_that_are_reserved_outside_the_range_do_not_keep_it_from_the_table(ns: Namespace, config: Path) -> None:
    ns.call(sockets.write_sysctl, "net.ipv4.ip_local_reserved_ports", "8080")
    with started(ns, config) as daemon:
        daemon.wait_for(**{TCP.format("bpf"): 1, "poll_success": 1})
        ns.call(sockets.write_sysctl, "net.ipv4.ip_local_reserved_ports", "8080-8099")
        daemon.wait_for_polls(3)
        metrics = daemon.wait_for(**{TCP.format("bpf"): 1, "poll_success": 1})
        daemon.stop()

    assert not [name for name, value in metrics.items() if "poll_failures_total" in name and value]


DEFECT = """\
from ephmon.__main__ import entry_point
from ephmon.model.pools.bind_table.connect_pools import BindTableConnectPools


def fail(self, key):
    raise ZeroDivisionError("provoked")


BindTableConnectPools.pool = fail
entry_point()
"""


def test_a_defect_in_what_is_made_of_the_table_ends_it_and_inet_diag_goes_on(ns: Namespace, config: Path) -> None:
    open_some(ns)
    with Running(ns, python_with_libbpf("-c", DEFECT, "run", "--config", str(config))) as daemon:
        metrics = daemon.wait_for(**{TCP.format("inet_diag"): 1, "poll_success": 1})
        daemon.wait_for_polls(3)
        mapped = ns.call(walks.mapped_maps_of, daemon.pid)
        later = daemon.wait_for(poll_success=1)
        daemon.stop()
    said = [line.partition(" level=")[2] for line in daemon.lines if "BPF" in line and " level=" in line]

    assert metrics[f"ephmon_{AVAILABLE}"] == 0
    assert f"ephmon_pool_remaining_ports{{{LABELS}}}" in metrics
    assert later['ephmon_poll_failures_total{reason="defect"}'] == 1
    assert mapped == 0
    assert len(said) == 2
    assert said[0].startswith('error msg="A defect of ephmon ends reading by BPF, please report it."')
    assert said[1].startswith(
        'info msg="TCP is not read by BPF: A defect of ephmon, please report it: ZeroDivisionError'
    )
