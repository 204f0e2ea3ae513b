"""The log: how records are written.

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

from ephmon.outputs.text.wording import utc_time

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping
    from typing import TextIO

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


def error_location(error: BaseException | None) -> str:
    """Return the type of an error and where it was raised, but not its message, which may contain foreign text."""
    frame = None if error is None else error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    where = "unknown" if frame is None else f"{frame.tb_frame.f_code.co_qualname} line {frame.tb_lineno}"
    return f"{type(error).__name__} in {where}"


def report_task_error(task: asyncio.Task[None]) -> None:
    """Pass what ended a task to its loop's exception handler now; asyncio does so only when the task is collected."""
    error = None if task.cancelled() else task.exception()
    if error is not None:
        task.get_loop().call_exception_handler({"message": "a task ended in an error", "exception": error})


def defect_handler(report: Callable[[str], None]) -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object]:
    """Return an exception handler for an event loop that reports the location of each defect.

    OSErrors are no defects: the network causes them, and they may be raised again after a connection was given up.
    """

    def handle(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, OSError):
            report(error_location(error))

    return handle


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
