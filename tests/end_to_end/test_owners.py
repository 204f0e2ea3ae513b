"""Owners end to end: HAProxy and nginx, in cgroups made for them, are named as those who hold and block ports."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ephmon.facts.namespaces import OWN_NETNS
from ephmon.facts.sockets import Protocol
from ephmon.kernel.deadline import Deadline
from ephmon.kernel.netlink import owner_dump
from ephmon.kernel.netlink.sock_diag import SockDiag
from ephmon.kernel.proc.cgroup import CgroupTree
from ephmon.kernel.proc.processes import ProcessSearch
from ephmon.model.owners.shares import Owners, RecentOwners, blocked_owners, pool_owners, port_bits
from ephmon.model.pools.kinds import PoolKey, PoolKind
from ephmon.model.pools.port_classes import OPEN_CLASSES, PortClass
from tests.kernel_truth.mixes import read_with_probe
from tests.proxies import (
    HAPROXY,
    HERE,
    INSIDE,
    NGINX,
    TO_HAPROXY,
    TO_HAPROXY_THAT_BINDS,
    TO_NGINX,
    UPSTREAM,
    Stage,
    proxies,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ephmon.facts.owned_sockets import OwnerTable
    from ephmon.model.owners.names import Owner

pytestmark = pytest.mark.only_root("makes cgroups")

KEY = PoolKey(OWN_NETNS, PoolKind.TCP_CONNECT, HERE, UPSTREAM, 80)


@dataclass(frozen=True, slots=True)
class Holders:
    """What was read in one go."""

    pool: OwnerTable
    blocking: OwnerTable
    paths: dict[int, str]
    open_ports: int
    blocked_ports: int
    comms: set[str]


def read() -> Holders:
    deadline = Deadline(60, time.monotonic)
    surveyed = read_with_probe()
    assert surveyed.ports is not None
    classes = surveyed.ports.classes
    blocked = [port for port, kind in enumerate(classes) if kind == PortClass.BLOCKED]
    with SockDiag() as diag:
        toward = owner_dump.read_owners_toward(diag, INSIDE, [(ip_address(UPSTREAM).packed, 80)], deadline)
        blocking = owner_dump.read_owners_of_ports(diag, Protocol.TCP, blocked, deadline)
    tree = CgroupTree(Path("/proc"), time.monotonic)
    ids = toward.cgroup_ids() | blocking.cgroup_ids()
    paths = tree.paths(ids)
    found = ProcessSearch(Path("/proc"), time.monotonic).find(toward.inodes(), tree.processes(ids))
    return Holders(
        pool=toward,
        blocking=blocking,
        paths=paths,
        open_ports=port_bits(port for port, kind in enumerate(classes) if kind in OPEN_CLASSES),
        blocked_ports=port_bits(blocked),
        comms={process.comm for process in found.processes},
    )


def be_nobody() -> None:
    """Give up all groups, the user and with it every capability."""
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)


def pool_owners_of(seen: Holders, recent: RecentOwners, now: float) -> tuple[Owners, RecentOwners]:
    return pool_owners(KEY, seen.pool, seen.paths, ports=seen.open_ports, recent=recent, now=now)


def by_owner(owners: Owners) -> dict[Owner, tuple[int, int]]:
    """Return the ports of each owner, and those of them that are estimated."""
    return {share.owner: (share.ports, share.estimated_ports) for share in owners.shares}


@pytest.fixture(name="stage")
def _stage(tmp_path: Path) -> Iterator[Stage]:
    with proxies(tmp_path) as stage:
        yield stage


def test_both_are_named_for_connections_and_for_the_time_waits_they_leave(stage: Stage) -> None:
    stage.connect(TO_HAPROXY, 30, tag="haproxy keeps")
    stage.connect(TO_HAPROXY, 12, tag="haproxy ends")
    stage.connect(TO_NGINX, 20, tag="nginx keeps")
    stage.connect(TO_NGINX, 7, tag="nginx ends")
    seen = stage.cgroups.observer.call(read)
    owners, recent = pool_owners_of(seen, RecentOwners(), 1000.0)

    assert by_owner(owners) == {HAPROXY: (42, 0), NGINX: (27, 0)}
    assert seen.comms == {"haproxy", "nginx"}

    stage.hang_up("haproxy ends", 12)
    stage.hang_up("nginx ends", 19)
    later = stage.cgroups.observer.call(read)

    assert by_owner(pool_owners_of(later, recent, 1030.0)[0]) == {HAPROXY: (42, 12), NGINX: (27, 7)}
    # Whoever looks for the first time shares them out by who is there: 19 of 50 ports, 30 and 20 live.
    assert by_owner(pool_owners_of(later, RecentOwners(), 1030.0)[0]) == {HAPROXY: (41, 11), NGINX: (28, 8)}


def test_both_are_named_as_those_who_block_ports(stage: Stage) -> None:
    stage.connect(TO_HAPROXY_THAT_BINDS, 25, tag="clients")
    seen = stage.cgroups.observer.call(read)
    owners, _ = blocked_owners(seen.blocking, seen.paths, blocked=seen.blocked_ports, recent=RecentOwners(), now=1000.0)

    assert by_owner(owners) == {HAPROXY: (25, 0), NGINX: (2, 0)}
    # None of these is a port of the pool that runs out.
    assert by_owner(pool_owners_of(seen, RecentOwners(), 1000.0)[0]) == {}


def test_without_any_capability_owners_are_named_and_processes_are_not(stage: Stage) -> None:
    """Who looks is nobody, and the proxies are root's."""
    stage.connect(TO_HAPROXY, 5, tag="haproxy")
    stage.connect(TO_NGINX, 3, tag="nginx")
    with stage.cgroups.agent("") as observer:
        observer.call(be_nobody)
        seen = observer.call(read)

    assert by_owner(pool_owners_of(seen, RecentOwners(), 1000.0)[0]) == {HAPROXY: (5, 0), NGINX: (3, 0)}
    assert seen.comms == set()
