"""TIME_WAITs with and without TCP timestamps: what ephmon says before, and how many connections the kernel then gives.

The kernel shows timestamps of live connections alone. So the number is certain where one lives that tells, and else the
bounds hold.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from ephmon.model.pools.kinds import PoolKind
from tests import sockets
from tests.kernel_truth.differences import let_time_waits_grow_old
from tests.kernel_truth.experiment import HERE, LOW
from tests.kernel_truth.mixes import fresh_namespace, read_with_probe
from tests.kernel_truth.prediction import pool_in
from tests.namespaces import Namespace, connect
from tests.sockets import Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ephmon.model.pools.kinds import Pool

SIZE, LEFT, LIVE, PORT = 60, 40, 3, 80
V6 = "::1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """TIME_WAITs on loopback, and what is said of them."""

    address: str = HERE
    before: int = 1
    """net.ipv4.tcp_timestamps while the connections are made."""
    after: int = 1
    """The same when their TIME_WAITs are looked at."""
    live_before: int = 0
    """Connections made at first that stay open."""
    live_after: int = 0
    """The same of those made at last."""
    md5: bool = False
    exact: bool
    gives_back: bool
    """Whether the kernel reuses the TIME_WAITs."""


CASES = {
    "nothing lives": Case(exact=False, gives_back=True),
    "one lives": Case(live_before=LIVE, exact=True, gives_back=True),
    "IPv6": Case(address=V6, live_before=LIVE, exact=True, gives_back=True),
    "off": Case(before=0, after=0, live_before=LIVE, exact=False, gives_back=False),
    "switched off": Case(after=0, exact=False, gives_back=True),
    "switched off while one lives": Case(after=0, live_before=LIVE, live_after=LIVE, exact=False, gives_back=True),
    "switched on": Case(before=0, exact=False, gives_back=False),
    "switched on while one lives": Case(before=0, live_before=LIVE, exact=True, gives_back=False),
    "switched on between": Case(before=0, live_before=LIVE, live_after=LIVE, exact=False, gives_back=False),
    "TCP-MD5": Case(md5=True, exact=False, gives_back=False),
    "TCP-MD5 lives": Case(md5=True, live_before=LIVE, exact=True, gives_back=False),
}


def predict(source: str, destination: str) -> Pool:
    """Return what is said once the kernel has been asked about ports in doubt, too."""
    return pool_in(read_with_probe(), PoolKind.TCP_CONNECT, source, (destination, PORT))


def fill_after(case: Case) -> tuple[Pool, int, str]:
    """Return what is predicted of a case, how many connections the kernel then gives, and how the next one fails."""
    fresh_namespace()
    write = sockets.write_sysctl
    write("net.ipv4.ip_local_port_range", f"{LOW} {LOW + SIZE - 1}")
    write("net.ipv4.tcp_tw_reuse", 1)
    write("net.ipv4.tcp_rfc1337", 1)
    write("net.ipv4.tcp_timestamps", case.before)
    signed = case.address if case.md5 else ""
    server = Recipe(md5_with=signed, bind=(case.address, PORT), listen=SIZE)
    client = Recipe(md5_with=signed, connect=(case.address, PORT))
    assert sockets.open_sockets(server, tag="server", limit=1).count == 1
    _open(client, case.live_before, "live")
    _open(client, LEFT, "leaving")
    sockets.close("leaving")
    sockets.close("accepted leaving")
    let_time_waits_grow_old()
    write("net.ipv4.tcp_timestamps", case.after)
    _open(client, case.live_after, "live later")
    pool = predict(case.address, case.address)
    filled = sockets.open_sockets(client, tag="fill", limit=sockets.ALL_PORTS)
    return pool, filled.count, errno.errorcode[filled.errno]


def _open(client: Recipe, number: int, tag: str) -> None:
    """Open so many connections and accept them."""
    assert sockets.open_sockets(client, tag=tag, limit=number).count == number
    assert sockets.accept_all("server", tag=f"accepted {tag}") == number


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_bounds_hold_and_a_live_connection_makes_them_exact(agent: Namespace, case: Case) -> None:
    pool, gives, failure = agent.call(fill_after, case)

    assert failure == "EADDRNOTAVAIL"
    assert pool.remaining_min <= gives <= pool.remaining_max
    assert pool.exact is case.exact
    assert not pool.exact or pool.remaining == gives


@pytest.fixture(name="hosts")
def _hosts() -> Iterator[tuple[Namespace, Namespace]]:
    with Namespace() as client, Namespace(beside=client) as server:
        connect(client, server, addresses=("10.9.0.1/24", "10.9.0.2/24"))
        client.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", f"{LOW} {LOW + SIZE - 1}")
        client.call(sockets.write_sysctl, "net.ipv4.tcp_tw_reuse", 1)
        client.call(sockets.write_sysctl, "net.ipv4.tcp_rfc1337", 1)
        yield client, server


@pytest.mark.parametrize("live", [0, LIVE], ids=["nothing lives", "one lives"])
@pytest.mark.parametrize("timestamps", [0, 1], ids=["a peer without", "a peer with"])
def test_a_peer_on_another_host(hosts: tuple[Namespace, Namespace], timestamps: int, live: int) -> None:
    here, there = hosts
    there.call(sockets.write_sysctl, "net.ipv4.tcp_timestamps", timestamps)
    there.call(sockets.listen, "10.9.0.2", PORT, tag="server")
    recipe = Recipe(connect=("10.9.0.2", PORT))
    for tag, number in (("live", live), ("leaving", LEFT)):
        assert here.call(sockets.open_sockets, recipe, tag=tag, limit=number).count == number
        there.call(sockets.accept_all, "server", tag=f"accepted {tag}")
    here.call(sockets.close, "leaving")
    there.call(sockets.close, "accepted leaving")
    here.call(let_time_waits_grow_old)
    pool = here.call(predict, "10.9.0.1", "10.9.0.2")
    gives = here.call(sockets.open_sockets, recipe, tag="fill", limit=sockets.ALL_PORTS).count

    free = SIZE - LEFT - live
    assert gives == (free + LEFT if timestamps else free)
    assert (pool.remaining_min, pool.remaining_max) == ((gives, gives) if live else (free, SIZE))
    assert pool.exact is bool(live)
    assert pool.peer_timestamps is (bool(timestamps) if live else None)
