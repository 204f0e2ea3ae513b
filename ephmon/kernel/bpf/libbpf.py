"""libbpf.so.1 by ctypes, as little of it as loading one object and running one program take.

Source: libbpf's own headers, bpf/libbpf.h and bpf/bpf.h, version 1.0 and later.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

LIBRARY = "libbpf.so.1"
_LOG_BYTES = 16 << 20
"""The longest log that kernels write (UINT_MAX >> 8, bpf_verifier_log_attr_valid() in kernel/bpf/log.c)."""


class _RunOptions(ctypes.Structure):
    """struct bpf_test_run_opts of bpf/bpf.h."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_void_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    )


_POINTER, _INT, _TEXT = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p
_FUNCTIONS = {
    "libbpf_set_print": (_POINTER, [_POINTER]),
    "bpf_object__open_mem": (_POINTER, [_TEXT, ctypes.c_size_t, _POINTER]),
    "bpf_object__load": (_INT, [_POINTER]),
    "bpf_object__close": (None, [_POINTER]),
    "bpf_object__find_map_fd_by_name": (_INT, [_POINTER, _TEXT]),
    "bpf_object__find_program_by_name": (_POINTER, [_POINTER, _TEXT]),
    "bpf_program__fd": (_INT, [_POINTER]),
    "bpf_program__set_log_buf": (_INT, [_POINTER, _POINTER, ctypes.c_size_t]),
    "bpf_prog_test_run_opts": (_INT, [_INT, _POINTER]),
}


class Libbpf:
    """The library.

    Raises:
        OSError: It cannot be loaded.
        AttributeError: It lacks a function, so it is not version 1.
    """

    def __init__(self, name: str = LIBRARY) -> None:
        library = ctypes.CDLL(name, use_errno=True)
        for function, (result, arguments) in _FUNCTIONS.items():
            pointer = getattr(library, function)
            pointer.restype, pointer.argtypes = result, arguments
        # It would write to stderr whatever goes wrong.
        library.libbpf_set_print(None)
        self._library = library

    def open(self, content: bytes) -> BpfObject:
        """Open an object file. Nothing is in the kernel yet.

        Raises:
            OSError: It is not one that libbpf understands.
        """
        return BpfObject(self._library, content)

    def run(self, program: int) -> int:
        """Run a program of the type BPF_PROG_TYPE_SYSCALL, given by its descriptor; return what it returned.

        Raises:
            OSError: The kernel does not run it.
        """
        options = _RunOptions(sz=ctypes.sizeof(_RunOptions))
        _check(self._library.bpf_prog_test_run_opts(program, ctypes.byref(options)), "bpf_prog_test_run_opts")
        result: int = options.retval
        return result


class BpfObject:
    """An object file; a context manager. What it put into the kernel stays as long as somebody holds a descriptor."""

    def __init__(self, library: ctypes.CDLL, content: bytes) -> None:
        self._library = library
        self._pointer = library.bpf_object__open_mem(content, len(content), None)
        if not self._pointer:
            raise _error(ctypes.get_errno(), "bpf_object__open_mem")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._library.bpf_object__close(self._pointer)

    def load(self) -> None:
        """Put the maps and programs into the kernel.

        Raises:
            OSError: The kernel does not take them.
        """
        _check(self._library.bpf_object__load(self._pointer), "bpf_object__load")

    def load_with_log(self, program: str) -> str:
        """Load it, and return the last line that the kernel's verifier wrote of a program.

        For an object that the kernel refuses; opened anew, because libbpf loads none twice.
        """
        log = ctypes.create_string_buffer(_LOG_BYTES)
        self._library.bpf_program__set_log_buf(self._program(program), log, _LOG_BYTES)
        with suppress(OSError):
            self.load()
        lines = log.value.decode(errors="replace").strip().splitlines()
        return next((line for line in reversed(lines) if not line.startswith(("processed ", "-- "))), "")

    def map_descriptor(self, name: str) -> int:
        """Return the descriptor of a map; it is closed with the object.

        Raises:
            OSError: There is no such map, or it is not loaded.
        """
        return _check(self._library.bpf_object__find_map_fd_by_name(self._pointer, name.encode()), name)

    def program_descriptor(self, name: str) -> int:
        """Return the descriptor of a program; it is closed with the object.

        Raises:
            OSError: There is no such program, or it is not loaded.
        """
        return _check(self._library.bpf_program__fd(self._program(name)), name)

    def _program(self, name: str) -> int:
        pointer: int | None = self._library.bpf_object__find_program_by_name(self._pointer, name.encode())
        if not pointer:
            raise _error(ctypes.get_errno(), name)
        return pointer


def _check(result: int, what: str) -> int:
    """Return a result that is no error; libbpf 1 returns errors as negative numbers."""
    if result < 0:
        raise _error(-result, what)
    return result


def _error(number: int, what: str) -> OSError:
    # Numbers from 4000 on are libbpf's own (enum libbpf_errno), which strerror() does not know.
    return OSError(number, os.strerror(number) if number < 4000 else f"error {number} of libbpf", what)
