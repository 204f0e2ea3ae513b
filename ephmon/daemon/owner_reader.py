"""Reads who holds ports in the network namespace of the calling thread, for the daemon and for the commands."""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

from ephmon.kernel.netlink.owner_dump import MOST_SOCKETS, read_owners_of_ports, read_owners_toward
from ephmon.kernel.netlink.sock_diag import SockDiag
from ephmon.kernel.proc.cgroup import CgroupTree
from ephmon.kernel.proc.processes import ProcessSearch, processes_of_users
from ephmon.model.owners.answers import NO_RECENT_OWNERS, OwnedSockets, find_owners, process_query, socket_query

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from ephmon.kernel.deadline import Deadline
    from ephmon.kernel.proc.processes import Search
    from ephmon.model.owners.answers import OwnerAnswers, PortState
    from ephmon.model.owners.questions import OwnerQuestions, PortSet
    from ephmon.model.owners.shares import RecentOwners

_TOO_MANY = (
    f"There are more than {MOST_SOCKETS:,} sockets on the ports in question; the owners of the rest do not count."
)


class OwnerReader:
    """Answers questions, and remembers what it saw for the next time that the same ones are asked.

    Args:
        proc: Where procfs is mounted.
        clock: The monotonic clock, in seconds.
    """

    def __init__(self, proc: Path, clock: Callable[[], float]) -> None:
        self._proc = proc
        self._clock = clock
        self._tree = CgroupTree(proc, clock)
        self._processes = ProcessSearch(proc, clock)
        self._recent: Mapping[PortSet, RecentOwners] = NO_RECENT_OWNERS
        self._sockets = OwnedSockets()
        self.problem: str | None = None
        """Why the latest answers lack or misname owners, as one sentence, if they do."""

    def forget(self) -> None:
        """Forget who held which ports; the names of cgroups are kept."""
        self._recent, self._sockets, self.problem = NO_RECENT_OWNERS, OwnedSockets(), None

    def read(self, questions: OwnerQuestions, ports: PortState, deadline: Deadline) -> OwnerAnswers:
        """Return who holds the ports.

        Raises:
            KernelError: inet_diag is not available, its reply cannot be trusted, or the deadline passed.
        """
        self._sockets = self._read(questions, ports, deadline)
        answer = find_owners(questions, self._sockets, ports, self._clock(), self._recent)
        self._recent = answer.recent
        self.problem = _TOO_MANY if self._sockets.sockets_left_out else self._tree.problem
        return answer

    def _read(self, questions: OwnerQuestions, ports: PortState, deadline: Deadline) -> OwnedSockets:
        query = socket_query(questions, ports)
        with SockDiag() as diag:
            toward = read_owners_toward(diag, ports.sysctls.port_range, query.destinations, deadline)
            on_ports = {
                protocol: read_owners_of_ports(diag, protocol, numbers, deadline)
                for protocol, numbers in query.ports_of.items()
            }
        ids = toward.cgroup_ids().union(*(table.cgroup_ids() for table in on_ports.values()))
        return OwnedSockets(toward=toward, on_ports=on_ports, paths=self._tree.paths(ids))

    def process_search(self, port_sets: Sequence[PortSet]) -> Callable[[], list[Search]] | None:
        """Return what finds the processes that have the sockets of the latest answers, None if it could find none.

        The processes in the cgroups that own the sockets are looked at, and where the cgroup of a socket is not known,
        those of its user. What is returned takes 2 seconds at most, and may be called once, in any thread.
        """
        queries = [process_query(self._sockets, one) for one in port_sets]
        in_cgroups = self._tree.processes(frozenset[int]().union(*(one.cgroup_ids for one in queries)))
        uids = frozenset[int]().union(*(one.uids for one in queries))
        inodes = [one.inodes for one in queries]
        if not any(inodes) or not (in_cgroups or uids):
            return None
        candidates = chain(in_cgroups, processes_of_users(uids, self._proc))
        return partial(self._processes.find_each, inodes, candidates)
