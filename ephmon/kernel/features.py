"""What this kernel can do, found by trying rather than by its version number."""

from __future__ import annotations

import os
import random
import re
import socket
from typing import TYPE_CHECKING

from ephmon.kernel import dumps

if TYPE_CHECKING:
    from ephmon.kernel.deadline import Deadline
    from ephmon.kernel.netlink import SockDiag
    from ephmon.model.snapshot import PortRange

_FIRST_WITH_BOUND_UNCONNECTED = (6, 8)
_FIRST_WITH_RECOVERING_PORTS = (6, 18)
_TRIES = 16
_LOWEST_UNPRIVILEGED = 1024
_HIGHEST = 65535


def shows_bound_unconnected(diag: SockDiag, port_range: PortRange, deadline: Deadline) -> bool:
    """Tell whether inet_diag shows TCP sockets that are bound and neither connected nor listening.

    Tried on a socket of our own, bound for a moment outside the port range, so that it takes nothing from anybody;
    SO_REUSEADDR keeps it out of the way of a server that binds the same port at that moment. Where every port that may
    be bound lies inside the range, the kernel's release decides (Linux 6.8).
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as ours:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        port = _bind_outside(ours, port_range)
        if port is None:
            return release_number(os.uname().release) >= _FIRST_WITH_BOUND_UNCONNECTED
        return dumps.shows_bound_unconnected(diag, port, deadline)


def ports_recover() -> bool:
    """Tell whether a port is free for connect() again as soon as the last socket that blocks it has gone.

    inet_bind_bucket_destroy() looks at who is left since Linux 6.18; to find that out by trying would take two ports
    inside the range, so the kernel's release decides.
    """
    return release_number(os.uname().release) >= _FIRST_WITH_RECOVERING_PORTS


def release_number(release: str) -> tuple[int, int]:
    """Return (major, minor) of a kernel release such as `6.1.0-38-amd64`, (0, 0) if it is written otherwise."""
    match = re.match(r"(\d+)\.(\d+)", release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _bind_outside(ours: socket.socket, port_range: PortRange) -> int | None:
    """Bind to some port outside the range and return it, None if there is none to be had."""
    outside = [*range(_LOWEST_UNPRIVILEGED, port_range.low), *range(port_range.high + 1, _HIGHEST + 1)]
    # Which port it is does not matter, only that two daemons do not always meet at the same one.
    candidates: list[int] = random.sample(outside, min(_TRIES, len(outside)))
    for port in candidates:
        try:
            ours.bind(("", port))
        except OSError:
            continue  # taken or not permitted: the next one
        return port
    return None
