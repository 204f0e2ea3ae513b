"""The metrics of owners: of the pools and namespaces that alerts are about.

A part of `ephmon.outputs.metrics.catalogue`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from ephmon.outputs.metrics.metric import DO_NOT_SUM, NAMESPACE, POOL, Metric, MetricType, Sample, Subject, pool_labels

if TYPE_CHECKING:
    from ephmon.model.owners.shares import Owners
    from ephmon.outputs.metrics.metric import Samples

_Answers = Callable[[Subject], "Iterable[tuple[tuple[str, ...], Owners]]"]
"""What draws owners from a report, each under the labels of what they hold."""


def _of_pools(subject: Subject) -> Iterable[tuple[tuple[str, ...], Owners]]:
    return ((pool_labels(key), owners) for key, owners in subject.report.owners.items())


def _of_blocked(subject: Subject) -> Iterable[tuple[tuple[str, ...], Owners]]:
    return (((netns,), owners) for netns, owners in subject.report.blocked_owners.items())


def _each_owner(answers: _Answers) -> Samples:
    def samples(subject: Subject) -> Iterable[Sample]:
        for labels, owners in answers(subject):
            ports: Counter[str] = Counter()  # a unit and a container may bear one name, and a series comes once
            for share in owners.shares:
                ports[share.owner.name] += share.ports
            yield from (Sample((*labels, name), number) for name, number in ports.items())

    return samples


def _each(answers: _Answers, number: Callable[[Owners], int]) -> Samples:
    def samples(subject: Subject) -> Iterable[Sample]:
        return (Sample(labels, number(owners)) for labels, owners in answers(subject))

    return samples


OWNER_METRICS: tuple[Metric, ...] = (
    Metric(
        "ephmon_pool_owner_ports",
        MetricType.GAUGE,
        (*POOL, "owner"),
        "ports",
        "Ports of the pool that a systemd unit, container, slice or user holds, the five who hold most, as of the last"
        " full poll; whose the TIME_WAITs are is estimated. Of at most 16 pools with an alert that is pending or fires."
        f" {DO_NOT_SUM}",
        _each_owner(_of_pools),
    ),
    Metric(
        "ephmon_pool_other_owner_ports",
        MetricType.GAUGE,
        POOL,
        "ports",
        f"Ports of those pools that others hold than the owners who are named. {DO_NOT_SUM}",
        _each(_of_pools, lambda owners: owners.other_ports),
    ),
    Metric(
        "ephmon_pool_unknown_owner_ports",
        MetricType.GAUGE,
        POOL,
        "ports",
        f"Ports of those pools of which nothing tells who held them: TIME_WAITs of an earlier time. {DO_NOT_SUM}",
        _each(_of_pools, lambda owners: owners.unknown_ports),
    ),
    Metric(
        "ephmon_blocked_port_owner_ports",
        MetricType.GAUGE,
        (*NAMESPACE, "owner"),
        "ports",
        "Blocked ports that a systemd unit, container, slice or user holds, the five who hold most, as of the last full"
        " poll; whose the TIME_WAITs are is estimated. While EphmonPortsBlocked is pending or fires.",
        _each_owner(_of_blocked),
    ),
    Metric(
        "ephmon_blocked_port_other_owner_ports",
        MetricType.GAUGE,
        NAMESPACE,
        "ports",
        "Blocked ports that others hold than the owners who are named.",
        _each(_of_blocked, lambda owners: owners.other_ports),
    ),
    Metric(
        "ephmon_blocked_port_unknown_owner_ports",
        MetricType.GAUGE,
        NAMESPACE,
        "ports",
        "Blocked ports of which nothing tells who held them.",
        _each(_of_blocked, lambda owners: owners.unknown_ports),
    ),
)
