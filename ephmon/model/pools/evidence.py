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
  the port toward several destinations, which bind(address, 0) never lets happen. A port that was spared for either
  reason stays so until it is seen without a socket: destinations empty, mostly the oldest connections first, and those
  of the other parity are the youngest.

From the same follows which addresses programs bind(address, 0) to: the *binders*.

A reading without evidence (`TcpSockets.has_evidence`) only counts. It shows that ports are held or listened on, but not
that the same sockets are on them as before, nor which are bound and unconnected. So every port in use is in doubt then,
and those that were last judged blocked, or were bound when it was last looked for, are suspect.
"""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field, replace
from enum import IntEnum
from itertools import compress
from types import MappingProxyType
from typing import TYPE_CHECKING

from ephmon.facts.addresses import PORTS
from ephmon.facts.sockets import Blindness, TcpState
from ephmon.model.pools.port_classes import PortClass, TcpPorts, usable_ports

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ephmon.facts.snapshot import Sysctls
    from ephmon.facts.sockets import SocketTable, TcpSockets

OVERFLOWING_SHARE = 0.8
"""A destination that holds this share of the ports of the first parity may well have gone on to the other."""

LITTLE_SHARE = 0.01
"""So small a share of the usable ports may be blocked by others than listeners where polls only count."""


class PortVerdict(IntEnum):
    """What holds of a port as long as the same sockets are on it."""

    NONE = 0
    SHARED = 1
    BLOCKED = 2
    SUSPECT = 3
    """Not certain: only likely to be blocked. The signs may fade while the sockets stay."""


_UNCERTAIN = (PortVerdict.NONE, PortVerdict.SUSPECT)
_IS_BLOCKING = bytes(value in (PortVerdict.BLOCKED, PortVerdict.SUSPECT) for value in range(256))
_NOT = bytes([1]) + bytes(255)


class Past(IntEnum):
    """What a port has been since it was last seen without a socket: bits, in plain integers."""

    LISTENED_ON = 1
    BLOCKED = 2
    BOUND = 4
    """By a socket that was neither connected nor listening when it was last looked for."""
    SPARED = 8
    """Of the wrong parity, with a reason for it."""


# By bit: what turns a table of past bits into 1 where the bit is set.
_HAS = {bit: bytes(bool(value & bit) for value in range(256)) for bit in Past}


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is remembered of every port of one namespace; three tables of one size, whatever is on the ports."""

    verdicts: bytes = field(default=bytes(PORTS))
    """`PortVerdict` by port."""
    fingerprints: array[int] = field(default_factory=lambda: array("Q", bytes(8 * PORTS)))
    """Of the sockets that each verdict is about, by port (typecode "Q")."""
    past: bytes = field(default=bytes(PORTS))
    """`Past` by port."""
    binders: frozenset[bytes] = frozenset()
    """Packed local addresses that sockets let bind() choose a port for."""
    settles_much: bool = True
    """Whether a reading that only counts would miss much.

    So it is if of the ports in use at least as many were certainly shared as were in doubt, or if more than a few were
    blocked by other sockets than listeners: where such sockets come and go, counting knows those of the past alone.
    """


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
    held = tcp.connections.ports
    blocking = tcp.explicit_ports | tcp.bound.ports
    past = _past(tcp, previous, held)
    if not tcp.has_evidence:
        return _as_last_judged(sysctls, tcp, previous, held, past)
    uncertain = _uncertain_ports(tcp, past, held) - blocking
    verdicts = _verdicts(tcp, previous, uncertain, answers)
    _assign(verdicts, held - uncertain, PortVerdict.SHARED)
    _assign(verdicts, blocking.union(port for port, shared in answers.items() if not shared), PortVerdict.BLOCKED)
    blocked = {port for port in held.union(blocking, answers) if verdicts[port] == PortVerdict.BLOCKED}
    unanswered = {port for port in uncertain if verdicts[port] in _UNCERTAIN}
    suspects = _with_a_past(tcp, past, unanswered).union(port for port in unanswered if verdicts[port])
    suspects |= _of_wrong_parity(sysctls, tcp.connections, unanswered - suspects, blocked, past)
    _assign(verdicts, suspects, PortVerdict.SUSPECT)
    classes = _classes(sysctls, unanswered, suspects, blocked)
    accepted = _left_by_listeners(past, held)
    ports = TcpPorts.of(bytes(classes), _still_blind_to(tcp, classes, answers), accepted - blocking)
    evidence = Evidence(
        verdicts=bytes(verdicts),
        fingerprints=tcp.fingerprints if tcp.fingerprints is not None else previous.fingerprints,
        past=bytes(past),
        binders=_binders(tcp, previous, (blocked | suspects) - blocking - accepted, answers, likely_binder_ports),
        settles_much=verdicts.count(PortVerdict.SHARED) >= ports.ambiguous
        or _without_listener(past, blocked | suspects) > LITTLE_SHARE * ports.usable,
    )
    return ports, evidence


def _as_last_judged(
    sysctls: Sysctls, tcp: TcpSockets, previous: Evidence, held: frozenset[int], past: bytearray
) -> tuple[TcpPorts, Evidence]:
    """Return the class of every port after a reading without evidence; the verdicts wait for the next one with it."""
    blocking = tcp.bound.ports
    in_doubt = held - blocking
    suspects = _with_a_past(tcp, past, set(in_doubt)).union(_bound_before(previous)) - blocking
    judged_blocked = previous.verdicts.translate(_IS_BLOCKING)
    if any(judged_blocked):
        suspects.update(port for port in in_doubt if judged_blocked[port])
    # The binders stay too: what is bound and unconnected, and so makes an address one of them, is not seen now.
    evidence = replace(previous, past=bytes(past))
    classes = _classes(sysctls, in_doubt, suspects, blocking)
    blind_to = tcp.blind_to | {Blindness.BOUND_UNCONNECTED}
    return TcpPorts.of(bytes(classes), blind_to, _left_by_listeners(past, held) - blocking), evidence


def _classes(sysctls: Sysctls, ambiguous: Iterable[int], suspects: Iterable[int], blocked: Iterable[int]) -> bytearray:
    """Return the class of every port; where a port is in two of the sets, the later one holds."""
    usable = usable_ports(sysctls)
    classes = bytearray(usable)
    for ports, value in ((ambiguous, PortClass.AMBIGUOUS), (suspects, PortClass.SUSPECT), (blocked, PortClass.BLOCKED)):
        _assign(classes, (port for port in ports if usable[port]), value)
    return classes


def _left_by_listeners(past: bytearray, held: Iterable[int]) -> frozenset[int]:
    """Return the ports whose sockets were accepted: they had a listener and have not been without sockets since."""
    listened_on = past.translate(_HAS[Past.LISTENED_ON])
    return frozenset(port for port in held if listened_on[port]) if any(listened_on) else frozenset()


def _without_listener(past: bytearray, ports: Iterable[int]) -> int:
    """Return on how many of the ports nobody has listened since they were seen without a socket."""
    return sum(not past[port] & Past.LISTENED_ON for port in ports)


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
    marked = _marked(ports)
    numbers: Counter[int] = Counter()
    for rows in connections.pieces():
        numbers.update(compress(rows.group_of, map(marked.__getitem__, rows.port_of)))
    found: Counter[bytes] = Counter()
    for index, number in numbers.items():
        found[connections.groups[index].source] += number
    return found


def _assign(table: bytearray, ports: Iterable[int], value: int) -> None:
    for port in ports:
        table[port] = value


def _uncertain_ports(tcp: TcpSockets, past: bytearray, held: frozenset[int]) -> set[int]:
    """Return the ports held by connections of which one reading cannot tell whether connect() may share them.

    Sockets that carry IP_BIND_ADDRESS_NO_PORT certainly got their ports from connect(); structures of TIME_WAIT and of
    connection requests do not show it. An accepted socket inherits the options of its listener, so where one listened
    the flag means nothing. Before Linux 6.18 a port may be blocked by a socket that has gone.
    """
    if not tcp.ports_recover:
        return set(held)
    certain = tcp.connections.groups.no_port_flags
    if not any(certain):
        return set(held)
    rows = compress(tcp.connections.port_of, map(certain.translate(_NOT).__getitem__, tcp.connections.group_of))
    return set(rows).union(port for port in held if past[port] & Past.LISTENED_ON)


def _verdicts(tcp: TcpSockets, previous: Evidence, ports: Iterable[int], answers: Mapping[int, bool]) -> bytearray:
    """Return the verdicts on `ports` that still hold, or that the probe gave."""
    verdicts = bytearray(PORTS)
    now, before = tcp.fingerprints, previous.fingerprints
    for port in ports:
        if port in answers:
            verdicts[port] = PortVerdict.SHARED if answers[port] else PortVerdict.BLOCKED
        elif now is not None and previous.verdicts[port] and now[port] == before[port]:
            verdicts[port] = previous.verdicts[port]
    return verdicts


def _past(tcp: TcpSockets, previous: Evidence, held: frozenset[int]) -> bytearray:
    """Return what each port has been, which is forgotten when it is seen without a socket."""
    past = bytearray(PORTS)
    if any(previous.past):
        for port in held:
            past[port] = previous.past[port] & ~Past.BOUND
        for port in () if tcp.has_evidence else _bound_before(previous):
            past[port] = previous.past[port]
    for port in tcp.explicit_ports | tcp.bound.ports:
        past[port] = previous.past[port] & ~Past.BOUND | Past.BLOCKED
    states = tcp.bound.groups.states
    for index, port in zip(tcp.bound.group_of, tcp.bound.port_of, strict=True):
        past[port] |= Past.LISTENED_ON if states[index] == TcpState.LISTEN else Past.BOUND
    return past


def _bound_before(previous: Evidence) -> list[int]:
    """Return the ports that were bound and unconnected when that was last looked for."""
    bound = previous.past.translate(_HAS[Past.BOUND])
    return [port for port, is_bound in enumerate(bound) if is_bound] if any(bound) else []


def _with_a_past(tcp: TcpSockets, past: bytearray, ports: set[int]) -> set[int]:
    """Return those of the ports whose sockets are likely to have come from what blocked the port earlier."""
    telling = Past.LISTENED_ON if tcp.ports_recover else Past.LISTENED_ON | Past.BLOCKED
    return {port for port in ports if past[port] & telling} if any(past) else set()


def _of_wrong_parity(
    sysctls: Sysctls, connections: SocketTable, ports: set[int], blocked: set[int], past: bytearray
) -> set[int]:
    """Return those of the ports, of the second parity, whose socket found ports of the first to be had.

    A socket that certainly is from connect() found none, however many there are now. The others are marked as spared.
    """
    second = {port for port in ports if port % 2 != sysctls.port_range.low % 2 and not past[port] & Past.SPARED}
    if not second:
        return set()
    keys, key_of = connections.groups.connect_keys, connections.groups.connect_key_of
    first = _first_parity(sysctls, blocked)
    enough = OVERFLOWING_SHARE * first.count(1)
    held: Counter[int] = Counter()
    for piece in connections.pieces():
        rows_of_first = compress(piece.group_of, map(first.__getitem__, piece.port_of))
        held.update(map(key_of.__getitem__, rows_of_first))
    overflowing = {place for place, number in held.items() if number >= enough}
    certain = connections.groups.no_port_flags
    asked = _marked(second)
    rows = [
        row
        for piece in connections.pieces()
        for row in compress(zip(piece.group_of, piece.port_of, strict=True), map(asked.__getitem__, piece.port_of))
    ]
    suspects = {port for group, port in rows if not certain[group] and key_of[group] not in overflowing}
    sharers = Counter((port, keys[key_of[group]].source) for group, port in rows if port in suspects)
    suspects -= {port for (port, _), number in sharers.items() if number > 1}
    for port in second - suspects:
        past[port] |= Past.SPARED
    return suspects


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
