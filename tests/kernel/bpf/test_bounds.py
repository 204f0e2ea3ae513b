"""What is beyond a bound of the BPF program is counted, and nothing else of a walk becomes wrong.

The bounds are those of its maps, which may be made smaller before they are loaded. `python -m benchmarks walk-bounds`
goes beyond those that are delivered.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ephmon.kernel.bpf.libbpf import Libbpf
from ephmon.kernel.bpf.load import COPYING, PROGRAM, Loaded, MappedMap
from ephmon.kernel.bpf.reader import MOST_BITMAPS, MOST_NAMESPACES, MOST_POOLS, MOST_PORTS, BindTableReader
from tests import sockets
from tests.kernel.bpf import walks
from tests.kernel_truth.mixes import fresh_namespace
from tests.namespaces import Namespace
from tests.sockets import Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

pytestmark = pytest.mark.only_root

HERE, PORT = "127.0.0.1", 80
DELIVERED = {"namespaces": MOST_NAMESPACES, "pools": MOST_POOLS, "ports": MOST_PORTS, "bitmaps": MOST_BITMAPS}
SMALLER = {"namespaces": 4, "pools": 6, "ports": 20, "bitmaps": 2}
"""Elements of the maps."""


@pytest.fixture(name="agent", scope="module")
def _agent() -> Iterator[Namespace]:
    with Namespace() as agent:
        agent.call(open_small_reader)
        yield agent


@pytest.fixture(name="ns")
def _ns(agent: Namespace) -> Namespace:
    """The agent, in a namespace that is new."""
    agent.call(fresh_namespace)
    agent.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", "40000 40099")
    agent.call(sockets.listen, HERE, PORT, tag="server")
    return agent


def open_small_reader() -> None:
    """Let the agent walk with smaller maps."""
    walks.use_reader(BindTableReader(open_program=load_small))


def load_small(maps: Mapping[str, int]) -> Loaded:
    """Load the object with `SMALLER` maps."""
    libbpf = Libbpf()
    with libbpf.open(COPYING.read_bytes()) as one, ExitStack() as kept:
        for name, entries in SMALLER.items():
            map_ = one._library.bpf_object__find_map_by_name
            map_.restype, map_.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p]
            found = ctypes.c_void_p(map_(one._pointer, name.encode()))
            assert one._library.bpf_map__set_max_entries(found, entries) == 0
        one.load()
        program = os.dup(one.program_descriptor(PROGRAM))
        kept.callback(os.close, program)
        mapped = {}
        for name, size in maps.items():
            size_of_smaller = size * SMALLER[name] // DELIVERED[name] if name in SMALLER else size
            mapped[name] = MappedMap(one.map_descriptor(name), size_of_smaller)
            kept.callback(mapped[name].close)
        return Loaded(lambda: libbpf.run(program), mapped, kept.pop_all().close, is_direct=False)


def connect_to(ns: Namespace, destinations: int, each: int) -> None:
    for number in range(destinations):
        recipe = Recipe(connect=(f"127.0.1.{number + 1}", PORT))
        ns.call(sockets.listen, f"127.0.1.{number + 1}", PORT, tag="servers")
        assert ns.call(sockets.open_sockets, recipe, tag="clients", limit=each).count == each


def test_within_the_bounds_nothing_is_lost(ns: Namespace) -> None:
    connect_to(ns, 4, 5)
    seen = ns.call(walks.walk)

    assert not any(seen.losses)
    assert [counts.held for counts in seen.pools.values()] == [5] * 4


def test_sockets_whose_pool_finds_no_room_are_counted(ns: Namespace) -> None:
    """Ports are counted all the same."""
    connect_to(ns, 9, 2)
    seen = ns.call(walks.walk)

    kept = sum(counts.held for counts in seen.pools.values())
    assert kept < 18 <= kept + seen.losses.pools
    assert (seen.sockets, seen.ports_in_use, seen.blocked) == (18, len(seen.flags), 0)
    assert seen.losses._replace(pools=0) == (0,) * 7


def test_ports_that_find_no_room_in_the_list_are_counted_and_in_every_number(ns: Namespace) -> None:
    connect_to(ns, 1, 50)
    seen = ns.call(walks.walk)

    assert (len(seen.flags), seen.losses.ports) == (20, 30)
    assert (seen.ports_in_use, seen.sockets) == (50, 50)
    assert [counts.held for counts in seen.pools.values()] == [50]


def test_namespaces_that_find_no_room_are_counted_and_the_own_one_never_is_one(ns: Namespace) -> None:
    ns.call(walks.make_namespaces, 6, is_reserving=False)
    own = Path(f"/proc/{ns.pid}/ns/net").stat().st_ino
    seen = ns.call(walks.walk_every_namespace)

    assert own in {one.inode for one in seen}
    assert len(seen) == 4
    assert seen[0].losses.namespaces >= 6 + 1 - 4


def test_namespaces_whose_reserved_ports_find_no_room_are_left_out(ns: Namespace) -> None:
    inodes = ns.call(walks.make_namespaces, 3, is_reserving=True)
    seen = ns.call(walks.walk_every_namespace)

    left_out = inodes - {one.inode for one in seen}
    assert left_out
    assert seen[0].losses.bitmaps + seen[0].losses.namespaces >= len(left_out)
