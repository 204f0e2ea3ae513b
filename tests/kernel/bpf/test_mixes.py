"""Random mixes of sockets: whatever a walk says, inet_diag, the probe and the kernel's own allocations say too.

The same goes for a daemon that reads by BPF while sockets come and go between its polls.
"""

from __future__ import annotations

import pytest

from tests.kernel.bpf import walks
from tests.kernel.bpf.mixes import outcomes
from tests.kernel_truth.memory_fuzz import Way, play
from tests.namespaces import Namespace

pytestmark = pytest.mark.only_root

SEEDS = list(range(20))
SECONDS = 900.0
"""An emulated machine takes its time."""


@pytest.mark.parametrize(
    "is_for_every_kernel", [False, True], ids=["the_cheaper_object", "the_object_for_every_kernel"]
)
def test_every_number_of_a_walk_is_what_the_kernel_gives(*, is_for_every_kernel: bool) -> None:
    """Which ports are blocked, how many ports each pool holds, and how many connect() and bind() still get."""
    with Namespace() as ns:
        if is_for_every_kernel:
            ns.call(walks.use_copying_object)
        found = ns.call_within(SECONDS, outcomes, SEEDS)

    assert len(found) == len(SEEDS)
    assert [one for one in found if not one.is_right] == []
    # The mixes have what could be wrong in them.
    assert any(one.blocked for one in found)
    assert any(time_wait for one in found for _, time_wait in one.pools.values())


def test_what_a_daemon_calls_exact_is() -> None:
    with Namespace() as ns:
        found = ns.call_within(SECONDS, play, [6, 7], way=Way.BPF, remembers=True)

    assert found.wrong == []
    assert found.of_tcp > 0
