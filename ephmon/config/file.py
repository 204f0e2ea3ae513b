"""Reads the text files that the configuration consists of or names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ephmon.errors import ConfigError, quote
from ephmon.regular_file import UnreadableFileError, read_regular_file

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES = 1 << 20
"""The largest file that is read."""

_LONGEST_PATH = 4096
"""PATH_MAX (linux/limits.h), so that a message names every path whole."""


def read_text(path: Path) -> str:
    """Read a regular file of at most `MAX_BYTES` as UTF-8.

    Raises:
        ConfigError: One sentence that names the path.
    """
    name = quote_path(path)
    try:
        content = read_regular_file(path, MAX_BYTES)
    except UnreadableFileError as error:
        raise ConfigError(f"{name}: the file {error}") from None
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = f"the byte 0x{content[error.start]:02x} at offset {error.start}"
        raise ConfigError(f"{name}:{line}: {byte} is not UTF-8; save the file as UTF-8 text") from None


def quote_path(path: Path | str) -> str:
    """Return a path as messages name it: as it is, or quoted and escaped if it is not plain text."""
    return quote(str(path), limit=_LONGEST_PATH)
