"""What tests need of the machine and of whoever runs them, and whether it is there."""

from __future__ import annotations

import os
import resource
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

NEEDED_DESCRIPTORS = 8192
"""More than any agent opens; the largest opens some 4,000 sockets."""
_INITIAL_CGROUP_NAMESPACE = 0xEFFFFFFB  # PROC_CGROUP_INIT_INO in include/linux/proc_ns.h, as the next
_INITIAL_PID_NAMESPACE = 0xEFFFFFFC

IS_ROOT = os.geteuid() == 0
HAS_HOST_PIDS = Path("/proc/self/ns/pid").stat().st_ino == _INITIAL_PID_NAMESPACE
"""Whether process ids are those that the kernel gives in traces; in a container they are others."""

HAS_HOST_CGROUPS = Path("/proc/self/ns/cgroup").stat().st_ino == _INITIAL_CGROUP_NAMESPACE
"""Whether the whole hierarchy of cgroups can be seen; a container sees a part."""

NEEDS = {
    "only_root": (IS_ROOT, "root"),
    "host_pids": (HAS_HOST_PIDS, "the host's pid namespace"),
    "host_cgroups": (HAS_HOST_CGROUPS, "the host's cgroup namespace"),
}
"""By the marker of a test: whether its need is met, and what it needs."""


def permit_descriptors() -> None:
    """Raise the hard limit if it is too low, as root may; the soft limit stays.

    Raises:
        PermissionError: It is too low, and may not be raised; the message says what to do.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard >= NEEDED_DESCRIPTORS:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, NEEDED_DESCRIPTORS))
    except ValueError:  # what Python makes of EPERM
        raise PermissionError(
            f"The tests open up to {NEEDED_DESCRIPTORS} files in one process, but the hard limit is {hard}; "
            f"raise it as root: prlimit --pid {os.getppid()} --nofile=:{NEEDED_DESCRIPTORS}"
        ) from None


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Lower RLIMIT_NOFILE to what is open, so that opening one more fails with EMFILE."""
    lowest_free = os.dup(0)
    os.close(lowest_free)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
