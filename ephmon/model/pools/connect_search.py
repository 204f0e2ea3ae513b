"""How many ports one connect() looks at before it finds one: what it costs beside the port.

connect() on a socket without a port starts at a random port and looks at one after the other (__inet_hash_connect(),
net/ipv4/inet_hashtables.c). First it walks every second port of the range, those with the parity of the low end. Only
if all of them are taken it walks the others. It skips reserved ports by a bit, so these are not counted here. Every
other port costs a look at its bind bucket, and at the table of connections where the bucket is shared.

So the cost has a step. In the default range a connect() looks at some ten ports while 45 % are taken and at 14,000 from
50 % on. Where n of the ports of a parity are walked and f of them are free, the search looks at (n + 1) / (f + 1) of
them on average: the free ports divide the others into f + 1 gaps, and it walks one of these. A TIME_WAIT that may be
reused counts as free. The start is not drawn anew for each call: the kernel goes on where the last search of the same
pool ended (table_perturb). The average over many calls is the same while free ports are spread over the range.

Linux 6.8 changed the rule for sockets with a port range of their own (IP_LOCAL_PORT_RANGE): they walk it once, port by
port. Linux 6.15 looks a port up without taking the lock of its bucket, which made the walk cheaper and not shorter.
"""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from itertools import compress
from operator import and_
from typing import TYPE_CHECKING, NamedTuple

from ephmon.facts.addresses import PORTS
from ephmon.facts.sockets import TcpState
from ephmon.model.pools.port_classes import OPEN_CLASSES, PortClass
from ephmon.model.pools.time_wait import reusable_below_ms

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ephmon.facts.snapshot import PortRange, Sysctls
    from ephmon.facts.socket_groups import ConnectKey
    from ephmon.facts.sockets import TcpSockets
    from ephmon.model.pools.port_classes import TcpPorts

MANY_PORTS = 1_000
"""A search of so many ports is worth a word: it takes longer than all else that connect() does."""
LITTLE_LOST = 0.4
"""While a pool has lost at most this share of the usable ports, all of them are taken to be of the first parity.

connect() takes those first, so it is nearly true. At worst the search is given as five ports instead of one, which is
nothing beside what connect() costs anyway, and no socket has to be looked at."""

_IS_OPEN = bytes(value in OPEN_CLASSES for value in range(256))


class Parity(NamedTuple):
    """Every second port of the range."""

    ports: int
    """Those that are not reserved."""
    free: int
    """Those that a connect() of the pool gets."""


def expected_ports(first: Parity, second: Parity) -> float:
    """Return how many ports one connect() looks at on average; all of them where it finds none."""
    if first.free:
        return (first.ports + 1) / (first.free + 1)
    if second.free:
        return first.ports + (second.ports + 1) / (second.free + 1)
    return first.ports + second.ports


class OpenPorts:
    """The ports of a range by parity: how many are not reserved, and how many of these are not blocked."""

    def __init__(self, port_range: PortRange, classes: bytes) -> None:
        self._ports, self._open = [], []
        for start in (port_range.low, port_range.low + 1):
            of_parity = classes[start : port_range.high + 1 : 2]
            self._ports.append(len(of_parity) - of_parity.count(PortClass.UNUSABLE))
            self._open.append(of_parity.translate(_IS_OPEN).count(1))

    def expected_search(self, free: int, taken_of_second: int) -> float:
        """Return how many ports one connect() of a pool looks at.

        Args:
            free: How many ports a connect() of the pool can get.
            taken_of_second: How many ports of the second parity are not blocked, and it cannot get them.
        """
        (first, second), (open_first, open_second) = self._ports, self._open
        # Sockets on devices may share a port, so they may be more than ports.
        free_second = max(0, min(free, open_second - taken_of_second))
        return expected_ports(Parity(first, max(0, min(open_first, free - free_second))), Parity(second, free_second))


class ConnectSearch:
    """The searches of one namespace at one moment.

    The sockets are looked at once, without bytecode for each of them, and not before a pool is asked for that has lost
    more than LITTLE_LOST.
    """

    def __init__(self, sysctls: Sysctls, tcp: TcpSockets, ports: TcpPorts) -> None:
        self._sysctls = sysctls
        self._table = tcp.connections
        self._ports = ports

    def expected_ports(self, key: ConnectKey, free: int, reusable: int) -> float:
        """Return how many ports one connect() of a pool looks at.

        Args:
            key: The pool.
            free: How many ports a connect() of the pool can get.
            reusable: How many of these have a TIME_WAIT.
        """
        is_little = self._ports.usable - free <= LITTLE_LOST * self._ports.usable
        return self._open.expected_search(free, 0 if is_little else self._taken_of_second_parity(key, reusable))

    @cached_property
    def _open(self) -> OpenPorts:
        return OpenPorts(self._sysctls.port_range, self._ports.classes)

    def _taken_of_second_parity(self, key: ConnectKey, reusable: int) -> int:
        key_index = self._table.groups.connect_keys.find(key)
        if key_index is None:
            return 0
        # Of the TIME_WAITs that are old enough, no more are reusable than the pool has.
        given_again = min(self._old_by_key[key_index], reusable) if reusable else 0
        return max(0, self._in_use_by_key[key_index] - given_again)

    @cached_property
    def _is_second(self) -> bytearray:
        """65,536 values, 1 for the ports of the second parity that are not blocked."""
        low, high = self._sysctls.port_range
        marks = bytearray(PORTS)
        marks[low + 1 : high + 1 : 2] = self._ports.classes[low + 1 : high + 1 : 2].translate(_IS_OPEN)
        for port in self._ports.left_by_listeners:  # their sockets were accepted
            marks[port] = 0
        return marks

    @cached_property
    def _in_use_by_key(self) -> Counter[int]:
        """Sockets on ports of the second parity, by the index of their key."""
        is_second, found = self._is_second, Counter[int]()
        for rows in self._table.pieces():
            found.update(compress(rows.group_of, map(is_second.__getitem__, rows.port_of)))
        return self._by_key(found)

    @cached_property
    def _old_by_key(self) -> Counter[int]:
        """Those of them that are TIME_WAITs old enough to be reused."""
        is_second, found = self._is_second, Counter[int]()
        below, states = reusable_below_ms(self._sysctls), self._table.groups.states
        for rows in self._table.pieces():
            is_old = map(below.__gt__, rows.time_wait_left_ms_of)
            found.update(compress(rows.group_of, map(and_, map(is_second.__getitem__, rows.port_of), is_old)))
        return self._by_key({index: number for index, number in found.items() if states[index] == TcpState.TIME_WAIT})

    def _by_key(self, numbers: Mapping[int, int]) -> Counter[int]:
        """Return the sum of numbers by the index of a group, by the index of its key."""
        key_of, found = self._table.groups.connect_key_of, Counter[int]()
        for index, number in numbers.items():
            found[key_of[index]] += number
        return found
