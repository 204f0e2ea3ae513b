"""Whether a port that connect() may or may not share is shared: what one reading shows, and what earlier ones knew.

A port whose every socket carries IP_BIND_ADDRESS_NO_PORT is shared, one with a listening, bound or port-naming socket
is blocked; both are certain. Such a *verdict* outlives what it was read from: it holds as long as the same sockets are
on the port, which their fingerprint tells (a socket keeps its cookie into TIME_WAIT, where flags are no longer shown).
The probe's answers are verdicts too.

Where there is none, the likelier case is estimated. Most programs connect(), so a port is taken as shared unless

- it had a listener and has not been without sockets since: what is on it was accepted;
- it had a socket that blocked it, has not been without sockets since, and the kernel frees ports late (before 6.18);
- it has the wrong parity. connect() takes ports of the parity of the range's lower end as long as there are any, and
  bind(address, 0) the others first (inet_csk_find_open_port()). A socket that holds a port of the other parity, while
  others of the first are there for its destination, is likely to have got it from bind(); not so if its source shares
  the port toward several destinations, which bind(address, 0) never lets happen.

From the same follows which addresses programs bind(address, 0) to: the *binders*.
"""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import compress
from types import MappingProxyType
from typing import TYPE_CHECKING

from ephmon.model.snapshot import Blindness, TcpState
from ephmon.model.tcp_ports import PORTS, PortClass, TcpPorts, usable_ports

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ephmon.model.snapshot import SocketGroup, SocketTable, Sysctls, TcpSockets

OVERFLOWING_SHARE = 0.8
"""A destination that holds this share of the ports of the first parity may well have gone on to the other."""


class Verdict(IntEnum):
    """What holds of a port as long as the same sockets are on it."""

    NONE = 0
    SHARED = 1
    BLOCKED = 2
    SUSPECT = 3
    """Not certain: only likely to be blocked. The signs may fade while the sockets stay."""


_UNCERTAIN = (Verdict.NONE, Verdict.SUSPECT)


class Past(IntEnum):
    """What a port has been since it was last seen without a socket: bits, in plain integers."""

    LISTENED_ON = 1
    BLOCKED = 2


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is remembered of every port of one namespace; three tables of one size, whatever is on the ports."""

    verdicts: bytes = field(default=bytes(PORTS))
    """`Verdict` by port."""
    fingerprints: array[int] = field(default_factory=lambda: array("Q", bytes(8 * PORTS)))
    """Of the sockets that each verdict is about, by port (typecode "Q")."""
    past: bytes = field(default=bytes(PORTS))
    """`Past` by port."""
    binders: frozenset[bytes] = frozenset()
    """Packed local addresses that sockets let bind() choose a port for."""


NO_ANSWERS: Mapping[int, bool] = MappingProxyType({})


def weigh(
    sysctls: Sysctls,
    tcp: TcpSockets,
    previous: Evidence,
    *,
    answers: Mapping[int, bool] = NO_ANSWERS,
    likely_binder_ports: int = 1,
) -> tuple[TcpPorts, Evidence]:
    """Return the class of every port, and what to remember for the next reading.

    Args:
        sysctls: The settings of the namespace.
        tcp: Its TCP sockets.
        previous: What was remembered of the reading before.
        answers: What the probe found: port -> whether connect() may share it.
        likely_binder_ports: So many ports of an address that are likely to have come from bind(address, 0) make it a
            binder.
    """
    held = set(tcp.connections.port_of)
    blocking = tcp.explicit_ports.union(tcp.bound.port_of)
    past = _past(tcp, previous, held)
    uncertain = _uncertain_ports(tcp, past, held) - blocking
    verdicts = _verdicts(tcp, previous, uncertain, answers)
    _assign(verdicts, held - uncertain, Verdict.SHARED)
    _assign(verdicts, blocking.union(port for port, shared in answers.items() if not shared), Verdict.BLOCKED)
    blocked = {port for port in held.union(blocking, answers) if verdicts[port] == Verdict.BLOCKED}
    unanswered = {port for port in uncertain if verdicts[port] in _UNCERTAIN}
    suspects = _with_a_past(tcp, past, unanswered).union(port for port in unanswered if verdicts[port])
    suspects |= _of_wrong_parity(sysctls, tcp.connections, unanswered - suspects, blocked)
    _assign(verdicts, suspects, Verdict.SUSPECT)
    classes = usable_ports(sysctls)
    unusable = {port for port in held | blocking if not classes[port]}
    _assign(classes, unanswered, PortClass.AMBIGUOUS)
    _assign(classes, suspects, PortClass.SUSPECT)
    _assign(classes, blocked, PortClass.BLOCKED)
    _assign(classes, unusable, PortClass.UNUSABLE)
    accepted = frozenset(port for port in held if past[port] & Past.LISTENED_ON) if any(past) else frozenset()
    evidence = Evidence(
        verdicts=bytes(verdicts),
        fingerprints=tcp.fingerprints if tcp.fingerprints is not None else previous.fingerprints,
        past=bytes(past),
        binders=_binders(tcp, previous, (blocked | suspects) - blocking - accepted, answers, likely_binder_ports),
    )
    return TcpPorts.of(bytes(classes), _still_blind_to(tcp, classes, answers), accepted - blocking), evidence


def _binders(
    tcp: TcpSockets, previous: Evidence, ports: set[int], answers: Mapping[int, bool], likely_binder_ports: int
) -> frozenset[bytes]:
    """Return the addresses that sockets let bind() choose a port for; `ports` are those that they may hold."""
    likely = _by_source(tcp.connections, ports)
    proven = _by_source(tcp.connections, {port for port in ports if not answers.get(port, True)})
    known = previous.binders.union(proven)
    return tcp.bound_to_any_port.union(
        source for source, number in likely.items() if number >= likely_binder_ports or source in known
    )


def _still_blind_to(tcp: TcpSockets, classes: bytearray, answers: Mapping[int, bool]) -> frozenset[Blindness]:
    """Return what may block a port unseen; bound sockets do not if the probe was asked of every such port."""
    if Blindness.BOUND_UNCONNECTED not in tcp.blind_to:
        return tcp.blind_to
    asked = set(answers)
    could_be_on = (port for port, value in enumerate(classes) if PortClass.UNUSABLE < value < PortClass.BLOCKED)
    return tcp.blind_to - {Blindness.BOUND_UNCONNECTED} if asked.issuperset(could_be_on) else tcp.blind_to


def _by_source(connections: SocketTable, ports: set[int]) -> Counter[bytes]:
    """Count the sockets on some ports by local address."""
    if not ports:
        return Counter()
    indices = compress(connections.group_of, map(_marked(ports).__getitem__, connections.port_of))
    return Counter(connections.groups[index].source for index in indices)


def certainly_from_connect(group: SocketGroup) -> bool:
    """Tell whether the sockets of the group certainly got their ports from connect().

    They carry IP_BIND_ADDRESS_NO_PORT, which structures of TIME_WAIT and of connection requests do not show.
    """
    return group.bind_address_no_port


def _assign(table: bytearray, ports: Iterable[int], value: int) -> None:
    for port in ports:
        table[port] = value


def _uncertain_ports(tcp: TcpSockets, past: bytearray, held: set[int]) -> set[int]:
    """Return the ports held by connections of which one reading cannot tell whether connect() may share them.

    An accepted socket inherits the options of its listener, so where one listened the flag means nothing. Before Linux
    6.18 a port may be blocked by a socket that has gone.
    """
    if not tcp.ports_recover:
        return set(held)
    uncertain: Sequence[bool] = [not certainly_from_connect(group) for group in tcp.connections.groups]
    if all(uncertain):
        return set(held)
    rows = compress(tcp.connections.port_of, map(uncertain.__getitem__, tcp.connections.group_of))
    return set(rows).union(port for port in held if past[port] & Past.LISTENED_ON)


def _verdicts(tcp: TcpSockets, previous: Evidence, ports: Iterable[int], answers: Mapping[int, bool]) -> bytearray:
    """Return the verdicts on `ports` that still hold, or that the probe gave."""
    verdicts = bytearray(PORTS)
    now, before = tcp.fingerprints, previous.fingerprints
    for port in ports:
        if port in answers:
            verdicts[port] = Verdict.SHARED if answers[port] else Verdict.BLOCKED
        elif now is not None and previous.verdicts[port] and now[port] == before[port]:
            verdicts[port] = previous.verdicts[port]
    return verdicts


def _past(tcp: TcpSockets, previous: Evidence, held: set[int]) -> bytearray:
    """Return what each port has been, which is forgotten when it is seen without a socket."""
    past = bytearray(PORTS)
    if any(previous.past):
        for port in held:
            past[port] = previous.past[port]
    for port in tcp.explicit_ports.union(tcp.bound.port_of):
        past[port] = previous.past[port] | Past.BLOCKED
    for index, port in zip(tcp.bound.group_of, tcp.bound.port_of, strict=True):
        if tcp.bound.groups[index].state == TcpState.LISTEN:
            past[port] |= Past.LISTENED_ON
    return past


def _with_a_past(tcp: TcpSockets, past: bytearray, ports: set[int]) -> set[int]:
    """Return those of the ports whose sockets are likely to have come from what blocked the port earlier."""
    telling = Past.LISTENED_ON if tcp.ports_recover else Past.LISTENED_ON | Past.BLOCKED
    return {port for port in ports if past[port] & telling} if any(past) else set()


def _of_wrong_parity(sysctls: Sysctls, connections: SocketTable, ports: set[int], blocked: set[int]) -> set[int]:
    """Return those of the ports, of the second parity, whose socket found ports of the first to be had.

    A socket that certainly is from connect() found none, however many there are now.
    """
    second = {port for port in ports if port % 2 != sysctls.port_range.low % 2}
    if not second:
        return set()
    peers = [(group.source, group.destination, group.destination_port) for group in connections.groups]
    first = _first_parity(sysctls, blocked)
    enough = OVERFLOWING_SHARE * first.count(1)
    held = Counter(map(peers.__getitem__, compress(connections.group_of, map(first.__getitem__, connections.port_of))))
    suspects: set[int] = set()
    sharers: Counter[tuple[int, bytes]] = Counter()
    asked = _marked(second)
    rows = zip(connections.group_of, connections.port_of, strict=True)
    for index, port in compress(rows, map(asked.__getitem__, connections.port_of)):
        sharers[port, peers[index][0]] += 1
        if held[peers[index]] < enough and not certainly_from_connect(connections.groups[index]):
            suspects.add(port)
    return suspects - {port for (port, _), number in sharers.items() if number > 1}


def _first_parity(sysctls: Sysctls, blocked: set[int]) -> bytearray:
    """Return 1 for each port that connect() looks at first and may find to be had."""
    first = usable_ports(sysctls)
    first[1 - sysctls.port_range.low % 2 :: 2] = bytes(PORTS // 2)
    for port in blocked:
        first[port] = 0
    return first


def _marked(ports: Iterable[int]) -> bytearray:
    """Return 65,536 values, 1 for each of the ports."""
    marks = bytearray(PORTS)
    for port in ports:
        marks[port] = 1
    return marks
