"""The State: all that lasts from one poll to the next. Nothing but `State.report` is ever shown."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ephmon.facts.timestamps import NOTHING_KNOWN, PeerTimestamps
from ephmon.model.namespace_names import NamespaceNames
from ephmon.model.pace import Costs
from ephmon.model.pools.listing import ListingMemory
from ephmon.model.report import initial_report

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ephmon.facts.snapshot import Sysctls
    from ephmon.model.forecast.history import History
    from ephmon.model.pools.classify_ports import Evidence
    from ephmon.model.pools.kinds import PoolKey
    from ephmon.model.pools.port_classes import TcpPorts
    from ephmon.model.report import ReloadStatus, Report
    from ephmon.model.rules import Rules


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceMemory:
    """What the next poll needs to know of the TCP ports of a namespace."""

    sysctls: Sysctls
    ports: TcpPorts
    evidence: Evidence
    listening_ports: frozenset[int] | None = None
    """As in `TcpSockets`, when they were last asked for."""
    timestamps: PeerTimestamps = NOTHING_KNOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What a poll starts from, and what it leaves for the next one."""

    rules: Rules
    """What the user asks for; a reload puts others here."""
    report: Report
    """The latest one: a failed poll keeps its facts, a narrow one most of them."""
    listing: ListingMemory[PoolKey] = field(default=ListingMemory())
    """Which pools are and were listed."""
    listed_namespaces: ListingMemory[str] = field(default=ListingMemory())
    """Which namespaces beside our own are and were listed, by their names."""
    histories: Mapping[PoolKey, History] = field(default_factory=dict)
    """What the full polls saw of the listed pools."""
    namespaces: Mapping[int, NamespaceMemory] = field(default_factory=dict)
    """By inode, because a label may come to mean another namespace."""
    names: NamespaceNames = field(default=NamespaceNames())
    """How the namespaces beside our own are called."""
    costs: Costs = field(default=Costs())
    """What the latest polls cost."""
    search_seconds: float | None = None
    """Processor time that connect() takes for each port that it looks at, at least; None if it was not measured yet."""
    counting_polls: int = 0
    """How many full polls have come since the last one that gathered evidence."""

    def with_report(self, **changes: Any) -> State:
        """Return the state with other values of some fields of its report."""
        return replace(self, report=replace(self.report, **changes))

    def with_rules(self, rules: Rules, reload: ReloadStatus) -> State:
        """Return the state after a reload; the alerts are held against the new thresholds at the next poll."""
        report = replace(
            self.report, interval_seconds=rules.polling.interval_seconds, thresholds=rules.thresholds, reload=reload
        )
        return replace(self, rules=rules, report=report)


def initial_state(rules: Rules, reload: ReloadStatus) -> State:
    """Return the state before the first poll."""
    return State(rules=rules, report=initial_report(rules.polling.interval_seconds, rules.thresholds, reload))
