"""How a record of the log is written: as `key=value` pairs, or as one JSON object."""

from __future__ import annotations

import json
import logging
import os
from typing import TYPE_CHECKING, Any

from ephmon.outputs.text.wording import utc_time

if TYPE_CHECKING:
    from collections.abc import Mapping

FIELDS = "ephmon_fields"
"""The attribute of a record that holds the numbers that belong to its sentence."""

_PRIORITIES = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}


def is_journal(descriptor: int) -> bool:
    """Tell whether the journal reads the file: JOURNAL_STREAM names its device and inode (man 5 systemd.exec)."""
    status = os.fstat(descriptor)
    return os.environ.get("JOURNAL_STREAM", "") == f"{status.st_dev}:{status.st_ino}"


class KeyValueFormatter(logging.Formatter):
    """`level="..." msg="..." key=value`, with the time or, for the journal, the priority in front."""

    def __init__(self, *, journal: bool) -> None:
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line, and a traceback below it."""
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


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        pairs = {"time": utc_time(record.created), "level": record.levelname.lower(), "msg": record.getMessage()}
        if record.exc_info:
            pairs["traceback"] = self.formatException(record.exc_info)
        return json.dumps({**pairs, **_fields(record)}, default=str)


def _fields(record: logging.LogRecord) -> Mapping[str, Any]:
    fields: Mapping[str, Any] = getattr(record, FIELDS, {})
    return {key: value for key, value in fields.items() if value is not None}


def _quoted(value: object) -> str:
    """Return the value bare if it is one plain word, else as a JSON string, which keeps a line one line."""
    text = str(value)
    is_word = text.isascii() and text.isprintable() and text and not set(text) & set(' "=\\')
    return text if is_word else json.dumps(text)
