"""Owners as the daemon and `ephmon pools --owners` tell them: of HAProxy and nginx, in cgroups made for them."""

from __future__ import annotations

import json
import re
import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests.delivery import delivering
from tests.ordinary_user import command_of_nobody, readable_folder
from tests.processes import Metrics, Running, ephmon, eventually, put, run
from tests.proxies import HERE, TO_HAPROXY, TO_HAPROXY_THAT_BINDS, TO_NGINX, UPSTREAM, Stage, proxies

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.only_root("makes cgroups")

HOOK, HOOK_PORT = "hook", 9000
QUICK = "poll: {interval: 100ms, urgent_interval: 100ms, cpu_budget: 1, urgent_cpu_budget: 1}\n"
ALERTING = (
    QUICK
    + f'pools: {{ignore_destinations: ["{HERE}"]}}\n'
    + "thresholds: {warning: {utilisation: 0.02, clear: 0.01, for: 0s}}\n"
)
"""The pool toward the upstream alerts from 20 of its 1,000 ports on; those of the clients do not count."""
QUIET = QUICK + f'pools: {{ignore_destinations: ["{HERE}"]}}\n'
TOLD = f'notify: {{webhook: {{url: "http://{HERE}:{HOOK_PORT}/hook"}}}}\n'
POOL = f'destination="{UPSTREAM}",destination_port="80",kind="tcp_connect",netns="own"'
POOL_LABELS = f'{POOL},source="{HERE}"'
NEEDED = "processes. To see which processes own ports, give it CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH."
HAPROXY, NGINX = "haproxy.service", "3f2a9c0b1d4e"
BOTH_OF_NGINX = r", nginx \(pid \d+, 2 sockets\), nginx \(pid \d+, 2 sockets\)"
"""The process that listens and the one that accepts have the same sockets."""


@pytest.fixture(name="stage")
def _stage(tmp_path: Path) -> Iterator[Stage]:
    with proxies(tmp_path) as stage:
        yield stage


@pytest.fixture(name="config")
def _config() -> Iterator[Path]:
    """A file that everybody may read: who runs without capabilities is not root."""
    with readable_folder() as folder:
        yield put(folder / "config.yaml", ALERTING)


def beside(stage: Stage, *command: str) -> list[str]:
    """Return the command line that runs a program where the cgroups are mounted."""
    return ["nsenter", f"--mount=/proc/{stage.cgroups.observer.pid}/ns/mnt", "--", *command]


def owner_ports(metrics: Metrics) -> dict[str, float]:
    found = (re.fullmatch(rf'ephmon_pool_owner_ports{{{POOL},owner="(.+)",source="{HERE}"}}', one) for one in metrics)
    return {match[1]: metrics[match[0]] for match in found if match}


def document(daemon: Running) -> dict[str, Any]:
    """Return the pools. At 10 polls a second the data may have expired for a moment where the machine is busy."""
    reply = eventually(lambda: daemon.get("/api/v1/pools"), lambda reply: reply.status == 200)
    found: dict[str, Any] = json.loads(reply.body)
    return found


def upstream_pool(pools: dict[str, Any]) -> dict[str, Any]:
    (pool,) = (one for one in pools["pools"] if one["destination"] == UPSTREAM)
    found: dict[str, Any] = pool
    return found


def shares(owners: list[dict[str, Any]]) -> list[tuple[str, str, int, int]]:
    assert all(one["estimated"] == bool(one["estimated_ports"]) for one in owners)
    return [(one["owner"], one["kind"], one["ports"], one["estimated_ports"]) for one in owners]


def test_who_holds_the_ports_of_a_pool_is_reported_everywhere_while_it_alerts(stage: Stage, config: Path) -> None:
    put(config, ALERTING + TOLD)
    stage.ns.call(delivering.receive, HOOK, HOOK_PORT)
    stage.connect(TO_HAPROXY, 30, tag="haproxy keeps")
    stage.connect(TO_HAPROXY, 12, tag="haproxy ends")
    stage.connect(TO_NGINX, 20, tag="nginx keeps")
    stage.connect(TO_NGINX, 7, tag="nginx ends")
    with Running(stage.ns, beside(stage, *ephmon("run", "--config", config))) as daemon:
        firing = eventually(daemon.metrics, lambda metrics: metrics.get(available("processes")) is not None)
        listed = document(daemon)
        page = daemon.get("/").body
        (post,) = stage.ns.call(delivering.wait_for_posts, HOOK, 1)
        stage.hang_up("haproxy ends", 12)
        stage.hang_up("nginx ends", 19)
        eventually(lambda: upstream_pool(document(daemon))["time_wait_ports"], lambda number: number == 19)
        later = upstream_pool(document(daemon))
        put(config, QUIET)
        daemon.signal(signal.SIGHUP)
        eventually(lambda: upstream_pool(document(daemon)), lambda pool: pool["owners"] is None)
        after = eventually(daemon.metrics, lambda metrics: available("owners") in metrics and not owner_ports(metrics))
        daemon.stop()

    assert owner_ports(firing) == {HAPROXY: 42, NGINX: 27}
    assert firing[f"ephmon_pool_other_owner_ports{{{POOL_LABELS}}}"] == 0
    assert firing[f"ephmon_pool_unknown_owner_ports{{{POOL_LABELS}}}"] == 0
    assert (firing[available("owners")], firing[available("processes")]) == (1, 1)
    assert shares(upstream_pool(listed)["owners"]) == [(HAPROXY, "unit", 42, 0), (NGINX, "container", 27, 0)]
    assert f"Held by: {HAPROXY} 42 ports, {NGINX} 27." in page
    (told,) = post.document["alerts"]
    assert told["annotations"]["owners"] == f"{HAPROXY} 42 ports, {NGINX} 27"
    assert "owner" not in told["labels"]

    (fires,) = (line for line in daemon.lines if "fires as warning" in line)
    assert f" {HAPROXY} holds 42 ports. " in fires
    (held,) = (line for line in daemon.lines if "are held by" in line)
    assert re.search(
        rf'"Ports toward {UPSTREAM}:80 are held by haproxy \(pid \d+, 42 sockets\), nginx \(pid \d+, 27 sockets\)\."',
        held,
    )

    # What a connection left behind is put down to who had it.
    assert shares(later["owners"]) == [(HAPROXY, "unit", 42, 12), (NGINX, "container", 27, 7)]
    assert after[available("owners")] == 1


def available(collector: str) -> str:
    return f'ephmon_collector_available{{collector="{collector}"}}'


def test_who_blocks_ports_is_reported_while_that_alerts(stage: Stage, config: Path) -> None:
    stage.connect(TO_HAPROXY_THAT_BINDS, 25, tag="clients")
    with Running(stage.ns, beside(stage, *ephmon("run", "--config", config))) as daemon:
        metrics = eventually(daemon.metrics, lambda metrics: metrics.get(available("processes")) is not None)
        (namespace,) = document(daemon)["namespaces"]
        daemon.stop()

    series = {owner: f'ephmon_blocked_port_owner_ports{{netns="own",owner="{owner}"}}' for owner in (HAPROXY, NGINX)}
    by_owner = {owner: metrics[name] for owner, name in series.items()}
    assert by_owner == {HAPROXY: 25, NGINX: 2}
    assert shares(namespace["blocked_owners"]) == [(HAPROXY, "unit", 25, 0), (NGINX, "container", 2, 0)]
    (held,) = (line for line in daemon.lines if "Blocked ports are held by" in line)
    assert re.search(rf"held by haproxy \(pid \d+, 25 sockets\){BOTH_OF_NGINX}", held)


def test_without_any_capability_the_daemon_names_owners_and_says_once_what_it_may_not(
    stage: Stage, config: Path
) -> None:
    stage.connect(TO_HAPROXY, 30, tag="haproxy")
    stage.connect(TO_NGINX, 20, tag="nginx")
    with Running(stage.ns, beside(stage, *command_of_nobody(), *ephmon("run", "--config", config))) as daemon:
        # Whether processes can be seen may be known a poll before it is known who holds the ports.
        metrics = eventually(
            daemon.metrics, lambda metrics: available("processes") in metrics and bool(owner_ports(metrics))
        )
        put(config, QUIET)
        daemon.signal(signal.SIGHUP)
        eventually(daemon.metrics, lambda metrics: not owner_ports(metrics))
        put(config, ALERTING)
        daemon.signal(signal.SIGHUP)
        eventually(daemon.metrics, lambda metrics: bool(owner_ports(metrics)))
        daemon.wait_for_polls(3)
        daemon.stop()

    assert owner_ports(metrics) == {HAPROXY: 30, NGINX: 20}
    assert (metrics[available("owners")], metrics[available("processes")]) == (1, 0)
    assert len([line for line in daemon.lines if NEEDED in line]) == 1
    assert not [line for line in daemon.lines if "are held by" in line]


@pytest.mark.parametrize(
    ("capabilities", "is_enough"),
    [("+sys_ptrace", False), ("+dac_read_search", False), ("+sys_ptrace,+dac_read_search", True)],
)
def test_it_takes_both_capabilities_to_name_processes(
    stage: Stage, config: Path, capabilities: str, *, is_enough: bool
) -> None:
    stage.connect(TO_HAPROXY, 30, tag="haproxy")
    rights = (f"--{kind}=-all,{capabilities}" for kind in ("inh-caps", "ambient-caps", "bounding-set"))
    with Running(stage.ns, beside(stage, *command_of_nobody(*rights), *ephmon("run", "--config", config))) as daemon:
        metrics = eventually(daemon.metrics, lambda metrics: metrics.get(available("processes")) is not None)
        daemon.stop()

    assert owner_ports(metrics) == {HAPROXY: 30}
    assert metrics[available("processes")] == is_enough
    assert any(NEEDED in line for line in daemon.lines) != is_enough
    assert any(re.search(r"are held by haproxy \(pid \d+, 30 sockets\)", line) for line in daemon.lines) == is_enough


def test_by_procfs_there_are_no_owners_and_that_is_said(stage: Stage, config: Path) -> None:
    put(config, ALERTING.replace("cpu_budget: 1,", "cpu_budget: 1, backend: procfs,", 1))
    stage.connect(TO_HAPROXY, 30, tag="haproxy")
    with Running(stage.ns, beside(stage, *ephmon("run", "--config", config))) as daemon:
        daemon.wait_for_line("The owners of ports are not known: Only inet_diag shows who holds ports")
        metrics = daemon.wait_for_polls(3)
        pool = upstream_pool(document(daemon))
        daemon.stop()

    assert metrics[available("owners")] == 0
    assert available("processes") not in metrics
    assert (metrics["ephmon_poll_success"], pool["owners"]) == (1, None)
    assert len([line for line in daemon.lines if "The owners of ports are not known" in line]) == 1


# --- the command --------------------------------------------------------------------------------------------------


def pools(stage: Stage, config: Path, *words: str, prefix: tuple[str, ...] = ()) -> tuple[int, str, str]:
    command = beside(stage, *prefix, *ephmon("pools", "--config", config, "--owners", *words))
    result = run(stage.ns.command(*command))
    return result.returncode, result.stdout, result.stderr


def test_the_command_names_who_holds_and_who_blocks_ports_below_the_table(stage: Stage, config: Path) -> None:
    stage.connect(TO_HAPROXY, 30, tag="haproxy keeps")
    stage.connect(TO_NGINX, 20, tag="nginx keeps")
    stage.connect(TO_NGINX, 5, tag="nginx ends")
    stage.connect(TO_HAPROXY_THAT_BINDS, 25, tag="binder")
    stage.hang_up("nginx ends", 5)
    status, out, err = pools(stage, config, "--destination", UPSTREAM)
    lines = out.partition("\nWho holds the ports:\n")[2].splitlines()

    assert (status, err) == (0, "")
    # Of a single look, TIME_WAITs are shared out by who is there: 3 and 2 of 5.
    assert lines[0] == (
        f"tcp_connect from {HERE} to {UPSTREAM}:80: {HAPROXY} 33 ports (3 estimated), {NGINX} 22 (2 estimated)"
    )
    # Its sockets toward the upstream that block their ports are its sockets all the same.
    assert re.fullmatch(r"  haproxy \(pid \d+, 55 sockets\), nginx \(pid \d+, 20 sockets\)", lines[1])
    assert lines[2] == f"blocked ports: {HAPROXY} 25 ports, {NGINX} 2"
    assert re.fullmatch(rf"  haproxy \(pid \d+, 25 sockets\){BOTH_OF_NGINX}", lines[3])


def test_the_command_says_it_in_json_too(stage: Stage, config: Path) -> None:
    stage.connect(TO_HAPROXY, 30, tag="haproxy")
    status, out, _ = pools(stage, config, "--json")
    found = json.loads(out)
    pool = upstream_pool(found)
    (namespace,) = found["namespaces"]

    assert status == 0
    assert shares(pool["owners"]) == [(HAPROXY, "unit", 30, 0)]
    assert [(one["command"], one["sockets"]) for one in pool["processes"]] == [("haproxy", 30)]
    assert shares(namespace["blocked_owners"]) == [(NGINX, "container", 2, 0)]
    assert [(one["command"], one["sockets"]) for one in namespace["blocked_processes"]] == [("nginx", 2)] * 2
    assert (found["owners_error"], found["processes_error"], found["processes_complete"]) == (None, None, True)


def test_the_command_names_owners_without_any_capability(stage: Stage, config: Path) -> None:
    stage.connect(TO_HAPROXY, 30, tag="haproxy")
    status, out, err = pools(stage, config, "--destination", UPSTREAM, prefix=tuple(command_of_nobody()))

    assert (status, err) == (0, "")
    assert f"to {UPSTREAM}:80: {HAPROXY} 30 ports\n" in out
    assert NEEDED in out
    assert "(pid " not in out


def test_without_a_hierarchy_of_cgroups_users_are_named_and_their_processes_are_found(
    stage: Stage, config: Path
) -> None:
    stage.connect(TO_HAPROXY, 30, tag="haproxy")
    without = ("unshare", "--mount", "--", "sh", "-c", UNMOUNT_CGROUP2, "sh")
    status, out, err = pools(stage, config, "--destination", UPSTREAM, prefix=without)

    assert (status, err) == (0, "")
    assert f"to {UPSTREAM}:80: uid 0 30 ports\n  haproxy (pid " in out
    assert "\nNo cgroup2 hierarchy is mounted, so owners are named by user id. " in out


UNMOUNT_CGROUP2 = """\
sed -n 's/^[^/]*[^ ]* \\([^ ]*\\) .* - cgroup2 .*/\\1/p' /proc/self/mountinfo | xargs -n 1 umount && exec "$@"
"""


def test_the_command_fails_where_owners_cannot_be_reported_and_prints_the_pools(stage: Stage, config: Path) -> None:
    put(config, "poll: {backend: procfs}\n")
    stage.connect(TO_HAPROXY, 30, tag="haproxy")
    status, out, err = pools(stage, config, "--destination", UPSTREAM)

    assert status == 1
    assert f"{UPSTREAM}:80" in out
    assert "Who holds" not in out
    assert err.startswith("ephmon: Only inet_diag shows who holds ports")
    assert err.count("\n") == 1
    status, out, _ = pools(stage, config, "--json")
    assert status == 1
    assert json.loads(out)["owners_error"].startswith("Only inet_diag shows")
