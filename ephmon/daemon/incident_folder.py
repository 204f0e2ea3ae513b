"""The directory of incidents: files that are there whole or not at all, and of which the oldest go.

A file gets its name when all of it is on the disk. What is removed was written by ephmon: a regular file of ephmon's
own user with a name that ephmon gives. The directory may be reached by symbolic links, since systemd makes one of
/var/lib/ephmon, and whoever writes the configuration is trusted; within it none is followed. Several daemons may use
one directory at the same time.
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

from ephmon.errors import EphmonError, quote
from ephmon.model.incident_status import FailureReason

if TYPE_CHECKING:
    from collections.abc import Iterator

MODE = 0o640
"""Of the files, whatever the umask: people of the group of ephmon may read them."""
LEFTOVER_SECONDS = 600.0
"""A file that is unfinished for so long was left behind by a crash."""

_NAME = re.compile(r"ephmon-([0-9]{8}T[0-9]{6}Z)-([a-z]+)(?:-[0-9]+)?\.json", re.ASCII)
_UNFINISHED = re.compile(rf"\.(?:{_NAME.pattern}|ephmon-check-[0-9a-f]+)\.part", re.ASCII)
_TIME = "%Y%m%dT%H%M%SZ"
_MOST_OF_A_SECOND = 100
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_REASONS = {
    errno.ENOENT: FailureReason.NO_DIRECTORY,
    errno.ENOTDIR: FailureReason.NO_DIRECTORY,
    errno.EACCES: FailureReason.PERMISSION,
    errno.EPERM: FailureReason.PERMISSION,
    errno.EROFS: FailureReason.READ_ONLY,
    errno.ENOSPC: FailureReason.NO_SPACE,
    errno.EDQUOT: FailureReason.NO_SPACE,
}
_REMEDIES = {
    FailureReason.NO_DIRECTORY: "create it for the user that ephmon runs as, or correct incidents.directory",
    FailureReason.PERMISSION: "let the user that ephmon runs as write there",
    FailureReason.READ_ONLY: "choose another, or allow it (ReadWritePaths= or StateDirectory= of a systemd unit)",
    FailureReason.NO_SPACE: "make room, or choose another",
    FailureReason.SYSTEM: "choose another",
}


class FolderError(EphmonError):
    """An incident cannot be kept."""

    def __init__(self, message: str, reason: FailureReason) -> None:
        super().__init__(message)
        self.reason = reason


class _Kept(NamedTuple):
    name: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """A directory and how much is kept there. Everything here may wait for a disk."""

    directory: str
    max_files: int
    max_bytes: int

    def check(self, now: float) -> None:
        """See whether an incident could be kept, and remove what crashes have left behind.

        Args:
            now: Seconds since the epoch.

        Raises:
            FolderError: It could not.
        """
        with self._opened() as place:
            _remove_leftovers(place, now)
            name = f".ephmon-check-{os.urandom(8).hex()}.part"
            os.close(os.open(name, _CREATE, MODE, dir_fd=place))
            os.unlink(name, dir_fd=place)

    def age_of_latest(self, reason: str, now: float) -> float | None:
        """Return how many seconds ago the last incident of this reason was, None if none is known of before `now`.

        Raises:
            FolderError: The directory cannot be read.
        """
        with self._opened() as place:
            found = [match for kept in _kept(place) if (match := _NAME.fullmatch(kept.name)) and match[2] == reason]
        ages = [now - moment for match in found if (moment := _moment(match[1])) is not None]
        return min((age for age in ages if age >= 0), default=None)

    def write(self, content: bytes, *, reason: str, at: float) -> str:
        """Keep an incident and return its path; what is too much by then is removed, the oldest first.

        Args:
            content: What the file is to hold.
            reason: A word for its name.
            at: When the incident was, in seconds since the epoch.

        Raises:
            FolderError: It could not be kept; nothing of it is left.
        """
        if len(content) > self.max_bytes:
            size = f"{len(content) / (1 << 20):.1f} MiB"
            raise FolderError(
                f"The incident report has {size}; raise incidents.max_mib above that.", FailureReason.TOO_LARGE
            )
        with self._opened() as place:
            _remove_leftovers(place, at)
            descriptor, unfinished, name = _claim(place, reason, at)
            try:
                _fill(descriptor, content)
                self._make_room(place, len(content))
                os.rename(unfinished, name, src_dir_fd=place, dst_dir_fd=place)
            except BaseException:
                with suppress(OSError):  # what went wrong first is what is told
                    os.unlink(unfinished, dir_fd=place)
                raise
            _sync_directory(place)
        return os.path.join(self.directory, name)  # noqa: PTH118 - a path for people, as the configuration has it

    def _make_room(self, place: int, size: int) -> None:
        kept = _kept(place)
        total = sum(one.size for one in kept)
        while kept and (len(kept) >= self.max_files or total + size > self.max_bytes):
            oldest = kept.pop(0)
            total -= oldest.size
            # Another daemon was faster, or somebody has made it immutable so that it stays.
            with suppress(FileNotFoundError, PermissionError):
                os.unlink(oldest.name, dir_fd=place)

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """Give a descriptor of the directory; whatever the system refuses meanwhile becomes a FolderError."""
        place = None
        try:
            place = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            yield place
        except OSError as error:
            reason = _REASONS.get(error.errno or 0, FailureReason.SYSTEM)
            raise FolderError(
                f"Nothing can be written in {quote(self.directory, 200)} ({error.strerror}): {_REMEDIES[reason]}.",
                reason,
            ) from error
        finally:
            if place is not None:
                os.close(place)


def names(directory: str) -> list[str]:
    """Return the names of the incidents in a directory, whoever wrote them, the latest first.

    Raises:
        OSError: It cannot be read.
    """
    with os.scandir(directory) as entries:
        found = [entry.name for entry in entries if _NAME.fullmatch(entry.name) and _is_file(entry)]
    return sorted(found, reverse=True)


def _is_file(entry: os.DirEntry[str]) -> bool:
    return entry.is_file(follow_symlinks=False)


def _claim(place: int, reason: str, at: float) -> tuple[int, str, str]:
    """Open a new file and return its descriptor, its name until it is finished, and its name from then on.

    Whoever has made the unfinished file is the only one who may take the name that belongs to it.
    """
    moment = datetime.fromtimestamp(at, UTC).strftime(_TIME)
    for number in range(1, _MOST_OF_A_SECOND):
        name = f"ephmon-{moment}-{reason}{'' if number == 1 else f'-{number}'}.json"
        unfinished = f".{name}.part"
        try:
            descriptor = os.open(unfinished, _CREATE, MODE, dir_fd=place)
        except FileExistsError:
            continue
        if not _exists(name, place):
            return descriptor, unfinished, name
        os.close(descriptor)
        os.unlink(unfinished, dir_fd=place)
    raise FileExistsError(errno.EEXIST, f"{_MOST_OF_A_SECOND} incidents of one second are there")


def _exists(name: str, place: int) -> bool:
    try:
        os.stat(name, dir_fd=place, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _fill(descriptor: int, content: bytes) -> None:
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, MODE)
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def _sync_directory(place: int) -> None:
    try:
        os.fsync(place)
    except OSError as error:
        # Some file systems have no such thing for directories (man 2 fsync).
        if error.errno != errno.EINVAL:
            raise


def _kept(place: int) -> list[_Kept]:
    """Return the incidents that ephmon's user wrote, the oldest first."""
    with os.scandir(place) as entries:
        found = [_Kept(entry.name, status.st_size) for entry, status in _own(entries, _NAME)]
    return sorted(found)


def _remove_leftovers(place: int, now: float) -> None:
    with os.scandir(place) as entries:
        old = [entry.name for entry, status in _own(entries, _UNFINISHED) if now - status.st_mtime > LEFTOVER_SECONDS]
    for name in old:
        with suppress(FileNotFoundError):  # another daemon was faster
            os.unlink(name, dir_fd=place)


def _own(
    entries: Iterator[os.DirEntry[str]], pattern: re.Pattern[str]
) -> Iterator[tuple[os.DirEntry[str], os.stat_result]]:
    """Yield the regular files of ephmon's user whose names are of this form."""
    user = os.geteuid()
    for entry in entries:
        if not pattern.fullmatch(entry.name):
            continue
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:  # it went meanwhile
            continue
        if stat.S_ISREG(status.st_mode) and status.st_uid == user:
            yield entry, status


def _moment(text: str) -> float | None:
    """Return the time of a name in seconds since the epoch, None for one that there is not."""
    try:
        return datetime.strptime(text, _TIME).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None
