"""Pools of the kind tcp_bind, as a walk over the kernel's bind table counted them.

What a pool is stands in `ephmon.model.pools.tcp_bind_and_udp`. It exists where the table shows that bind(source, 0)
chose ports: a socket that is bound and not connected and did not name its port, or so many ports of connected ones that
no listener which is gone explains them.

The numbers are those outside any VRF. Where the source has sockets in VRFs too, the fullest counts for the estimate.
The walk does not count the sockets of an address by state.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from ephmon.facts.addresses import ANY_V4, ANY_V6, V4_BYTES, address_text
from ephmon.facts.bind_counts import PortFlag
from ephmon.model.pools.kinds import Pool, PoolKey, PoolKind
from ephmon.model.pools.port_classes import PortClass
from ephmon.model.pools.tcp_bind_and_udp import FAILURE_ERRNO, PoolsBySource

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ephmon.facts.bind_counts import AddressCounts
    from ephmon.facts.bind_table import NamespaceBinds
    from ephmon.model.pools.port_classes import TcpPorts

LEAST_CONNECTED_PORTS = 16
"""So many ports of connected sockets, of which nobody knows how they came by them, are taken for the work of bind().

A listener that is gone leaves one such port, with what it accepted.
"""


class BindTableBindPools(PoolsBySource):
    """All tcp_bind pools of one namespace at one moment. The own key of a pool is its packed source address.

    Args:
        netns: The namespace's label.
        taken_at: When the table was walked, seconds since the epoch.
        binds: What the walk counted.
        ports: The class of every port.
    """

    kind = PoolKind.TCP_BIND

    def __init__(self, netns: str, taken_at: float, binds: NamespaceBinds, ports: TcpPorts) -> None:
        self.netns = netns
        self.usable = binds.usable
        self._taken_at = taken_at
        self._binds = binds
        self._may_lose_one = any(
            ports.classes[port] != PortClass.UNUSABLE for port in binds.sysctls.port_range.may_be_passed_over
        )
        self._addresses: defaultdict[bytes, list[AddressCounts]] = defaultdict(list)
        for one in binds.addresses():
            self._addresses[one.address].append(one)
        self._pools: dict[bytes, Pool] = {
            source: self.pool(source) for source, rows in self._addresses.items() if _binds(rows)
        }

    def lost_and_held(self, source: bytes) -> tuple[int, int]:
        """Return how many usable ports are in use for a newcomer at the source, twice: all of them are lost to it."""
        in_use = self._pools[source].in_use
        return in_use, in_use

    def pool(self, source: bytes) -> Pool:
        """Return the pool of a source, also of one that nobody allocates from."""
        vrfs = {row.l3mdev for row in self._addresses.get(source, ()) if row.l3mdev}
        in_use_of = {l3mdev: self._in_use(source, l3mdev) for l3mdev in (0, *vrfs)}
        fullest = max(in_use_of, key=in_use_of.__getitem__)
        in_use = in_use_of[fullest]
        remaining = self.usable - in_use
        least = max(0, remaining - self._may_lose_one)
        # With ip_autobind_reuse any port may be shared, which depends on options of the sockets.
        may_share = bool(self._binds.sysctls.ip_autobind_reuse)
        most = self.usable if may_share else self.usable - min(in_use_of.values())
        return Pool(
            key=PoolKey(
                netns=self.netns,
                kind=self.kind,
                source=address_text(source),
                destination=None,
                destination_port=None,
            ),
            taken_at=self._taken_at,
            usable=self.usable,
            blocked=0,
            capacity=self.usable,
            in_use=in_use,
            time_wait=min(in_use, self._time_wait(source, fullest)),
            reusable=0,
            remaining=remaining,
            remaining_min=least,
            remaining_max=most,
            exact=least == most and self._binds.is_whole,
            failure_errno=FAILURE_ERRNO[self.kind],
            states={},
            held=in_use,
        )

    def _in_use(self, source: bytes, l3mdev: int) -> int:
        """Return how many usable ports bind(source, 0) cannot get (inet_bind_conflict())."""
        numbers = self._binds.numbers(l3mdev)
        if source == ANY_V4:
            return numbers.v4
        if source == ANY_V6:
            return numbers.in_use
        by_wildcards = numbers.any_v4 if len(source) == V4_BYTES else numbers.any_v6
        rows = self._addresses.get(source, ())
        return by_wildcards + sum(one.ports - one.beside_any for one in rows if one.l3mdev == l3mdev)

    def _time_wait(self, source: bytes, l3mdev: int) -> int:
        """Return how many of these ports have nothing but TIME_WAITs."""
        if source not in (ANY_V4, ANY_V6):
            rows = self._addresses.get(source, ())
            return sum(min(one.time_wait, one.ports - one.beside_any) for one in rows if one.l3mdev == l3mdev)
        others = PortFlag.LISTENER | PortFlag.BOUND | PortFlag.CONNECTED
        family = PortFlag.V4 if source == ANY_V4 else PortFlag(0)
        waiting = self._binds.ports_with(PortFlag.TIME_WAIT, l3mdev)
        flags = {one.port: one.flags for one in self._binds.ports() if one.l3mdev == l3mdev} if waiting else {}
        return sum(flags[port] & family == family and not flags[port] & others for port in waiting)


def _binds(rows: Sequence[AddressCounts]) -> bool:
    """Tell whether the sockets of one address prove that bind(address, 0) chose ports for them."""
    bound = sum(one.bound for one in rows)
    return bound > 0 or sum(one.bound_connected for one in rows) >= LEAST_CONNECTED_PORTS
