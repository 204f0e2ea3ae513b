"""Who holds the ports: the ports of a pool, or of a namespace's blocked ones, counted by owner.

In come an `OwnerTable` and the paths of cgroups, out come `Owners`: at most five, most ports first, and the rest in
sum.

Nobody owns a TIME_WAIT. What is known is who had the pool's ports a moment ago: `RecentOwners` remembers for two
minutes which owner had which port. A TIME_WAIT port counts for the owner that had it last. Ports that no owner was seen
with are shared out in proportion to the ports that each owner has given up meanwhile. Both are estimates and marked as
such. The same goes for sockets that a process has closed and whose cgroup is not known.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from functools import reduce
from itertools import compress, count
from operator import or_
from typing import TYPE_CHECKING, NamedTuple

from ephmon.facts.addresses import PORTS, V6_BYTES, overlap, packed_address
from ephmon.facts.sockets import TcpState
from ephmon.model.owners.names import Owner, owner_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ephmon.facts.owned_sockets import OwnerGroup, OwnerTable
    from ephmon.model.pools.kinds import PoolKey

MOST_OWNERS = 5
"""So many owners are named."""
REMEMBERED_SECONDS = 120.0
"""For so long it is known who had a port, and for a third longer at most."""
MOST_REMEMBERED = 8
"""So many owners of a pool are remembered in each third of that time, those with most ports. Each takes 8 KiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerShare:
    """The ports of one owner. A port that several owners have counts for each of them."""

    owner: Owner
    ports: int
    estimated_ports: int = 0
    """Those of `ports` that are estimated."""

    @property
    def is_estimated(self) -> bool:
        """Whether any of the ports is estimated."""
        return self.estimated_ports > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Owners:
    """The owners of some ports."""

    shares: tuple[OwnerShare, ...] = ()
    """At most `MOST_OWNERS`, most ports first, then by kind and name."""
    other_owners: int = 0
    """How many more there are."""
    other_ports: int = 0
    """The ports of those."""
    unknown_ports: int = 0
    """Ports whose owner cannot be estimated: TIME_WAITs from before the first reading."""


@dataclass(frozen=True, slots=True)
class _Span:
    """Which ports each owner had last in a span of time: a bit for each port."""

    began: float
    ports: Mapping[Owner, int]


@dataclass(frozen=True, slots=True)
class RecentOwners:
    """Who had which ports of one pool, or of a namespace's blocked ones, in the last two minutes."""

    spans: tuple[_Span, ...] = field(default=())
    """The newest first."""

    def after(self, now: float, live: Mapping[Owner, int]) -> RecentOwners:
        """Return what is remembered once these ports were seen, at `now` in monotonic seconds."""
        length = REMEMBERED_SECONDS / 3
        spans = [span for span in self.spans if now - span.began < REMEMBERED_SECONDS + length]
        latest = spans.pop(0) if spans and now - spans[0].began < length else _Span(now, {})
        # A port that an owner has now belongs to that one alone, so that a TIME_WAIT there later counts for it.
        changed_hands = reduce(or_, live.values(), 0)
        ports = {
            owner: latest.ports.get(owner, 0) & ~changed_hands | live.get(owner, 0) for owner in {*latest.ports, *live}
        }
        most = sorted(ports, key=lambda owner: (-ports[owner].bit_count(), owner))[:MOST_REMEMBERED]
        return RecentOwners((_Span(latest.began, {owner: ports[owner] for owner in most}), *spans))

    def ports(self) -> dict[Owner, int]:
        """Return all ports that each owner had."""
        had: defaultdict[Owner, int] = defaultdict(int)
        for span in self.spans:
            for owner, ports in span.ports.items():
                had[owner] |= ports
        return dict(had)


def pool_owners(
    key: PoolKey,
    table: OwnerTable,
    paths: Mapping[int, str],
    *,
    ports: int,
    recent: RecentOwners,
    now: float,
) -> tuple[Owners, RecentOwners]:
    """Return who holds the ports of a pool, and what is remembered for the next time.

    Args:
        key: The pool.
        table: Sockets that were read toward its destination, or for a pool without one all of its protocol.
        paths: The paths of cgroups by id.
        ports: The ports that count, those of the pool's capacity, as `port_bits` gives them.
        recent: What was remembered of the same pool.
        now: Monotonic seconds.
    """
    return _owners([_held_ports(table, paths, _of_pool(table.groups, key), ports)], recent, now)


def blocked_owners(
    table: OwnerTable, paths: Mapping[int, str], *, blocked: int, recent: RecentOwners, now: float
) -> tuple[Owners, RecentOwners]:
    """Return who holds the blocked ports of a namespace, and what is remembered for the next time.

    Where a socket listens or is bound without a connection, that is what blocks the port, whoever else is on it.

    Args:
        table: All TCP sockets on the blocked ports.
        paths: The paths of cgroups by id.
        blocked: The blocked ports, as `port_bits` gives them.
        recent: What was remembered of the same namespace's blocked ports.
        now: Monotonic seconds.
    """
    bound = [group.state in _BOUND_STATES for group in table.groups]
    others = [not one for one in bound]
    return _owners([_held_ports(table, paths, chosen, blocked) for chosen in (bound, others)], recent, now)


def sockets_of_pool(key: PoolKey, table: OwnerTable) -> list[int]:
    """Return the indices of the groups whose sockets hold their ports against a pool."""
    return list(compress(count(), _of_pool(table.groups, key)))


def sockets_of_blocked(table: OwnerTable) -> list[int]:
    """Return the indices of all groups, those that listen or are bound first: they block the port."""
    return sorted(range(len(table.groups)), key=lambda index: table.groups[index].state not in _BOUND_STATES)


def port_bits(ports: Iterable[int]) -> int:
    """Return a set of ports as a number with a bit for each, so that sets are counted and compared in one step."""
    flags = bytearray(PORTS // 8)
    for port in ports:
        flags[port >> 3] |= 1 << (port & 7)
    return int.from_bytes(flags, "little")


_BOUND_STATES = (TcpState.LISTEN, TcpState.CLOSE)


class _HeldPorts(NamedTuple):
    """Sets of ports, a bit for each port."""

    by_owner: dict[Owner, int]
    ownerless: int
    """Ports that have a socket without an owner."""


def _held_ports(table: OwnerTable, paths: Mapping[int, str], chosen: Iterable[bool], ports: int) -> _HeldPorts:
    """Return which of `ports` the chosen groups hold."""
    by_owner: defaultdict[Owner, int] = defaultdict(int)
    ownerless = 0
    for group, ports_of_group, is_chosen in zip(table.groups, table.ports_of, chosen, strict=True):
        held = port_bits(ports_of_group) & ports if is_chosen else 0
        if not held:
            continue
        owner = owner_of(None if group.cgroup_id is None else paths.get(group.cgroup_id), group.uid)
        if owner is None:
            ownerless |= held
        else:
            by_owner[owner] |= held
    return _HeldPorts(dict(by_owner), ownerless)


def _owners(tiers: Iterable[_HeldPorts], recent: RecentOwners, now: float) -> tuple[Owners, RecentOwners]:
    """Return the owners. A port that is in several tiers counts in the first one only."""
    live: defaultdict[Owner, int] = defaultdict(int)
    ownerless = taken = 0
    for tier in tiers:
        free = ~taken
        for owner, ports in tier.by_owner.items():
            live[owner] |= ports & free
            taken |= ports
        ownerless |= tier.ownerless
    live = defaultdict(int, {owner: ports for owner, ports in live.items() if ports})
    remembered = recent.after(now, live)
    estimates, unknown = _estimate(ownerless & ~taken, live, remembered)
    shares = [
        OwnerShare(
            owner=owner,
            ports=live[owner].bit_count() + estimates.get(owner, 0),
            estimated_ports=estimates.get(owner, 0),
        )
        for owner in {*live, *estimates}
    ]
    shares.sort(key=lambda share: (-share.ports, share.owner))
    others = shares[MOST_OWNERS:]
    owners = Owners(
        shares=tuple(shares[:MOST_OWNERS]),
        other_owners=len(others),
        other_ports=sum(share.ports for share in others),
        unknown_ports=unknown,
    )
    return owners, remembered


def _estimate(ownerless: int, live: Mapping[Owner, int], recent: RecentOwners) -> tuple[dict[Owner, int], int]:
    """Share ports without an owner out. Return how many each owner gets, and how many nobody gets."""
    estimates: defaultdict[Owner, int] = defaultdict(int)
    for span in recent.spans:
        for owner in sorted(span.ports):
            had_last = ownerless & span.ports[owner]
            estimates[owner] += had_last.bit_count()
            ownerless &= ~had_last
    had = recent.ports()
    given_up = {owner: (ports & ~live.get(owner, 0)).bit_count() for owner, ports in had.items()}
    weights = given_up if any(given_up.values()) else {owner: ports.bit_count() for owner, ports in had.items()}
    left = ownerless.bit_count()
    for owner, number in apportion(left, weights).items():
        estimates[owner] += number
    shared = bool(any(weights.values()))
    return {owner: number for owner, number in estimates.items() if number}, 0 if shared else left


def apportion(number: int, weights: Mapping[Owner, int]) -> dict[Owner, int]:
    """Share a number out in proportion to weights, in whole ones that sum up to it (the largest remainders round up).

    Among equal remainders the owner that sorts first is served first. Nothing is shared out if all weights are 0.
    """
    total = sum(weights.values())
    if not total:
        return {}
    shares = {owner: number * weight // total for owner, weight in weights.items()}
    by_remainder = sorted(weights, key=lambda owner: (-(number * weights[owner] % total), owner))
    for owner in by_remainder[: number - sum(shares.values())]:
        shares[owner] += 1
    return shares


def _of_pool(groups: Iterable[OwnerGroup], key: PoolKey) -> list[bool]:
    """Tell of each group whether its sockets hold their ports against the pool."""
    source = packed_address(key.source)
    if key.destination is None:
        # Whether a socket is IPV6_V6ONLY is not read here; few are.
        return [overlap(group.source, source, dual_stack=len(group.source) == V6_BYTES) for group in groups]
    own = (source, packed_address(key.destination), key.destination_port)
    return [(group.source, group.destination, group.destination_port) == own for group in groups]
