"""The log: how records are written, and what is worth saying when one report follows another.

Lines go to standard error. A line is a sentence and `key=value` pairs, or one JSON object. Where the journal reads
them, they open with the priority in angle brackets (man 3 sd-daemon) and leave the time to it.
"""

from __future__ import annotations

import json
import logging
import os
import select
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from ephmon.model.advice.for_alert import advice_on
from ephmon.model.alerting.state_machine import Phase, transitions
from ephmon.model.rules import Severity
from ephmon.outputs.text.alerts import figures, is_stood_for, sentence
from ephmon.outputs.text.owners import largest_owner_sentence, owners_behind
from ephmon.outputs.text.wording import utc_time

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import TextIO

    from ephmon.model.alerting.state_machine import Transition
    from ephmon.model.report import Report

_PRIORITIES = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}
_FIELDS = "ephmon_fields"


class Line(NamedTuple):
    """One thing to say: the level of `logging`, a sentence, and the numbers that belong to it."""

    level: int
    message: str
    fields: Mapping[str, object] = {}


def write(logger: logging.Logger, line: Line) -> None:
    """Log the line."""
    logger.log(line.level, "%s", line.message, extra={_FIELDS: line.fields})


def place(error: BaseException | None) -> str:
    """Return the kind of an error and where it was raised, but not what it says, which may be a stranger's words."""
    frame = None if error is None else error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    where = "unknown" if frame is None else f"{frame.tb_frame.f_code.co_qualname} line {frame.tb_lineno}"
    return f"{type(error).__name__} in {where}"


def set_up(level: str, style: str, stream: TextIO | None = None) -> None:
    """Send all records of ephmon to the file behind `stream`.

    Args:
        level: `debug`, `info`, `warning` or `error`.
        style: `logfmt`, `json`, or `auto`: logfmt, for the journal where that reads the stream.
        stream: Where to, standard error if None. It never stops the caller: a stream that is closed gets nothing, and
            what a full one does not take at once is lost, which is said when it takes something again.
    """
    stream = stream or sys.stderr
    root = logging.getLogger("ephmon")
    root.setLevel(level.upper())
    root.propagate = False
    if stream is None:  # it was closed when Python started
        root.handlers[:] = [logging.NullHandler()]
        return
    descriptor = stream.fileno()
    in_use = (handler for handler in root.handlers if isinstance(handler, _Handler))
    handler = next((handler for handler in in_use if handler.descriptor == descriptor), None) or _Handler(descriptor)
    handler.setFormatter(_JsonFormatter() if style == "json" else _KeyValueFormatter(journal=_is_journal(descriptor)))
    root.handlers[:] = [handler]


class _Handler(logging.Handler):
    """Writes records as far as a file takes them without waiting, and counts those that it did not take whole.

    Whoever reads a pipe may have stopped (`ephmon run 2>&1 | less`, a journal that hangs), and write() would wait for
    them. Nothing is buffered here, because Python writes what is in a buffer once more when it exits.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.descriptor = descriptor
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        # The last line may lack its end.
        if self._lost and self._put("\n" + self.format(_loss(self._lost))):
            self._lost = 0
        self._lost += not self._put(self.format(record))

    def _put(self, text: str) -> bool:
        """Write what the file takes, and tell whether it took all."""
        line = f"{text}\n".encode("ascii", "backslashreplace")
        try:
            for start in range(0, len(line), select.PIPE_BUF):
                if not _takes_more(self.descriptor):
                    return False
                os.write(self.descriptor, line[start : start + select.PIPE_BUF])
        except OSError:
            return False
        return True


def _loss(lines: int) -> logging.LogRecord:
    message = "Lines were lost because standard error took no more."
    warning = {"levelno": logging.WARNING, "levelname": "WARNING"}
    return logging.makeLogRecord({"msg": message, _FIELDS: {"lost": lines}, **warning})


def _takes_more(descriptor: int) -> bool:
    """Tell whether `select.PIPE_BUF` bytes are taken at once: of a pipe that is what POLLOUT says (man 7 pipe)."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return any(events & select.POLLOUT for _, events in poll.poll(0))


def _is_journal(descriptor: int) -> bool:
    """Tell whether the journal reads the file: JOURNAL_STREAM names its device and inode (man 5 systemd.exec)."""
    status = os.fstat(descriptor)
    return os.environ.get("JOURNAL_STREAM", "") == f"{status.st_dev}:{status.st_ino}"


class _KeyValueFormatter(logging.Formatter):
    """`level="..." msg="..." key=value`, with the time or, for the journal, the priority in front."""

    def __init__(self, *, journal: bool) -> None:
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        pairs = {"level": record.levelname.lower(), "msg": record.getMessage(), **_fields(record)}
        if not self._journal:
            pairs = {"time": utc_time(record.created), **pairs}
        text = " ".join(f"{key}={_quoted(value)}" for key, value in pairs.items())
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        if self._journal:
            # The journal takes each line for a message of its own.
            priority = _PRIORITIES.get(record.levelno, 6)
            text = "\n".join(f"<{priority}>{line}" for line in text.split("\n"))
        return text


class _JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        pairs = {"time": utc_time(record.created), "level": record.levelname.lower(), "msg": record.getMessage()}
        if record.exc_info:
            pairs["traceback"] = self.formatException(record.exc_info)
        return json.dumps({**pairs, **_fields(record)}, default=str)


def _fields(record: logging.LogRecord) -> Mapping[str, Any]:
    fields: Mapping[str, Any] = getattr(record, _FIELDS, {})
    return {key: value for key, value in fields.items() if value is not None}


def _quoted(value: object) -> str:
    """Return the value bare if it is one plain word, else as a JSON string, which keeps a line one line."""
    text = str(value)
    is_word = text.isascii() and text.isprintable() and text and not set(text) & set(' "=\\')
    return text if is_word else json.dumps(text)


def changes(previous: Report, report: Report) -> Iterator[Line]:
    """Yield what to say of a poll: each change of state once, and nothing while nothing changes."""
    yield from _poll_changes(previous, report)
    # A failed poll holds the alerts, but a narrow one may change them while full ones fail.
    for transition in transitions(previous.alerts, report.alerts):
        yield from _alert_changes(transition, report)


def _alert_changes(transition: Transition, report: Report) -> Iterator[Line]:
    before, alert = transition
    name, said = alert.key.name, figures(alert)
    if alert.phase is Phase.RESOLVED and alert.ended is not None:
        cause = "; EphmonPortsBlocked stands for it now" if is_stood_for(alert, report.alerts) else ""
        lasted = round(alert.ended.monotonic - alert.since.monotonic, 1)
        yield Line(logging.INFO, f"{name} is resolved{cause}.", {**said, "lasted_seconds": lasted})
    elif alert.phase is Phase.FIRING and alert.is_told:
        level = logging.ERROR if alert.severity is Severity.CRITICAL else logging.WARNING
        advice = advice_on(alert, report)
        owners = owners_behind(alert, report)
        parts = [sentence(alert), largest_owner_sentence(owners) if owners else "", advice.in_short if advice else ""]
        yield Line(level, f"{name} fires as {alert.severity}: {' '.join(filter(None, parts))}", said)
    elif before is not None and before.is_told and alert.phase is Phase.FIRING:
        yield Line(logging.INFO, f"{name} goes on, but has lost its place among alerts.max_active.", said)
    elif alert.phase is Phase.PENDING:
        yield Line(logging.DEBUG, f"{name} is pending: {sentence(alert)}", said)


def _poll_changes(previous: Report, report: Report) -> Iterator[Line]:
    if not report.success:
        if previous.success or previous.error != report.error:
            yield Line(logging.ERROR, f"The poll failed: {report.error}")
        return
    if previous.error is not None:
        yield Line(logging.INFO, "Polls succeed again.", {"failed": sum(report.totals.failures.values())})
    for protocol, backend in report.backends.items():
        before, reason = previous.backends.get(protocol), report.fallbacks.get(protocol)
        if before != backend or (reason is not None and reason != previous.fallbacks.get(protocol)):
            level = logging.INFO if before is None and reason is None else logging.WARNING
            because = "." if reason is None else f": {reason}"
            yield Line(level, f"Sockets of {protocol} are read by {backend}{because}", {"before": before})
    for protocol, reason in report.missing.items():
        if previous.missing.get(protocol) != reason:
            yield Line(logging.ERROR, f"Sockets of {protocol} cannot be read: {reason}", {"protocol": protocol})
    if report.probe_error is not None and report.probe_error != previous.probe_error:
        probed = "not all probed" if report.probe_available else "not probed"
        yield Line(logging.WARNING, f"Ports in doubt are {probed}: {report.probe_error}")
    yield from _owner_changes(previous, report)
    yield from _pace_changes(previous, report)
    yield from _namespace_changes(previous, report)


def exhaustion_changes(previous: Report, report: Report, *, required: bool) -> Iterator[Line]:
    """Yield what is to be said of the collector of failed connect() calls, which is asked between polls too.

    That it cannot be had is a warning only where it is `required`.
    """
    if report.exhaustions_error is not None and report.exhaustions_error != previous.exhaustions_error:
        level = logging.WARNING if required or previous.exhaustions_available else logging.INFO
        yield Line(level, f"Failed connect() calls are not counted: {report.exhaustions_error}")
    elif report.exhaustions_available and not previous.exhaustions_available:
        yield Line(logging.INFO, "Failed connect() calls are counted.")


def _owner_changes(previous: Report, report: Report) -> Iterator[Line]:
    """Say why owners are not known, or not all; what differs in no more than its figures is no news."""
    if report.owners_error is not None:
        if not report.owners_available and report.owners_error != previous.owners_error:
            yield Line(logging.WARNING, f"The owners of ports are not known: {report.owners_error}")
        elif report.owners_available and (previous.owners_error is None or not previous.owners_available):
            yield Line(logging.INFO, f"Not all owners of ports are known: {report.owners_error}")
    if report.processes_error is not None and previous.processes_error is None:
        yield Line(logging.INFO, f"Not all processes that hold ports can be named: {report.processes_error}")


def _pace_changes(previous: Report, report: Report) -> Iterator[Line]:
    if report.pace.is_stretched and not previous.pace.is_stretched:
        yield Line(
            logging.WARNING,
            "Polls come less often than poll.interval asks for, because one takes more CPU than poll.cpu_budget "
            "allows; raise poll.cpu_budget for a closer watch.",
            {"interval_seconds": round(report.pace.full, 1), "cpu_seconds": round(report.costs.full[-1], 3)},
        )
    if previous.pace.is_stretched and not report.pace.is_stretched:
        yield Line(logging.INFO, "Polls come as often as poll.interval asks for again.")


def _namespace_changes(previous: Report, report: Report) -> Iterator[Line]:
    before = {namespace.netns: namespace for namespace in previous.namespaces}
    for namespace in report.namespaces:
        known = before.get(namespace.netns)
        port_range = (namespace.port_range_low, namespace.port_range_high, namespace.reserved_ports)
        if known is None or (known.port_range_low, known.port_range_high, known.reserved_ports) != port_range:
            low, high, reserved = port_range
            yield Line(
                logging.INFO,
                f"{namespace.usable_ports} ports are usable.",
                {"netns": namespace.netns, "port_range": f"{low}-{high}", "reserved": reserved},
            )
        if namespace.blind_to and not (known and known.blind_to == namespace.blind_to):
            yield Line(
                logging.WARNING,
                "What this kernel or backend does not show may make headroom look larger.",
                {"netns": namespace.netns, "blind_to": ",".join(namespace.blind_to)},
            )
        if namespace.torn_pools and not (known and known.torn_pools):
            yield Line(
                logging.WARNING,
                "Pools seem to hold more ports than there are, because sockets moved while they were read; "
                "their remaining ports are given as 0.",
                {"netns": namespace.netns, "pools": namespace.torn_pools},
            )
