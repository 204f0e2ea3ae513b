"""When the TIME_WAITs of a pool end: their remaining time is in every row, so this is known and not guessed.

Read the other way round the schedule is a record of the past minute: a TIME_WAIT with 57 seconds left comes from a
connection that this host closed three seconds ago.

Two things blur it. The kernel renews the 60 seconds when a late segment arrives. And its timer wheel
(`calc_wheel_index()`, kernel/time/timer.c) fires timers of this length in batches: structures outlive their time by up
to 2 seconds where the kernel ticks 250 times a second, and by up to 4 at 1000. Those have no time left.
"""

from __future__ import annotations

from collections import Counter
from itertools import compress, count
from operator import add, and_
from typing import TYPE_CHECKING

from ephmon.facts.addresses import overlap
from ephmon.facts.sockets import TcpState
from ephmon.model.pools.time_wait import TIME_WAIT_MS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from ephmon.facts.socket_groups import ConnectKey
    from ephmon.facts.sockets import SocketTable

SECONDS = TIME_WAIT_MS // 1000

Schedule = tuple[float, ...]
"""How many TIME_WAITs have from `index` up to `index` + 1 seconds left, for each of the SECONDS."""

NOTHING: Schedule = (0,) * SECONDS
"""The schedule without a TIME_WAIT."""

# Rows are counted by group and second at once, as group * _PLACES + second.
_PLACES = 64
_SECOND_OF = bytes(min(left_ms // 1000, SECONDS - 1) for left_ms in range(1 << 16))
_IS_TIME_WAIT = bytes(state == TcpState.TIME_WAIT for state in range(1 << 8))


def schedules_toward(table: SocketTable, wanted: Iterable[ConnectKey]) -> dict[ConnectKey, Schedule]:
    """Return the schedule of each of these keys, whatever device its sockets are bound to."""
    groups = table.groups
    places = {place: one for one in wanted if (place := groups.connect_keys.find(one)) is not None}
    is_wanted = bytearray(len(groups.connect_keys))
    for place in places:
        is_wanted[place] = 1
    chosen = bytes(map(and_, map(is_wanted.__getitem__, groups.connect_key_of), groups.states.translate(_IS_TIME_WAIT)))
    counted: dict[ConnectKey, list[float]] = {}
    for (group, second), number in _count(table, chosen):
        counted.setdefault(places[groups.connect_key_of[group]], list(NOTHING))[second] += number
    return {one: tuple(schedule) for one, schedule in counted.items()}


def schedules_from(table: SocketTable, sources: Collection[bytes]) -> dict[bytes, Schedule]:
    """Return, for each of these packed source addresses, the schedule of what keeps its port from bind(source, 0).

    One port may count several times, as it may have served several destinations.
    """
    if not sources:
        return {}
    is_time_wait = table.groups.states.translate(_IS_TIME_WAIT)
    met_by = {
        index: [source for source in sources if overlap(group.source, source, dual_stack=group.dual_stack)]
        for index, group in ((index, table.groups[index]) for index in compress(count(), is_time_wait))
    }
    chosen = bytes(bool(met_by.get(group)) for group in range(len(is_time_wait)))
    counted: dict[bytes, list[float]] = {}
    for (group, second), number in _count(table, chosen):
        for source in met_by[group]:
            counted.setdefault(source, list(NOTHING))[second] += number
    return {source: tuple(schedule) for source, schedule in counted.items()}


def ended_by(schedule: Schedule, seconds: float) -> float:
    """Return how many of the TIME_WAITs have at most so many seconds left, those of a second evenly spread over it."""
    whole = max(0, min(int(seconds), SECONDS))
    part = schedule[whole] * (seconds - whole) if 0 <= seconds < SECONDS else 0.0
    return sum(schedule[:whole]) + part


def _count(table: SocketTable, chosen: bytes) -> Iterator[tuple[tuple[int, int], int]]:
    """Count the rows of the chosen groups by group and second, without running bytecode for each row."""
    if not any(chosen):
        return
    mask = bytes(map(chosen.__getitem__, table.group_of))
    scaled = range(0, _PLACES << 32, _PLACES)
    groups = map(scaled.__getitem__, compress(table.group_of, mask))
    seconds = map(_SECOND_OF.__getitem__, compress(table.time_wait_left_ms_of, mask))
    for code, number in Counter(map(add, groups, seconds)).items():
        yield divmod(code, _PLACES), number
