"""What tells namespaces apart: names in /run/netns, cgroups, and the logs of pods."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ephmon.facts.namespaces import NO_PODS, NamespaceIdentity, Pod
from ephmon.kernel.bpf.reader import BindTableReader
from ephmon.kernel.deadline import Deadline
from ephmon.kernel.namespaces import NamespaceIdentities, parse_pod, read_mounts, read_pods
from tests import sockets
from tests.cgroups import Cgroups
from tests.namespaces import Namespace, bring_loopback_up
from tests.processes import python, run

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE, PORT = "127.0.0.1", 8080
UID = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"
READ_MOUNTS = (
    "import pathlib, sys; from ephmon.kernel.namespaces import read_mounts; print(read_mounts(pathlib.Path('{}')))"
)
with_cgroups = pytest.mark.only_root("makes cgroups, and loads a BPF program")


@pytest.fixture(name="cgroups")
def _cgroups() -> Iterator[Cgroups]:
    with Namespace() as ns, Cgroups(ns) as cgroups:
        yield cgroups


def inode() -> int:
    return Path("/proc/self/ns/net").stat().st_ino


def identities() -> dict[int, NamespaceIdentity]:
    """Walk over all namespaces, and tell them apart."""
    reader = BindTableReader()
    try:
        table = reader.read(Deadline(10.0, time.monotonic), own_only=False)
    finally:
        reader.close()
    return NamespaceIdentities(Path("/proc"), time.monotonic).identify(table.namespaces)


@with_cgroups
def test_a_namespace_is_known_by_the_oldest_cgroup_that_made_sockets_in_it(cgroups: Cgroups) -> None:
    older, younger = "system.slice/first.service", "system.slice/second.service"
    cgroups.make(older)
    cgroups.make(younger)
    with cgroups.agent(younger, "unshare", "--net", "--") as late:
        late.call(bring_loopback_up)
        late.call(sockets.listen, HERE, PORT, tag="server")
        late.call(sockets.fill, HERE, PORT, tag="clients", limit=5)
        theirs = late.call(inode)
        alone = cgroups.observer.call(identities)[theirs].cgroup
        with cgroups.agent(older, "nsenter", f"--net=/proc/{late.pid}/ns/net", "--") as early:
            early.call(sockets.fill, HERE, PORT, tag="clients", limit=5)
            both = cgroups.observer.call(identities)[theirs].cgroup

    assert alone == f"/{cgroups.top}/{younger}"
    assert both == f"/{cgroups.top}/{older}"


@pytest.mark.only_root("mounts a namespace")
def test_a_name_in_run_netns_is_found_by_the_inode_of_its_namespace(tmp_path: Path) -> None:
    (tmp_path / "blue").touch()
    read = " ".join(f"'{word}'" for word in [*python("-c"), READ_MOUNTS.format(tmp_path).replace("'", '"')])
    script = f"mount --bind /proc/self/ns/net {tmp_path}/blue && {read} && stat -Lc %i /proc/self/ns/net"
    result = run(["unshare", "--mount", "--net", "sh", "-ec", script])

    names, number = result.stdout.splitlines()
    assert names == f"{{{number}: 'blue'}}"


def test_a_folder_that_is_not_there_has_no_names(tmp_path: Path) -> None:
    assert read_mounts(tmp_path / "none") == {}
    assert read_pods(tmp_path / "none") == {}


def test_pods_are_known_by_the_folders_of_their_logs(tmp_path: Path) -> None:
    for name in (f"shop_web-5d4f_{UID}", "kube-system_static_0123", "lost+found", "a_b", "a_b_c_d", "__"):
        (tmp_path / name).mkdir()

    assert read_pods(tmp_path) == {UID: Pod("shop", "web-5d4f"), "0123": Pod("kube-system", "static")}
    assert parse_pod("a_b") is None


def test_logs_of_pods_are_looked_for_only_where_a_namespace_is_of_one(tmp_path: Path) -> None:
    (tmp_path / f"shop_web_{UID}").mkdir()
    known = NamespaceIdentities(Path("/proc"), time.monotonic, pod_logs=tmp_path)
    unit = NamespaceIdentity(cookie=1, user_namespace_inode=2, cgroup="/system.slice/a.service")

    assert known.pods([unit]) is NO_PODS
    assert known.pods([unit, unit._replace(cgroup=f"/kubepods/pod{UID}/x")]) == {UID: Pod("shop", "web")}
