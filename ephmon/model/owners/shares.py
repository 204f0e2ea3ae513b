"""Who holds the ports: owners by name, the ports of a pool or of a namespace's blocked ones counted by them.

In come an `OwnerTable` and the paths of cgroups, out come `Owners`: at most five, most ports first, and what is left.

An owner is named by the first of these that is known:

container  any part of the path ends in 64 hexadecimal digits, as Docker, containerd, CRI-O and Podman name their
           cgroups, with systemd or without it: the first 12 of them; LXC names its own; one that a user's service
           manager runs bears that manager's name too, since users name cgroups there as they like
unit       the outermost systemd service or scope of the path (cg_path_get_unit(), src/basic/cgroup-util.c of systemd);
           of a user's service manager also the unit below it; of a session the slice of its user too
slice      the innermost systemd slice
cgroup     the path, where nobody follows systemd's naming
uid        the user id of the socket, where the path is `/` or is not known

Nobody owns a TIME_WAIT. What is known is who had the pool's ports a moment ago: a `Recent` remembers for two minutes
which owner had which port. A TIME_WAIT port belongs to the owner that had it last; ports that nobody was seen to have
are shared out in proportion to the ports that each owner has given up meanwhile. Both are estimates and say so. The
same goes for sockets that a process has closed and whose cgroup is not known.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from enum import StrEnum
from functools import reduce
from itertools import compress, count
from operator import or_
from typing import TYPE_CHECKING, NamedTuple

from ephmon.facts.addresses import PORTS, V6_BYTES, overlap, packed_address
from ephmon.facts.sockets import TcpState

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ephmon.facts.owned_sockets import OwnerGroup, OwnerTable
    from ephmon.model.pools.kinds import PoolKey

MOST_OWNERS = 5
"""So many owners are named."""
REMEMBERED_SECONDS = 120.0
"""For so long it is known who had a port, and for a third longer at most."""
MOST_REMEMBERED = 8
"""So many owners of a pool are remembered in each third of that time: those with most ports, 8 KiB each."""
LONGEST_NAME = 96


class OwnerKind(StrEnum):
    """What an owner's name is the name of, from the most telling to the least."""

    CONTAINER = "container"
    UNIT = "unit"
    SLICE = "slice"
    CGROUP = "cgroup"
    UID = "uid"


class Owner(NamedTuple):
    """Whoever made sockets. `name` is printable, valid UTF-8 and at most `LONGEST_NAME` characters."""

    kind: OwnerKind
    name: str
    """`haproxy.service`, `3f2a9c0b1d4e`, `user-1000.slice/session-3.scope`, `uid 33`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerShare:
    """The ports of one owner. A port that several owners have counts for each of them."""

    owner: Owner
    ports: int
    estimated_ports: int = 0
    """Those of `ports` that are the owner's by estimate."""

    @property
    def is_estimated(self) -> bool:
        """Whether any of the ports is the owner's by estimate only."""
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
    """Ports of which nothing tells who had them: TIME_WAITs that were there before anybody looked."""


@dataclass(frozen=True, slots=True)
class _Span:
    """Which ports each owner had last in a span of time: a bit for each port."""

    began: float
    ports: Mapping[Owner, int]


@dataclass(frozen=True, slots=True)
class Recent:
    """Who had which ports of one pool, or of a namespace's blocked ones, in the last two minutes."""

    spans: tuple[_Span, ...] = field(default=())
    """The newest first."""

    def after(self, now: float, live: Mapping[Owner, int]) -> Recent:
        """Return what is remembered once these ports were seen, at `now` in monotonic seconds."""
        length = REMEMBERED_SECONDS / 3
        spans = [span for span in self.spans if now - span.began < REMEMBERED_SECONDS + length]
        latest = spans.pop(0) if spans and now - spans[0].began < length else _Span(now, {})
        changed_hands = reduce(or_, live.values(), 0)
        ports = {
            owner: latest.ports.get(owner, 0) & ~changed_hands | live.get(owner, 0) for owner in {*latest.ports, *live}
        }
        most = sorted(ports, key=lambda owner: (-ports[owner].bit_count(), owner))[:MOST_REMEMBERED]
        return Recent((_Span(latest.began, {owner: ports[owner] for owner in most}), *spans))

    def ports(self) -> dict[Owner, int]:
        """Return all ports that each owner had."""
        had: defaultdict[Owner, int] = defaultdict(int)
        for span in self.spans:
            for owner, ports in span.ports.items():
                had[owner] |= ports
        return dict(had)


def owner_of(path: str | None, uid: int | None) -> Owner | None:
    """Return the owner that a cgroup's path and a user id tell, None if neither is known."""
    if path is not None and path.strip("/"):
        return _named(path)
    return None if uid is None else Owner(OwnerKind.UID, f"uid {uid}")


def pool_owners(
    key: PoolKey,
    table: OwnerTable,
    paths: Mapping[int, str],
    *,
    ports: int,
    recent: Recent,
    now: float,
) -> tuple[Owners, Recent]:
    """Return who holds the ports of a pool, and what is remembered for the next time.

    Args:
        key: The pool.
        table: Sockets that were read toward its destination, or for a pool without one all of its protocol.
        paths: The paths of cgroups by id.
        ports: The ports that count, those of the pool's capacity, as `port_bits` gives them.
        recent: What was remembered of the same pool.
        now: Monotonic seconds.
    """
    return _owners([_held(table, paths, _of_pool(table.groups, key), ports)], recent, now)


def blocked_owners(
    table: OwnerTable, paths: Mapping[int, str], *, blocked: int, recent: Recent, now: float
) -> tuple[Owners, Recent]:
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
    return _owners([_held(table, paths, chosen, blocked) for chosen in (bound, others)], recent, now)


def sockets_of_pool(key: PoolKey, table: OwnerTable) -> list[int]:
    """Return the places of the groups whose sockets hold their ports against a pool."""
    return list(compress(count(), _of_pool(table.groups, key)))


def sockets_of_blocked(table: OwnerTable) -> list[int]:
    """Return the places of all groups, those first that block the port whoever else is on it."""
    return sorted(range(len(table.groups)), key=lambda place: table.groups[place].state not in _BOUND_STATES)


def port_bits(ports: Iterable[int]) -> int:
    """Return a set of ports as a number with a bit for each: what this module counts and compares in one step."""
    flags = bytearray(PORTS // 8)
    for port in ports:
        flags[port >> 3] |= 1 << (port & 7)
    return int.from_bytes(flags, "little")


# --- names --------------------------------------------------------------------------------------------------------

_CONTAINER = re.compile(r"(?:.*[-:])?([0-9a-f]{64})(?:\.scope)?", re.DOTALL)
_MONITOR = re.compile(r"(?:.*-)?conmon-[0-9a-f]{64}\.scope", re.DOTALL)
_LXC = re.compile(r"lxc\.payload\.(.+)", re.DOTALL)
_UNIT = re.compile(r".+\.(?:service|scope)", re.DOTALL)
_USER_MANAGER = re.compile(r"user@[0-9]+\.service")
_USER_SLICE = re.compile(r"user-[0-9]+\.slice")
_SHORT_ID = 12


def _named(path: str) -> Owner:
    parts = [part for part in path.split("/") if part]
    if (container := _container(parts)) is not None:
        # A user may name cgroups below their own service manager as they like.
        manager = next((f"{part}/" for part in parts if _USER_MANAGER.fullmatch(part)), "")
        return Owner(OwnerKind.CONTAINER, _label(f"{manager}{container}"))
    if (unit := _unit(parts)) is not None:
        return Owner(OwnerKind.UNIT, _label(unit))
    slices = [part for part in parts if part.endswith(".slice")]
    return Owner(OwnerKind.SLICE, _label(slices[-1])) if slices else Owner(OwnerKind.CGROUP, _label(path))


def _container(parts: Iterable[str]) -> str | None:
    """Return the container that a path leads into, the innermost; what watches over a container is not in it."""
    found = None
    for part in parts:
        if (match := _LXC.fullmatch(part)) is not None:
            found = match[1]
        elif (match := _CONTAINER.fullmatch(part)) is not None and not _MONITOR.fullmatch(part):
            found = match[1][:_SHORT_ID]
    return found


def _unit(parts: list[str]) -> str | None:
    """Return the outermost unit of a path, with what tells more of it."""
    at = next((index for index, part in enumerate(parts) if _UNIT.fullmatch(part)), None)
    if at is None:
        return None
    unit = parts[at]
    if _USER_MANAGER.fullmatch(unit):
        below = next((part for part in parts[at + 1 :] if _UNIT.fullmatch(part) and part != "init.scope"), None)
        return unit if below is None else f"{unit}/{below}"
    if at and unit.startswith("session-") and _USER_SLICE.fullmatch(parts[at - 1]):
        return f"{parts[at - 1]}/{unit}"
    return unit


def _label(name: str) -> str:
    """Return a name fit for a label, the middle left out of a long one."""
    plain = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in name)
    half = (LONGEST_NAME - 1) // 2
    return plain if len(plain) <= LONGEST_NAME else f"{plain[:half]}\N{HORIZONTAL ELLIPSIS}{plain[-half:]}"


# --- ports --------------------------------------------------------------------------------------------------------

_BOUND_STATES = (TcpState.LISTEN, TcpState.CLOSE)


class _Held(NamedTuple):
    """Ports with an owner, by owner, and ports that have sockets without one; a bit for each port."""

    live: dict[Owner, int]
    ownerless: int


def _held(table: OwnerTable, paths: Mapping[int, str], chosen: Iterable[bool], ports: int) -> _Held:
    """Return what the chosen groups hold of the ports."""
    live: defaultdict[Owner, int] = defaultdict(int)
    ownerless = 0
    for group, ports_of_group, is_chosen in zip(table.groups, table.ports_of, chosen, strict=True):
        held = port_bits(ports_of_group) & ports if is_chosen else 0
        if not held:
            continue
        owner = owner_of(None if group.cgroup_id is None else paths.get(group.cgroup_id), group.uid)
        if owner is None:
            ownerless |= held
        else:
            live[owner] |= held
    return _Held(dict(live), ownerless)


def _owners(tiers: Iterable[_Held], recent: Recent, now: float) -> tuple[Owners, Recent]:
    """Return the owners; of a port that is in several tiers, the first one decides."""
    live: defaultdict[Owner, int] = defaultdict(int)
    ownerless = taken = 0
    for tier in tiers:
        free = ~taken
        for owner, ports in tier.live.items():
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


def _estimate(ownerless: int, live: Mapping[Owner, int], recent: Recent) -> tuple[dict[Owner, int], int]:
    """Share ports without an owner out; return how many each owner gets, and how many nobody does."""
    estimates: defaultdict[Owner, int] = defaultdict(int)
    for span in recent.spans:
        for owner in sorted(span.ports):
            its = ownerless & span.ports[owner]
            estimates[owner] += its.bit_count()
            ownerless &= ~its
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
