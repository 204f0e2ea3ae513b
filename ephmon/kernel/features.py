"""What this kernel can do: tried where a trial disturbs nobody, else concluded from the release.

A release is its first two numbers, as `ephmon.kernel.proc.sysctl.read_release` returns them.
"""

from __future__ import annotations

import random
import socket
from typing import TYPE_CHECKING

from ephmon.facts.addresses import PORTS
from ephmon.kernel.loopback import unlikely_address
from ephmon.kernel.netlink import dumps

if TYPE_CHECKING:
    from ephmon.facts.snapshot import PortRange
    from ephmon.kernel.deadline import Deadline
    from ephmon.kernel.netlink.sock_diag import SockDiag

_FIRST_WITH_BOUND_UNCONNECTED = (6, 8)
_FIRST_WITH_RECOVERING_PORTS = (6, 18)
_TRIES = 16
_LOWEST_UNPRIVILEGED = 1024


def shows_bound_unconnected(
    diag: SockDiag, port_range: PortRange, deadline: Deadline, *, release: tuple[int, int]
) -> bool:
    """Tell whether inet_diag shows TCP sockets that are bound and neither connected nor listening.

    This is tried with a socket that is bound for a moment. Where every port that may be bound lies inside the range, or
    loopback has no address, the release decides (Linux 6.8).
    """
    # A server may bind the same port at that moment. It can, because ours is on another address, outside the port
    # range; SO_REUSEADDR lets in one that sets it too and binds all addresses.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as ours:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        port = _bind_outside(ours, port_range)
        if port is None:
            return release >= _FIRST_WITH_BOUND_UNCONNECTED
        return dumps.shows_bound_unconnected(diag, port, deadline)


def ports_recover(release: tuple[int, int]) -> bool:
    """Tell whether a port is free for connect() again as soon as the last socket that blocks it has gone.

    inet_bind_bucket_destroy() looks at who is left since Linux 6.18; to find that out by trying would take two ports
    inside the range, so the release decides.
    """
    return release >= _FIRST_WITH_RECOVERING_PORTS


def _bind_outside(ours: socket.socket, port_range: PortRange) -> int | None:
    """Bind to some port outside the range and return it, None if there is none to be had."""
    outside = [*range(_LOWEST_UNPRIVILEGED, port_range.low), *range(port_range.high + 1, PORTS)]
    # Which port it is does not matter, only that two daemons do not always meet at the same one.
    candidates: list[int] = random.sample(outside, min(_TRIES, len(outside)))
    for port in candidates:
        try:
            ours.bind((unlikely_address(), port))
        except OSError:
            continue  # taken, not permitted or no such address: the next one
        return port
    return None
