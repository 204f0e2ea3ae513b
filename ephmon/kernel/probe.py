"""The probe: asks the kernel itself whether connect() may share a port, without sending a packet.

A socket that is limited to one port (IP_LOCAL_PORT_RANGE) and in repair mode (TCP_REPAIR) goes through the whole search
of `__inet_hash_connect()` and is connected without a handshake. That it succeeds means that the port is shared or free;
EADDRNOTAVAIL means that it is blocked.

What makes it harmless: the destination is a dummy on loopback, because toward a real one the search would recycle its
TIME_WAITs; the port is held for some ten microseconds, so only ports that have a socket already are asked about unless
the caller says otherwise; closing in repair mode sends nothing. Each success counts once in Tcp.EstabResets.

Sources: man 7 ip (IP_LOCAL_PORT_RANGE), tcp_v4_connect() in net/ipv4/tcp_ipv4.c, tcp_repair in net/ipv4/tcp.c. Needs
CAP_NET_ADMIN in the user namespace that owns the network namespace, and Linux 6.3 or a stable kernel with the option.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import TYPE_CHECKING

from ephmon.errors import KernelError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ephmon.kernel.deadline import Deadline

_IP_LOCAL_PORT_RANGE = 51  # include/uapi/linux/in.h
_TCP_REPAIR = 19  # include/uapi/linux/tcp.h
_RANGE = struct.Struct("=I")
_DUMMY = ("127.0.0.1", 9)


class ProbeUnavailableError(KernelError):
    """The kernel or the privileges do not allow the probe."""

    reason = "probe"


def probe(ports: Iterable[int], deadline: Deadline) -> dict[int, bool]:
    """Return for each port whether connect() may share it; all ports must be usable ones.

    Raises:
        ProbeUnavailableError: The kernel is too old, the capability is missing, or loopback is down.
        KernelError: The deadline passed.
    """
    answers = {}
    for port in ports:
        deadline.check()
        answers[port] = _may_be_shared(port)
    return answers


def require_probe() -> None:
    """Raise ProbeUnavailableError if sockets cannot be set up for the probe; no port is touched."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as ours:
        _set_up(ours, 1)


def _may_be_shared(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as ours:
        _set_up(ours, port)
        number = ours.connect_ex(_DUMMY)
        if number == errno.EADDRNOTAVAIL:
            return False
        if number:
            raise ProbeUnavailableError(
                f"The probe cannot connect to 127.0.0.1 ({os.strerror(number)}): set the device lo up."
            )
        # The kernel ignores a limit outside the port range, which may have changed a moment ago.
        if ours.getsockname()[1] != port:
            raise KernelError("ip_local_port_range changed during the probe; try again.", reason="sysctl")
        return True


def _set_up(ours: socket.socket, port: int) -> None:
    try:
        ours.setsockopt(socket.IPPROTO_IP, _IP_LOCAL_PORT_RANGE, _RANGE.pack(port << 16 | port))
    except OSError as error:
        raise ProbeUnavailableError(
            "The probe needs a kernel with IP_LOCAL_PORT_RANGE: Linux 6.3, or a stable kernel that has it."
        ) from error
    try:
        ours.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
    except PermissionError as error:
        raise ProbeUnavailableError(
            "The probe needs CAP_NET_ADMIN; run it as root, or grant that capability."
        ) from error
    except OSError as error:
        raise ProbeUnavailableError(f"The kernel does not offer TCP_REPAIR ({error.strerror}).") from error
