"""When the kernel reuses a TIME_WAIT: when connect() gets a port on which one remains.

connect() takes over the 4-tuple of a TIME_WAIT if all of these hold (tcp_twsk_unique(), net/ipv4/tcp_ipv4.c):

- TCP timestamps were in use on that connection. The kernel does not show whether they were. Live connections with the
  same key tell whether their peer uses them (`ephmon.facts.timestamps`). Where there is none, they are likely to have
  been used if `tcp_timestamps` is on here, because few peers have them off. That is never certain, on loopback neither:
  connections with TCP-MD5 have no timestamps, and the setting may have been off when the connection was made. What it
  is now does not matter for a TIME_WAIT that exists.
- Its substate is TIME_WAIT, not FIN_WAIT2 (Linux 6.11 and the stable kernels since 5.10).
- `tcp_tw_reuse` is 1, or it is 2 and the connection is on loopback. That is one bound to the loopback device, or with
  either address in 127.0.0.0/8 or equal to ::1. An address of this host on another device is not loopback.
- It is older than `tcp_tw_reuse_delay` (Linux 6.14). Older kernels compare whole seconds, so they may reuse it
  after less than a second; 1,000 ms is the safe side.

A TIME_WAIT lasts 60 seconds (TCP_TIMEWAIT_LEN), so its age follows from the time that it has left.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from ephmon.facts.addresses import on_loopback
from ephmon.facts.sockets import TcpState

if TYPE_CHECKING:
    from collections.abc import Collection

    from ephmon.facts.snapshot import Sysctls
    from ephmon.facts.socket_groups import SocketGroup, SocketGroups

TIME_WAIT_MS = 60_000
"""How long a TIME_WAIT lasts (TCP_TIMEWAIT_LEN, include/net/tcp.h)."""
REUSE_ALL, REUSE_LOOPBACK = 1, 2
"""The values of `tcp_tw_reuse` that hand TIME_WAITs out again: to any destination, or on loopback alone."""


class Reuse(IntEnum):
    """Whether the TIME_WAITs of a group are handed out again once they are old enough."""

    NEVER = 0
    POSSIBLE = 1
    """Only if timestamps were on when the connections were made; they are off now."""
    LIKELY = 2
    """If the peer uses timestamps, which nobody has seen."""
    CERTAIN = 3


def reuse_of(group: SocketGroup, sysctls: Sysctls, *, uses_timestamps: bool | None) -> Reuse:
    """Tell whether the TIME_WAITs of the group are handed out again.

    Args:
        group: The group.
        sysctls: The settings of the namespace.
        uses_timestamps: What live connections with the same key show, None if that is not known.
    """
    is_allowed = sysctls.tcp_tw_reuse == REUSE_ALL or (
        sysctls.tcp_tw_reuse == REUSE_LOOPBACK and is_group_on_loopback(group)
    )
    # A FIN_WAIT2 whose process is gone is kept in the same kernel structure, but it is not reused.
    if group.state != TcpState.TIME_WAIT or not is_allowed:
        return Reuse.NEVER
    # Live connections that were made since timestamps are off say nothing of older ones.
    if not sysctls.tcp_timestamps:
        return Reuse.POSSIBLE
    if uses_timestamps is None:
        return Reuse.LIKELY
    return Reuse.CERTAIN if uses_timestamps else Reuse.NEVER


def groups_open_to_reuse(groups: SocketGroups, sysctls: Sysctls) -> Collection[int]:
    """Return the indices of the groups whose TIME_WAITs `tcp_tw_reuse` hands out again, given timestamps."""
    if sysctls.tcp_tw_reuse == REUSE_ALL:
        return groups.time_waits
    return groups.time_waits_on_loopback if sysctls.tcp_tw_reuse == REUSE_LOOPBACK else ()


def is_group_on_loopback(group: SocketGroup) -> bool:
    """Tell whether the kernel takes the connections of a group for ones on loopback."""
    return on_loopback(group.source, group.destination, device=group.device)


def reusable_after_ms(group: SocketGroup, sysctls: Sysctls, *, uses_timestamps: bool | None) -> int | None:
    """Return the age in milliseconds from which TIME_WAITs of the group are likely to be handed out again.

    At most TIME_WAIT_MS, the age at which they end; None if they are not. `uses_timestamps` is as for `reuse_of`.
    """
    is_likely = reuse_of(group, sysctls, uses_timestamps=uses_timestamps) >= Reuse.LIKELY
    return TIME_WAIT_MS - reusable_below_ms(sysctls) if is_likely else None


def reusable_below_ms(sysctls: Sysctls) -> int:
    """Return the time left, in milliseconds, below which a TIME_WAIT is old enough."""
    return max(0, TIME_WAIT_MS - sysctls.tcp_tw_reuse_delay_ms)
