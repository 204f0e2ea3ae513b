"""The daemon's end of the collector of failed connect() calls: opens it, asks it, opens it again after a failure."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from ephmon.config.settings import Switch
from ephmon.errors import KernelError
from ephmon.facts.failed_calls import Destination
from ephmon.facts.namespaces import OWN_NETNS
from ephmon.model.collectors import Health
from ephmon.model.failures.counters import Exhaustions, counted
from ephmon.model.pools.connect import destination_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ephmon.config.settings import ExhaustionsConfig
    from ephmon.facts.failed_calls import Destination
    from ephmon.kernel.trace.reader import ExhaustionReader
    from ephmon.model.report import Report

RETRY_SECONDS = 60.0
"""After a failure it is opened again this late: somebody may have granted what it takes."""


class ExhaustionWatch:
    """Counts failed connect() calls into the reports, while the configuration wants it and the kernel allows it."""

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

    def go_by(self, config: ExhaustionsConfig) -> str | None:
        """Count as the configuration says from now on; what was counted so far stays. Returns what `close` does."""
        self._config = config
        self._retry_at = -math.inf
        return self.close() if config.enabled == Switch.OFF else None

    def updated(self, report: Report, now: float) -> tuple[Report, bool]:
        """Return the report with what happened since the last time, and whether a call in our namespace failed.

        `now` are monotonic seconds. What goes wrong stands in the report.
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
        exhaustions = counted(
            report.exhaustions or Exhaustions(), batch, listed=tuple(_listed(report)), top=config.top, now=now
        )
        failed_here = any(netns.label == OWN_NETNS for netns in batch.totals)
        return replace(report, exhaustions=exhaustions).with_health(exhaustions=Health(available=True)), failed_here

    def _unavailable(self, report: Report) -> Report:
        return report.with_health(exhaustions=Health(available=False, reason=self._error))

    def give_up(self) -> None:
        """Count no more, until a reload."""
        self._config = None
        self.close()

    def close(self) -> str | None:
        """Stop counting, and remove what was set up for it; return what kept it from that, as one sentence."""
        reader, self._reader = self._reader, None
        try:
            if reader is not None:
                reader.close()
        except KernelError as error:
            return str(error)
        return None

    def _open(self, now: float) -> None:
        # Only who counts needs what this drags in.
        from ephmon.kernel.trace.reader import ExhaustionReader  # noqa: PLC0415

        try:
            self._reader = ExhaustionReader.open(self._proc)
        except KernelError as error:
            self._fail(error, now)

    def _fail(self, error: KernelError, now: float) -> None:
        self._retry_at = now + RETRY_SECONDS
        self._error = " ".join(filter(None, [str(error), self.close()]))


def _listed(report: Report) -> Iterator[Destination]:
    """Yield the destinations of the listed pools, which are counted from 0 on."""
    for listed in report.listed:
        destination = destination_of(listed.pool.key)
        if destination is not None:
            yield destination
