"""Reads a file that a user named, within bounds and without ever waiting, and tells whether it has changed.

A path that a user writes may lead to a FIFO, a terminal, a device without an end or a huge file. Each of them is an
error here, so that no command hangs and none fills the memory.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NamedTuple

_FILE_TYPES = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class UnreadableFileError(Exception):
    """The file cannot be read. The message goes on from the file's name: "is a FIFO, not a regular file"."""


class FileVersion(NamedTuple):
    """What differs once a file has been written, replaced, or made readable (man 7 inode)."""

    device: int
    inode: int
    bytes: int
    modified_ns: int
    changed_ns: int
    """Of the inode: it also differs if a tool keeps the time of modification, and after chmod."""


def file_version(path: Path | str) -> FileVersion | None:
    """Return the version of a file or directory, symbolic links followed; None if it is not there or out of reach."""
    try:
        status = Path(path).stat()
    except (OSError, ValueError):  # ValueError: the path contains a NUL
        return None
    return FileVersion(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def read_regular_file(path: Path | str, max_bytes: int) -> bytes:
    """Return the content of a regular file.

    Args:
        path: The file; symbolic links are followed.
        max_bytes: The largest size, in bytes; of a larger file one byte more than this is read.

    Raises:
        UnreadableFileError: The file is missing, larger, not a regular file, or may not be read.
    """
    try:
        content = _read(path, max_bytes + 1)
    except OSError as error:
        raise UnreadableFileError(f"cannot be read: {error.strerror}") from error
    except ValueError:  # from open() of such a path; its words differ between versions of Python
        raise UnreadableFileError("cannot be read: Its path contains a NUL") from None
    if len(content) > max_bytes:
        raise UnreadableFileError(f"is larger than {max_bytes >> 20} MiB, the limit")
    return content


def _read(path: Path | str, most: int) -> bytes:
    # O_NONBLOCK: open() of a FIFO would wait for a writer. O_NOCTTY: a terminal must not become ours (man 2 open).
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        # Asked of the open file, because the path may lead elsewhere by now.
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            file_type = next((name for is_type, name in _FILE_TYPES if is_type(mode)), "of another type")
            raise UnreadableFileError(f"is {file_type}, not a regular file")
        with open(descriptor, "rb", closefd=False) as file:  # pathlib opens no descriptors
            return file.read(most)
    finally:
        os.close(descriptor)
