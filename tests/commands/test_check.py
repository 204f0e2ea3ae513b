"""`ephmon check` as a monitoring system sees it: one line, its figures and the exit status, on real sockets."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from ephmon.commands import check
from tests import sockets
from tests.commands.answers import Answer, answer
from tests.namespaces import Namespace
from tests.processes import (
    WAIT_SECONDS,
    Running,
    environment,
    ephmon,
    eventually,
    make_proc,
    opened_by_its_reader,
    python,
    run,
)
from tests.sockets import FillResult, Recipe
from tests.test_cli import in_mounts_of_its_own, waits_for_more

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOW, HIGH = 40_000, 40_999
HERE, OWN, V6 = "127.0.0.1", "10.8.0.1", "::1"
FIGURES = re.compile(r"(?:'[^'=]+'|[^ '=]+)=-?[0-9.]+(?:;-?[0-9.]*){0,4}")
"""One of performance data, as the guidelines of the Monitoring Plugins have it: label=value;warn;crit;min;max."""


@pytest.fixture(name="idle", scope="module")
def _idle() -> Iterator[Namespace]:
    """A host on which nothing happens."""
    with Namespace() as ns:
        yield ns


@pytest.fixture(name="ns")
def _ns() -> Iterator[Namespace]:
    """A host with a range of 1,000 ports and servers outside it."""
    with Namespace(addresses=[f"{OWN}/32"]) as ns:
        ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", f"{LOW} {HIGH}")
        for address, port in ((HERE, 80), (HERE, 81), (V6, 80)):
            ns.call(sockets.listen, address, port, tag="server")
        yield ns


@pytest.fixture(name="config")
def _config(tmp_path: Path) -> Path:
    return write(tmp_path / "config.yaml", "poll: {deadline: 30s}\n")


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def ask(ns: Namespace, config: Path, *words: str) -> Answer:
    """Ask in the namespace; whatever the answer, the first line has the form of a plugin and its status."""
    got = ns.call(answer, "check", *words, "--config", str(config))
    first = got.out.partition("\n")[0]
    assert first.startswith(f"EPHMON {['OK', 'WARNING', 'CRITICAL', 'UNKNOWN'][got.status]} - ")
    figures = first.partition(" | ")[2].split()
    assert all(FIGURES.fullmatch(figure) for figure in figures)
    assert (got.out.count("|"), got.err) == (1 if figures else 0, "")
    return got


def fill(ns: Namespace, number: int, destination: tuple[str, int] = (HERE, 80)) -> None:
    assert ns.call(sockets.fill, *destination, tag="clients", limit=number) == FillResult(number, 0)


# --- what it finds ------------------------------------------------------------------------------------------------


def test_it_follows_a_pool_that_fills_up(ns: Namespace, config: Path) -> None:
    """At 60, 75, 95 and 100 percent, for the host and for the destination alike."""
    answers = []
    for more in (600, 150, 200, 50):
        fill(ns, more)
        host, destination = ask(ns, config), ask(ns, config, f"{HERE}:80")
        answers.append((host.status, destination.status))
        name = "tcp_connect from 127.0.0.1 to 127.0.0.1:80 is at"
        assert name in host.out.splitlines()[0]
        assert name in destination.out.splitlines()[0]
    assert answers == [(0, 0), (1, 1), (2, 2), (2, 2)]

    first, cause, *_ = destination.out.splitlines()
    assert first == (
        "EPHMON CRITICAL - tcp_connect from 127.0.0.1 to 127.0.0.1:80 is at 100.0% (critical from 90.0%), no port "
        "is left: the next allocation fails with EADDRNOTAVAIL | utilisation=1;0.7;0.9;0;1 remaining=0;;;0;1000"
    )
    assert cause == "Likely cause: Connections to 127.0.0.1:80 stay open: 1000 of 1000 sockets are ESTABLISHED."
    assert host.out.splitlines()[0] == destination.out.splitlines()[0].replace(
        "utilisation=1;0.7;0.9;0;1 remaining=0;;;0;1000",
        "utilisation=1;0.7;0.9;0;1 remaining=0;;;0;1000 blocked=0;0.7;0.9;0;1",
    )
    assert ns.call(sockets.fill, HERE, 80, tag="more") == FillResult(0, errno.EADDRNOTAVAIL)


def test_a_warning_comes_with_its_figures_and_what_to_do(ns: Namespace, config: Path) -> None:
    fill(ns, 750)
    lines = ask(ns, config, f"{HERE}:80").out.splitlines()

    assert re.fullmatch(
        r"EPHMON WARNING - tcp_connect from 127\.0\.0\.1 to 127\.0\.0\.1:80 is at 75\.0% \(warning from 70\.0%\), "
        r"~?250 of 1000 ports are left \| utilisation=0\.75;0\.7;0\.9;0;1 remaining=250;;;0;1000",
        lines[0],
    )
    assert lines[1].startswith("Likely cause: ")
    assert [line[:5] for line in lines[2:5]] == ["  1. ", "  2. ", "  3. "]
    assert lines[5].startswith("Do not ")


def test_another_destination_is_another_pool(ns: Namespace, config: Path) -> None:
    fill(ns, 950)

    other, source, v6 = (
        ask(ns, config, *words) for words in ([f"{HERE}:81"], [f"{HERE}:80", "--from", "127.0.0.2"], [f"[{V6}]:80"])
    )
    assert [one.status for one in (other, source, v6)] == [0, 0, 0]
    assert " from 127.0.0.2 to 127.0.0.1:80 is at 0.0%, " in source.out
    assert " from ::1 to [::1]:80 is at 0.0%, " in v6.out
    assert other.out.count("\n") == 1, "where all is well nothing is advised"


def test_ports_that_are_blocked_are_one_finding(ns: Namespace, config: Path) -> None:
    """The pools that they lift are named by it."""
    assert ns.call(sockets.open_sockets, Recipe(bind=(OWN, 0), listen=1), tag="takers", limit=750).count == 750
    fill(ns, 60)
    fill(ns, 40, (HERE, 81))
    host, destination = ask(ns, config), ask(ns, config, f"{HERE}:80")
    lines = host.out.splitlines()

    assert (host.status, destination.status) == (1, 1)
    assert lines[0] == (
        "EPHMON WARNING - 750 of 1000 usable ports, 75.0%, are blocked for every connect() (warning from 70.0%); "
        "tcp_connect from 127.0.0.1 to 127.0.0.1:80 is at 81.0%, tcp_connect from 127.0.0.1 to 127.0.0.1:81 is at 79.0%"
        " | utilisation=0.81;0.7;0.9;0;1 remaining=190;;;0;1000 blocked=0.75;0.7;0.9;0;1"
    )
    causes = [line for line in (*lines, *destination.out.splitlines()) if line.startswith("Likely cause: ")]
    assert len(causes) == 2
    assert all("750 of 1000 usable ports are blocked for every connect()" in cause for cause in causes)


def test_the_configuration_decides_by_its_overrides_and_what_it_ignores(ns: Namespace, config: Path) -> None:
    fill(ns, 300)
    fill(ns, 400, (HERE, 81))
    write(
        config,
        "pools: {ignore_destinations: ['127.0.0.1:81']}\n"
        "thresholds: {overrides: [{source: 127.0.0.1, warning: {utilisation: 0.2}, critical: {utilisation: 0.3}}]}\n",
    )
    host, ignored = ask(ns, config), ask(ns, config, f"{HERE}:81")

    assert (host.status, ignored.status) == (2, 2)
    assert "127.0.0.1:80 is at 30.0% (critical from 30.0%)" in host.out
    assert ":81" not in host.out
    assert "utilisation=0.3;0.2;0.3;0;1" in host.out
    assert "127.0.0.1:81 is at 40.0% (critical from 30.0%)" in ignored.out, "who asks for it gets it"


def test_limits_on_the_command_line_hold_for_all(ns: Namespace, config: Path) -> None:
    fill(ns, 300)
    write(config, "thresholds: {overrides: [{destination_port: 80, critical: {utilisation: 0.75}}]}\n")

    statuses = [
        ask(ns, config, *words).status
        for words in (
            ["--warning", "0.31"],
            ["--warning", "0.3"],
            ["--critical", "0.8"],
            ["--warning", "0.1", "--critical", "0.3"],
            ["--warning", "0.1", "--critical", "0.301"],
            [f"{HERE}:80", "--warning", ".3"],
        )
    ]
    assert statuses == [0, 1, 0, 2, 1, 1]


def test_without_a_pool_all_is_well(ns: Namespace, config: Path) -> None:
    assert ask(ns, config) == (
        0,
        "EPHMON OK - no pool exists, because no socket uses the port range | blocked=0;0.7;0.9;0;1\n",
        "",
    )


def test_a_range_of_which_every_port_is_reserved_is_critical(ns: Namespace, config: Path) -> None:
    ns.call(sockets.write_sysctl, "net.ipv4.ip_local_reserved_ports", f"{LOW}-{HIGH}")

    got = ask(ns, config)
    assert got.status == 2
    assert got.out.startswith("EPHMON CRITICAL - no port is usable: all ports of the range are reserved | blocked=1;")
    assert ns.call(sockets.fill, HERE, 80, tag="more") == FillResult(0, errno.EADDRNOTAVAIL)


def test_what_cannot_be_seen_is_a_remark_and_no_alarm(ns: Namespace, config: Path) -> None:
    """/proc/net shows less than netlink, and on Linux before 6.8 both do: else the check would never be OK there."""
    fill(ns, 20)
    write(config, "poll: {backend: procfs, deadline: 30s}\n")
    got = ask(ns, config)

    assert got.status == 0
    assert "Bound TCP sockets without a connection are not visible: fewer ports may remain.\n" in got.out
    assert "~980 of 1000 ports are left" in got.out


# --- what keeps it from an answer ---------------------------------------------------------------------------------

HELP = "; see `ephmon check --help`.\n"
A_NAME = "is a name; use an address, because ephmon does not look up names"
NOT_OURS = "bind() to it fails with EADDRNOTAVAIL without net.ipv4.ip_nonlocal_bind or IP_FREEBIND."
UNKNOWN: dict[str, tuple[list[str], str]] = {
    "an unknown option": (["--bogus=a|b"], f"unrecognized arguments: --bogus=a/b{HELP}"),
    "a name": (["example.net:80"], f"argument DESTINATION:PORT: example.net {A_NAME}{HELP}"),
    "no port": ([HERE], f"argument DESTINATION:PORT: {HERE} has no port; use ADDRESS:PORT{HELP}"),
    "a percentage": (
        ["--warning", "70%"],
        f"argument --warning: 70% is a percentage; use a ratio between 0 and 1, such as 0.7 for 70 percent{HELP}",
    ),
    "no ratio": (
        ["--critical", "1.5"],
        f"argument --critical: 1.5 is above 1; use a ratio between 0 and 1{HELP}",
    ),
    "a warning behind the critical": (
        ["--warning", "0.9", "--critical", "0.8"],
        "The warning at 0.9 is not below the critical at 0.8; change one of them.\n",
    ),
    "a warning at the critical of the configuration": (
        ["--warning", "0.9"],
        "The warning at 0.9 is not below the critical at 0.9; change one of them.\n",
    ),
    "a source alone": (["--from", HERE], "--from needs a destination; without one the whole host is checked.\n"),
    "two families": ([f"{HERE}:80", "--from", V6], f"--from {V6} and {HERE} belong to different families.\n"),
    "every source": (
        [f"{HERE}:80", "--from", "0.0.0.0"],
        "--from 0.0.0.0 means any address; use one address, or leave out --from.\n",
    ),
    "a source of another host": (
        [f"{HERE}:80", "--from", "10.9.9.9"],
        f"This host does not have the address 10.9.9.9: {NOT_OURS}\n",
    ),
    "no route": (["10.9.9.9:80"], "There is no route to 10.9.9.9: Network is unreachable (ENETUNREACH).\n"),
    "a multicast destination": (
        ["224.0.0.1:80"],
        "224.0.0.1 is a multicast address: a TCP connect() to it fails with ENETUNREACH.\n",
    ),
}


@pytest.mark.parametrize(("words", "sentence"), UNKNOWN.values(), ids=UNKNOWN)
def test_wrong_usage_and_failures_are_unknown_and_told_on_standard_output(
    idle: Namespace, config: Path, words: list[str], sentence: str
) -> None:
    assert ask(idle, config, *words) == (3, f"EPHMON UNKNOWN - {sentence}", "")


def test_a_wrong_configuration_is_unknown_with_all_its_mistakes(config: Path) -> None:
    write(config, "poll: {interval: 5}\nunknown: '|'\n")
    got = answer("check", "--config", str(config))

    assert (got.status, got.err) == (3, "")
    assert [line.partition(": ")[0] for line in got.out.splitlines()] == [
        f"EPHMON UNKNOWN - {config}:1",
        f"{config}:2",
    ]
    assert "|" not in got.out


def test_a_warning_behind_the_critical_of_an_override_is_unknown(idle: Namespace, config: Path) -> None:
    """The pools of the override would go from OK to CRITICAL, and their figures would have the limits crossed."""
    write(config, 'thresholds: {overrides: [{destination: "10.0.0.9", critical: {utilisation: 0.8}}]}\n')

    sentence = "The warning at 0.85 is not below the critical at 0.8 of thresholds.overrides[0]; change one of them."
    assert ask(idle, config, "--warning", "0.85") == (3, f"EPHMON UNKNOWN - {sentence}\n", "")
    assert ask(idle, config, "--warning", "0.75").status == 0


@pytest.mark.parametrize(
    "words",
    [
        ["check", "--config", "/nonexistent.yaml"],
        ["--config", "/nonexistent.yaml", "check"],
        ["--config=/nonexistent.yaml", "check"],
        ["check", "--config", ""],
        ["--config", "", "check"],
        ["--bogus", "check"],
        ["check", "--config"],
    ],
    ids=" ".join,
)
def test_it_is_unknown_wherever_the_mistake_stands(words: list[str]) -> None:
    got = answer(*words)

    assert (got.status, got.err, got.out.count("\n")) == (3, "", 1)
    assert got.out.startswith("EPHMON UNKNOWN - ")


def test_another_command_keeps_its_statuses() -> None:
    """Its name alone makes the check a check."""
    wrong = [["pools", "check"], ["--config", "check", "pools", "--top", "0"], ["check-config", "a", "check"], ["chec"]]

    assert [answer(*words)[:2] for words in wrong] == [(2, "")] * 4


def test_help_is_no_answer_to_a_monitoring_system() -> None:
    got = answer("check", "--help")

    assert (got.status, got.err) == (3, "")
    assert got.out.startswith("usage: ephmon check ")


UNREADABLE = {
    "the sysctls": ("mount -t tmpfs none /proc/sys", []),
    "procfs": ("mount -t tmpfs none /proc", []),
    "the sysctls for a destination": ("mount -t tmpfs none /proc/sys", [f"{HERE}:80"]),
}


@pytest.mark.parametrize(("script", "words"), UNREADABLE.values(), ids=UNREADABLE)
def test_a_kernel_that_cannot_be_read_is_unknown(idle: Namespace, config: Path, script: str, words: list[str]) -> None:
    result = run(in_mounts_of_its_own(idle, script, *ephmon("check", *words, "--config", config)))

    assert (result.returncode, result.stderr) == (3, "")
    assert result.stdout.startswith("EPHMON UNKNOWN - /proc/sys/net/ipv4/ip_local_port_range cannot be read")


def check_without(proc: str, *words: str) -> Answer:
    """Check with a procfs of one's own."""
    from pathlib import Path

    from ephmon import cli

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "PROC", Path(proc))
        return answer("check", *words)


def half_of(folder: Path, config: Path, *, without: str) -> list[str]:
    """Return what to check a host with of which one protocol cannot be read."""
    proc = make_proc(folder)
    (proc / "net" / without).unlink()
    write(config, "poll: {backend: procfs, deadline: 30s}\n")
    return [str(proc), "--config", str(config)]


@pytest.fixture(name="halved")
def _halved(ns: Namespace, config: Path, tmp_path: Path) -> tuple[Namespace, list[str]]:
    """A host of which UDP cannot be read, with 20 TCP connections."""
    fill(ns, 20)
    return ns, half_of(tmp_path, config, without="udp")


def test_without_tcp_there_is_no_answer(ns: Namespace, config: Path, tmp_path: Path) -> None:
    """The blocked share is not known then either."""
    words = half_of(tmp_path, config, without="tcp")
    host, destination = ns.call(check_without, *words), ns.call(check_without, *words, f"{HERE}:80")

    assert (host.status, destination.status) == (3, 3)
    assert "/net/tcp " in host.out
    assert "blocked=" not in host.out
    assert re.match(r"EPHMON UNKNOWN - \S+/net/tcp ", destination.out)


def test_half_an_answer_is_not_ok(halved: tuple[Namespace, list[str]]) -> None:
    ns, words = halved
    got = ns.call(check_without, *words)

    assert (got.status, got.err) == (3, "")
    assert re.match(
        r"EPHMON UNKNOWN - \S+/net/udp [^|]*; apart from that, tcp_connect from 127\.0\.0\.1 to 127\.0\.0\.1:80 is at "
        r"2\.0%, ~980 of 1000 ports are left \| utilisation=0\.02;0\.7;0\.9;0;1 remaining=980;;;0;1000 ",
        got.out,
    )


def test_half_an_answer_is_enough_for_bad_news_and_for_one_destination(halved: tuple[Namespace, list[str]]) -> None:
    ns, words = halved
    fill(ns, 730)
    warning, critical = (ns.call(check_without, *words, *limit) for limit in ([], ["--critical", "0.75"]))
    one = ns.call(check_without, *words, f"{HERE}:81")

    assert [got.status for got in (warning, critical, one)] == [1, 2, 0]
    assert "/net/udp " in warning.out.split("\n", 1)[1]
    assert "/net/udp " not in one.out


def test_ctrl_c_is_unknown(idle: Namespace, config: Path, tmp_path: Path) -> None:
    """It reads a table that has no end."""
    table = make_proc(tmp_path) / "net" / "tcp"
    table.unlink()
    os.mkfifo(table)
    write(config, "poll: {backend: procfs, deadline: 1h}\n")
    code = (
        "import pathlib, sys; from ephmon import cli; "
        "cli.PROC = pathlib.Path(sys.argv.pop(1)); sys.exit(cli.main(sys.argv[1:]))"
    )
    out = tmp_path / "out"
    command = python("-c", code, str(table.parents[1]), "check", "--config", str(config))
    redirected = ["sh", "-c", 'out=$1; shift; exec "$@" >"$out"', "sh", str(out), *command]
    with Running(idle, redirected) as waiting, opened_by_its_reader(table) as pipe:
        os.write(pipe, b"  sl")
        eventually(lambda: waits_for_more(pipe, waiting.pid), bool)
        waiting.signal(signal.SIGINT)

        assert (waiting.wait(), waiting.lines) == (3, [])
    assert out.read_text(encoding="utf-8") == "EPHMON UNKNOWN - The check was interrupted.\n"


@pytest.mark.parametrize("words", [["check"], ["check", "--bogus"], ["check", "--help"]], ids=" ".join)
def test_where_nothing_can_be_printed_the_status_is_unknown(config: Path, words: list[str]) -> None:
    command = ephmon(*words, "--config", config)
    full, closed = (run(["sh", "-c", f'exec "$@" {to}', "sh", *command]) for to in (">/dev/full", ">&-"))

    assert (full.returncode, closed.returncode) == (3, 3)
    assert full.stderr == "ephmon: The answer cannot be written to standard output: No space left on device.\n"
    assert closed.stderr.startswith("ephmon: Standard output is closed")


def test_where_nobody_reads_the_status_is_unknown(config: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as pipe:
        result = subprocess.run(
            ephmon("check", "--config", config),
            stdout=pipe,
            stderr=subprocess.PIPE,
            env=environment(),
            timeout=WAIT_SECONDS,
            check=False,
        )

    assert (result.returncode, result.stderr) == (3, b"")


def test_a_defect_is_unknown_and_told_in_full_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    """Python's own status for it, 1, would be a warning."""

    def defective() -> int:
        raise ZeroDivisionError("a|b")

    status = check.guard(defective)
    printed = capsys.readouterr()

    assert status == 3
    assert printed.out == "EPHMON UNKNOWN - This is a defect in ephmon; please report it: ZeroDivisionError('a/b')\n"
    assert printed.err.startswith("ephmon: Traceback ")


def test_a_defect_is_unknown_where_standard_error_takes_nothing() -> None:
    code = "import sys; from ephmon.commands import check; sys.exit(check.guard(lambda: 1 // 0))"
    full, closed = (run(["sh", "-c", f'exec "$@" {to}', "sh", *python("-c", code)]) for to in ("2>/dev/full", "2>&-"))

    assert (full.returncode, closed.returncode) == (3, 3)
    assert full.stdout == closed.stdout
    assert closed.stdout.startswith("EPHMON UNKNOWN - This is a defect in ephmon")


def test_it_needs_no_port(ns: Namespace, config: Path) -> None:
    assert ns.call(sockets.open_sockets, Recipe(bind=("::", 0), v6only=False), tag="all", limit=1_001).count == 1000
    assert (
        ns.call(sockets.open_sockets, Recipe(udp=True, bind=("::", 0), v6only=False), tag="udp", limit=1_001).count
        == 1000
    )

    assert [ask(ns, config, *words).status for words in ([], [f"{HERE}:80"], [f"[{V6}]:80"])] == [2, 2, 2]
