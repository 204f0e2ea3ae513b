"""The Debian package and its unit under a real systemd, from the installation to the purge, each test after the other.

Run by script/systemd in the system that it boots, as root; pytest runs it only where it is named.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.processes import eventually, fetch, parse_metrics, stopped_main_thread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.processes import Metrics

PACKAGE = Path("/ephmon.deb")
UNIT = "ephmon.service"
CONFIG = Path("/etc/ephmon/config.yaml")
CREDENTIALS = Path("/etc/ephmon/credentials")
DROP_INS = Path("/etc/systemd/system/ephmon.service.d")
SHIPPED = Path("/usr/share/ephmon/systemd")
SANDBOX = "/usr/bin/python3 /tests/deployment/sandbox.py"
QUICK = "poll: {interval: 200ms, deadline: 500ms, cpu_budget: 1}\n"
VOLATILE = re.compile(
    r"/(dev|proc|run|sys|tmp|results|tests)/|/var/(log|tmp|cache/man|cache/ldconfig)/|/var/lib/(dpkg|systemd/(?!deb-))"
    r"|/var/lib/private$|.*/__pycache__"
)
"""Files that come and go without ephmon, and the directory in which systemd keeps those of all dynamic users."""


def run(*command: str | Path, succeeds: bool = True) -> str:
    """Run a command, and return what it printed."""
    result = subprocess.run(
        list(map(str, command)), stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", check=False
    )
    assert (result.returncode == 0) is succeeds, result
    return result.stdout + result.stderr


def prop(name: str) -> str:
    """Return a property of the unit."""
    return run("systemctl", "show", "--value", "--property", name, UNIT).strip()


def metrics() -> Metrics:
    """Return what the daemon serves, nothing while nobody answers."""
    try:
        reply = fetch("/metrics")
    except ConnectionRefusedError:
        return {}
    return parse_metrics(reply.body) if reply.status == 200 else {}


def journal(since: str) -> str:
    """Return what the unit has logged behind a cursor."""
    return run("journalctl", "--unit", UNIT, "--after-cursor", since, "--output=cat", "--no-pager")


def cursor() -> str:
    """Return where the journal ends."""
    run("journalctl", "--sync")
    return run("journalctl", "--lines=0", "--show-cursor", "--quiet").partition("cursor: ")[2].strip()


@contextmanager
def configured(text: str) -> Iterator[None]:
    """Write another configuration, and put that of the package back in the end."""
    before = CONFIG.read_bytes()
    CONFIG.write_text(text, encoding="utf-8")
    try:
        yield
    finally:
        CONFIG.write_bytes(before)


@contextmanager
def drop_in(text: str, *shipped: str) -> Iterator[None]:
    """Add these lines to the unit, and drop-ins that the package brings; takes effect at the next start."""
    DROP_INS.mkdir()
    for name in shipped:
        (DROP_INS / name).symlink_to(SHIPPED / name)
    (DROP_INS / "test.conf").write_text(f"[Service]\n{text}\n", encoding="utf-8")
    run("systemctl", "daemon-reload")
    try:
        yield
    finally:
        run("systemctl", "stop", UNIT)
        shutil.rmtree(DROP_INS)
        run("systemctl", "daemon-reload")
        run("systemctl", "reset-failed", UNIT)


def in_sandbox(command: str, *shipped: str, **options: str) -> str:
    """Run a command in the place of ephmon and return what it printed."""
    said = Path("/results/said")
    said.unlink(missing_ok=True)
    outputs = {"StandardOutput": f"file:{said}", "StandardError": "journal"}
    lines = {"Type": "oneshot", "Restart": "no", **outputs, **options}
    run("systemctl", "stop", UNIT)
    text = "\n".join([*(f"{name}={value}" for name, value in lines.items()), "ExecStart=", f"ExecStart={command}"])
    with drop_in(text, *shipped):
        run("systemctl", "start", UNIT)
    return said.read_text(encoding="utf-8")


@pytest.fixture(scope="module", name="before", autouse=True)
def _before() -> set[str]:
    """All files before the package was installed."""
    return files()


def files() -> set[str]:
    """Return the names of all files that do not come and go by themselves."""
    found = (os.path.join(folder, name) for folder, *names in os.walk("/") for name in [*names[0], *names[1]])  # noqa: PTH118 - many
    return {path for path in found if not VOLATILE.match(path)}


# --- installation -------------------------------------------------------------------------------------------------


def test_lintian_finds_no_error() -> None:
    said = run("lintian", "--fail-on", "error", "--tag-display-limit", "0", "--allow-root", PACKAGE)
    sys.stdout.write(said)


def test_an_installation_starts_the_service_and_enables_it() -> None:
    run("dpkg", "--install", PACKAGE)

    assert run("systemctl", "is-active", UNIT) == "active\n"
    assert run("systemctl", "is-enabled", UNIT) == "enabled\n"
    assert prop("StatusText") == "No pool holds enough ports to be listed."
    seen = metrics()
    assert seen["ephmon_poll_success"] == 1
    assert seen['ephmon_backend_info{backend="inet_diag",protocol="tcp"}'] == 1


def test_the_daemon_is_a_user_that_exists_only_while_it_runs() -> None:
    status = Path(f"/proc/{prop('MainPID')}/status").read_text(encoding="ascii")

    uid = int(re.findall(r"^Uid:\t(\d+)", status, re.MULTILINE)[0])
    assert 61184 <= uid <= 65519
    assert re.findall(r"^(Cap\w+):\t0+$", status, re.MULTILINE) == ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]
    assert "ephmon" not in Path("/etc/passwd").read_text(encoding="utf-8")


def test_systemd_finds_nothing_wrong_with_the_unit() -> None:
    assert run("systemd-analyze", "verify", UNIT) == ""
    run("systemd-analyze", "security", "--threshold=16", UNIT)


def test_the_manual_and_the_completions_are_where_they_are_looked_for() -> None:
    assert "how many more connections" in run("man", "--warnings", "ephmon")
    assert Path("/usr/share/bash-completion/completions/ephmon").is_file()
    assert Path("/usr/share/zsh/vendor-completions/_ephmon").is_file()
    assert Path("/usr/share/fish/vendor_completions.d/ephmon.fish").is_file()


def test_zsh_and_fish_understand_their_completions(tmp_path: Path) -> None:
    completions = "/usr/share/fish/vendor_completions.d/ephmon.fish"
    ask = f'source {completions}; complete -C "ephmon pools --"'
    offered = run("env", f"HOME={tmp_path}", "fish", "--no-config", "-c", ask)

    assert {line.split()[0] for line in offered.splitlines()} >= {"--config", "--help", "--json", "--top"}
    assert "--listen" not in offered
    run("zsh", "-n", "/usr/share/zsh/vendor-completions/_ephmon")


def test_the_configuration_that_comes_with_it_is_right() -> None:
    run("ephmon", "check-config")


def test_the_limits_hold() -> None:
    names = ("CPUQuotaPerSecUSec", "MemoryHigh", "MemoryMax", "TasksMax", "LimitNOFILE", "LimitCORE", "OOMScoreAdjust")

    assert [prop(name) for name in names] == ["1s", str(192 << 20), str(256 << 20), "64", "4096", "0", "500"]
    assert Path(f"/proc/{prop('MainPID')}/oom_score_adj").read_text(encoding="ascii") == "500\n"


# --- the sandbox --------------------------------------------------------------------------------------------------


def test_what_the_unit_denies_is_denied_even_to_root() -> None:
    """The same sandbox, but with root as its user, so that it is not the file permissions that deny."""
    outcomes = json.loads(in_sandbox(f"{SANDBOX} forbidden", DynamicUser="no", User="root", Group="nogroup"))

    assert [name for name, outcome in outcomes.items() if outcome == "done"] == []
    assert outcomes["write to /etc"] == outcomes["write a sysctl"] == outcomes["write to a cgroup"] == "EROFS"
    assert outcomes["see the first process"] == "ENOENT"
    assert outcomes["open a packet socket"] == "EAFNOSUPPORT"


def test_what_ephmon_needs_is_there() -> None:
    outcomes = json.loads(in_sandbox(f"{SANDBOX} needed"))

    assert set(outcomes.values()) == {"done"}, outcomes


def test_processes_of_others_are_seen_with_the_drop_in_for_owners_alone() -> None:
    without, with_it = (json.loads(in_sandbox(f"{SANDBOX} processes", *names)) for names in ((), ("owners.conf",)))

    assert list(without.values()) == ["ENOENT"]
    assert list(with_it.values()) == ["done"]


def test_ports_are_probed_and_without_fast_open_with_the_drop_in_for_the_probe_alone() -> None:
    command, fast_open = "/usr/bin/ephmon headroom 127.0.0.1:9 --probe --json", Path("/proc/sys/net/ipv4/tcp_fastopen")
    methods = {}
    try:
        for value in ("1", "0"):
            fast_open.write_text(value, encoding="ascii")
            for names in ((), ("probe.conf",)):
                methods[value, *names] = json.loads(in_sandbox(command, *names, SuccessExitStatus="1"))["method"]
    finally:
        fast_open.write_text("1", encoding="ascii")

    assert methods == {
        ("1",): "probe",
        ("1", "probe.conf"): "probe",
        ("0",): "inet_diag",
        ("0", "probe.conf"): "probe",
    }


WALKS = (
    "from ephmon.kernel.bpf.reader import BindTableReader as R; from ephmon.kernel.deadline import Deadline as D; "
    "import time; print(R().read(D(10, time.monotonic)).own.usable)"
)
"""Loads the BPF program and counts the ports of the range."""
BOTH = "CAP_BPF CAP_PERFMON"


@pytest.mark.parametrize(
    ("shipped", "capabilities", "usable", "refusal"),
    [
        ([], "", "", "Loading a BPF program takes the capabilities CAP_BPF and CAP_PERFMON, and this process lacks"),
        (
            [],
            BOTH,
            "",
            "The system call bpf() is not allowed here (Operation not permitted)",
        ),
        (["bpf.conf"], "", "28232\n", ""),
    ],
    ids=["without rights", "with capabilities", "with the drop-in"],
)
def test_the_bind_table_is_walked_with_the_drop_in_for_bpf_alone(
    shipped: list[str], capabilities: str, usable: str, refusal: str
) -> None:
    start = cursor()
    rights = {"CapabilityBoundingSet": capabilities, "AmbientCapabilities": capabilities} if capabilities else {}
    said = in_sandbox(f"/usr/bin/python3 -c '{WALKS}'", *shipped, SuccessExitStatus="1", **rights)

    words = journal(start)
    assert (said, refusal in words, "BpfUnavailableError" in words) == (usable, True, bool(refusal)), words


def test_the_daemon_has_two_capabilities_with_the_drop_in_for_bpf_and_reads_by_it() -> None:
    with configured(QUICK), drop_in("", "bpf.conf"):
        run("systemctl", "restart", UNIT)
        status = Path(f"/proc/{prop('MainPID')}/status").read_text(encoding="ascii")

        assert re.findall(r"^Cap(?:Prm|Eff|Bnd|Amb):\t([0-9a-f]+)$", status, re.MULTILINE) == ["000000c000000000"] * 4
        assert metrics()['ephmon_backend_info{backend="bpf",protocol="tcp"}'] == 1


def test_the_drop_in_for_exhaustions_shows_an_instance_and_takes_it_away_again() -> None:
    code = (
        "from ephmon.kernel.trace.tracefs import open_instance as o; "
        "i = o(); print(i.directory, i.lost()); i.require_on()"
    )
    said = in_sandbox(f"/usr/bin/python3 -c '{code}'", "exhaustions.conf")

    assert said == "/run/ephmon/tracing 0\n"
    assert not Path("/sys/kernel/tracing/instances/ephmon").exists()


# --- what goes wrong ----------------------------------------------------------------------------------------------


def test_a_process_that_hangs_is_killed_and_started_again_and_the_log_says_where_it_hung() -> None:
    start = cursor()
    with configured(QUICK), drop_in("WatchdogSec=11s\nRestartSec=100ms"):
        run("systemctl", "restart", UNIT)
        pid = prop("MainPID")
        with stopped_main_thread(int(pid)):
            pass  # until it has been killed
        eventually(lambda: (prop("NRestarts"), prop("ActiveState")), lambda seen: seen == ("1", "active"))
        restarted = prop("MainPID")
        eventually(metrics, lambda seen: seen.get("ephmon_poll_success") == 1)

    said = journal(start)
    assert restarted not in ("0", pid)
    assert "watchdog" in said.lower()
    assert re.search(r'File "/usr/lib/python3/dist-packages/ephmon/daemon/loop.py", line \d+ in _loop', said)


def test_a_watchdog_that_is_too_short_for_the_deadline_of_a_poll_is_lengthened() -> None:
    with configured("poll: {deadline: 20s}\n"), drop_in("WatchdogSec=2s"):
        run("systemctl", "restart", UNIT)

        eventually(lambda: prop("WatchdogUSec"), lambda seen: seen == "50s")
        eventually(metrics, lambda seen: seen.get('ephmon_polls_total{scope="full"}', 0) >= 2)
        assert prop("NRestarts") == "0"


def test_a_host_where_the_first_poll_fails_is_ready_and_says_why_and_is_not_restarted() -> None:
    with configured(QUICK), drop_in("ProcSubset=pid"):
        run("systemctl", "restart", UNIT)
        status = prop("StatusText")
        eventually(metrics, lambda seen: seen.get('ephmon_poll_failures_total{reason="sysctl"}', 0) >= 3)

        assert run("systemctl", "is-active", UNIT) == "active\n"
        assert prop("NRestarts") == "0"
    assert status.startswith("The last poll failed: /proc/sys/")


def test_a_wrong_configuration_is_reported_once_and_not_tried_again() -> None:
    start = cursor()
    with configured("poll: {interval: never}\n"), drop_in("RestartSec=1ms"):
        run("systemctl", "restart", UNIT, succeeds=False)

        assert (prop("ActiveState"), prop("NRestarts"), prop("ExecMainStatus")) == ("failed", "0", "2")
    assert "poll.interval" in journal(start)


# --- reload -------------------------------------------------------------------------------------------------------


def threshold() -> float | None:
    return metrics().get('ephmon_threshold_utilisation_ratio{severity="warning"}')


def test_a_reload_takes_the_new_file_over_and_a_wrong_one_is_refused_and_stands_in_the_status() -> None:
    run("systemctl", "restart", UNIT)
    pid = prop("MainPID")
    with configured("thresholds: {warning: {utilisation: 0.5}}\n"):
        run("systemctl", "reload", UNIT)
        eventually(threshold, lambda seen: seen == 0.5)
    with configured("thresholds: {warning: {utilisation: 7}}\n"):
        run("systemctl", "reload", UNIT)
        status = eventually(lambda: prop("StatusText"), lambda seen: "The last reload failed" in seen)

        assert "7 is above 1" in status
        assert threshold() == 0.5
    run("systemctl", "reload", UNIT)
    eventually(threshold, lambda seen: seen == 0.7)

    assert eventually(lambda: prop("ActiveState"), lambda seen: seen != "reloading") == "active"
    assert prop("MainPID") == pid


def test_a_systemd_that_waits_for_reloads_sees_their_end() -> None:
    """Since 253 it knows a type of service whose reload is not done before the service has said so."""
    version = int(re.findall(r"^systemd (\d+)", run("systemctl", "--version"))[0])
    with drop_in("Type=notify-reload\nExecReload=" if version >= 253 else ""):
        run("systemctl", "restart", UNIT)
        run("systemctl", "reload", UNIT)
        states = [prop("ActiveState"), eventually(lambda: prop("ActiveState"), lambda seen: seen != "reloading")]

    assert states[-1] == "active"
    assert states[0] == "active" or version < 253


# --- credentials --------------------------------------------------------------------------------------------------


def test_a_secret_reaches_ephmon_and_nobody_else() -> None:
    url = "notify: {webhook: {url_file: /run/credentials/ephmon.service/webhook}}\n"
    CREDENTIALS.mkdir(mode=0o700)
    secret = CREDENTIALS / "webhook"
    secret.write_text("https://example.net/hook\n", encoding="utf-8")
    secret.chmod(0o600)
    try:
        with configured(url):
            run("systemctl", "restart", UNIT)
            copy = Path("/run/credentials/ephmon.service/webhook")
            stranger = subprocess.run(["setpriv", "--reuid=65534", "--clear-groups", "cat", copy], check=False)

            assert copy.read_bytes() == secret.read_bytes()
            assert stranger.returncode != 0
            assert run("systemctl", "is-active", UNIT) == "active\n"
    finally:
        shutil.rmtree(CREDENTIALS)


def test_a_secret_that_the_configuration_names_and_that_is_not_there_is_missed_in_a_sentence() -> None:
    start = cursor()
    with configured("notify: {webhook: {url_file: /run/credentials/ephmon.service/webhook}}\n"):
        run("systemctl", "restart", UNIT, succeeds=False)
    run("systemctl", "reset-failed", UNIT)

    assert "notify.webhook.url_file: the file is empty; write the URL" in journal(start)


# --- upgrade, removal, purge --------------------------------------------------------------------------------------


@pytest.fixture(scope="module", name="newer")
def _newer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package with a higher version."""
    folder = tmp_path_factory.mktemp("newer")
    run("dpkg-deb", "--raw-extract", PACKAGE, folder / "tree")
    control = folder / "tree/DEBIAN/control"
    text = control.read_text(encoding="utf-8")
    control.write_text(re.sub(r"^(Version: .*)$", r"\1+newer", text, flags=re.MULTILINE), encoding="utf-8")
    run("dpkg-deb", "--build", folder / "tree", folder / "newer.deb")
    return folder / "newer.deb"


def test_an_upgrade_keeps_the_configuration_and_restarts_the_service(newer: Path) -> None:
    run("systemctl", "restart", UNIT)
    pid = prop("MainPID")
    CONFIG.write_text(f"# mine\n{QUICK}", encoding="utf-8")
    run("dpkg", "--install", newer)

    assert CONFIG.read_text(encoding="utf-8") == f"# mine\n{QUICK}"
    assert prop("MainPID") not in ("0", pid)
    eventually(metrics, lambda seen: seen.get("ephmon_poll_success") == 1)


def test_a_service_that_an_administrator_has_disabled_stays_so(newer: Path) -> None:
    run("systemctl", "disable", "--now", UNIT)
    run("dpkg", "--install", newer)

    assert run("systemctl", "is-enabled", UNIT, succeeds=False) == "disabled\n"
    assert run("systemctl", "is-active", UNIT, succeeds=False) == "inactive\n"
    run("systemctl", "enable", "--now", UNIT)


def test_a_removal_stops_the_service_and_keeps_configuration_and_state() -> None:
    run("dpkg", "--remove", "ephmon")

    assert run("systemctl", "is-active", UNIT, succeeds=False) == "inactive\n"
    assert not Path("/usr/lib/systemd/system/ephmon.service").exists()
    assert not Path("/usr/lib/python3/dist-packages/ephmon").exists()
    assert CONFIG.read_text(encoding="utf-8") == f"# mine\n{QUICK}"
    assert Path("/var/lib/private/ephmon").is_dir()


def test_an_installation_after_a_removal_takes_the_kept_configuration() -> None:
    run("dpkg", "--install", PACKAGE)

    assert CONFIG.read_text(encoding="utf-8") == f"# mine\n{QUICK}"
    assert run("systemctl", "is-active", UNIT) == "active\n"


def test_a_purge_leaves_nothing(before: set[str]) -> None:
    run("dpkg", "--purge", "ephmon")

    assert files() - before == set()
    assert before - files() == set()
    assert run("systemctl", "is-active", UNIT, succeeds=False) == "inactive\n"
