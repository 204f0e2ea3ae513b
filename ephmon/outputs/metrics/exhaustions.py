"""The metrics of failed connect() calls, a part of `ephmon.outputs.metrics.catalogue`.

They are absent while failed calls are not counted, because 0 would mean that none failed. As counters they do not
expire.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ephmon.facts.addresses import address_text
from ephmon.model.collectors import Collector
from ephmon.outputs.metrics.metric import Metric, MetricsInput, MetricType, Sample

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ephmon.model.failures.counters import Exhaustions


def _counted(source: MetricsInput) -> Exhaustions | None:
    report = source.report
    return report.exhaustions if report.health(Collector.EXHAUSTIONS).available else None


def _totals(source: MetricsInput) -> Iterable[Sample]:
    exhaustions = _counted(source)
    return () if exhaustions is None else (Sample((label,), number) for label, number in exhaustions.totals.items())


def _destinations(source: MetricsInput) -> Iterable[Sample]:
    exhaustions = _counted(source)
    if exhaustions is None:
        return
    for destination, count in exhaustions.destinations.items():
        netns, address, port = destination
        yield Sample((netns, address_text(address), str(port)), count.events)
    for netns, events in exhaustions.others.items():
        yield Sample((netns, "other", ""), events)


def _lost(source: MetricsInput) -> Iterable[Sample]:
    exhaustions = _counted(source)
    return () if exhaustions is None else (Sample((), exhaustions.lost),)


EXHAUSTION_METRICS: tuple[Metric, ...] = (
    Metric(
        "ephmon_connect_exhaustions_total",
        MetricType.COUNTER,
        ("netns",),
        "calls",
        "connect() calls that failed because no port was left, by network namespace of the caller: own, other, or"
        " unknown if the caller had ended. Absent while they cannot be counted.",
        _totals,
        expires=False,
    ),
    Metric(
        "ephmon_destination_connect_exhaustions_total",
        MetricType.COUNTER,
        ("netns", "destination", "destination_port"),
        "calls",
        "Failed connect() calls by destination, at most exhaustions.top of them and three times as many new ones in an"
        " hour for each netns. Listed pools start at 0, other destinations appear with their first failure; all the"
        " rest is the destination other.",
        _destinations,
        expires=False,
    ),
    Metric(
        "ephmon_exhaustion_events_lost_total",
        MetricType.COUNTER,
        (),
        "calls",
        "Failed connect() calls that the kernel recorded but overwrote before ephmon read them. No other counter"
        " includes them.",
        _lost,
        expires=False,
    ),
)
