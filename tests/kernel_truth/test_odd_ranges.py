"""Ranges of odd size: the search passes over the first or the last port. Nothing is lost where neither can be had."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ephmon.model.pools.kinds import PoolKind
from tests import sockets
from tests.kernel_truth.experiment import HERE, LOW
from tests.kernel_truth.mixes import fresh_namespace, read_with_probe
from tests.kernel_truth.prediction import pool_in
from tests.sockets import Recipe

if TYPE_CHECKING:
    from ephmon.model.pools.kinds import Pool
    from tests.namespaces import Namespace

SIZE, PORT, TIMES = 9, 80, 40
HIGH = LOW + SIZE - 1
ENDS = (LOW, HIGH)
HOLDERS = {
    "nobody": None,
    "the pool": Recipe(connect=(HERE, PORT)),
    "listeners": Recipe(bind=(HERE, 0), listen=1),
    "bound sockets": Recipe(bind=("127.0.0.9", 0)),
}


def fills(holder: Recipe | None, wanted: Recipe, kind: PoolKind) -> tuple[Pool, list[int]]:
    """Return what is said while a holder has the ends of the range, and how many sockets each of many fills gets."""
    fresh_namespace()
    sockets.write_sysctl("net.ipv4.ip_local_port_range", f"{LOW} {HIGH}")
    sockets.listen(HERE, PORT, tag="server", backlog=4096)
    for port in ENDS if holder else ():
        # Limited to one port, the socket gets it as any other does.
        assert holder is not None
        one = Recipe(port_range=(port, port), bind=holder.bind, connect=holder.connect, listen=holder.listen)
        assert sockets.open_sockets(one, tag="holder", limit=1).count == 1
    destination = wanted.connect if kind is PoolKind.TCP_CONNECT else None
    pool = pool_in(read_with_probe(), kind, HERE, destination)
    counts = []
    for _ in range(TIMES):
        counts.append(sockets.open_sockets(wanted, tag="fill", limit=sockets.ALL_PORTS).count)
        sockets.abort("fill")
    return pool, counts


@pytest.mark.parametrize("holder", HOLDERS.values(), ids=HOLDERS)
def test_connect_loses_one_only_while_an_end_can_be_had(agent: Namespace, holder: Recipe | None) -> None:
    pool, counts = agent.call_within(60.0, fills, holder, Recipe(connect=(HERE, PORT)), PoolKind.TCP_CONNECT)

    check(pool, counts, ends_are_held=holder is not None)


@pytest.mark.parametrize("holder", [None, Recipe(bind=(HERE, 0), listen=1)], ids=["nobody", "listeners"])
def test_bind_loses_one_only_while_an_end_can_be_had(agent: Namespace, holder: Recipe | None) -> None:
    pool, counts = agent.call_within(60.0, fills, holder, Recipe(bind=(HERE, 0)), PoolKind.TCP_BIND)

    check(pool, counts, ends_are_held=holder is not None)


def check(pool: Pool, counts: list[int], *, ends_are_held: bool) -> None:
    assert pool.remaining_max == max(counts)
    if ends_are_held:
        assert set(counts) == {SIZE - len(ENDS)}
        assert pool.remaining_min == SIZE - len(ENDS)
    else:
        assert set(counts) == {SIZE - 1, SIZE}
        assert (pool.remaining_min, pool.exact) == (SIZE - 1, False)
