"""Collectors: the parts of a poll that can each be missing alone, and how each one is."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Collector(StrEnum):
    """The parts, by the values of the label `collector` of `ephmon_collector_available`."""

    TCP = "tcp"
    UDP = "udp"
    EXHAUSTIONS = "exhaustions"
    """Failed connect() calls."""
    OWNERS = "owners"
    """Who holds ports: the unit, container or user."""
    PROCESSES = "processes"
    """Which processes hold ports."""
    BPF = "bpf"
    """The kernel's bind table, which has TCP exactly."""
    PROBE = "probe"
    """The kernel's answers about ports in doubt."""
    INCIDENTS = "incidents"
    """Incident files."""
    DELIVERY = "delivery"
    """Alerts that are sent to receivers; whether one takes them is counted elsewhere."""


class Health(NamedTuple):
    """How a collector is. One that was not asked for has no health."""

    available: bool
    reason: str | None = None
    """Why it is not available, or what its answers lack, as one sentence."""


def unavailable(reason: str) -> Health:
    """Return the health of a collector that is not available, and why, as one sentence."""
    return Health(available=False, reason=reason)
