"""The type of a metric: its description, and how its samples are taken from a Report.

`ephmon.outputs.metrics.catalogue` lists the metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ephmon.model.pools.kinds import PoolKey, PoolKind
    from ephmon.model.report import ListedPool, NamespaceReport, PollTotals, Report

NAMESPACE = ("netns",)
KIND = ("netns", "kind")
POOL = ("netns", "kind", "source", "destination", "destination_port")
"""Destination and port are empty if a pool has none. A source port is never a label, or series would be countless."""
DO_NOT_SUM = "Do not sum over kind or destination: one port may be in many pools."
"""The end of the HELP of every `ephmon_pool_*` metric."""


class MetricType(StrEnum):
    """The types of metric in use, by their names in both exposition formats."""

    GAUGE = "gauge"
    COUNTER = "counter"


class MetricsInput(NamedTuple):
    """What samples are taken from."""

    report: Report
    kernel_release: str
    """As `uname -r` prints it."""
    expired: bool
    """Whether the facts of the report are too old to be shown."""


class Sample(NamedTuple):
    """One value with the values of the metric's labels, in the order of the labels."""

    labels: tuple[str, ...]
    value: float


Word = TypeVar("Word", bound=str)
Samples = Callable[[MetricsInput], Iterable[Sample]]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric and the function that takes its samples."""

    name: str
    type: MetricType
    labels: tuple[str, ...]
    unit: str
    """What is counted, in the plural; empty if the value is 0 or 1."""
    help: str
    samples: Samples
    expires: bool = True
    """Whether the samples are facts about the host, which are dropped when they are too old."""


def single(value: Callable[[MetricsInput], float | None]) -> Samples:
    """Return a function that takes one sample without labels, or none if the value is None."""

    def samples(source: MetricsInput) -> Iterable[Sample]:
        number = value(source)
        return () if number is None else (Sample((), number),)

    return samples


def each_namespace(value: Callable[[NamespaceReport], float | None]) -> Samples:
    """Return a function that takes one sample for each namespace, labelled `NAMESPACE`, unless the value is None."""

    def samples(source: MetricsInput) -> Iterable[Sample]:
        for namespace in source.report.namespaces:
            number = value(namespace)
            if number is not None:
                yield Sample((namespace.netns,), number)

    return samples


def each_kind(values: Callable[[NamespaceReport], Mapping[PoolKind, float]]) -> Samples:
    """Return a function that takes one sample for each namespace and kind of pool, labelled `KIND`."""

    def samples(source: MetricsInput) -> Iterable[Sample]:
        for namespace in source.report.namespaces:
            for kind, number in values(namespace).items():
                yield Sample((namespace.netns, kind), number)

    return samples


def each_pool(value: Callable[[ListedPool], float | None]) -> Samples:
    """Return a function that takes one sample for each listed pool, labelled `POOL`, unless the value is None."""

    def samples(source: MetricsInput) -> Iterable[Sample]:
        for listed in source.report.listed:
            number = value(listed)
            if number is not None:
                yield Sample(pool_labels(listed.pool.key), number)

    return samples


def pool_labels(key: PoolKey) -> tuple[str, ...]:
    """Return the values of the labels `POOL`."""
    netns, kind, source, destination, port = key
    return netns, kind, source, destination or "", "" if port is None else str(port)


def each_total(totals: Callable[[PollTotals], Mapping[Word, int]]) -> Samples:
    """Return a function that takes one sample for each word of a mapping of counters."""

    def samples(source: MetricsInput) -> Iterable[Sample]:
        return (Sample((word,), number) for word, number in totals(source.report.totals).items())

    return samples
