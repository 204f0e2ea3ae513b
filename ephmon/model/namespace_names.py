"""How network namespaces are called, and which of them may raise alerts.

A namespace is called by the first of these that is known:

own                     the one that ephmon runs in
pod/NAMESPACE/NAME      a pod of Kubernetes; pod/UID where its logs are not there
docker/0123456789ab     a container: also podman/, containerd/, crio/, lxc/, and container/ where it is not known whose
blue                    its name in /run/netns (man 8 ip-netns)
haproxy.service         the systemd unit, as for PrivateNetwork=
netns:4026532301        its inode

Pods and containers come first, because their runtimes put names into /run/netns that say nothing. A name stays while
the namespace lives, and none is given to another namespace within ten minutes: that one has the kernel's
cookie of the namespace added, as in blue@66123.

A user without a privilege can make a user namespace, network namespaces in it, and fill their ports. So only those
raise alerts whose maker had a privilege, which nobody can feign: they have a name in /run/netns, their sockets were
made in a cgroup outside the slices of users, or they belong to the user namespace of the host.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NamedTuple

from ephmon.facts.foreign_text import printable
from ephmon.facts.namespaces import OTHER_NETNS, OWN_NETNS, UNKNOWN_NETNS
from ephmon.model.owners.names import LONGEST_NAME, OwnerKind, owner_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ephmon.facts.namespaces import NamespaceIdentity, Pod
    from ephmon.facts.snapshot import NamespaceSnapshot, Snapshot

SECONDS_BEFORE_REUSE = 600.0
"""A name is given to another namespace only so long after the last one that had it was seen."""

_SLICE_OF_USERS = "user.slice"
_POD = re.compile(r"(?:.*-)?pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(?:\.slice)?")
_RUNTIMES = (
    ("docker", re.compile(r"/docker[-/]")),
    ("podman", re.compile(r"/libpod[-_]")),
    ("containerd", re.compile(r"/cri-containerd[-:]|:cri-containerd:")),
    ("crio", re.compile(r"/crio-")),
    ("lxc", re.compile(r"/lxc\.payload\.")),
)
_RESERVED = (OWN_NETNS, OTHER_NETNS, UNKNOWN_NETNS)


class _Name(NamedTuple):
    label: str
    seen_at: float
    is_known: bool
    """Whether it says more than the inode does."""


@dataclass(frozen=True, slots=True)
class NamespaceNames:
    """The names of namespaces, of those that are gone as well for a while."""

    by_cookie: Mapping[int, _Name] = field(default_factory=dict)


def name_namespaces(
    snapshot: Snapshot, before: NamespaceNames, now: float, ignored: Sequence[str] = ()
) -> tuple[Snapshot, NamespaceNames]:
    """Return the snapshot with the names of namespaces and without those that are ignored, and the names for later.

    Args:
        snapshot: What was read.
        before: The names after the poll before.
        now: Monotonic seconds.
        ignored: Patterns of names, as a shell has them; our own namespace is never ignored.
    """
    names = {cookie: one for cookie, one in before.by_cookie.items() if now - one.seen_at < SECONDS_BEFORE_REUSE}
    own_user_namespace = next(
        (one.binds.table.user_namespace_inode for one in snapshot.namespaces if one.netns == OWN_NETNS and one.binds),
        None,
    )
    named = []
    for one in snapshot.namespaces:
        if one.identity is None:
            named.append(one)
            continue
        name = _name(one, one.identity, snapshot.pods, names, now)
        names[one.identity.cookie] = name
        if not any(fnmatchcase(name.label, pattern) for pattern in ignored):
            may_alert = _may_alert(one.identity, own_user_namespace)
            named.append(replace(one, netns=name.label, may_alert=may_alert))
    return replace(snapshot, namespaces=tuple(named)), NamespaceNames(names)


def _name(
    one: NamespaceSnapshot,
    identity: NamespaceIdentity,
    pods: Mapping[str, Pod],
    names: Mapping[int, _Name],
    now: float,
) -> _Name:
    before = names.get(identity.cookie)
    if before is not None and before.is_known:
        return before._replace(seen_at=now)
    known = _known_name(identity, pods)
    if before is not None and known is None:
        return before._replace(seen_at=now)
    taken = {*_RESERVED, *(other.label for cookie, other in names.items() if cookie != identity.cookie)}
    label = f"netns:{one.inode}" if known is None else known
    if label in taken:
        label = f"{label}@{identity.cookie}"
    return _Name(label, now, known is not None)


def _known_name(identity: NamespaceIdentity, pods: Mapping[str, Pod]) -> str | None:
    """Return the name of a namespace, None if nothing but its inode is known."""
    path = identity.cgroup
    if path is not None and (uid := pod_uid(path)) is not None:
        pod = pods.get(uid)
        return _short(f"pod/{uid}" if pod is None else f"pod/{pod.namespace}/{pod.name}")
    owner = owner_of(path, None)
    if owner is not None and path is not None and owner.kind is OwnerKind.CONTAINER:
        return _short(f"{runtime_of(path)}/{owner.name}")
    if identity.mount is not None:
        return _short(identity.mount)
    return owner.name if owner is not None and owner.kind is OwnerKind.UNIT else None


def pod_uid(path: str) -> str | None:
    """Return the uid of the pod that a cgroup is of, as Kubernetes writes it; None if it is of none."""
    parts = path.split("/")
    if is_of_user(path) or not any(part.startswith("kubepods") for part in parts):
        return None
    matches = (match for part in parts if (match := _POD.fullmatch(part)))
    found = next(matches, None)
    return None if found is None else found[1].replace("_", "-")


def runtime_of(path: str) -> str:
    """Return which container runtime made a cgroup, `container` where its path does not say it."""
    return next((name for name, pattern in _RUNTIMES if pattern.search(path)), "container")


def is_of_user(path: str) -> bool:
    """Tell whether a cgroup is in the slice of a user, who may name cgroups there as they like."""
    return path.lstrip("/").split("/", 1)[0] == _SLICE_OF_USERS


def _may_alert(identity: NamespaceIdentity, own_user_namespace: int | None) -> bool:
    if identity.mount is not None:
        return True
    path = identity.cgroup
    if path is not None and path.strip("/"):
        return not is_of_user(path)
    return identity.user_namespace_inode == own_user_namespace


def _short(name: str) -> str:
    """Return a name fit for a label."""
    return printable(name)[: 2 * LONGEST_NAME]
