"""Which ports in doubt the kernel is asked about, and in which order: first where an answer can matter.

A port in doubt can matter to a judgement if a threshold lies between two readings of it: the one where every port in
doubt is shared, and the one where all of them are blocked. Three kinds of judgements depend on ports in doubt:

- The blocked share of the namespace.
- A large pool. Its own ports are taken either way, so only the others in doubt matter to it. A host whose one busy
  destination holds all ports in doubt needs no answer to judge that pool.
- All other pools. None of them has more ports than sockets, so the largest of them bounds them all.

What matters is asked about in one poll, however many ports that takes. It ends as soon as no threshold lies between
the readings any more. Then the rest has its turn, some ports in each poll, so that every figure becomes exact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from heapq import nlargest
from math import ceil
from typing import TYPE_CHECKING

from ephmon.facts.sockets import TcpState
from ephmon.model.pools.port_classes import PortClass, mark_ports

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ephmon.facts.sockets import TcpSockets
    from ephmon.model.pools.port_classes import TcpPorts

MOST_BY_TURNS = 3_000
"""So many ports are asked about in one poll though they cannot matter.

On a busy machine each was measured to take 30 microseconds of CPU time, and up to 40 if it is blocked. Ten polls are
enough for the default range.
"""
MOST_BY_TURNS_IF_FORGOTTEN = 500
"""The same where that a port is shared is forgotten until the next poll, so that they would never all be known."""
LARGE_POOLS = 16
"""So many pools are looked at one by one."""
AT_ONCE = 500
"""Ports that are asked about before it is looked at again what matters."""

_IN_DOUBT, _BLOCKED = (bytes(value == one for value in range(256)) for one in (PortClass.AMBIGUOUS, PortClass.BLOCKED))

Questions = Generator[Sequence[int], Mapping[int, bool], None]
"""Yields the ports to ask about, some at a time, and is sent what the kernel answered: port -> whether it is shared."""


def questions(
    tcp: TcpSockets,
    ports: TcpPorts,
    ratios: Iterable[float],
    *,
    after: int = 0,
    blocked_once: Iterable[int] = (),
    most: int | None = None,
) -> Questions:
    """Yield the ports to ask about, those first that can matter.

    Args:
        tcp: The TCP sockets of a namespace.
        ports: The class of every port.
        ratios: The utilisation ratios at which a judgement changes.
        after: The port that was asked about last; turns go on after it.
        blocked_once: Ports that one more answer settles for as long as their sockets stay. They come first.
        most: How many ports to ask about that cannot matter. By default it depends on how long answers hold.
    """
    in_doubt = ports.in_doubt()
    first = set(blocked_once)
    by_turns = sorted(in_doubt, key=lambda port: (port not in first, port <= after))  # stable: in order otherwise
    if most is None:
        # As many as this are asked about in any case, and then all figures are exact.
        is_kept = tcp.ports_recover or len(by_turns) <= MOST_BY_TURNS
        most = MOST_BY_TURNS if is_kept else MOST_BY_TURNS_IF_FORGOTTEN
    if len(by_turns) > most:
        doubt = _Doubt(tcp, ports, ratios)
        asked = 0
        while batch := doubt.that_matters(by_turns)[:AT_ONCE]:
            answers = yield batch
            doubt.settle(answers)
            asked += len(batch)
        by_turns = doubt.still_open(by_turns)[: max(0, most - asked)]
    if by_turns:
        yield by_turns


class _Doubt:
    """The ports in doubt of one namespace, and what they can matter to.

    A set of ports is an integer with one byte for each port, 0 or 1: whole sets are combined and counted in C.
    """

    def __init__(self, tcp: TcpSockets, ports: TcpPorts, ratios: Iterable[float]) -> None:
        self._limits = sorted({ceil(ratio * ports.usable) for ratio in ratios})
        self._in_doubt = _set(ports.classes.translate(_IN_DOUBT))
        self._blocked = _set(ports.classes.translate(_BLOCKED))
        sizes = _sockets_by_key(tcp)
        large = nlargest(LARGE_POOLS + 1, sizes, key=sizes.__getitem__)
        self._largest_of_others = sizes[large[LARGE_POOLS]] if len(large) > LARGE_POOLS else 0
        at_worst = max(sizes.values(), default=0) + ports.ambiguous + ports.blocked
        can_matter = bool(self._limits) and at_worst >= self._limits[0]
        self._large = _ports_of(tcp, large[:LARGE_POOLS]) if can_matter else []

    def that_matters(self, ports: list[int]) -> list[int]:
        """Return those of the ports that can matter to one of the judgements, none if there is no such judgement."""
        blocked, in_doubt = self._blocked.bit_count(), self._in_doubt.bit_count()
        if in_doubt and self._is_open(blocked, blocked + in_doubt + self._largest_of_others):
            return self.still_open(ports)
        for surely_held, held in self._large:
            least = (self._blocked | surely_held).bit_count()
            if self._is_open(least, (self._blocked | held | self._in_doubt).bit_count()):
                return _chosen(ports, self._in_doubt & ~held)
        return []

    def settle(self, answers: Mapping[int, bool]) -> None:
        """Take what the kernel answered."""
        self._in_doubt &= ~_set(mark_ports(answers))
        self._blocked |= _set(mark_ports(port for port, is_shared in answers.items() if not is_shared))

    def still_open(self, ports: list[int]) -> list[int]:
        """Return those of the ports that have no answer."""
        return _chosen(ports, self._in_doubt)

    def _is_open(self, least: int, most: int) -> bool:
        """Tell whether a judgement changes between two numbers of lost ports."""
        return any(least < limit <= most for limit in self._limits)


def _set(marks: bytes | bytearray) -> int:
    return int.from_bytes(marks, "little")


def _chosen(ports: list[int], chosen: int) -> list[int]:
    marks = chosen.to_bytes(1 << 16, "little")
    return [port for port in ports if marks[port]]


def _sockets_by_key(tcp: TcpSockets) -> Counter[int]:
    """Count the connections by the index of their connect key."""
    key_of = tcp.connections.groups.connect_key_of
    numbers: Counter[int] = Counter()
    for piece in tcp.connections.pieces():
        numbers.update(map(key_of.__getitem__, piece.group_of))
    return numbers


def _ports_of(tcp: TcpSockets, keys: Sequence[int]) -> list[tuple[int, int]]:
    """Return for each key the ports that its sockets hold, without those in TIME_WAIT and with them."""
    groups = tcp.connections.groups
    place = {key: index for index, key in enumerate(keys)}
    place_of = [place.get(key) for key in groups.connect_key_of]
    surely, all_held = ([bytearray(1 << 16) for _ in keys] for _ in range(2))
    states = groups.states
    for piece in tcp.connections.pieces():
        for group, port in zip(piece.group_of, piece.port_of, strict=True):
            if (index := place_of[group]) is not None:
                all_held[index][port] = 1
                surely[index][port] |= states[group] != TcpState.TIME_WAIT
    return [(_set(one), _set(other)) for one, other in zip(surely, all_held, strict=True)]
