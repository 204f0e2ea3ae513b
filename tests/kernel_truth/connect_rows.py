"""Experiments on tcp_connect and on what blocks ports for it: rows 1 to 21 of the table, but for 3 and 19."""

from __future__ import annotations

import errno
import socket
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from tests.kernel_truth.differences import OWN_RANGE_IS_SEARCHED_WHOLE, PORTS_RECOVER
from tests.kernel_truth.experiment import (
    ANY_V4,
    ANY_V6,
    ELSEWHERE,
    FIRST_NAMED,
    HERE,
    HIGH,
    LOW,
    OTHER_PORT,
    PORT,
    PORTS,
    THERE,
    V6,
    Draw,
    Experiment,
    aborted,
    accepted_side_by_side,
    by_others,
    closed,
    connect,
    experiment,
    in_doubt,
    opened,
    opened_on_ports_of,
    opened_side_by_side,
    same_ports_drawn,
    write,
)
from tests.sockets import Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator

TO_OTHER_PORT = (HERE, OTHER_PORT)
WIDE_PORT = 8080
"""Of a server at every address."""
FILLS = 8
"""About one fill in eight of a range of odd size loses a port."""


def fail_to_connect(number: int) -> None:
    """Connect so often to a port that nobody listens on."""
    for _ in range(number):
        with socket.socket() as ours:
            assert ours.connect_ex((HERE, 9)) == errno.ECONNREFUSED


def odd_and_small_ranges() -> Iterator[Experiment]:
    """Yield ranges in which the search by parity loses a port: one of odd size, but for a range of one port."""
    server = opened(1, Recipe(bind=(ANY_V4, WIDE_PORT), listen=4096), "server")
    fills = [replace(connect(101, f"127.0.1.{one}", WIDE_PORT), or_fewer=1) for one in range(1, FILLS + 1)]
    yield experiment("5", "101 ports", server, *fills, ip_local_port_range=f"{LOW} {LOW + 100}")
    yield experiment("6", "1 port", connect(1), ip_local_port_range=f"{LOW} {LOW}")
    yield experiment("6", "2 ports", connect(2), ip_local_port_range=f"{LOW} {LOW + 1}")
    yield experiment("6", "3 ports", replace(connect(2), says=3), ip_local_port_range=f"{LOW} {LOW + 2}")


def listeners_in_the_range() -> Iterator[Experiment]:
    """Yield listening sockets: each blocks its port, whatever its address, family and options."""
    named = Recipe(bind=(HERE, FIRST_NAMED), listen=1)
    recipes = {
        "the same address": named,
        "another address": replace(named, bind=(ELSEWHERE, FIRST_NAMED)),
        "every address": replace(named, bind=(ANY_V4, FIRST_NAMED)),
        "SO_REUSEADDR and SO_REUSEPORT": replace(named, reuse_address=True, reuse_port=True),
        "the IPv6 wildcard of both families": replace(named, bind=(ANY_V6, FIRST_NAMED), v6only=False),
    }
    for title, recipe in recipes.items():
        yield experiment("7", f"listeners at {title}", opened_side_by_side(10, recipe), connect(PORTS - 10))
    for address in (V6, ANY_V6):
        v6only = replace(named, bind=(address, FIRST_NAMED), v6only=True)
        yield experiment("8", f"V6ONLY listeners at {address}", opened_side_by_side(10, v6only), connect(PORTS - 10))


def bound_sockets() -> Iterator[Experiment]:
    """Yield sockets that bind() gave an address: those that have a port block it, connected or not."""
    named = Recipe(bind=(ELSEWHERE, FIRST_NAMED))
    for title, recipe in {
        "a port": named,
        "a port with SO_REUSEADDR": replace(named, reuse_address=True),
        "a port with SO_REUSEPORT": replace(named, reuse_port=True),
    }.items():
        yield experiment("9", f"bound to {title}", opened_side_by_side(10, recipe), connect(PORTS - 10))
    for title, recipe in {
        "any port": Recipe(bind=(ELSEWHERE, 0)),
        "any port of every address": Recipe(bind=(ANY_V4, 0), reuse_address=True),
    }.items():
        yield experiment("10", f"bound to {title}", opened(10, recipe), connect(PORTS - 10))
    no_port = Recipe(bind=(ELSEWHERE, 0), no_port=True)
    yield experiment("11", "an address but no port", opened(10, no_port), connect(PORTS))
    connected = replace(no_port, connect=TO_OTHER_PORT)
    yield experiment("11", "a port from connect()", opened(10, connected), connect(PORTS))
    named_connected = Recipe(bind=(HERE, FIRST_NAMED), connect=TO_OTHER_PORT)
    yield experiment(
        "12", "a named port and connected", opened_side_by_side(10, named_connected), connect_past_named(10)
    )
    any_connected = Recipe(bind=(HERE, 0), connect=TO_OTHER_PORT)
    yield experiment("12", "any port and connected", opened(10, any_connected), in_doubt(connect(PORTS - 10)))


def accepted_sockets() -> Iterator[Experiment]:
    """Yield accepted sockets: they block their port when the listener is gone, and in TIME_WAIT too.

    That they were accepted cannot be seen then.
    """
    only_accepted = (accepted_side_by_side(10), closed("listeners"))
    only_time_wait = (closed("accepted"), closed("clients"))
    draw = in_doubt(connect(PORTS - 10))
    yield experiment("13", "accepted", *only_accepted, draw)
    yield experiment("13", "TIME_WAIT of accepted", *only_accepted, *only_time_wait, draw)


def connect_past_named(blocked: int) -> Draw:
    """Return a draw beside connected sockets that named their ports, of which so many block connect().

    Since Linux 6.18 that a connected socket named its port does not prove that it blocks it.
    """
    draw = connect(PORTS - blocked)
    return in_doubt(draw) if PORTS_RECOVER else draw


def past_binders() -> Iterator[Experiment]:
    """Yield ports shared with a socket that was bound to them: it blocks them as long as it lives, but for one case.

    Before Linux 6.18 they stay blocked, which cannot be seen. Since then a socket that bound the wildcard and was then
    connected, beside a client with the same local address, blocks its port only until any socket leaves that port.
    """
    named = Recipe(bind=(ELSEWHERE, FIRST_NAMED), connect=TO_OTHER_PORT)
    shared = (opened(10, Recipe(connect=TO_OTHER_PORT), "clients"), opened_on_ports_of("clients", named, "binders"))
    later = connect(10) if PORTS_RECOVER else in_doubt(connect(0))
    yield experiment("15", "a binder", *shared, connect_past_named(10), aborted("binders"), later)
    wildcard = Recipe(bind=(ANY_V4, FIRST_NAMED), reuse_address=True, connect=(THERE, PORT))
    beside = (
        opened(10, Recipe(reuse_address=True, connect=TO_OTHER_PORT), "clients"),
        opened_on_ports_of("clients", wildcard, "wildcards"),
    )
    stops = 10 if PORTS_RECOVER else 0
    yield experiment(
        "15",
        "a wildcard binder beside a client at its address, which then leaves",
        *beside,
        connect_past_named(10),
        aborted(),
        aborted("clients"),
        connect_past_named(10 - stops),
    )


def ranges_of_their_own() -> Iterator[Experiment]:
    """Yield sockets with IP_LOCAL_PORT_RANGE: their range counts as far as it lies inside that of the namespace."""
    for title, own, gives in (
        ("100 ports", (LOW + 100, LOW + 199), 100),
        ("that starts too low", (LOW - 100, LOW + 99), 100),
        ("outside", (LOW - 20_000, LOW - 19_000), PORTS),
        ("with an upper end alone", (0, LOW + 49), 50),
        ("101 ports", (LOW + 100, LOW + 200), 101),
    ):
        draw: Draw = by_others(connect(gives, recipe=Recipe(port_range=own)), says=PORTS)
        if gives % 2 and not OWN_RANGE_IS_SEARCHED_WHOLE:
            draw = replace(draw, or_fewer=1)
        yield experiment("17", f"a range of its own, {title}", draw)


def sockets_on_a_device() -> Iterator[Experiment]:
    """Yield sockets bound to a device: they do not stop one that is not, but are stopped by it.

    Nobody waits for the handshakes: the server cannot tell sockets apart that have the same addresses and ports.
    """
    on_lo, unbound = connect(PORTS, recipe=Recipe(device="lo", wait=False)), connect(PORTS, recipe=Recipe(wait=False))
    yield experiment("20", "a device, then none", on_lo, replace(unbound, says=0))
    yield experiment("20", "no device, then one", unbound, replace(on_lo, gives=0))


ROWS: list[Experiment] = [
    experiment("1", "an empty range", connect(PORTS)),
    experiment(
        "2",
        "one range for each destination and source",
        connect(PORTS),
        connect(PORTS, port=OTHER_PORT),
        connect(PORTS, THERE),
        connect(PORTS, source=ELSEWHERE),
        same_ports_drawn(4),
    ),
    experiment("4", "50 reserved", connect(950), ip_local_reserved_ports="40000-40048,40999,50000"),
    *odd_and_small_ranges(),
    *listeners_in_the_range(),
    *bound_sockets(),
    *accepted_sockets(),
    experiment("14", "UDP sockets", opened(10, Recipe(udp=True, bind=(HERE, 0))), connect(PORTS)),
    *past_binders(),
    experiment("16", "SO_REUSEADDR", connect(PORTS, recipe=Recipe(reuse_address=True))),
    experiment("16", "SO_REUSEPORT", connect(PORTS, recipe=Recipe(reuse_port=True))),
    *ranges_of_their_own(),
    experiment("18", "1200 refused", partial(fail_to_connect, 1200), connect(PORTS)),
    *sockets_on_a_device(),
    experiment(
        "21",
        "the upper half of the range",
        opened(300, Recipe(connect=(HERE, PORT))),
        write("ip_local_port_range", f"{LOW + 500} {HIGH}"),
        connect(None),
    ),
]
