"""Reads who holds ports in the network namespace of the calling thread, for the daemon and for the commands."""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

from ephmon.kernel.netlink.owner_dump import MOST_SOCKETS, read_owners_of_ports, read_owners_toward
from ephmon.kernel.netlink.sock_diag import SockDiag
from ephmon.kernel.proc.cgroup import CgroupTree
from ephmon.kernel.proc.processes import ProcessSearch, processes_of_users
from ephmon.model.owners.answers import NO_MEMORY, OwnerReading, holders, sought, to_read

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from ephmon.kernel.deadline import Deadline
    from ephmon.kernel.proc.processes import Search
    from ephmon.model.owners.answers import Ground, Held, Holders
    from ephmon.model.owners.questions import OwnerQuestions
    from ephmon.model.owners.shares import Recent

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
        self._recent: Mapping[Held, Recent] = NO_MEMORY
        self._reading = OwnerReading()
        self.problem: str | None = None
        """Why the latest answers lack or misname owners, as one sentence, if they do."""

    def forget(self) -> None:
        """Forget who held which ports; the names of cgroups are kept."""
        self._recent, self._reading, self.problem = NO_MEMORY, OwnerReading(), None

    def read(self, questions: OwnerQuestions, ground: Ground, deadline: Deadline) -> Holders:
        """Return who holds the ports.

        Raises:
            KernelError: inet_diag is not available, its reply cannot be trusted, or the deadline passed.
        """
        self._reading = self._read(questions, ground, deadline)
        answer = holders(questions, self._reading, ground, self._clock(), self._recent)
        self._recent = answer.recent
        self.problem = _TOO_MANY if self._reading.sockets_left_out else self._tree.problem
        return answer

    def _read(self, questions: OwnerQuestions, ground: Ground, deadline: Deadline) -> OwnerReading:
        wanted = to_read(questions, ground)
        with SockDiag() as diag:
            toward = read_owners_toward(diag, ground.sysctls.port_range, wanted.destinations, deadline)
            on_ports = {
                protocol: read_owners_of_ports(diag, protocol, ports, deadline)
                for protocol, ports in wanted.ports_of.items()
            }
        ids = toward.cgroup_ids().union(*(table.cgroup_ids() for table in on_ports.values()))
        return OwnerReading(toward=toward, on_ports=on_ports, paths=self._tree.paths(ids))

    def process_search(self, held: Sequence[Held]) -> Callable[[], list[Search]] | None:
        """Return what finds the processes that have the sockets of the latest answers, None if it could find none.

        The processes in the cgroups that own the sockets are looked at, and where the cgroup of a socket is not known,
        those of its user. What is returned takes 2 seconds at most, and may be called once, in any thread.
        """
        wanted = [sought(self._reading, one) for one in held]
        in_cgroups = self._tree.processes(frozenset[int]().union(*(one.cgroup_ids for one in wanted)))
        uids = frozenset[int]().union(*(one.uids for one in wanted))
        inodes = [one.inodes for one in wanted]
        if not any(inodes) or not (in_cgroups or uids):
            return None
        candidates = chain(in_cgroups, processes_of_users(uids, self._proc))
        return partial(self._processes.find_each, inodes, candidates)
