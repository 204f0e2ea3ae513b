"""The probe: asks the kernel itself whether connect() may share a port, without sending a packet.

A socket that is limited to one port (IP_LOCAL_PORT_RANGE) and in repair mode (TCP_REPAIR) goes through the whole search
of `__inet_hash_connect()` and is connected without a handshake. That it succeeds means that the port is shared or free;
EADDRNOTAVAIL means that it is blocked, or that a socket leads from it to the same destination already.

The destination is therefore a dummy, drawn anew in each run from 4 * 10^9 addresses and ports of the loopback device:
one that no socket leads to, and none whose TIME_WAITs the search would recycle. Should there be one after all, a second
dummy, drawn independently, tells: the kernel says EADDRNOTAVAIL to both of a port that is not blocked only if somebody
leads from it to two destinations out of 4 * 10^9 that were chosen a moment ago.

What else makes it harmless: the port is held for some ten microseconds, so only ports that have a socket already are
asked about unless the caller says otherwise; closing in repair mode sends nothing. Each success counts once in
Tcp.EstabResets.

Sources: man 7 ip (IP_LOCAL_PORT_RANGE), tcp_v4_connect() in net/ipv4/tcp_ipv4.c, tcp_repair in net/ipv4/tcp.c. Needs
CAP_NET_ADMIN in the user namespace that owns the network namespace, and Linux 6.3 or a stable kernel with the option.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from bisect import bisect_right
from secrets import randbelow
from typing import TYPE_CHECKING

from ephmon.errors import KernelError, Reason
from ephmon.facts.addresses import PORTS
from ephmon.kernel.loopback import unlikely_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ephmon.kernel.deadline import Deadline

_IP_LOCAL_PORT_RANGE = 51  # include/uapi/linux/in.h
_TCP_REPAIR = 19  # include/uapi/linux/tcp.h
_RANGE = struct.Struct("=I")
_LOWEST_OF_DUMMIES = 1_024
_FORBIDDEN = frozenset({errno.EPERM, errno.EACCES})


class ProbeUnavailableError(KernelError):
    """The kernel or the privileges do not allow the probe."""

    reason = Reason.PROBE


def unlikely_destination() -> tuple[str, int]:
    """Return an address and port that no socket of this namespace leads to, as likely as can be."""
    return unlikely_address(), _LOWEST_OF_DUMMIES + randbelow(PORTS - _LOWEST_OF_DUMMIES)


def probe(
    ports: Iterable[int], deadline: Deadline, dummy: Callable[[], tuple[str, int]] = unlikely_destination
) -> dict[int, bool]:
    """Return for each port whether connect() may share it; all ports must be usable ones.

    The ports that were not asked about before the deadline passed are absent. `dummy` draws a destination: one for the
    run, and one more for each port that seems blocked.

    Raises:
        ProbeUnavailableError: The kernel is too old, the capability is missing, or connect() is refused.
        KernelError: ephmon was told to stop, or the port range changed meanwhile.
    """
    destination = dummy()
    answers: dict[int, bool] = {}
    for port in ports:
        if deadline.has_passed():
            break
        answers[port] = _may_be_shared(port, destination) or _may_be_shared(port, dummy())
    return answers


class ProbeByTurns:
    """Asks about so many ports at a time, each time those that come after the last one asked about."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._last = 0

    def ask(self, ports: Sequence[int], deadline: Deadline) -> dict[int, bool]:
        """Return what `probe` answers about the ports whose turn it is; the ports come in ascending order."""
        turn = bisect_right(ports, self._last)
        answers = probe([*ports[turn:], *ports[:turn]][: self._most], deadline)
        self._last = next(reversed(answers), self._last)
        return answers


def require_probe() -> None:
    """Raise ProbeUnavailableError if sockets cannot be set up for the probe; no port is touched."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as ours:
        _set_up(ours, 1)


def _may_be_shared(port: int, destination: tuple[str, int]) -> bool:
    """Tell whether connect() gets the port toward the destination."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as ours:
        _set_up(ours, port)
        number = ours.connect_ex(destination)
        if number == errno.EADDRNOTAVAIL:
            return False
        if number:
            raise _refusal(number)
        # The kernel ignores a limit outside the port range, which may have changed a moment ago.
        if ours.getsockname()[1] != port:
            raise KernelError("ip_local_port_range changed during the probe; try again.", reason=Reason.SYSCTL)
        return True


def _refusal(number: int) -> ProbeUnavailableError:
    if number in _FORBIDDEN:
        what_helps = (
            "a security module (SELinux, AppArmor, Landlock) or a BPF program of the cgroup forbids it. "
            "Allow ephmon to connect to 127.0.0.0/8"
        )
    else:
        what_helps = "set the device lo up"
    return ProbeUnavailableError(f"The probe cannot connect to loopback ({os.strerror(number)}): {what_helps}.")


def _set_up(ours: socket.socket, port: int) -> None:
    try:
        ours.setsockopt(socket.IPPROTO_IP, _IP_LOCAL_PORT_RANGE, _RANGE.pack(port << 16 | port))
    except OSError as error:
        raise ProbeUnavailableError(
            "The probe needs a kernel with IP_LOCAL_PORT_RANGE: Linux 6.3, or an older one with a backport."
        ) from error
    try:
        ours.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
    except PermissionError as error:
        raise ProbeUnavailableError(
            "The probe needs CAP_NET_ADMIN; run it as root, or grant that capability."
        ) from error
    except OSError as error:
        raise ProbeUnavailableError(f"The kernel does not offer TCP_REPAIR ({error.strerror}).") from error
