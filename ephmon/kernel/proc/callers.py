"""Who called: the process, name and network namespace behind a thread id of the tracepoint, while the thread lives.

The tracepoint writes the number that the thread has in the host's pid namespace, and nothing of the network namespace.
/proc/TID answers for any thread, though only first threads are listed there. What identifies a namespace,
/proc/TID/ns/net, takes CAP_SYS_PTRACE for the threads of other users (man 7 namespaces). Whether it is our own takes no
privilege: the files below /proc/TID/net are made anew for each namespace (man 5 proc_pid_net), so that one of them has
the inode number it has below our own /proc/self/net if and only if the namespace is ours.
"""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING, NamedTuple

from ephmon.errors import KernelError, Reason
from ephmon.facts.foreign_text import escaped
from ephmon.facts.namespaces import OTHER_NETNS, OWN_NETNS, UNKNOWN_NETNS, Netns

if TYPE_CHECKING:
    from pathlib import Path

_INITIAL_PID_NAMESPACE = 0xEFFFFFFC
"""Its inode number: PROC_PID_INIT_INO, include/linux/proc_ns.h."""
_KTHREADD = "2"
_PF_KTHREAD = 0x00200000  # include/linux/sched.h
_FILE_BYTES = 4096
_NETNS_FILE = "net/dev"
"""A file that every network namespace has."""
# Fields 4, 9 and 22 of man 5 proc_pid_stat. A thread chooses its name, parentheses included; what follows are numbers.
_STAT = re.compile(
    rb"[0-9]+ \((?P<name>.*)\) [A-Za-z] (?P<parent>[0-9]+)(?: -?[0-9]+){4} (?P<flags>[0-9]{1,10})"
    rb"(?: -?[0-9]+){12} (?P<start>[0-9]{1,20})[ \n]",
    re.DOTALL,
)
_STATUS = re.compile(rb"^Tgid:\t([0-9]{1,10})$.*^Uid:\t[0-9]+\t([0-9]{1,10})\t", re.MULTILINE | re.DOTALL)


class ThreadStat(NamedTuple):
    """What /proc/PID/stat says of a thread."""

    name: bytes
    """As the thread chose it: any bytes but 0."""
    parent: int
    flags: int
    """PF_* of include/linux/sched.h."""
    started_ticks: int
    """When it started, in clock ticks (sysconf(SC_CLK_TCK)) since the machine did."""


class Caller(NamedTuple):
    """The thread that made a call, as far as it could be asked."""

    netns: Netns
    pid: int | None = None
    command: str | None = None
    uid: int | None = None
    """Effective."""
    cgroup: str | None = None
    """Its path in the cgroup2 hierarchy, as we see it."""


GONE = Caller(Netns(UNKNOWN_NETNS))


class Callers:
    """Finds callers in one procfs.

    Args:
        proc: Where the procfs of the host's pid namespace is mounted.

    Raises:
        KernelError: This procfs numbers processes otherwise than the tracepoint, or does not show ourselves.
    """

    def __init__(self, proc: Path) -> None:
        self._proc = proc
        try:
            self._own_file = (proc / "self" / _NETNS_FILE).stat().st_ino
            self._own_netns = Netns(OWN_NETNS, (proc / "self/ns/net").stat().st_ino)
            self.own_pid = int((proc / "self").readlink().name)
            """The process id of this process, as the tracepoint numbers it."""
        except (OSError, ValueError) as error:
            raise KernelError(
                f"{proc} does not show ephmon itself ({error}); mount a procfs there.", reason=Reason.TRACEFS
            ) from error
        if not _has_the_hosts_numbers(proc):
            raise KernelError(
                f"The kernel reports failed connect() calls with the host's process ids, and {proc} shows others. Run "
                "ephmon in the host's pid namespace (--pid=host, hostPID: true).",
                reason=Reason.TRACEFS,
            )
        self._seconds_per_tick = 1 / os.sysconf("SC_CLK_TCK")

    def find(self, thread_id: int, at: float) -> Caller:
        """Return who a thread is that called at the monotonic time `at`, in seconds.

        `GONE` if it has ended, also if another thread has its number by now. Costs some 30 microseconds.
        """
        try:
            directory = os.open(self._proc / str(thread_id), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:  # gone, or hidden (hidepid, man 5 proc): nothing can be known, and that is what is said
            return GONE
        try:
            return self._ask(directory, at)
        except OSError:  # it ended meanwhile
            return GONE
        finally:
            os.close(directory)

    def _ask(self, directory: int, at: float) -> Caller:
        stat = parse_stat(_read(directory, "stat"))
        if stat is None:
            return GONE  # not as Linux writes it: nothing can be known here either
        since_boot = at + time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
        if stat.started_ticks * self._seconds_per_tick > since_boot:
            return GONE  # another thread has the number by now
        pid, uid = parse_status(_read(directory, "status")) or (None, None)
        return Caller(self._netns(directory), pid, escaped(stat.name), uid, _cgroup(directory))

    def _netns(self, directory: int) -> Netns:
        try:
            file = os.stat(_NETNS_FILE, dir_fd=directory).st_ino
        except OSError:  # the thread is ending and has left its namespaces
            return GONE.netns
        if file == self._own_file:
            return self._own_netns
        try:
            return Netns(OTHER_NETNS, os.stat("ns/net", dir_fd=directory).st_ino)
        except OSError:  # not ours to ask without CAP_SYS_PTRACE
            return Netns(OTHER_NETNS)


def parse_stat(content: bytes) -> ThreadStat | None:
    """Return what /proc/PID/stat says, None if it is not as Linux writes it."""
    match = _STAT.match(content)
    if match is None:
        return None
    return ThreadStat(match["name"], int(match["parent"]), int(match["flags"]), int(match["start"]))


def parse_status(content: bytes) -> tuple[int, int] | None:
    """Return the process id and the effective user id in /proc/PID/status, None if it is not as Linux writes it.

    The name of the thread comes first there, and cannot forge the other lines: the kernel escapes its newlines
    (proc_task_name(), fs/proc/array.c).
    """
    match = _STATUS.search(content)
    return None if match is None else (int(match[1]), int(match[2]))


def parse_cgroup(content: bytes) -> str | None:
    """Return the path in the cgroup2 hierarchy that /proc/PID/cgroup names, None if it names none (man 7 cgroups)."""
    paths = (line.removeprefix(b"0::") for line in content.splitlines() if line.startswith(b"0::"))
    return next((os.fsdecode(path) for path in paths), None)


def _cgroup(directory: int) -> str | None:
    try:
        return parse_cgroup(_read(directory, "cgroup"))
    except OSError:  # hidden from us, or gone
        return None


def _has_the_hosts_numbers(proc: Path) -> bool:
    """Tell whether a procfs shows the initial pid namespace.

    It does if that is ours, as a procfs in which we see ourselves can then be of no other; else if process 2 is a
    kernel thread that nobody started, which is so there alone.
    """
    try:
        if (proc / "self/ns/pid").stat().st_ino == _INITIAL_PID_NAMESPACE:
            return True
        kthreadd = parse_stat((proc / _KTHREADD / "stat").read_bytes())
    except OSError:
        return False
    return kthreadd is not None and kthreadd.parent == 0 and kthreadd.flags & _PF_KTHREAD != 0


def _read(directory: int, name: str) -> bytes:
    file = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        return os.read(file, _FILE_BYTES)
    finally:
        os.close(file)
