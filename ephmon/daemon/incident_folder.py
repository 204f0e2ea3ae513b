"""The directory of incident files: writes them atomically and removes the oldest.

A file gets its final name when all of its content is on the disk. ephmon removes only regular files of its own user
whose names it has given itself. The path of the directory may contain symbolic links, because systemd makes one of
/var/lib/ephmon and whoever writes the configuration is trusted; links inside the directory are not followed. Several
daemons may use one directory at the same time.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from ephmon.errors import EphmonError, quote, shortage
from ephmon.model.status import IncidentFailure

if TYPE_CHECKING:
    from collections.abc import Iterator

MODE = 0o640
"""Mode of the files, whatever the umask: members of ephmon's group may read them."""
LEFTOVER_SECONDS = 600.0
"""An unfinished file of this age was left behind by a crash."""

_NAME = re.compile(r"ephmon-([0-9]{8}T[0-9]{6}Z)-([a-z]+)(?:-[0-9]+)?\.json", re.ASCII)
_UNFINISHED = re.compile(rf"\.(?:{_NAME.pattern}|ephmon-check-[0-9a-f]+)\.part", re.ASCII)
_TIME = "%Y%m%dT%H%M%SZ"
_MOST_OF_A_SECOND = 100
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_REASONS = {
    errno.ENOENT: IncidentFailure.NO_DIRECTORY,
    errno.ENOTDIR: IncidentFailure.NO_DIRECTORY,
    errno.EACCES: IncidentFailure.PERMISSION,
    errno.EPERM: IncidentFailure.PERMISSION,
    errno.EROFS: IncidentFailure.READ_ONLY,
    errno.ENOSPC: IncidentFailure.NO_SPACE,
    errno.EDQUOT: IncidentFailure.NO_SPACE,
}
_REMEDIES = {
    IncidentFailure.NO_DIRECTORY: "create it for the user that runs ephmon, or correct incidents.directory",
    IncidentFailure.PERMISSION: "let the user that runs ephmon write there",
    IncidentFailure.READ_ONLY: (
        "choose another directory, or allow this one with ReadWritePaths= or StateDirectory= in the systemd unit"
    ),
    IncidentFailure.NO_SPACE: "free some space, or choose another directory",
    IncidentFailure.SYSTEM: "choose another directory",
}


class FolderError(EphmonError):
    """An incident cannot be written."""

    def __init__(self, message: str, reason: IncidentFailure) -> None:
        super().__init__(message)
        self.reason = reason


class _Kept(NamedTuple):
    name: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """A directory and the limits on what is kept there. Every method may wait for a disk."""

    directory: str
    max_files: int
    max_bytes: int

    def check(self, now: float) -> None:
        """Check that an incident could be written, and remove unfinished files of crashed daemons.

        Args:
            now: Seconds since the epoch.

        Raises:
            FolderError: It could not be written.
        """
        with self._opened() as dir_fd:
            _remove_leftovers(dir_fd, now)
            name = f".ephmon-check-{os.urandom(8).hex()}.part"
            os.close(os.open(name, _CREATE, MODE, dir_fd=dir_fd))
            os.unlink(name, dir_fd=dir_fd)

    def age_of_latest(self, reason: str, now: float) -> float | None:
        """Return the age in seconds of the last incident with this reason, None if there is none before `now`.

        Raises:
            FolderError: The directory cannot be read.
        """
        with self._opened() as dir_fd:
            found = [match for kept in _kept(dir_fd) if (match := _NAME.fullmatch(kept.name)) and match[2] == reason]
        ages = [now - moment for match in found if (moment := _moment(match[1])) is not None]
        return min((age for age in ages if age >= 0), default=None)

    def write(self, content: bytes, *, reason: str, at: float) -> str:
        """Write an incident and return its path; the oldest files are removed to keep the limits.

        Args:
            content: The content of the file.
            reason: A word for the name of the file.
            at: When the incident was, in seconds since the epoch.

        Raises:
            FolderError: The file could not be written; no part of it is left.
        """
        if len(content) > self.max_bytes:
            size = f"{len(content) / (1 << 20):.1f} MiB"
            raise FolderError(
                f"The incident takes {size}; set incidents.max_mib above that.", IncidentFailure.TOO_LARGE
            )
        with self._opened() as dir_fd:
            _remove_leftovers(dir_fd, at)
            descriptor, unfinished, name = _claim(dir_fd, reason, at)
            try:
                _fill(descriptor, content)
                self._make_room(dir_fd, len(content))
                os.rename(unfinished, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
            except BaseException:
                with suppress(OSError):  # the first error is the one to report
                    os.unlink(unfinished, dir_fd=dir_fd)
                raise
            _sync_directory(dir_fd)
        return os.path.join(self.directory, name)  # noqa: PTH118 - a path for people, as the configuration has it

    def _make_room(self, dir_fd: int, size: int) -> None:
        kept = _kept(dir_fd)
        total = sum(one.size for one in kept)
        while kept and (len(kept) >= self.max_files or total + size > self.max_bytes):
            oldest = kept.pop(0)
            total -= oldest.size
            # Another daemon has removed it, or somebody made it immutable to keep it (chattr +i).
            with suppress(FileNotFoundError, PermissionError):
                os.unlink(oldest.name, dir_fd=dir_fd)

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """Open the directory and give its descriptor; every OSError inside becomes a FolderError."""
        dir_fd = None
        try:
            dir_fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            yield dir_fd
        except OSError as error:
            reason = _REASONS.get(error.errno or 0, IncidentFailure.SYSTEM)
            remedy = shortage(error) or _REMEDIES[reason]
            raise FolderError(
                f"{quote(self.directory, 200)} cannot be written ({error.strerror}): {remedy}.",
                reason,
            ) from error
        finally:
            if dir_fd is not None:
                os.close(dir_fd)


def names(directory: str) -> list[str]:
    """Return the names of the incident files in a directory, whoever wrote them, the latest first.

    Raises:
        OSError: The directory cannot be read.
    """
    with os.scandir(directory) as entries:
        found = [entry.name for entry in entries if _NAME.fullmatch(entry.name) and _is_file(entry)]
    return sorted(found, reverse=True)


def _is_file(entry: os.DirEntry[str]) -> bool:
    return entry.is_file(follow_symlinks=False)


def _claim(dir_fd: int, reason: str, at: float) -> tuple[int, str, str]:
    """Open a new file; return its descriptor, its name while it is unfinished, and its final name.

    Creating the unfinished file (O_EXCL) reserves the final name, so that two daemons never choose the same one.
    """
    moment = datetime.fromtimestamp(at, UTC).strftime(_TIME)
    for number in range(1, _MOST_OF_A_SECOND):
        name = f"ephmon-{moment}-{reason}{'' if number == 1 else f'-{number}'}.json"
        unfinished = f".{name}.part"
        try:
            descriptor = os.open(unfinished, _CREATE, MODE, dir_fd=dir_fd)
        except FileExistsError:
            continue
        if not _exists(name, dir_fd):
            return descriptor, unfinished, name
        os.close(descriptor)
        os.unlink(unfinished, dir_fd=dir_fd)
    raise FileExistsError(errno.EEXIST, f"{_MOST_OF_A_SECOND} incidents of the same second exist already")


def _exists(name: str, dir_fd: int) -> bool:
    try:
        os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _fill(descriptor: int, content: bytes) -> None:
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, MODE)
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def _sync_directory(dir_fd: int) -> None:
    try:
        os.fsync(dir_fd)
    except OSError as error:
        # Some file systems cannot fsync a directory (man 2 fsync).
        if error.errno != errno.EINVAL:
            raise


def _kept(dir_fd: int) -> list[_Kept]:
    """Return the incident files of ephmon's user, the oldest first."""
    with os.scandir(dir_fd) as entries:
        found = [_Kept(entry.name, status.st_size) for entry, status in _own(entries, _NAME)]
    return sorted(found)


def _remove_leftovers(dir_fd: int, now: float) -> None:
    with os.scandir(dir_fd) as entries:
        old = [entry.name for entry, status in _own(entries, _UNFINISHED) if now - status.st_mtime > LEFTOVER_SECONDS]
    for name in old:
        with suppress(FileNotFoundError):  # another daemon has removed it
            os.unlink(name, dir_fd=dir_fd)


def _own(
    entries: Iterator[os.DirEntry[str]], pattern: re.Pattern[str]
) -> Iterator[tuple[os.DirEntry[str], os.stat_result]]:
    """Yield the regular files of ephmon's user whose names match."""
    user = os.geteuid()
    for entry in entries:
        if not pattern.fullmatch(entry.name):
            continue
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:  # removed since the directory was read
            continue
        if stat.S_ISREG(status.st_mode) and status.st_uid == user:
            yield entry, status


def _moment(text: str) -> float | None:
    """Return the time in a file name as seconds since the epoch, None if there is no such time."""
    try:
        return datetime.strptime(text, _TIME).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None
