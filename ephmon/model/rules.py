"""What the user asks of the model: limits and thresholds, already checked.

`ephmon.config.settings` builds them from YAML.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network

from ephmon.model.alerting.thresholds import Thresholds

Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True, kw_only=True)
class DestinationPattern:
    """Destinations of a network, on one port or (None) on every port."""

    network: Network
    port: int | None = None


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
