"""What a sandbox forbids: system calls that fail in this process from now on (man 2 seccomp)."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import socket
import struct

_SOCKET, _CONNECT, BIND, GETSOCKNAME, PRLIMIT, BPF = {
    "x86_64": (41, 42, 49, 51, 302, 321),
    "aarch64": (198, 203, 200, 204, 261, 280),
}[platform.machine()]
"""Numbers of system calls (include/uapi/asm-generic/unistd.h, arch/x86/entry/syscalls/syscall_64.tbl)."""
_NO_NEW_PRIVILEGES, _SECCOMP, _BY_FILTER = 38, 22, 2  # include/uapi/linux/prctl.h
_LOAD, _IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # include/uapi/linux/bpf_common.h
_FAIL, _ALLOW = 0x00050000, 0x7FFF0000  # include/uapi/linux/seccomp.h
_NUMBER, _FIRST_ARGUMENT = 0, 16  # struct seccomp_data


def refuse_netlink() -> None:
    """Let this process open no AF_NETLINK socket, as RestrictAddressFamilies= does (man 5 systemd.exec)."""
    _install(
        (_LOAD, 0, 0, _NUMBER),
        (_IF_EQUAL, 0, 3, _SOCKET),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_IF_EQUAL, 0, 1, socket.AF_NETLINK),
        (_RETURN, 0, 0, _FAIL | errno.EAFNOSUPPORT),
        (_RETURN, 0, 0, _ALLOW),
    )


def refuse_to_connect(number: int) -> None:
    """Let every connect() of this process fail with this errno."""
    refuse(_CONNECT, number)


def refuse(system_call: int, number: int = errno.EPERM) -> None:
    """Let a system call fail with this errno, in this process and in what it starts."""
    _install(
        (_LOAD, 0, 0, _NUMBER), (_IF_EQUAL, 0, 1, system_call), (_RETURN, 0, 0, _FAIL | number), (_RETURN, 0, 0, _ALLOW)
    )


def _install(*program: tuple[int, int, int, int]) -> None:
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *operation) for operation in program))
    filter_ = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((_NO_NEW_PRIVILEGES, 1, 0, 0, 0), (_SECCOMP, _BY_FILTER, filter_, 0, 0)):
        if libc.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
