"""Experiments on tcp_bind, on the two families, and on UDP: rows 22 to 28 and 42 to 54 of the table."""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import TYPE_CHECKING

from ephmon.model.pools.kinds import PoolKind
from tests import sockets
from tests.kernel_truth.experiment import (
    ANY_V4,
    ANY_V6,
    ELSEWHERE,
    FIRST_NAMED,
    HERE,
    LOW,
    MAPPED,
    OTHER_PORT,
    PORT,
    PORTS,
    THERE,
    V6,
    Draw,
    Experiment,
    aborted,
    bind,
    by_others,
    connect,
    experiment,
    opened,
    opened_side_by_side,
    same_ports_drawn,
    udp_connect,
    udp_send,
    without_limit,
)
from tests.sockets import Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator

THIRD = "127.0.0.3"
TO_OTHER_PORT = (HERE, OTHER_PORT)
V6ONLY, DUAL_STACK = Recipe(v6only=True), Recipe(v6only=False)
UDP = Recipe(udp=True)


def bound_to_any_port() -> Iterator[Experiment]:
    """Yield bind(address, 0): a pool for each address, whatever the sockets are connected to."""
    yield experiment("22", "bind to any port", bind(PORTS))
    yield experiment(
        "23",
        "another address has the range, the others nothing",
        bind(PORTS),
        bind(PORTS, THERE),
        bind(0, ANY_V4),
        connect(0),
        connect(0, source=THIRD),
    )
    connected = Recipe(connect=(HERE, PORT))
    yield experiment(
        "24",
        "connected",
        bind(PORTS, recipe=connected),
        bind(0, recipe=Recipe(connect=TO_OTHER_PORT)),
        bind(PORTS, ELSEWHERE, connected),
    )
    clients = opened(500, Recipe(connect=(HERE, PORT)))
    for source, gives in ((HERE, 500), (ELSEWHERE, PORTS), (ANY_V4, 500)):
        yield experiment("25", f"bind to {source} beside connections of {HERE}", clients, bind(gives, source))


def bound_beside_listeners() -> Iterator[Experiment]:
    """Yield one experiment: listeners take a port from every address that they overlap with."""

    def listening(address: str, first: int, *, v6only: bool | None = None) -> Recipe:
        return Recipe(bind=(address, first), v6only=v6only, listen=1)

    yield experiment(
        "26",
        "listeners",
        opened_side_by_side(10, listening(ELSEWHERE, FIRST_NAMED)),
        bind(PORTS),
        aborted(),
        opened_side_by_side(10, listening(ANY_V4, FIRST_NAMED + 20)),
        bind(PORTS - 10),
        aborted(),
        opened_side_by_side(10, listening(ANY_V6, FIRST_NAMED + 40, v6only=True)),
        bind(PORTS - 10),
        aborted(),
        opened_side_by_side(10, listening(ANY_V6, FIRST_NAMED + 60, v6only=False)),
        bind(PORTS - 20),
    )


def connect_those_that_share() -> None:
    """Connect what was drawn to one destination: each port serves once, and connect() says no more than that."""
    ports: set[int] = set()
    for ours in sockets.held["drawn"]:
        port = ours.getsockname()[1]
        assert ours.connect_ex((HERE, PORT)) == (errno.EADDRNOTAVAIL if port in ports else 0)
        ports.add(port)


def bound_with_options() -> Iterator[Experiment]:
    """Yield socket options: none gives bind(address, 0) more ports but ip_autobind_reuse with SO_REUSEADDR."""
    reusing = Recipe(reuse_address=True)
    yield experiment("27", "SO_REUSEADDR", bind(PORTS, recipe=reusing))
    sharing = without_limit(bind(PORTS, recipe=reusing))
    yield experiment("27", "ip_autobind_reuse", sharing, connect_those_that_share, ip_autobind_reuse=1)
    yield experiment("28", "SO_REUSEPORT", bind(PORTS, recipe=Recipe(reuse_port=True)))
    yield experiment("28", "IP_BIND_ADDRESS_NO_PORT", without_limit(bind(PORTS, recipe=Recipe(no_port=True))))


def families() -> Iterator[Experiment]:
    """Yield IPv4, IPv6 and IPv4-mapped sockets side by side: one range, the same blocked ports, own tuples."""
    yield experiment("42", "mapped", opened(400, Recipe(connect=(HERE, PORT))), connect(600, MAPPED))
    yield experiment("43", "IPv6", connect(PORTS), connect(PORTS, V6), same_ports_drawn(2))
    yield experiment("44", "bound to IPv6", opened(100, Recipe(bind=(V6, 0))), connect(900))
    yield experiment("45", "bind in both families", bind(PORTS), bind(PORTS, V6))
    yield experiment("45", "bind mapped", bind(PORTS), bind(0, MAPPED))
    yield experiment("45", "bind V6ONLY", bind(PORTS), by_others(bind(PORTS, ANY_V6, V6ONLY), says=0))
    yield experiment("45", "bind dual-stack", bind(PORTS), bind(0, ANY_V6, DUAL_STACK))
    small = f"{LOW} {LOW + 299}"
    connected = opened(100, Recipe(connect=(V6, PORT)))
    yield experiment("46", "beside IPv6 connections", connected, bind(200, ANY_V4), ip_local_port_range=small)
    # bind() to an IPv6 address makes a socket IPV6_V6ONLY, which is not shown of connected ones.
    bound = opened(100, Recipe(bind=(V6, 0), connect=(V6, PORT)))
    beside = replace(bind(300, ANY_V4), says=200)
    yield experiment("46", "beside bound IPv6 connections", bound, beside, ip_local_port_range=small)


def udp() -> Iterator[Experiment]:
    """Yield UDP sockets: a port without an address of its own conflicts with all, and TCP does not matter."""
    yield experiment(
        "47",
        "UDP connect",
        udp_connect(PORTS),
        udp_connect(0, port=10),
        udp_connect(0, THERE),
        udp_send(0),
    )
    yield experiment(
        "48",
        "UDP bind beside connections",
        udp_connect(PORTS),
        bind(0, HERE, UDP),
        bind(PORTS, THERE, UDP),
        replace(bind(PORTS, THIRD, replace(UDP, no_port=True, connect=(HERE, 9))), failure="EAGAIN"),
    )
    yield experiment("49", "UDP sendto", udp_send(PORTS), bind(0, HERE, UDP))
    yield experiment("50", "beside UDP bind", opened(300, replace(UDP, bind=(ELSEWHERE, 0))), udp_connect(700))
    yield experiment("51", "UDP with 50 reserved", udp_connect(950), ip_local_reserved_ports="40000-40048,40999,50000")
    listeners = opened_side_by_side(10, Recipe(bind=(HERE, FIRST_NAMED), listen=1))
    yield experiment("51", "UDP beside TCP listeners", listeners, udp_connect(PORTS))
    own_range = udp_connect(100, recipe=Recipe(port_range=(LOW + 100, LOW + 199)))
    yield experiment("51", "UDP with a range of its own", by_others(own_range, says=PORTS))
    for size in (101, 3):
        small = f"{LOW} {LOW + size - 1}"
        yield experiment("51", f"UDP in {size} ports", udp_connect(size), ip_local_port_range=small)


def udp_that_shares() -> Iterator[Experiment]:
    """Yield UDP sockets that share ports, as both sides must want."""
    for title, recipe in (("SO_REUSEADDR", Recipe(reuse_address=True)), ("SO_REUSEPORT", Recipe(reuse_port=True))):
        yield experiment("52", f"UDP with {title}", without_limit(udp_connect(PORTS, recipe=recipe)))
    newcomer = udp_connect(0, recipe=Recipe(reuse_address=True))
    yield experiment("52", "UDP with SO_REUSEADDR beside plain", udp_connect(PORTS), newcomer)


def udp_families() -> Iterator[Experiment]:
    """Yield UDP sockets of both families; that a connected one is IPV6_V6ONLY is not shown."""
    yield experiment("53", "UDP dual-stack then IPv4", udp_connect(PORTS, V6), udp_connect(0))
    v6only = udp_connect(PORTS, V6, recipe=V6ONLY)
    yield experiment("53", "UDP V6ONLY then IPv4", v6only, replace(udp_connect(PORTS), says=0))
    yield experiment("53", "UDP IPv4 then dual-stack", udp_connect(PORTS), udp_connect(0, V6))
    yield experiment("53", "UDP IPv4 then V6ONLY", udp_connect(PORTS), by_others(v6only, says=0))


LISTENING = Draw(kind=PoolKind.TCP_BIND, source=ANY_V4, recipe=Recipe(listen=1), gives=10)

ROWS: list[Experiment] = [
    *bound_to_any_port(),
    *bound_beside_listeners(),
    *bound_with_options(),
    *families(),
    *udp(),
    *udp_that_shares(),
    *udp_families(),
    experiment("54", "listen without bind", LISTENING, ip_local_port_range=f"{LOW} {LOW + 9}"),
]
