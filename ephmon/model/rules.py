"""What the user asks of the model: limits and thresholds, already checked.

`ephmon.config.settings` builds them from YAML.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ephmon.model.pools.kinds import PoolKey

Network = IPv4Network | IPv6Network


class Severity(StrEnum):
    """How urgent an alert is."""

    WARNING = "warning"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True, kw_only=True)
class DestinationPattern:
    """Destinations of a network, on one port or (None) on every port."""

    network: Network
    port: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """When a pool starts to fire and when it stops, as utilisation ratios between 0 and 1."""

    utilisation: float
    for_seconds: float
    clear: float
    """Below this ratio it stops; always smaller than `utilisation`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThresholdOverride:
    """Thresholds for the pools that match every condition given; a condition or threshold left out is None."""

    kind: str | None = None
    source: Network | None = None
    destination: Network | None = None
    destination_port: int | None = None
    warning: Threshold | None = None
    critical: Threshold | None = None

    def matches(self, key: PoolKey) -> bool:
        """Tell whether the pool meets every condition given; a pool without a destination meets none on one."""
        return (
            self.kind in (None, key.kind)
            and _lies_in(key.source, self.source)
            and _lies_in(key.destination, self.destination)
            and self.destination_port in (None, key.destination_port)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """The thresholds of all pools; the first override that matches wins."""

    warning: Threshold = field(default=Threshold(utilisation=0.70, for_seconds=10.0, clear=0.65))
    critical: Threshold = field(default=Threshold(utilisation=0.90, for_seconds=0.0, clear=0.85))
    overrides: tuple[ThresholdOverride, ...] = ()

    def of(self, key: PoolKey) -> Mapping[Severity, Threshold]:
        """Return the thresholds of a pool: those of the first override that matches, else the general ones."""
        matching = self.override_of(key)
        override = ThresholdOverride() if matching is None else self.overrides[matching]
        return {
            Severity.CRITICAL: override.critical or self.critical,
            Severity.WARNING: override.warning or self.warning,
        }

    def override_of(self, key: PoolKey) -> int | None:
        """Return the place of the override that holds for a pool, None if none matches it."""
        return next((place for place, override in enumerate(self.overrides) if override.matches(key)), None)

    def severity_at(self, key: PoolKey, utilisation: float) -> Severity | None:
        """Return the most urgent severity whose threshold the utilisation ratio of a pool reaches, `for` ignored."""
        reached = (severity for severity, threshold in self.of(key).items() if utilisation >= threshold.utilisation)
        return next(reached, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListingRules:
    """Which pools are listed: the bound on series and table rows."""

    top: int = 50
    min_in_use: int = 10
    """Ports of the range, blocked ones included, that a pool needs before it is listed."""
    peak_window_seconds: float = 60.0
    ignore_destinations: tuple[DestinationPattern, ...] = ()
    """Left out of lists, worst and alerts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PollingRules:
    """How often polls should come, in seconds, and which shares of one core they may take."""

    interval_seconds: float = 5.0
    urgent_interval_seconds: float = 1.0
    cpu_budget: float = 0.02
    urgent_cpu_budget: float = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Everything that `build_report` is told beside the facts."""

    listing: ListingRules = field(default=ListingRules())
    thresholds: Thresholds = field(default=Thresholds())
    polling: PollingRules = field(default=PollingRules())
    max_active: int = 50
    """Alerts that fire at once; one more says how many found no place."""
    own_ports: frozenset[int] = frozenset()
    """Ports that ephmon sends from, which a wider port range should leave out."""


def _lies_in(address: str | None, network: Network | None) -> bool:
    return network is None or (address is not None and ip_address(address) in network)
