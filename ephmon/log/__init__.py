"""The log: how records are written.

Lines go to standard error. A line is a sentence and `key=value` pairs, or one JSON object. Where the journal reads
them, they open with the priority in angle brackets (man 3 sd-daemon) and leave the time to it.

Whoever logs never waits (`ephmon.log.handler`), and no kind of line fills the log (`ephmon.log.rate`).
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from ephmon.log.formats import FIELDS, JsonFormatter, KeyValueFormatter, is_journal
from ephmon.log.handler import KIND, Handler, Losses

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping
    from typing import TextIO


_ROOT = "ephmon"


class Line(NamedTuple):
    """One thing to say: the level of `logging`, a sentence, and the numbers that belong to it."""

    level: int
    message: str
    fields: Mapping[str, object] = {}
    kind: str = ""
    """Which lines count together where a minute has too many; "" for all others of the same logger and level."""


def write(logger: logging.Logger, line: Line, error: BaseException | None = None) -> None:
    """Log the line, with the traceback of the error if there is one."""
    logger.log(line.level, "%s", line.message, exc_info=error, extra={FIELDS: line.fields, KIND: line.kind})


def error_location(error: BaseException | None) -> str:
    """Return the type of an error and where it was raised, but not its message, which may contain foreign text."""
    frame = None if error is None else error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    where = "unknown" if frame is None else f"{frame.tb_frame.f_code.co_qualname} line {frame.tb_lineno}"
    return f"{type(error).__name__} in {where}"


def defect_sentence(error: BaseException) -> str:
    """Return the sentence on an error that nobody but ephmon can have caused."""
    return f"A defect of ephmon, please report it: {error_location(error)}."


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
        if error is None:  # asyncio found something else wrong, for example a task that nothing refers to any more
            report(context["message"].rstrip(".!"))
        elif not isinstance(error, OSError):
            report(error_location(error))

    return handle


def set_up(level: str, style: str, stream: TextIO | None = None) -> None:
    """Send all records of ephmon to the file behind `stream`.

    Args:
        level: `debug`, `info`, `warning` or `error`.
        style: `logfmt`, `json`, or `auto`: logfmt, for the journal where that reads the stream.
        stream: Where to, standard error if None. It never stops the caller: a stream that is closed gets nothing, and
            what a full one does not take is lost, which is said when it takes something again.
    """
    stream = stream or sys.stderr
    root = logging.getLogger(_ROOT)
    root.setLevel(level.upper())
    root.propagate = False
    if stream is None:  # it was closed when Python started
        root.handlers[:] = [logging.NullHandler()]
        return
    descriptor = stream.fileno()
    in_use = next((handler for handler in _handlers() if handler.descriptor == descriptor), None)
    handler = in_use or Handler(descriptor)
    handler.setFormatter(JsonFormatter() if style == "json" else KeyValueFormatter(journal=is_journal(descriptor)))
    for replaced in [other for other in _handlers() if other is not handler]:
        replaced.close()
    root.handlers[:] = [handler]


def losses() -> Losses:
    """Return how many lines were not written since the start."""
    return next((handler.losses for handler in _handlers()), Losses())


def _handlers() -> list[Handler]:
    return [handler for handler in logging.getLogger(_ROOT).handlers if isinstance(handler, Handler)]
