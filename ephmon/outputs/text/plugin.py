"""The answer of a monitoring plugin: one line with status and figures, more lines, and an exit status.

Source: the Monitoring Plugins Development Guidelines (https://www.monitoring-plugins.org/doc/guidelines.html), sections
"Plugin Output for Nagios" and "Performance data". The first vertical bar ends the text, so the text contains none.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from ephmon.facts.foreign_text import printable
from ephmon.facts.namespaces import OWN_NETNS
from ephmon.model.alerting.blocked import BlockedPorts
from ephmon.model.alerting.thresholds import Severity
from ephmon.outputs.text.advice import advice_lines
from ephmon.outputs.text.wording import long_searches, percent, pool_name, remaining

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ephmon.model.advice.causes import Advice
    from ephmon.model.alerting.assessment import Assessment, Finding
    from ephmon.model.pools.kinds import Pool

MAX_LISTED = 5
"""How many findings are listed besides the worst."""
_DECIMALS = 6


class Status(IntEnum):
    """The exit statuses of a plugin, with the names that the first line shows."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3


class Answer(NamedTuple):
    """What a plugin prints, and the exit status."""

    status: Status
    text: str


def answer(
    assessment: Assessment, *, advice: Advice | None, missing: Sequence[str] = (), remarks: Iterable[str] = ()
) -> Answer:
    """Return the answer to an assessment.

    Args:
        assessment: The findings.
        advice: On the worst finding.
        missing: One sentence for each protocol that could not be read. The answer is then UNKNOWN instead of OK.
        remarks: Sentences below the first line, without an effect on the status.
    """
    status = _STATUS_OF[assessment.worst.severity if assessment.worst else None]
    headline = (
        _headline(assessment.worst) if assessment.worst else "no pool exists, because no socket uses the port range"
    )
    below = list(missing)
    if missing and status is Status.OK:
        # The first line must say why the status is UNKNOWN.
        status, headline = Status.UNKNOWN, f"{below.pop(0).rstrip('.')}; apart from that, {headline}"
    more, rest = assessment.urgent[1 : 1 + MAX_LISTED], len(assessment.urgent) - 1 - MAX_LISTED
    figures = " ".join(_figures(assessment))
    lines = [
        *(f"{_STATUS_OF[finding.severity].name}: {_headline(finding)}." for finding in more),
        *([f"{'At least ' if assessment.is_cut else ''}{rest} more reached a threshold."] if rest > 0 else []),
        *below,
        *remarks,
        *_long_search(assessment.fullest),
        *(advice_lines(advice) if advice else []),
    ]
    first = f"EPHMON {status.name} - {_without_bar(headline)}" + (f" | {figures}" if figures else "")
    return Answer(status, "".join(f"{line}\n" for line in [first, *map(_without_bar, lines)]))


def failure(message: str) -> Answer:
    """Return the UNKNOWN answer, with the lines of `message`, which says why there is no other answer."""
    first, *more = message.splitlines() or ["it failed"]
    lines = [f"EPHMON {Status.UNKNOWN.name} - {first}", *more]
    return Answer(Status.UNKNOWN, "".join(f"{_without_bar(printable(line))}\n" for line in lines))


_STATUS_OF = {Severity.CRITICAL: Status.CRITICAL, Severity.WARNING: Status.WARNING, None: Status.OK}


def _headline(finding: Finding) -> str:
    subject, threshold = finding.subject, finding.reached
    limit = f" ({finding.severity} from {percent(threshold.utilisation)}%)" if threshold else ""
    if not isinstance(subject, BlockedPorts):
        return f"{pool_name(subject.key)} is at {percent(subject.utilisation)}%{limit}, {_rest(subject)}"
    where = "" if subject.netns == OWN_NETNS else f" in {printable(subject.netns)}"
    if not subject.usable:
        return f"no port{where} is usable: all ports of the range are reserved"
    share = f"{subject.blocked} of {subject.usable} usable ports{where}, {percent(subject.share)}%"
    fullest = ", ".join(f"{pool_name(pool.key)} is at {percent(pool.utilisation)}%" for pool in finding.covered)
    return f"{share}, are blocked for every connect(){limit}" + (f"; {fullest}" if fullest else "")


def _long_search(fullest: Finding | None) -> list[str]:
    """Return how long a connect() of the fullest pool searches, if that is long; it has no effect on the status."""
    return long_searches([fullest.subject]) if fullest and not isinstance(fullest.subject, BlockedPorts) else []


def _rest(pool: Pool) -> str:
    if not pool.remaining:
        return f"no port is left: the next allocation fails with {pool.failure_errno}"
    return f"{remaining(pool)} of {pool.usable} ports are left"


def _figures(assessment: Assessment) -> Iterator[str]:
    """Yield the performance data, label=value;warn;crit;min;max, with the same labels whatever the worst finding is."""
    for label, finding in (("utilisation", assessment.fullest), ("blocked", assessment.blocked)):
        if finding:
            limits = ";".join(_number(finding.thresholds[severity].utilisation) for severity in Severity)
            yield f"{label}={_number(finding.ratio)};{limits};0;1"
            if not isinstance(finding.subject, BlockedPorts):
                yield f"remaining={finding.subject.remaining};;;0;{finding.subject.usable}"


def _number(value: float) -> str:
    return f"{value:.{_DECIMALS}f}".rstrip("0").rstrip(".")


def _without_bar(text: str) -> str:
    return text.replace("|", "/")
