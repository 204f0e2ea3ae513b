"""The daemon as a real process: how it starts, stops and reloads, and what it says while the kernel cannot be read."""

from __future__ import annotations

import json
import os
import pty
import resource
import select
import signal
import socket
import time
import tty
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ephmon import log
from ephmon.config.settings import load
from ephmon.daemon import loop as daemon_module
from ephmon.daemon import poller
from ephmon.daemon.loop import Daemon
from ephmon.errors import KernelError, Reason
from ephmon.http import rendering
from ephmon.kernel import deadline
from ephmon.kernel.source import SocketSource
from ephmon.model import step
from tests import sockets
from tests.certificates import make_certificate
from tests.delivery import delivering
from tests.kernel.seccomp import refuse_netlink
from tests.namespaces import Namespace
from tests.processes import (
    Metrics,
    Running,
    environment,
    ephmon,
    eventually,
    fetch,
    make_proc,
    opened_by_its_reader,
    put,
    python,
    run,
    takes_more,
)
from tests.sockets import FillResult, Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from typing import Any

    from ephmon.facts.failed_calls import Destination
    from ephmon.facts.snapshot import NarrowSnapshot, Snapshot

RANGE = "40000 40999"
HERE, PORT = "127.0.0.1", 80
QUICK = "poll: {interval: 100ms, cpu_budget: 1}\n"
SLOW = "poll: {interval: 1h}\n"
"""Between two polls of this one only signals wake the daemon."""
URGENT = (
    "poll: {{interval: 1h, urgent_interval: 100ms, urgent_cpu_budget: 1, backend: {}}}\n"
    "thresholds: {{warning: {{utilisation: 0.02, clear: 0.01}}}}\n"
)
"""The pool of the clients is above its warning threshold."""
POLLS, NARROW_POLLS = 'ephmon_polls_total{scope="full"}', 'ephmon_polls_total{scope="narrow"}'
AMBIGUOUS = 'ephmon_ambiguous_ports{netns="own"}'
NO_SOCKET = "The socket for inet_diag cannot be opened: Address family not supported by protocol (EAFNOSUPPORT)."
UNREADABLE = 'ephmon_poll_failures_total{reason="sysctl"}'
DEFECTS = 'ephmon_poll_failures_total{reason="defect"}'


@pytest.fixture(name="ns")
def _ns() -> Iterator[Namespace]:
    with Namespace() as ns:
        ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", RANGE)
        ns.call(sockets.listen, HERE, PORT, tag="server")
        assert ns.call(sockets.fill, HERE, PORT, tag="clients", limit=30) == FillResult(30, 0)
        yield ns


@pytest.fixture(name="config")
def _config(tmp_path: Path) -> Path:
    """The file that the daemon reads; QUICK unless the test writes something else."""
    return put(tmp_path / "config.yaml", QUICK)


@contextmanager
def started(ns: Namespace, *arguments: str | Path, env: dict[str, str] | None = None) -> Iterator[Running]:
    """Start `ephmon run` and wait until it has published its first poll."""
    with Running(ns, ephmon("run", *arguments), env=env) as daemon:
        daemon.wait_for(poll_success=1)
        yield daemon


def pool(metric: str) -> str:
    labels = f'destination="{HERE}",destination_port="{PORT}",kind="tcp_connect",netns="own",source="{HERE}"'
    return f"ephmon_pool_{metric}{{{labels}}}"


def threshold(metrics: Metrics) -> float | None:
    return metrics.get('ephmon_threshold_utilisation_ratio{severity="warning"}')


# --- start --------------------------------------------------------------------------------------------------------


def test_it_starts_on_its_defaults_and_serves(ns: Namespace) -> None:
    with Running(ns, ephmon("run")) as daemon:
        line = daemon.wait_for_line("serves ")
        metrics = daemon.wait_for(poll_success=1)
        ready, pools, page = daemon.get("/-/ready"), daemon.get("/api/v1/pools"), daemon.get("/")

        assert " serves http://127.0.0.1:19100/metrics." in line
        assert line.endswith(f" pid={daemon.pid}")
        assert daemon.stop() == 0

    assert metrics[pool("in_use_ports")] == 30
    assert metrics["ephmon_poll_interval_seconds"] == 5
    assert (ready.status, ready.body) == (200, "The data is current.\n")
    listed = json.loads(pools.body)["pools"]
    assert [entry["remaining_ports"] for entry in listed if entry["destination_port"] == PORT] == [970]
    assert (page.status, page.content_type) == (200, "text/html; charset=utf-8")
    assert daemon.lines[-1].endswith("level=info msg=Stopped.")
    assert not [line for line in daemon.lines if "level=warning" in line]


def test_what_it_does_not_see_is_said_once_at_the_start(ns: Namespace, config: Path) -> None:
    with started(ns, "--config", config) as daemon:
        daemon.wait_for_polls(3)
        daemon.stop()

    said = [line for line in daemon.lines if "It does not see pods and containers" in line]
    assert len(said) == 1


@pytest.mark.parametrize(
    "holder",
    [Recipe(bind=(HERE, 19100), listen=1), Recipe(bind=(HERE, 19100), connect=(HERE, PORT))],
    ids=["a listener", "a connection"],
)
def test_a_port_in_use_is_one_sentence_and_a_failure(ns: Namespace, holder: Recipe) -> None:
    assert ns.call(sockets.open_sockets, holder, tag="holder", limit=1) == FillResult(1, 0)

    result = run(ns.command(*ephmon("run")))

    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("ephmon: Cannot listen on 127.0.0.1:19100: the port is in use; ")
    assert "`ss -tanp 'sport = :19100'`" in result.stderr


def test_a_port_inside_the_range_is_warned_of_with_the_line_that_reserves_it(ns: Namespace, config: Path) -> None:
    ns.call(sockets.write_sysctl, "net.ipv4.ip_local_reserved_ports", "8080,40004")
    with Running(ns, ephmon("run", "--config", config, "--listen", "127.0.0.1:40005")) as daemon:
        line = daemon.wait_for_line("lies inside the port range")

    assert "sysctl -w net.ipv4.ip_local_reserved_ports=8080,40004-40005" in line
    assert line.endswith(" port=40005 port_range=40000-40999")


@pytest.mark.parametrize(
    ("listen", "reserved"), [("127.0.0.1:40005", "40005"), ("127.0.0.1:39999", "8080"), ("127.0.0.1:41000", "8080")]
)
def test_a_port_that_no_connection_can_take_is_not_warned_of(
    ns: Namespace, config: Path, listen: str, reserved: str
) -> None:
    ns.call(sockets.write_sysctl, "net.ipv4.ip_local_reserved_ports", reserved)
    with Running(ns, ephmon("run", "--config", config, "--listen", listen)) as daemon:
        daemon.wait_for_line("ports are usable")
        daemon.stop()

    assert not [line for line in daemon.lines if "level=warning" in line]


@pytest.mark.parametrize(
    ("listen", "warned"),
    [("0.0.0.0:19100", True), ("[::]:19100", True), ("127.0.0.9:19100", False), ("[::1]:19100", False)],
)
def test_an_address_that_others_reach_is_warned_of(ns: Namespace, config: Path, listen: str, warned: bool) -> None:
    with Running(ns, ephmon("run", "--config", config, "--listen", listen)) as daemon:
        daemon.wait_for_line("ports are usable")
        daemon.stop()

    assert sum("Everybody who reaches this address" in line for line in daemon.lines) == warned


# --- stop ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_at_once_while_it_waits(ns: Namespace, config: Path, number: signal.Signals) -> None:
    put(config, SLOW)
    with started(ns, "--config", config) as daemon:
        sent_at = time.monotonic()
        daemon.signal(number)

        assert daemon.wait() == 0
        assert time.monotonic() - sent_at < 8
    assert daemon.lines[-1].endswith("level=info msg=Stopped.")


_A_ROW = (
    b"   0: 0100007F:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 "
    b"0000000000000000 100 0 0 10 0\n"
)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_at_once_while_it_polls(ns: Namespace, tmp_path: Path, config: Path, number: signal.Signals) -> None:
    """The table that it reads has no end, and its deadline is far away."""
    put(config, "poll: {backend: procfs, deadline: 1h}\n")
    proc = make_proc(tmp_path)
    table = proc / "net" / "tcp"
    table.unlink()
    os.mkfifo(table)
    with Running(ns, with_faults(tmp_path)) as daemon, opened_by_its_reader(table) as pipe:
        heading = Path("/proc/net/tcp").read_bytes().partition(b"\n")[0] + b"\n"
        assert os.write(pipe, heading) == len(heading)
        daemon.wait_for_line("serves ")
        daemon.signal(number)
        eventually(lambda: takes_more(pipe, _A_ROW * 16), lambda takes: not takes)

        assert daemon.wait() == 0
    assert daemon.lines[-1].endswith("level=info msg=Stopped.")
    assert not [line for line in daemon.lines if "level=error" in line]


def test_it_stops_while_it_probes_and_says_nothing_of_it(ns: Namespace, tmp_path: Path, config: Path) -> None:
    put(config, "poll: {probe: auto}\n")
    make_proc(tmp_path)
    (tmp_path / "stop while it probes").touch()
    with Running(ns, with_faults(tmp_path)) as daemon:
        assert daemon.wait() == 0

    assert daemon.lines[-1].endswith("level=info msg=Stopped.")
    assert not [line for line in daemon.lines if "level=warning" in line]


# --- reload -------------------------------------------------------------------------------------------------------


def test_a_reload_takes_the_new_file_over(ns: Namespace, config: Path) -> None:
    with started(ns, "--config", config) as daemon:
        before = daemon.metrics()
        put(config, QUICK + "thresholds: {warning: {utilisation: 0.5}}\n")
        daemon.signal(signal.SIGHUP)
        metrics = eventually(daemon.metrics, lambda metrics: threshold(metrics) == 0.5)
        daemon.wait_for_line("The configuration was reloaded.")

    reloaded_at = "ephmon_config_last_reload_success_timestamp_seconds"
    assert threshold(before) == 0.7
    assert metrics["ephmon_config_last_reload_successful"] == 1
    assert metrics[reloaded_at] > before[reloaded_at]


BROKEN = {
    "a mistake": (
        "thresholds: {warning: {utilisation: 7}}\n",
        ":1: thresholds.warning.utilisation: 7 is above 1",
    ),
    "another address": (
        "listen: 127.0.0.1:19200\n",
        "listen cannot change by a reload (127.0.0.1:19100 to 127.0.0.1:19200); restart ephmon.",
    ),
    "a certificate that is not there": (
        "tls: {certificate: /nonexistent/cert.pem, key: /nonexistent/key.pem}\n",
        "/nonexistent/cert.pem cannot be read: No such file or directory",
    ),
}


@pytest.mark.parametrize(("text", "sentence"), BROKEN.values(), ids=BROKEN)
def test_a_reload_that_cannot_be_keeps_all_of_the_old_configuration(
    ns: Namespace, config: Path, text: str, sentence: str
) -> None:
    put(config, QUICK + "thresholds: {warning: {utilisation: 0.5}}\n")
    with started(ns, "--config", config) as daemon:
        put(config, text)
        daemon.signal(signal.SIGHUP)
        line = daemon.wait_for_line("The configuration is kept as it was")
        metrics = daemon.wait_for(config_last_reload_successful=0)
        daemon.wait_for_polls(2)

        put(config, QUICK)
        daemon.signal(signal.SIGHUP)
        mended = daemon.wait_for(config_last_reload_successful=1)

    assert "level=error" in line
    assert sentence in line
    assert (threshold(metrics), metrics["ephmon_poll_interval_seconds"]) == (0.5, 0.1)
    assert threshold(mended) == 0.7


def test_a_file_that_is_gone_at_a_reload_keeps_the_old_configuration(ns: Namespace, config: Path) -> None:
    with started(ns, "--config", config) as daemon:
        config.unlink()
        daemon.signal(signal.SIGHUP)

        assert f"{config}: the file cannot be read" in daemon.wait_for_line("The configuration is kept as it was")
        daemon.wait_for_polls(2)


def test_a_receiver_that_there_is_no_descriptor_for_keeps_the_old_configuration(ns: Namespace, config: Path) -> None:
    put(config, SLOW)
    with started(ns, "--config", config) as daemon:
        put(config, SLOW + 'notify: {webhook: {url: "http://127.0.0.1:9/secret"}}\n')
        most = max(int(entry.name) for entry in Path(f"/proc/{daemon.pid}/fd").iterdir()) + 2
        limits = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (most, limits[1]))
        daemon.signal(signal.SIGHUP)
        line = daemon.wait_for_line("The configuration is kept as it was")
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, limits)
        daemon.signal(signal.SIGHUP)
        daemon.wait_for_line("The configuration was reloaded.")

    assert "The delivery thread cannot be started. Too many open files; raise the limit of open files" in line


def test_an_address_on_the_command_line_stands_above_the_file_at_a_reload_too(ns: Namespace, config: Path) -> None:
    with started(ns, "--config", config, "--listen", "127.0.0.1:19100") as daemon:
        put(config, QUICK + "listen: 127.0.0.1:19200\n")
        daemon.signal(signal.SIGHUP)
        daemon.wait_for_line("The configuration was reloaded.")


def test_a_shorter_interval_holds_from_the_reload_on(ns: Namespace, config: Path) -> None:
    put(config, SLOW)
    with started(ns, "--config", config) as daemon:
        put(config, QUICK)
        daemon.signal(signal.SIGHUP)

        daemon.wait_for_polls(3)


def test_another_backend_holds_from_the_reload_on(ns: Namespace, config: Path) -> None:
    with started(ns, "--config", config) as daemon:
        put(config, "poll: {interval: 100ms, cpu_budget: 1, backend: procfs}\n")
        daemon.signal(signal.SIGHUP)
        line = daemon.wait_for_line("Sockets of tcp are read by procfs.")

        assert "before=inet_diag" in line
        daemon.wait_for(**{'backend_info{backend="procfs",protocol="tcp"}': 1})


def test_another_backend_holds_from_the_reload_on_for_urgent_polls_too(ns: Namespace, config: Path) -> None:
    """Those in between full polls go through netlink, so procfs has none of them."""
    put(config, URGENT.format("inet_diag"))
    with started(ns, "--config", config) as daemon:
        before = eventually(daemon.metrics, lambda metrics: metrics.get(NARROW_POLLS, 0) >= 3)
        put(config, URGENT.format("procfs"))
        daemon.signal(signal.SIGHUP)
        daemon.wait_for(**{'backend_info{backend="procfs",protocol="tcp"}': 1})
        at_first = daemon.wait_for_polls(1)
        later = daemon.wait_for_polls(3)

    assert before[POLLS] == 1
    assert at_first[NARROW_POLLS] == later[NARROW_POLLS]


def test_a_hundred_reloads_in_a_row_lose_nothing(ns: Namespace, config: Path) -> None:
    """The last file is in force, polls went on, and the stop that comes right behind them is heard."""
    with started(ns, "--config", config) as daemon:
        for number in range(1, 101):
            put(config, QUICK + f"thresholds: {{warning: {{utilisation: {0.1 + number / 250:.3f}}}}}\n")
            daemon.signal(signal.SIGHUP)
        eventually(daemon.metrics, lambda metrics: threshold(metrics) == 0.5)
        daemon.wait_for_polls(2)
        for _ in range(100):
            daemon.signal(signal.SIGHUP)

        assert daemon.stop() == 0
    assert not [line for line in daemon.lines if "level=error" in line]


# --- polls that fail ----------------------------------------------------------------------------------------------


def test_while_proc_is_masked_polls_fail_and_afterwards_they_succeed_again(ns: Namespace, config: Path) -> None:
    """Each of the two is one line in the log, however many polls it lasts."""
    with Running(ns, ["unshare", "--mount", "--", *ephmon("run", "--config", config)]) as daemon:
        daemon.wait_for(poll_success=1)
        in_its_mounts(ns, daemon, "mount", "-t", "tmpfs", "none", "/proc/sys")
        eventually(daemon.metrics, lambda metrics: metrics.get(UNREADABLE, 0) >= 5)
        failing = daemon.metrics()
        in_its_mounts(ns, daemon, "umount", "/proc/sys")
        healed = daemon.wait_for(poll_success=1)
        daemon.wait_for_polls(2)
        daemon.stop()

    failed = [line.partition("The poll failed: ")[2] for line in daemon.lines if "The poll failed: " in line]
    # The first poll may have met the mask halfway, and then names another file.
    assert len(failed) == len(set(failed)) <= 2
    assert (
        "/proc/sys/net/ipv4/ip_local_port_range cannot be read (No such file or directory): the kernel does not have "
        "it, or a container or sandbox masks /proc/sys; do not mask it."
    ) in failed[-1]
    assert sum("Polls succeed again." in line for line in daemon.lines) == 1
    assert failing["ephmon_poll_success"] == 0
    assert healed[UNREADABLE] >= 5
    assert healed[pool("in_use_ports")] == 30


def in_its_mounts(ns: Namespace, daemon: Running, *command: str) -> None:
    """Run a command where the daemon's mounts are."""
    result = run(ns.command("nsenter", f"--mount=/proc/{daemon.pid}/ns/mnt", "--", *command))
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("backend", ["auto", "procfs"])
def test_while_procfs_is_read_no_poll_goes_through_netlink(
    ns: Namespace, tmp_path: Path, config: Path, backend: str
) -> None:
    put(config, URGENT.format(backend))
    (tmp_path / "no netlink").touch()
    make_proc(tmp_path)
    with Running(ns, with_faults(tmp_path)) as daemon:
        daemon.wait_for(poll_success=1)
        metrics = daemon.wait_for_polls(3)
        daemon.stop()

    assert metrics[pool("in_use_ports")] == 30
    assert sum(value for series, value in metrics.items() if series.startswith("ephmon_poll_failures_total")) == 0
    assert metrics.get(NARROW_POLLS, 0) == 0
    assert [line.partition(" level=")[2] for line in daemon.lines if "Sockets of tcp" in line] == [
        {
            "auto": f'warning msg="Sockets of tcp are read by procfs: {NO_SOCKET}" netns=own',
            "procfs": 'info msg="Sockets of tcp are read by procfs." netns=own',
        }[backend]
    ]


def test_urgent_polls_that_fail_are_reported_once_and_so_is_that_they_succeed_again(
    ns: Namespace, tmp_path: Path, config: Path
) -> None:
    put(config, URGENT.format("auto"))
    make_proc(tmp_path)
    fault = tmp_path / "refusal of narrow polls"
    refused = 'ephmon_poll_failures_total{reason="netlink"}'
    with Running(ns, with_faults(tmp_path)) as daemon:
        eventually(daemon.metrics, lambda metrics: metrics.get(NARROW_POLLS, 0) >= 1)
        fault.touch()
        failing = eventually(daemon.metrics, lambda metrics: metrics.get(refused, 0) >= 3)
        fault.unlink()
        daemon.wait_for_line("succeed again.")
        daemon.stop()

    assert failing["ephmon_poll_success"] == 1
    assert [line.partition(" level=")[2] for line in daemon.lines if "Urgent polls" in line] == [
        'warning msg="Urgent polls in between full polls fail: It is refused."',
        'info msg="Urgent polls in between full polls succeed again."',
    ]


def test_a_poll_lasts_until_its_report_is_there(ns: Namespace, tmp_path: Path, config: Path) -> None:
    put(config, SLOW)
    make_proc(tmp_path)
    (tmp_path / "slow conclusion").touch()
    with Running(ns, with_faults(tmp_path)) as daemon:
        metrics = daemon.wait_for(poll_success=1)

    assert 7 <= metrics["ephmon_poll_duration_seconds"] < 14


def test_a_probe_that_is_cut_is_reported_and_does_not_fail_the_poll(
    ns: Namespace, tmp_path: Path, config: Path
) -> None:
    put(config, "poll: {interval: 100ms, cpu_budget: 1, probe: auto}\n")
    make_proc(tmp_path)
    no_time = tmp_path / "no time to probe"
    no_time.touch()
    with Running(ns, with_faults(tmp_path)) as daemon:
        cut = daemon.wait_for(**{'collector_available{collector="probe"}': 1, "poll_success": 1})
        daemon.wait_for_polls(2)
        no_time.unlink()
        answered = daemon.wait_for(**{AMBIGUOUS.removeprefix("ephmon_"): 0})
        daemon.stop()

    assert cut[AMBIGUOUS] >= 30
    (said,) = [line.partition(" level=")[2] for line in daemon.lines if "Ambiguous ports are" in line]
    assert said == (
        'warning msg="Ambiguous ports are not all probed: The probe was cut after poll.deadline; its answers count, '
        'and the next polls ask about the rest."'
    )
    assert answered[pool("in_use_ports")] == 30


def with_faults(folder: Path) -> list[str]:
    """Return the command line of a daemon that reads config.yaml of this folder and has the faults that lie in it."""
    return python("-c", "import sys; from tests.daemon.test_loop import serve; serve(sys.argv[1])", str(folder))


def serve(folder: str) -> None:
    """Run a daemon on the procfs, the clock and with the defects that `folder` holds."""
    here = Path(folder)
    make_it_fail(here)
    make_it_slow(here)
    if (here / "no netlink").exists():
        refuse_netlink()
    log.set_up("info", "logfmt")
    Daemon(lambda: load(here / "config.yaml"), proc=here / "proc", clock=lambda: time.monotonic() + shift(here)).run()


def make_it_fail(here: Path) -> None:
    """Let the daemon fail at what the files of the folder name, for as long as they are there."""

    class Source(SocketSource):
        def read(self, deadline_seconds: float, *, evidence: bool = True) -> Snapshot:
            snapshot = super().read(deadline_seconds, evidence=evidence)
            raise_if(here / "defect of reading")
            return snapshot

        def read_toward(self, destinations: Collection[Destination], deadline_seconds: float) -> NarrowSnapshot:
            if (here / "refusal of narrow polls").exists():
                raise KernelError("It is refused.", reason=Reason.NETLINK)
            return super().read_toward(destinations, deadline_seconds)

    def publication_of(*arguments: Any, **options: Any) -> Any:
        raise_if(here / "defect of rendering")
        return rendering.publication_of(*arguments, **options)

    daemon_module.SocketSource = Source  # type: ignore[attr-defined]  # the daemon's own name for it
    daemon_module.publication_of = publication_of  # type: ignore[attr-defined]  # likewise


def make_it_slow(here: Path) -> None:
    """Let conclusions take 7 seconds of the daemon's clock, and the probe all of its time or be cut short."""

    def conclude(*arguments: Any) -> Any:
        if (here / "slow conclusion").exists():
            put(here / "shift", str(shift(here) + 7))
        return step.conclude(*arguments)

    class Deadline(deadline.Deadline):
        def has_passed(self) -> bool:
            if (here / "stop while it probes").exists():
                os.kill(os.getpid(), signal.SIGTERM)
            return super().has_passed() or (here / "no time to probe").exists()

    poller.conclude = conclude  # type: ignore[assignment, attr-defined]  # the poller's own name for it
    poller.Deadline = Deadline  # type: ignore[attr-defined]  # likewise


def shift(folder: Path) -> float:
    """Return how many seconds the daemon's clock is ahead."""
    file = folder / "shift"
    return float(file.read_text(encoding="ascii")) if file.exists() else 0.0


def raise_if(defect: Path) -> None:
    if defect.exists():
        raise ZeroDivisionError(f"the {defect.name}")


def pass_time(folder: Path, daemon: Running, seconds: float) -> None:
    """Let the daemon's clock be so many seconds ahead, and wake it."""
    put(folder / "shift", str(seconds))
    daemon.signal(signal.SIGHUP)


def test_facts_are_kept_while_polls_fail_until_they_expire(ns: Namespace, tmp_path: Path, config: Path) -> None:
    put(config, SLOW)
    port_range = make_proc(tmp_path) / "sys/net/ipv4/ip_local_port_range"
    with Running(ns, with_faults(tmp_path)) as daemon:
        good = daemon.wait_for(poll_success=1)
        link = port_range.readlink()
        port_range.unlink()
        pass_time(tmp_path, daemon, 3_601)
        failed = daemon.wait_for(poll_success=0)
        still = daemon.get("/api/v1/pools"), daemon.get("/-/ready")

        put(tmp_path / "shift", "10801")
        expired = eventually(daemon.metrics, lambda metrics: pool("in_use_ports") not in metrics)
        gone = daemon.get("/api/v1/pools"), daemon.get("/-/ready")

        port_range.symlink_to(link)
        # Another hour, because a poll may have come and failed since the clock was shifted.
        put(tmp_path / "shift", "14402")
        daemon.signal(signal.SIGHUP)
        healed = daemon.wait_for(poll_success=1)

    assert good[pool("in_use_ports")] == failed[pool("in_use_ports")] == healed[pool("in_use_ports")] == 30
    taken_at = "ephmon_last_successful_poll_timestamp_seconds"
    assert good[taken_at] == failed[taken_at] == expired[taken_at] < healed[taken_at]
    assert [reply.status for reply in (*still, *gone)] == [200, 200, 503, 503]
    assert json.loads(gone[0].body) == {
        "schema": 1,
        "error": "The data has expired: no poll has succeeded for three poll intervals.",
    }
    assert expired["ephmon_poll_success"] == 0
    assert not [series for series in expired if series.startswith(("ephmon_pool_", "ephmon_usable_ports"))]


def test_a_poll_that_never_returns_is_not_served_as_live(ns: Namespace, tmp_path: Path, config: Path) -> None:
    """The HTTP side notices by itself that the data has expired, and that the main loop does not wake."""
    put(config, "poll: {interval: 100ms, cpu_budget: 1, deadline: 1h, backend: procfs}\n")
    table = make_proc(tmp_path) / "net" / "tcp"
    with Running(ns, with_faults(tmp_path)) as daemon:
        daemon.wait_for(poll_success=1)
        table.unlink()
        os.mkfifo(table)
        with opened_by_its_reader(table):
            # Who reads it waits now for what is never written.
            expired = eventually(daemon.metrics, lambda metrics: pool("in_use_ports") not in metrics)
            ready, pools = daemon.get("/-/ready"), daemon.get("/api/v1/pools")
            put(tmp_path / "shift", "10")
            soon = daemon.get("/-/healthy")
            put(tmp_path / "shift", "40")
            late = daemon.get("/-/healthy")
            table.unlink()
            table.symlink_to("/proc/self/net/tcp")
        daemon.wait_for(poll_success=1)
        # The poll is published a moment before the loop comes round and gives a sign of life.
        healed = eventually(lambda: daemon.get("/-/healthy"), lambda reply: reply.status == 200)

    assert expired["ephmon_poll_success"] == 0
    assert (ready.status, pools.status) == (503, 503)
    assert (soon.status, late.status, healed.status) == (200, 503, 200)
    assert late.body == "The main loop has not woken up in time.\n"


def test_a_defect_fails_the_poll_and_does_not_end_the_daemon(ns: Namespace, tmp_path: Path, config: Path) -> None:
    put(config, QUICK)
    make_proc(tmp_path)
    defect = tmp_path / "defect of reading"
    with Running(ns, with_faults(tmp_path)) as daemon:
        daemon.wait_for(poll_success=1)
        defect.touch()
        failed = eventually(daemon.metrics, lambda metrics: metrics.get(DEFECTS, 0) >= 3)
        defect.unlink()
        healed = daemon.wait_for(poll_success=1)
        daemon.stop()

    assert failed["ephmon_poll_success"] == 0
    assert failed["ephmon_poll_duration_seconds"] > 0
    assert healed[DEFECTS] >= 3
    assert sum("A defect of ephmon made the poll fail" in line for line in daemon.lines) == 1
    assert sum("Traceback" in line for line in daemon.lines) == 1
    assert sum("Polls succeed again." in line for line in daemon.lines) == 1


def test_a_defect_of_rendering_lets_what_was_rendered_expire(ns: Namespace, tmp_path: Path, config: Path) -> None:
    put(config, QUICK)
    make_proc(tmp_path)
    defect = tmp_path / "defect of rendering"
    with Running(ns, with_faults(tmp_path)) as daemon:
        daemon.wait_for(poll_success=1)
        defect.touch()
        daemon.wait_for_line("A defect of ephmon made the poll fail")
        expired = daemon.wait_for(poll_success=0)
        healthy = daemon.get("/-/healthy")
        defect.unlink()
        healed = daemon.wait_for(poll_success=1)
        daemon.stop()

    assert pool("in_use_ports") not in expired
    assert healthy.status == 200
    assert healed[DEFECTS] >= 1
    assert sum("A defect of ephmon made the poll fail" in line for line in daemon.lines) == 1
    assert sum("Polls succeed again." in line for line in daemon.lines) == 1


def test_alerts_are_delivered_and_logged_while_a_defect_keeps_figures_from_being_rendered(
    ns: Namespace, tmp_path: Path, config: Path
) -> None:
    """The alert has to be pending over several polls before it fires."""
    ns.call(delivering.receive, "hook", 8080)
    warning = "thresholds: {warning: {utilisation: 0.02, clear: 0.01, for: 300ms}}\n"
    put(config, QUICK + warning + 'notify: {webhook: {url: "http://127.0.0.1:8080/"}}\n')
    make_proc(tmp_path)
    (tmp_path / "defect of rendering").touch()
    with Running(ns, with_faults(tmp_path)) as daemon:
        (post,) = ns.call(delivering.wait_for_posts, "hook", 1)
        daemon.wait_for_line("fires as warning")
        daemon.stop()

    assert [alert["status"] for alert in post.document["alerts"]] == ["firing"]
    assert sum("fires as warning" in line for line in daemon.lines) == 1


# --- what it costs ------------------------------------------------------------------------------------------------


def test_idle_it_takes_at_most_50_mib_and_4_threads_and_no_more_descriptors(ns: Namespace, config: Path) -> None:
    with started(ns, "--config", config) as daemon:
        daemon.wait_for_polls(3)
        before = descriptors(daemon)
        daemon.wait_for_polls(10)
        status = dict(line.split(":\t", 1) for line in proc_of(daemon, "status").read_text().splitlines())

        assert int(status["VmRSS"].removesuffix(" kB")) <= 50 * 1024
        assert int(status["Threads"]) <= 4
        assert eventually(lambda: descriptors(daemon), lambda now: now <= before)


def descriptors(daemon: Running) -> int:
    return len(list(proc_of(daemon, "fd").iterdir()))


def proc_of(daemon: Running, name: str) -> Path:
    return Path(f"/proc/{daemon.pid}") / name


def test_it_imports_nothing_that_it_does_not_run_on() -> None:
    """What the tests and the benchmarks need is not needed to run, and what may be large stays out."""
    code = "import sys, ephmon.cli, ephmon.daemon.loop; print(*sys.modules)"
    modules = set(run(python("-c", code)).stdout.split())
    loaded = {name.partition(".")[0] for name in modules}

    assert {"ephmon", "tornado", "prometheus_client", "yaml"} <= loaded
    assert (
        loaded
        & {
            *("hypothesis", "pytest", "tests", "benchmarks", "mypy", "unittest", "doctest", "pdb"),
            *("sqlite3", "tkinter", "xmlrpc", "multiprocessing", "numpy", "requests"),
        }
        == set()
    )


# --- standard error -----------------------------------------------------------------------------------------------

STDERR = {"closed": "2>&-", "full": "2>/dev/full"}


@pytest.mark.parametrize("redirection", STDERR.values(), ids=STDERR)
def test_it_runs_without_a_standard_error_to_write_to(ns: Namespace, config: Path, redirection: str) -> None:
    command = ["sh", "-c", f'exec "$@" {redirection}', "sh", *ephmon("run", "--config", config)]
    with Running(ns, command) as daemon:
        daemon.wait_for(poll_success=1)
        daemon.signal(signal.SIGHUP)
        daemon.wait_for_polls(2)

        assert daemon.stop() == 0


def _pipe() -> tuple[int, int]:
    read_end, write_end = os.pipe()
    return read_end, write_end


def _terminal() -> tuple[int, int]:
    master, slave = pty.openpty()
    tty.setraw(slave)
    return master, slave


def _socket() -> tuple[int, int]:
    ours, theirs = socket.socketpair()
    return ours.detach(), theirs.detach()


@pytest.mark.parametrize("make", [_pipe, _terminal, _socket])
def test_it_polls_reloads_and_stops_while_nobody_reads_its_standard_error(
    ns: Namespace, config: Path, make: Callable[[], tuple[int, int]]
) -> None:
    """As with `ephmon run 2>&1 | less`, `docker run -t` that nobody attaches to, or a journal that hangs."""
    read_end, write_end = make()
    os.set_blocking(write_end, False)
    for size in (4096, 1, 1, 1):
        takes_more(write_end, b"." * size)
        time.sleep(0.02)  # a terminal moves on a moment later what it has taken
    os.set_blocking(write_end, True)
    with (
        Running(ns, ephmon("run", "--config", config), stderr=write_end) as daemon,
        os.fdopen(read_end, "rb", 0) as end,
    ):
        daemon.wait_for(poll_success=1)
        daemon.signal(signal.SIGHUP)
        daemon.wait_for_polls(2)
        said = b""
        while b"The configuration was reloaded." not in said:
            assert select.select([end], [], [], 10)[0]
            said += end.read(1 << 16).lstrip(b".")
        metrics = daemon.wait_for_polls(1)
        os.set_blocking(write_end, False)
        takes_more(write_end, b"." * 4096)
        os.set_blocking(write_end, True)

        assert daemon.stop() == 0
        os.close(write_end)
    assert b" serves http" in said.splitlines()[0]
    assert metrics['ephmon_log_lines_lost_total{reason="stream"}'] == 0


# --- TLS ----------------------------------------------------------------------------------------------------------


def test_https_is_served_and_plain_http_is_not(ns: Namespace, tmp_path: Path, config: Path) -> None:
    files = make_certificate(tmp_path, "server")
    put(config, QUICK + f"tls: {{certificate: {files.certificate}, key: {files.key}}}\n")
    with Running(ns, ephmon("run", "--config", config)) as daemon:
        line = daemon.wait_for_line("serves ")
        daemon.wait_for_line("ports are usable")
        reply = ns.call(fetch, "/-/ready", authority=str(files.certificate))
        with pytest.raises(OSError, match=r".*"):
            ns.call(fetch, "/-/ready")

    assert " serves https://127.0.0.1:19100/metrics." in line
    assert reply.status == 200


def test_clients_without_a_certificate_are_refused_where_an_authority_is_named(
    ns: Namespace, tmp_path: Path, config: Path
) -> None:
    files, known, stranger = (make_certificate(tmp_path, name) for name in ("server", "client", "stranger"))
    keys = f"{{certificate: {files.certificate}, key: {files.key}, client_ca: {known.certificate}}}"
    put(config, QUICK + f"listen: 0.0.0.0:19100\ntls: {keys}\n")
    authority = str(files.certificate)
    with Running(ns, ephmon("run", "--config", config)) as daemon:
        daemon.wait_for_line("ports are usable")
        reply = ns.call(fetch, "/-/ready", authority=authority, certificate=(str(known.certificate), str(known.key)))
        for certificate in (None, (str(stranger.certificate), str(stranger.key))):
            with pytest.raises(OSError, match=r".*"):
                ns.call(fetch, "/-/ready", authority=authority, certificate=certificate)
        daemon.stop()

    assert reply.status == 200
    assert not [line for line in daemon.lines if "level=warning" in line]


def test_another_certificate_is_shown_after_a_reload(ns: Namespace, tmp_path: Path, config: Path) -> None:
    files = make_certificate(tmp_path, "server")
    put(config, QUICK + f"tls: {{certificate: {files.certificate}, key: {files.key}}}\n")
    with Running(ns, ephmon("run", "--config", config)) as daemon:
        daemon.wait_for_line("ports are usable")
        files = make_certificate(tmp_path, "other")
        put(config, QUICK + f"tls: {{certificate: {files.certificate}, key: {files.key}}}\n")
        daemon.signal(signal.SIGHUP)
        daemon.wait_for_line("The configuration was reloaded.")

        assert ns.call(fetch, "/-/ready", authority=str(files.certificate)).status == 200


# --- the environment ----------------------------------------------------------------------------------------------


def test_it_runs_where_the_locale_knows_ascii_only(ns: Namespace, config: Path) -> None:
    put(config, QUICK + 'notify: {labels: {site: "Zürich"}}\n')
    env = environment(LC_ALL="C", PYTHONIOENCODING="ascii", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0")
    with started(ns, "--config", config, env=env) as daemon:
        assert daemon.stop() == 0
