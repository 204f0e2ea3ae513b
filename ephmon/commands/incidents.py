"""`ephmon incidents`: lists the incidents that the daemon has written, latest first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ephmon.commands.reading import load_config
from ephmon.commands.terminal import print_answer
from ephmon.config.file import quote_path
from ephmon.daemon.incident_folder import names
from ephmon.errors import EphmonError
from ephmon.outputs.documents import api
from ephmon.outputs.documents.incident_reading import IncidentError, read
from ephmon.outputs.text.incident import worst_pool
from ephmon.outputs.text.table import aligned
from ephmon.outputs.text.wording import percent, pool_name

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from ephmon.model.pools.kinds import Pool


class _Row(NamedTuple):
    """What the list shows of one file."""

    file: Path
    at: str | None = None
    reason: str | None = None
    summary: str | None = None
    pool: Pool | None = None
    error: str | None = None
    """Why the file cannot be read."""


def run(options: argparse.Namespace) -> int:
    """Print the list, including files that cannot be read, with the reason."""
    directory = load_config(options.config).incidents.directory
    if not directory:
        raise EphmonError("incidents.directory is not set, so no incidents are written; set it in the configuration.")
    try:
        rows = [_row(Path(directory) / name) for name in names(directory)]
    except OSError as error:
        raise EphmonError(f"{quote_path(directory)} cannot be listed: {error.strerror}.") from error
    print_answer(_json(directory, rows) if options.json else "\n".join(_lines(directory, rows)) + "\n")
    return 0


def _row(file: Path) -> _Row:
    try:
        incident = read(str(file))
        return _Row(
            file,
            at=incident.text("at"),
            reason=incident.text("reason"),
            summary=incident.text("summary"),
            pool=worst_pool(incident),
        )
    except IncidentError as error:
        return _Row(file, error=str(error))


def _lines(directory: str, rows: list[_Row]) -> Iterator[str]:
    if not rows:
        yield f"There are no incidents in {quote_path(directory)}."
        return
    yield from aligned(("TIME", "REASON", "UTIL%", "WORST POOL", "FILE"), [_cells(row) for row in rows])
    yield from (f"{quote_path(row.file)} cannot be shown. {row.error}" for row in rows if row.error)


def _cells(row: _Row) -> tuple[str, ...]:
    worst = ("-", "-") if row.pool is None else (percent(row.pool.utilisation), pool_name(row.pool.key))
    return (row.at or "?", row.reason or "?", *worst, quote_path(row.file))


def _json(directory: str, rows: list[_Row]) -> str:
    incidents: list[dict[str, Any]] = [
        {
            "file": str(row.file),
            "at": row.at,
            "reason": row.reason,
            "summary": row.summary,
            "worst_pool": None if row.pool is None else _worst(row.pool),
            "error": row.error,
        }
        for row in rows
    ]
    return api.encode({"schema": api.SCHEMA, "directory": directory, "incidents": incidents}).decode()


def _worst(pool: Pool) -> dict[str, Any]:
    key = pool.key
    return {
        "netns": key.netns,
        "kind": key.kind,
        "source": key.source,
        "destination": key.destination,
        "destination_port": key.destination_port,
        "utilisation_ratio": round(pool.utilisation, 6),
    }
