"""Facts: the values that a walk over the kernel's bind table counts, unpacked (`ephmon.facts.bind_table`).

connect() and bind() decide by that table, so nothing here is inferred. Only usable ports count, those of the range that
are not reserved.
"""

from __future__ import annotations

from collections import Counter
from enum import IntFlag
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

SECONDS_OF_A_CELL = 3
"""What each number of `ConnectCounts.ends_in` covers. TIME_WAIT lasts 60 seconds, so 20 numbers cover all."""
CELLS = 20


class PortFlag(IntFlag):
    """What a port is and has (HAS_* of ephmon/kernel/bpf/bind_table.bpf.c)."""

    BLOCKED = 1
    """connect() passes it over, wherever to: `fastreuse` or `fastreuseport` of its bucket is not negative."""
    LISTENER = 2
    BOUND = 4
    """A socket that is bound, and neither connected nor listening."""
    CONNECTED = 8
    TIME_WAIT = 16
    DEVICE = 32
    """A socket that is bound to a device."""
    V4 = 64
    """A socket that is IPv4, or IPv6 without IPV6_V6ONLY."""
    ANY_V4 = 128
    """A socket on 0.0.0.0, or on :: without IPV6_V6ONLY."""
    ANY_V6 = 256
    """A socket on ::."""


class BoundPort(NamedTuple):
    """One usable port that some socket has."""

    port: int
    l3mdev: int
    """Interface index of the VRF that its sockets are in, 0 for none. Each VRF has ports of its own."""
    sockets: int
    flags: PortFlag


class PoolKey(NamedTuple):
    """A connection but for its local port, as connect() looks for a free one. Addresses are packed."""

    source: bytes
    destination: bytes
    destination_port: int
    device: int = 0
    """Interface index that the sockets are bound to (SO_BINDTODEVICE), 0 if none."""
    l3mdev: int = 0
    """Interface index of their VRF, 0 for none."""


class ConnectCounts(NamedTuple):
    """What the sockets of one `PoolKey` do to the next connect() with it.

    A socket holds one port, and no two sockets of one key have the same.
    """

    held: int = 0
    """Ports that are not blocked, and that connect() finds taken for this key."""
    held_second: int = 0
    """Those of `held` that connect() does not get now, and that it tries last: every second port of the range."""
    time_wait: int = 0
    """Those of `held` that a TIME_WAIT has."""
    reusable: int = 0
    """Those of `time_wait` that connect() takes all the same, at this moment (tcp_twsk_unique())."""
    reusable_later: int = 0
    """Those of `time_wait` that connect() will take before they end."""
    on_blocked: int = 0
    """Sockets on blocked ports, which take nothing from this pool, without those that a listener may have accepted."""
    named: int = 0
    """Those of `on_blocked` that named their port in bind()."""
    states: Mapping[int, int] = MappingProxyType({})
    """All these sockets by state, as in `TcpState`."""
    ends_in: Sequence[int] = (0,) * CELLS
    """Ports of `time_wait` by the time that they have left, in cells of SECONDS_OF_A_CELL."""


_NUMBERS = ConnectCounts._fields.index("states")
"""So many fields come first that are plain numbers."""


def total(every: Iterable[ConnectCounts]) -> ConnectCounts:
    """Add up counts. Sockets on different devices may share a port, which then counts once for each."""
    rows = list(every)
    if len(rows) < 2:
        return rows[0] if rows else ConnectCounts()
    states: Counter[int] = Counter()
    for one in rows:
        states.update(one.states)
    numbers = [sum(column) for column in zip(*(one[:_NUMBERS] for one in rows), strict=True)]
    ends_in = tuple(map(sum, zip(*(one.ends_in for one in rows), strict=True)))
    return ConnectCounts(*numbers[:_NUMBERS])._replace(states=states, ends_in=ends_in)


class AddressCounts(NamedTuple):
    """The ports of one local address, as bind(address, 0) sees them."""

    address: bytes
    l3mdev: int
    ports: int
    """Ports on which a socket has this address."""
    beside_any: int
    """Those of them that also have a socket on a wildcard address, which keeps bind() from them as well."""
    bound: int
    """Sockets that bind(address, 0) gave their port, and that are not connected."""
    bound_connected: int
    """Blocked ports without a listener of connected sockets that did not name their port: bind(address, 0) gave it to
    them, or a listener that is gone accepted them."""
    time_wait: int
    """Those of `ports` where all sockets with this address are TIME_WAITs."""


class PortNumbers(NamedTuple):
    """How many usable ports of a namespace and VRF have which sockets."""

    in_use: int
    """Have any socket."""
    blocked: int
    """Those that connect() passes over."""
    v4: int
    """Those with a socket that keeps bind(0.0.0.0, 0) from them."""
    any_v4: int
    """Those with a socket that keeps bind() from them for every IPv4 address."""
    any_v6: int
    """Those with a socket that keeps bind() from them for every IPv6 address."""
