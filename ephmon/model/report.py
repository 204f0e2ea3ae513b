"""The Report: the one value that every output renders."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

from ephmon.errors import POLL_FAILURES, Reason
from ephmon.model.alerting.blocked import BlockedPorts
from ephmon.model.alerting.state_machine import Alerts
from ephmon.model.collectors import Collector, Health
from ephmon.model.pace import Pace, Poll
from ephmon.model.status import HttpStatus

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ephmon.facts.snapshot import Sysctls
    from ephmon.facts.sockets import Backend, Protocol
    from ephmon.model.alerting.thresholds import Thresholds
    from ephmon.model.failures.counters import Exhaustions
    from ephmon.model.forecast.forecast import Forecast
    from ephmon.model.owners.shares import Owners
    from ephmon.model.pools.kinds import Pool, PoolKey, PoolKind
    from ephmon.model.status import DeliveryStatus, IncidentStatus

Key = TypeVar("Key")
Value = TypeVar("Value")

MOST_NAMESPACES = 50
"""So many namespaces beside our own have series and rows."""
NOT_ASKED_FOR = Health(available=False)
"""What stands for the health of a collector that has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceReport:
    """The port range of one network namespace and what is true of it as a whole. Counts are ports."""

    netns: str
    inode: int
    sysctls: Sysctls
    reserved_ports: int
    """Reserved ports that lie inside the range."""
    usable_ports: int
    blocked_ports: int | None
    """None where TCP could not be read."""
    ambiguous_ports: int | None
    blind_to: tuple[str, ...]
    pools: Mapping[PoolKind, int]
    """How many pools of each kind exist; a kind whose protocol could not be read is absent."""
    listed: Mapping[PoolKind, int]
    """How many of them are listed."""
    worst: Mapping[PoolKind, float]
    """The highest utilisation ratio of the pools of each kind, listed or not; absent where there is none."""
    worst_unlisted: Mapping[PoolKind, float] = field(default_factory=dict)
    """The same of the pools that are not listed, which narrow polls do not look at."""
    overfull_pools: int = 0
    """Pools that seemed to hold more ports than there are, because sockets moved while they were read."""
    backends: Mapping[Protocol, Backend] = field(default_factory=dict)
    """Of the protocols that could be read."""
    missing: Mapping[Protocol, str] = field(default_factory=dict)
    """Protocol -> one sentence why it could not be read."""
    fallbacks: Mapping[Protocol, str] = field(default_factory=dict)
    """Protocol -> one sentence why it is read by procfs."""
    kept_ports: frozenset[int] | None = None
    """Ports that a wider port range should leave out, because somebody listens on them or ephmon sends from them.

    As last asked for; None where it is not known who listens.
    """
    mount: str | None = None
    """Its name in /run/netns, None if it has none there."""
    may_alert: bool = True
    """As in `NamespaceSnapshot`."""

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
    search_share: float | None = None
    """Which share of a core the searches of connect() take, at least, by the last full poll.

    None where nobody knows how fast connections are opened, or how long a search takes.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class PollTotals:
    """Counters since the daemon started; each is there from the beginning, so that its first increase can be seen."""

    polls: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys((poll.scope for poll in Poll), 0))
    """By scope: `full`, `narrow`."""
    failures: Mapping[Reason, int] = field(default_factory=lambda: dict.fromkeys(POLL_FAILURES, 0))
    cpu_seconds: float = 0.0

    def counted(self, poll: Poll = Poll.FULL, *, failure: Reason | None = None) -> PollTotals:
        """Return the totals after one more poll, which failed for the reason `failure` if there is one."""
        after = replace(self, polls={**self.polls, poll.scope: self.polls[poll.scope] + 1})
        return after if failure is None else after.failed(failure)

    def failed(self, reason: Reason) -> PollTotals:
        """Return the totals after one more failure of a poll that is counted already."""
        return replace(self, failures={**self.failures, reason: self.failures[reason] + 1})


@dataclass(frozen=True, slots=True, kw_only=True)
class ReloadStatus:
    """How the last reading of the configuration went."""

    successful: bool
    succeeded_at: float
    """When a configuration was last taken over, seconds since the epoch."""
    error: str | None = None


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
    namespaces: tuple[NamespaceReport, ...]
    """Our own first, and of the others at most `MOST_NAMESPACES`, those with the fullest pools."""
    listed: tuple[ListedPool, ...]
    """Worst utilisation first, then most ports held."""
    totals: PollTotals
    reload: ReloadStatus
    interval_seconds: float
    """What poll.interval asks for."""
    thresholds: Thresholds
    """What pools are held against."""
    alerts: Alerts = field(default=Alerts())
    """Held, not cleared, while polls fail."""
    collectors: Mapping[Collector, Health] = field(default_factory=dict)
    """How each collector is that was asked for."""
    exhaustions: Exhaustions | None = None
    """The failed connect() calls since the start; None if none were ever counted."""
    namespaces_read: int = 0
    """How many namespaces were read, in `namespaces` or not."""
    pools_elsewhere: int = 0
    """How many pools exist in those that are not in `namespaces`."""
    owners: Mapping[PoolKey, Owners] = field(default_factory=dict)
    """Who holds the ports of pools, as the last full poll saw it; of those only that somebody asked about."""
    blocked_owners: Mapping[str, Owners] = field(default_factory=dict)
    """The same of blocked ports, by the label of the namespace."""
    delivery: DeliveryStatus | None = None
    """How deliveries fare; None where nothing is delivered."""
    incidents: IncidentStatus | None = None
    """How the keeping of incidents fares; None where none are kept."""
    http: HttpStatus = field(default=HttpStatus())
    """How the HTTP side fares."""
    log_lines_lost: Mapping[str, int] = field(default_factory=dict)
    """Lines of the log that were not written since the start, by reason: `stream`, `rate`."""
    thread_restarts: Mapping[str, int] = field(default_factory=dict)
    """How many times each thread of the daemon ended and was started again, by name."""
    backend_disagreements: int = 0
    """How often the backend `bpf` was ended since the start because inet_diag showed other sockets."""
    full_poll_cpu_seconds: float | None = None
    """What the latest full poll cost; None before the first."""
    narrow_poll_error: str | None = None
    """Why the latest narrow poll failed, as one sentence; None if it did not."""

    @property
    def backends(self) -> dict[Protocol, Backend]:
        """Protocol -> backend, of the first namespace in which the protocol could be read."""
        return _first_of_each([namespace.backends for namespace in self.namespaces])

    @property
    def missing(self) -> dict[Protocol, str]:
        """Protocol -> one sentence, of the first namespace in which the protocol could not be read."""
        return _first_of_each([namespace.missing for namespace in self.namespaces])

    def namespace(self, netns: str) -> NamespaceReport | None:
        """Return the namespace of a label, None if the last good poll did not read it."""
        return next((namespace for namespace in self.namespaces if namespace.netns == netns), None)

    def health(self, collector: Collector) -> Health:
        """Return how a collector is, `NOT_ASKED_FOR` where nobody asked."""
        return self.collectors.get(collector, NOT_ASKED_FOR)

    def with_health(self, **changes: Health | None) -> Report:
        """Return the report with other health of some collectors, named by their labels; None: not asked for."""
        named = {Collector(name): health for name, health in changes.items()}
        kept = {collector: health for collector, health in self.collectors.items() if collector not in named}
        asked = {collector: health for collector, health in named.items() if health is not None}
        return replace(self, collectors=kept | asked)


def _first_of_each(parts: Sequence[Mapping[Key, Value]]) -> dict[Key, Value]:
    merged: dict[Key, Value] = {}
    for part in parts:
        merged = {**part, **merged}
    return merged


def initial_report(interval_seconds: float, thresholds: Thresholds, reload: ReloadStatus) -> Report:
    """Return the report before the first poll: nothing is known."""
    return Report(
        success=False,
        error=None,
        taken_at=None,
        taken_at_monotonic=None,
        duration_seconds=None,
        pace=Pace(full=interval_seconds),
        namespaces=(),
        listed=(),
        totals=PollTotals(),
        reload=reload,
        interval_seconds=interval_seconds,
        thresholds=thresholds,
    )
