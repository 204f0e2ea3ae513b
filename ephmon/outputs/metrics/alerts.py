"""The metrics of the alerts, a part of `ephmon.outputs.metrics.catalogue`.

They do not expire: alerts are kept while polls fail, and a missing series would look like the end of an alert.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from ephmon.model.alerting.state_machine import SUMMARY, AlertName, Phase
from ephmon.model.alerting.thresholds import Severity
from ephmon.outputs.metrics.metric import (
    DO_NOT_SUM,
    POOL,
    Metric,
    MetricsInput,
    MetricType,
    Sample,
    pool_labels,
    single,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ephmon.model.pools.kinds import PoolKey


def _pool_alerts(source: MetricsInput) -> Iterable[Sample]:
    worst: dict[PoolKey, Severity] = {}
    for alert in source.report.alerts.firing:
        pool = alert.key.pool
        # A slow connect() is no want of ports, and has a metric of its own.
        if alert.key.name is AlertName.CONNECT_SLOW:
            continue
        if pool is not None and worst.get(pool) is not Severity.CRITICAL:
            worst[pool] = alert.severity
    return (Sample((*pool_labels(key), severity), 1) for key, severity in worst.items())


def _unlisted(source: MetricsInput) -> float | None:
    if source.report.taken_at is None:
        return None
    summary = source.report.alerts.states.get(SUMMARY)
    return summary.value if summary and summary.phase is Phase.FIRING else 0


def _namespace_alerts(source: MetricsInput) -> Iterable[Sample]:
    return (
        Sample((alert.key.netns, alert.key.name, alert.severity), 1)
        for alert in source.report.alerts.firing
        if alert.key.pool is None
    )


def _active(source: MetricsInput) -> Iterable[Sample]:
    if source.report.taken_at is None:
        return ()  # alerts were never evaluated
    found = Counter(alert.severity for alert in source.report.alerts.firing)
    return (Sample((severity,), found[severity]) for severity in Severity)


ALERT_METRICS: tuple[Metric, ...] = (
    Metric(
        "ephmon_pool_alert_active",
        MetricType.GAUGE,
        (*POOL, "severity"),
        "",
        "1 while an alert of the pool is active, but for EphmonConnectSlow; critical replaces warning. Kept while polls"
        f" fail; at most alerts.max_active samples. {DO_NOT_SUM}",
        _pool_alerts,
        expires=False,
    ),
    Metric(
        "ephmon_namespace_alert_active",
        MetricType.GAUGE,
        ("netns", "alertname", "severity"),
        "",
        "1 while an alert that is not about a single pool is active; critical replaces warning. Kept while polls fail."
        " netns is empty for EphmonTooManyAlerts.",
        _namespace_alerts,
        expires=False,
    ),
    Metric(
        "ephmon_alerts_active",
        MetricType.GAUGE,
        ("severity",),
        "alerts",
        "Active alerts of pools and namespaces together, at most alerts.max_active plus one. Kept while polls fail;"
        " absent before the first successful poll.",
        _active,
        expires=False,
    ),
    Metric(
        "ephmon_alerts_unlisted",
        MetricType.GAUGE,
        (),
        "alerts",
        "Alerts that fire and are not shown one by one, because of alerts.max_active or because too many were new in"
        " the last hour. EphmonTooManyAlerts stands for them.",
        single(_unlisted),
        expires=False,
    ),
)
