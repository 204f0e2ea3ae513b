"""Experiments on what TIME_WAIT leaves to tcp_connect and tcp_bind: rows 29 to 41 of the table, but for 30."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from tests import sockets
from tests.kernel_truth.differences import HAS_REUSE_DELAY, set_reuse_delay
from tests.kernel_truth.experiment import (
    HERE,
    LOW,
    PORT,
    PORTS,
    V6,
    Experiment,
    bind,
    closed,
    connect,
    experiment,
    first_taken_when_said_to_be_reusable,
    in_doubt,
    left_in_time_wait,
    opened,
    write,
)
from tests.kernel_truth.mixes import OWN
from tests.sockets import Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator

CONNECTED = Recipe(connect=(HERE, PORT))
REUSE = (0, 1, 2)
"""The values of tcp_tw_reuse: never, always, on loopback."""
BY_LOOPBACK = dict(zip(REUSE, (0, PORTS, PORTS), strict=True))
BY_OTHERS = dict(zip(REUSE, (0, PORTS, 0), strict=True))


def reuse() -> Iterator[Experiment]:
    """Yield a range full of TIME_WAITs, and what tcp_tw_reuse makes of it toward several destinations."""
    full, full_v6 = left_in_time_wait(PORTS, CONNECTED), left_in_time_wait(PORTS, Recipe(connect=(V6, PORT)))
    for value, gives in BY_LOOPBACK.items():
        yield experiment("29", f"tcp_tw_reuse {value}", full, connect(gives), tcp_tw_reuse=value)
        yield experiment("31", f"IPv6 tcp_tw_reuse {value}", full_v6, connect(gives, V6), tcp_tw_reuse=value)
    own = left_in_time_wait(PORTS, Recipe(connect=(OWN, PORT)))
    for value, gives in BY_OTHERS.items():
        title = f"own address not of 127 tcp_tw_reuse {value}"
        yield experiment("34", title, own, connect(gives, OWN), tcp_tw_reuse=value)
    on_lo = Recipe(device="lo")
    of_lo = left_in_time_wait(PORTS, replace(on_lo, connect=(OWN, PORT)))
    yield experiment("34", "own address on device lo", of_lo, connect(PORTS, OWN, recipe=on_lo), tcp_tw_reuse=2)
    some = left_in_time_wait(400, CONNECTED)
    yield experiment("35", "400 and never", some, connect(600), tcp_tw_reuse=0)
    yield experiment("35", "400 on loopback", some, connect(PORTS), tcp_tw_reuse=2)


def never_reused() -> Iterator[Experiment]:
    """Yield what is not reused although tcp_tw_reuse says so: no timestamps, FIN_WAIT2, and for bind() none at all."""
    full = left_in_time_wait(PORTS, CONNECTED)
    yield experiment("32", "no timestamps", full, connect(0), tcp_tw_reuse=1, tcp_timestamps=0)
    orphans = (opened(PORTS, CONNECTED, "leaving"), closed("leaving"), partial(set_reuse_delay, 1))
    yield experiment("38", "FIN_WAIT2", *orphans, connect(0), tcp_tw_reuse=1)
    for title, recipe in (("", Recipe()), (" with SO_REUSEADDR", Recipe(reuse_address=True))):
        some = left_in_time_wait(400, CONNECTED)
        yield experiment("36", f"bind{title}", some, bind(600, recipe=recipe), tcp_tw_reuse=1)


def by_origin() -> Iterator[Experiment]:
    """Yield TIME_WAITs of sockets bound first: where bind() took the port it stays blocked."""
    any_port = replace(CONNECTED, bind=(HERE, 0))
    # The estimate goes by the order in which ports are taken, which tells nothing once the range is full.
    of_bind = left_in_time_wait(400, any_port)
    yield experiment("37", "of bind", of_bind, in_doubt(connect(600)), tcp_tw_reuse=1)
    no_port = replace(any_port, no_port=True)
    of_no_port = left_in_time_wait(400, no_port)
    yield experiment("37", "of IP_BIND_ADDRESS_NO_PORT", of_no_port, connect(PORTS), tcp_tw_reuse=1)


def by_age() -> Iterator[Experiment]:
    """Yield the age from which a TIME_WAIT may be reused, which is fixed before Linux 6.14."""
    full = left_in_time_wait(PORTS, CONNECTED)
    if HAS_REUSE_DELAY:
        too_young = write("tcp_tw_reuse_delay", 60_000)
        yield experiment("33", "younger than the delay", full, too_young, connect(0), tcp_tw_reuse=1)
    # In a range of few ports, so that there is no time for them to grow old meanwhile.
    small, few = f"{LOW} {LOW + 9}", left_in_time_wait(10, CONNECTED)
    steps = (few, partial(set_reuse_delay, 300), first_taken_when_said_to_be_reusable(10), connect(9))
    yield experiment("33", "just old enough", *steps, tcp_tw_reuse=1, ip_local_port_range=small)


def take_time_waits_over(number: int) -> None:
    """Leave so many TIME_WAITs and connect anew at once from the same ports, which are named in bind()."""
    sharing = replace(CONNECTED, reuse_address=True)
    sockets.open_sockets(sharing, tag="leaving", limit=number)
    ports = sockets.ports_of("leaving")
    sockets.accept_all("server", tag="left")
    sockets.close("leaving")
    sockets.close("left")
    for port in ports:
        again = sockets.open_sockets(replace(sharing, bind=(HERE, port)), tag="again", limit=1)
        assert again.count == 1, again


ROWS: list[Experiment] = [
    *reuse(),
    *never_reused(),
    *by_age(),
    *by_origin(),
    experiment("39", "taken over", partial(take_time_waits_over, 50), connect(PORTS - 50), tcp_tw_reuse=0),
    experiment(
        "40",
        "tcp_max_tw_buckets 100",
        left_in_time_wait(PORTS, CONNECTED),
        connect(PORTS - 100),
        tcp_max_tw_buckets=100,
        tcp_tw_reuse=0,
    ),
    # Without tcp_rfc1337 a late segment may end a TIME_WAIT early: how many are left is luck, and seen.
    experiment(
        "41",
        "without tcp_rfc1337",
        left_in_time_wait(PORTS, CONNECTED),
        connect(None),
        tcp_rfc1337=0,
        tcp_tw_reuse=0,
    ),
]
