"""A private tracefs instance that records failed connect() calls: made here or by somebody else, read, and removed.

The tracepoint sock:inet_sock_set_state fires in tcp_set_state(), which tcp_v4_connect() and tcp_v6_connect() call with
TCP_CLOSE when __inet_hash_connect() finds no port; the socket then has no source port yet. That tells such a call from
one that was refused or timed out (net/ipv4/tcp_ipv4.c). An instance has a buffer, a filter and switches of its own, so
nothing that others trace changes (Documentation/trace/ftrace.rst, "Instances").

An instance belongs to whoever holds a lock (flock(2)) on its directory. The kernel drops the lock with the process, so
an instance of ours without one was left behind by a crash and is removed. Process ids decide nothing, because two
containers may use the same. What this module writes, it writes inside an instance that it made; tracefs is never
mounted, and no setting of the host is touched.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

from ephmon.errors import KernelError, Reason, quote, shortage
from ephmon.kernel.trace.ring_buffer import parse_page_layout, parse_record_layout

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TRACING = Path("/sys/kernel/tracing")
"""Where tracefs is mounted."""
PREPARED = Path("/run/ephmon/tracing")
"""Where an instance that was prepared for ephmon is found."""
FILTER = "oldstate==2&&newstate==7&&sport==0&&protocol==6"
"""From SYN_SENT to CLOSE, without a source port, TCP."""

_NAME = re.compile(r"ephmon-\d+-[0-9a-f]{8}")
"""Of the instances that are made here."""
_EVENT = "events/sock/inet_sock_set_state"
_SWITCHES = ("tracing_on", f"{_EVENT}/enable")
_MOST_KIB, _MOST_KIB_OF_ONE, _LEAST_KIB_OF_ONE = 8192, 512, 64
"""The memory of the buffers, together and of one processor. A record takes 76 bytes."""
_TRIES = 8
_FILE_BYTES = 4096
_COUNTERS = 3
_LOST = re.compile(rb"^(?:overrun|commit overrun|dropped events): (\d+)$", re.MULTILINE)
_NOW = re.compile(rb"^now ts: +(\d{1,15}\.\d{6})$", re.MULTILINE)
_HOW_TO_PREPARE = "prepare an instance for ephmon, as docs/exhaustions.md says, or run it as root"
_CAUSES = {
    errno.EACCES: f"tracefs belongs to root; {_HOW_TO_PREPARE}",
    errno.EPERM: "lockdown=confidentiality or a security module forbids it",
    errno.EROFS: "it is mounted read-only (in a systemd unit: ProtectKernelTunables=yes); "
    "prepare an instance for ephmon, as docs/exhaustions.md says",
    errno.ENOENT: "this is not a tracing instance, or the kernel lacks sock:inet_sock_set_state (Linux 4.16)",
    errno.ENOMEM: "there is no memory for its buffers",
}


class InstanceInUseError(KernelError):
    """Another ephmon reads the instance."""

    reason = Reason.TRACEFS


class Instance:
    """An instance that records, with its files open; a context manager.

    Args:
        directory: The instance.
        held: What is to be undone when it is closed; taken over.

    Raises:
        KernelError: It is not set up as it must be, or cannot be read; what is held is undone then.
    """

    def __init__(self, directory: Path, held: ExitStack) -> None:
        self.directory = directory
        with held.pop_all() as opened, _noticing_removal(directory):
            self.pages = parse_page_layout(_read(directory / "events/header_page"))
            self.records = parse_record_layout(_read(directory / _EVENT / "format"))
            _require_setting(directory / _EVENT / "filter", FILTER, r"(.*)")
            _require_setting(directory / "trace_clock", "mono", r".*\[(\w+)\].*")
            self._switches = [(name, _open(opened, directory / name)) for name in _SWITCHES]
            processors = _processors(directory)
            self._stats = [_open(opened, processor / "stats") for processor in processors]
            self.buffers: Sequence[int] = [_open(opened, processor / "trace_pipe_raw") for processor in processors]
            """One descriptor for each processor; none blocks."""
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files, and remove the instance if it was made here. Closing twice does nothing.

        Raises:
            KernelError: It could not be removed; the next start of an ephmon tries again.
        """
        self._opened.close()

    def read_page(self, buffer: int) -> bytes:
        """Return the next page of a buffer, b"" if there is nothing to read.

        Raises:
            KernelError: It cannot be read.
        """
        try:
            return os.read(buffer, self.pages.size)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise _refusal(self.directory / "per_cpu", error) from error

    def lost(self) -> int:
        """Return how many events the kernel has counted since the instance was made and did not keep to be read.

        Raises:
            KernelError: The numbers cannot be read.
        """
        total = 0
        for stats in self._stats:
            total += parse_lost(self._reread(stats, "per_cpu/cpu*/stats"), self.directory / "per_cpu/cpu*/stats")
        return total

    def now(self) -> float:
        """Return what the clock says that events are stamped with, in seconds; a microsecond exactly.

        Raises:
            KernelError: It cannot be read.
        """
        return parse_now(self._reread(self._stats[0], "per_cpu/cpu*/stats"), self.directory / "per_cpu/cpu*/stats")

    def require_on(self) -> None:
        """Raise KernelError if somebody switched the recording off: what is not recorded must not look like nothing."""
        for name, switch in self._switches:
            if self._reread(switch, name).strip() != b"1":
                path = self.directory / name
                raise KernelError(f"{path} is off; switch it on: echo 1 > {path}", reason=Reason.TRACEFS)

    def _reread(self, descriptor: int, name: str) -> bytes:
        try:
            return os.pread(descriptor, _FILE_BYTES, 0)
        except OSError as error:
            raise _refusal(self.directory / name, error) from error


def open_instance(tracing: Path = TRACING, prepared: Path = PREPARED) -> Instance:
    """Return the instance that was prepared for ephmon, or else a new one, after removing those that crashes left.

    A prepared one that another ephmon reads is left to it.

    Raises:
        KernelError: Neither can be had; says what to grant.
    """
    if _exists(prepared):
        with suppress(InstanceInUseError):
            return use_instance(prepared)
    return make_instance(tracing)


def use_instance(directory: Path) -> Instance:
    """Return an instance that somebody else made, filtered and switched on; it stays when it is closed.

    Raises:
        InstanceInUseError: Another ephmon reads it.
        KernelError: It is not set up as it must be, or cannot be read.
    """
    with ExitStack() as held:
        try:
            is_ours = _lock(held, directory)
        except OSError as error:
            raise _refusal(directory, error) from error
        if not is_ours:
            raise InstanceInUseError(f"Another ephmon reads {directory}; prepare an instance for each.")
        return Instance(directory, held)


def make_instance(tracing: Path = TRACING) -> Instance:
    """Make an instance that is removed when it is closed, after removing those that crashes left.

    Raises:
        KernelError: tracefs is not mounted, not permitted, or lacks the tracepoint; says what to grant.
    """
    instances = tracing / "instances"
    if not _exists(instances):
        raise KernelError(_absence(tracing), reason=Reason.TRACEFS)
    remove_stale(instances)
    for _ in range(_TRIES):
        directory = instances / f"ephmon-{os.getpid()}-{secrets.token_hex(4)}"
        with ExitStack() as held:
            try:
                directory.mkdir()
                # Another ephmon that starts may take it for stale until it is locked, and remove it.
                if not (_lock(held, directory) and directory.exists()):
                    continue
            except FileNotFoundError:
                continue
            except OSError as error:
                # Named without the part that is drawn anew, so that each try says the same.
                raise _refusal(instances, error) from error
            held.callback(_remove, directory)
            with _noticing_removal(directory):
                _set_up(directory)
            return Instance(directory, held)
    raise KernelError(
        f"Another program removes each directory that ephmon makes in {instances}.", reason=Reason.TRACEFS
    )


def remove_stale(instances: Path) -> None:
    """Remove the instances that a crash left behind: named as ours, and locked by nobody.

    One that cannot be removed stays: somebody has a file of it open.
    """
    try:
        found = list(instances.iterdir())
    except OSError as error:
        raise _refusal(instances, error) from error
    for directory in found:
        # An instance of another ephmon may vanish at any moment.
        with suppress(OSError), ExitStack() as held:
            if _NAME.fullmatch(directory.name) and _lock(held, directory):
                directory.rmdir()


@contextmanager
def _noticing_removal(directory: Path) -> Iterator[None]:
    """Say of an error that the instance was removed if it was: the errno alone looks like a kernel without tracing."""
    try:
        yield
    except KernelError as error:
        if directory.exists():
            raise
        # One that was made here is named without the part that is drawn anew, so that each try says the same.
        place = directory.parent if _NAME.fullmatch(directory.name) else directory
        raise KernelError(
            f"The tracing instance in {place} was removed while ephmon opened it; ephmon tries again within a minute.",
            reason=Reason.TRACEFS,
        ) from error


def parse_lost(stats: bytes, where: Path) -> int:
    """Return how many events the `stats` of one processor count as lost; `where` is named in errors.

    Raises:
        KernelError: A counter is missing.
    """
    numbers = _LOST.findall(stats)
    if len(numbers) != _COUNTERS:
        raise KernelError(f"{where} lacks counters of lost events.", reason=Reason.TRACEFS)
    return sum(map(int, numbers))


def parse_now(stats: bytes, where: Path) -> float:
    """Return the time in the `stats` of a processor, in seconds; `where` is named in errors.

    Raises:
        KernelError: It is missing.
    """
    found = _NOW.search(stats)
    if found is None:
        raise KernelError(f"{where} lacks the time.", reason=Reason.TRACEFS)
    return float(found[1])


def _set_up(directory: Path) -> None:
    per_processor = min(_MOST_KIB_OF_ONE, max(_LEAST_KIB_OF_ONE, _MOST_KIB // len(_processors(directory))))
    _write(directory / "buffer_size_kb", str(per_processor))
    if (directory / "buffer_percent").exists():  # since Linux 5.0; before, whoever waits is woken by any event
        _write(directory / "buffer_percent", "0")
    _write(directory / "trace_clock", "mono")
    _write(directory / _EVENT / "filter", FILTER)
    _write(directory / _EVENT / "enable", "1")


def _lock(held: ExitStack, directory: Path) -> bool:
    """Lock an instance until `held` ends; False if somebody else has locked it. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    held.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove(directory: Path) -> None:
    try:
        directory.rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        raise KernelError(
            f"The tracing instance {directory} cannot be removed ({error.strerror}); "
            f"when nobody reads it, run: rmdir {directory}",
            reason=Reason.TRACEFS,
        ) from error


def _processors(directory: Path) -> list[Path]:
    """Return the directories of the processors, in the order of their numbers: at least one."""
    try:
        found = sorted((directory / "per_cpu").glob("cpu*"), key=lambda one: int(one.name.removeprefix("cpu")))
    except OSError as error:
        raise _refusal(directory / "per_cpu", error) from error
    if not found:  # glob() finds nothing in a directory that is not there
        raise _refusal(directory / "per_cpu", FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)))
    return found


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise _refusal(path, error) from error


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise _refusal(path, error) from error


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise _refusal(path, error) from error


def _open(opened: ExitStack, path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _refusal(path, error) from error
    opened.callback(os.close, descriptor)
    return descriptor


def _require_setting(path: Path, wanted: str, pattern: str) -> None:
    content = _read(path).strip()
    found = re.fullmatch(pattern, content)
    if found is None or found[1] != wanted:
        raise KernelError(
            f"{path} is {quote(content, 200)}; before you enable the event, run: echo '{wanted}' > {path}",
            reason=Reason.TRACEFS,
        )


def _absence(tracing: Path) -> str:
    if _exists(tracing):
        return f"No tracefs is mounted at {tracing}; mount one: mount -t tracefs tracefs {tracing}"
    return f"There is no {tracing}: the kernel is built without tracing, or a container or sandbox hides it."


def _refusal(path: Path, error: OSError) -> KernelError:
    """Return the error for a file of tracefs, with the likely cause and what to grant."""
    cause = shortage(error) or _CAUSES.get(error.errno or 0, "the kernel refuses it")
    return KernelError(f"{path} cannot be used ({error.strerror}): {cause}.", reason=Reason.TRACEFS)
