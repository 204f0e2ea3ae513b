"""The exposition of `/metrics`: a Report goes in, bytes in Prometheus text or OpenMetrics come out.

`ephmon.outputs.metrics.catalogue` lists the metrics.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import GCCollector, PlatformCollector, ProcessCollector
from prometheus_client import exposition as prometheus_text
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.openmetrics import exposition as openmetrics_text
from prometheus_client.registry import Collector, CollectorRegistry

from ephmon.facts.foreign_text import printable
from ephmon.outputs.metrics.catalogue import METRICS
from ephmon.outputs.metrics.metric import Metric, MetricsInput, MetricType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from prometheus_client.metrics_core import Metric as Family

    from ephmon.model.report import Report

LABEL_VALUE_LENGTH = 128
"""In characters. Prometheus fails a whole scrape over one value longer than its `label_value_length_limit`."""

_OPENMETRICS_UNITS = ("seconds", "ratio")
"""The base units in the catalogue; counted things such as ports are not units in OpenMetrics."""

_FAMILY_OF: dict[MetricType, type[GaugeMetricFamily | CounterMetricFamily]] = {
    MetricType.GAUGE: GaugeMetricFamily,
    MetricType.COUNTER: CounterMetricFamily,
}

# The library leaves this function untyped.
_generate_openmetrics: Callable[[Collector], bytes] = openmetrics_text.generate_latest


class _Families(Collector):
    """Finished families in the form that the library needs."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = tuple(families)

    def collect(self) -> Sequence[Family]:
        return self._families


def process_registry() -> CollectorRegistry:
    """Return the collector of `process_*` and `python_*`, which reads this process when it is rendered."""
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


def render(
    report: Report,
    *,
    kernel_release: str,
    process_registry: Collector | None,
    openmetrics: bool,
    expired: bool = False,
) -> bytes:
    """Return the body of a scrape in Prometheus text 0.0.4 or OpenMetrics 1.0.

    Args:
        report: What is rendered.
        kernel_release: As `uname -r` prints it.
        process_registry: The collector of `process_*` and `python_*`; without it there are none of these.
        openmetrics: Which of the formats.
        expired: Whether the facts of the report are too old: then there are only metrics about ephmon, with
            `ephmon_poll_success` 0.
    """
    generate = _generate_openmetrics if openmetrics else prometheus_text.generate_latest
    process = () if process_registry is None else tuple(process_registry.collect())
    return generate(_Families((*_families(MetricsInput(report, kernel_release, expired)), *process)))


def _families(source: MetricsInput) -> Iterable[Family]:
    families = (_family(metric, source) for metric in METRICS if not (metric.expires and source.expired))
    return (family for family in families if family.samples)


def _family(metric: Metric, source: MetricsInput) -> Family:
    family = _FAMILY_OF[metric.type](metric.name, metric.help, labels=metric.labels, unit=_openmetrics_unit(metric))
    for labels, value in metric.samples(source):
        family.add_metric([printable(label)[:LABEL_VALUE_LENGTH] for label in labels], float(value))
    return family


def _openmetrics_unit(metric: Metric) -> str:
    """Return the unit if the name ends in it, as OpenMetrics requires; otherwise the library would append it."""
    ends_in_it = metric.name.removesuffix("_total").endswith(f"_{metric.unit}")
    return metric.unit if metric.unit in _OPENMETRICS_UNITS and ends_in_it else ""
