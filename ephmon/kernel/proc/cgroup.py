"""The cgroup2 hierarchy: the paths of cgroups by id, and the processes in them. Needs no privilege.

In come the ids that inet_diag attaches to sockets, out come paths as /proc/PID/cgroup writes them
(`/system.slice/haproxy.service`). `ephmon.model.owners.names` reads services and containers from paths.

The id of a cgroup is the inode number of its directory (cgroup_id() and kernfs_id_ino(), include/linux; on 64-bit
machines), and no id is used twice before 2**64 of them (__kernfs_new_node()), so a path once found stays right, also
when its cgroup is gone. To open a directory by its id takes CAP_DAC_READ_SEARCH (open_by_handle_at(2)); anybody may
walk the tree.
"""

from __future__ import annotations

import os
import re
from collections import OrderedDict, deque
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from ephmon.errors import KernelError, Reason
from ephmon.kernel.proc.file import unreadable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator
    from pathlib import Path

MOST_DIRECTORIES = 20_000
"""A walk ends after so many cgroups."""
MOST_SECONDS = 0.5
"""A walk ends after so long."""
WALK_EVERY_SECONDS = 5.0
"""Two walks have at least so much between them, however many ids are unknown."""
MISSED_FOR_SECONDS = 60.0
"""An id that a walk did not find, because its cgroup is gone or out of sight, is not looked for again so long."""
MOST_PATHS = 1024
"""So many ids keep their path, those that were asked for last."""
MOST_PROCESSES = 4096
"""So many process ids are read at most."""

_MOST_MOUNTS = 100_000
_LONGEST_PATH = 4096
_ESCAPE = re.compile(rb"\\([0-3][0-7]{2})")
_PROCESS = re.compile(rb"[1-9][0-9]{0,9}\n")
_ID_OF_THE_ROOT = 1
_NO_HIERARCHY = (
    "No cgroup2 hierarchy is mounted, so owners are named by user id. In a container, mount the host's /sys/fs/cgroup."
)
_PART_OF_THE_HIERARCHY = (
    "Only a part of the cgroup2 hierarchy is mounted, so some owners are named by user id. In a container, mount the "
    "host's /sys/fs/cgroup."
)


class Mount(NamedTuple):
    """Where a cgroup2 hierarchy is mounted, and which of its directories that is."""

    directory: bytes
    root: bytes
    """`/` for the whole, as the reader's cgroup namespace counts; `/..` is above what the reader is in."""


class CgroupTree:
    """Knows cgroups by their id, and walks the hierarchy where it meets one that it does not know.

    Args:
        proc: Where procfs is mounted.
        clock: The monotonic clock, in seconds.
    """

    def __init__(self, proc: Path, clock: Callable[[], float]) -> None:
        self._proc = proc
        self._clock = clock
        self._paths: OrderedDict[int, bytes] = OrderedDict()
        self._missed_at: dict[int, float] = {}
        self._walked_at: float | None = None
        self._mount: Mount | None = None
        self.problem: str | None = None
        """Why the latest walk did not find all ids, as sentences; None if it did, or if no reason is known."""

    def paths(self, ids: Collection[int]) -> dict[int, str]:
        """Return the paths of those of the cgroups that are known, after a walk if there are others and one is due.

        Bytes that are no UTF-8 are replaced.
        """
        now = self._clock()
        unknown = {one for one in ids if one not in self._paths and not self._was_missed(one, now)}
        if unknown and (self._walked_at is None or now - self._walked_at >= WALK_EVERY_SECONDS):
            self._walked_at = now
            self._look_for(unknown)
        found = {}
        for one in ids:
            if one in self._paths:
                self._paths.move_to_end(one)
                found[one] = self._paths[one].decode("utf-8", "replace")
        while len(self._paths) > MOST_PATHS:
            self._paths.popitem(last=False)
        return found

    def processes(self, ids: Iterable[int]) -> list[int]:
        """Return the process ids in those of the cgroups that are known and still there, as the reader numbers them.

        Processes that the reader's PID namespace does not show are left out: cgroup.procs names them 0.
        """
        found: list[int] = []
        for one in sorted(ids):
            if self._mount is not None and one in self._paths:
                found += _processes(_directory(self._mount, self._paths[one]), MOST_PROCESSES - len(found))
        return found

    def _was_missed(self, one: int, now: float) -> bool:
        return now - self._missed_at.get(one, -MISSED_FOR_SECONDS) < MISSED_FOR_SECONDS

    def _look_for(self, unknown: set[int]) -> None:
        """Walk until all ids are found, and remember those that are not."""
        try:
            self._mount = find_mount(self._proc)
        except KernelError as error:
            self._mount, self.problem = None, str(error)
        else:
            self.problem = _NO_HIERARCHY if self._mount is None else self._walk(self._mount, unknown)
        if len(self._missed_at) > MOST_PATHS:
            self._missed_at.clear()
        self._missed_at.update(dict.fromkeys(unknown, self._clock()))

    def _walk(self, mount: Mount, unknown: set[int]) -> str | None:
        """Take the ids that are found out of `unknown`; return why not all cgroups could be looked at, if so."""
        ends_at = self._clock() + MOST_SECONDS
        top = None
        for seen, (inode, path) in enumerate(_cgroups(mount), 1):
            top = top or inode
            if inode in unknown:
                self._paths[inode] = path
                unknown.remove(inode)
                if not unknown:
                    return None
            if seen >= MOST_DIRECTORIES or self._clock() >= ends_at:
                return f"There are too many cgroups to find the owners of all ports; the search ended after {seen:,}."
        return None if top == _ID_OF_THE_ROOT else _PART_OF_THE_HIERARCHY


def find_mount(proc: Path) -> Mount | None:
    """Return the mount that shows the most of the cgroup2 hierarchy, None if there is none.

    It stands at /sys/fs/cgroup, in the hybrid layout at /sys/fs/cgroup/unified. A container in a cgroup namespace of
    its own sees itself there, and more where somebody mounted more for it.

    Raises:
        KernelError: With reason `procfs`.
    """
    name = "self/mountinfo"
    try:
        with (proc / name).open("rb") as lines:
            mounts = [mount for line in islice(lines, _MOST_MOUNTS) if (mount := parse_mount(line)) is not None]
    except OSError as error:
        raise unreadable(proc, name, error, reason=Reason.PROCFS) from error
    return min(mounts, key=_depth, default=None)


def parse_mount(line: bytes) -> Mount | None:
    """Return the mount of a line of mountinfo if it is of cgroup2 (man 5 proc_pid_mountinfo)."""
    fields, _, source = line.partition(b" - ")
    columns = fields.split(b" ")
    if not source.startswith(b"cgroup2 ") or len(columns) < 6:
        return None
    root, directory = (_ESCAPE.sub(_unescaped, column) for column in columns[3:5])
    if 0 in directory:
        return None  # what writes that is no Linux, and no call takes such a path
    return Mount(directory=directory, root=root)


def _unescaped(match: re.Match[bytes]) -> bytes:
    return bytes([int(match[1], 8)])


def _depth(mount: Mount) -> tuple[int, int]:
    """Return a key that sorts the mount with the highest root first."""
    parts = [part for part in mount.root.split(b"/") if part]
    above = parts.count(b"..")
    return -above, len(parts) - above


def _cgroups(mount: Mount) -> Iterator[tuple[int, bytes]]:
    """Yield inode number and path of every cgroup below a mount, those near its root first.

    A directory has two links and one for each directory in it (kernfs_refresh_inode()), so that most need no look
    inside. A cgroup that goes away meanwhile is passed over.
    """
    with suppress(OSError):
        yield os.stat(mount.directory).st_ino, _top(mount)  # noqa: PTH116 - the path is bytes
    queue = deque([_top(mount)])
    while queue:
        path = queue.popleft()
        for inode, links, name in _directories(_directory(mount, path)):
            below = path.rstrip(b"/") + b"/" + name
            yield inode, below
            if links != 2 and len(below) < _LONGEST_PATH:
                queue.append(below)


def _directories(directory: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield inode number, number of links and name of each directory in a directory."""
    with suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                with suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    yield status.st_ino, status.st_nlink, entry.name


def _top(mount: Mount) -> bytes:
    """Return the path of the directory that is mounted, as far as it is told from outside the reader's namespace."""
    return b"/" + b"/".join(part for part in mount.root.split(b"/") if part not in (b"", b".."))


def _directory(mount: Mount, path: bytes) -> bytes:
    return mount.directory + b"/" + path.removeprefix(_top(mount)).lstrip(b"/")


def _processes(directory: bytes, most: int) -> Iterator[int]:
    """Yield process ids of a cgroup; none of one that is gone, or that is threaded and does not tell (EOPNOTSUPP)."""
    with suppress(OSError), open(directory + b"/cgroup.procs", "rb") as lines:  # noqa: PTH123 - the path is bytes
        yield from parse_processes(islice(lines, most))


def parse_processes(lines: Iterable[bytes]) -> Iterator[int]:
    """Yield the process ids in the lines of a cgroup.procs but 0, which stands for a process that we cannot see."""
    yield from (int(line) for line in lines if _PROCESS.fullmatch(line))
