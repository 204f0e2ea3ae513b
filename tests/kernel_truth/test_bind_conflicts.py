"""Which sockets keep a port from bind(address, 0) and from UDP sockets: a range of one port, a holder, and a newcomer.

Every address that the kernel treats in a way of its own meets every other one, unconnected, connected and listening.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import pytest

from ephmon.model.pools.kinds import PoolKind
from tests import sockets
from tests.kernel_truth.differences import hides_sockets
from tests.kernel_truth.mixes import fresh_namespace
from tests.kernel_truth.prediction import look, pool_in
from tests.sockets import Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.namespaces import Namespace

PORT, SERVER = 40_000, 700
PLACEHOLDER = "127.0.0.6"
"""What the kernel keeps as the IPv4 address of IPv6 sockets (LOOPBACK4_IPV6, include/net/ipv6.h)."""
V4 = ("127.0.0.1", PLACEHOLDER, "0.0.0.0")
V6 = ("::1", "::", f"::ffff:{PLACEHOLDER}")
ANY_V4, ANY_V6 = "0.0.0.0", "::"


class Said(NamedTuple):
    """What was said of one newcomer, and whether it got the port."""

    what: str
    least: int
    most: int
    exact: bool
    gives: int
    hides: bool


def holders(*, udp: bool) -> Iterator[Recipe]:
    """Yield sockets that take the port."""
    for address, v6only in [*((one, None) for one in V4), *product(V6, (False, True))]:
        if v6only and address.startswith("::ffff:"):
            continue
        plain = Recipe(udp=udp, v6only=v6only, bind=(address, PORT))
        yield plain
        yield Recipe(udp=udp, v6only=v6only, bind=(address, PORT), connect=(_near(address), SERVER))
        if not udp:
            yield Recipe(v6only=v6only, bind=(address, PORT), listen=1)
    for near, v6only in (("127.0.0.1", None), ("::1", False), ("::1", True)):
        yield Recipe(udp=udp, v6only=v6only, connect=(near, SERVER))


def _near(address: str) -> str:
    if ":" not in address:
        return "127.0.0.1"
    return "::ffff:127.0.0.1" if address.startswith("::ffff:") else "::1"


def newcomers(*, udp: bool) -> Iterator[tuple[PoolKind, str, Recipe]]:
    """Yield sockets that want a port: the pool that they are of, its source, and how they are made."""
    for address in (*V4, "::1", "::", f"::ffff:{PLACEHOLDER}"):
        kind = PoolKind.UDP_BIND if udp else PoolKind.TCP_BIND
        recipe = Recipe(udp=udp, v6only=False if address == "::" else None, bind=(address, 0))
        yield kind, address.removeprefix("::ffff:"), recipe
    if udp:
        yield PoolKind.UDP_CONNECT, ANY_V4, Recipe(udp=True, connect=("127.0.0.1", SERVER))
        yield PoolKind.UDP_CONNECT, ANY_V6, Recipe(udp=True, connect=("::1", SERVER))


def meet(*, udp: bool) -> list[Said]:
    """Let every newcomer meet every holder."""
    fresh_namespace()
    for name, value in (("ip_local_port_range", f"{PORT} {PORT}"), ("tcp_max_tw_buckets", 0)):
        sockets.write_sysctl(f"net.ipv4.{name}", value)
    for address in ("127.0.0.1", "::1"):
        sockets.listen(address, SERVER, tag="server")
    said = []
    for holder in holders(udp=udp):
        assert sockets.open_sockets(holder, tag="holder", limit=1).count == 1, holder
        one = look()
        for kind, source, recipe in newcomers(udp=udp):
            pool = pool_in(one, kind, source)
            gives = sockets.open_sockets(recipe, tag="newcomer", limit=1).count
            sockets.close("newcomer")
            bounds = (pool.remaining_min, pool.remaining_max, pool.exact)
            said.append(Said(f"{kind} at {source} beside {holder}", *bounds, gives, not udp and hides_sockets(one)))
        sockets.abort("holder") if not udp else sockets.close("holder")
    return said


@pytest.mark.parametrize("udp", [False, True], ids=["TCP", "UDP"])
def test_every_newcomer_gets_what_the_bounds_allow_and_exactly_what_is_called_exact(
    agent: Namespace, *, udp: bool
) -> None:
    said = agent.call_within(60.0, meet, udp=udp)

    assert {one.gives for one in said} == {0, 1}
    assert [one for one in said if one.gives > one.most] == []
    assert [one for one in said if one.gives < one.least and not one.hides] == []
    assert [one for one in said if one.exact and one.gives not in (one.least, one.most)] == []
