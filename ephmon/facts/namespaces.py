"""Facts: which network namespace something belongs to.

A namespace has a label, which people read, and an inode number, which identifies it while it lives (man 7 namespaces).
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

OWN_NETNS = "own"
"""The label of the network namespace that ephmon itself runs in."""
OTHER_NETNS = "other"
"""The label of every network namespace that ephmon does not watch."""
UNKNOWN_NETNS = "unknown"
"""The label where the caller was gone before its namespace could be read, or where reading it is forbidden."""


class Netns(NamedTuple):
    """A network namespace: the key of whatever is kept for each namespace."""

    label: str
    """`OWN_NETNS`, `OTHER_NETNS` or `UNKNOWN_NETNS`."""
    inode: int | None = None
    """None where it is not known, or where there are too many namespaces to tell them apart."""


class Pod(NamedTuple):
    """A pod of Kubernetes."""

    namespace: str
    """Of Kubernetes, which has nothing to do with namespaces of the kernel."""
    name: str


class NamespaceIdentity(NamedTuple):
    """What tells which network namespace one is, and who made it."""

    cookie: int
    """Never used again while the host is up, unlike the inode."""
    user_namespace_inode: int
    """Of the user namespace that owns it. Whoever makes it needs CAP_SYS_ADMIN there (man 7 user_namespaces)."""
    cgroup: str | None = None
    """Path of the oldest cgroup that made sockets in it; None where none did, or where it is out of sight."""
    mount: str | None = None
    """Its name in /run/netns (man 8 ip-netns)."""


NO_PODS: Mapping[str, Pod] = MappingProxyType({})
"""No pods, by their uid."""
