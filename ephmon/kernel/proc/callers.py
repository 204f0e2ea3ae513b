"""Who called: the process, name and network namespace behind a thread id of the tracepoint, while the thread lives.

The tracepoint writes the number that the thread has in the host's pid namespace, and nothing of the network namespace.
/proc/TID answers for any thread, though only first threads are listed there. What identifies a namespace,
/proc/TID/ns/net, takes CAP_SYS_PTRACE for the threads of other users (man 7 namespaces). Whether it is our own takes no
privilege: the files below /proc/TID/net are made anew for each namespace (man 5 proc_pid_net), so that one of them has
the inode number it has below our own /proc/self/net if and only if the namespace is ours.
"""

from __future__ import annotations

import os
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
_PPID, _FLAGS, _START = 1, 6, 19
"""Fields of /proc/PID/stat after the name: numbers 4, 9 and 22 of man 5 proc_pid_stat."""


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
        before, _, after = _read(directory, "stat").rpartition(b")")
        started = int(after.split()[_START]) * self._seconds_per_tick
        since_boot = at + time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
        if started > since_boot:
            return GONE  # another thread has the number by now
        status = _read(directory, "status")
        pid = int(status.partition(b"\nTgid:")[2].split(maxsplit=1)[0])
        uid = int(status.partition(b"\nUid:")[2].split(maxsplit=2)[1])
        return Caller(self._netns(directory), pid, escaped(before.partition(b"(")[2]), uid, _cgroup(directory))

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


def _cgroup(directory: int) -> str | None:
    """Return the thread's path in the cgroup2 hierarchy, None where there is none (man 7 cgroups, /proc/PID/cgroup)."""
    try:
        lines = _read(directory, "cgroup").splitlines()
    except OSError:  # hidden from us, or gone
        return None
    paths = (line.removeprefix(b"0::") for line in lines if line.startswith(b"0::"))
    return next((os.fsdecode(path) for path in paths), None)


def _has_the_hosts_numbers(proc: Path) -> bool:
    """Tell whether a procfs shows the initial pid namespace.

    It does if that is ours, as a procfs in which we see ourselves can then be of no other; else if process 2 is a
    kernel thread that nobody started, which is so there alone.
    """
    try:
        if (proc / "self/ns/pid").stat().st_ino == _INITIAL_PID_NAMESPACE:
            return True
        fields = (proc / _KTHREADD / "stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return False
    return fields[_PPID] == b"0" and bool(int(fields[_FLAGS]) & _PF_KTHREAD)


def _read(directory: int, name: str) -> bytes:
    file = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        return os.read(file, _FILE_BYTES)
    finally:
        os.close(file)
