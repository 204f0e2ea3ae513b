"""The metrics of the alerts, a part of `ephmon.outputs.metrics.catalogue`.

They do not expire: alerts are held while polls fail, and whoever reads them there must not take silence for an end.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from ephmon.model.alerting.thresholds import Severity
from ephmon.outputs.metrics.metric import DO_NOT_SUM, POOL, Metric, MetricType, Sample, Subject, pool_labels

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ephmon.model.pools.kinds import PoolKey


def _pool_alerts(subject: Subject) -> Iterable[Sample]:
    worst: dict[PoolKey, Severity] = {}
    for alert in subject.report.alerts.firing:
        pool = alert.key.pool
        if pool is not None and worst.get(pool) is not Severity.CRITICAL:
            worst[pool] = alert.severity
    return (Sample((*pool_labels(key), severity), 1) for key, severity in worst.items())


def _namespace_alerts(subject: Subject) -> Iterable[Sample]:
    return (
        Sample((alert.key.netns, alert.key.name, alert.severity), 1)
        for alert in subject.report.alerts.firing
        if alert.key.pool is None
    )


def _active(subject: Subject) -> Iterable[Sample]:
    if subject.report.taken_at is None:
        return ()  # nothing was judged yet
    found = Counter(alert.severity for alert in subject.report.alerts.firing)
    return (Sample((severity,), found[severity]) for severity in Severity)


ALERT_METRICS: tuple[Metric, ...] = (
    Metric(
        "ephmon_pool_alert_active",
        MetricType.GAUGE,
        (*POOL, "severity"),
        "",
        "1 while an alert of the pool fires; critical replaces warning. Kept while polls fail; at most"
        f" alerts.max_active samples. {DO_NOT_SUM}",
        _pool_alerts,
        expires=False,
    ),
    Metric(
        "ephmon_namespace_alert_active",
        MetricType.GAUGE,
        ("netns", "alertname", "severity"),
        "",
        "1 while an alert that is not of a single pool fires; critical replaces warning. Kept while polls fail."
        " netns is empty for EphmonTooManyAlerts.",
        _namespace_alerts,
        expires=False,
    ),
    Metric(
        "ephmon_alerts_active",
        MetricType.GAUGE,
        ("severity",),
        "alerts",
        "Alerts that fire, those of pools and of namespaces together; at most alerts.max_active and one more."
        " Kept while polls fail; absent before the first poll that succeeds.",
        _active,
        expires=False,
    ),
)
