"""What an ordinary user can do: functions are called as uid 65534 without any capability."""

from __future__ import annotations

import ctypes
import os
import pickle
import platform
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

from tests.processes import with_readable_code

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

P = ParamSpec("P")
R = TypeVar("R")

NOBODY = 65534
_CAPSET_VERSION_3 = 0x20080522  # include/uapi/linux/capability.h
_LIBC = ctypes.CDLL(None, use_errno=True)


class _Calls(NamedTuple):
    """Numbers of system calls."""

    setgroups: int
    setresgid: int
    setresuid: int


_CALLS = {"x86_64": _Calls(116, 119, 117), "aarch64": _Calls(159, 149, 147)}
"""arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h."""


def command_of_nobody(*rights: str) -> list[str]:
    """Return the beginning of a command line that runs a program as uid 65534; for root.

    Args:
        rights: Options of setpriv; without them the program has no capability and cannot get one.
    """
    user = f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"
    return [*with_readable_code(), "setpriv", *user, *(rights or ("--bounding-set=-all",)), "--"]


@contextmanager
def readable_folder() -> Iterator[Path]:
    """Make a folder that every user can look into, unlike into pytest's own."""
    with tempfile.TemporaryDirectory(prefix="ephmon-test-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def as_ordinary_user(function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function in a child of this process that has given up its rights; return or raise what it does.

    Its /proc/self and its limits are those of an ordinary user too.

    The child may be unable to read our code, so the modules that the function needs must be imported already.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            with os.fdopen(writing, "wb") as answer:
                answer.write(_answer(function, args, kwargs))
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    succeeded, outcome = pickle.loads(told)
    if not succeeded:
        raise outcome
    result: R = outcome
    return result


def as_thread_of_ordinary_user(function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function in a thread of this process that has given up its rights; return or raise what it does.

    The kernel keeps credentials for each thread (man 7 credentials), and asks those of the thread that calls it. So
    this is as good for system calls on sockets, and costs no fork(), which takes user-mode Linux half a second.
    """
    with ThreadPoolExecutor(max_workers=1, initializer=_give_up_rights_of_this_thread) as thread:
        return thread.submit(function, *args, **kwargs).result()


def _give_up_rights_of_this_thread() -> None:
    """Do as `give_up_rights`, where the C library would do it for all threads (man 7 nptl)."""
    calls = _CALLS[platform.machine()]
    nobody = [ctypes.c_long(NOBODY)] * 3
    _LIBC.syscall(ctypes.c_long(calls.setgroups), ctypes.c_long(0), None)
    _LIBC.syscall(ctypes.c_long(calls.setresgid), *nobody)
    _LIBC.syscall(ctypes.c_long(calls.setresuid), *nobody)
    _give_up_capabilities()


def _answer(function: Callable[..., object], args: Any, kwargs: Any) -> bytes:
    try:
        give_up_rights()
        return pickle.dumps((True, function(*args, **kwargs)))
    except Exception as error:  # noqa: BLE001 - whatever it is, the caller must see it
        return pickle.dumps((False, error))


def give_up_rights() -> None:
    """Become uid 65534 without a capability; in a user namespace where that user does not exist, only the latter."""
    with suppress(OSError):
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    _give_up_capabilities()


def _give_up_capabilities() -> None:
    header, none = (ctypes.c_uint32 * 2)(_CAPSET_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    if _LIBC.capset(header, none):
        raise OSError(ctypes.get_errno(), "capset")
