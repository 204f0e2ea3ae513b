"""The catalogue of metrics: one entry defines everything about a metric.

`ephmon.outputs.metrics.exposition` builds the exposition from `METRICS`, and a test compares the table in
docs/metrics.md with it. To add a metric, add its entry. A metric without samples is not exposed: unknown values are
absent, never 0.
"""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

from ephmon import __version__
from ephmon.model.alerting.thresholds import Severity
from ephmon.outputs.metrics.alerts import ALERT_METRICS
from ephmon.outputs.metrics.delivery import DELIVERY_METRICS
from ephmon.outputs.metrics.exhaustions import EXHAUSTION_METRICS
from ephmon.outputs.metrics.http import HTTP_METRICS
from ephmon.outputs.metrics.incidents import INCIDENT_METRICS
from ephmon.outputs.metrics.metric import (
    DO_NOT_SUM,
    KIND,
    NAMESPACE,
    POOL,
    Metric,
    MetricsInput,
    MetricType,
    Sample,
    each_kind,
    each_namespace,
    each_pool,
    each_total,
    single,
)
from ephmon.outputs.metrics.owners import OWNER_METRICS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ephmon.model.pools.kinds import PoolKind
    from ephmon.model.report import NamespaceReport


def _build(source: MetricsInput) -> Iterable[Sample]:
    yield Sample((__version__, platform.python_version(), source.kernel_release), 1)


def _backend_disagreements(source: MetricsInput) -> Iterable[Sample]:
    return (Sample((), source.report.backend_disagreements),)


def _backends(source: MetricsInput) -> Iterable[Sample]:
    return (Sample((protocol, backend), 1) for protocol, backend in source.report.backends.items())


def _collectors(source: MetricsInput) -> Iterable[Sample]:
    return (Sample((collector,), health.available) for collector, health in source.report.collectors.items())


def _thread_restarts(source: MetricsInput) -> Iterable[Sample]:
    return (Sample((thread,), restarts) for thread, restarts in source.report.thread_restarts.items())


def _thresholds(source: MetricsInput) -> Iterable[Sample]:
    thresholds = source.report.thresholds
    yield Sample((Severity.WARNING,), thresholds.warning.utilisation)
    yield Sample((Severity.CRITICAL,), thresholds.critical.utilisation)


def _namespaces(source: MetricsInput) -> Iterable[Sample]:
    if source.report.namespaces_read:
        yield Sample(("read",), source.report.namespaces_read)


def _unlisted(namespace: NamespaceReport) -> Mapping[PoolKind, int]:
    return {kind: number - namespace.listed.get(kind, 0) for kind, number in namespace.pools.items()}


METRICS: tuple[Metric, ...] = (
    Metric(
        "ephmon_port_range_low",
        MetricType.GAUGE,
        NAMESPACE,
        "port number",
        "Lowest port of ip_local_port_range.",
        each_namespace(lambda namespace: namespace.sysctls.port_range.low),
    ),
    Metric(
        "ephmon_port_range_high",
        MetricType.GAUGE,
        NAMESPACE,
        "port number",
        "Highest port of ip_local_port_range, itself part of the range.",
        each_namespace(lambda namespace: namespace.sysctls.port_range.high),
    ),
    Metric(
        "ephmon_reserved_ports",
        MetricType.GAUGE,
        NAMESPACE,
        "ports",
        "Ports of ip_local_reserved_ports inside the port range.",
        each_namespace(lambda namespace: namespace.reserved_ports),
    ),
    Metric(
        "ephmon_usable_ports",
        MetricType.GAUGE,
        NAMESPACE,
        "ports",
        "The port range without its reserved ports: all ports that an allocation can get.",
        each_namespace(lambda namespace: namespace.usable_ports),
    ),
    Metric(
        "ephmon_blocked_ports",
        MetricType.GAUGE,
        NAMESPACE,
        "ports",
        "Usable ports that no tcp_connect allocation can get, because a TCP socket holds them that did not get its"
        " port from connect(). Absent while TCP cannot be read.",
        each_namespace(lambda namespace: namespace.blocked_ports),
    ),
    Metric(
        "ephmon_ambiguous_ports",
        MetricType.GAUGE,
        NAMESPACE,
        "ports",
        "Ports held by a socket of which nobody knows whether connect() or bind() chose the port: the kernel does not"
        " show it, and has not answered yet. Absent while TCP cannot be read.",
        each_namespace(lambda namespace: namespace.ambiguous_ports),
    ),
    Metric(
        "ephmon_pool_in_use_ports",
        MetricType.GAUGE,
        POOL,
        "ports",
        f"Ports of the pool on which its next allocation would conflict, including those in TIME_WAIT. {DO_NOT_SUM}",
        each_pool(lambda listed: listed.pool.in_use),
    ),
    Metric(
        "ephmon_pool_time_wait_ports",
        MetricType.GAUGE,
        POOL,
        "ports",
        f"Ports in use with nothing but TIME_WAITs. {DO_NOT_SUM}",
        each_pool(lambda listed: listed.pool.time_wait),
    ),
    Metric(
        "ephmon_pool_reusable_ports",
        MetricType.GAUGE,
        POOL,
        "ports",
        f"TIME_WAIT ports that the kernel gives to a new connection right now (tcp_tw_reuse). {DO_NOT_SUM}",
        each_pool(lambda listed: listed.pool.reusable),
    ),
    Metric(
        "ephmon_pool_remaining_ports",
        MetricType.GAUGE,
        POOL,
        "ports",
        f"How many more allocations of the pool succeed, best estimate. {DO_NOT_SUM}",
        each_pool(lambda listed: listed.pool.remaining),
    ),
    Metric(
        "ephmon_pool_utilisation_ratio",
        MetricType.GAUGE,
        POOL,
        "ratio",
        "1 - remaining / usable ports, so blocked ports count as used. It is 1 exactly when the next allocation fails."
        f" {DO_NOT_SUM}",
        each_pool(lambda listed: listed.pool.utilisation),
    ),
    Metric(
        "ephmon_pool_peak_utilisation_ratio",
        MetricType.GAUGE,
        POOL,
        "ratio",
        f"Highest utilisation ratio of the polls in the last pools.peak_window. {DO_NOT_SUM}",
        each_pool(lambda listed: listed.peak_utilisation),
    ),
    Metric(
        "ephmon_pool_opens_per_second",
        MetricType.GAUGE,
        POOL,
        "per second",
        "Connections or sockets of the pool opened per second over the last full polls. A lower bound: sockets that"
        f" open and close between two polls are not seen. Absent before the third poll of the pool. {DO_NOT_SUM}",
        each_pool(lambda listed: listed.forecast.opens_per_second if listed.forecast else None),
    ),
    Metric(
        "ephmon_pool_seconds_to_exhaustion",
        MetricType.GAUGE,
        POOL,
        "seconds",
        "Forecast of the last full poll: seconds until the next allocation fails if the load continues, 0 if it"
        f" fails now. Absent if the pool is not heading for exhaustion. {DO_NOT_SUM}",
        each_pool(lambda listed: listed.forecast.seconds_to_exhaustion if listed.forecast else None),
    ),
    Metric(
        "ephmon_pool_connect_search_ports",
        MetricType.GAUGE,
        POOL,
        "ports",
        "How many ports one connect() looks at on average before it finds one. Steps up to half of the range once about"
        f" half of the ports are taken. Of kind tcp_connect only. {DO_NOT_SUM}",
        each_pool(lambda listed: listed.pool.search_ports),
    ),
    Metric(
        "ephmon_pool_connect_search_cpu_ratio",
        MetricType.GAUGE,
        POOL,
        "ratio",
        "Share of a processor core that these searches take at the rate of ephmon_pool_opens_per_second, at least."
        " Absent until a pool searches 1,000 ports and the time of a search was measured, and where it cannot be."
        f" {DO_NOT_SUM}",
        each_pool(lambda listed: listed.search_share),
    ),
    Metric(
        "ephmon_worst_pool_utilisation_ratio",
        MetricType.GAUGE,
        KIND,
        "ratio",
        "Highest utilisation ratio of all pools of a kind, listed or not.",
        each_kind(lambda namespace: namespace.worst),
    ),
    Metric(
        "ephmon_pools",
        MetricType.GAUGE,
        KIND,
        "pools",
        "Pools that exist, by kind.",
        each_kind(lambda namespace: namespace.pools),
    ),
    Metric(
        "ephmon_pools_unlisted",
        MetricType.GAUGE,
        KIND,
        "pools",
        "Pools that exist but have no ephmon_pool_* series, because of pools.top, pools.min_in_use or"
        " pools.ignore_destinations.",
        each_kind(_unlisted),
    ),
    Metric(
        "ephmon_namespaces",
        MetricType.GAUGE,
        ("state",),
        "namespaces",
        "Network namespaces by how they were looked at: `read`. Those beyond the 51 with the fullest pools have no"
        " series of their own.",
        _namespaces,
    ),
    Metric(
        "ephmon_build_info",
        MetricType.GAUGE,
        ("version", "python", "kernel"),
        "",
        "1, labelled with the versions of ephmon, Python and the running kernel.",
        _build,
        expires=False,
    ),
    Metric(
        "ephmon_backend_info",
        MetricType.GAUGE,
        ("protocol", "backend"),
        "",
        "1, labelled with the interface through which the last successful poll read the protocol.",
        _backends,
        expires=False,
    ),
    Metric(
        "ephmon_backend_disagreements_total",
        MetricType.COUNTER,
        (),
        "",
        "How often the backend bpf was ended since the start because inet_diag showed other sockets.",
        _backend_disagreements,
        expires=False,
    ),
    Metric(
        "ephmon_collector_available",
        MetricType.GAUGE,
        ("collector",),
        "",
        "1 if the last successful poll could use the collector, 0 if not.",
        _collectors,
        expires=False,
    ),
    Metric(
        "ephmon_threshold_utilisation_ratio",
        MetricType.GAUGE,
        ("severity",),
        "ratio",
        "Utilisation ratio from which a pool without an override has this severity, for drawing lines.",
        _thresholds,
        expires=False,
    ),
    *ALERT_METRICS,
    *EXHAUSTION_METRICS,
    *OWNER_METRICS,
    *DELIVERY_METRICS,
    *INCIDENT_METRICS,
    *HTTP_METRICS,
    Metric(
        "ephmon_thread_restarts_total",
        MetricType.COUNTER,
        ("thread",),
        "",
        "Threads of ephmon that ended by an error and were started again.",
        _thread_restarts,
        expires=False,
    ),
    Metric(
        "ephmon_poll_success",
        MetricType.GAUGE,
        (),
        "",
        "1 if the last full poll succeeded and is recent, 0 if it failed or is older than three poll intervals."
        " Polls run in the background, not when scraped.",
        single(lambda source: source.report.success and not source.expired),
        expires=False,
    ),
    Metric(
        "ephmon_poll_duration_seconds",
        MetricType.GAUGE,
        (),
        "seconds",
        "How long the last full poll took.",
        single(lambda source: source.report.duration_seconds),
        expires=False,
    ),
    Metric(
        "ephmon_last_successful_poll_timestamp_seconds",
        MetricType.GAUGE,
        (),
        "seconds",
        "When the last successful full poll read the kernel, in seconds since the epoch.",
        single(lambda source: source.report.taken_at),
        expires=False,
    ),
    Metric(
        "ephmon_poll_interval_seconds",
        MetricType.GAUGE,
        (),
        "seconds",
        "The interval between full polls, in force now.",
        single(lambda source: source.report.pace.full),
        expires=False,
    ),
    Metric(
        "ephmon_polls_total",
        MetricType.COUNTER,
        ("scope",),
        "polls",
        "Polls since the start, successful or not: full polls, and narrow polls of some destinations only.",
        each_total(lambda totals: totals.polls),
        expires=False,
    ),
    Metric(
        "ephmon_poll_failures_total",
        MetricType.COUNTER,
        ("reason",),
        "polls",
        "Failed polls since the start, by reason.",
        each_total(lambda totals: totals.failures),
        expires=False,
    ),
    Metric(
        "ephmon_poll_cpu_seconds_total",
        MetricType.COUNTER,
        (),
        "seconds",
        "Processor time spent in polls since the start.",
        single(lambda source: source.report.totals.cpu_seconds),
        expires=False,
    ),
    Metric(
        "ephmon_log_lines_lost_total",
        MetricType.COUNTER,
        ("reason",),
        "lines",
        "Lines of the log that were not written: stream if standard error took no more, rate if there were more than"
        " 60 of a kind in a minute.",
        lambda source: (Sample((reason,), lines) for reason, lines in source.report.log_lines_lost.items()),
        expires=False,
    ),
    Metric(
        "ephmon_config_last_reload_successful",
        MetricType.GAUGE,
        (),
        "",
        "1 if the last load of the configuration succeeded, 0 if it failed and the previous one is in force.",
        single(lambda source: source.report.reload.successful),
        expires=False,
    ),
    Metric(
        "ephmon_config_last_reload_success_timestamp_seconds",
        MetricType.GAUGE,
        (),
        "seconds",
        "When the configuration in force was loaded, in seconds since the epoch.",
        single(lambda source: source.report.reload.succeeded_at),
        expires=False,
    ),
)
