"""Thresholds: from which utilisation on a pool is worth an alert, and which thresholds hold for which pool.

`ephmon.config.thresholds` reads them from YAML.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from ipaddress import ip_address
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from ipaddress import IPv4Network, IPv6Network

    from ephmon.model.pools.kinds import PoolKey

CLEARANCE = 0.05
"""How far `clear` lies below `utilisation` where nobody says otherwise."""


class Severity(StrEnum):
    """How urgent an alert is."""

    WARNING = "warning"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """When an alert of one severity starts and when it ends, as ratios between 0 and 1."""

    utilisation: float
    for_seconds: float
    clear: float
    """Below this ratio the alert ends; always smaller than `utilisation`."""

    def at(self, utilisation: float) -> Threshold:
        """Return the threshold at another utilisation ratio, and `clear` CLEARANCE below that, but not below 0."""
        # Rounded so that 0.7 gives 0.65 and not 0.6499999999999999.
        return replace(self, utilisation=utilisation, clear=max(0.0, round(utilisation - CLEARANCE, 12)))


@dataclass(frozen=True, slots=True, kw_only=True)
class ThresholdOverride:
    """Thresholds for the pools that match every condition given; a condition or threshold left out is None."""

    kind: str | None = None
    source: IPv4Network | IPv6Network | None = None
    destination: IPv4Network | IPv6Network | None = None
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
    """The thresholds of all pools; the first override that matches wins, as in a firewall."""

    warning: Threshold = field(default=Threshold(utilisation=0.70, for_seconds=10.0, clear=0.65))
    critical: Threshold = field(default=Threshold(utilisation=0.90, for_seconds=0.0, clear=0.85))
    overrides: tuple[ThresholdOverride, ...] = ()

    def general(self) -> Mapping[Severity, Threshold]:
        """Return the thresholds without overrides, the most urgent first; blocked ports are judged by these."""
        return {Severity.CRITICAL: self.critical, Severity.WARNING: self.warning}

    def of(self, key: PoolKey) -> Mapping[Severity, Threshold]:
        """Return the thresholds of a pool, the most urgent first."""
        matching = self.override_of(key)
        override = ThresholdOverride() if matching is None else self.overrides[matching]
        return {
            Severity.CRITICAL: override.critical or self.critical,
            Severity.WARNING: override.warning or self.warning,
        }

    def override_of(self, key: PoolKey) -> int | None:
        """Return the index of the override that holds for a pool, None if none matches it."""
        return next((index for index, override in enumerate(self.overrides) if override.matches(key)), None)

    def severity_at(self, key: PoolKey, utilisation: float) -> Severity | None:
        """Return the most urgent severity whose threshold the utilisation ratio of a pool reaches, `for` ignored."""
        return severity_reached(utilisation, self.of(key))

    def lowest_clear(self) -> float:
        """Return the ratio below which no alert of any pool goes on."""
        return min(threshold.clear for threshold in self._every())

    def ratios(self) -> frozenset[float]:
        """Return the utilisation ratios at which an alert of some pool starts or ends."""
        return frozenset(ratio for one in self._every() for ratio in (one.utilisation, one.clear))

    def _every(self) -> Iterator[Threshold]:
        yield from (self.warning, self.critical)
        for override in self.overrides:
            yield from filter(None, (override.warning, override.critical))


def severity_reached(ratio: float, thresholds: Mapping[Severity, Threshold]) -> Severity | None:
    """Return the first severity whose threshold the ratio reaches, given the most urgent first; `for` is ignored."""
    return next((severity for severity, threshold in thresholds.items() if ratio >= threshold.utilisation), None)


def _lies_in(address: str | None, network: IPv4Network | IPv6Network | None) -> bool:
    return network is None or (address is not None and ip_address(address) in network)
