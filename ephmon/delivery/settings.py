"""What deliveries need to know: receivers, labels, intervals."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ephmon.facts.snapshot import PortRange


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliverySettings:
    """The part of the configuration that deliveries need, already checked; URLs are secrets."""

    source_ports: PortRange
    labels: Mapping[str, str] = field(default_factory=dict)
    """Added to every alert."""
    alertmanager_urls: tuple[str, ...] = field(default=(), repr=False)
    webhook_url: str = field(default="", repr=False)
    """"" for none."""
    external_url: str = ""
    """Of ephmon's page, for people who receive an alert; "" if they cannot reach it."""

    @property
    def has_receiver(self) -> bool:
        """Whether alerts are sent anywhere."""
        return bool(self.alertmanager_urls or self.webhook_url)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryTimes:
    """The intervals of deliveries, in seconds."""

    deadline_seconds: float = 10.0
    """For one attempt."""
    pause_seconds: float = 5.0
    """Between two successful attempts. That is 12 a minute, fewer than the 16 default source ports, each of which may
    stay in TIME_WAIT for a minute."""
    first_retry_seconds: float = 2.0
    """After the first failure; doubled after each further failure, and randomly cut by up to half."""
    resend_seconds: float = 60.0
    """Between two messages to an Alertmanager, which contain all its alerts; also the longest retry."""
    resolved_seconds: float = 300.0
    """How long an Alertmanager is sent a resolved alert. After a restart it knows no alerts, and announces the end of
    one only if it receives the alert again. After `endsAt` it resolves an alert by itself."""
    repeat_seconds: float = 4 * 3600.0
    """Between two messages to a webhook if nothing changes, as Alertmanager's repeat_interval is by default."""
    longest_retry_seconds: float = 300.0
    """The longest retry of a webhook."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageContext:
    """What messages contain beside the alerts."""

    labels: Mapping[str, str] = field(default_factory=dict)
    """Labels that every alert has by configuration."""
    host: str = ""
    """The name of this host."""
    external_url: str = ""
    """As in `DeliverySettings`."""
