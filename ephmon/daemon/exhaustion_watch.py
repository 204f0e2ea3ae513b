"""Collects failed connect() calls for the daemon: opens the reader, reads it, and opens it again after a failure."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from ephmon.config.settings import Switch
from ephmon.errors import KernelError
from ephmon.facts.failed_calls import Destination
from ephmon.facts.namespaces import OWN_NETNS
from ephmon.kernel.trace.reader import ExhaustionReader
from ephmon.model.collectors import Health
from ephmon.model.failures.counters import Exhaustions, add_batch
from ephmon.model.pools.tcp_connect import destination_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ephmon.config.settings import ExhaustionsConfig
    from ephmon.facts.failed_calls import Destination
    from ephmon.model.report import Report

RETRY_SECONDS = 60.0
"""Seconds from a failure to the next attempt to open the reader: an administrator may have granted the permission."""


class ExhaustionWatch:
    """Adds failed connect() calls to the report, if the configuration asks for that and the kernel allows it."""

    def __init__(self, proc: Path) -> None:
        self._proc = proc
        self._config: ExhaustionsConfig | None = None
        self._reader: ExhaustionReader | None = None
        self._retry_at = -math.inf
        self._error: str | None = None

    @property
    def is_on(self) -> bool:
        """Whether failed calls are counted at the moment."""
        return self._reader is not None

    def configure(self, config: ExhaustionsConfig) -> str | None:
        """Take over a configuration; the counters keep their values. Returns the same as `close`."""
        self._config = config
        self._retry_at = -math.inf
        return self.close() if config.enabled == Switch.OFF else None

    def collect(self, report: Report, now: float) -> tuple[Report, bool]:
        """Return the report with the calls that failed since the last time, and whether one was in our own namespace.

        `now` are monotonic seconds. A failure to read is in the health of the collector.
        """
        config = self._config
        if config is None or config.enabled == Switch.OFF:
            return report.with_health(exhaustions=None), False
        if self._reader is None and now >= self._retry_at:
            self._open(now)
        if self._reader is None:
            return self._unavailable(report), False
        try:
            batch = self._reader.take()
        except KernelError as error:
            self._fail(error, now)
            return self._unavailable(report), False
        except Exception:
            self.close()  # opened anew when it is tried again, because nobody knows what a defect has left behind
            raise
        exhaustions = add_batch(
            report.exhaustions or Exhaustions(), batch, listed=tuple(_listed(report)), top=config.top, now=now
        )
        failed_here = any(netns.label == OWN_NETNS for netns in batch.totals)
        return replace(report, exhaustions=exhaustions).with_health(exhaustions=Health(available=True)), failed_here

    def _unavailable(self, report: Report) -> Report:
        return report.with_health(exhaustions=Health(available=False, reason=self._error))

    def close(self) -> str | None:
        """Stop counting and remove the tracing instance; return why that failed, as one sentence, or None."""
        reader, self._reader = self._reader, None
        try:
            if reader is not None:
                reader.close()
        except KernelError as error:
            return str(error)
        return None

    def _open(self, now: float) -> None:
        try:
            self._reader = ExhaustionReader.open(self._proc)
        except KernelError as error:
            self._fail(error, now)

    def _fail(self, error: KernelError, now: float) -> None:
        self._retry_at = now + RETRY_SECONDS
        self._error = " ".join(filter(None, [str(error), self.close()]))


def _listed(report: Report) -> Iterator[Destination]:
    """Yield the destinations of the listed pools; their counters are exported from 0 on."""
    for listed in report.listed:
        destination = destination_of(listed.pool.key)
        if destination is not None:
            yield destination
