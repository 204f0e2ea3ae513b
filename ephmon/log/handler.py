"""Writes records to a file in a thread of its own, so that whoever logs never waits for who reads.

The reader of a pipe, a terminal or a socket may stop (`ephmon run 2>&1 | less`, Ctrl-S, `docker run -t` that nobody
attaches to, a journal that hangs), and a disk may take its time. No way of asking first covers all of these: POLLOUT
promises room for a whole line only of a pipe (man 7 pipe). O_NONBLOCK would hold for everybody who shares the file, and
it changes nothing for a file on a disk.
"""

from __future__ import annotations

import logging
import math
import os
import time
from _thread import start_new_thread
from collections import deque
from contextlib import suppress
from threading import Condition
from typing import TYPE_CHECKING, NamedTuple

from ephmon.log.formats import FIELDS
from ephmon.log.rate import MOST_A_MINUTE, Kind, RateLimit

if TYPE_CHECKING:
    from collections.abc import Callable

KIND = "ephmon_kind"
"""The attribute of a record that names its kind, see `ephmon.log.rate`."""
MOST_WAITING_BYTES = 256 * 1024
"""What nobody reads waits in memory up to this size. What comes then is lost and counted."""
FLUSH_SECONDS = 2.0
"""How long the end of the process waits for a reader that has stopped."""

_RETRY_SECONDS = 0.1
"""A file that somebody else made non-blocking is tried again that often while it is full."""


class Losses(NamedTuple):
    """Lines since the start that were not written."""

    stream: int = 0
    """Nobody took them, or the disk was full."""
    rate: int = 0
    """There were too many of their kind in a minute."""


class Handler(logging.Handler):
    """Passes lines to the thread that writes them. Nothing that happens to the file reaches whoever logs.

    Args:
        descriptor: Where to write; it stays open.
        clock: Monotonic seconds.
    """

    def __init__(self, descriptor: int, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self.descriptor = descriptor
        self._clock = clock
        self._rate = RateLimit()
        self._changed = Condition()
        self._waiting: deque[bytes | int] = deque()
        """Lines, and in their place among them how many lines were lost there."""
        self._waiting_bytes = 0
        self._is_writing = self._has_thread = self._is_closed = False
        self._is_given_up = False
        """Whether the latest `flush` waited in vain. Python flushes twice at exit, and waits for a reader once."""
        self._losses = Losses()
        self._unreported = 0
        """Lines that the file did not take whole, and of which nothing is said yet. Of the thread alone."""
        self._ends_in_a_line = True
        """False if the file took a part of the last line. Of the thread alone."""

    @property
    def losses(self) -> Losses:
        """The lines that were not written so far."""
        return self._losses

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record as a line, unless there were too many of its kind."""
        try:
            with self._changed:
                now = self._clock()
                self._count_what_was_left_out(now)
                if self._rate.allows(Kind(record.name, record.levelno, getattr(record, KIND, "")), now):
                    self._put(record)
                else:
                    self._losses = self._losses._replace(rate=self._losses.rate + 1)
                self._start()
                self._changed.notify_all()
        except Exception:  # noqa: BLE001 - no memory is left, or a field has no text: a line never stops who logs it
            with suppress(Exception), self._changed:
                self._lose()

    def flush(self) -> None:
        """Wait until all lines are written, but not for a reader that has stopped. Python asks for this at exit."""
        with self._changed:
            self._start()
            self._is_given_up = not self._changed.wait_for(
                lambda: not (self._waiting or self._is_writing), 0 if self._is_given_up else FLUSH_SECONDS
            )

    def close(self) -> None:
        """Write what is left, as `flush` does, and end the thread."""
        with self._changed:
            self._count_what_was_left_out(math.inf)
        self.flush()
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        super().close()

    def _put(self, record: logging.LogRecord) -> None:
        line = self._line(record)
        if self._waiting_bytes + len(line) > MOST_WAITING_BYTES:
            self._lose()
        else:
            self._waiting.append(line)
            self._waiting_bytes += len(line)

    def _lose(self) -> None:
        self._losses = self._losses._replace(stream=self._losses.stream + 1)
        if self._waiting and isinstance(self._waiting[-1], int):
            self._waiting[-1] += 1
        else:
            self._waiting.append(1)

    def _line(self, record: logging.LogRecord) -> bytes:
        return f"{self.format(record)}\n".encode("ascii", "backslashreplace")

    def _count_what_was_left_out(self, now: float) -> None:
        for kind, number in self._rate.ended(now):
            self._put(_left_out(kind, number))

    def _start(self) -> None:
        """Start the thread if there is none. If none is to be had, the lines wait until the next one comes."""
        if self._has_thread or self._is_closed:
            return
        self._has_thread = True
        try:
            # Thread.start() waits until the new thread says that it runs, for ever if that one finds no memory.
            start_new_thread(self._write_all, ())
        except RuntimeError:
            self._has_thread = False

    def _write_all(self) -> None:
        try:
            while (item := self._next()) is not None:
                self._write(item)
        except Exception:  # noqa: BLE001 - no memory is left: the next line starts another thread
            with suppress(Exception):
                self._count_as_lost()
        finally:
            self._has_thread = self._is_writing = False

    def _next(self) -> bytes | int | None:
        """Wait for what comes next and return it; None at the end."""
        with self._changed:
            self._is_writing = False
            self._changed.notify_all()
            while not self._waiting:
                if self._is_closed:
                    return None
                end = self._rate.next_end()
                self._changed.wait(None if end is None else max(0.0, end - self._clock()))
                self._count_what_was_left_out(self._clock())
            item = self._waiting.popleft()
            self._waiting_bytes -= 0 if isinstance(item, int) else len(item)
            self._is_writing = True
            return item

    def _write(self, item: bytes | int) -> None:
        if isinstance(item, int):
            self._unreported += item
        if self._unreported and self._writes(self._line(_lost(self._unreported))):
            self._unreported = 0
        if not isinstance(item, int) and not self._writes(item):
            self._count_as_lost()

    def _count_as_lost(self) -> None:
        self._unreported += 1
        with self._changed:
            self._losses = self._losses._replace(stream=self._losses.stream + 1)

    def _writes(self, line: bytes) -> bool:
        """Write a line, for as long as that takes, and tell whether the file took it whole."""
        whole = line if self._ends_in_a_line else b"\n" + line
        rest = whole
        while rest:
            try:
                rest = rest[os.write(self.descriptor, rest) :]
            except BlockingIOError:
                time.sleep(_RETRY_SECONDS)
            except OSError:
                break
        if len(rest) < len(whole):
            self._ends_in_a_line = not rest
        return not rest


def _lost(lines: int) -> logging.LogRecord:
    message = "Lines were lost because standard error took no more."
    return _record(logging.WARNING, message, {"lost": lines})


def _left_out(kind: Kind, lines: int) -> logging.LogRecord:
    message = f"More lines of this kind were left out: at most {MOST_A_MINUTE} are written in a minute."
    return _record(kind.level, message, {"kind": kind.name or kind.logger, "left_out": lines})


def _record(level: int, message: str, fields: dict[str, object]) -> logging.LogRecord:
    return logging.makeLogRecord(
        {"msg": message, "levelno": level, "levelname": logging.getLevelName(level), FIELDS: fields}
    )
