"""Which ports of the range a TCP connect() may still take, whatever its destination: the condition of a namespace.

connect() on a socket without a port walks the range (__inet_hash_connect(), net/ipv4/inet_hashtables.c). For each
candidate it looks up the bind bucket of (namespace, port). Then it

- takes the port if there is no bucket,
- skips the port if any socket in the bucket did *not* get it from connect(): the bucket's `fastreuse` or
  `fastreuseport` is not negative then, and the kernel looks at no address, family or destination,
- otherwise takes the port unless its own 4-tuple is in use (__inet_check_established()).

So a port is *blocked* for every connect() of the namespace while a TCP socket holds it that got it in another way:

- by listening (on any address of either family, also with IPV6_V6ONLY),
- by bind() to that port,
- by bind(address, 0) without IP_BIND_ADDRESS_NO_PORT,
- by being accepted from a listener on that port.

The TIME_WAITs of such sockets block the port too. Since Linux 6.18 the port is free for connect() again when the last
such socket has left it (inet_bind_bucket_destroy()). Before, it is free again when no socket is left at all. UDP
sockets block nothing.

inet_diag shows listening and bound sockets, and which sockets named their port in bind(). It does not show whether a
connected socket got its port from connect() or from bind(address, 0), with one exception: a connected socket that has
IP_BIND_ADDRESS_NO_PORT and did not name its port got it from connect(). Ports with any other connected socket are
*ambiguous*, or in doubt, until the kernel is asked: `ephmon.model.pools.classify_ports`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from ephmon.facts.addresses import PORTS, covers
from ephmon.facts.sockets import TcpState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ephmon.facts.snapshot import Sysctls
    from ephmon.facts.socket_groups import SocketGroup
    from ephmon.facts.sockets import Blindness, SocketTable


class PortClass(IntEnum):
    """What a port is to a connect() that has not chosen its port yet."""

    UNUSABLE = 0
    """Outside the range, or reserved."""
    SHARED = 1
    """Free, or held only by sockets that certainly got it from connect()."""
    AMBIGUOUS = 2
    """Held by a socket that may have got it in another way, and nobody knows. Estimates take it as shared."""
    BLOCKED = 3
    """Held by a socket that certainly did not get it from connect(), or the kernel says so."""


OPEN_CLASSES = (PortClass.SHARED, PortClass.AMBIGUOUS)
"""The classes that make up the capacity by the best estimate."""


def _table(*classes: PortClass) -> bytes:
    """Return what `bytes.translate()` makes 1 of these classes with, and 0 of the others."""
    return bytes(value in classes for value in range(256))


_IN_DOUBT = _table(PortClass.AMBIGUOUS)
_NOT_KNOWN_TO_BE_BLOCKED = _table(*OPEN_CLASSES)


@dataclass(frozen=True, slots=True)
class TcpPorts:
    """The class of every port of one namespace, and how many there are."""

    classes: bytes
    """65,536 values of `PortClass`, indexed by port."""
    usable: int
    blocked: int
    ambiguous: int
    blind_to: frozenset[Blindness]
    """What may make a port blocked without being seen."""
    left_by_listeners: frozenset[int] = frozenset()
    """Blocked ports that had a listener earlier and have held sockets ever since: those sockets were accepted."""

    @classmethod
    def of(
        cls, classes: bytes, blind_to: frozenset[Blindness], left_by_listeners: frozenset[int] = frozenset()
    ) -> TcpPorts:
        """Count the classes."""
        return cls(
            classes=classes,
            usable=PORTS - classes.count(PortClass.UNUSABLE),
            blocked=classes.count(PortClass.BLOCKED),
            ambiguous=classes.count(PortClass.AMBIGUOUS),
            blind_to=blind_to,
            left_by_listeners=left_by_listeners,
        )

    def in_doubt(self) -> list[int]:
        """Return the ambiguous ports. The probe can settle each of them."""
        return self._ports(_IN_DOUBT)

    def not_known_to_be_blocked(self) -> list[int]:
        """Return all usable ports but those that are certainly blocked."""
        return self._ports(_NOT_KNOWN_TO_BE_BLOCKED)

    def _ports(self, table: bytes) -> list[int]:
        # An enum looked up for each of 65,536 ports would take ten times as long.
        return [port for port, is_wanted in enumerate(self.classes.translate(table)) if is_wanted]


def usable_ports(sysctls: Sysctls) -> bytearray:
    """Return 65,536 values of `PortClass`: SHARED where an allocation may choose the port, else UNUSABLE."""
    low, high = sysctls.port_range
    classes = bytearray(PORTS)
    classes[low : high + 1] = bytes([PortClass.SHARED]) * sysctls.port_range.size
    for port in sysctls.reserved_ports:
        classes[port] = PortClass.UNUSABLE
    return classes


def count_usable(sysctls: Sysctls) -> int:
    """Return how many ports an allocation may choose from."""
    return PORTS - usable_ports(sysctls).count(PortClass.UNUSABLE)


def mark_ports(ports: Iterable[int]) -> bytearray:
    """Return 65,536 values, 1 for each of the ports and else 0: a set of ports that map() can ask without bytecode."""
    marks = bytearray(PORTS)
    for port in ports:
        marks[port] = 1
    return marks


class Listeners:
    """The listening sockets of a namespace. They tell whether a connected socket was accepted from one of them.

    An accepted socket has its listener's port, and its local address is one that the listener covers.
    """

    def __init__(self, bound: SocketTable) -> None:
        self._at: dict[int, list[SocketGroup]] = {}
        for index, port in zip(bound.group_of, bound.port_of, strict=True):
            group = bound.groups[index]
            if group.state == TcpState.LISTEN:
                self._at.setdefault(port, []).append(group)

    @property
    def ports(self) -> frozenset[int]:
        """The ports that are listened on."""
        return frozenset(self._at)

    def have_accepted(self, port: int, source: bytes) -> bool:
        """Tell whether a socket with this local port and packed local address came from a listener."""
        return any(
            covers(listener.source, source, dual_stack=listener.dual_stack) for listener in self._at.get(port, ())
        )
