"""How faults are made: limits, mounts and system calls of a daemon that runs."""

from __future__ import annotations

import os
import resource
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.processes import Program, eventually, python, run, with_readable_code

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    from tests.faults.stage import Stage

OWN_MOUNTS = ("unshare", "--mount", "--propagation", "private", "--")
"""Lets a program have mounts of its own."""
USER = 200_000 + os.getpid() % 100_000
"""A user that nobody else is, so that a limit of processes counts those of the daemon alone."""


def as_user(*prefix: str) -> tuple[str, ...]:
    """Return what lets a program run as an ordinary user, below this prefix. For root."""
    identity = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
    return (*with_readable_code(), *identity, *prefix)


def after(script: str) -> tuple[str, ...]:
    """Return what runs a script of the shell in mounts of its own before the program."""
    return (*OWN_MOUNTS, "sh", "-ec", f'{script}; exec "$@"', "sh")


def forbidding(call: str) -> tuple[str, ...]:
    """Return what runs the program with system calls forbidden by seccomp: a call of `tests.kernel.seccomp`."""
    script = (
        f"import errno, os, sys; from tests.kernel import seccomp; seccomp.{call}; os.execv(sys.argv[1], sys.argv[1:])"
    )
    return tuple(python("-c", script))


@contextmanager
def nothing(_stage: Stage) -> Iterator[None]:
    """Do nothing: it is the start that is the fault, or what the checks do."""
    yield


@contextmanager
def limited(stage: Stage, limit: str, most: int) -> Iterator[None]:
    """Give the daemon another soft limit, named as by the program prlimit, for the length of a block."""
    before = _limit(stage, limit)
    set_limit(stage, limit, most)
    try:
        yield
    finally:
        set_limit(stage, limit, before)


def _limit(stage: Stage, limit: str) -> int:
    number = getattr(resource, f"RLIMIT_{limit.upper()}")
    if _user_of(stage) == os.geteuid():
        return resource.prlimit(stage.daemon.pid, number)[0]
    return resource.getrlimit(number)[0]  # inherited


def set_limit(stage: Stage, limit: str, most: int) -> None:
    """Give the daemon another soft limit, as its own user, who needs no privilege for that (man 2 prlimit)."""
    user = _user_of(stage)
    as_it = [] if user == os.geteuid() else ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
    result = run(
        [*as_it, "prlimit", "--pid", str(stage.daemon.pid), f"--{limit}={most if most >= 0 else 'unlimited'}:"]
    )
    assert result.returncode == 0, result.stderr


def _user_of(stage: Stage) -> int:
    return int(status_of(stage.daemon.pid)["Uid"].split()[1])


def in_its_mounts(stage: Stage, *command: str) -> None:
    """Run a command where the mounts of the daemon are."""
    result = run(stage.ns.command("nsenter", f"--mount=/proc/{stage.daemon.pid}/ns/mnt", "--", *command))
    assert result.returncode == 0, result.stderr


def _unmount(stage: Stage, target: str) -> None:
    """Unmount as the system call does: the program umount needs a /proc, and that may be what is to be unmounted."""
    script = "import ctypes, os, sys; sys.exit(ctypes.CDLL(None).umount2(os.fsencode(sys.argv[1]), 2))"  # MNT_DETACH
    in_its_mounts(stage, *python("-S", "-c", script), target)


@contextmanager
def mounted(stage: Stage, target: str, arguments: Sequence[str]) -> Iterator[None]:
    """Mount something where the daemon sees it, for the length of a block."""
    in_its_mounts(stage, "mount", *arguments, target)
    try:
        yield
    finally:
        _unmount(stage, target)


def masked(stage: Stage, target: str) -> AbstractContextManager[None]:
    """Hide what is in a directory from the daemon, for the length of a block."""
    return mounted(stage, target, ("-t", "tmpfs", "none"))


@contextmanager
def unmasked(stage: Stage, target: str) -> Iterator[None]:
    """Unmount at the end what was mounted over a directory before the start."""
    yield
    _unmount(stage, target)


@contextmanager
def tampered(stage: Stage, syscall: str, result: str, *, thread: int | None = None) -> Iterator[None]:
    """Change what a system call does for the daemon's main thread, or for another (man 1 strace, "Tampering")."""
    traced = thread or stage.daemon.pid
    with Program(_tampering(syscall, result, traced)) as tracer:
        eventually(lambda: status_of(traced)["TracerPid"], lambda pid: pid != "0")
        yield
        tracer.stop()


def end_thread(syscall: str, result: str, thread: int) -> None:
    """Change what one system call does for a thread, and wait until the thread has ended for that."""
    with Program(_tampering(syscall, f"{result}:when=1", thread)) as tracer:
        assert tracer.wait() == 0


def _tampering(syscall: str, result: str, thread: int) -> list[str]:
    inject = ["-e", f"trace={syscall}", "-e", f"inject={syscall}:{result}"]
    return ["strace", "-qqq", "-o", "/dev/null", *inject, "-p", str(thread)]


def status_of(pid: int) -> dict[str, str]:
    """Return the fields of /proc/PID/status; of a thread too."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return dict(line.split(":\t", 1) for line in lines)


def http_thread(stage: Stage) -> int:
    """Return the id of the thread that serves HTTP: the first that the daemon has started."""
    _, first, *_ = sorted(int(task.name) for task in Path(f"/proc/{stage.daemon.pid}/task").iterdir())
    return first
