"""Faults of what ephmon reads: netlink, procfs, sysctls."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests import sockets
from tests.faults.case import CONFIG, Check, Fault, Start, parameters
from tests.faults.checks import POLLS_FAIL, POLLS_GO_ON
from tests.faults.stage import LOW, PORTS
from tests.faults.tools import (
    OWN_MOUNTS,
    after,
    forbidding,
    in_its_mounts,
    masked,
    mounted,
    nothing,
    tampered,
    unmasked,
)
from tests.processes import put

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from tests.faults.case import Case
    from tests.faults.stage import Stage

TRACES = {"only_root": "traces the daemon"}
MOUNTS = {"only_root": "mounts file systems"}
INET_DIAG_ALONE = Start(config=CONFIG.replace("poll: {", "poll: {backend: inet_diag, "))
WITH_OWN_MOUNTS = Start(prefix=OWN_MOUNTS)
POLLS = 'polls_total{scope="full"}'
PORT_RANGE = "/proc/sys/net/ipv4/ip_local_port_range"


def _reads_procfs(stage: Stage) -> None:
    stage.daemon.wait_for(**{'backend_info{backend="procfs",protocol="tcp"}': 1, "poll_success": 1})


def _reads_netlink(stage: Stage) -> None:
    stage.daemon.wait_for(**{'backend_info{backend="inet_diag",protocol="tcp"}': 1})


READS_PROCFS = Check("It reads procfs instead.", _reads_procfs)
READS_NETLINK = Check("It returns to netlink.", _reads_netlink)


@contextmanager
def _with_sysctl(stage: Stage, text: str) -> Iterator[None]:
    """Let the port range read otherwise than the kernel has it."""
    file = put(stage.folder / "range", text)
    with mounted(stage, PORT_RANGE, ("--bind", str(file))):
        yield


@contextmanager
def _remounted_read_only(stage: Stage) -> Iterator[None]:
    in_its_mounts(stage, "mount", "-o", "remount,ro,bind", "/proc")
    yield


def _counts_one_of_the_ranges(stage: Stage) -> None:
    """Change the port range all the time, also while the sockets are read."""
    polls = stage.value(POLLS)
    while stage.value(POLLS) < polls + 10:
        for high in (LOW + PORTS, LOW + PORTS - 1):
            stage.ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", f"{LOW} {high}")
        assert stage.value('usable_ports{netns="own"}') in {0, PORTS, PORTS + 1}  # 0 is none, while no poll succeeds


def _procfs_comes_back(stage: Stage) -> AbstractContextManager[None]:
    return unmasked(stage, f"/proc/{stage.daemon.pid}/net")


def _sees_one_port(stage: Stage) -> None:
    stage.daemon.wait_for(**{'usable_ports{netns="own"}': 1})


SEES_ONE_PORT = Check("It counts one usable port.", _sees_one_port)


@contextmanager
def _one_port(stage: Stage) -> Iterator[None]:
    stage.ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", f"{LOW} {LOW}")
    yield
    stage.ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", f"{LOW} {LOW + PORTS - 1}")


CASES: tuple[Case, ...] = (
    Fault(
        name="netlink refuses requests",
        done="sendto() fails with EPERM in each poll.",
        inject=partial(tampered, syscall="sendto", result="error=EPERM"),
        start=INET_DIAG_ALONE,
        meanwhile=[POLLS_FAIL],
        says=["The poll failed: The kernel does not take the inet_diag request: Operation not permitted (EPERM)."],
        needs=TRACES,
    ),
    Fault(
        name="netlink loses replies",
        done="recvfrom() fails with ENOBUFS in each poll.",
        inject=partial(tampered, syscall="recvfrom", result="error=ENOBUFS"),
        start=INET_DIAG_ALONE,
        meanwhile=[POLLS_FAIL],
        says=["The poll failed: The inet_diag reply cannot be received: No buffer space available (ENOBUFS)."],
        needs=TRACES,
    ),
    Fault(
        name="netlink replies make no sense",
        done="Each reply claims that its first message has 4 GiB.",
        inject=partial(tampered, syscall="recvfrom", result="poke_exit=@arg2=ffffffff"),
        start=INET_DIAG_ALONE,
        meanwhile=[POLLS_FAIL],
        says=["The poll failed: A message of the inet_diag reply claims 4294967295 of "],
        needs=TRACES,
    ),
    Fault(
        name="netlink is forbidden for a while",
        done="socket() fails with EAFNOSUPPORT in each poll.",
        inject=partial(tampered, syscall="socket", result="error=EAFNOSUPPORT"),
        meanwhile=[READS_PROCFS, POLLS_GO_ON],
        afterwards=[READS_NETLINK],
        says=["Sockets of tcp are read by procfs: The socket for inet_diag cannot be opened: "],
        needs=TRACES,
    ),
    Fault(
        name="/proc/sys is hidden",
        done="An empty file system is mounted over it.",
        inject=partial(masked, target="/proc/sys"),
        start=WITH_OWN_MOUNTS,
        meanwhile=[POLLS_FAIL],
        says=[f"The poll failed: {PORT_RANGE} cannot be read…do not mask it.", "Polls succeed again."],
    ),
    Fault(
        name="/proc is hidden",
        done="An empty file system is mounted over it.",
        inject=partial(masked, target="/proc"),
        start=WITH_OWN_MOUNTS,
        meanwhile=[POLLS_FAIL],
        says=[f"The poll failed: {PORT_RANGE} cannot be read", "Polls succeed again."],
    ),
    Fault(
        name="/proc shows processes alone",
        done="/proc is mounted with `subset=pid` when it starts, and later as it should be.",
        inject=partial(unmasked, target="/proc"),
        start=Start(prefix=after("mount -t proc -o subset=pid none /proc"), is_polling=False),
        meanwhile=[POLLS_FAIL],
        says=[f"The poll failed: {PORT_RANGE} cannot be read", "Polls succeed again."],
        needs=MOUNTS,
    ),
    Fault(
        name="/proc cannot be written",
        done="It is remounted read-only.",
        inject=_remounted_read_only,
        start=WITH_OWN_MOUNTS,
        meanwhile=[POLLS_GO_ON],
        needs=MOUNTS,
    ),
    Fault(
        name="neither netlink nor procfs is there",
        done="When it starts, netlink is forbidden by seccomp and /proc/net hidden; later /proc/net is back.",
        inject=_procfs_comes_back,
        start=Start(
            prefix=(*after("mount -t tmpfs none /proc/$$/net"), *forbidding("refuse_netlink()")), is_polling=False
        ),
        meanwhile=[POLLS_FAIL],
        afterwards=[READS_PROCFS],
        says=["The poll failed: "],
    ),
    Fault(
        name="a sysctl makes no sense",
        done="ip_local_port_range has one number instead of two.",
        inject=partial(_with_sysctl, text="40000\n"),
        start=WITH_OWN_MOUNTS,
        meanwhile=[POLLS_FAIL],
        says=["The poll failed: ", "Polls succeed again."],
        needs=MOUNTS,
    ),
    Fault(
        name="a sysctl is endless",
        done="ip_local_port_range is /dev/zero.",
        inject=partial(mounted, target=PORT_RANGE, arguments=("--bind", "/dev/zero")),
        start=WITH_OWN_MOUNTS,
        meanwhile=[POLLS_FAIL],
        says=["The poll failed: ", "Polls succeed again."],
        needs=MOUNTS,
    ),
    Fault(
        name="a sysctl changes all the time",
        done="ip_local_port_range is written in a loop, also while the sockets are read.",
        inject=nothing,
        meanwhile=[Check("Polls count with one of the ranges, or fail.", _counts_one_of_the_ranges)],
        most_lines=400,
    ),
    Fault(
        name="the range has one port",
        done="ip_local_port_range is `40000 40000`.",
        inject=_one_port,
        meanwhile=[POLLS_GO_ON, SEES_ONE_PORT],
        says=["1 ports are usable."],
    ),
)


@pytest.mark.parametrize("case", parameters(CASES))
def test_ephmon_does_and_says_what_it_should(case: Case, stage: Stage) -> None:
    case.play(stage)
