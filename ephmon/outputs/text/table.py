"""The pools as a table for a terminal: first what is wrong, then the port range, then one line for each pool."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from ephmon.model.alerting.thresholds import Severity
from ephmon.outputs.text.advice import advice_lines
from ephmon.outputs.text.pool_remarks import pool_remarks
from ephmon.outputs.text.wording import (
    exhaustion,
    existing_pools,
    explanations,
    facts,
    failures,
    gaps,
    grid,
    percent,
    pool_name,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from ephmon.model.advice.causes import Advice
    from ephmon.model.pools.kinds import Pool, PoolKey
    from ephmon.model.report import Report

_RED = "\x1b[31m"
_YELLOW = "\x1b[33m"
_RESET = "\x1b[0m"
_COLOUR_OF = {Severity.CRITICAL: _RED, Severity.WARNING: _YELLOW}

_LEFT_ALIGNED = frozenset(
    {"NETNS", "KIND", "SOURCE", "DESTINATION", "STATES", "TIME", "REASON", "HOST", "WORST POOL", "FILE"}
)
_GAP = "  "
_ELLIPSIS = "..."
"""In ASCII, because a terminal may not support more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The pools that a table was chosen from."""

    matching: int
    """How many pools the table would have without a limit."""
    toward: str | None = None
    """The destination of --destination."""


NO_ADVICE: Mapping[PoolKey, Advice] = MappingProxyType({})


def render(
    report: Report,
    pools: Sequence[Pool],
    *,
    colour: bool,
    width: int | None,
    selection: Selection | None = None,
    owners: Iterable[str] = (),
    advice: Mapping[PoolKey, Advice] = NO_ADVICE,
) -> str:
    """Return the head and the table of `pools`, in the order given, with a newline at the end.

    A line whose pool has reached a threshold of `report.thresholds` is red or yellow if `colour`. Only the last column
    is ever cut, to fit lines into `width` columns, or left out where it has no room; None is a width without end.
    Without a `selection` the pools are chosen from all that exist. Below the table stand the lines on `owners`, then
    the `advice` on each pool shown that there is some for; it is meant to be pasted, so its lines are not cut.
    """
    chosen_from = selection or Selection(matching=existing_pools(report))
    table = _table_lines(report, pools, colour=colour, width=width) if pools else [_no_pools(report)]
    foot = [
        *explanations(pools),
        *_remarks(pools, chosen_from),
        *_hidden(existing_pools(report), len(pools), chosen_from),
    ]
    return "\n".join([*_head_lines(report, colour=colour), "", *table, *foot, *owners, *_advice(pools, advice)]) + "\n"


def _remarks(pools: Sequence[Pool], chosen_from: Selection) -> Iterator[str]:
    """Yield what else decides about the pools toward one destination; of all pools that would be too much."""
    for pool in pools if chosen_from.toward else ():
        for sentences in pool_remarks(pool):
            yield f"{pool_name(pool.key)}: {sentences}"


def _advice(pools: Sequence[Pool], advice: Mapping[PoolKey, Advice]) -> Iterator[str]:
    for pool in pools:
        if pool.key in advice:
            yield from ("", f"{pool_name(pool.key)} is at {percent(pool.utilisation)}%:")
            yield from advice_lines(advice[pool.key])


def _head_lines(report: Report, *, colour: bool) -> list[str]:
    sentences = [
        *((sentence, Severity.CRITICAL) for sentence in (*failures(report), *exhaustion(report))),
        *((sentence, Severity.WARNING) for sentence in gaps(report)),
        *facts(report),
    ]
    return [_painted(sentence, severity if colour else None) for sentence, severity in sentences]


def _table_lines(report: Report, pools: Sequence[Pool], *, colour: bool, width: int | None) -> list[str]:
    headings, rows = grid(pools)
    lines = aligned(headings, rows, width)
    if not colour:
        return lines
    thresholds = report.thresholds
    severities = (thresholds.severity_at(pool.key, pool.utilisation) for pool in pools)
    return [lines[0], *map(_painted, lines[1:], severities)]


def aligned(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]], width: int | None = None) -> list[str]:
    """Return the lines of a table, the headings first; only the last column is ever cut, to fit them into `width`."""
    columns = zip(headings, zip(headings, *rows, strict=True), strict=True)
    *fixed, last = [_justified(heading, column) for heading, column in columns]
    starts = [_GAP.join(row) for row in zip(*fixed, strict=True)]
    room = None if width is None else width - len(starts[0]) - len(_GAP)
    if room is not None and room < len(headings[-1]):
        return [start.rstrip() for start in starts]
    return [f"{start}{_GAP}{_cut(cell.rstrip(), room)}" for start, cell in zip(starts, last, strict=True)]


def _justified(heading: str, column: tuple[str, ...]) -> list[str]:
    size = max(map(len, column))
    return [cell.ljust(size) if heading in _LEFT_ALIGNED else cell.rjust(size) for cell in column]


def _cut(cell: str, room: int | None) -> str:
    return cell if room is None or len(cell) <= room else cell[: room - len(_ELLIPSIS)] + _ELLIPSIS


def _no_pools(report: Report) -> str:
    if report.taken_at is None:
        return "No pool is known yet."
    if not existing_pools(report):
        return "There are no pools: no socket that could be read uses the port range."
    return "No pool is shown."


def _hidden(existing: int, shown: int, chosen_from: Selection) -> list[str]:
    """Return how many pools are shown and why not all, as one sentence; nothing if all are."""
    matching, toward = chosen_from.matching, chosen_from.toward
    if toward is None and shown == existing:
        return []
    parts = [f"Pools shown: {shown} of {existing}"]
    if toward is not None:
        parts = [f"Pools shown: {shown} of {matching} toward {toward} ({existing} in all)"]
    elif matching < existing:
        parts.append(f"pools.ignore_destinations excludes {existing - matching}")
    if shown < matching:
        parts.append("--top N shows more")
    return ["; ".join(parts) + "."]


def _painted(line: str, severity: Severity | None) -> str:
    return line if severity is None else f"{_COLOUR_OF[severity]}{line}{_RESET}"
