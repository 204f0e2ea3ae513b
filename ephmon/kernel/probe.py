"""The probe: asks the kernel itself whether connect() may share a port, without sending a packet.

A socket that is limited to one port (IP_LOCAL_PORT_RANGE) and defers its SYN until the first write
(TCP_FASTOPEN_CONNECT, TCP_FASTOPEN_NO_COOKIE) goes through the whole search of `__inet_hash_connect()` and is closed
before it writes anything. That connect() succeeds means that the port is shared or free; EADDRNOTAVAIL means that it is
blocked, or that a socket leads from it to the same destination already.

The destination is therefore a dummy, drawn anew in each run from 4 * 10^9 addresses and ports of the loopback device:
one that no socket leads to, and none whose TIME_WAITs the search would recycle. Should there be one after all, a second
dummy, drawn independently, tells: the kernel says EADDRNOTAVAIL to both of a port that is not blocked only if somebody
leads from it to two destinations out of 4 * 10^9 that were chosen a moment ago.

What else makes it harmless: the port is held for some ten microseconds, so only ports that have a socket already are
asked about unless the caller says otherwise, and with SO_REUSEADDR, so that a listener that sets it too can start
meanwhile. No counter moves. After fast open has met a black hole the kernel defers no SYN (sysctl
tcp_fastopen_blackhole_timeout_sec, 0 by default); then one goes over loopback, is refused, and the answer is the same.

Fast open needs bit 0 of net.ipv4.tcp_fastopen, which is the kernel's default, and no privilege. Without that bit the
socket goes into repair mode (TCP_REPAIR) and is connected without a handshake, which takes CAP_NET_ADMIN in the user
namespace that owns the network namespace; each success then counts once in Tcp.EstabResets. Both ways need
IP_LOCAL_PORT_RANGE: Linux 6.3, or a stable kernel with a backport.

Sources: man 7 ip (IP_LOCAL_PORT_RANGE), tcp_v4_connect() in net/ipv4/tcp_ipv4.c, tcp_fastopen_defer_connect() in
net/ipv4/tcp_fastopen.c, tcp_repair in net/ipv4/tcp.c.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from secrets import randbelow
from typing import TYPE_CHECKING, NamedTuple

from ephmon.errors import KernelError, Reason, shortages_explained
from ephmon.facts.addresses import PORTS
from ephmon.kernel.loopback import unlikely_address

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping, Sequence

    from ephmon.kernel.deadline import Deadline

_IP_LOCAL_PORT_RANGE = 51  # include/uapi/linux/in.h
_TCP_REPAIR, _TCP_FASTOPEN_CONNECT, _TCP_FASTOPEN_NO_COOKIE = 19, 30, 34  # include/uapi/linux/tcp.h
_RANGE = struct.Struct("=I")
_LOWEST_OF_DUMMIES = 1_024
_FORBIDDEN = frozenset({errno.EPERM, errno.EACCES})
_GOT_THE_PORT = frozenset({0, errno.EINPROGRESS, errno.ECONNREFUSED})
"""What connect() says once it has the port; the last two where the SYN was not deferred."""


class Answers(NamedTuple):
    """What the kernel said of some ports, in the order in which it was asked."""

    by_port: dict[int, bool]
    """Whether connect() may share the port."""
    is_cut: bool
    """Whether the time was up before all were asked about."""


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
        ProbeUnavailableError: The kernel is too old, neither way is allowed, or connect() is refused.
        KernelError: ephmon was told to stop, no descriptor was left, or the port range changed meanwhile.
    """
    destination = dummy()
    answers: dict[int, bool] = {}
    for port in ports:
        if deadline.has_passed():
            break
        answers[port] = _may_be_shared(port, destination, dummy)
    return answers


def ask(questions: Generator[Sequence[int], Mapping[int, bool], None], deadline: Deadline) -> Answers:
    """Ask about the ports that come from `questions`, which is sent the answers, until it ends or the deadline passes.

    Raises:
        ProbeUnavailableError: As `probe`.
        KernelError: As `probe`.
    """
    found: dict[int, bool] = {}
    try:
        ports = next(questions)
        while True:
            answers = probe(ports, deadline)
            found |= answers
            if len(answers) < len(ports):
                return Answers(found, is_cut=True)
            ports = questions.send(answers)
    except StopIteration:
        return Answers(found, is_cut=False)


def require_probe() -> None:
    """Raise ProbeUnavailableError if sockets cannot be set up for the probe; no port is touched."""
    _probing_socket(1).close()


def _may_be_shared(port: int, destination: tuple[str, int], dummy: Callable[[], tuple[str, int]]) -> bool:
    """Tell whether connect() gets the port toward the destination, or else toward another dummy."""
    with _probing_socket(port) as ours:
        number = ours.connect_ex(destination)
        if number == errno.EADDRNOTAVAIL:
            number = ours.connect_ex(dummy())  # a socket that got no port is as good as new
        if number == errno.EADDRNOTAVAIL:
            return False
        if number not in _GOT_THE_PORT:
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


def limited_socket(low: int, high: int) -> socket.socket:
    """Return a TCP socket that connect() gives a port from low to high, both included, if they lie in the port range.

    It does not wait: a SYN that is not deferred might be dropped on the way.

    Raises:
        ProbeUnavailableError: No TCP socket can be opened, or the kernel has no IP_LOCAL_PORT_RANGE.
        KernelError: No descriptor was left.
    """
    try:
        with shortages_explained():
            ours = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    except OSError as error:
        raise ProbeUnavailableError(
            f"The probe cannot open a TCP socket ({error.strerror}). Allow AF_INET in the sandbox of ephmon."
        ) from error
    try:
        ours.setsockopt(socket.IPPROTO_IP, _IP_LOCAL_PORT_RANGE, _RANGE.pack(high << 16 | low))
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    except OSError as error:
        ours.close()
        raise ProbeUnavailableError(
            "The probe needs a kernel with IP_LOCAL_PORT_RANGE: Linux 6.3, or an older one with a backport."
        ) from error
    return ours


def defer_syn(ours: socket.socket) -> None:
    """Let connect() keep the SYN back until the first write, so that it sends nothing.

    Raises:
        OSError: net.ipv4.tcp_fastopen lacks bit 0.
    """
    ours.setsockopt(socket.IPPROTO_TCP, _TCP_FASTOPEN_NO_COOKIE, 1)
    ours.setsockopt(socket.IPPROTO_TCP, _TCP_FASTOPEN_CONNECT, 1)


def _probing_socket(port: int) -> socket.socket:
    """Return a socket that is limited to the port, and whose connect() sends nothing."""
    ours = limited_socket(port, port)
    try:
        defer_syn(ours)
    except OSError:
        try:
            _put_into_repair_mode(ours)
        except ProbeUnavailableError:
            ours.close()
            raise
    return ours


def _put_into_repair_mode(ours: socket.socket) -> None:
    try:
        ours.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
    except OSError as error:
        raise ProbeUnavailableError(
            "The probe needs bit 0 of net.ipv4.tcp_fastopen, which is set by default, or CAP_NET_ADMIN. "
            "Set that bit, or run ephmon as root."
        ) from error
