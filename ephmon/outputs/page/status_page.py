"""The status page `/`: a Report goes in, one self-contained HTML document without scripts comes out.

Every value is escaped by `_text`, and nothing else puts values into the markup. `ephmon.outputs.text.wording` has made
them valid UTF-8.
"""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from ephmon import __version__
from ephmon.outputs.text.alerts import sentence
from ephmon.outputs.text.owners import owners_behind, owners_line
from ephmon.outputs.text.wording import (
    exhaustion,
    existing_pools,
    explanations,
    facts,
    failures,
    gaps,
    grid,
    percent,
    utc_time,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ephmon.model.alerting.state_machine import Alert
    from ephmon.model.alerting.thresholds import Severity
    from ephmon.model.forecast.forecast import Forecast
    from ephmon.model.report import Report

_STYLE = (
    ":root{color-scheme:light dark}"
    "body{font:14px/1.5 system-ui,sans-serif;margin:2em auto;max-width:120em;padding:0 1em}"
    "table{border-collapse:collapse;font-variant-numeric:tabular-nums}"
    "th,td{padding:.2em .6em;text-align:left;border-bottom:1px solid #8886;white-space:nowrap}"
    ".figure{text-align:right}"
    ".trouble{border-left:.4em solid #c60;padding:.3em .8em;margin:.4em 0;overflow-wrap:anywhere}"
    ".scroll{overflow-x:auto}"
    "p.warning,tr.warning td{background:#fc03}"
    "p.critical,tr.critical td{background:#f004}"
)

_LINKS = (
    ("/metrics", "metrics"),
    ("/api/v1/pools", "pools as JSON"),
    ("/api/v1/exhaustions", "failed connect() calls as JSON"),
    ("/-/healthy", "healthy"),
    ("/-/ready", "ready"),
)
_HEAD = (
    "<!DOCTYPE html>",
    '<html lang="en">',
    "<head>",
    '<meta charset="utf-8">',
    '<meta name="viewport" content="width=device-width">',
    "<title>ephmon</title>",
    f"<style>{_STYLE}</style>",
    "</head>",
    "<body>",
)
_FIGURES = frozenset({"UTIL%", "PEAK%", "IN-USE", "TIME-WAIT", "REUSABLE", "REMAINING", "FULL-IN"})
_MINUTES_FROM_SECONDS = 120
_NOT_SEEN = "forwarded or translated (NAT) connections, and sockets with their own port range."


def render(report: Report, *, expired: bool) -> bytes:
    """Return the page in UTF-8, with the listed pools.

    If `expired`, the facts are too old: the page leaves them out, and says how old they are.
    """
    body = (
        f"<h1>ephmon {_text(__version__)}</h1>",
        *_paragraphs(_troubles(report, expired=expired), "trouble"),
        *_alerts(report, expired=expired),
        *(() if expired or report.taken_at is None else _facts(report)),
        *_paragraphs([_polls(report), _not_seen(report)]),
        "<p>" + " &middot; ".join(f'<a href="{path}">{_text(name)}</a>' for path, name in _LINKS) + "</p>",
    )
    return "\n".join((*_HEAD, *body, "</body>", "</html>", "")).encode()


def _text(text: str) -> str:
    return html.escape(text, quote=True)


def _paragraphs(sentences: Iterable[str], css_class: str | None = None) -> list[str]:
    start = "<p>" if css_class is None else f'<p class="{css_class}">'
    return [f"{start}{_text(sentence)}</p>" for sentence in sentences]


def _troubles(report: Report, *, expired: bool) -> tuple[str, ...]:
    if not expired or report.taken_at is None:
        return (*failures(report), *exhaustion(report), *gaps(report))
    age = f"The figures have expired and are not shown: the kernel was last read at {utc_time(report.taken_at)}."
    return (*failures(report), age)


def _alerts(report: Report, *, expired: bool) -> list[str]:
    """Return the active alerts, also if the figures have expired, because alerts are kept while polls fail."""
    seen = ", last seen" if expired else ""
    lines = []
    for alert in report.alerts.firing:
        text = f"{alert.severity} since {utc_time(alert.severity_since.wall)}{seen}: {sentence(alert)}"
        lines += _paragraphs([text if expired else text + _holders(alert, report)], alert.severity)
    return lines


def _holders(alert: Alert, report: Report) -> str:
    owners = owners_behind(alert, report)
    return f" Held by: {owners_line(owners)}." if owners and owners.shares else ""


def _facts(report: Report) -> list[str]:
    listing = f"Pools listed, fullest first: {len(report.listed)} of {existing_pools(report)}."
    sentences = (*facts(report), (listing, None))
    paragraphs = [line for sentence, severity in sentences for line in _paragraphs([sentence], severity)]
    return [*paragraphs, *_table(report)]


def _table(report: Report) -> list[str]:
    if not report.listed:
        return []
    headings, rows = grid([listed.pool for listed in report.listed])
    columns = _with_history(headings, headings, "PEAK%", "FULL-IN")
    lines = ['<div class="scroll">', "<table>", _row(columns, "th", columns)]
    for listed, row in zip(report.listed, rows, strict=True):
        severity = report.thresholds.severity_at(listed.pool.key, listed.pool.utilisation)
        cells = _with_history(headings, row, percent(listed.peak_utilisation), _time_left(listed.forecast))
        lines.append(_row(columns, "td", cells, severity))
    return [*lines, "</table>", "</div>", *_paragraphs(explanations([listed.pool for listed in report.listed]))]


def _with_history(headings: tuple[str, ...], row: tuple[str, ...], peak: str, time_left: str) -> tuple[str, ...]:
    """Insert the peak after the utilisation, and the time left after the remaining ports."""
    peaks, ends = headings.index("UTIL%") + 1, headings.index("REMAINING") + 1
    return (*row[:peaks], peak, *row[peaks:ends], time_left, *row[ends:])


def _time_left(forecast: Forecast | None) -> str:
    if forecast is None or forecast.seconds_to_exhaustion is None:
        return "-"
    seconds = forecast.seconds_to_exhaustion
    return f"{seconds:.0f} s" if seconds < _MINUTES_FROM_SECONDS else f"{seconds / 60:.0f} min"


def _row(columns: tuple[str, ...], tag: str, cells: tuple[str, ...], severity: Severity | None = None) -> str:
    starts = (f'<{tag} class="figure">' if column in _FIGURES else f"<{tag}>" for column in columns)
    row = "".join(f"{start}{_text(cell)}</{tag}>" for start, cell in zip(starts, cells, strict=True))
    return f"<tr>{row}</tr>" if severity is None else f'<tr class="{severity}">{row}</tr>'


def _not_seen(report: Report) -> str:
    others = "" if report.namespaces_read > 1 else "pods and containers with their own network namespace, "
    return f"Not visible here: {others}{_NOT_SEEN}"


def _polls(report: Report) -> str:
    interval = f"The poll interval is {report.pace.full:g} s"
    if report.duration_seconds is None:
        return f"{interval}."
    return f"{interval}; the last poll took {report.duration_seconds:.3f} s."
