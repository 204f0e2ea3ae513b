"""Random mixes of sockets in a small port range: predict a pool, then draw from it until it fails.

Everything here runs inside an agent (`tests.namespaces`), each mix in a network namespace of its own, so that no
TIME_WAIT of one mix is met by the next. Two things are held fixed, because the test is about the model and not about
luck: tcp_rfc1337, without which a late segment may end a TIME_WAIT early, and the age from which a TIME_WAIT may be
reused, which is set to its least, so that none crosses it between prediction and fill.
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import time
from dataclasses import dataclass
from enum import Enum, auto
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ephmon.facts.socket_groups import ConnectKey
from ephmon.facts.sockets import Blindness
from ephmon.kernel import features
from ephmon.kernel.deadline import Deadline
from ephmon.kernel.probe import probe
from ephmon.kernel.proc.sysctl import read_release
from ephmon.model.pools.kinds import Pool, PoolKind
from ephmon.model.pools.survey import NamespaceSurvey, classify, survey
from tests import sockets
from tests.kernel_truth.prediction import read_snapshot
from tests.namespaces import add_address, bring_loopback_up
from tests.ordinary_user import as_thread_of_ordinary_user
from tests.sockets import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SIZE = 400
OWN = "10.8.0.1"
_TIME_WAIT_DELAY = Path("/proc/sys/net/ipv4/tcp_tw_reuse_delay")
_CLONE_NEWNET = 0x40000000
_DEADLINE_SECONDS = 20.0


class Asks(Enum):
    """Who uses the probe, and by which of its two ways."""

    ORDINARY_USER = auto()
    """Without a capability, by fast open."""
    ROOT = auto()
    """In repair mode, because fast open is switched off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was predicted of one pool, and what the kernel then gave."""

    seed: int
    pool: Pool
    probed: Pool | None
    """The prediction with the probe."""
    counted: Pool | None
    """The prediction of a reading that only counts, made after one with evidence; for tcp_connect."""
    count: int
    errno: str
    ambiguous: int
    """Ports in doubt, without the probe."""

    @property
    def is_unsure(self) -> bool:
        """Whether something decides that the probe cannot answer.

        TIME_WAITs count as reusable although no live connection has shown that the peer uses timestamps, or all sockets
        of the pool named their ports, so that the next one may too.
        """
        return bool(self.pool.reusable_unproven) or self.pool.application_chooses_ports


def fresh_namespace() -> None:
    """Go into a new network namespace, where loopback is up and OWN is an address of it."""
    sockets.close_all()
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    bring_loopback_up()
    add_address(f"{OWN}/32", "lo")


def read() -> NamespaceSurvey:
    """Read the namespace once."""
    (one,) = survey(read_snapshot())
    return one


def count_after(one: NamespaceSurvey) -> NamespaceSurvey:
    """Read the namespace once more, without evidence, knowing what was remembered of a reading with it."""
    assert one.evidence is not None
    snapshot = read_snapshot(evidence=False)
    (counted,) = survey(snapshot, classify(snapshot, evidence={one.namespace.inode: one.evidence}))
    return counted


def read_with_probe() -> NamespaceSurvey:
    """Read the namespace once, and ask the kernel about every port in doubt, as `ephmon headroom` does."""
    snapshot = read_snapshot()
    (one,) = survey(snapshot)
    assert one.ports is not None
    asked = one.ports.not_known_to_be_blocked() if one.ports.blind_to else one.ports.in_doubt()
    answers = probe(asked, Deadline(_DEADLINE_SECONDS, time.monotonic))
    (one,) = survey(snapshot, classify(snapshot, answers={one.namespace.inode: answers}))
    return one


# --- the kinds of sockets -----------------------------------------------------------------------------------------


class Mix:
    """One random mix, opened step by step."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.low = 40_000 + self.random.randrange(2)
        self.high = self.low + SIZE - 1
        self.time_wait_left_at = 0.0
        self._tags = 0

    def prepare(self) -> None:
        """Set the sysctls, and listen on every destination, outside the range."""
        choose = self.random.choice
        reserved = sorted(self.random.sample(range(self.low, self.high + 1), choose([0, 0, 7, 30])))
        sockets.write_sysctl("net.ipv4.ip_local_port_range", f"{self.low} {self.high}")
        sockets.write_sysctl("net.ipv4.ip_local_reserved_ports", ",".join(map(str, reserved)))
        sockets.write_sysctl("net.ipv4.tcp_rfc1337", 1)
        sockets.write_sysctl("net.ipv4.tcp_tw_reuse", choose([0, 1, 2]))
        if _TIME_WAIT_DELAY.exists():
            sockets.write_sysctl("net.ipv4.tcp_tw_reuse_delay", 1)
        for address in ("127.0.0.1", "127.0.0.2", OWN, "::1"):
            for port in (80, 81):
                sockets.listen(address, port, tag=f"server {address} {port}")

    def open_some(self, kinds: list[Callable[[Mix], None]]) -> None:
        """Open sockets of some of the kinds, some of each, in random order."""
        for kind in self.random.sample(kinds, self.random.randrange(3, len(kinds))):
            kind(self)

    def settle(self) -> None:
        """Wait until every TIME_WAIT is old enough to be reused, so that none gets there between prediction and fill.

        The age is shown in ticks of the kernel's clock, of which the slowest has ten milliseconds. Before the delay
        could be set (Linux 6.14), a TIME_WAIT had to be a second old.
        """
        enough = 0.05 if _TIME_WAIT_DELAY.exists() else 1.1
        time.sleep(max(0.0, self.time_wait_left_at + enough - time.monotonic()))

    def tag(self) -> str:
        self._tags += 1
        return f"mix {self._tags}"

    def some(self) -> int:
        return self.random.randrange(1, 25)

    def destination(self) -> tuple[str, int]:
        return self.random.choice(["127.0.0.1", "127.0.0.2", OWN]), self.random.choice([80, 81])

    def source(self) -> str:
        return self.random.choice(["127.0.0.1", "127.0.0.3", OWN])

    def free_port(self) -> int:
        return self.random.randrange(self.low, self.high + 1)

    def open(self, recipe: Recipe, *, number: int | None = None) -> str:
        tag = self.tag()
        sockets.open_sockets(recipe, tag=tag, limit=self.some() if number is None else number)
        return tag

    def leave_time_wait(self, recipe: Recipe) -> None:
        """Open connections and close them on both sides, the client's first."""
        assert recipe.connect is not None
        tag = self.open(recipe)
        accepted = self.tag()
        sockets.accept_all("server {} {}".format(*recipe.connect), tag=accepted)
        sockets.close(tag)
        sockets.close(accepted)
        self.time_wait_left_at = time.monotonic()

    def passive(self) -> tuple[str, str, str]:
        """Listen inside the range and accept connections; return the tags of listener, clients and accepted."""
        listener, accepted = self.tag(), self.tag()
        address = self.random.choice(["127.0.0.1", "0.0.0.0", OWN])
        try:
            port = sockets.listen(address, self.free_port(), tag=listener)
        except OSError:
            return "", "", ""  # the port is taken or reserved: no matter, there are other seeds
        target = "127.0.0.1" if address == "0.0.0.0" else address
        clients = self.open(Recipe(connect=(target, port)), number=self.random.randrange(1, 6))
        sockets.accept_all(listener, tag=accepted)
        return listener, clients, accepted


def plain(mix: Mix) -> None:
    # Beyond half of the range connect() goes on to the ports that bind(address, 0) prefers.
    mix.open(Recipe(connect=mix.destination()), number=mix.random.randrange(1, mix.random.choice([150, 350])))


def no_port(mix: Mix) -> None:
    mix.open(Recipe(no_port=True, bind=(mix.source(), 0), connect=mix.destination()))


def any_port_connected(mix: Mix) -> None:
    mix.open(Recipe(bind=(mix.source(), 0), connect=mix.destination()))


def any_port_unconnected(mix: Mix) -> None:
    mix.open(Recipe(bind=(mix.random.choice([mix.source(), "0.0.0.0"]), 0)))


def no_port_unconnected(mix: Mix) -> None:
    mix.open(Recipe(no_port=True, bind=(mix.source(), 0)))


def named_connected(mix: Mix) -> None:
    for _ in range(mix.some()):
        mix.open(Recipe(bind=(mix.source(), mix.free_port()), connect=mix.destination()), number=1)


def named_unconnected(mix: Mix) -> None:
    for _ in range(mix.some()):
        reuse = mix.random.random() < 0.3
        mix.open(Recipe(bind=(mix.source(), mix.free_port()), reuse_address=reuse), number=1)


def listeners(mix: Mix) -> None:
    for _ in range(mix.random.randrange(1, 6)):
        address = mix.random.choice(["127.0.0.1", "127.0.0.9", "0.0.0.0"])
        mix.open(Recipe(bind=(address, mix.free_port()), listen=1), number=1)


def listeners_v6(mix: Mix) -> None:
    for _ in range(mix.random.randrange(1, 6)):
        address, v6only = mix.random.choice([("::1", None), ("::", True), ("::", False)])
        mix.open(Recipe(bind=(address, mix.free_port()), v6only=v6only, listen=1), number=1)


def accepted_from_a_listener(mix: Mix) -> None:
    mix.passive()


def accepted_from_a_listener_that_is_gone(mix: Mix) -> None:
    listener, _, _ = mix.passive()
    if listener:
        sockets.close(listener)


def accepted_time_wait(mix: Mix) -> None:
    listener, clients, accepted = mix.passive()
    if listener:
        sockets.close(accepted)
        sockets.close(clients)
        sockets.close(listener)
        mix.time_wait_left_at = time.monotonic()


def time_wait(mix: Mix) -> None:
    mix.leave_time_wait(Recipe(connect=mix.destination()))


def time_wait_of_any_port(mix: Mix) -> None:
    mix.leave_time_wait(Recipe(bind=(mix.source(), 0), connect=mix.destination()))


def time_wait_of_no_port(mix: Mix) -> None:
    mix.leave_time_wait(Recipe(no_port=True, bind=(mix.source(), 0), connect=mix.destination()))


def fin_wait2(mix: Mix) -> None:
    sockets.close(mix.open(Recipe(connect=mix.destination())))


def mapped(mix: Mix) -> None:
    address, port = mix.destination()
    mix.open(Recipe(connect=(f"::ffff:{address}", port)))


def inet6(mix: Mix) -> None:
    mix.open(Recipe(connect=("::1", mix.random.choice([80, 81]))))


def udp(mix: Mix) -> None:
    mix.open(Recipe(udp=True, bind=(mix.source(), 0)))
    mix.open(Recipe(udp=True, connect=mix.destination()))


def udp_any_port(mix: Mix) -> None:
    mix.open(Recipe(udp=True, bind=(mix.random.choice([mix.source(), "0.0.0.0"]), 0)))


def udp_named(mix: Mix) -> None:
    for _ in range(mix.some()):
        mix.open(Recipe(udp=True, bind=(mix.source(), mix.free_port())), number=1)


def udp_connected(mix: Mix) -> None:
    mix.open(Recipe(udp=True, connect=mix.destination()))


def udp_bound_and_connected(mix: Mix) -> None:
    mix.open(Recipe(udp=True, bind=(mix.source(), 0), connect=mix.destination()))


def udp_no_port(mix: Mix) -> None:
    mix.open(Recipe(udp=True, no_port=True, bind=(mix.source(), 0), connect=mix.destination()))


def udp6(mix: Mix) -> None:
    mix.open(Recipe(udp=True, connect=("::1", 9)))


def udp6_any_port(mix: Mix) -> None:
    address, v6only = mix.random.choice([("::", True), ("::", False), ("::1", None)])
    mix.open(Recipe(udp=True, v6only=v6only, bind=(address, 0)))


def udp_mapped(mix: Mix) -> None:
    mix.open(Recipe(udp=True, connect=("::ffff:127.0.0.1", 9)))


KINDS: list[Callable[[Mix], None]] = [
    plain,
    no_port,
    any_port_connected,
    any_port_unconnected,
    no_port_unconnected,
    named_connected,
    named_unconnected,
    listeners,
    listeners_v6,
    accepted_from_a_listener,
    accepted_from_a_listener_that_is_gone,
    accepted_time_wait,
    time_wait,
    time_wait_of_any_port,
    time_wait_of_no_port,
    fin_wait2,
    mapped,
    inet6,
    udp,
]
CERTAIN_KINDS: list[Callable[[Mix], None]] = [
    no_port,
    any_port_unconnected,
    no_port_unconnected,
    named_unconnected,
    listeners,
    listeners_v6,
    udp,
]
"""Those whose sockets tell how they got their port."""
UDP_KINDS: list[Callable[[Mix], None]] = [
    udp_any_port,
    udp_named,
    udp_connected,
    udp_bound_and_connected,
    udp_no_port,
    udp6,
    udp6_any_port,
    udp_mapped,
    plain,
]


# --- predict and fill ---------------------------------------------------------------------------------------------


def connect_outcomes(seeds: list[int], *, asks: Asks | None, only_certain: bool = False) -> list[Outcome]:
    """Predict and fill a tcp_connect pool in each of the mixes; `asks` says who makes a prediction with the probe."""
    kinds = CERTAIN_KINDS if only_certain else KINDS
    return [_connect_outcome(seed, kinds, asks) for seed in seeds]


def _connect_outcome(seed: int, kinds: list[Callable[[Mix], None]], asks: Asks | None) -> Outcome:
    fresh_namespace()
    mix = Mix(seed)
    mix.prepare()
    mix.open_some(kinds)
    mix.settle()
    (destination, port), source = mix.random.choice(
        [(mix.destination(), None), (mix.destination(), mix.source()), (("::1", 80), None)]
    )
    recipe = Recipe(no_port=source is not None, bind=(source, 0) if source else None, connect=(destination, port))
    from_ = source or {OWN: OWN, "::1": "::1"}.get(destination, "127.0.0.1")
    key = ConnectKey(ip_address(from_).packed, ip_address(destination).packed, port)
    one = read()
    probed = _probed(key, asks) if asks else None
    counted = _pool(count_after(one), PoolKind.TCP_CONNECT, key)
    filled = sockets.open_sockets(recipe, tag="fill", limit=sockets.ALL_PORTS)
    pool = _pool(one, PoolKind.TCP_CONNECT, key)
    assert one.ports is not None
    return Outcome(
        seed=seed,
        pool=pool,
        probed=probed,
        counted=counted,
        count=filled.count,
        errno=errno.errorcode.get(filled.errno, ""),
        ambiguous=one.ports.ambiguous,
    )


def _probed(key: ConnectKey, asks: Asks) -> Pool:
    """Predict a pool with the probe."""
    if asks is Asks.ORDINARY_USER:
        return as_thread_of_ordinary_user(_pool_with_probe, key)
    sockets.write_sysctl("net.ipv4.tcp_fastopen", 0)
    return _pool_with_probe(key)


def _pool_with_probe(key: ConnectKey) -> Pool:
    return _pool(read_with_probe(), PoolKind.TCP_CONNECT, key)


def bind_outcomes(seeds: list[int], *, is_udp: bool) -> list[Outcome]:
    """Predict and fill a tcp_bind or udp_bind pool in each of the mixes."""
    return [_address_outcome(seed, PoolKind.UDP_BIND if is_udp else PoolKind.TCP_BIND) for seed in seeds]


def udp_connect_outcomes(seeds: list[int]) -> list[Outcome]:
    """Predict and fill a udp_connect pool in each of the mixes."""
    return [_address_outcome(seed, PoolKind.UDP_CONNECT) for seed in seeds]


def _address_outcome(seed: int, kind: PoolKind) -> Outcome:
    fresh_namespace()
    mix = Mix(seed)
    mix.prepare()
    mix.open_some(KINDS if kind == PoolKind.TCP_BIND else UDP_KINDS)
    source, recipe = mix.random.choice(list(_newcomers(kind)))
    pool = _pool(read(), kind, ip_address(source).packed)
    filled = sockets.open_sockets(recipe, tag="fill", limit=sockets.ALL_PORTS)
    return Outcome(
        seed=seed,
        pool=pool,
        probed=None,
        counted=None,
        count=filled.count,
        errno=errno.errorcode.get(filled.errno, ""),
        ambiguous=0,
    )


def _newcomers(kind: PoolKind) -> Iterator[tuple[str, Recipe]]:
    """Yield the source of each pool that may be drawn from, and how that is done."""
    is_udp = kind != PoolKind.TCP_BIND
    if kind == PoolKind.UDP_CONNECT:
        yield "0.0.0.0", Recipe(udp=True, connect=("127.0.0.1", 9))
        yield "::", Recipe(udp=True, connect=("::1", 9))
        return
    for source in ("127.0.0.1", "127.0.0.3", OWN, "::1"):
        yield source, Recipe(udp=is_udp, bind=(source, 0))
    yield "::", Recipe(udp=is_udp, bind=("::", 0), v6only=False)


def _pool(one: NamespaceSurvey, kind: PoolKind, key: Any) -> Pool:
    pools = one.pools_of(kind)
    assert pools is not None
    return pools.pool(key)


def shows_every_socket() -> bool:
    """Tell whether this kernel shows all sockets that hold a port, so that the bounds are held against it."""
    return Blindness.BOUND_UNCONNECTED not in (read().ports or _nothing()).blind_to


def shows_everything() -> bool:
    """Tell whether this kernel shows all that blocks a port, so that predictions are held to the number."""
    recover = features.ports_recover(read_release(Path("/proc")))
    return recover and shows_every_socket()


def _nothing() -> Any:
    raise AssertionError("TCP could not be read")


def release() -> str:
    """Return the kernel's release."""
    return os.uname().release
