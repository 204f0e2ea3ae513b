"""The poller: reads the kernel once, asks it about ports in doubt, and concludes. It neither waits nor publishes."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from ephmon import log
from ephmon.config.settings import ProbeChoice
from ephmon.errors import EphmonError, KernelError, StopRequestedError, shortages_explained
from ephmon.facts.sockets import Capability
from ephmon.kernel.deadline import Deadline
from ephmon.kernel.probe import ask
from ephmon.log import Line
from ephmon.model.collectors import Collector, Health, unavailable
from ephmon.model.namespace_names import name_namespaces
from ephmon.model.pace import Poll
from ephmon.model.pools.peer_timestamps import with_timestamps
from ephmon.model.step import (
    after_failed_narrow_poll,
    after_failed_poll,
    after_narrow_poll,
    after_repeated_poll,
    classify_with_memory,
    conclude,
    narrow_destinations,
    next_full_poll,
    questions_about,
)
from ephmon.supervision.compartment import Compartment

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ephmon.config.settings import PollConfig
    from ephmon.daemon.owner_watch import OwnerWatch
    from ephmon.facts.snapshot import Snapshot
    from ephmon.facts.socket_groups import ConnectKey
    from ephmon.facts.timestamps import TimestampQuestion
    from ephmon.kernel.source import SocketSource
    from ephmon.model.pools.survey import Classified
    from ephmon.model.report import Report
    from ephmon.model.state import State

_log = logging.getLogger(__name__)
PROBE_CUT = "The probe was cut after poll.deadline; its answers count, and the next polls ask about the rest."


class Poller:
    """Polls: a state in, the state after the poll out. What the kernel refuses makes a failed poll, not an error.

    Args:
        source: Reads the sockets.
        owners: Adds who holds the ports that alerts are about.
        clock: The monotonic clock, in seconds.
        wanted: Says False as soon as nobody waits for a poll any more; the state then stays as it was.
    """

    def __init__(
        self,
        source: SocketSource,
        owners: OwnerWatch,
        config: PollConfig,
        *,
        clock: Callable[[], float],
        wanted: Callable[[], bool],
    ) -> None:
        self._source = source
        self._owners = owners
        self._config = config
        self._clock = clock
        self._wanted = wanted
        self._probe_compartment = Compartment(Collector.PROBE, clock)
        self._owners_compartment = Compartment(Collector.OWNERS, clock)
        self._last_asked: dict[int, int] = {}
        """The port that the probe asked about last, by the inode of its namespace."""

    @property
    def can_poll_narrowly(self) -> bool:
        """Whether the sockets toward some destinations can be read alone, as far as the last poll has shown."""
        return Capability.NARROW_POLLS in self._source.capabilities

    def configure(self, config: PollConfig, source: SocketSource) -> None:
        """Poll as the configuration says from now on, and read from this source."""
        self._config = config
        self._source = source
        self._probe_compartment.retry_now()
        self._owners_compartment.retry_now()

    def full(self, previous: State) -> State:
        """Read everything and conclude."""
        started = self._clock()
        try:
            with shortages_explained():
                state = self._read_and_conclude(previous)
            state = replace(state, report=self._with_owners(state))
        except StopRequestedError:
            return previous
        except KernelError as error:
            return after_failed_poll(previous, str(error), error.reason, self._clock() - started)
        return state.with_report(duration_seconds=self._clock() - started)

    def _read_and_conclude(self, previous: State) -> State:
        """Read everything and conclude. A defect in what is made of a walk by BPF ends BPF, and all is read again."""
        evidence = next_full_poll(previous) is Poll.FULL
        snapshot = self._source.read(self._config.deadline_seconds, evidence=evidence)
        try:
            named, names = name_namespaces(snapshot, previous.names, self._clock(), previous.rules.namespaces.ignore)
            before = replace(previous, names=names)
            return self._conclude(self._with_timestamps(named, before), before, evidence=evidence)
        except (EphmonError, OSError, MemoryError):
            raise
        except Exception as error:
            if all(one.binds is None for one in snapshot.namespaces):
                raise
            log.write(_log, Line(logging.ERROR, "A defect of ephmon ends reading by BPF, please report it."), error)
            self._source.end_bpf(log.defect_sentence(error))
        del snapshot  # before there is another one
        return self._read_and_conclude(after_repeated_poll(previous))

    def narrow(self, previous: State) -> State:
        """Read only what leads to the destinations that are watched.

        Everything if the sysctls have changed, or if the source cannot read a part alone: a reload may have exchanged
        it since the pace was chosen.
        """
        if not self.can_poll_narrowly:
            return self.full(previous)
        destinations = narrow_destinations(previous, self._clock())
        if not destinations:
            return previous  # what failed is ignored, or has had its time while something else was polled
        try:
            with shortages_explained():
                narrow = self._source.read_toward(destinations, self._config.deadline_seconds)
        except StopRequestedError:
            return previous
        except KernelError as error:
            return after_failed_narrow_poll(previous, str(error), error.reason)
        return after_narrow_poll(narrow, previous, self._clock()) or self.full(previous)

    def _with_owners(self, state: State) -> Report:
        def without(reason: str) -> Report:
            report = replace(state.report, owners={}, blocked_owners={})
            return report.with_health(owners=unavailable(reason), processes=None)

        return self._owners_compartment.run(lambda: self._owners.add_owners(state), without)

    def _with_timestamps(self, snapshot: Snapshot, previous: State) -> Snapshot:
        def ask(questions: Sequence[TimestampQuestion]) -> Mapping[ConnectKey, list[bool]]:
            return self._source.read_timestamps(questions, self._config.deadline_seconds)

        known = {inode: memory.timestamps for inode, memory in previous.namespaces.items()}
        return with_timestamps(snapshot, known, self._clock(), ask)

    def _conclude(self, snapshot: Snapshot, previous: State, *, evidence: bool) -> State:
        """Return the state after the poll; ports in doubt are asked about between their classes and the counting."""
        classified, health = classify_with_memory(snapshot, previous), previous.report.collectors.get(Collector.PROBE)
        if self._config.probe == ProbeChoice.NEVER:
            health = None
        elif evidence:  # without it every port in use is in doubt, which the next poll with evidence settles for less
            classified, health = self._settled(snapshot, previous, classified)
        state = conclude(snapshot, previous, self._clock(), classified)
        return replace(state, report=state.report.with_health(probe=health))

    def _settled(self, snapshot: Snapshot, previous: State, classified: Classified) -> tuple[Classified, Health]:
        return self._probe_compartment.run(
            lambda: self._settle(snapshot, previous, classified),
            lambda reason: (classified, unavailable(reason)),
        )

    def _settle(self, snapshot: Snapshot, previous: State, classified: Classified) -> tuple[Classified, Health]:
        """Return the classes after the kernel was asked about ports in doubt, and how that went."""
        deadline = Deadline(self._config.deadline_seconds, self._clock, self._wanted)
        thresholds = previous.rules.thresholds
        asked = questions_about(snapshot, classified, thresholds, after=self._last_asked)
        try:
            found = {inode: ask(questions, deadline) for inode, questions in asked.items()}
        except KernelError as error:
            return classified, unavailable(str(error))
        answers = {inode: one.by_port for inode, one in found.items() if one.by_port}
        self._last_asked |= {inode: next(reversed(ports)) for inode, ports in answers.items()}
        if answers:
            classified = classify_with_memory(snapshot, previous, answers)
        is_cut = any(one.is_cut for one in found.values())
        return classified, Health(available=True, reason=PROBE_CUT if is_cut else None)
