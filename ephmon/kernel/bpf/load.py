"""Puts the program that walks the bind table into the kernel, or says in one sentence why that cannot be.

Capabilities are needed for this alone: the walk goes on after a process has given them up. Nothing is pinned, so all of
it is gone from the kernel with the process, however that ends.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ephmon.errors import KernelError, Reason, shortage
from ephmon.facts.foreign_text import printable
from ephmon.kernel.bpf.libbpf import LIBRARY, Libbpf
from ephmon.kernel.proc.file import read_file
from ephmon.kernel.proc.sysctl import read_release

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


COPYING, DIRECT = (Path(__file__).with_name(f"bind_table.{kind}.bpf.o") for kind in ("copying", "direct"))
"""What script/bpf makes of bind_table.bpf.c: for every kernel, and the one that is cheaper by a third."""
PROGRAM = "walk_bind_table"
FIRST_RELEASE_FOR_DIRECT = (6, 2)
"""Since then a program can read the kernel's memory by plain loads (bpf_rdonly_cast())."""
FIRST_RELEASE = (6, 1)
"""Since then a namespace leads to the table (inet_timewait_death_row.hashinfo). bpf_loop() came with Linux 5.17."""
SYS = Path("/sys")

_CAP_SYS_ADMIN, _CAP_PERFMON, _CAP_BPF = 21, 38, 39  # include/uapi/linux/capability.h
_FIRST_USER_NAMESPACE = 0xEFFFFFFD  # PROC_USER_INIT_INO, include/linux/proc_ns.h
_EFFECTIVE = re.compile(rb"^CapEff:\t([0-9a-f]{16})$", re.MULTILINE)


class BpfUnavailableError(KernelError):
    """The bind table cannot be walked by BPF here. The message is one sentence."""

    reason = Reason.UNAVAILABLE


class MappedMap:
    """The memory of a BPF map that is an array.

    Only as much of it is mapped as was ever read: what is mapped counts as memory of this process.

    Args:
        descriptor: The map; it is duplicated.
        size: How many bytes the array has.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor = os.dup(descriptor)
        self._size = size
        try:
            self._memory = mmap.mmap(descriptor, min(size, mmap.PAGESIZE))
        except BaseException:
            os.close(self._descriptor)
            raise

    def read(self, size: int) -> bytes:
        """Return the first bytes, not more than there are.

        Raises:
            OSError: There is no memory to map them.
        """
        size = min(size, self._size)
        if size > len(self._memory):
            grown = mmap.mmap(self._descriptor, min(self._size, 2 * size))
            self._memory.close()
            self._memory = grown
        return self._memory[:size]

    def write(self, content: bytes) -> None:
        """Replace the first bytes, at most a page."""
        self._memory[: len(content)] = content

    def close(self) -> None:
        """Unmap it, and give the map back to the kernel."""
        self._memory.close()
        os.close(self._descriptor)


class Loaded(NamedTuple):
    """The program in the kernel, and its maps in memory."""

    run: Callable[[], int]
    """Runs the program once and returns what it returned; raises OSError."""
    maps: Mapping[str, MappedMap]
    close: Callable[[], None]
    is_direct: bool
    """Whether it reads the kernel's memory by plain loads, which is cheaper."""


def load(maps: Mapping[str, int], *, proc: Path, sys_root: Path = SYS, library: str = LIBRARY) -> Loaded:
    """Load the program.

    Args:
        maps: The maps to map into memory, and how many bytes each has.
        proc: Where procfs is mounted.
        sys_root: Where sysfs is mounted.
        library: What the dynamic linker is asked for.

    Raises:
        BpfUnavailableError: It cannot be loaded.
    """
    release = _check_machine(proc, sys_root)
    try:
        libbpf = Libbpf(library)
    except OSError as error:
        raise BpfUnavailableError(
            f"{library} cannot be loaded ({error}); install libbpf 1, the package libbpf1 on Debian and Ubuntu."
        ) from error
    except AttributeError as error:
        raise BpfUnavailableError(f"{library} is not libbpf 1, because it lacks a function ({error}).") from error
    if release >= FIRST_RELEASE_FOR_DIRECT:
        # A kernel that does not take this one may take the other, which then has the better reason why not.
        with suppress(OSError):
            return _load(libbpf, DIRECT.read_bytes(), maps, is_direct=True)
    try:
        content = COPYING.read_bytes()
    except OSError as error:
        raise BpfUnavailableError(f"The BPF program {COPYING} cannot be read: {error.strerror}.") from error
    try:
        return _load(libbpf, content, maps, is_direct=False)
    except OSError as error:
        why = _refusal(error, proc, sys_root) or _refusal_by_verifier(error, libbpf, content)
        raise BpfUnavailableError(why) from error


def _load(libbpf: Libbpf, content: bytes, maps: Mapping[str, int], *, is_direct: bool) -> Loaded:
    """Load one object, map its maps and keep its program, so that the object and its memory can go.

    Raises:
        OSError: It cannot be loaded.
    """
    with libbpf.open(content) as one, ExitStack() as kept:
        one.load()
        program = os.dup(one.program_descriptor(PROGRAM))
        kept.callback(os.close, program)
        mapped = {}
        for name, size in maps.items():
            mapped[name] = MappedMap(one.map_descriptor(name), size)
            kept.callback(mapped[name].close)
        return Loaded(lambda: libbpf.run(program), mapped, kept.pop_all().close, is_direct)


def _check_machine(proc: Path, sys_root: Path) -> tuple[int, int]:
    """Return the kernel's release; raise if this cannot work here, whoever tries."""
    release = read_release(proc)
    if release < FIRST_RELEASE:
        needed = ".".join(map(str, FIRST_RELEASE))
        raise BpfUnavailableError(
            f"Linux {release[0]}.{release[1]} is too old: BPF can walk the bind table from Linux {needed} on."
        )
    if sys.byteorder != "little" or sys.maxsize < 1 << 32:
        raise BpfUnavailableError("The BPF program is only for 64-bit little-endian machines.")
    if not (btf := sys_root / "kernel/btf/vmlinux").exists():
        raise BpfUnavailableError(
            f"{btf} is missing, so where the members of kernel structures are is not known; it takes a kernel with "
            "CONFIG_DEBUG_INFO_BTF."
        )
    return release


def _refusal(error: OSError, proc: Path, sys_root: Path) -> str:
    """Return why the kernel did not take the program, nothing where its verifier did not like it."""
    if _locked_down(sys_root):
        return "The kernel is locked down (lockdown=confidentiality), so BPF may not read its memory."
    # Both come with several errnos: with CAP_BPF alone the verifier knows no function that reads the kernel's memory.
    if not _is_in_first_user_namespace(proc):
        return (
            "This process is in a user namespace of its own, as in a rootless container, where the kernel loads no "
            "such BPF program."
        )
    if not _may_load(proc):
        return "Loading a BPF program takes the capabilities CAP_BPF and CAP_PERFMON, and this process lacks them."
    if error.errno in (errno.EPERM, errno.ENOSYS):
        return (
            f"The system call bpf() is not allowed here ({error.strerror}); allow it by "
            "SystemCallFilter=bpf in a systemd unit, or by the container's seccomp profile."
        )
    if what := shortage(error):
        return f"The BPF program cannot be loaded ({error.strerror}); {what}."
    return ""


def _refusal_by_verifier(error: OSError, libbpf: Libbpf, content: bytes) -> str:
    """Load once more, for the verifier's words."""
    words = ""
    with suppress(OSError), libbpf.open(content) as one:
        words = printable(one.load_with_log(PROGRAM))
    return f"The kernel refuses the BPF program ({error.strerror}{': ' if words else ''}{words})."


def _locked_down(sys_root: Path) -> bool:
    try:
        return "[confidentiality]" in (sys_root / "kernel/security/lockdown").read_text(encoding="ascii")
    except OSError:
        return False  # no such security module, or securityfs is not mounted; the verifier has its own words then


def _is_in_first_user_namespace(proc: Path) -> bool:
    """Tell whether capabilities of this process count for bpf_capable(), which asks init_user_ns alone."""
    try:
        return (proc / "self/ns/user").stat().st_ino == _FIRST_USER_NAMESPACE
    except OSError:
        return True  # a kernel without user namespaces, or a /proc that hides them


def _may_load(proc: Path) -> bool:
    """Tell whether this process has the capabilities that loading takes (bpf_capable() and perfmon_capable())."""
    found = _EFFECTIVE.search(read_file(proc, "self/status", reason=Reason.PROCFS))
    capabilities = int(found[1], 16) if found else 0
    needed = 1 << _CAP_BPF | 1 << _CAP_PERFMON
    return bool(capabilities & 1 << _CAP_SYS_ADMIN) or capabilities & needed == needed
