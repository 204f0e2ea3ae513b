"""connect() by io_uring, without a library: one request in a ring of one entry (man 7 io_uring)."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
import struct
from contextlib import closing
from pathlib import Path

_SETUP, _ENTER = 425, 426  # include/uapi/asm-generic/unistd.h
_OP_CONNECT = 16  # include/uapi/linux/io_uring.h, as all that follows
_SQE_ASYNC = 1 << 4
_ENTER_GETEVENTS = 1
_OFFSET_SQES = 0x10000000
_SQE_BYTES = 64
_SQE = struct.Struct("=BBHiQQ")
_PARAMETER_BYTES, _SQ_OFFSETS, _CQ_OFFSETS = 120, 40, 80
_OFFSETS = struct.Struct("=7I")
_SOCKADDR_IN = struct.Struct("=H2s4s8x")


def is_available() -> bool:
    """Tell whether this kernel has io_uring and allows it to us."""
    setting = Path("/proc/sys/kernel/io_uring_disabled")
    descriptor = ctypes.CDLL(None).syscall(_SETUP, 1, (ctypes.c_char * _PARAMETER_BYTES)())
    if descriptor >= 0:
        os.close(descriptor)
    return descriptor >= 0 and not (setting.exists() and setting.read_text().strip() == "2")


def connect(sock: socket.socket, address: tuple[str, int]) -> int:
    """Connect an IPv4 socket from a worker of the kernel and return the error, 0 if there is none."""
    parameters = ctypes.create_string_buffer(_PARAMETER_BYTES)
    ring = _system_call(_SETUP, 1, parameters)
    try:
        return _connect(ring, parameters.raw, sock, address)
    finally:
        os.close(ring)


def _connect(ring: int, parameters: bytes, sock: socket.socket, address: tuple[str, int]) -> int:
    _, sq_tail, *_, sq_array = _OFFSETS.unpack_from(parameters, _SQ_OFFSETS)
    cqes = _OFFSETS.unpack_from(parameters, _CQ_OFFSETS)[5]
    host, port = address
    raw = _SOCKADDR_IN.pack(socket.AF_INET, port.to_bytes(2, "big"), socket.inet_aton(host))
    target = ctypes.create_string_buffer(raw, len(raw))
    with (
        closing(mmap.mmap(ring, mmap.PAGESIZE)) as queues,
        closing(mmap.mmap(ring, _SQE_BYTES, offset=_OFFSET_SQES)) as requests,
    ):
        _SQE.pack_into(requests, 0, _OP_CONNECT, _SQE_ASYNC, 0, sock.fileno(), len(raw), ctypes.addressof(target))
        struct.pack_into("=I", queues, sq_array, 0)
        struct.pack_into("=I", queues, sq_tail, 1)
        _system_call(_ENTER, ring, 1, 1, _ENTER_GETEVENTS, None, 0)
        _, result = struct.unpack_from("=Qi", queues, cqes)
    return -int(result)


def _system_call(number: int, *arguments: object) -> int:
    library = ctypes.CDLL(None, use_errno=True)
    result = int(library.syscall(number, *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, errno.errorcode.get(code, "?"))
    return result
