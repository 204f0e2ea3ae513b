"""What is known of every port: shared, blocked, or in doubt. Nothing here is guessed.

Three things settle a port, each for a reason that the kernel's source gives:

Certain
    What one reading shows. A listening or a bound socket blocks its port, and so does a connected one that named its
    port, before Linux 6.18. Where every socket carries IP_BIND_ADDRESS_NO_PORT, the port is shared.
Answered
    What the probe found when it asked the kernel (`ephmon.kernel.probe`).
Remembered
    What was certain or answered at an earlier reading, and still holds because the same sockets are on the port. A
    fingerprint tells whether they are: it is made of the sockets' cookies, which they keep into TIME_WAIT.

Every other port with a socket is in doubt. It counts as blocked in the lower bound of a pool and as shared in the upper
bound. The estimate takes it as shared, because most programs call connect(). So nothing that is only likely makes a
pool look fuller than it is.

These take care that what is remembered is proven:

- What blocks a port is remembered once it was seen twice with the same sockets, however long after the first time. One
  time might have been a socket that came after the sockets were read, and went before they were read again.
- That a port is shared is remembered since Linux 6.18 only. Before, a bind() that comes and goes in between blocks the
  port for as long as any socket stays on it, and none of those sockets changes. A kernel with 6.18's rule and an older
  number loses nothing by this but some questions.
- Since Linux 6.18 a connected socket that named its port proves nothing. It may have bound the wildcard with
  SO_REUSEADDR; then connect() moved it among sockets of its local address that share the port, and the next socket that
  leaves makes the port shared again (__inet_bhash2_update_saddr(), inet_bind2_bucket_destroy()). So that such a port is
  blocked is not remembered while two sockets on it have the same local address.

Two more things follow:

Accepted sockets
    They draw from no pool. Sockets on a port with a listener that covers their address were accepted. Once the listener
    has gone, they are known by two signs together: the port has had sockets ever since, and it is blocked. If the port
    is in doubt, connect() may have taken it since, so its sockets count. An answer "shared" says that it did.
Binders
    The addresses that programs call bind(address, 0) for. Proof is a bound, unconnected socket that did not name its
    port, or a connection alone on a port that is blocked for no other reason that was ever seen. What this cannot tell
    apart is a single connection left by a listener that was gone before the first reading.

A reading without evidence (`TcpSockets.has_evidence`) only counts: it shows listeners and connections, but neither
fingerprints nor other bound sockets. Every other port that is in use, or was blocked when that was last looked for, is
in doubt then. What was remembered waits for the next reading with evidence.
"""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field, replace
from enum import IntEnum
from itertools import compress
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from ephmon.facts.addresses import PORTS
from ephmon.facts.sockets import Blindness, TcpState
from ephmon.model.pools.port_classes import PortClass, TcpPorts, mark_ports, usable_ports

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from collections.abc import Set as AbstractSet

    from ephmon.facts.snapshot import Sysctls
    from ephmon.facts.socket_groups import SocketGroup
    from ephmon.facts.sockets import TcpSockets

LITTLE_SHARE = 0.01
"""Polls may only count while at most this share of the usable ports is blocked by others than listeners."""


class Verdict(IntEnum):
    """What holds of a port as long as the same sockets are on it."""

    # An IntEnum and not an Enum: the verdicts on all ports are one bytes object.
    NONE = 0
    SHARED = 1
    BLOCKED_ONCE = 2
    """Blocked when it was looked at, which proves something only if it is found blocked once more."""
    BLOCKED = 3


_VERDICTS = tuple(Verdict)
_NOT = bytes([1]) + bytes(255)
_IS_BLOCKED_ONCE = bytes(value == Verdict.BLOCKED_ONCE for value in range(256))
_IS_BLOCKED = bytes(value >= Verdict.BLOCKED_ONCE for value in range(256))


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is remembered of the ports of one namespace."""

    verdicts: bytes = field(default=bytes(PORTS))
    """`Verdict` by port."""
    fingerprints: array[int] = field(default_factory=lambda: array("Q", bytes(8 * PORTS)))
    """The sockets that each verdict is about, by port (typecode "Q")."""
    listened_on: frozenset[int] = frozenset()
    """Ports that have a listener, or had one and have not been seen without a socket since."""
    binders: frozenset[bytes] = frozenset()
    """Packed local addresses for which sockets let bind() choose a port."""
    settles_much: bool = True
    """Whether a reading that only counts would miss much.

    It would where more ports are known to be shared than are in doubt, because it leaves all of them in doubt. It would
    too where others than listeners block more than a few ports, because it does not see them.
    """

    def blocked_once(self) -> list[int]:
        """Return the ports that were found blocked once, so that one more such answer proves it."""
        return [port for port, is_it in enumerate(self.verdicts.translate(_IS_BLOCKED_ONCE)) if is_it]


NO_ANSWERS: Mapping[int, bool] = MappingProxyType({})


def classify_ports(
    sysctls: Sysctls, tcp: TcpSockets, previous: Evidence, *, answers: Mapping[int, bool] = NO_ANSWERS
) -> tuple[TcpPorts, Evidence]:
    """Return the class of every port, and what to remember for the next reading.

    Args:
        sysctls: The settings of the namespace.
        tcp: Its TCP sockets.
        previous: What was remembered of the reading before.
        answers: What the probe found: port -> whether connect() may share it.
    """
    listened_on = _listened_on(tcp, previous, answers)
    if not tcp.has_evidence:
        return _count_only(sysctls, tcp, replace(previous, listened_on=listened_on))
    held = tcp.connections.ports
    remembered = _remembered(tcp, previous)
    unsteady = _unsteady_ports(tcp, remembered[Verdict.BLOCKED])
    blocked = tcp.bound.ports if tcp.ports_recover else tcp.bound.ports | tcp.explicit_ports
    shared = _certainly_shared(tcp, listened_on) - tcp.explicit_ports - blocked
    blocked = blocked.union(port for port, is_shared in answers.items() if not is_shared)
    shared.update(port for port, is_shared in answers.items() if is_shared and port not in blocked)
    shared |= remembered[Verdict.SHARED] - blocked
    blocked |= remembered[Verdict.BLOCKED] - shared - unsteady
    in_doubt = held - shared - blocked

    classes = _classes(sysctls, in_doubt, blocked)
    unexplained = blocked - tcp.bound.ports - tcp.explicit_ports
    ports = TcpPorts.of(bytes(classes), _still_blind_to(tcp, classes, answers), unexplained & listened_on & held)
    evidence = Evidence(
        verdicts=_verdicts_to_remember(tcp, remembered, shared, blocked),
        fingerprints=tcp.fingerprints if tcp.fingerprints is not None else previous.fingerprints,
        listened_on=listened_on,
        binders=_binders(tcp, previous, unexplained - listened_on),
        settles_much=len(shared) >= len(in_doubt) or len(blocked - listened_on) > LITTLE_SHARE * ports.usable,
    )
    return ports, evidence


def _count_only(sysctls: Sysctls, tcp: TcpSockets, remembered: Evidence) -> tuple[TcpPorts, Evidence]:
    """Return the class of every port after a reading that only counted; what is remembered stays as it is."""
    blocked = tcp.bound.ports
    was_blocked = remembered.verdicts.translate(_IS_BLOCKED)
    in_doubt = tcp.connections.ports.union(compress(range(PORTS), was_blocked) if any(was_blocked) else ())
    classes = _classes(sysctls, in_doubt - blocked, blocked)
    return TcpPorts.of(bytes(classes), tcp.blind_to | {Blindness.BOUND_UNCONNECTED}), remembered


def _classes(sysctls: Sysctls, in_doubt: Iterable[int], blocked: Iterable[int]) -> bytearray:
    """Return the class of every port."""
    usable = usable_ports(sysctls)
    classes = bytearray(usable)
    _assign(classes, (port for port in in_doubt if usable[port]), PortClass.AMBIGUOUS)
    _assign(classes, (port for port in blocked if usable[port]), PortClass.BLOCKED)
    return classes


def _listened_on(tcp: TcpSockets, previous: Evidence, answers: Mapping[int, bool]) -> frozenset[int]:
    """Return the ports with a listener, and those that had one and have held sockets ever since.

    That connect() may share a port says that none of its sockets was accepted.
    """
    states = tcp.bound.groups.states
    listens = bytes(state == TcpState.LISTEN for state in states)
    now = frozenset(compress(tcp.bound.port_of, map(listens.__getitem__, tcp.bound.group_of)))
    still = previous.listened_on & (tcp.connections.ports | tcp.bound.ports)
    return now | {port for port in still if not answers.get(port, False)}


def _certainly_shared(tcp: TcpSockets, listened_on: AbstractSet[int]) -> set[int]:
    """Return the ports whose sockets all say by IP_BIND_ADDRESS_NO_PORT that connect() chose the port."""
    no_port = tcp.connections.groups.no_port_flags
    # Before Linux 6.18 a socket that has gone may still block the port, so no flag makes it certain.
    if not tcp.ports_recover or not any(no_port):
        return set()
    # TIME_WAIT structures and connection requests do not show the option, so the ports that they are on stay in doubt.
    says_nothing = no_port.translate(_NOT)
    rows = compress(tcp.connections.port_of, map(says_nothing.__getitem__, tcp.connections.group_of))
    # An accepted socket inherits the options of its listener, so the option says nothing on a port that had one.
    return set(tcp.connections.ports.difference(rows)) - listened_on


def _remembered(tcp: TcpSockets, previous: Evidence) -> dict[Verdict, set[int]]:
    """Return by verdict the ports of which it still holds, because they have the same sockets."""
    remembered: dict[Verdict, set[int]] = {verdict: set() for verdict in Verdict}
    now, before, verdicts = tcp.fingerprints, previous.fingerprints, previous.verdicts
    if now is not None and any(verdicts):
        for port in tcp.connections.ports | tcp.bound.ports:
            if now[port] == before[port]:
                remembered[_VERDICTS[verdicts[port]]].add(port)
    return remembered


def _verdicts_to_remember(
    tcp: TcpSockets, remembered: Mapping[Verdict, set[int]], shared: Iterable[int], blocked: Iterable[int]
) -> bytes:
    """Return by port what will hold at the next reading if the same sockets are there."""
    verdicts = bytearray(PORTS)
    _assign(verdicts, shared if tcp.ports_recover else (), Verdict.SHARED)
    # Also where nobody asked again this time: of many ports that have their turns, none would ever be proven otherwise.
    _assign(verdicts, remembered[Verdict.BLOCKED_ONCE].difference(shared), Verdict.BLOCKED_ONCE)
    _assign(verdicts, blocked, Verdict.BLOCKED_ONCE)
    were_blocked = remembered[Verdict.BLOCKED_ONCE] | remembered[Verdict.BLOCKED]
    _assign(verdicts, were_blocked.intersection(blocked), Verdict.BLOCKED)
    return bytes(verdicts)


def _assign(table: bytearray, ports: Iterable[int], value: int) -> None:
    number = int(value)  # an IntEnum would be converted for each port
    for port in ports:
        table[port] = number


class _Row(NamedTuple):
    """A connection on one of the few ports that are looked at one by one."""

    port: int
    group: SocketGroup


def _rows_on(tcp: TcpSockets, ports: AbstractSet[int]) -> list[_Row]:
    if tcp.connections.ports.isdisjoint(ports):
        return []
    is_asked = mark_ports(ports)
    groups = tcp.connections.groups
    unpacked: dict[int, SocketGroup] = {}
    rows = []
    for piece in tcp.connections.pieces():
        chosen = compress(zip(piece.port_of, piece.group_of, strict=True), map(is_asked.__getitem__, piece.port_of))
        for port, index in chosen:
            if (group := unpacked.get(index)) is None:
                group = unpacked[index] = groups[index]
            rows.append(_Row(port, group))
    return rows


def _unsteady_ports(tcp: TcpSockets, ports: AbstractSet[int]) -> set[int]:
    """Return those of the ports that a leaving socket may make shared, because two have the same local address."""
    if not tcp.ports_recover:
        return set()
    numbers = Counter((row.port, row.group.source) for row in _rows_on(tcp, ports))
    return {port for (port, _), number in numbers.items() if number > 1}


def _binders(tcp: TcpSockets, previous: Evidence, ports: AbstractSet[int]) -> frozenset[bytes]:
    """Return the addresses for which sockets let bind() choose a port.

    `ports` are blocked, and neither by a socket that is bound or named the port, nor by one that was accepted.
    """
    # Where cookies are not visible (/proc/net), neither is who named the port, so nothing is proven there.
    rows = [] if tcp.fingerprints is None else _rows_on(tcp, ports)
    number_on = Counter(row.port for row in rows)
    # Who is behind a TIME_WAIT or a connection request is not shown: it may have named its port.
    proven = {row.group.source for row in rows if number_on[row.port] == 1 and _is_full(row.group)}
    # Once proven, a binder stays one down to its last such port, TIME_WAITs included.
    still = previous.binders.intersection(row.group.source for row in rows)
    return tcp.bound_to_any_port.union(proven, still)


def _is_full(group: SocketGroup) -> bool:
    return not group.minisock and group.state not in (TcpState.SYN_RECV, TcpState.NEW_SYN_RECV)


def _still_blind_to(tcp: TcpSockets, classes: bytearray, answers: Mapping[int, bool]) -> frozenset[Blindness]:
    """Return what may block a port unseen: not bound sockets if the probe was asked about every port they may be on."""
    if Blindness.BOUND_UNCONNECTED not in tcp.blind_to:
        return tcp.blind_to
    asked = set(answers)
    maybe_bound = (port for port, value in enumerate(classes) if PortClass.UNUSABLE < value < PortClass.BLOCKED)
    return tcp.blind_to - {Blindness.BOUND_UNCONNECTED} if asked.issuperset(maybe_bound) else tcp.blind_to
