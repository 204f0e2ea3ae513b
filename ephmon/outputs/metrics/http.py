"""The metrics of the HTTP server itself, a part of `ephmon.outputs.metrics.catalogue`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ephmon.outputs.metrics.metric import Metric, MetricsInput, MetricType, Sample, single

if TYPE_CHECKING:
    from collections.abc import Iterable


def _refused(source: MetricsInput) -> Iterable[Sample]:
    return (Sample((reason,), number) for reason, number in source.report.http.refused.items())


HTTP_METRICS: tuple[Metric, ...] = (
    Metric(
        "ephmon_http_requests_refused_total",
        MetricType.COUNTER,
        ("reason",),
        "requests",
        "HTTP requests since the start that were refused for the host that they named or for want of the token.",
        _refused,
        expires=False,
    ),
    Metric(
        "ephmon_tls_certificate_not_after_timestamp_seconds",
        MetricType.GAUGE,
        (),
        "seconds",
        "When the certificate of the HTTP server expires, in seconds since the epoch. Absent without TLS.",
        single(lambda source: source.report.http.certificate_expires_at),
        expires=False,
    ),
)
