"""Whether a port in doubt is shared or blocked: what one reading shows, and what earlier readings showed.

Two things are certain. A port whose every socket carries IP_BIND_ADDRESS_NO_PORT is shared. A port with a listening
socket, a bound one, or one that named its port is blocked. A certain *verdict* holds as long as the same sockets are on
the port, also when the kernel no longer shows their flags, as in TIME_WAIT. A fingerprint tells whether they are the
same: it is made of the sockets' cookies, which they keep into TIME_WAIT. The probe's answers are verdicts too. Before
Linux 6.18 an answer that a port is shared proves nothing of the next reading: a bind() that came and went in between
blocks the port although the same sockets are on it.

Where there is no verdict, the likelier case is estimated. Most programs call connect(), so a port counts as shared
unless one of these holds:

- It had a listener, and has not been seen without a socket since: its sockets were accepted.
- It had a socket that blocked it, has not been seen without a socket since, and the kernel frees ports late (before
  Linux 6.18).
- It has the wrong parity for connect(), without another reason (`ephmon.model.pools.parity`).

From the same follows for which addresses programs call bind(address, 0): the *binders*.

A reading without evidence (`TcpSockets.has_evidence`) only counts. It shows which ports are held or listened on. It
does not show whether the same sockets are on them as before, nor which sockets are bound and unconnected. So every port
in use is in doubt then. It is suspect if its last verdict was that it is blocked, or if it was bound when that was last
looked for.
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
from ephmon.model.pools.parity import ports_of_second_parity, taken_without_need
from ephmon.model.pools.port_classes import PortClass, TcpPorts, mark_ports, usable_ports

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from ephmon.facts.snapshot import Sysctls
    from ephmon.facts.sockets import SocketTable, TcpSockets

LITTLE_SHARE = 0.01
"""Polls may only count while at most this share of the usable ports is blocked by others than listeners."""


class PortVerdict(IntEnum):
    """What holds of a port as long as the same sockets are on it."""

    NONE = 0
    SHARED = 1
    BLOCKED = 2
    SUSPECT = 3
    """Only likely to be blocked. It is remembered because its signs may fade while the sockets stay."""
    WAS_SHARED = 4
    """Shared when the probe last asked, and likely to be still. Only where the kernel frees ports late."""


_UNCERTAIN = (PortVerdict.NONE, PortVerdict.SUSPECT, PortVerdict.WAS_SHARED)
_IS_BLOCKING = bytes(value in (PortVerdict.BLOCKED, PortVerdict.SUSPECT) for value in range(256))
_NOT = bytes([1]) + bytes(255)


class Past(IntEnum):
    """What happened on a port since it was last seen without a socket. These are bits."""

    # An IntEnum and not an IntFlag: operations on these are made for each port, and IntFlag builds an object for each.
    LISTENED_ON = 1
    BLOCKED = 2
    BOUND = 4
    """A socket on it was neither connected nor listening when that was last looked for."""
    PARITY_EXPLAINED = 8
    """It has the wrong parity, and there was a reason for it, so its parity says nothing about its sockets."""


# By bit: a translation table that turns a byte of past bits into 1 where the bit is set.
_HAS = {bit: bytes(bool(value & bit) for value in range(256)) for bit in Past}


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is remembered of every port of one namespace: three tables of fixed size, whatever is on the ports."""

    verdicts: bytes = field(default=bytes(PORTS))
    """`PortVerdict` by port."""
    fingerprints: array[int] = field(default_factory=lambda: array("Q", bytes(8 * PORTS)))
    """The sockets that each verdict is about, by port (typecode "Q")."""
    past: bytes = field(default=bytes(PORTS))
    """Bits of `Past` by port."""
    binders: frozenset[bytes] = frozenset()
    """Packed local addresses for which sockets let bind() choose a port."""
    settles_much: bool = True
    """Whether a reading that only counts would miss much."""


NO_ANSWERS: Mapping[int, bool] = MappingProxyType({})


def classify_ports(
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
        likely_binder_ports: An address is a binder if bind(address, 0) is likely to have chosen so many of its ports.
    """
    held = tcp.connections.ports
    past = _past_of_ports(tcp, previous, held)
    if not tcp.has_evidence:
        return _classify_without_evidence(sysctls, tcp, previous, held, past)
    blocking = tcp.explicit_ports | tcp.bound.ports
    _forget_what_is_over(past, answers, blocking)
    verdicts, unanswered = _verdicts(tcp, previous, answers, blocking, past)
    blocked = {port for port in held.union(blocking, answers) if verdicts[port] == PortVerdict.BLOCKED}
    remembered = {port for port in unanswered if verdicts[port]}
    suspects = _suspected_by_past(tcp, past, unanswered)
    suspects.update(port for port in remembered if verdicts[port] == PortVerdict.SUSPECT)
    suspects |= _suspected_by_parity(sysctls, tcp, unanswered - suspects - remembered, blocked, past)
    _assign(verdicts, suspects, PortVerdict.SUSPECT)
    classes = _classes(sysctls, unanswered, suspects, blocked)
    accepted = _left_by_listeners(past, held)
    ports = TcpPorts.of(bytes(classes), _still_blind_to(tcp, classes, answers), accepted - blocking)
    # Sockets on ports that are blocked for another reason did not get them from bind(address, 0).
    likely_bound = (blocked | suspects) - blocking - accepted
    evidence = Evidence(
        verdicts=bytes(verdicts),
        fingerprints=tcp.fingerprints if tcp.fingerprints is not None else previous.fingerprints,
        past=bytes(past),
        binders=_binders(tcp, previous, likely_bound, answers, likely_binder_ports),
        settles_much=_settles_much(ports, verdicts, past, blocked | suspects),
    )
    return ports, evidence


def _classify_without_evidence(
    sysctls: Sysctls, tcp: TcpSockets, previous: Evidence, held: frozenset[int], past: bytearray
) -> tuple[TcpPorts, Evidence]:
    """Return the class of every port after a reading that only counted.

    Without fingerprints nobody knows whether a verdict still holds. So no verdict makes a port certain here, and a
    blocking one makes it suspect. The verdicts stay for the next reading with evidence.
    """
    blocking = tcp.bound.ports
    in_doubt = held - blocking
    suspects = _suspected_by_past(tcp, past, in_doubt).union(_bound_before(previous)) - blocking
    was_blocking = previous.verdicts.translate(_IS_BLOCKING)
    if any(was_blocking):
        suspects.update(port for port in in_doubt if was_blocking[port])
    # The binders stay too: bound and unconnected sockets, which make an address a binder, are not seen now.
    evidence = replace(previous, past=bytes(past))
    classes = _classes(sysctls, in_doubt, suspects, blocking)
    blind_to = tcp.blind_to | {Blindness.BOUND_UNCONNECTED}
    return TcpPorts.of(bytes(classes), blind_to, _left_by_listeners(past, held) - blocking), evidence


def _settles_much(ports: TcpPorts, verdicts: bytearray, past: bytearray, blocked: set[int]) -> bool:
    """Tell whether a reading that only counts would miss much; `blocked` are the ports likely or certain to be.

    It would where evidence made at least as many ports certainly shared as it left in doubt: all of those would be in
    doubt. It would too where more than a few ports are blocked by other sockets than listeners. Such sockets come and
    go, and a reading that only counts knows those of earlier readings alone. Listeners it does see.
    """
    if verdicts.count(PortVerdict.SHARED) >= ports.ambiguous:
        return True
    return sum(not past[port] & Past.LISTENED_ON for port in blocked) > LITTLE_SHARE * ports.usable


def _classes(sysctls: Sysctls, ambiguous: Iterable[int], suspects: Iterable[int], blocked: Iterable[int]) -> bytearray:
    """Return the class of every port. Where a port is in two of the sets, the later set counts."""
    usable = usable_ports(sysctls)
    classes = bytearray(usable)
    for ports, value in ((ambiguous, PortClass.AMBIGUOUS), (suspects, PortClass.SUSPECT), (blocked, PortClass.BLOCKED)):
        _assign(classes, (port for port in ports if usable[port]), value)
    return classes


def _left_by_listeners(past: bytearray, held: Iterable[int]) -> frozenset[int]:
    """Return the ports whose sockets were accepted: they had a listener and have not been without sockets since."""
    listened_on = past.translate(_HAS[Past.LISTENED_ON])
    return frozenset(port for port in held if listened_on[port]) if any(listened_on) else frozenset()


def _binders(
    tcp: TcpSockets, previous: Evidence, ports: set[int], answers: Mapping[int, bool], likely_binder_ports: int
) -> frozenset[bytes]:
    """Return the addresses for which sockets let bind() choose a port; `ports` are those that it may have chosen."""
    likely = _by_source(tcp.connections, ports)
    # A connected socket that the probe says blocks its port got it from bind(address, 0): one such port is proof.
    proven = _by_source(tcp.connections, {port for port in ports if not answers.get(port, True)})
    # A binder stays one down to its last such port, so that its pool does not come and go around the limit.
    known = previous.binders.union(proven)
    return tcp.bound_to_any_port.union(
        source for source, number in likely.items() if number >= likely_binder_ports or source in known
    )


def _still_blind_to(tcp: TcpSockets, classes: bytearray, answers: Mapping[int, bool]) -> frozenset[Blindness]:
    """Return what may block a port unseen: not bound sockets if the probe was asked about every port they may be on."""
    if Blindness.BOUND_UNCONNECTED not in tcp.blind_to:
        return tcp.blind_to
    asked = set(answers)
    maybe_bound = (port for port, value in enumerate(classes) if PortClass.UNUSABLE < value < PortClass.BLOCKED)
    return tcp.blind_to - {Blindness.BOUND_UNCONNECTED} if asked.issuperset(maybe_bound) else tcp.blind_to


def _by_source(connections: SocketTable, ports: set[int]) -> Counter[bytes]:
    """Count the sockets on some ports by local address."""
    if not ports:
        return Counter()
    is_chosen = mark_ports(ports)
    numbers: Counter[int] = Counter()
    for rows in connections.pieces():
        numbers.update(compress(rows.group_of, map(is_chosen.__getitem__, rows.port_of)))
    found: Counter[bytes] = Counter()
    for index, number in numbers.items():
        found[connections.groups[index].source] += number
    return found


def _uncertain_ports(tcp: TcpSockets, past: bytearray, held: frozenset[int]) -> set[int]:
    """Return the ports of connections of which one reading cannot tell whether connect() may share them."""
    # Before Linux 6.18 a socket that has gone may still block the port, so no flag makes it certain.
    if not tcp.ports_recover:
        return set(held)
    certain = tcp.connections.groups.no_port_flags
    if not any(certain):
        return set(held)
    # A socket with IP_BIND_ADDRESS_NO_PORT got its port from connect(). TIME_WAIT structures and connection requests do
    # not show the option, so the ports that they are on stay uncertain.
    rows = compress(tcp.connections.port_of, map(certain.translate(_NOT).__getitem__, tcp.connections.group_of))
    # An accepted socket inherits the options of its listener, so the option says nothing on a port that had one.
    return set(rows).union(port for port in held if past[port] & Past.LISTENED_ON)


def _forget_what_is_over(past: bytearray, answers: Mapping[int, bool], blocking: frozenset[int]) -> None:
    """Forget what the ports that the probe calls shared were before: every socket on them got its port from connect().

    So none of them was accepted, although the port may have had a listener.
    """
    for port, shared in answers.items():
        if shared and port not in blocking:
            past[port] &= ~(Past.LISTENED_ON | Past.BLOCKED)


def _verdicts(
    tcp: TcpSockets, previous: Evidence, answers: Mapping[int, bool], blocking: frozenset[int], past: bytearray
) -> tuple[bytearray, set[int]]:
    """Return the verdict on every port, and the ports in use that have no certain one."""
    held = tcp.connections.ports
    uncertain = _uncertain_ports(tcp, past, held) - blocking
    verdicts = bytearray(PORTS)
    now, before = tcp.fingerprints, previous.fingerprints
    for port in uncertain:
        if port in answers:
            verdicts[port] = PortVerdict.SHARED if answers[port] else PortVerdict.BLOCKED
        # Equal fingerprints mean the same sockets, so what was known of them still holds.
        elif now is not None and previous.verdicts[port] and now[port] == before[port]:
            is_over = previous.verdicts[port] == PortVerdict.SHARED and not tcp.ports_recover
            verdicts[port] = PortVerdict.WAS_SHARED if is_over else previous.verdicts[port]
    _assign(verdicts, held - uncertain, PortVerdict.SHARED)
    # What blocks now counts more than any earlier verdict. The probe may also find a port blocked that shows no socket.
    _assign(verdicts, blocking.union(port for port, shared in answers.items() if not shared), PortVerdict.BLOCKED)
    return verdicts, {port for port in uncertain if verdicts[port] in _UNCERTAIN}


def _past_of_ports(tcp: TcpSockets, previous: Evidence, held: frozenset[int]) -> bytearray:
    """Return the bits of `Past` by port, 0 for ports that are seen without a socket."""
    past = bytearray(PORTS)
    if any(previous.past):
        for port in held:
            past[port] = previous.past[port] & ~Past.BOUND
        # A reading that only counts does not look for bound sockets, so a port that had one keeps its past.
        for port in () if tcp.has_evidence else _bound_before(previous):
            past[port] = previous.past[port]
    for port in tcp.explicit_ports | tcp.bound.ports:
        past[port] = previous.past[port] & ~Past.BOUND | Past.BLOCKED
    states = tcp.bound.groups.states
    for index, port in zip(tcp.bound.group_of, tcp.bound.port_of, strict=True):
        past[port] |= Past.LISTENED_ON if states[index] == TcpState.LISTEN else Past.BOUND
    return past


def _bound_before(previous: Evidence) -> list[int]:
    """Return the ports that had a bound, unconnected socket when that was last looked for."""
    bound = previous.past.translate(_HAS[Past.BOUND])
    return [port for port, is_bound in enumerate(bound) if is_bound] if any(bound) else []


def _suspected_by_parity(
    sysctls: Sysctls, tcp: TcpSockets, ports: set[int], blocked: set[int], past: bytearray
) -> set[int]:
    """Return those of the ports that are likely to be blocked by their parity, and mark the others of it in `past`."""
    # Once explained, always explained while the port is held. Destinations empty again, mostly the oldest connections
    # first, and those on the second parity are the youngest. They would be suspected when the reason is gone.
    second = {port for port in ports_of_second_parity(sysctls, ports) if not past[port] & Past.PARITY_EXPLAINED}
    without_need = taken_without_need(sysctls, tcp.connections, second, blocked)
    for port in second - without_need:
        past[port] |= Past.PARITY_EXPLAINED
    return without_need


def _suspected_by_past(tcp: TcpSockets, past: bytearray, ports: Collection[int]) -> set[int]:
    """Return those of the ports whose sockets are likely to stem from what blocked the port earlier.

    Those of a listener were accepted. Another blocking socket only matters where the kernel frees ports late.
    """
    telling = Past.LISTENED_ON if tcp.ports_recover else Past.LISTENED_ON | Past.BLOCKED
    return {port for port in ports if past[port] & telling} if any(past) else set()


def _assign(table: bytearray, ports: Iterable[int], value: int) -> None:
    for port in ports:
        table[port] = value
