"""The metrics of owners: of the pools and namespaces that alerts are about.

A part of `ephmon.outputs.metrics.catalogue`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from ephmon.outputs.metrics.metric import (
    DO_NOT_SUM,
    NAMESPACE,
    POOL,
    Metric,
    MetricsInput,
    MetricType,
    Sample,
    pool_labels,
)

if TYPE_CHECKING:
    from ephmon.model.owners.names import Owner
    from ephmon.model.owners.shares import Owners
    from ephmon.outputs.metrics.metric import Samples

_Answers = Callable[[MetricsInput], "Iterable[tuple[tuple[str, ...], Owners]]"]
"""Takes owners from a report, each with the labels of the pool or the namespace."""


_OF_A_USER = re.compile(r"(user@[0-9]+\.service|user-[0-9]+\.slice)/.*", re.DOTALL)


def _series_name(owner: Owner) -> str:
    """Return what an owner is called in a series: what a user names as they like goes by the user's own service."""
    found = _OF_A_USER.fullmatch(owner.name)
    return found[1] if found else owner.name


def _of_pools(source: MetricsInput) -> Iterable[tuple[tuple[str, ...], Owners]]:
    # Of alerts that fire and are shown, because only so many of these are new in an hour.
    shown = {alert.key.pool for alert in source.report.alerts.firing}
    return ((pool_labels(key), owners) for key, owners in source.report.owners.items() if key in shown)


def _of_blocked(source: MetricsInput) -> Iterable[tuple[tuple[str, ...], Owners]]:
    return (((netns,), owners) for netns, owners in source.report.blocked_owners.items())


def _each_owner(answers: _Answers) -> Samples:
    def samples(source: MetricsInput) -> Iterable[Sample]:
        for labels, owners in answers(source):
            ports: Counter[str] = (
                Counter()
            )  # a unit and a container may have the same name, but a series must be unique
            for share in owners.shares:
                ports[_series_name(share.owner)] += share.ports
            yield from (Sample((*labels, name), number) for name, number in ports.items())

    return samples


def _each(answers: _Answers, number: Callable[[Owners], int]) -> Samples:
    def samples(source: MetricsInput) -> Iterable[Sample]:
        return (Sample(labels, number(owners)) for labels, owners in answers(source))

    return samples


OWNER_METRICS: tuple[Metric, ...] = (
    Metric(
        "ephmon_pool_owner_ports",
        MetricType.GAUGE,
        (*POOL, "owner"),
        "ports",
        "Ports of the pool held by a systemd unit, container, slice or user: the top five at the last full poll."
        " Owners of TIME_WAITs are estimated. Present for at most 16 pools with an active alert. What runs below a"
        " user's service manager or session goes by its name alone."
        f" {DO_NOT_SUM}",
        _each_owner(_of_pools),
    ),
    Metric(
        "ephmon_pool_other_owner_ports",
        MetricType.GAUGE,
        POOL,
        "ports",
        f"Ports held by owners outside the top five. {DO_NOT_SUM}",
        _each(_of_pools, lambda owners: owners.other_ports),
    ),
    Metric(
        "ephmon_pool_unknown_owner_ports",
        MetricType.GAUGE,
        POOL,
        "ports",
        f"Ports whose owner is not known: TIME_WAITs from before ephmon looked for owners. {DO_NOT_SUM}",
        _each(_of_pools, lambda owners: owners.unknown_ports),
    ),
    Metric(
        "ephmon_blocked_port_owner_ports",
        MetricType.GAUGE,
        (*NAMESPACE, "owner"),
        "ports",
        "Blocked ports held by a systemd unit, container, slice or user: the top five at the last full poll. Owners"
        " of TIME_WAITs are estimated. Present while EphmonPortsBlocked is pending or active.",
        _each_owner(_of_blocked),
    ),
    Metric(
        "ephmon_blocked_port_other_owner_ports",
        MetricType.GAUGE,
        NAMESPACE,
        "ports",
        "Blocked ports held by owners outside the top five.",
        _each(_of_blocked, lambda owners: owners.other_ports),
    ),
    Metric(
        "ephmon_blocked_port_unknown_owner_ports",
        MetricType.GAUGE,
        NAMESPACE,
        "ports",
        "Blocked ports whose owner is not known.",
        _each(_of_blocked, lambda owners: owners.unknown_ports),
    ),
)
