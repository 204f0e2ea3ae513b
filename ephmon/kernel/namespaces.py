"""Which network namespaces there are beside our own, and what tells them apart. Only the walk needs a privilege.

The bind table has the inode, the owner and a cgroup of each. The path of a cgroup is in the cgroup2 hierarchy, names
that `ip netns` gave are in /run/netns, and those of pods among their logs: the kubelet writes them to
/var/log/pods/NAMESPACE_NAME_UID (BuildPodLogsDirectory() of Kubernetes). No container runtime is asked, because that
costs the runtime processor time, and may hang.
"""

from __future__ import annotations

import os
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from ephmon.facts.namespaces import NO_PODS, NamespaceIdentity, Pod
from ephmon.kernel.proc.cgroup import CgroupTree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from ephmon.facts.bind_table import NamespaceBinds

NAMED_NAMESPACES = Path("/run/netns")
POD_LOGS = Path("/var/log/pods")
MOST_ENTRIES = 10_000
"""So many entries of a directory are looked at."""
_KUBEPODS = "kubepods"


class NamespaceIdentities:
    """Tells namespaces apart.

    Args:
        proc: Where procfs is mounted.
        clock: The monotonic clock, seconds.
        named: Where `ip netns` keeps its names.
        pod_logs: Where the kubelet keeps the logs of pods.
    """

    def __init__(
        self,
        proc: Path,
        clock: Callable[[], float],
        *,
        named: Path = NAMED_NAMESPACES,
        pod_logs: Path = POD_LOGS,
    ) -> None:
        self._cgroups = CgroupTree(proc, clock)
        self._named = named
        self._pod_logs = pod_logs

    def identify(self, namespaces: Iterable[NamespaceBinds]) -> dict[int, NamespaceIdentity]:
        """Return what is known of each namespace, by its inode."""
        rows = list(namespaces)
        mounts = read_mounts(self._named) if rows else {}
        paths = self._cgroups.paths({one.cgroup_id for one in rows if one.cgroup_id is not None})
        return {
            one.inode: NamespaceIdentity(
                cookie=one.cookie,
                user_namespace_inode=one.user_namespace_inode,
                cgroup=None if one.cgroup_id is None else paths.get(one.cgroup_id),
                mount=mounts.get(one.inode),
            )
            for one in rows
        }

    def pods(self, identities: Iterable[NamespaceIdentity]) -> Mapping[str, Pod]:
        """Return the pods of this node by their uid; none if no namespace is of a pod."""
        is_node = any(_KUBEPODS in (one.cgroup or "") for one in identities)
        return read_pods(self._pod_logs) if is_node else NO_PODS


def read_mounts(folder: Path) -> dict[int, str]:
    """Return the names that `ip netns` gave, by the inode of the namespace; none where the folder cannot be read."""
    found = {}
    for entry in _entries(folder):
        with suppress(OSError):
            found[entry.stat(follow_symlinks=False).st_ino] = entry.name
    return found


def read_pods(folder: Path) -> dict[str, Pod]:
    """Return the pods that have logs here, by their uid; none where the folder cannot be read."""
    return dict(filter(None, (parse_pod(entry.name) for entry in _entries(folder))))


def parse_pod(name: str) -> tuple[str, Pod] | None:
    """Return uid and pod of a directory of logs; None if it is not of a pod. Names of Kubernetes have no underscore."""
    parts = name.split("_")
    return (parts[2], Pod(parts[0], parts[1])) if len(parts) == 3 and all(parts) else None


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    with suppress(OSError), os.scandir(folder) as entries:
        yield from islice(entries, MOST_ENTRIES)
