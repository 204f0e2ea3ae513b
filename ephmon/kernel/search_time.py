"""Measures on this kernel how long connect() takes for each port that it looks at and cannot have.

Sockets that are limited to a window of PORTS ports take all of these toward a dummy destination, with the SYN deferred
as the probe does it (`ephmon.kernel.probe`): no packet is sent and no counter moves. Then one more connect() toward the
dummy walks the whole window and fails. Its time, less that of a window of one port, is what PORTS - 1 more ports cost.
The ports stay free for connect() to all other destinations, and for listeners that set SO_REUSEADDR.

The walk is short, so what it reads stays in the caches of the processor. A walk of 14,000 ports costs two to five times
as much for each: the result is a lower bound.
"""

from __future__ import annotations

import errno
import time
from contextlib import ExitStack
from secrets import randbelow
from typing import TYPE_CHECKING

from ephmon.errors import KernelError, Reason
from ephmon.kernel.probe import defer_syn, limited_socket, unlikely_destination

if TYPE_CHECKING:
    import socket

    from ephmon.facts.snapshot import Sysctls

PORTS = 256
"""In the window. A longer one would be a truer walk; this one is filled within some milliseconds."""
_TRIES = 9
"""The shortest of so many walks counts: it is the one in which nothing else took the processor.

So the elapsed time is that of the processor. The clocks of that are too coarse in some virtual machines."""
_FROM_NANOSECONDS = 1e-9


def measure_search_time(sysctls: Sysctls) -> float:
    """Return the seconds for each port that a search walks, at least.

    Raises:
        KernelError: The port range is too small, the kernel lacks what it takes, or no descriptor is left.
    """
    port_range = sysctls.port_range
    if port_range.size < 2 * PORTS:
        raise KernelError(f"The port range has fewer than {2 * PORTS} ports.", reason=Reason.PROBE)
    low = port_range.low + randbelow(port_range.size - PORTS)
    destination = unlikely_destination()
    with ExitStack() as held:
        _take_every_port(held, low, low + PORTS - 1, destination)
        walked = sum(port not in sysctls.reserved_ports for port in range(low, low + PORTS))
        long = min(_walk_time(low, low + PORTS - 1, destination) for _ in range(_TRIES))
        short = min(_walk_time(low, low, destination) for _ in range(_TRIES))
    if walked < PORTS // 2 or long <= short:
        raise KernelError("The measurement came to no result.", reason=Reason.PROBE)
    return (long - short) * _FROM_NANOSECONDS / (walked - 1)


def _take_every_port(held: ExitStack, low: int, high: int, destination: tuple[str, int]) -> None:
    for _ in range(high - low + 1):
        if _connect(held.enter_context(_limited_socket(low, high)), destination) == errno.EADDRNOTAVAIL:
            return


def _walk_time(low: int, high: int, destination: tuple[str, int]) -> int:
    """Return the nanoseconds that one search takes that finds no port."""
    with _limited_socket(low, high) as ours:
        started = time.perf_counter_ns()
        number = _connect(ours, destination)
        took = time.perf_counter_ns() - started
    if number != errno.EADDRNOTAVAIL:
        raise KernelError("A port was free that was taken a moment ago.", reason=Reason.PROBE)
    return took


def _connect(ours: socket.socket, destination: tuple[str, int]) -> int:
    number = ours.connect_ex(destination)
    if number not in (0, errno.EADDRNOTAVAIL):
        # Also where the SYN is not deferred: such a socket would not keep its port.
        raise KernelError("The kernel does not let connect() wait for the first write.", reason=Reason.PROBE)
    return number


def _limited_socket(low: int, high: int) -> socket.socket:
    ours = limited_socket(low, high)
    try:
        defer_syn(ours)
    except OSError as error:
        ours.close()
        raise KernelError(
            "The measurement needs bit 0 of net.ipv4.tcp_fastopen, which is set by default.", reason=Reason.PROBE
        ) from error
    return ours
