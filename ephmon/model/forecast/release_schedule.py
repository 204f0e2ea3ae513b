"""When the TIME_WAITs of a pool end. Every socket row says how long its TIME_WAIT has left, so nothing is guessed.

The same schedule is a record of the past minute: a TIME_WAIT with 57 seconds left comes from a connection that this
host closed three seconds ago.

Two things blur the schedule:

- The kernel starts the 60 seconds again when a late segment arrives (tcp_timewait_state_process(),
  net/ipv4/tcp_minisocks.c).
- The kernel fires timers of this length in batches (calc_wheel_index(), kernel/time/timer.c). So a TIME_WAIT outlives
  its time by up to 2 seconds where the kernel ticks 250 times a second, and by up to 4 seconds at 1000 ticks. Such a
  late TIME_WAIT has no time left.
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
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from ephmon.facts.socket_groups import ConnectKey
    from ephmon.facts.sockets import SocketTable

TIME_WAIT_SECONDS = TIME_WAIT_MS // 1000
"""How long a TIME_WAIT lasts by its own clock."""
LATE_SECONDS = 2.0
"""By how much a TIME_WAIT may outlive its time: the bound at 250 ticks a second, which Debian's kernels have."""
HOLD_SECONDS = TIME_WAIT_SECONDS + LATE_SECONDS
"""How long a TIME_WAIT keeps its port from everybody."""

Schedule = tuple[float, ...]
"""How many TIME_WAITs have from `index` up to `index` + 1 seconds left, for each of the TIME_WAIT_SECONDS."""

EMPTY_SCHEDULE: Schedule = (0,) * TIME_WAIT_SECONDS
"""The schedule without a TIME_WAIT."""

_SECONDS_STRIDE = 64
"""A row is counted under one number, group * _SECONDS_STRIDE + second. So it has to exceed TIME_WAIT_SECONDS."""
# The second that so many milliseconds belong to. A TIME_WAIT that has just begun has 60,000 ms left, so all beyond
# belongs to the last second too. Runs of equal bytes, because a loop over 65,536 numbers would delay every start.
_SECOND_OF = b"".join(bytes([second]) * 1000 for second in range(TIME_WAIT_SECONDS)).ljust(
    1 << 16, bytes([TIME_WAIT_SECONDS - 1])
)
_IS_TIME_WAIT = bytes(state == TcpState.TIME_WAIT for state in range(1 << 8))


def schedules_toward(table: SocketTable, wanted: Iterable[ConnectKey]) -> dict[ConnectKey, Schedule]:
    """Return the schedule of each wanted key that has a TIME_WAIT, whatever device its sockets are bound to."""
    groups = table.groups
    key_at = {index: key for key in wanted if (index := groups.connect_keys.find(key)) is not None}
    is_wanted = bytearray(len(groups.connect_keys))
    for index in key_at:
        is_wanted[index] = 1
    chosen = bytes(map(and_, map(is_wanted.__getitem__, groups.connect_key_of), groups.states.translate(_IS_TIME_WAIT)))
    counts: dict[ConnectKey, list[float]] = {}
    for (group, second), number in _count_rows(table, chosen):
        counts.setdefault(key_at[groups.connect_key_of[group]], list(EMPTY_SCHEDULE))[second] += number
    return {key: tuple(schedule) for key, schedule in counts.items()}


def schedules_from(table: SocketTable, sources: Collection[bytes]) -> dict[bytes, Schedule]:
    """Return, for each packed source address, the schedule of the TIME_WAITs that keep a port from bind(source, 0).

    A port counts several times if it served several destinations.
    """
    if not sources:
        return {}
    is_time_wait = table.groups.states.translate(_IS_TIME_WAIT)
    sources_of = {
        index: [source for source in sources if overlap(group.source, source, dual_stack=group.dual_stack)]
        for index, group in ((index, table.groups[index]) for index in compress(count(), is_time_wait))
    }
    chosen = bytes(bool(sources_of.get(group)) for group in range(len(is_time_wait)))
    counts: dict[bytes, list[float]] = {}
    for (group, second), number in _count_rows(table, chosen):
        for source in sources_of[group]:
            counts.setdefault(source, list(EMPTY_SCHEDULE))[second] += number
    return {source: tuple(schedule) for source, schedule in counts.items()}


def schedule_of(cells: Sequence[int], seconds_of_a_cell: int) -> Schedule:
    """Return the schedule of TIME_WAITs counted in longer cells of time; those of one spread evenly over it."""
    return tuple(number / seconds_of_a_cell for number in cells for _ in range(seconds_of_a_cell))


def ended_by(schedule: Schedule, seconds: float) -> float:
    """Return how many of the TIME_WAITs have at most so many seconds left.

    Those of one second count as spread evenly over it.
    """
    whole = max(0, min(int(seconds), TIME_WAIT_SECONDS))
    part = schedule[whole] * (seconds - whole) if 0 <= seconds < TIME_WAIT_SECONDS else 0.0
    return sum(schedule[:whole]) + part


def _count_rows(table: SocketTable, chosen: bytes) -> Iterator[tuple[tuple[int, int], int]]:
    """Yield how many rows each (group, second left) has, for the groups with 1 in `chosen`.

    There may be as many rows as sockets. So the steps for each row run inside map() and compress(), not as bytecode.
    """
    if not any(chosen):
        return
    mask = bytes(map(chosen.__getitem__, table.group_of))
    # Indexing a range multiplies without bytecode: element `group` of it is group * _SECONDS_STRIDE.
    scaled = range(0, _SECONDS_STRIDE << 32, _SECONDS_STRIDE)
    groups = map(scaled.__getitem__, compress(table.group_of, mask))
    seconds = map(_SECOND_OF.__getitem__, compress(table.time_wait_left_ms_of, mask))
    for code, number in Counter(map(add, groups, seconds)).items():
        yield divmod(code, _SECONDS_STRIDE), number
