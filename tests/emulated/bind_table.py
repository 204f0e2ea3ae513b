"""Walks over the bind table by BPF on Debian's kernels as they are installed: VRFs, random mixes, and lockdown.

User-mode Linux has no BTF, so this runs on the emulated PC: tests/emulated/init. The kernel's command line says how
many mixes, because each takes it twenty seconds.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ephmon.facts.bind_counts import PoolKey, PortFlag
from ephmon.kernel.bpf.load import BpfUnavailableError
from ephmon.kernel.bpf.reader import BindTableReader
from ephmon.kernel.proc.sysctl import read_release
from ephmon.model.pools.bind_table.bind_pools import BindTableBindPools
from ephmon.model.pools.bind_table.ports import classes_of
from ephmon.model.pools.kinds import PoolKind
from tests import sockets
from tests.emulated.vrf import CASES, VRF, Case, make_vrf, open_holders
from tests.kernel.bpf import walks
from tests.kernel.bpf.mixes import outcomes, read_own
from tests.namespaces import Namespace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ephmon.facts.bind_table import NamespaceBinds

NUMBER = int(os.environ.get("walks", "2"))  # noqa: SIM112 - from the kernel's command line
FIRST_SEED = 100
"""Seeds below it are those of tests/kernel/bpf/test_mixes.py."""
SECONDS = 60.0 * (NUMBER + 1)
INIT = "rdinit=/tests/emulated/init"
LOCKDOWN = Path("/sys/kernel/security/lockdown")


@pytest.fixture(name="agent", scope="module")
def _agent() -> Iterator[Namespace]:
    with Namespace() as agent:
        yield agent


def test_the_cheaper_object_is_used_from_linux_6_2_on(agent: Namespace) -> None:
    assert agent.call(walks.is_direct) == (read_release(Path("/proc")) >= (6, 2))


def test_every_number_of_a_walk_is_what_the_kernel_gives(agent: Namespace) -> None:
    found = agent.call_within(SECONDS, outcomes, list(range(FIRST_SEED, FIRST_SEED + NUMBER)))
    wrong = [one for one in found if not one.is_right]

    sys.stdout.write(f"bind table: {len(found)} mixes, right {len(found) - len(wrong)}\n")
    sys.stdout.writelines(f"seed {one.seed}: connect {one.connect}, bind {one.bind}\n" for one in wrong)
    assert len(found) == NUMBER
    assert wrong == []


# --- VRFs ------------------------------------------------------------------------------------------------------------


def draw(case: Case) -> tuple[int, int, set[int]]:
    """Return what a walk says beside the sockets of the VRF, what the kernel gives, and the VRFs of the ports."""
    make_vrf()
    open_holders(case)
    own = read_own(walks.reader())
    index = socket.if_nametoindex(VRF)
    predicted = room(own, case, index if case.newcomer.device else 0)
    filled = sockets.open_sockets(case.newcomer, tag="fill", limit=sockets.ALL_PORTS)
    return predicted, filled.count, {port.l3mdev for port in own.ports()} - {0, index}


def room(own: NamespaceBinds, case: Case, l3mdev: int) -> int:
    """Return how many of the newcomers get a port, of which each VRF has its own."""
    if case.kind is PoolKind.TCP_BIND:
        # The newcomer is outside the VRF, where less is taken: the upper bound of what is left, over all VRFs.
        return BindTableBindPools("own", 0.0, own, classes_of(own)).pool(ip_address(case.source).packed).remaining_max
    assert case.newcomer.connect is not None
    destination, port = case.newcomer.connect
    key = PoolKey(ip_address(case.source).packed, ip_address(destination).packed, port, l3mdev, l3mdev)
    blocked = sum(PortFlag.BLOCKED in one.flags for one in own.ports() if one.l3mdev == l3mdev)
    pools = dict(own.pools())
    return own.usable - blocked - (pools[key].held if key in pools else 0)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_ports_of_a_vrf_are_counted_apart_and_exactly(agent: Namespace, case: Case) -> None:
    predicted, gives, others = agent.call(draw, case)

    assert (predicted, gives, others) == (case.gives, case.gives, set())


# --- what cannot be undone, so it comes last -------------------------------------------------------------------------


def test_a_kernel_that_is_locked_down_is_named() -> None:
    assert INIT in Path("/proc/cmdline").read_text(encoding="ascii"), "only in a machine that is thrown away"
    subprocess.run(["mount", "-t", "securityfs", "none", LOCKDOWN.parent], check=True)
    LOCKDOWN.write_text("confidentiality", encoding="ascii")

    with pytest.raises(BpfUnavailableError) as raised:
        BindTableReader()
    assert str(raised.value) == (
        "The kernel is locked down (lockdown=confidentiality), so BPF may not read its memory."
    )
