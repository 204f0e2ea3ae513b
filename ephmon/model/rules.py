"""What the user configures of the model, already checked.

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
    """A pool is listed only if it holds so many ports of the range, blocked ones included."""
    peak_window_seconds: float = 60.0
    ignore_destinations: tuple[DestinationPattern, ...] = ()
    """Pools toward these are not listed, not counted as the worst, and raise no alert."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceRules:
    """Which network namespaces are left out."""

    ignore: tuple[str, ...] = ()
    """Patterns of names, as a shell has them: `pod/kube-system/*`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PollingRules:
    """How often to poll, in seconds, and which shares of one core polls may use."""

    interval_seconds: float = 5.0
    urgent_interval_seconds: float = 1.0
    cpu_budget: float = 0.02
    urgent_cpu_budget: float = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Everything that a poll is judged by, beside what it read."""

    listing: ListingRules = field(default=ListingRules())
    namespaces: NamespaceRules = field(default=NamespaceRules())
    thresholds: Thresholds = field(default=Thresholds())
    polling: PollingRules = field(default=PollingRules())
    max_active: int = 50
    """So many alerts are announced; one more says how many others fire."""
    connect_search_share: float = 0.05
    """EphmonConnectSlow fires where the searches of connect() take this share of a core."""
    own_ports: frozenset[int] = frozenset()
    """The ports that ephmon sends from: advice on a wider port range leaves them out."""
