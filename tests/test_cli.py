"""The commands as real processes: what they print and where, and with which status they end."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import signal
import struct
import subprocess
import termios
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ephmon import __version__, cli
from ephmon.config.settings import Config, describe, load, parse
from ephmon.kernel.proc.sysctl import read_release
from tests import sockets
from tests.namespaces import Namespace
from tests.processes import (
    WAIT_SECONDS,
    Running,
    environment,
    ephmon,
    eventually,
    fetch,
    make_proc,
    opened_by_its_reader,
    python,
    run,
)
from tests.sockets import FillResult, Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator
    from subprocess import CompletedProcess

LOW, HIGH = 40_000, 40_999
HERE, HERE_V6 = "127.0.0.1", "::1"
SHOWS_ALL = read_release(Path("/proc")) >= (6, 18)
SHOWS_BOUND = read_release(Path("/proc")) >= (6, 8)


@pytest.fixture(name="ns", scope="module")
def _ns() -> Iterator[Namespace]:
    """A namespace with 30 connections to one destination, 20 and 10 to others; no test changes it."""
    with Namespace() as ns:
        ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", f"{LOW} {HIGH}")
        for address, port, number in ((HERE, 80, 30), (HERE, 81, 20), (HERE_V6, 80, 10)):
            ns.call(sockets.listen, address, port, tag="server")
            assert ns.call(sockets.fill, address, port, tag="clients", limit=number) == FillResult(number, 0)
        yield ns


@pytest.fixture(name="config")
def _config(tmp_path: Path) -> Path:
    """An empty configuration, so that what this host has in /etc does not matter."""
    return write(tmp_path / "config.yaml", "")


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def pools(ns: Namespace, config: Path, *arguments: str, env: dict[str, str] | None = None) -> CompletedProcess[str]:
    return run(ns.command(*ephmon("pools", "--config", config, *arguments)), env)


def connect_pools(document: dict[str, Any]) -> list[tuple[str, int, int]]:
    """Return destination, port and ports in use of the pools of the kind tcp_connect."""
    found = (pool for pool in document["pools"] if pool["kind"] == "tcp_connect")
    return [(pool["destination"], pool["destination_port"], pool["in_use_ports"]) for pool in found]


# --- pools --------------------------------------------------------------------------------------------------------


def test_the_json_has_all_that_is_promised(ns: Namespace, config: Path) -> None:
    result = pools(ns, config, "--json")
    document = json.loads(result.stdout)
    (namespace,), first = document["namespaces"], document["pools"][0]

    assert (result.returncode, result.stderr) == (0, "")
    assert (result.stdout.count("\n"), result.stdout[-1]) == (1, "\n")
    assert document.keys() >= {
        *("schema", "taken_at", "backend", "duration_seconds", "complete", "missing", "pools_total", "pools_listed"),
        *("namespaces", "pools"),
    }
    assert document["schema"] == 1
    assert document["backend"] == {"tcp": "inet_diag", "udp": "inet_diag"}
    assert (document["complete"], document["missing"]) == (True, [])
    assert document["pools_total"] == document["pools_listed"] == len(document["pools"])
    assert (0, document["taken_at"][-1]) < (document["duration_seconds"], "Z") < (1, "a")
    assert (
        namespace.items()
        >= {
            "netns": "own",
            "inode": ns.inode,
            "port_range_low": LOW,
            "port_range_high": HIGH,
            "reserved_ports": 0,
            "usable_ports": 1000,
            "blocked_ports": 0,
            "tcp_tw_reuse": 2,
        }.items()
    )
    assert {"ambiguous_ports", "blind_to"} <= namespace.keys()
    assert (
        first.items()
        >= {
            "netns": "own",
            "kind": "tcp_connect",
            "source": HERE,
            "destination": HERE,
            "destination_port": 80,
            "taken_at": document["taken_at"],
            "usable_ports": 1000,
            "blocked_ports": 0,
            "capacity_ports": 1000,
            "in_use_ports": 30,
            "time_wait_ports": 0,
            "reusable_ports": 0,
            "remaining_ports": 970,
            "remaining_ports_max": 970,
            "failure_errno": "EADDRNOTAVAIL",
            "utilisation_ratio": 0.03,
        }.items()
    )
    assert first["remaining_ports_min"] <= 970
    assert first["exact"] is (first["remaining_ports_min"] == 970 and SHOWS_BOUND)
    assert first["states"] == {"established": 30}
    assert connect_pools(document) == [(HERE, 80, 30), (HERE, 81, 20), (HERE_V6, 80, 10)]


def test_the_table_has_a_line_for_each_pool_the_fullest_first(ns: Namespace, config: Path) -> None:
    result = pools(ns, config)
    lines = result.stdout.splitlines()
    rows = [line.split()[:5] for line in lines if line.startswith("tcp_connect ")]

    assert (result.returncode, result.stderr) == (0, "")
    assert lines[0].startswith("Ports 40000-40999: 1000 usable (0 reserved), 0 blocked for connect()")
    assert rows == [
        ["tcp_connect", "127.0.0.1", "127.0.0.1:80", "3.0", "30"],
        ["tcp_connect", "127.0.0.1", "127.0.0.1:81", "2.0", "20"],
        ["tcp_connect", "::1", "[::1]:80", "1.0", "10"],
    ]


def test_top_cuts_the_list_and_the_table_says_so(ns: Namespace, config: Path) -> None:
    table, document = pools(ns, config, "--top", "2"), json.loads(pools(ns, config, "--top", "1", "--json").stdout)

    total = document["pools_total"]
    assert total >= 3
    assert table.stdout.splitlines()[-1] == f"Pools shown: 2 of {total}; --top N shows more."
    assert (document["pools_listed"], connect_pools(document)) == (1, [(HERE, 80, 30)])


def test_the_table_is_cut_at_pools_top_and_the_json_is_not(ns: Namespace, config: Path) -> None:
    write(config, "pools: {top: 1}\n")

    assert re.fullmatch(r"Pools shown: 1 of \d+; --top N shows more\.", pools(ns, config).stdout.splitlines()[-1])
    assert len(connect_pools(json.loads(pools(ns, config, "--json").stdout))) == 3


DESTINATIONS = {
    HERE: [(HERE, 80, 30), (HERE, 81, 20)],
    f"{HERE}:81": [(HERE, 81, 20)],
    f"::ffff:{HERE}": [(HERE, 80, 30), (HERE, 81, 20)],
    HERE_V6: [(HERE_V6, 80, 10)],
    f"[{HERE_V6}]:80": [(HERE_V6, 80, 10)],
    "0:0:0:0:0:0:0:1": [(HERE_V6, 80, 10)],
    "10.0.0.1": [],
    f"[{HERE_V6}]:81": [],
}


@pytest.mark.parametrize(("destination", "found"), DESTINATIONS.items(), ids=DESTINATIONS)
def test_one_destination_can_be_asked_for(
    ns: Namespace, config: Path, destination: str, found: list[tuple[str, int, int]]
) -> None:
    result = pools(ns, config, "--json", "--destination", destination)

    assert (result.returncode, connect_pools(json.loads(result.stdout))) == (0, found)


def test_a_destination_without_a_pool_is_no_failure(ns: Namespace, config: Path) -> None:
    result = pools(ns, config, "--destination", "10.0.0.1:443")

    assert (result.returncode, result.stderr) == (0, "")
    assert re.search(
        r"^No pool is shown\.\nPools shown: 0 of 0 toward 10\.0\.0\.1:443 \(\d+ in all\)\.$",
        result.stdout,
        re.MULTILINE,
    )


def test_with_a_destination_the_table_says_how_many_pools_lead_there(ns: Namespace, config: Path) -> None:
    total = json.loads(pools(ns, config, "--json").stdout)["pools_total"]
    last = [
        pools(ns, config, *arguments).stdout.splitlines()[-1]
        for arguments in (
            ["--destination", HERE],
            ["--destination", f"[{HERE_V6}]:80"],
            ["--destination", HERE, "--top=1"],
        )
    ]

    assert last == [
        f"Pools shown: 2 of 2 toward {HERE} ({total} in all).",
        f"Pools shown: 1 of 1 toward [{HERE_V6}]:80 ({total} in all).",
        f"Pools shown: 1 of 2 toward {HERE} ({total} in all); --top N shows more.",
    ]


def test_the_table_says_which_pools_the_configuration_leaves_out(ns: Namespace, config: Path) -> None:
    total = json.loads(pools(ns, config, "--json").stdout)["pools_total"]
    write(config, f"pools: {{ignore_destinations: ['{HERE}:80']}}\n")

    last = pools(ns, config).stdout.splitlines()[-1]
    assert last == f"Pools shown: {total - 1} of {total}; pools.ignore_destinations excludes 1."


def test_the_configuration_decides_what_is_left_out_and_how_it_is_read(ns: Namespace, config: Path) -> None:
    write(config, f"poll: {{backend: procfs}}\npools: {{ignore_destinations: ['{HERE}:80']}}\n")
    document = json.loads(pools(ns, config, "--json").stdout)

    assert document["backend"] == {"tcp": "procfs", "udp": "procfs"}
    assert connect_pools(document) == [(HERE, 81, 20), (HERE_V6, 80, 10)]
    assert document["namespaces"][0]["blind_to"] == ["bound_device", "bound_unconnected", "v6only"]


# --- where it is printed ------------------------------------------------------------------------------------------


def on_a_terminal(ns: Namespace, config: Path, *, columns: int, **env: str) -> str:
    """Return what `ephmon pools` writes to a terminal of so many columns."""
    ours, theirs = os.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        command = ns.command(*ephmon("pools", "--config", config))
        subprocess.run(command, stdout=theirs, env=environment(**env), timeout=WAIT_SECONDS, check=True)
        os.close(theirs)
        return read_terminal(terminal.fileno())


def read_terminal(descriptor: int) -> str:
    printed = b""
    try:
        while chunk := os.read(descriptor, 1 << 16):
            printed += chunk
    except OSError as error:
        assert error.errno == errno.EIO, "a terminal ends like that when its last user has closed it"  # noqa: PT017
    return printed.decode()


def test_a_terminal_gets_colours_and_lines_that_fit(ns: Namespace, config: Path) -> None:
    write(
        config, "thresholds: {warning: {utilisation: 0.02, clear: 0.01}, critical: {utilisation: 0.03, clear: 0.01}}\n"
    )
    red, yellow, reset = "\x1b[31m", "\x1b[33m", "\x1b[0m"

    lines = on_a_terminal(ns, config, columns=100).splitlines()
    plain = on_a_terminal(ns, config, columns=100, NO_COLOR="1")
    unset = on_a_terminal(ns, config, columns=100, NO_COLOR="")

    rows = [line for line in lines if "tcp_connect" in line]
    assert [row[:5] for row in rows] == [red, yellow, "tcp_c"]
    assert all(len(row.removeprefix(row[:5]).removesuffix(reset)) <= 100 for row in rows[:2])
    assert "\x1b" not in plain
    assert max(len(line) for line in plain.splitlines() if line.startswith(("KIND ", "tcp_connect "))) <= 100
    assert red in unset


def test_what_is_not_a_terminal_gets_neither(ns: Namespace, config: Path) -> None:
    write(config, "thresholds: {critical: {utilisation: 0.02, clear: 0.01}, warning: {utilisation: 0.01, clear: 0}}\n")

    assert "\x1b" not in pools(ns, config).stdout


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["table", "json"])
def test_a_reader_that_has_gone_is_no_reason_to_complain(ns: Namespace, config: Path, options: list[str]) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as pipe:
        command = ns.command(*ephmon("pools", "--config", config, *options))
        result = subprocess.run(
            command, stdout=pipe, stderr=subprocess.PIPE, env=environment(), timeout=WAIT_SECONDS, check=False
        )

    assert (result.returncode, result.stderr) == (1, b"")


FULL = "ephmon: The answer cannot be written to standard output: No space left on device.\n"
CLOSED = "ephmon: Standard output is closed, so the answer cannot be printed; redirect it to /dev/null.\n"


@pytest.mark.parametrize(("redirection", "sentence"), [(">/dev/full", FULL), (">&-", CLOSED)], ids=["full", "closed"])
@pytest.mark.parametrize("command", [["pools"], ["pools", "--json"], ["check-config"], ["--version"], ["--help"]])
def test_an_output_that_takes_nothing_is_one_sentence(
    config: Path, command: list[str], redirection: str, sentence: str
) -> None:
    arguments = command if command[0].startswith("-") else [*command, "--config", str(config)]
    result = run(["sh", "-c", f'exec "$@" {redirection}', "sh", *ephmon(*arguments)])

    assert (result.returncode, result.stderr) == (1, sentence)


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_the_status_tells_where_standard_error_cannot(redirection: str) -> None:
    result = run(["sh", "-c", f'exec "$@" {redirection}', "sh", *ephmon("pools", "--top", "0")])

    assert (result.returncode, result.stdout, result.stderr) == (2, "", "")


@pytest.mark.parametrize(
    "locale",
    [
        {"LC_ALL": "C"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
    ],
    ids=str,
)
def test_no_locale_stops_a_command(ns: Namespace, config: Path, locale: dict[str, str]) -> None:
    """What the encoding lacks is an escape, which YAML reads back."""
    write(config, 'notify: {labels: {site: "Zürich \N{SNOWMAN}"}}\n')
    env = environment(**locale)

    printed = subprocess.run(
        ephmon("check-config", config), env=env, stdout=subprocess.PIPE, timeout=WAIT_SECONDS, check=True
    ).stdout
    encoding = "latin-1" if "latin-1" in locale.values() else "utf-8"

    assert parse(printed.decode(encoding), "printed") == load(config)
    assert pools(ns, config, env=env).returncode == 0
    assert pools(ns, config, "--json", env=env).returncode == 0


# --- usage and configuration --------------------------------------------------------------------------------------


def test_the_version_and_the_help_are_printed() -> None:
    version, help_, of_command = run(ephmon("--version")), run(ephmon("--help")), run(ephmon("pools", "--help"))

    assert (version.returncode, version.stdout, version.stderr) == (0, f"ephmon {__version__}\n", "")
    assert (help_.returncode, help_.stderr) == (0, "")
    assert all(command in help_.stdout for command in ("run", "pools", "check-config"))
    assert all(option in of_command.stdout for option in ("--json", "--top", "--destination", "--config"))


MISTAKES: dict[str, tuple[list[str], str]] = {
    "no command": ([], "the following arguments are required: COMMAND"),
    "an unknown command": (["poolz"], "argument COMMAND: invalid choice: 'poolz'"),
    "an unknown option": (["pools", "--jsn"], "unrecognized arguments: --jsn"),
    "an option cut short": (["pools", "--js"], "unrecognized arguments: --js"),
    "an argument too many": (["pools", "everything"], "unrecognized arguments: everything"),
    "no number": (["pools", "--top", "ten"], "argument --top: 'ten' is not a whole number above 0"),
    "no pools at all": (["pools", "--top", "0"], "argument --top: '0' is not a whole number above 0"),
    "a name": (
        ["pools", "--destination", "example.net:443"],
        "argument --destination: example.net is a name; use an address",
    ),
    "no address": (
        ["pools", "--destination", "10.0.0.256"],
        "argument --destination: 10.0.0.256 is not an IPv4 address; use four numbers from 0 to 255",
    ),
    "no port": (
        ["pools", "--destination", "10.0.0.1:0"],
        "argument --destination: 0 is out of range; use a number from 1 to 65535",
    ),
    "a control character": (["pools", "--destination", "\x1b[2J"], r"argument --destination: '\x1b[2J' is not an IP"),
    "nowhere to listen": (["run", "--listen", "127.0.0.1"], "argument --listen: 127.0.0.1 has no port; use ADDRESS"),
    "a port too high": (
        ["run", "--listen", "127.0.0.1:65536"],
        "argument --listen: 65536 is out of range; use a number from 0 to 65535",
    ),
    "two files": (
        ["check-config", "a.yaml", "--config", "b.yaml"],
        "check-config takes one file: give FILE or --config, not both.",
    ),
    "a file that is not there": (
        ["pools", "--config", "/nonexistent/config.yaml"],
        "/nonexistent/config.yaml: the file cannot be read: No such file or directory",
    ),
    "an empty file name": (["pools", "--config", ""], "argument --config: the path of the file is empty"),
    "an empty file name to check": (["check-config", ""], "argument FILE: the path of the file is empty"),
    "a directory": (["check-config", "/"], "/: the file is a directory, not a regular file"),
}


@pytest.mark.parametrize(("arguments", "sentence"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_sentence_and_status_2(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status = cli.main(arguments)
    printed = capsys.readouterr()

    assert (status, printed.out) == (2, "")
    assert printed.err.startswith(f"ephmon: {sentence}")
    assert printed.err.count("\n") == 1


UNKNOWN = {
    "run": (["run", "foo"], "foo"),
    "headroom": (["headroom", "127.0.0.1:80", "--bogus", "\x1b[2J"], r"--bogus '\x1b[2J'"),
    "check-config": (["check-config", "a", "b"], "b"),
}


@pytest.mark.parametrize(("command", "arguments", "unknown"), [(name, *UNKNOWN[name]) for name in UNKNOWN])
def test_what_a_command_does_not_know_leads_to_its_own_help(
    command: str, arguments: list[str], unknown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    assert capsys.readouterr().err == (f"ephmon: unrecognized arguments: {unknown}; see `ephmon {command} --help`.\n")


def test_the_configuration_may_stand_before_the_command(config: Path, tmp_path: Path) -> None:
    """What stands behind it counts more."""
    write(config, "pools: {top: 7}\n")
    other = write(tmp_path / "other.yaml", "pools: {top: 8}\n")

    before, behind = run(ephmon("--config", config, "check-config")), run(ephmon("check-config", "--config", config))
    both = run(ephmon("--config", config, "check-config", "--config", other))

    assert (before.returncode, before.stderr, before.stdout) == (0, "", behind.stdout)
    assert parse(both.stdout, "printed").listing.top == 8


def test_a_mistake_ends_the_process_with_its_status() -> None:
    result = run(ephmon("pools", "--top", "0"))

    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == ("ephmon: argument --top: '0' is not a whole number above 0; see `ephmon pools --help`.\n")


BROKEN = "poll: {interval: 5}\nlisten: localhost:80\nthresholds: {warning: {utilisation: 7}}\nunknown: 1\n"


@pytest.mark.parametrize("command", ["pools", "run", "check-config"])
def test_a_broken_configuration_is_reported_with_all_its_mistakes(config: Path, command: str) -> None:
    write(config, BROKEN)
    result = run(ephmon(command, "--config", config))
    lines = result.stderr.splitlines()

    assert (result.returncode, result.stdout) == (2, "")
    assert [line.split(": ")[:3] for line in lines] == [
        ["ephmon", f"{config}:1", "poll.interval"],
        ["ephmon", f"{config}:2", "listen"],
        ["ephmon", f"{config}:3", "thresholds.warning.utilisation"],
        ["ephmon", f"{config}:4", "unknown"],
    ]


def test_tls_files_that_cannot_be_used_are_a_mistake_of_the_configuration(config: Path) -> None:
    write(config, "tls: {certificate: /nonexistent/a.pem, key: /nonexistent/a.key}\n")
    result = run(ephmon("run", "--config", config))

    assert result.returncode == 2
    assert result.stderr.startswith("ephmon: /nonexistent/a.pem cannot be read: No such file or directory; ")


def test_check_config_prints_what_is_in_force(config: Path) -> None:
    write(config, "pools: {top: 7}\n")
    by_argument, by_option = run(ephmon("check-config", config)), run(ephmon("check-config", "--config", config))

    assert (by_argument.returncode, by_argument.stderr) == (0, "")
    assert by_argument.stdout == by_option.stdout == describe(load(config))
    assert parse(by_argument.stdout, "printed").listing.top == 7


def test_without_a_file_the_defaults_hold(ns: Namespace, tmp_path: Path) -> None:
    """/etc is empty in the mounts of this process."""
    script = 'mount --bind "$1" /etc && shift && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", script, "sh", str(tmp_path), *ephmon("check-config")]

    defaults = run(ns.command(*command))
    (tmp_path / "ephmon").mkdir()
    write(tmp_path / "ephmon" / "config.yaml", "pools: {top: 7}\n")
    by_file = run(ns.command(*command))
    write(tmp_path / "ephmon" / "config.yaml", "pools: {top: 0}\n")
    broken = run(ns.command(*command))

    assert (defaults.returncode, defaults.stdout) == (0, describe(Config()))
    assert parse(by_file.stdout, "printed").listing.top == 7
    assert (broken.returncode, broken.stderr.startswith("ephmon: /etc/ephmon/config.yaml:1: pools.top: ")) == (2, True)


# --- a kernel that cannot be read ---------------------------------------------------------------------------------


def in_mounts_of_its_own(ns: Namespace, script: str, *command: str) -> list[str]:
    """Return the command line that runs a command after a shell script that changes what is mounted."""
    kill_child = "--kill-child=KILL"  # it is the child of what setpriv kills
    unshare = ["unshare", "--mount", "--pid", "--fork", kill_child]
    return ns.command(*unshare, "sh", "-c", f'{script} && exec "$@"', "sh", *command)


UNREADABLE = {
    "mount -t tmpfs none /proc/sys": (
        "/proc/sys/net/ipv4/ip_local_port_range cannot be read (No such file or directory): the kernel does not have "
        "it, or a container or sandbox masks /proc/sys; do not mask it."
    ),
    "mount -t proc -o subset=pid proc /proc": (
        "/proc/sys/net/ipv4/ip_local_port_range cannot be read (No such file or directory): this procfs shows "
        "processes only; remove ProcSubset=pid from the systemd unit, or mount without subset=pid."
    ),
    "mount -t tmpfs none /proc": (
        "/proc/sys/net/ipv4/ip_local_port_range cannot be read (No such file or directory): no procfs of this process "
        "is mounted at /proc; mount one there."
    ),
}


@pytest.mark.parametrize(("script", "sentence"), UNREADABLE.items(), ids=UNREADABLE)
def test_what_masks_proc_is_reported_in_one_sentence(ns: Namespace, config: Path, script: str, sentence: str) -> None:
    result = run(in_mounts_of_its_own(ns, script, *ephmon("pools", "--json", "--config", config)))

    assert (result.returncode, result.stdout, result.stderr) == (1, "", f"ephmon: {sentence}\n")


def test_no_privilege_and_no_other_process_need_be_seen(ns: Namespace, config: Path) -> None:
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "--"]
    command = [*drop, *ephmon("pools", "--json", "--config", config)]

    result = run(in_mounts_of_its_own(ns, "mount -t proc -o hidepid=2 proc /proc", *command))

    assert (result.returncode, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    assert connect_pools(document) == [(HERE, 80, 30), (HERE, 81, 20), (HERE_V6, 80, 10)]
    assert document["backend"] == {"tcp": "inet_diag", "udp": "inet_diag"}


def test_ctrl_c_ends_a_command_without_a_word(ns: Namespace, config: Path, tmp_path: Path) -> None:
    """It reads a table that has no end."""
    table = make_proc(tmp_path) / "net" / "tcp"
    table.unlink()
    os.mkfifo(table)
    write(config, "poll: {backend: procfs, deadline: 1h}\n")
    code = (
        "import pathlib, sys; from ephmon import cli; "
        "cli.PROC = pathlib.Path(sys.argv.pop(1)); sys.exit(cli.main(sys.argv[1:]))"
    )
    command = python("-c", code, str(table.parents[1]), "pools", "--config", str(config))
    with Running(ns, command) as waiting, opened_by_its_reader(table) as pipe:
        os.write(pipe, b"  sl")
        eventually(lambda: waits_for_more(pipe, waiting.pid), bool)
        waiting.signal(signal.SIGINT)

        assert (waiting.wait(), waiting.lines) == (130, [])


def waits_for_more(pipe: int, pid: int) -> bool:
    """Tell whether a process has read all that was written to a pipe and sleeps."""
    unread = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0]
    state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(") ")[2][0]
    return unread == 0 and state == "S"


# --- what it takes ------------------------------------------------------------------------------------------------


def test_a_command_does_without_the_http_side(config: Path) -> None:
    code = f"import sys; from ephmon.cli import main; main(['pools', '--config', {str(config)!r}])"
    result = run(python("-c", f"{code}; print(*sys.modules, file=sys.stderr)"))

    loaded = {name.partition(".")[0] for name in result.stderr.split()}
    assert "ephmon" in loaded
    assert loaded & {"tornado", "asyncio", "prometheus_client", "ssl", "http", "psutil", "subprocess"} == set()


EXHAUSTED = {
    "by connections": (f"{LOW} {LOW + 99}", Recipe(connect=(HERE, 80)), FillResult(100, errno.EADDRNOTAVAIL)),
    "by binds": ("1024 5023", Recipe(bind=("0.0.0.0", 0)), FillResult(4_000, errno.EADDRINUSE)),
}


@pytest.mark.parametrize(("port_range", "recipe", "filled"), EXHAUSTED.values(), ids=EXHAUSTED)
def test_everything_works_with_every_port_taken(
    config: Path, port_range: str, recipe: Recipe, filled: FillResult
) -> None:
    source_ports = count(20_000)  # outside the range, as there is none to be had in it
    with Namespace() as ns:
        ns.call(sockets.listen, HERE, 80, tag="server")
        ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", port_range)
        ns.call(sockets.fill, HERE, 80, tag="client", limit=1)
        ns.call(sockets.close, "client")
        ns.call(sockets.accept_all, "server", tag="accepted")
        ns.call(sockets.abort, "accepted")
        assert ns.call(sockets.open_sockets, recipe, tag="takers", limit=sockets.ALL_PORTS) == filled
        document = json.loads(pools(ns, config, "--json").stdout)
        checked, version = (run(ns.command(*ephmon(*words))) for words in (["check-config", config], ["--version"]))
        with Running(ns, ephmon("run", "--config", config)) as daemon:
            daemon.wait_for_line("ports are usable")
            ready = eventually(
                lambda: ns.call(fetch, "/-/ready", source=(HERE, next(source_ports))),
                lambda reply: reply.status == 200,
            )
            assert daemon.stop() == 0

    assert (checked.returncode, version.stdout) == (0, f"ephmon {__version__}\n")
    assert ready.body == "The data is current.\n"
    if recipe.connect:
        assert [pool["remaining_ports"] for pool in document["pools"] if pool["destination"] == HERE] == [0]
    elif SHOWS_BOUND:
        assert document["namespaces"][0]["blocked_ports"] == filled.count
