"""What differs between the kernels that the experiments run on, found by trying where that can be done.

Linux 6.14 made the age from which a TIME_WAIT may be reused a sysctl; before, the clock must have reached a later
second than the connection's last timestamp. Before 6.8 TCP sockets that are bound and neither connected nor listening
are not shown, and a socket with a range of its own may miss one port if their number is odd. Before 6.18 a port that
was blocked once stays so until every socket has left it.
"""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ephmon.facts.sockets import Blindness, TcpState
from ephmon.kernel import features
from ephmon.kernel.proc.sysctl import read_release
from tests import sockets
from tests.kernel_truth.prediction import look

if TYPE_CHECKING:
    from ephmon.model.pools.survey import NamespaceSurvey

PORTS_RECOVER = features.ports_recover(read_release(Path("/proc")))
OWN_RANGE_IS_SEARCHED_WHOLE = read_release(Path("/proc")) >= (6, 8)
"""With IP_LOCAL_PORT_RANGE the search does not go by parity; to find that out by trying takes luck."""
HAS_REUSE_DELAY = Path("/proc/sys/net/ipv4/tcp_tw_reuse_delay").exists()
_FIXED_DELAY_MS = 1000
_TICKS_MS = 20
"""What shows ages is as coarse as the kernel's tick, which is 10 ms at most."""
_TIME_WAIT_MS = 60_000
_CLOSING = (TcpState.FIN_WAIT1, TcpState.FIN_WAIT2, TcpState.CLOSING)
PATIENCE_SECONDS = 10.0


def set_reuse_delay(milliseconds: int) -> int:
    """Set the age from which a TIME_WAIT may be reused, where it can be set, and return the one in force."""
    if not HAS_REUSE_DELAY:
        return _FIXED_DELAY_MS
    sockets.write_sysctl("net.ipv4.tcp_tw_reuse_delay", milliseconds)
    return milliseconds


def let_time_waits_grow_old() -> None:
    """Return once every TIME_WAIT of the namespace is old enough for reuse, as soon as this kernel lets it be."""
    enough = set_reuse_delay(1) + _TICKS_MS
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (youngest := _age_of_the_youngest()) < enough:
        assert time.monotonic() < deadline, f"a TIME_WAIT is {youngest} ms old, not {enough} ms"
        time.sleep((enough - youngest) / 1000)


def _age_of_the_youngest() -> int:
    """Return the age in milliseconds of the TIME_WAIT that came last, 0 while there is one to come."""
    tcp = look().namespace.tcp
    assert tcp is not None
    if any(group.state in _CLOSING for group in tcp.connections.groups):
        return 0
    rows = zip(tcp.connections.group_of, tcp.connections.time_wait_left_ms_of, strict=True)
    left = (left for group, left in rows if tcp.connections.groups[group].state == TcpState.TIME_WAIT)
    return _TIME_WAIT_MS - max(left, default=0)


def hides_sockets(one: NamespaceSurvey) -> bool:
    """Tell whether this process has sockets that the kernel does not show, as it says of itself."""
    assert one.ports is not None
    return Blindness.BOUND_UNCONNECTED in one.ports.blind_to and holds_bound_unconnected()


def holds_bound_unconnected() -> bool:
    """Tell whether this process has TCP sockets that are bound and neither connected nor listening."""
    return any(is_bound_unconnected(ours) for kept in sockets.held.values() for ours in kept)


def is_bound_unconnected(ours: socket.socket) -> bool:
    """Tell whether a TCP socket is bound and neither connected nor listening; False for other sockets."""
    if ours.type != socket.SOCK_STREAM or not ours.getsockname()[1]:
        return False
    # tcpi_state is the first byte of struct tcp_info.
    return ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == TcpState.CLOSE
