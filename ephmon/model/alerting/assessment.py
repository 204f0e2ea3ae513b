"""The verdict: one poll held against the thresholds at once, without a memory of earlier ones and without `for`.

What is held against which threshold is as in `ephmon.model.alerting.conditions`: each pool against those of the first
override that matches it, the blocked share of a namespace against the general ones. While so many ports are blocked
that an alert of them would go on firing, they stand for the tcp_connect pools whose own share is smaller.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain, islice
from operator import attrgetter
from typing import TYPE_CHECKING

from ephmon.model.pools.kinds import PoolKind
from ephmon.model.rules import Severity

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from ephmon.facts.snapshot import Sysctls
    from ephmon.model.pools.kinds import Pool
    from ephmon.model.pools.survey import NamespaceSurvey
    from ephmon.model.rules import DestinationPattern, Threshold, Thresholds

MOST_JUDGED = 10_000
"""So many pools of a namespace are judged, the fullest; only blocked ports bring more of them near a threshold."""
MOST_NAMED = 5
"""Pools that are named of those that blocked ports stand for."""
CLEARANCE = 0.05
"""How far below a threshold that stands on the command line it would be cleared, as in the configuration."""
_URGENCY = {Severity.CRITICAL: 2, Severity.WARNING: 1, None: 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockedPorts:
    """The ports of a namespace that no connect() can take."""

    netns: str
    blocked: int
    usable: int

    @property
    def share(self) -> float:
        """Of the usable ports, between 0 and 1; with no usable port at all everything is blocked."""
        return self.blocked / self.usable if self.usable else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A pool, or the blocked ports of a namespace, and how urgent that is."""

    subject: Pool | BlockedPorts
    severity: Severity | None
    thresholds: Mapping[Severity, Threshold]
    """What it was held against."""
    sysctls: Sysctls
    """Those of its namespace."""
    stood_for: tuple[Pool, ...] = ()
    """The fullest pools that blocked ports stand for, at most MOST_NAMED."""

    @property
    def ratio(self) -> float:
        """What was held against the thresholds."""
        return self.subject.share if isinstance(self.subject, BlockedPorts) else self.subject.utilisation

    @property
    def reached(self) -> Threshold | None:
        """The threshold that its own ratio reached; None too where the severity is that of a pool it stands for."""
        threshold = self.thresholds[self.severity] if self.severity else None
        return threshold if threshold and self.ratio >= threshold.utilisation else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What one poll says of the host, or of one pool."""

    urgent: tuple[Finding, ...]
    """What reached a threshold, the most urgent first, then the fullest."""
    fullest: Finding | None
    """The fullest pool; None if no pool exists."""
    blocked: Finding | None = None
    """The namespace with the largest blocked share; None where TCP could not be read or one pool was asked for."""

    @property
    def worst(self) -> Finding | None:
        """What to tell first."""
        return self.urgent[0] if self.urgent else self.fullest


def limited(thresholds: Thresholds, *, warning: float | None, critical: float | None) -> Thresholds:
    """Return the thresholds with a warning and a critical utilisation ratio that hold for all; None changes nothing."""
    general, special = thresholds, thresholds.overrides
    if warning is not None:
        general = replace(general, warning=_at(general.warning, warning))
        special = tuple(replace(override, warning=None) for override in special)
    if critical is not None:
        general = replace(general, critical=_at(general.critical, critical))
        special = tuple(replace(override, critical=None) for override in special)
    return replace(general, overrides=special)


def judge_pool(pool: Pool, sysctls: Sysctls, thresholds: Thresholds) -> Verdict:
    """Return the verdict on one pool."""
    finding = _of_pool(pool, sysctls, thresholds)
    return Verdict(urgent=(finding,) if finding.severity else (), fullest=finding)


def judge_host(
    surveys: Iterable[NamespaceSurvey], thresholds: Thresholds, ignored: Sequence[DestinationPattern]
) -> Verdict:
    """Return the verdict on all pools but those that lead to ignored destinations, and on the blocked ports."""
    parts = [_judge_namespace(one, thresholds, ignored) for one in surveys]
    urgent = sorted(
        chain.from_iterable(part.urgent for part in parts),
        key=lambda finding: (-_URGENCY[finding.severity], -finding.ratio),
    )
    return Verdict(
        urgent=tuple(urgent),
        fullest=_highest(part.fullest for part in parts),
        blocked=_highest(part.blocked for part in parts),
    )


def _judge_namespace(one: NamespaceSurvey, thresholds: Thresholds, ignored: Sequence[DestinationPattern]) -> Verdict:
    sysctls, lowest = one.namespace.sysctls, min(_every_ratio(thresholds))
    near = one.worst(ignored, number=MOST_JUDGED, at_least=lowest) or one.worst(ignored, number=1)
    pools = [_of_pool(entry.pools.pool(entry.key), sysctls, thresholds) for entry in near]
    fullest = pools[0] if pools else None
    if one.ports is None:
        return Verdict(urgent=tuple(pool for pool in pools if pool.severity), fullest=fullest)
    ports = BlockedPorts(netns=one.namespace.netns, blocked=one.ports.blocked, usable=one.usable)
    blocked = _of_ports(ports, pools, sysctls, thresholds)
    if blocked.severity:
        pools = [blocked, *(pool for pool in pools if not _is_stood_for(pool, ports, thresholds))]
    return Verdict(urgent=tuple(pool for pool in pools if pool.severity), fullest=fullest, blocked=blocked)


def _of_pool(pool: Pool, sysctls: Sysctls, thresholds: Thresholds) -> Finding:
    return Finding(
        subject=pool,
        severity=thresholds.severity_at(pool.key, pool.utilisation),
        thresholds=thresholds.of(pool.key),
        sysctls=sysctls,
    )


def _of_ports(ports: BlockedPorts, pools: Iterable[Finding], sysctls: Sysctls, thresholds: Thresholds) -> Finding:
    """Return the finding of blocked ports, as urgent as the worst of the pools that they stand for."""
    general = {Severity.CRITICAL: thresholds.critical, Severity.WARNING: thresholds.warning}
    own = next((severity for severity in general if ports.share >= general[severity].utilisation), None)
    stood_for = [pool for pool in pools if _is_stood_for(pool, ports, thresholds)]
    named = (pool.subject for pool in stood_for if not isinstance(pool.subject, BlockedPorts))
    return Finding(
        subject=ports,
        severity=max([own, *(pool.severity for pool in stood_for)], key=_URGENCY.__getitem__),
        thresholds=general,
        sysctls=sysctls,
        stood_for=tuple(islice(named, MOST_NAMED)),
    )


def _is_stood_for(finding: Finding, ports: BlockedPorts, thresholds: Thresholds) -> bool:
    """Tell whether the blocked ports are many, and the larger part of what a pool cannot get."""
    pool = finding.subject
    if isinstance(pool, BlockedPorts) or pool.key.kind != PoolKind.TCP_CONNECT:
        return False
    return ports.share >= thresholds.warning.clear and pool.in_use - pool.reusable < ports.blocked


def _highest(findings: Iterable[Finding | None]) -> Finding | None:
    return max((finding for finding in findings if finding), key=attrgetter("ratio"), default=None)


def _every_ratio(thresholds: Thresholds) -> Iterator[float]:
    special = chain.from_iterable((override.warning, override.critical) for override in thresholds.overrides)
    every = (thresholds.warning, thresholds.critical, *special)
    return (threshold.utilisation for threshold in every if threshold is not None)


def _at(threshold: Threshold, utilisation: float) -> Threshold:
    return replace(threshold, utilisation=utilisation, clear=max(0.0, utilisation - CLEARANCE))
