"""`ephmon pools --owners`: reads once who holds the ports of the printed pools and the blocked ports."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ephmon.daemon.owner_reader import OwnerReader
from ephmon.errors import KernelError, Reason
from ephmon.facts.foreign_text import printable
from ephmon.kernel.deadline import Deadline
from ephmon.model.advice.for_alert import largest_owner
from ephmon.model.collectors import Collector, Health
from ephmon.model.owners.answers import PortState
from ephmon.model.owners.questions import BLOCKED_PORTS, OwnerQuestions, PortSet, refusal, unanswerable
from ephmon.outputs.text.owners import owner_lines, processes_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from ephmon.kernel.proc.processes import Search
    from ephmon.model.pools.kinds import Pool, PoolKey
    from ephmon.model.pools.survey import NamespaceSurvey
    from ephmon.model.report import Report

MAX_POOLS = 64
"""How many pools get owners, the fullest of those printed: each one is a filter in the dump of owners."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnersAnswer:
    """The owners that were found, and what was not."""

    report: Report
    """The report of the poll, with the owners."""
    searches: Mapping[PortSet, Search] = field(default_factory=dict)
    """The process searches, if any were made."""
    failure: KernelError | None = None
    """Why there are no owners, or only of some protocols."""

    def lines(self, shown: Sequence[Pool]) -> Iterator[str]:
        """Yield the lines below the table of these pools."""
        asked = [pool.key for pool in shown if pool.key in self.report.owners]
        found = {
            held: processes_line(search.processes, is_complete=search.is_complete)
            for held, search in self.searches.items()
            if search.processes
        }
        if self.failure is None or asked:
            yield from owner_lines(self.report, asked, found, left_out=max(0, len(shown) - MAX_POOLS))

    def names(self, key: PoolKey) -> tuple[str | None, ...]:
        """Return the names of the process and of the owner with the most ports of a pool, None if not known."""
        search = self.searches.get(key)
        largest = search.processes[0].comm if search and search.processes else None
        return largest, largest_owner(self.report.owners.get(key))

    def add_to(self, document: dict[str, Any], shown: Sequence[Pool]) -> None:
        """Add processes and errors to the JSON document of these pools; processes are null if none were searched."""
        for pool, entry in zip(shown, document["pools"], strict=True):
            entry["processes"] = _process_objects(self.searches.get(pool.key))
        for entry in document["namespaces"]:
            entry["blocked_processes"] = _process_objects(self.searches.get(BLOCKED_PORTS))
        owners = self.report.health(Collector.OWNERS)
        document["owners_error"] = owners.reason if self.failure is None else str(self.failure)
        searches = self.searches.values()
        document["processes_complete"] = all(one.is_complete for one in searches) if searches else None
        document["processes_error"] = self.report.health(Collector.PROCESSES).reason


def _process_objects(search: Search | None) -> list[dict[str, Any]] | None:
    if search is None:
        return None
    return [{"pid": pid, "command": printable(comm), "sockets": sockets} for pid, comm, sockets in search.processes]


def find_owners(
    pools: Sequence[Pool], surveyed: NamespaceSurvey, report: Report, *, proc: Path, deadline_seconds: float
) -> OwnersAnswer:
    """Read who holds the ports of the first `MAX_POOLS` pools and the blocked ports of the namespace.

    A single poll does not know who closed a connection, so TIME_WAITs are shared out among the present owners.
    """
    questions = OwnerQuestions(tuple(pool.key for pool in pools[:MAX_POOLS]), blocked=surveyed.ports is not None)
    refused = unanswerable(questions, surveyed.namespace.backends)
    answerable = questions.without(refused)
    failure = KernelError(refusal(refused), reason=Reason.UNAVAILABLE) if refused else None
    if answerable.is_none:
        return OwnersAnswer(report=report, failure=failure)
    reader = OwnerReader(proc, time.monotonic)
    ports = PortState(surveyed.namespace.sysctls, surveyed.ports)
    try:
        answer = reader.read(answerable, ports, Deadline(deadline_seconds, time.monotonic))
    except KernelError as error:
        return OwnersAnswer(report=report, failure=error)
    blocked = {} if answer.blocked is None else {surveyed.namespace.netns: answer.blocked}
    searches = _searches(reader, answerable)
    problem = next((one.problem for one in searches.values() if one.problem), None)
    return OwnersAnswer(
        report=replace(report, owners=answer.pools, blocked_owners=blocked).with_health(
            owners=Health(available=True, reason=reader.problem),
            processes=Health(available=problem is None, reason=problem) if searches else None,
        ),
        searches=searches,
        failure=failure,
    )


def _searches(reader: OwnerReader, asked: OwnerQuestions) -> dict[PortSet, Search]:
    search = reader.process_search(asked.port_sets)
    return {} if search is None else dict(zip(asked.port_sets, search(), strict=True))
