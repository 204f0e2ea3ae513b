"""The metrics of incidents, a part of `ephmon.outputs.metrics.catalogue`; absent if none are written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ephmon.outputs.metrics.metric import Metric, MetricsInput, MetricType, Sample, single

if TYPE_CHECKING:
    from collections.abc import Iterable


def _failures(source: MetricsInput) -> Iterable[Sample]:
    if source.report.incidents is None:
        return ()
    return (Sample((reason,), number) for reason, number in source.report.incidents.failures.items())


INCIDENT_METRICS: tuple[Metric, ...] = (
    Metric(
        "ephmon_incidents_total",
        MetricType.COUNTER,
        (),
        "incidents",
        "Incidents written to incidents.directory since the start. Absent if it is not set.",
        single(lambda source: source.report.incidents.written if source.report.incidents else None),
        expires=False,
    ),
    Metric(
        "ephmon_incident_failures_total",
        MetricType.COUNTER,
        ("reason",),
        "incidents",
        "Failed attempts to write an incident, by reason.",
        _failures,
        expires=False,
    ),
)
