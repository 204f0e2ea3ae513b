"""What an ordinary user can do: functions are called in a process of uid 65534 without any capability."""

from __future__ import annotations

import ctypes
import os
import pickle
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
R = TypeVar("R")

NOBODY = 65534
_CAPSET_VERSION_3 = 0x20080522  # include/uapi/linux/capability.h


def as_ordinary_user(function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a function in a child of this process that has given up its rights; return or raise what it does.

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
    header, none = (ctypes.c_uint32 * 2)(_CAPSET_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, none):
        raise OSError(ctypes.get_errno(), "capset")
