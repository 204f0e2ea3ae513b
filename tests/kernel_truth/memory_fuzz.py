"""Random sequences of what happens to sockets between polls: every number called exact is held against the kernel.

`python -m tests.kernel_truth memory --numbers 2000` plays sequences until so many numbers have been compared, and
prints how many were wrong. A sequence has a network namespace of its own and a small port range. Between two polls
sockets are opened, closed, bound, listened on and accepted, ports run out, and sysctls change. Then the poller of the
daemon polls, or all is read anew as `ephmon headroom` does, and pools that are called exact are drawn from
until that fails. What was drawn is given back at once; that it was there is one more thing that happened between two
polls.

Before Linux 6.8 no poll by inet_diag calls a TCP number exact, because the kernel hides sockets that are bound and
unconnected. The sequence knows whether it has such sockets. While it has none, a number counts as exact if nothing else
is in doubt.

Two things are held fixed, as in `tests.kernel_truth.mixes` and for the same reason: tcp_rfc1337, and the age from which
a TIME_WAIT may be reused, where that can be set.
"""

from __future__ import annotations

import errno
import random
import socket
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from ephmon.facts.addresses import packed_address
from ephmon.facts.socket_groups import ConnectKey
from ephmon.facts.sockets import Backend, Blindness
from ephmon.model.pools.kinds import PoolKind
from tests import sockets
from tests.kernel_truth.differences import holds_bound_unconnected, is_bound_unconnected
from tests.kernel_truth.mixes import OWN, fresh_namespace, read_with_probe
from tests.kernel_truth.polls import Polls
from tests.kernel_truth.prediction import walk
from tests.sockets import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ephmon.model.pools.kinds import Pool

POLLS = 10
"""So many polls has a sequence."""
SERVERS = (("127.0.0.1", 80), ("127.0.0.1", 81), (OWN, 80), ("::1", 80))
DROPS = ("127.0.0.1", 82)
"""A listener here takes no connection, so that what leads to it stays in SYN_SENT."""
SOURCES = ("127.0.0.1", "127.0.0.3", OWN)
_FRESH = [
    ConnectKey(packed_address("::1" if ":" in to else source), packed_address(to), port)
    for source in SOURCES
    for to, port in SERVERS
]
"""Pools that a command may be asked about though they have no sockets."""
_TIME_WAIT_DELAY = Path("/proc/sys/net/ipv4/tcp_tw_reuse_delay")


class Way(Enum):
    """How it is found out which ports connect() passes over."""

    PROBE = "with the probe"
    NO_PROBE = "without the probe"
    BPF = "by BPF"
    """From the kernel's bind table, which leaves nothing to ask the probe."""

    @property
    def backend(self) -> Backend:
        """By which TCP is read."""
        return Backend.BPF if self is Way.BPF else Backend.INET_DIAG


@dataclass(frozen=True, slots=True, kw_only=True)
class Play:
    """How a sequence is played."""

    seed: int
    way: Way
    remembers: bool
    """Whether one daemon polls throughout; else each poll is the first one, as a command's is."""


@dataclass(slots=True)
class Found:
    """What came of some sequences."""

    compared: Counter[PoolKind] = field(default_factory=Counter)
    """Numbers that were called exact and held against the kernel."""
    wrong: list[str] = field(default_factory=list)
    polls: int = 0
    pools: int = 0
    """Pools that were seen, exact or not."""

    @property
    def of_tcp(self) -> int:
        """How many numbers of TCP were compared; those of UDP owe nothing to memory or answers."""
        return self.compared[PoolKind.TCP_CONNECT] + self.compared[PoolKind.TCP_BIND]

    def add(self, other: Found) -> None:
        self.compared += other.compared
        self.wrong += other.wrong
        self.polls += other.polls
        self.pools += other.pools


class Sequence:
    """One sequence; runs in an agent."""

    def __init__(self, play: Play) -> None:
        self.play = play
        self.random = random.Random(play.seed)
        self.done: list[str] = []
        """What happened, for who has to find out what went wrong."""
        self._tags = 0
        self._listeners: list[str] = []
        self._left_time_wait = 0.0

    # --- what steps are made of -----------------------------------------------------------------------------------

    def new_tag(self) -> str:
        self._tags += 1
        return f"fuzz {self._tags}"

    def tags(self) -> list[str]:
        return [tag for tag in sockets.held if tag.startswith("fuzz") and sockets.held[tag]]

    def server(self) -> tuple[str, int]:
        return self.random.choice(SERVERS[:3])

    def source(self) -> str:
        return self.random.choice(SOURCES)

    def flip(self, chance: float = 0.3) -> bool:
        return self.random.random() < chance

    def any_port(self) -> int:
        return self.random.randrange(self.low, self.high + 1)

    def port(self) -> int:
        """Return a port that some socket has, or any of the range."""
        tags = self.tags()
        if tags and self.flip(0.7):
            one = self.random.choice(sockets.held[self.random.choice(tags)])
            number: int = one.getsockname()[1] if one.fileno() >= 0 else 0
            if self.low <= number <= self.high:
                return number
        return self.any_port()

    def open(self, recipe: Recipe, most: int = 5, tag: str | None = None) -> str:
        tag = tag or self.new_tag()
        sockets.open_sockets(recipe, tag=tag, limit=self.random.randrange(1, most + 1))
        return tag

    def leave_time_wait(self, recipe: Recipe) -> None:
        """Open connections and close them on both sides, the client's first."""
        tag = self.open(recipe)
        server, accepted = "server {} {}".format(*(recipe.connect or ())), self.new_tag()
        sockets.accept_all(server, tag=accepted)
        sockets.close(tag)
        sockets.close(accepted)
        self.note_time_wait()

    def note_time_wait(self) -> None:
        """Remember that a TIME_WAIT begins at this moment."""
        self._left_time_wait = time.monotonic()

    # --- the sequence ---------------------------------------------------------------------------------------------

    def run(self) -> Found:
        fresh_namespace()
        self.set_range()
        sockets.write_sysctl("net.ipv4.tcp_rfc1337", 1)
        if _TIME_WAIT_DELAY.exists():
            sockets.write_sysctl("net.ipv4.tcp_tw_reuse_delay", 1)
        for address, port in SERVERS:
            sockets.listen(address, port, tag=f"server {address} {port}")
        sockets.listen(*DROPS, tag="drops", backlog=0)
        sockets.open_sockets(Recipe(connect=DROPS, wait=False, bind=("127.0.0.1", 1_000)), tag="drops", limit=1)
        daemon = Polls(probe=self.play.way is Way.PROBE, backend=self.play.way.backend)
        try:
            return self._play(daemon)
        finally:
            daemon.close()
            sockets.close_all()

    def _play(self, daemon: Polls) -> Found:
        found = Found()
        for _ in range(POLLS):
            for _ in range(self.random.randrange(1, 6)):
                step = self.random.choice(STEPS)
                self.done.append(step.__name__)
                step(self)
            self._let_time_waits_grow_old()
            pools = self._pools(daemon)
            self.done.append("POLL")
            self._compare(pools, found)
        return found

    def _let_time_waits_grow_old(self) -> None:
        enough = 0.05 if _TIME_WAIT_DELAY.exists() else 1.1
        time.sleep(max(0.0, self._left_time_wait + enough - time.monotonic()))

    def _pools(self, daemon: Polls) -> list[Pool]:
        """Poll, and return the pools; those that are as exact as this kernel permits are called exact."""
        if self.play.way is not Way.NO_PROBE and not self.play.remembers:
            return list(_pools_of_a_command(self.play.way))
        if not self.play.remembers:
            daemon.restart()
        report = daemon.poll()
        (namespace,) = report.namespaces
        hides_nothing = namespace.blind_to == (Blindness.BOUND_UNCONNECTED,) and not holds_bound_unconnected()
        return [
            replace(one.pool, exact=True) if hides_nothing and _has_one_number(one.pool) else one.pool
            for one in report.listed
        ]

    def _compare(self, pools: list[Pool], found: Found) -> None:
        """Draw from some of the pools that are called exact; drawing from one kind of TCP may change the other."""
        found.polls += 1
        found.pools += len(pools)
        kinds = (
            self.random.choice([PoolKind.TCP_CONNECT, PoolKind.TCP_CONNECT, PoolKind.TCP_BIND]),
            PoolKind.UDP_CONNECT,
        )
        for pool in pools:
            # Where nobody listens any more, each connection is refused and gives its port back.
            is_answered = (pool.key.destination, pool.key.destination_port) in (*SERVERS, DROPS, (None, None))
            if pool.exact and pool.key.kind in kinds and is_answered:
                found.compared[PoolKind(pool.key.kind)] += 1
                got = self._draw(pool)
                if got != pool.remaining:
                    found.wrong.append(f"{self.play}: {pool.key} has {got}, not {pool.remaining}: {self.done}")

    def _draw(self, pool: Pool) -> int:
        """Return how many sockets get a port of the pool, and close them."""
        source, peer = pool.key.source, (pool.key.destination or "", pool.key.destination_port or 0)
        recipe = {
            PoolKind.TCP_CONNECT: Recipe(bind=(source, 0), no_port=True, connect=peer, wait=False),
            PoolKind.TCP_BIND: Recipe(bind=(source, 0)),
            PoolKind.UDP_CONNECT: Recipe(udp=True, connect=("::1" if ":" in source else "127.0.0.1", 9)),
        }[PoolKind(pool.key.kind)]
        filled = sockets.open_sockets(recipe, tag="drawn", limit=sockets.ALL_PORTS)
        assert errno.errorcode[filled.errno] == pool.failure_errno
        sockets.abort("drawn")
        self.done.append(f"drew {filled.count} of {pool.key.kind}")
        return filled.count

    def set_range(self) -> None:
        self.low = 40_000 + self.random.randrange(12)
        self.high = self.low + self.random.choice([23, 31, 39, 40])
        sockets.write_sysctl("net.ipv4.ip_local_port_range", f"{self.low} {self.high}")

    def forget(self, tag: str) -> None:
        if tag in self._listeners:
            self._listeners.remove(tag)

    def listen(self, recipe: Recipe) -> None:
        tag = self.open(recipe, most=1)
        if sockets.held[tag]:
            self._listeners.append(tag)

    def be_accepted(self, *, leave: bool) -> None:
        """Connect to a listener of the range and accept, from a client outside the range where that is possible."""
        if not self._listeners:
            return
        tag = self.random.choice(self._listeners)
        one = sockets.held[tag][0]
        address, port = one.getsockname()[:2]
        address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
        self.open(Recipe(connect=(address, port), wait=False), most=3)
        sockets.accept_all(tag, tag=self.new_tag())
        if leave:
            self.forget(tag)
            sockets.close(tag)


def _has_one_number(pool: Pool) -> bool:
    return pool.remaining_min == pool.remaining_max and not pool.application_chooses_ports


def _pools_of_a_command(way: Way) -> Iterator[Pool]:
    """Yield the pools as a command counts them that leaves no port in doubt, and those toward all servers."""
    one = walk() if way is Way.BPF else read_with_probe()
    assert one is not None
    for pools in one.pool_sets:
        yield from (
            pools.pool(key) for key in dict.fromkeys([*pools, *(_FRESH if pools.kind == PoolKind.TCP_CONNECT else ())])
        )


# --- the kinds of sockets, and what else happens --------------------------------------------------------------------


def _opens(name: str, recipe: Callable[[Sequence], Recipe], most: int = 5) -> Callable[[Sequence], None]:
    def step(sequence: Sequence) -> None:
        sequence.open(recipe(sequence), most)

    step.__name__ = name
    return step


def _waits(name: str, recipe: Callable[[Sequence], Recipe]) -> Callable[[Sequence], None]:
    def step(sequence: Sequence) -> None:
        sequence.leave_time_wait(recipe(sequence))

    step.__name__ = name
    return step


def _listens(name: str, recipe: Callable[[Sequence], Recipe]) -> Callable[[Sequence], None]:
    def step(sequence: Sequence) -> None:
        sequence.listen(recipe(sequence))

    step.__name__ = name
    return step


def close_some(sequence: Sequence) -> None:
    _end_some(sequence, sockets.close)
    sequence.note_time_wait()


def abort_some(sequence: Sequence) -> None:
    _end_some(sequence, sockets.abort)


def _end_some(sequence: Sequence, end: Callable[[str], None]) -> None:
    tags = sequence.tags()
    if tags:
        tag = sequence.random.choice(tags)
        sequence.forget(tag)
        end(tag)


def close_what_is_unconnected(sequence: Sequence) -> None:
    """End all sockets that a kernel may hide, and what else was opened with them."""
    for tag in sequence.tags():
        if any(is_bound_unconnected(one) for one in sockets.held[tag] if one.fileno() >= 0):
            sequence.forget(tag)
            sockets.abort(tag)


def be_left_by_servers(sequence: Sequence) -> None:
    """CLOSE_WAIT on our side."""
    tag = sequence.new_tag()
    for address, port in SERVERS:
        sockets.accept_all(f"server {address} {port}", tag=tag)
    sockets.close(tag)
    sequence.note_time_wait()  # of clients that left first


def connect_what_is_bound(sequence: Sequence) -> None:
    """Sockets that were seen bound go on."""
    for tag in sequence.tags():
        for one in sockets.held[tag]:
            if one.type == socket.SOCK_STREAM and one.family == socket.AF_INET and sequence.flip():
                one.setblocking(False)
                one.connect_ex(sequence.server())


def bind_for_a_moment(sequence: Sequence) -> None:
    for _ in range(sequence.random.randrange(1, 6)):
        address = sequence.random.choice(["127.0.0.9", "0.0.0.0", "::1", "::"])
        recipe = Recipe(bind=(address, sequence.port()), reuse_address=sequence.flip(0.5))
        sockets.abort(sequence.open(recipe, most=1))


def listen_for_a_moment(sequence: Sequence) -> None:
    recipe = Recipe(bind=("127.0.0.9", sequence.port()), reuse_address=sequence.flip(0.5), listen=5)
    sockets.abort(sequence.open(recipe, most=1))


def run_out(sequence: Sequence) -> None:
    tag = sequence.new_tag()
    sockets.open_sockets(Recipe(connect=sequence.server()), tag=tag, limit=100)


def run_out_from_a_source(sequence: Sequence) -> None:
    recipe = Recipe(bind=(sequence.source(), 0), no_port=sequence.flip(0.5), connect=sequence.server(), wait=False)
    sockets.open_sockets(recipe, tag=sequence.new_tag(), limit=100)


def change_the_range(sequence: Sequence) -> None:
    sequence.set_range()


def reserve_ports(sequence: Sequence) -> None:
    ports = sorted(sequence.any_port() for _ in range(sequence.random.choice([0, 0, 3, 8])))
    sockets.write_sysctl("net.ipv4.ip_local_reserved_ports", ",".join(map(str, ports)))


def set_reuse(sequence: Sequence) -> None:
    sockets.write_sysctl("net.ipv4.tcp_tw_reuse", sequence.random.choice([0, 1, 2]))


def connect_to_a_listener_of_ours(sequence: Sequence) -> None:
    sequence.be_accepted(leave=False)


def be_left_by_a_listener(sequence: Sequence) -> None:
    sequence.be_accepted(leave=True)


def _own_range(sequence: Sequence) -> tuple[int, int]:
    low = sequence.any_port()
    return low, min(sequence.high, low + 5)


KINDS = [
    _opens("plain", lambda one: Recipe(connect=one.server(), reuse_address=one.flip()), 15),
    _opens("plain to one", lambda _: Recipe(connect=SERVERS[0]), 15),
    _opens("reuse port", lambda one: Recipe(connect=one.server(), reuse_port=True)),
    _opens("no port", lambda one: Recipe(no_port=True, bind=(one.source(), 0), connect=one.server()), 15),
    _opens("no port unconnected", lambda one: Recipe(no_port=True, bind=(one.source(), 0))),
    _opens(
        "no port, mapped",
        lambda _: Recipe(no_port=True, bind=("::ffff:127.0.0.1", 0), connect=("::ffff:127.0.0.1", 80)),
    ),
    _opens("mapped", lambda _: Recipe(connect=("::ffff:127.0.0.1", 80))),
    _opens("v6", lambda one: Recipe(connect=("::1", 80), reuse_address=one.flip()), 10),
    _opens("v6 only", lambda _: Recipe(v6only=True, connect=("::1", 80))),
    _opens("v6 any port", lambda _: Recipe(bind=("::1", 0), connect=("::1", 80))),
    _opens("v6 any port unconnected", lambda _: Recipe(bind=("::1", 0))),
    _opens("any port", lambda one: Recipe(bind=(one.source(), 0), connect=one.server()), 10),
    _opens("any port of the wildcard", lambda one: Recipe(bind=("0.0.0.0", 0), connect=one.server())),
    _opens("any port unconnected", lambda one: Recipe(bind=(one.source(), 0), reuse_address=one.flip())),
    _opens("any port of the wildcard unconnected", lambda one: Recipe(bind=("0.0.0.0", 0), reuse_address=one.flip())),
    _opens("named", lambda one: Recipe(bind=(one.source(), one.any_port()), connect=one.server()), 1),
    _opens(
        "named, reuse", lambda one: Recipe(bind=(one.source(), one.port()), reuse_address=True, connect=one.server()), 1
    ),
    _opens(
        "named at the wildcard, reuse",
        lambda one: Recipe(bind=("0.0.0.0", one.port()), reuse_address=True, connect=one.server()),
        1,
    ),
    _opens(
        "named, no port",
        lambda one: Recipe(no_port=True, bind=(one.source(), one.port()), reuse_address=True, connect=one.server()),
        1,
    ),
    _opens("named unconnected", lambda one: Recipe(bind=("127.0.0.9", one.port()), reuse_address=one.flip(0.5)), 1),
    _opens(
        "named at the wildcard unconnected", lambda one: Recipe(bind=("0.0.0.0", one.port()), reuse_address=True), 1
    ),
    _opens("named, reuse port", lambda one: Recipe(bind=("127.0.0.9", one.port()), reuse_port=True), 1),
    _opens("on a device", lambda one: Recipe(device="lo", connect=one.server())),
    _opens("on a device, any port", lambda one: Recipe(device="lo", bind=(one.source(), 0), connect=one.server())),
    _opens("own range", lambda one: Recipe(port_range=_own_range(one), connect=one.server())),
    _opens(
        "own range, any port",
        lambda one: Recipe(port_range=_own_range(one), bind=(one.source(), 0), connect=one.server()),
    ),
    _opens("SYN_SENT", lambda _: Recipe(connect=DROPS, wait=False)),
    _opens("SYN_SENT, any port", lambda _: Recipe(bind=("127.0.0.3", 0), connect=DROPS, wait=False)),
    _listens("listener", lambda one: Recipe(bind=(one.source(), one.any_port()), reuse_address=one.flip(), listen=5)),
    _listens(
        "listener beside others", lambda one: Recipe(bind=("127.0.0.9", one.port()), reuse_address=True, listen=5)
    ),
    _listens("listener of both families", lambda one: Recipe(bind=("::", one.any_port()), v6only=False, listen=5)),
    _listens("listener of IPv6 only", lambda one: Recipe(bind=("::1", one.port()), v6only=True, listen=5)),
    _listens("listener at any port", lambda _: Recipe(bind=("0.0.0.0", 0), listen=5)),
    _waits("TIME_WAIT", lambda one: Recipe(connect=one.server())),
    _waits("TIME_WAIT, no port", lambda one: Recipe(no_port=True, bind=(one.source(), 0), connect=one.server())),
    _waits("TIME_WAIT, any port", lambda one: Recipe(bind=(one.source(), 0), connect=one.server())),
    _waits(
        "TIME_WAIT, named",
        lambda one: Recipe(bind=(one.source(), one.port()), reuse_address=True, connect=one.server()),
    ),
    _opens("UDP", lambda one: Recipe(udp=True, connect=(one.source(), 9))),
    _opens("UDP any port", lambda one: Recipe(udp=True, bind=(one.source(), 0))),
    _opens("UDP sent", lambda one: Recipe(udp=True, send=(one.source(), 9))),
    connect_to_a_listener_of_ours,
    be_left_by_a_listener,
    be_left_by_servers,
]
STEPS = [
    *KINDS,
    *[close_some, abort_some] * 8,
    *[connect_what_is_bound, bind_for_a_moment, listen_for_a_moment] * 3,
    *[run_out, run_out_from_a_source] * 2,
    *[close_what_is_unconnected] * 4,
    change_the_range,
    reserve_ports,
    set_reuse,
]


def play(seeds: list[int], *, way: Way, remembers: bool) -> Found:
    """Play the sequences of some seeds; runs in an agent."""
    found = Found()
    for seed in seeds:
        found.add(Sequence(Play(seed=seed, way=way, remembers=remembers)).run())
    return found
