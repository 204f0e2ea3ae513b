"""The daemon's end of owners: while alerts are pending or fire, who holds the ports that they are about.

While nothing alerts, nothing is read or remembered. Processes are looked for in a thread, once for an alert
that fires, so that no poll waits for them.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from ephmon import log
from ephmon.daemon.owner_reader import OwnerReader
from ephmon.errors import KernelError, Reason
from ephmon.facts.namespaces import OWN_NETNS
from ephmon.facts.sockets import Capability, Protocol
from ephmon.kernel.deadline import Deadline
from ephmon.kernel.proc import sysctl
from ephmon.log import Line
from ephmon.model.collectors import Health, unavailable
from ephmon.model.owners.answers import PortState
from ephmon.model.owners.questions import BLOCKED_PORTS, raised_by, raised_by_firing, refusal, unanswerable
from ephmon.outputs.text.owners import port_set_name, processes_line
from ephmon.supervision import threads

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from ephmon.kernel.proc.processes import Search
    from ephmon.model.owners.questions import OwnerQuestions, PortSet
    from ephmon.model.report import NamespaceReport, Report
    from ephmon.model.state import NamespaceMemory, State

LONGEST_SECONDS = 2.0
"""How long the dumps with owners may take of a poll."""
CUT = f"Reading the owners of ports was cut after {LONGEST_SECONDS:g} s; the next poll tries again."

_log = logging.getLogger("ephmon.owners")


class OwnerWatch:
    """Puts into the report of each full poll who holds the ports that its alerts are about.

    Args:
        proc: Where procfs is mounted.
        clock: The monotonic clock, in seconds.
        wanted: Says False as soon as nobody waits for an answer any more.
    """

    def __init__(self, proc: Path, clock: Callable[[], float], wanted: Callable[[], bool]) -> None:
        self._proc = proc
        self._clock = clock
        self._wanted = wanted
        self._reader: OwnerReader | None = None
        self._searched: frozenset[PortSet] = frozenset()
        self._thread: threading.Thread | None = None
        self._processes: Health | None = None
        """Whether the latest search could look at all processes, None before the first; written by its thread."""

    def add_owners(self, state: State) -> Report:
        """Return the report of a poll that has just read everything, with the owners. What goes wrong stands in it.

        Raises:
            StopRequestedError: Nobody waits for the answer any more.
        """
        questions = raised_by(state.report.alerts, OWN_NETNS)
        namespace = state.report.namespace(OWN_NETNS)
        backend = namespace.backends.get(Protocol.TCP) if namespace else None
        can_tell = backend is not None and Capability.OWNERS in backend.capabilities
        report = replace(state.report, owners={}, blocked_owners={}).with_health(
            owners=Health(available=can_tell), processes=self._processes
        )
        if questions.is_none or namespace is None:
            self._forget()
            return report
        try:
            return self._answered(questions, namespace, report, state.namespaces.get(namespace.inode))
        except KernelError as failure:
            sentence = CUT if failure.reason is Reason.DEADLINE else str(failure)
            return report.with_health(owners=Health(available=False, reason=sentence))

    def _forget(self) -> None:
        self._searched = frozenset()
        if self._reader is not None:
            self._reader.forget()

    def _answered(
        self, questions: OwnerQuestions, namespace: NamespaceReport, report: Report, memory: NamespaceMemory | None
    ) -> Report:
        refused = unanswerable(questions, namespace.backends)
        answerable = questions.without(refused)
        if answerable.is_none:
            return report.with_health(owners=Health(available=False, reason=refusal(refused)))
        reader = self._reader = self._reader or OwnerReader(self._proc, self._clock)
        deadline = Deadline(LONGEST_SECONDS, self._clock, self._wanted)
        answer = reader.read(answerable, self._port_state(memory), deadline)
        self._find_processes(reader, raised_by_firing(report.alerts, OWN_NETNS).without(refused))
        return replace(
            report,
            owners=answer.pools,
            blocked_owners={} if answer.blocked is None else {OWN_NETNS: answer.blocked},
        ).with_health(owners=Health(available=not refused, reason=refusal(refused) if refused else reader.problem))

    def _port_state(self, memory: NamespaceMemory | None) -> PortState:
        if memory is None:
            return PortState(sysctl.read_sysctls(self._proc), None)
        return PortState(memory.sysctls, memory.ports)

    def _find_processes(self, reader: OwnerReader, firing: OwnerQuestions) -> None:
        """Look for the processes behind alerts that fire, once for each, unless the search before goes on."""
        if self._thread is not None and self._thread.is_alive():
            return
        asked = firing.port_sets
        new = [one for one in asked if one not in self._searched]
        before, self._searched = self._searched, frozenset(asked)
        search = reader.process_search(new) if new else None
        if search is not None:
            thread = threading.Thread(target=self._search, args=(new, search), name="ephmon-owners", daemon=True)
            try:
                threads.start(thread)
            except threads.ThreadError as error:  # the next look tries again
                self._searched = before
                self._processes = Health(available=False, reason=f"Processes are not looked for. {error}")
                return
            self._thread = thread

    def _search(self, port_sets: Sequence[PortSet], search: Callable[[], list[Search]]) -> None:
        try:
            found = search()
        except Exception as error:
            self._processes = unavailable(log.defect_sentence(error))
            raise  # for the log
        problem = next((one.problem for one in found if one.problem is not None), None)
        self._processes = Health(available=problem is None, reason=problem)
        for one, its in zip(port_sets, found, strict=True):
            if its.processes:
                line = processes_line(its.processes, is_complete=its.is_complete)
                fields = {} if one is BLOCKED_PORTS else {"kind": one.kind, "source": one.source}
                log.write(
                    _log,
                    Line(logging.INFO, f"{port_set_name(one)} are held by {line}.", {"netns": OWN_NETNS, **fields}),
                )
