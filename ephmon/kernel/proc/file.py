"""Small files of /proc, each read whole with a single read(), and the sentences that say why one cannot be read.

In come the root of a procfs and the name of a file below it, out go its bytes or a KernelError. Nothing is parsed here.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from ephmon.errors import KernelError, Reason, quote, shortage

if TYPE_CHECKING:
    from pathlib import Path

# The longest file that there can be, a list of reserved ports with every third port free, has some 254,740 bytes.
# proc_sys_call_handler() (fs/proc/proc_sysctl.c) allocates what is asked for and one byte, so the most comes last.
_READ_BYTES = ((1 << 12) - 1, (1 << 15) - 1, (1 << 18) - 1)
_SHOWN_CHARACTERS = 200


def read_file(proc: Path, name: str, *, reason: Reason) -> bytes:
    """Return the whole content of `proc/name`, fewer than 256 KiB.

    It comes from a single read(): proc_do_large_bitmap() (kernel/sysctl.c) answers every further one with an end of
    file, so that a list which outgrows the buffer of the first would be cut without a sign of it.

    Raises:
        KernelError: With `reason`; the file is absent, cannot be read or is longer.
    """
    content = read_file_if_present(proc, name, reason=reason)
    if content is None:
        absent = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        raise unreadable(proc, name, absent, reason=reason)
    return content


def read_file_if_present(proc: Path, name: str, *, reason: Reason) -> bytes | None:
    """Return what `read_file` does, or None if the file does not exist.

    Raises:
        KernelError: As `read_file` does; that the file exists and may not be read is an error, not an absence.
    """
    try:
        with (proc / name).open("rb", buffering=0) as file:
            for size in _READ_BYTES:
                file.seek(0)
                content = file.read(size)
                if len(content) < size:
                    return content
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unreadable(proc, name, error, reason=reason) from error
    raise KernelError(
        f"{proc / name} has more than {_READ_BYTES[-1] - 1} bytes, which is more than the kernel writes.", reason=reason
    )


def unreadable(proc: Path, name: str, error: OSError, *, reason: Reason) -> KernelError:
    """Return the error for a file below `proc` that could not be read, with the likely cause and what to change."""
    return KernelError(f"{proc / name} cannot be read ({error.strerror}): {_cause(proc, name, error)}.", reason=reason)


def quoted(content: bytes) -> str:
    """Return content of a file as it may stand in an error: escaped, and no longer than a row of a socket table."""
    return quote(content.decode("latin-1"), _SHOWN_CHARACTERS)


def _cause(proc: Path, name: str, error: OSError) -> str:
    top = name.partition("/")[0]
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"the file's mode or a security module (AppArmor, SELinux) forbids it; allow ephmon to read {proc / top}"
    if error.errno != errno.ENOENT:
        return shortage(error) or "the kernel or a sandbox refuses it"
    if not (proc / "self").exists():
        return f"no procfs of this process is mounted at {proc}; mount one there"
    if not (proc / top).exists():
        return (
            "this procfs shows processes only; remove ProcSubset=pid from the systemd unit, or mount without subset=pid"
        )
    return f"the kernel does not have it, or a container or sandbox masks {proc / top}; do not mask it"
