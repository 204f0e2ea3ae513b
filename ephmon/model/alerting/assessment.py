"""The assessment: one poll judged at once, without a memory of earlier polls and without waiting for `for`.

It judges as `ephmon.model.alerting.conditions` does: a pool by the thresholds of the first override that matches it,
the blocked ports of a namespace by the general ones; and a pool that blocked ports cover is no finding of its own.
The first poll of a daemon whose thresholds all have `for: 0s` finds the same; a test holds that for any snapshot.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING

from ephmon.model.alerting.blocked import BlockedPorts, pools_to_name
from ephmon.model.alerting.conditions import MOST_JUDGED
from ephmon.model.alerting.thresholds import Severity

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ephmon.facts.snapshot import Sysctls
    from ephmon.model.alerting.thresholds import Threshold, Thresholds
    from ephmon.model.pools.kinds import Pool
    from ephmon.model.pools.survey import NamespaceSurvey
    from ephmon.model.rules import DestinationPattern

_URGENCY = {Severity.CRITICAL: 2, Severity.WARNING: 1, None: 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A pool, or the blocked ports of a namespace, and how urgent that is."""

    subject: Pool | BlockedPorts
    severity: Severity | None
    thresholds: Mapping[Severity, Threshold]
    """Those that `ratio` was compared with."""
    sysctls: Sysctls
    """Those of its namespace."""
    covered: tuple[Pool, ...] = ()
    """The fullest pools that blocked ports cover, at most MOST_NAMED."""

    @property
    def ratio(self) -> float:
        """What was compared with the thresholds."""
        return self.subject.share if isinstance(self.subject, BlockedPorts) else self.subject.utilisation

    @property
    def reached(self) -> Threshold | None:
        """The threshold that its own ratio reached; None too where the severity is that of a pool it covers."""
        threshold = self.thresholds[self.severity] if self.severity else None
        return threshold if threshold and self.ratio >= threshold.utilisation else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """What one poll says of the host, or of one pool."""

    urgent: tuple[Finding, ...]
    """What reached a threshold, the most urgent first, then the fullest."""
    fullest: Finding | None
    """The fullest pool; None if no pool exists."""
    blocked: Finding | None = None
    """The namespace with the largest blocked share; None where TCP could not be read or one pool was asked for."""
    is_cut: bool = False
    """Whether more pools than MOST_JUDGED may have reached a threshold, so that some are not in `urgent`."""

    @property
    def worst(self) -> Finding | None:
        """What to say first."""
        return self.urgent[0] if self.urgent else self.fullest


def with_limits(thresholds: Thresholds, *, warning: float | None, critical: float | None) -> Thresholds:
    """Return the thresholds with a warning and a critical utilisation ratio that hold for all; None changes nothing."""
    general, special = thresholds, thresholds.overrides
    if warning is not None:
        general = replace(general, warning=general.warning.at(warning))
        special = tuple(replace(override, warning=None) for override in special)
    if critical is not None:
        general = replace(general, critical=general.critical.at(critical))
        special = tuple(replace(override, critical=None) for override in special)
    return replace(general, overrides=special)


def assess_pool(pool: Pool, sysctls: Sysctls, thresholds: Thresholds) -> Assessment:
    """Return the assessment of one pool."""
    finding = _of_pool(pool, sysctls, thresholds)
    return Assessment(urgent=(finding,) if finding.severity else (), fullest=finding)


def assess_host(
    surveys: Iterable[NamespaceSurvey], thresholds: Thresholds, ignored: Sequence[DestinationPattern]
) -> Assessment:
    """Return the assessment of all pools but those that lead to ignored destinations, and of the blocked ports."""
    parts = [_assess_namespace(one, thresholds, ignored) for one in surveys]
    urgent = sorted(
        chain.from_iterable(part.urgent for part in parts),
        key=lambda finding: (-_URGENCY[finding.severity], -finding.ratio),
    )
    return Assessment(
        urgent=tuple(urgent),
        fullest=_highest(part.fullest for part in parts),
        blocked=_highest(part.blocked for part in parts),
        is_cut=any(part.is_cut for part in parts),
    )


def _assess_namespace(
    one: NamespaceSurvey, thresholds: Thresholds, ignored: Sequence[DestinationPattern]
) -> Assessment:
    sysctls = one.namespace.sysctls
    near = one.worst(ignored, number=MOST_JUDGED, at_least=thresholds.lowest_clear())
    is_cut = len(near) == MOST_JUDGED
    pools = [entry.pools.pool(entry.key) for entry in near or one.worst(ignored, number=1)]
    findings = [_of_pool(pool, sysctls, thresholds) for pool in pools]
    fullest = findings[0] if findings else None
    ports = BlockedPorts.of_namespace(one)
    blocked = None if ports is None else _of_blocked_ports(ports, pools, sysctls, thresholds)
    if ports and blocked and blocked.severity:
        alone = (finding for finding, pool in zip(findings, pools, strict=True) if not ports.covers(pool, thresholds))
        findings = [blocked, *alone]
    urgent = tuple(finding for finding in findings if finding.severity)
    return Assessment(urgent=urgent, fullest=fullest, blocked=blocked, is_cut=is_cut)


def _of_pool(pool: Pool, sysctls: Sysctls, thresholds: Thresholds) -> Finding:
    return Finding(
        subject=pool,
        severity=thresholds.severity_at(pool.key, pool.utilisation),
        thresholds=thresholds.of(pool.key),
        sysctls=sysctls,
    )


def _of_blocked_ports(ports: BlockedPorts, pools: Iterable[Pool], sysctls: Sysctls, thresholds: Thresholds) -> Finding:
    """Return the finding of blocked ports, as urgent as the worst of the pools that they cover."""
    covered = [pool for pool in pools if ports.covers(pool, thresholds)]
    severities = [thresholds.severity_at(pool.key, pool.utilisation) for pool in covered]
    return Finding(
        subject=ports,
        severity=max([ports.severity(thresholds), *severities], key=_URGENCY.__getitem__),
        thresholds=thresholds.general(),
        sysctls=sysctls,
        covered=pools_to_name(covered),
    )


def _highest(findings: Iterable[Finding | None]) -> Finding | None:
    return max((finding for finding in findings if finding), key=attrgetter("ratio"), default=None)
