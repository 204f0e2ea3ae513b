"""`ephmon pools --owners`: who holds the ports of the pools shown and the blocked ports, at a single look."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ephmon.daemon.owner_reader import OwnerReader
from ephmon.errors import KernelError
from ephmon.kernel.deadline import Deadline
from ephmon.model.advice.for_alert import largest_owner
from ephmon.model.owners.answers import BLOCKED, Ground
from ephmon.model.owners.questions import OwnerQuestions, refusal, unanswerable
from ephmon.outputs.text.owners import owner_lines, processes_line
from ephmon.outputs.text.wording import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from ephmon.kernel.proc.processes import Search
    from ephmon.model.owners.answers import Held
    from ephmon.model.pools.kinds import Pool, PoolKey
    from ephmon.model.pools.survey import NamespaceSurvey
    from ephmon.model.report import Report

MOST_ASKED = 64
"""So many pools are asked about, the fullest of those shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """The answer."""

    report: Report
    """The report of the poll, with the owners in it."""
    searches: Mapping[Held, Search] = field(default_factory=dict)
    """The processes, where any were looked for."""
    failure: KernelError | None = None
    """Why there are no owners, or not of all protocols."""

    def lines(self, shown: Sequence[Pool]) -> Iterator[str]:
        """Yield what stands below the table of these pools."""
        asked = [pool.key for pool in shown if pool.key in self.report.owners]
        found = {
            held: processes_line(search.processes, is_complete=search.is_complete)
            for held, search in self.searches.items()
            if search.processes
        }
        if self.failure is None or asked:
            yield from owner_lines(self.report, asked, found, left_out=max(0, len(shown) - MOST_ASKED))

    def names(self, key: PoolKey) -> tuple[str | None, ...]:
        """Return the names of who holds most ports of a pool: of the process and of the owner, as far as known."""
        search = self.searches.get(key)
        largest = search.processes[0].comm if search and search.processes else None
        return largest, largest_owner(self.report.owners.get(key))

    def put_into(self, document: dict[str, Any], shown: Sequence[Pool]) -> None:
        """Add the processes to the document of these pools, null where none were looked for, and what went wrong."""
        for pool, entry in zip(shown, document["pools"], strict=True):
            entry["processes"] = _process_objects(self.searches.get(pool.key))
        for entry in document["namespaces"]:
            entry["blocked_processes"] = _process_objects(self.searches.get(BLOCKED))
        document["owners_error"] = self.report.owners_error if self.failure is None else str(self.failure)
        searches = self.searches.values()
        document["processes_complete"] = all(one.is_complete for one in searches) if searches else None
        document["processes_error"] = self.report.processes_error


def _process_objects(search: Search | None) -> list[dict[str, Any]] | None:
    if search is None:
        return None
    return [{"pid": pid, "command": printable(comm), "sockets": sockets} for pid, comm, sockets in search.processes]


def who_holds(
    pools: Sequence[Pool], surveyed: NamespaceSurvey, report: Report, *, proc: Path, deadline_seconds: float
) -> Holding:
    """Ask who holds the ports of the first `MOST_ASKED` pools and the blocked ports of the namespace.

    Nothing is known of the time before, so TIME_WAITs are shared out by who is there now.
    """
    questions = OwnerQuestions(tuple(pool.key for pool in pools[:MOST_ASKED]), blocked=surveyed.ports is not None)
    refused = unanswerable(questions, surveyed.namespace.backends)
    answerable = questions.without(refused)
    failure = KernelError(refusal(refused), reason="unavailable") if refused else None
    if answerable.is_none:
        return Holding(report=report, failure=failure)
    reader = OwnerReader(proc, time.monotonic)
    ground = Ground(surveyed.namespace.sysctls, surveyed.ports)
    try:
        answer = reader.read(answerable, ground, Deadline(deadline_seconds, time.monotonic))
    except KernelError as error:
        return Holding(report=report, failure=error)
    blocked = {} if answer.blocked is None else {surveyed.namespace.netns: answer.blocked}
    searches = _searches(reader, answerable)
    return Holding(
        report=replace(
            report,
            owners=answer.pools,
            blocked_owners=blocked,
            owners_error=reader.problem,
            processes_error=next((one.problem for one in searches.values() if one.problem), None),
        ),
        searches=searches,
        failure=failure,
    )


def _searches(reader: OwnerReader, asked: OwnerQuestions) -> dict[Held, Search]:
    held: list[Held] = [*asked.pools, *([BLOCKED] if asked.blocked else [])]
    search = reader.process_search(held)
    return {} if search is None else dict(zip(held, search(), strict=True))
