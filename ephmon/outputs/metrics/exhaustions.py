"""The metrics of failed connect() calls, a part of `ephmon.outputs.metrics.catalogue`.

They are absent while nobody counts, so that silence is not taken for none. They do not expire: they are counters.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

from ephmon.model.collectors import Collector
from ephmon.outputs.metrics.metric import Metric, MetricType, Sample, Subject

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ephmon.model.failures.counters import Exhaustions


def _counted(subject: Subject) -> Exhaustions | None:
    report = subject.report
    return report.exhaustions if report.health(Collector.EXHAUSTIONS).available else None


def _totals(subject: Subject) -> Iterable[Sample]:
    exhaustions = _counted(subject)
    return () if exhaustions is None else (Sample((label,), number) for label, number in exhaustions.totals.items())


def _destinations(subject: Subject) -> Iterable[Sample]:
    exhaustions = _counted(subject)
    if exhaustions is None:
        return
    for destination, count in exhaustions.destinations.items():
        netns, address, port = destination
        yield Sample((netns, str(ip_address(address)), str(port)), count.events)


def _lost(subject: Subject) -> Iterable[Sample]:
    exhaustions = _counted(subject)
    return () if exhaustions is None else (Sample((), exhaustions.lost),)


EXHAUSTION_METRICS: tuple[Metric, ...] = (
    Metric(
        "ephmon_connect_exhaustions_total",
        MetricType.COUNTER,
        ("netns",),
        "calls",
        "connect() calls that failed because no port was left, by network namespace of the caller: own, other, or"
        " unknown where the caller was gone. Absent while they cannot be counted.",
        _totals,
        expires=False,
    ),
    Metric(
        "ephmon_destination_connect_exhaustions_total",
        MetricType.COUNTER,
        ("netns", "destination", "destination_port"),
        "calls",
        "The same by destination: of listed pools from 0 on, of others from their first failure on; at most"
        " exhaustions.top of them.",
        _destinations,
        expires=False,
    ),
    Metric(
        "ephmon_exhaustion_events_lost_total",
        MetricType.COUNTER,
        (),
        "calls",
        "Failed connect() calls that the kernel recorded and that were overwritten before they were read. With the"
        " others they add up to all there were.",
        _lost,
        expires=False,
    ),
)
