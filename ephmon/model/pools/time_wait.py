"""When the kernel reuses a TIME_WAIT: when connect() gets a port on which one remains.

connect() takes over the 4-tuple of a TIME_WAIT if all of these hold (tcp_twsk_unique(), net/ipv4/tcp_ipv4.c):

- TCP timestamps were in use on that connection. The kernel does not show whether they were. They are assumed to have
  been where the namespace has `tcp_timestamps` on: few peers have them off, and on loopback both ends are this host.
- Its substate is TIME_WAIT, not FIN_WAIT2 (Linux 6.11 and the stable kernels since 5.10).
- `tcp_tw_reuse` is 1, or it is 2 and the connection is on loopback. That is one bound to the loopback device, or with
  either address in 127.0.0.0/8 or equal to ::1. An address of this host on another device is not loopback.
- It is older than `tcp_tw_reuse_delay` (Linux 6.14). Older kernels compare whole seconds, so they may reuse it
  after less than a second; 1,000 ms is the safe side.

A TIME_WAIT lasts 60 seconds (TCP_TIMEWAIT_LEN), so its age follows from the time that it has left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ephmon.facts.addresses import is_loopback
from ephmon.facts.sockets import TcpState

if TYPE_CHECKING:
    from ephmon.facts.snapshot import Sysctls
    from ephmon.facts.socket_groups import SocketGroup

TIME_WAIT_MS = 60_000
"""How long a TIME_WAIT lasts (TCP_TIMEWAIT_LEN, include/net/tcp.h)."""
LOOPBACK_DEVICE = 1
"""The interface index of lo in every network namespace (LOOPBACK_IFINDEX, include/net/flow.h)."""
REUSE_ALL, REUSE_LOOPBACK = 1, 2
"""The values of `tcp_tw_reuse` that hand TIME_WAITs out again: to any destination, or on loopback alone."""


def may_be_reused(group: SocketGroup, sysctls: Sysctls) -> bool:
    """Tell whether the TIME_WAITs of the group are handed out again once they are old enough."""
    # A FIN_WAIT2 whose process is gone is kept in the same kernel structure, but it is not reused.
    if group.state != TcpState.TIME_WAIT or not sysctls.tcp_timestamps:
        return False
    return sysctls.tcp_tw_reuse == REUSE_ALL or (sysctls.tcp_tw_reuse == REUSE_LOOPBACK and is_group_on_loopback(group))


def is_group_on_loopback(group: SocketGroup) -> bool:
    """Tell whether the kernel takes the connections of a group for ones on loopback."""
    return on_loopback(group.source, group.destination, device=group.device)


def on_loopback(*ends: bytes, device: int = 0) -> bool:
    """Tell whether the kernel takes a connection for one on loopback.

    Args:
        ends: The packed addresses of both ends, or of those that are known.
        device: The interface index that its socket is bound to, 0 if it is bound to none.
    """
    return device == LOOPBACK_DEVICE or any(map(is_loopback, ends))


def reusable_after_ms(group: SocketGroup, sysctls: Sysctls) -> int | None:
    """Return the age in milliseconds from which TIME_WAITs of the group are handed out again, None if they never are.

    At most TIME_WAIT_MS, the age at which they end.
    """
    return TIME_WAIT_MS - reusable_below_ms(sysctls) if may_be_reused(group, sysctls) else None


def reusable_below_ms(sysctls: Sysctls) -> int:
    """Return the time left, in milliseconds, below which a TIME_WAIT is old enough."""
    return max(0, TIME_WAIT_MS - sysctls.tcp_tw_reuse_delay_ms)
