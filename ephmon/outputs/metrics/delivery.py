"""The metrics of deliveries, a part of `ephmon.outputs.metrics.catalogue`; absent where nothing is delivered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ephmon.outputs.metrics.metric import Metric, MetricType, Sample, Subject

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from ephmon.model.delivery_status import DeliveryStatus, ReceiverKind
    from ephmon.outputs.metrics.metric import Samples

RECEIVER = ("receiver",)


def _each_kind(values: Callable[[DeliveryStatus], Mapping[ReceiverKind, float]]) -> Samples:
    def samples(subject: Subject) -> Iterable[Sample]:
        if subject.report.delivery is None:
            return ()
        return (Sample((kind,), number) for kind, number in values(subject.report.delivery).items())

    return samples


def _failures(subject: Subject) -> Iterable[Sample]:
    if subject.report.delivery is None:
        return
    for kind, failures in subject.report.delivery.failures.items():
        for reason, number in failures.items():
            yield Sample((kind, reason), number)


DELIVERY_METRICS: tuple[Metric, ...] = (
    Metric(
        "ephmon_notifications_total",
        MetricType.COUNTER,
        RECEIVER,
        "messages",
        "Attempts to send a message with alerts since the start, by kind of receiver, whatever became of them.",
        _each_kind(lambda status: status.attempts),
        expires=False,
    ),
    Metric(
        "ephmon_notifications_failed_total",
        MetricType.COUNTER,
        (*RECEIVER, "reason"),
        "messages",
        "Those of the attempts that failed, by reason.",
        _failures,
        expires=False,
    ),
    Metric(
        "ephmon_notifications_dropped_total",
        MetricType.COUNTER,
        RECEIVER,
        "alerts",
        "Alerts whose end was forgotten before a receiver came back to be told of it.",
        _each_kind(lambda status: status.dropped),
        expires=False,
    ),
    Metric(
        "ephmon_notifications_pending",
        MetricType.GAUGE,
        RECEIVER,
        "alerts",
        "Alerts whose present state, active or over, has not reached the receiver; of the worst one of its kind.",
        _each_kind(lambda status: status.pending),
        expires=False,
    ),
    Metric(
        "ephmon_last_successful_notification_timestamp_seconds",
        MetricType.GAUGE,
        RECEIVER,
        "seconds",
        "When a receiver of the kind last took a message, as seconds since the epoch. Absent before the first one.",
        _each_kind(lambda status: status.succeeded_at),
        expires=False,
    ),
)
