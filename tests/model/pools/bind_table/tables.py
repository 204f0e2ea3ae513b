"""What a walk over the bind table leaves, built from values: the inverse of `ephmon.facts.bind_table`."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from ephmon.facts.addresses import mapped
from ephmon.facts.bind_counts import BoundPort, PortFlag, PortNumbers
from ephmon.facts.bind_table import COUNTED_STATES, NamespaceBinds, PoolTable, PortTable
from ephmon.facts.snapshot import PortRange, Sysctls
from ephmon.facts.sockets import TcpState
from ephmon.model.pools.port_classes import count_usable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ephmon.facts.bind_counts import AddressCounts, ConnectCounts, PoolKey

LOW = 40_000
RANGE = PortRange(LOW, LOW + 99)
_HEAD = struct.Struct("=16s16sII2sHHHI")


def make_binds(
    pools: Mapping[PoolKey, ConnectCounts] | None = None,
    addresses: Iterable[AddressCounts] = (),
    ports: Iterable[BoundPort] = (),
    *,
    sysctls: Sysctls | None = None,
    is_whole: bool = True,
) -> NamespaceBinds:
    """Return a namespace with these pools, addresses and ports; the range has 100 ports unless `sysctls` differ."""
    settings = sysctls or Sysctls(port_range=RANGE)
    bound = list(ports)
    entries = [*map(_pack_pool, *zip(*(pools or {}).items(), strict=True))] if pools else []
    entries += map(_pack_address, addresses)
    outside = [one.flags for one in bound if not one.l3mdev]
    flags = (PortFlag.BLOCKED, PortFlag.V4, PortFlag.ANY_V4, PortFlag.ANY_V6)
    return NamespaceBinds(
        inode=1,
        cookie=2,
        cgroup_id=None,
        user_namespace_inode=3,
        sysctls=settings,
        usable=count_usable(settings),
        outside=PortNumbers(len(outside), *(sum(flag in one for one in outside) for flag in flags)),
        accepted=0,
        sockets=sum(one.sockets for one in bound),
        is_whole=is_whole,
        pool_table=PoolTable(b"".join(entries)),
        port_table=PortTable(b"".join(map(_pack_port, bound))),
    )


def blocked(number: int, *, l3mdev: int = 0, flags: PortFlag = PortFlag.LISTENER) -> list[BoundPort]:
    """Return the first ports of the range as blocked ones."""
    return [BoundPort(LOW + index, l3mdev, 1, PortFlag.BLOCKED | flags) for index in range(number)]


def _pack_pool(key: PoolKey, counts: ConnectCounts) -> bytes:
    port = key.destination_port.to_bytes(2)
    head = _HEAD.pack(mapped(key.source), mapped(key.destination), key.device, key.l3mdev, port, 0, 0, 0, 0)
    numbers = (
        *(counts.held, counts.held_second, counts.time_wait, counts.reusable, counts.on_blocked),
        *(counts.states.get(TcpState.ESTABLISHED, 0), counts.reusable_later, counts.named, 0),
        *(counts.states.get(state, 0) for state in COUNTED_STATES),
        *counts.ends_in,
    )
    return head + struct.pack("=37H2x", *numbers)


def _pack_address(one: AddressCounts) -> bytes:
    head = _HEAD.pack(mapped(one.address), bytes(16), 0, one.l3mdev, bytes(2), 0, 0, 1, 0)
    return head + struct.pack("=5I56x", one.ports, one.beside_any, one.bound, one.bound_connected, one.time_wait)


def _pack_port(one: BoundPort) -> bytes:
    return struct.pack("=IIHHI", one.l3mdev, one.sockets, one.port, 0, one.flags)
