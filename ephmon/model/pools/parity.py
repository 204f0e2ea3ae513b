"""What the parity of a port says about the call that chose it.

connect() tries the ports of one parity first, that of the lower end of the range, and takes others only when it finds
none of those (__inet_hash_connect(), net/ipv4/inet_hashtables.c). bind(address, 0) tries the other parity first
(inet_csk_find_open_port(), net/ipv4/inet_connection_sock.c). The kernel does so to keep the two apart.

So a socket on a port of the second parity is likely to have got it from bind(address, 0), unless connect() had a reason
to go there: its destination holds nearly all ports of the first parity. Nor did bind(address, 0) choose a port that one
source shares toward several destinations, because it never lets that happen.
"""

from __future__ import annotations

from collections import Counter
from itertools import compress
from typing import TYPE_CHECKING

from ephmon.facts.addresses import PORTS
from ephmon.model.pools.port_classes import mark_ports, usable_ports

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ephmon.facts.snapshot import Sysctls
    from ephmon.facts.sockets import SocketTable

OVERFLOWING_SHARE = 0.8
"""A destination that holds this share of the first parity is believed to have gone on to the second. It is less than
all, because some of the connections that filled the first parity may have ended since."""


def ports_of_second_parity(sysctls: Sysctls, ports: Iterable[int]) -> set[int]:
    """Return those of the ports that connect() tries last."""
    first = sysctls.port_range.low % 2
    return {port for port in ports if port % 2 != first}


def taken_without_need(sysctls: Sysctls, connections: SocketTable, second: set[int], blocked: set[int]) -> set[int]:
    """Return the ports of the second parity that connect() is unlikely to have chosen.

    Args:
        sysctls: The settings of the namespace.
        connections: All its connections.
        second: The ports of the second parity to judge.
        blocked: The ports of the range that connect() cannot take.
    """
    if not second:
        return set()
    keys, key_of = connections.groups.connect_keys, connections.groups.connect_key_of
    overflowing = _overflowing_keys(sysctls, connections, blocked)
    # A socket with IP_BIND_ADDRESS_NO_PORT is certainly from connect(), which found no port of the first parity then,
    # however many there are now.
    certain = connections.groups.no_port_flags
    is_asked = mark_ports(second)
    rows = [
        row
        for piece in connections.pieces()
        for row in compress(zip(piece.group_of, piece.port_of, strict=True), map(is_asked.__getitem__, piece.port_of))
    ]
    found = {port for group, port in rows if not certain[group] and key_of[group] not in overflowing}
    sharers = Counter((port, keys[key_of[group]].source) for group, port in rows if port in found)
    return found - {port for (port, _), number in sharers.items() if number > 1}


def _overflowing_keys(sysctls: Sysctls, connections: SocketTable, blocked: set[int]) -> set[int]:
    """Return the indices of the connect keys that hold nearly all ports of the first parity that they can have."""
    key_of = connections.groups.connect_key_of
    is_first = _first_parity(sysctls, blocked)
    enough = OVERFLOWING_SHARE * is_first.count(1)
    held: Counter[int] = Counter()
    for piece in connections.pieces():
        rows_of_first = compress(piece.group_of, map(is_first.__getitem__, piece.port_of))
        held.update(map(key_of.__getitem__, rows_of_first))
    return {index for index, number in held.items() if number >= enough}


def _first_parity(sysctls: Sysctls, blocked: set[int]) -> bytearray:
    """Return 1 for each port of the first parity that connect() can take."""
    first = usable_ports(sysctls)
    first[1 - sysctls.port_range.low % 2 :: 2] = bytes(PORTS // 2)
    for port in blocked:
        first[port] = 0
    return first
