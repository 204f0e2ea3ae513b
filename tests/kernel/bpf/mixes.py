"""Random mixes of sockets: one walk over the bind table, held against inet_diag, the probe, and real allocations.

Everything here runs inside an agent (`tests.namespaces`); see `tests.kernel_truth.mixes`, whose mixes these are.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from ephmon.facts.bind_counts import PoolKey
from ephmon.facts.socket_groups import ConnectKey
from ephmon.facts.sockets import TcpState
from ephmon.kernel.bpf.reader import BindTableReader
from ephmon.kernel.deadline import Deadline
from ephmon.kernel.probe import probe
from ephmon.kernel.source import SocketSource
from ephmon.model.pools.bind_table.bind_pools import BindTableBindPools
from ephmon.model.pools.bind_table.connect_pools import BindTableConnectPools
from ephmon.model.pools.bind_table.ports import classes_of
from tests import sockets
from tests.kernel_truth.mixes import KINDS, OWN, Mix, fresh_namespace
from tests.sockets import Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ephmon.facts.bind_table import NamespaceBinds
    from ephmon.facts.snapshot import NamespaceSnapshot

_DEADLINE_SECONDS = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one walk counted of a mix, and what others say of the same sockets."""

    seed: int
    blocked: frozenset[int]
    blocked_by_probe: frozenset[int]
    pools: dict[PoolKey, tuple[int, int]]
    """Ports held, and those of them held by a TIME_WAIT, of every pool that holds any."""
    pools_by_diag: dict[PoolKey, tuple[int, int]]
    connect: tuple[int, int]
    """How many connections the numbers say can be opened, and how many could."""
    bind: tuple[int, int]
    """The same for bind(address, 0)."""
    whole: bool
    """Whether the walk lost nothing."""

    @property
    def is_right(self) -> bool:
        """Whether every number is what the kernel gave, and what inet_diag and the probe say."""
        return (
            self.blocked == self.blocked_by_probe
            and self.pools == self.pools_by_diag
            and self.connect[0] == self.connect[1]
            and self.bind[0] == self.bind[1]
            and self.whole
        )


def outcomes(seeds: list[int]) -> list[Outcome]:
    """Make each mix, read it, and fill two of its pools."""
    reader = BindTableReader()
    try:
        return [_outcome(seed, reader) for seed in seeds]
    finally:
        reader.close()


def read_own(reader: BindTableReader) -> NamespaceBinds:
    """Walk once and return the namespace of the caller."""
    table = reader.read(Deadline(_DEADLINE_SECONDS, time.monotonic))
    assert table.own is not None
    assert not any(table.losses), table.losses
    return table.own


def _outcome(seed: int, reader: BindTableReader) -> Outcome:
    fresh_namespace()
    mix = Mix(seed)
    mix.prepare()
    mix.open_some(KINDS)
    mix.settle()
    (namespace,) = _source().read(_DEADLINE_SECONDS).namespaces
    one = read_own(reader)
    usable = sorted(set(range(mix.low, mix.high + 1)) - one.sysctls.reserved_ports)
    answers = probe(usable, Deadline(_DEADLINE_SECONDS, time.monotonic))
    return Outcome(
        seed=seed,
        blocked=one.blocked_ports,
        blocked_by_probe=frozenset(port for port, is_shared in answers.items() if not is_shared),
        pools={key: (counts.held, counts.time_wait) for key, counts in one.pools() if counts.held},
        pools_by_diag=_by_diag(namespace, one.blocked_ports | one.sysctls.reserved_ports),
        connect=_filled_by_connect(mix, reader),
        bind=_filled_by_bind(mix, reader),
        whole=one.usable == len(usable)
        and one.sysctls == namespace.sysctls
        and len(one.blocked_ports) == one.outside.blocked,
    )


def _by_diag(namespace: NamespaceSnapshot, left_out: frozenset[int]) -> dict[PoolKey, tuple[int, int]]:
    """Count the connections that inet_diag shows, by pool, without those on ports that count nowhere."""
    assert namespace.tcp is not None
    table = namespace.tcp.connections
    held: Counter[PoolKey] = Counter()
    time_wait: Counter[PoolKey] = Counter()
    for index, port in zip(table.group_of, table.port_of, strict=True):
        group = table.groups[index]
        if port not in left_out:
            key = PoolKey(group.source, group.destination, group.destination_port, group.device)
            held[key] += 1
            time_wait[key] += group.state == TcpState.TIME_WAIT
    return {key: (number, time_wait[key]) for key, number in held.items()}


def _filled_by_connect(mix: Mix, reader: BindTableReader) -> tuple[int, int]:
    (destination, port), source = mix.random.choice(
        [(mix.destination(), None), (mix.destination(), mix.source()), (("::1", 80), None)]
    )
    from_ = source or {OWN: OWN, "::1": "::1"}.get(destination, "127.0.0.1")
    key = PoolKey(ip_address(from_).packed, ip_address(destination).packed, port)
    predicted = connect_room(read_own(reader), key)
    recipe = Recipe(no_port=source is not None, bind=(source, 0) if source else None, connect=(destination, port))
    filled = sockets.open_sockets(recipe, tag="fill", limit=sockets.ALL_PORTS)
    sockets.abort("fill")
    return predicted, filled.count


def _filled_by_bind(mix: Mix, reader: BindTableReader) -> tuple[int, int]:
    address, v6only = mix.random.choice(list(_binds()))
    predicted = bind_room(read_own(reader), ip_address(address).packed)
    filled = sockets.open_sockets(Recipe(bind=(address, 0), v6only=v6only), tag="fill", limit=sockets.ALL_PORTS)
    return predicted, filled.count


def _binds() -> Iterator[tuple[str, bool | None]]:
    yield from ((address, None) for address in ("127.0.0.1", "127.0.0.3", OWN, "::1", "0.0.0.0"))
    yield "::", False


def connect_room(one: NamespaceBinds, key: PoolKey) -> int:
    """Return how many connections of a key can be opened from a socket that is bound to no device."""
    pool = BindTableConnectPools("own", 0.0, one, classes_of(one)).pool(ConnectKey(*key[:3]))
    assert pool.exact or pool.only_on_devices or pool.application_chooses_ports, pool
    return pool.remaining_max


def bind_room(one: NamespaceBinds, address: bytes) -> int:
    """Return how many sockets bind(address, 0) gives a port; :: is taken to be without IPV6_V6ONLY."""
    pool = BindTableBindPools("own", 0.0, one, classes_of(one)).pool(address)
    assert pool.exact
    return pool.remaining


def _source() -> SocketSource:
    return SocketSource(proc=Path("/proc"), clock=time.monotonic, wall_clock=time.time, mode="inet_diag")
