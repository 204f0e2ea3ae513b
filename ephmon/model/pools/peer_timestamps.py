"""Whether peers use TCP timestamps: which live connections to ask, and what the snapshot then says.

Asked are those whose key has TIME_WAITs that the kernel reuses if they had timestamps.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import replace
from itertools import compress
from typing import TYPE_CHECKING, NamedTuple

from ephmon.errors import KernelError
from ephmon.facts.sockets import TcpState
from ephmon.facts.timestamps import NOTHING_KNOWN, PeerTimestamps, TimestampQuestion
from ephmon.model.pools.time_wait import groups_open_to_reuse

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from ephmon.facts.snapshot import NamespaceSnapshot, Snapshot
    from ephmon.facts.socket_groups import ConnectKey
    from ephmon.facts.sockets import SocketTable

    Ask = Callable[[Sequence[TimestampQuestion]], Mapping[ConnectKey, Collection[bool]]]


class Most(NamedTuple):
    """How much is asked at once."""

    keys: int
    """Connect keys, those with the most TIME_WAITs first."""
    sockets: int
    """Live connections of one key and state: one would do, were it not for settings that were changed."""


IN_A_POLL = Most(keys=50, sockets=4)
"""The next poll may ask about others."""
AT_ONCE = Most(keys=1_000, sockets=64)
"""For a command, which does not come back."""
_LIVE = frozenset(TcpState) - {
    TcpState.SYN_SENT,
    TcpState.SYN_RECV,
    TcpState.NEW_SYN_RECV,
    TcpState.TIME_WAIT,
    TcpState.CLOSE,
    TcpState.LISTEN,
    TcpState.BOUND_INACTIVE,
}
_IS_LIVE = bytes(state in _LIVE for state in range(256))


def with_timestamps(
    snapshot: Snapshot,
    known: Mapping[int, PeerTimestamps],
    now: float,
    ask: Ask,
    *,
    most: Most = IN_A_POLL,
    first: ConnectKey | None = None,
) -> Snapshot:
    """Return the snapshot with what is known of TCP timestamps, after live connections were asked where that matters.

    Args:
        snapshot: What was read.
        known: What was known before, by the inode of the namespace.
        now: Monotonic seconds.
        ask: Asks the kernel. A KernelError of it is no error of the poll.
        most: How much is asked at most, of each namespace.
        first: A key to ask about in any case.
    """

    def updated(namespace: NamespaceSnapshot) -> NamespaceSnapshot:
        if namespace.tcp is None:
            return namespace
        before = known.get(namespace.inode, NOTHING_KNOWN)
        timestamps = before.at(now, is_on=bool(namespace.sysctls.tcp_timestamps))
        questions = list(_questions(namespace, namespace.tcp.connections, timestamps, most, first))
        if questions:
            # Without an answer nobody knows, as where no connection lives, and the next poll asks again.
            with suppress(KernelError):
                timestamps = timestamps.with_answers(ask(questions))
        return replace(namespace, tcp=replace(namespace.tcp, timestamps=timestamps))

    return replace(snapshot, namespaces=tuple(map(updated, snapshot.namespaces)))


def _questions(
    namespace: NamespaceSnapshot,
    table: SocketTable,
    timestamps: PeerTimestamps,
    most: Most,
    first: ConnectKey | None,
) -> Iterator[TimestampQuestion]:
    """Yield what to ask: of keys with TIME_WAITs that may be reused, and that nobody was asked about lately."""
    groups = table.groups
    open_to_reuse = groups_open_to_reuse(groups, namespace.sysctls)
    # Where timestamps are off, a live connection that was made since then says nothing of older TIME_WAITs.
    if not open_to_reuse or not namespace.sysctls.tcp_timestamps:
        return
    keys, key_of = groups.connect_keys, groups.connect_key_of
    due = set(map(key_of.__getitem__, open_to_reuse)).difference(map(keys.find, timestamps.seen_lately()))
    due.intersection_update(compress(key_of, groups.states.translate(_IS_LIVE)))
    if len(due) > most.keys:
        time_waits = Counter(map(key_of.__getitem__, _rows_of(table, open_to_reuse)))
        wanted = sorted(due, key=time_waits.__getitem__, reverse=True)[: most.keys]
        preferred = None if first is None else keys.find(first)
        due = {*wanted, preferred} & due if preferred is not None else set(wanted)
    yield from _about(table, due, most.sockets)


def _rows_of(table: SocketTable, groups: Collection[int]) -> Iterator[int]:
    """Yield the group of each row whose group is one of these."""
    is_wanted = bytearray(len(table.groups))
    for index in groups:
        is_wanted[index] = 1
    return compress(table.group_of, map(is_wanted.__getitem__, table.group_of))


def _about(table: SocketTable, keys: Collection[int], most: int) -> Iterator[TimestampQuestion]:
    """Yield a question for each group of live connections of the keys, given as indices."""
    if not keys:
        return
    groups = table.groups
    key_of, states = groups.connect_key_of, groups.states
    is_wanted = bytes(key in keys and states[index] in _LIVE for index, key in enumerate(key_of))
    ports: dict[int, list[int]] = {}
    rows = zip(table.group_of, table.port_of, strict=True)
    for index, port in compress(rows, map(is_wanted.__getitem__, table.group_of)):
        ports.setdefault(index, []).append(port)
    for index, found in ports.items():
        # From all over the dump, so that old and new connections are among them.
        step = -(-len(found) // most)
        yield TimestampQuestion(groups.connect_keys[key_of[index]], groups[index].device, tuple(found[::step]))
