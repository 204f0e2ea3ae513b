"""TCP sockets of a VRF have their ports apart: the bounds allow for that, and nothing is called exact.

Many kernels are built without VRFs. Those that `script/emulate` boots have them: tests/emulated/init.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest

from ephmon.facts.sockets import Blindness
from ephmon.model.pools.kinds import PoolKind
from tests import sockets
from tests.kernel_truth.experiment import HERE, LOW
from tests.kernel_truth.mixes import fresh_namespace, read_with_probe
from tests.kernel_truth.prediction import pool_in
from tests.namespaces import Namespace, ip
from tests.sockets import Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ephmon.model.pools.kinds import Pool

SIZE, HELD, PORT = 40, 10, 80
VRF, INSIDE = "red", "10.66.0.1"
ANY = "0.0.0.0"
OF_VRF = Recipe(device=VRF, connect=(INSIDE, PORT))
OUTSIDE = Recipe(connect=(HERE, PORT))
LISTENER = Recipe(device=VRF, bind=(ANY, 0), listen=1)


class Case(NamedTuple):
    """Sockets of the VRF, and the ones that then want ports."""

    holder: Recipe
    newcomer: Recipe
    kind: PoolKind
    source: str
    gives: int


CASES = {
    "listeners and connect outside": Case(LISTENER, OUTSIDE, PoolKind.TCP_CONNECT, HERE, SIZE),
    "listeners and connect inside": Case(LISTENER, OF_VRF, PoolKind.TCP_CONNECT, INSIDE, SIZE - HELD),
    "connections and connect outside": Case(OF_VRF, OUTSIDE, PoolKind.TCP_CONNECT, HERE, SIZE),
    "connections and connect inside": Case(OF_VRF, OF_VRF, PoolKind.TCP_CONNECT, INSIDE, SIZE - HELD),
    "listeners and bind outside": Case(LISTENER, Recipe(bind=(ANY, 0)), PoolKind.TCP_BIND, ANY, SIZE),
}


@pytest.fixture(name="agent", scope="module")
def _agent() -> Iterator[Namespace]:
    with Namespace() as agent:
        yield agent


def make_vrf() -> None:
    """Make a VRF in a namespace of its own."""
    fresh_namespace()
    ip("link", "add", VRF, "type", "vrf", "table", "10")
    ip("link", "set", VRF, "up")
    ip("address", "add", f"{INSIDE}/32", "dev", VRF)


def open_holders(case: Case) -> None:
    """Open servers and the sockets that hold ports already."""
    sockets.write_sysctl("net.ipv4.ip_local_port_range", f"{LOW} {LOW + SIZE - 1}")
    for server in (Recipe(bind=(HERE, PORT), listen=SIZE), Recipe(device=VRF, bind=(INSIDE, PORT), listen=SIZE)):
        assert sockets.open_sockets(server, tag="server", limit=1).count == 1
    assert sockets.open_sockets(case.holder, tag="holder", limit=HELD).count == HELD


def draw(case: Case) -> tuple[Pool, bool, int]:
    """Return what is said beside the sockets of the VRF, whether VRFs are named, and what the kernel gives."""
    make_vrf()
    open_holders(case)
    one = read_with_probe()
    destination = case.newcomer.connect if case.kind is PoolKind.TCP_CONNECT else None
    pool = pool_in(one, case.kind, case.source, destination)
    assert one.namespace.tcp is not None
    filled = sockets.open_sockets(case.newcomer, tag="fill", limit=sockets.ALL_PORTS)
    return pool, Blindness.VRF in one.namespace.tcp.blind_to, filled.count


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_bounds_allow_for_vrfs_and_nothing_is_exact(agent: Namespace, case: Case) -> None:
    pool, is_named, gives = agent.call(draw, case)

    assert gives == case.gives
    assert pool.remaining_min <= gives <= pool.remaining_max
    assert (is_named, pool.exact) == (True, False)
