"""The metrics of incidents, a part of `ephmon.outputs.metrics.catalogue`; absent where none are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ephmon.outputs.metrics.metric import Metric, MetricType, Sample, Subject, single

if TYPE_CHECKING:
    from collections.abc import Iterable


def _failures(subject: Subject) -> Iterable[Sample]:
    if subject.report.incidents is None:
        return ()
    return (Sample((reason,), number) for reason, number in subject.report.incidents.failures.items())


INCIDENT_METRICS: tuple[Metric, ...] = (
    Metric(
        "ephmon_incidents_total",
        MetricType.COUNTER,
        (),
        "incidents",
        "Incidents that were written to incidents.directory since the start. Absent where that is not set.",
        single(lambda subject: subject.report.incidents.written if subject.report.incidents else None),
        expires=False,
    ),
    Metric(
        "ephmon_incident_failures_total",
        MetricType.COUNTER,
        ("reason",),
        "incidents",
        "Attempts to write an incident that failed, by reason.",
        _failures,
        expires=False,
    ),
)
