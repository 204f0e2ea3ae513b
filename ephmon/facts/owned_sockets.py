"""Facts: sockets with the user id and cgroup id that the kernel reports for each. Nobody has a name yet.

`ephmon.kernel.netlink.owner_dump` builds these values, `ephmon.model.owners.shares` reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from array import array


class OwnerGroup(NamedTuple):
    """All sockets of one dump that are alike but for their local port and inode.

    Addresses are packed (4 or 16 bytes); an IPv4-mapped IPv6 address is given as its IPv4 address.
    """

    state: int
    """As in `TcpState`; an unknown number stays a number."""
    source: bytes
    destination: bytes
    """All zero for a socket without a peer, and where destinations were not read."""
    destination_port: int
    uid: int | None
    """User id of the socket, in the user namespace of the reader; None if no process has the socket.

    No process has a TIME_WAIT structure, a connection request, or a socket that its process has closed.
    """
    cgroup_id: int | None
    """The cgroup that the socket was made in; None for TIME_WAIT structures, requests, and before Linux 5.8."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerTable:
    """The sockets of one dump with their owners: by group, their local ports and their inodes."""

    groups: tuple[OwnerGroup, ...]
    ports_of: tuple[array[int], ...]
    """Local ports of the sockets of each group (typecode "H"), in the order of `groups`."""
    inodes_of: tuple[array[int], ...]
    """Inode numbers of the same sockets (typecode "I"), 0 if no process has the socket."""
    sockets_left_out: int = 0
    """How many sockets were left out because there were too many."""

    def inodes(self) -> frozenset[int]:
        """Return the inode numbers of all sockets that some process has open."""
        return frozenset().union(*self.inodes_of) - {0}

    def cgroup_ids(self) -> frozenset[int]:
        """Return the ids of all cgroups that sockets were made in."""
        return frozenset(group.cgroup_id for group in self.groups if group.cgroup_id is not None)
