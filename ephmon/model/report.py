"""The Report: the one value that every output renders, and that the next poll starts from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ephmon.model.alerting.blocked import BlockedPorts
from ephmon.model.alerting.state_machine import Alerts
from ephmon.model.pace import Costs, Pace, Poll
from ephmon.model.pools.listing import Listing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ephmon.facts.snapshot import Sysctls
    from ephmon.model.failures.counters import Exhaustions
    from ephmon.model.forecast.forecast import Forecast, History
    from ephmon.model.owners.shares import Owners
    from ephmon.model.pools.evidence import Evidence
    from ephmon.model.pools.kinds import Pool, PoolKey, PoolKind
    from ephmon.model.pools.port_classes import TcpPorts
    from ephmon.model.rules import Rules


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceReport:
    """The port range of one network namespace and what is true of it as a whole. Counts are ports."""

    netns: str
    inode: int
    port_range_low: int
    port_range_high: int
    reserved_ports: int
    """Reserved ports that lie inside the range."""
    usable_ports: int
    blocked_ports: int | None
    """None where TCP could not be read."""
    ambiguous_ports: int | None
    blind_to: tuple[str, ...]
    tcp_tw_reuse: int
    pools: Mapping[PoolKind, int]
    """How many pools of each kind exist; a kind whose protocol could not be read is absent."""
    listed: Mapping[PoolKind, int]
    """How many of them are listed."""
    worst: Mapping[PoolKind, float]
    """The highest utilisation ratio of the pools of each kind, listed or not; absent where there is none."""
    worst_unlisted: Mapping[PoolKind, float] = field(default_factory=dict)
    """The same of the pools that are not listed, which narrow polls do not look at."""
    torn_pools: int = 0
    """Pools that seemed to hold more ports than there are, because sockets moved while they were read."""

    @property
    def blocked(self) -> BlockedPorts | None:
        """The blocked ports, None where TCP could not be read."""
        if self.blocked_ports is None:
            return None
        return BlockedPorts(netns=self.netns, blocked=self.blocked_ports, usable=self.usable_ports)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedPool:
    """A pool that is listed, with what is remembered of it."""

    pool: Pool
    peak_utilisation: float
    """The highest utilisation ratio seen in the last `peak_window`."""
    forecast: Forecast | None = None
    """Of the last full poll; None after too few of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PollTotals:
    """Counters since the daemon started."""

    polls: Mapping[str, int] = field(default_factory=dict)
    """By scope: `full`, `narrow`."""
    failures: Mapping[str, int] = field(default_factory=dict)
    """By reason, a closed set of words."""
    cpu_seconds: float = 0.0

    def counted(self, poll: Poll = Poll.FULL, *, failure: str | None = None) -> PollTotals:
        """Return the totals after one more poll, which failed for the reason `failure` if there is one."""
        failures = dict(self.failures)
        if failure is not None:
            failures[failure] = failures.get(failure, 0) + 1
        polls = {**self.polls, poll.scope: self.polls.get(poll.scope, 0) + 1}
        return replace(self, polls=polls, failures=failures)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReloadStatus:
    """How the last reading of the configuration went."""

    successful: bool
    succeeded_at: float
    """When a configuration was last taken over, seconds since the epoch."""
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Remembered:
    """What the next poll needs to know of the ports of a namespace."""

    sysctls: Sysctls
    ports: TcpPorts
    evidence: Evidence
    listening_ports: frozenset[int] | None = None
    """As in `TcpSockets`, when they were last asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What ephmon knows after a poll, successful or not.

    After a failed poll the facts are those of the last good one, `success` is False and `error` says why.
    """

    success: bool
    error: str | None
    """One sentence; None after a good poll."""
    taken_at: float | None
    """When the facts were read, seconds since the epoch; None before the first good poll."""
    taken_at_monotonic: float | None
    """The same moment on the monotonic clock: what expiry counts from."""
    duration_seconds: float | None
    """How long the last full poll took, good or not."""
    pace: Pace
    """How often polls come from now on."""
    backends: Mapping[str, str]
    """Protocol -> backend, for the protocols that could be read."""
    missing: Mapping[str, str]
    """Protocol -> one sentence why it could not be read."""
    fallbacks: Mapping[str, str] = field(default_factory=dict)
    """Protocol -> one sentence why it is read by procfs."""
    namespaces: tuple[NamespaceReport, ...]
    listed: tuple[ListedPool, ...]
    """Worst utilisation first, then most ports held."""
    totals: PollTotals
    reload: ReloadStatus
    rules: Rules
    listing: Listing = field(default=Listing())
    """What the next report needs to know of the choice of listed pools."""
    histories: Mapping[PoolKey, History] = field(default_factory=dict)
    """What the full polls saw of the listed pools."""
    remembered: Mapping[int, Remembered] = field(default_factory=dict)
    """What is remembered of the ports of each namespace, by its inode."""
    alerts: Alerts = field(default=Alerts())
    """Held, not cleared, while polls fail."""
    costs: Costs = field(default=Costs())
    """What the latest polls cost."""
    counting_polls: int = 0
    """How many full polls have come since the last one that gathered evidence."""
    exhaustions: Exhaustions | None = None
    """The failed connect() calls since the start; None if none were ever counted."""
    exhaustions_available: bool | None = None
    """Whether they are being counted; None if that was not asked for."""
    exhaustions_error: str | None = None
    """Why they are not, as one sentence."""
    owners: Mapping[PoolKey, Owners] = field(default_factory=dict)
    """Who holds the ports of pools, as the last full poll saw it; of those only that somebody asked about."""
    blocked_owners: Mapping[str, Owners] = field(default_factory=dict)
    """The same of blocked ports, by the label of the namespace."""
    owners_available: bool | None = None
    """Whether it can be told who holds ports; None before the first poll."""
    owners_error: str | None = None
    """Why it could not, or not of all, as one sentence; None while nobody asks."""
    processes_available: bool | None = None
    """Whether the latest search for processes could look at all of them; None before the first."""
    processes_error: str | None = None
    """Why it could not, as one sentence."""
    probe_available: bool | None = None
    """Whether ports in doubt could be probed; None if that was not asked for."""
    probe_error: str | None = None
    """Why they could not, or not all, be probed, as one sentence."""


def initial_report(rules: Rules, reload: ReloadStatus) -> Report:
    """Return the report before the first poll: nothing is known."""
    return Report(
        success=False,
        error=None,
        taken_at=None,
        taken_at_monotonic=None,
        duration_seconds=None,
        pace=Pace(full=rules.polling.interval_seconds),
        backends={},
        missing={},
        namespaces=(),
        listed=(),
        totals=PollTotals(),
        reload=reload,
        rules=rules,
    )
