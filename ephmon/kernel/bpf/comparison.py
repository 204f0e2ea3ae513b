"""Holds walks over the bind table against what inet_diag shows of the same sockets; pure."""

from __future__ import annotations

from collections import Counter
from heapq import nlargest
from itertools import compress
from typing import TYPE_CHECKING

from ephmon.facts.addresses import PORTS, address_text, host_and_port
from ephmon.facts.sockets import TcpState

if TYPE_CHECKING:
    from ephmon.facts.bind_table import NamespaceBinds
    from ephmon.facts.socket_groups import ConnectKey
    from ephmon.facts.sockets import TcpSockets

LARGEST = 16
"""So many pools are compared, the largest by either reading."""
SLACK_PORTS, SLACK_SHARE, SLACK_PER_CHANGE = 64, 0.05, 4
"""By how much they may differ, because sockets come and go between them: so many, this share, and so many times the
change from the walk before the dump to the one after it."""


def disagreement(before: NamespaceBinds, dump: TcpSockets, after: NamespaceBinds) -> str | None:
    """Return in one sentence where the walks and the dump differ by more than what comes and goes, else None.

    Args:
        before: The walk before the dump.
        dump: What inet_diag showed.
        after: The walk after it.
    """
    # There may be as many keys as sockets, so only those that are compared are unpacked.
    shown, keys = _sockets_by_key(dump, before), dump.connections.groups.connect_keys
    most_shown = (keys[index] for index, _ in shown.most_common(LARGEST))
    for key in dict.fromkeys((*_largest(before), *_largest(after), *most_shown)):
        index = keys.find(key)
        first, second, number = _number(before, key), _number(after, key), 0 if index is None else shown[index]
        slack = SLACK_PORTS + SLACK_SHARE * number + SLACK_PER_CHANGE * abs(first - second)
        if not min(first, second) - slack <= number <= max(first, second) + slack:
            peer = host_and_port(address_text(key.destination), key.destination_port)
            return f"inet_diag shows {number} sockets from {address_text(key.source)} to {peer}, and BPF {second}"
    return None


def _number(binds: NamespaceBinds, key: ConnectKey) -> int:
    return sum(counts.held + counts.on_blocked for _, counts in binds.sockets_of(key))


def _largest(binds: NamespaceBinds) -> list[ConnectKey]:
    held = binds.pool_table.column("held")
    indices = nlargest(LARGEST, binds.pool_table.connect_indices, key=held.__getitem__)
    return [binds.connect_key(index) for index in indices]


def _sockets_by_key(dump: TcpSockets, binds: NamespaceBinds) -> Counter[int]:
    """Count the connections of a dump on usable ports that nobody listens on, by the index of their key."""
    counts_here = bytearray(PORTS)
    low, high = binds.sysctls.port_range
    counts_here[low : high + 1] = bytes([1]) * (high + 1 - low)
    for port in binds.sysctls.reserved_ports:
        counts_here[port] = 0
    states = dump.bound.groups.states
    for group, port in zip(dump.bound.group_of, dump.bound.port_of, strict=True):
        if states[group] == TcpState.LISTEN:
            counts_here[port] = 0
    groups = dump.connections.groups
    numbers: Counter[int] = Counter()
    for rows in dump.connections.pieces():
        chosen = compress(rows.group_of, map(counts_here.__getitem__, rows.port_of))
        numbers.update(map(groups.connect_key_of.__getitem__, chosen))
    return numbers
