"""The metrics of deliveries, a part of `ephmon.outputs.metrics.catalogue`; absent if nothing is delivered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ephmon.outputs.metrics.metric import Metric, MetricsInput, MetricType, Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from ephmon.model.status import DeliveryStatus, ReceiverKind
    from ephmon.outputs.metrics.metric import Samples

RECEIVER = ("receiver",)


def _each_kind(values: Callable[[DeliveryStatus], Mapping[ReceiverKind, float]]) -> Samples:
    def samples(source: MetricsInput) -> Iterable[Sample]:
        if source.report.delivery is None:
            return ()
        return (Sample((kind,), number) for kind, number in values(source.report.delivery).items())

    return samples


def _failures(source: MetricsInput) -> Iterable[Sample]:
    if source.report.delivery is None:
        return
    for kind, failures in source.report.delivery.failures.items():
        for reason, number in failures.items():
            yield Sample((kind, reason), number)


DELIVERY_METRICS: tuple[Metric, ...] = (
    Metric(
        "ephmon_notifications_total",
        MetricType.COUNTER,
        RECEIVER,
        "messages",
        "Attempts to send a message with alerts since the start, successful or not, by kind of receiver.",
        _each_kind(lambda status: status.attempts),
        expires=False,
    ),
    Metric(
        "ephmon_notifications_failed_total",
        MetricType.COUNTER,
        (*RECEIVER, "reason"),
        "messages",
        "Attempts to send a message that failed, by reason.",
        _failures,
        expires=False,
    ),
    Metric(
        "ephmon_notifications_dropped_total",
        MetricType.COUNTER,
        RECEIVER,
        "alerts",
        "Alerts whose end a receiver never learned, because it was away for too long.",
        _each_kind(lambda status: status.dropped),
        expires=False,
    ),
    Metric(
        "ephmon_notifications_pending",
        MetricType.GAUGE,
        RECEIVER,
        "alerts",
        "Alerts whose present state, active or over, has not reached the receiver; the highest number of all"
        " receivers of the kind.",
        _each_kind(lambda status: status.pending),
        expires=False,
    ),
    Metric(
        "ephmon_last_successful_notification_timestamp_seconds",
        MetricType.GAUGE,
        RECEIVER,
        "seconds",
        "When a receiver of the kind last accepted a message, in seconds since the epoch. Absent before the first"
        " message.",
        _each_kind(lambda status: status.succeeded_at),
        expires=False,
    ),
)
