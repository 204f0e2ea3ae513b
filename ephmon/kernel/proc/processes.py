"""Which processes have certain sockets open. Read on demand, never by an ordinary poll.

In come the inode numbers of sockets and the ids of the processes to look at, out come ids and names. Of a process
nothing is read but its list of descriptors and /proc/PID/comm: never its command line or environment, which take a lock
that a stuck process may hold for ever (access_remote_vm(), mm/memory.c).

Whoever looks at processes of another user needs CAP_DAC_READ_SEARCH to list /proc/PID/fd and CAP_SYS_PTRACE to read
what stands there (proc_pid_readlink(), fs/proc/base.c). A process is opened once and its files relative to that, so
that another one which got its id meanwhile is not taken for it.
"""

from __future__ import annotations

import errno
import os
import re
import threading
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import psutil

from ephmon.facts.foreign_text import printable
from ephmon.supervision import threads

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from pathlib import Path

MOST_SECONDS = 2.0
"""After so long a search returns what it has found so far."""
MOST_DESCRIPTORS = 2000
"""So many descriptors of a process are looked at."""
MOST_PROCESSES = 20_000
"""So many processes are asked for their users, some 35 microseconds each."""

_SOCKET = re.compile(r"socket:\[([0-9]{1,10})\]")
_NAME_BYTES = 64
_MISSING_CAPABILITIES = (
    "ephmon may not read the descriptors of {} of {} processes. To see which processes own ports, give it "
    "CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH."
)
_HIDDEN = (
    "None of the {} processes that own ports is visible in {}. If hidepid= or ProtectProc= hides them, give ephmon "
    "CAP_SYS_PTRACE; in a container, share the host's process ids."
)
_STUCK = "The previous process search is still running; skipped."


class Process(NamedTuple):
    """A process that has some of the sockets open."""

    pid: int
    comm: str
    """Its name of at most 15 bytes, which it may set itself (man 5 proc_pid_comm); valid UTF-8, printable."""
    sockets: int
    """How many of the sockets it was seen to have; several processes may have the same one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What a search found."""

    processes: tuple[Process, ...]
    """Most sockets first, then by id."""
    is_complete: bool
    """Whether all descriptors of all processes were looked at."""
    problem: str | None = None
    """Why not, as one sentence, if there is something to be done about it."""


class ProcessSearch:
    """Searches in a thread of its own, one at a time, so that a read that hangs blocks nothing but that thread.

    Args:
        proc: Where procfs is mounted.
        clock: The monotonic clock, in seconds.
    """

    def __init__(self, proc: Path, clock: Callable[[], float]) -> None:
        self._proc = proc
        self._clock = clock
        self._thread: threading.Thread | None = None

    def find(self, inodes: Collection[int], pids: Iterable[int], seconds: float = MOST_SECONDS) -> Search:
        """Return which of the processes have which of the sockets, as far as that is known after `seconds`."""
        (search,) = self.find_each([inodes], pids, seconds)
        return search

    def find_each(
        self, inode_sets: Sequence[Collection[int]], pids: Iterable[int], seconds: float = MOST_SECONDS
    ) -> list[Search]:
        """Return the same for several sets of sockets, looking at each process once.

        A socket may be in several sets. The ids are taken one by one within the time, so finding them may take time
        itself; they may repeat.
        """
        if self._thread is not None and self._thread.is_alive():
            return [Search(processes=(), is_complete=False, problem=_STUCK) for _ in inode_sets]
        run = _SearchRun(self._proc, tuple(map(frozenset, inode_sets)), pids, self._clock, self._clock() + seconds)
        thread = threading.Thread(target=run.run, name="ephmon-processes", daemon=True)
        try:
            threads.start(thread)
        except threads.ThreadError as error:
            return [Search(processes=(), is_complete=False, problem=str(error)) for _ in inode_sets]
        self._thread = thread
        thread.join(seconds)
        return run.results()


def processes_of_users(uids: Collection[int], proc: Path) -> Iterator[int]:
    """Yield the ids of the processes that run as one of some users, of at most `MOST_PROCESSES` processes.

    By real, effective or saved user id, as the reader's user namespace numbers them. It is for sockets whose cgroup
    nobody can name. A process that gave up its user after it had opened the sockets is not among them.

    Raises:
        OSError: The processes cannot be listed.
    """
    if not uids:
        return
    psutil.PROCFS_PATH = str(proc)
    for pid in psutil.pids()[:MOST_PROCESSES]:
        try:
            is_one = not set(uids).isdisjoint(psutil.Process(pid).uids())
        except psutil.Error:
            continue  # it has ended, or is hidden
        if is_one:
            yield pid


class _SearchRun:
    """One search. Its own thread adds to the results; the thread that asked reads them when the time is up."""

    def __init__(
        self,
        proc: Path,
        inode_sets: tuple[frozenset[int], ...],
        pids: Iterable[int],
        clock: Callable[[], float],
        ends_at: float,
    ) -> None:
        self._proc = proc
        self._inode_sets = inode_sets
        self._pids = pids
        self._clock = clock
        self._ends_at = ends_at
        self._found: tuple[list[Process], ...] = tuple([] for _ in inode_sets)
        self._visited: set[int] = set()
        self._denied = 0
        self._absent = 0
        self._was_limited = False
        self._has_ended = False
        self._error: str | None = None

    def run(self) -> None:
        try:
            for pid in self._pids:
                if self._clock() >= self._ends_at:
                    return
                if pid not in self._visited:
                    self._visited.add(pid)
                    self._visit(pid)
            self._has_ended = True
        except OSError as error:
            self._error = f"ephmon cannot look at the processes that own ports: {error.strerror}."

    def results(self) -> list[Search]:
        is_whole, problem = self._has_ended and not self._was_limited, self._problem()
        return [
            Search(
                processes=tuple(sorted(found, key=lambda process: (-process.sockets, process.pid))),
                is_complete=is_whole and problem is None,
                problem=problem,
            )
            for found in self._found
        ]

    def _problem(self) -> str | None:
        if self._error is not None:
            return self._error
        if self._denied:
            return _MISSING_CAPABILITIES.format(self._denied, len(self._visited))
        # Some may have ended since their ids were read. That all have is less likely than that all are hidden.
        if self._absent and self._absent == len(self._visited):
            return _HIDDEN.format(self._absent, self._proc)
        return None

    def _visit(self, pid: int) -> None:
        """Look at one process."""
        try:
            process = os.open(self._proc / str(pid), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                numbers = self._count_sockets(process)
                if any(numbers):
                    self._add(pid, _comm(process), numbers)
            finally:
                os.close(process)
        except (FileNotFoundError, ProcessLookupError):
            self._absent += 1
        except PermissionError:
            self._denied += 1

    def _add(self, pid: int, comm: str, numbers: Iterable[int]) -> None:
        for found, number in zip(self._found, numbers, strict=True):
            if number:
                found.append(Process(pid, comm, number))

    def _count_sockets(self, process: int) -> list[int]:
        """Return how many sockets of each set are among the first descriptors of a process."""
        descriptors = os.open("fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=process)
        try:
            with os.scandir(descriptors) as entries:
                names = [entry.name for entry in islice(entries, MOST_DESCRIPTORS + 1)]
            self._was_limited |= len(names) > MOST_DESCRIPTORS
            sockets = self._sockets(descriptors, names[:MOST_DESCRIPTORS])
            return [len(inodes.intersection(sockets)) for inodes in self._inode_sets]
        finally:
            os.close(descriptors)

    def _sockets(self, descriptors: int, names: Iterable[str]) -> list[int]:
        """Return the inode numbers of the sockets among some descriptors, until the time is up."""
        inodes = []
        for name in names:
            if self._clock() >= self._ends_at:
                self._was_limited = True
                break
            try:
                match = _SOCKET.fullmatch(os.readlink(name, dir_fd=descriptors))
            except FileNotFoundError:
                continue  # closed meanwhile
            except OSError as error:
                if error.errno != errno.ENAMETOOLONG:
                    raise
                continue  # a file with a path longer than a page
            if match:
                inodes.append(int(match[1]))
        return inodes


def _comm(process: int) -> str:
    """Return the name of a process, of which each byte may be anything but 0."""
    descriptor = os.open("comm", os.O_RDONLY | os.O_CLOEXEC, dir_fd=process)
    try:
        return printable(os.read(descriptor, _NAME_BYTES).removesuffix(b"\n"))
    finally:
        os.close(descriptor)
