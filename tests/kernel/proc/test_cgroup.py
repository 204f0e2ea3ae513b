"""Cgroups by id: on trees of plain directories that count links as cgroupfs does, and on the real hierarchy."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ephmon.errors import KernelError
from ephmon.kernel.proc import cgroup
from ephmon.kernel.proc.cgroup import CgroupTree, Mount, find_mount
from tests.cgroups import Cgroups
from tests.namespaces import Namespace

if TYPE_CHECKING:
    from collections.abc import Sequence


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.step = 0.0

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def line(directory: Path | str, *, root: str = "/", kind: str = "cgroup2") -> str:
    return f"41 31 0:38 {root} {directory} rw,relatime shared:9 - {kind} {kind} rw,nsdelegate\n"


def make_proc(folder: Path, *lines: str) -> Path:
    proc = folder / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "self/mountinfo").write_text("".join(lines))
    return proc


def make_tree(folder: Path, *paths: str) -> dict[str, int]:
    """Make directories and return their inode numbers, the top's under `/`."""
    top = folder / "cgroup"
    for path in paths:
        (top / path.lstrip("/")).mkdir(parents=True)
    found = {f"/{path.relative_to(top)}": path.stat().st_ino for path in top.rglob("*")}
    return {"/": top.stat().st_ino, **found}


def tree_of(folder: Path, clock: Clock | None = None) -> CgroupTree:
    return CgroupTree(make_proc(folder, line(folder / "cgroup")), clock or Clock())


def test_ids_are_resolved_at_every_depth(tmp_path: Path) -> None:
    ids = make_tree(tmp_path, "/system.slice/haproxy.service", "/a/b/c/d/e", "/init.scope")
    tree = tree_of(tmp_path)

    assert tree.paths(ids.values()) == {inode: path for path, inode in ids.items()}
    assert tree.problem is None


def test_where_a_part_of_the_hierarchy_is_all_there_is_that_is_why_an_id_is_unknown(tmp_path: Path) -> None:
    ids = make_tree(tmp_path, "/a")
    tree = tree_of(tmp_path)

    assert tree.paths([ids["/a"], 1 << 60]) == {ids["/a"]: "/a"}
    assert tree.problem is not None
    assert tree.problem.startswith("Only a part of the cgroup2 hierarchy is mounted")
    assert tree.problem.endswith("mount the host's /sys/fs/cgroup.")


def test_files_and_links_are_no_cgroups(tmp_path: Path) -> None:
    make_tree(tmp_path, "/a")
    procs, link = tmp_path / "cgroup/a/cgroup.procs", tmp_path / "cgroup/b"
    procs.write_text("")
    link.symlink_to("a")

    assert tree_of(tmp_path).paths([procs.stat().st_ino, link.lstat().st_ino]) == {}


def test_a_path_that_is_no_utf_8_becomes_text(tmp_path: Path) -> None:
    make_tree(tmp_path, "/a")
    odd = os.path.join(os.fsencode(tmp_path), b"cgroup/a/\xff\xfe.service")  # noqa: PTH118 - bytes
    os.mkdir(odd)  # noqa: PTH102 - bytes
    inode = os.stat(odd).st_ino  # noqa: PTH116 - bytes

    assert tree_of(tmp_path).paths([inode]) == {inode: "/a/\ufffd\ufffd.service"}


def test_a_cgroup_that_is_gone_keeps_its_path(tmp_path: Path) -> None:
    ids = make_tree(tmp_path, "/a.service")
    clock = Clock()
    tree = tree_of(tmp_path, clock)
    tree.paths(ids.values())
    (tmp_path / "cgroup/a.service").rmdir()
    clock.now += 3600

    assert tree.paths([ids["/a.service"]]) == {ids["/a.service"]: "/a.service"}
    assert tree.processes([ids["/a.service"]]) == []


def test_new_ids_lead_to_a_walk_every_five_seconds_and_ids_that_were_missed_to_one_a_minute(tmp_path: Path) -> None:
    make_tree(tmp_path, "/a")
    clock = Clock()
    tree = tree_of(tmp_path, clock)
    tree.paths([1 << 60])
    new = make_tree(tmp_path, "/b", "/c")

    assert tree.paths([new["/b"]]) == {}  # too early to walk again
    clock.now += 5
    assert tree.paths([new["/b"]]) == {new["/b"]: "/b"}

    (tmp_path / "cgroup/d").mkdir()
    missed = (tmp_path / "cgroup/d").stat().st_ino
    (tmp_path / "cgroup/d").rename(tmp_path / "d")
    clock.now += 5
    assert tree.paths([missed]) == {}
    (tmp_path / "d").rename(tmp_path / "cgroup/d")
    clock.now += 59
    assert tree.paths([missed]) == {}
    clock.now += 1
    assert tree.paths([missed]) == {missed: "/d"}


def test_a_walk_ends_after_its_time_and_says_so(tmp_path: Path) -> None:
    make_tree(tmp_path, *(f"/{number}" for number in range(100)))
    clock = Clock()
    clock.step = 0.1
    tree = tree_of(tmp_path, clock)

    assert tree.paths([1 << 60]) == {}
    assert tree.problem is not None
    assert tree.problem.startswith("There are too many cgroups")
    assert tree.problem.endswith("after 5.")


def test_a_walk_ends_after_so_many_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tree(tmp_path, *(f"/{number}" for number in range(100)))
    monkeypatch.setattr(cgroup, "MOST_DIRECTORIES", 50)
    tree = tree_of(tmp_path)

    tree.paths([1 << 60])

    assert tree.problem is not None
    assert tree.problem.endswith("after 50.")


def test_so_many_paths_are_kept_those_asked_for_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = make_tree(tmp_path, "/a", "/b", "/c")
    monkeypatch.setattr(cgroup, "MOST_PATHS", 2)
    clock = Clock()
    tree = tree_of(tmp_path, clock)
    for name in ("/a", "/b", "/a", "/c"):
        clock.now += 5
        assert tree.paths([ids[name]]) == {ids[name]: name}
    (tmp_path / "proc/self/mountinfo").write_text("")

    clock.now += 5
    assert tree.paths([ids["/a"], ids["/c"]]) == {ids["/a"]: "/a", ids["/c"]: "/c"}
    assert tree.paths([ids["/b"]]) == {}


def test_without_a_cgroup2_hierarchy_nothing_is_found_and_the_reason_given(tmp_path: Path) -> None:
    tree = CgroupTree(make_proc(tmp_path, line("/sys/fs/cgroup/memory", kind="cgroup")), Clock())

    assert tree.paths([1]) == {}
    assert tree.problem is not None
    assert tree.problem.startswith("No cgroup2 hierarchy is mounted")
    assert tree.problem.endswith("mount the host's /sys/fs/cgroup.")
    assert tree.processes([1]) == []


def test_a_procfs_that_tells_no_mounts_is_named(tmp_path: Path) -> None:
    tree = CgroupTree(tmp_path, Clock())

    assert tree.paths([1]) == {}
    assert tree.problem is not None
    assert f"{tmp_path}/self/mountinfo cannot be read" in tree.problem
    with pytest.raises(KernelError):
        find_mount(tmp_path)


UNIFIED = line("/sys/fs/cgroup")
HYBRID = line("/sys/fs/cgroup/unified")
MEMORY = line("/sys/fs/cgroup/memory", kind="cgroup")


@pytest.mark.parametrize(
    ("lines", "mount"),
    [
        ([], None),
        ([MEMORY], None),
        (["torn - cgroup2\n", "\n"], None),
        ([UNIFIED], Mount(b"/sys/fs/cgroup", b"/")),
        ([MEMORY, HYBRID], Mount(b"/sys/fs/cgroup/unified", b"/")),
        ([line("/x", root="/a"), UNIFIED], Mount(b"/sys/fs/cgroup", b"/")),
        ([line("/x", root="/a/b"), line("/y", root="/a")], Mount(b"/y", b"/a")),
        ([UNIFIED, line("/host", root="/../../..")], Mount(b"/host", b"/../../..")),
        ([line("/with\\040blank\\134")], Mount(b"/with blank\\", b"/")),
    ],
    ids=["none", "legacy", "torn", "unified", "hybrid", "a part", "parts", "the host's in a container", "escaped"],
)
def test_the_mount_that_shows_most_is_taken(tmp_path: Path, lines: Sequence[str], mount: Mount | None) -> None:
    assert find_mount(make_proc(tmp_path, *lines)) == mount


def test_a_mountinfo_of_many_lines_is_read_to_its_end(tmp_path: Path) -> None:
    proc = make_proc(tmp_path, *(line(f"/overlay/{number}", kind="overlay") for number in range(5000)), UNIFIED)

    assert find_mount(proc) == Mount(b"/sys/fs/cgroup", b"/")


def test_a_part_of_the_hierarchy_gives_whole_paths_and_its_processes(tmp_path: Path) -> None:
    ids = make_tree(tmp_path, "/a.service")
    (tmp_path / "cgroup/a.service/cgroup.procs").write_text("17\n0\n18\n")
    tree = CgroupTree(make_proc(tmp_path, line(tmp_path / "cgroup", root="/system.slice")), Clock())

    assert tree.paths(ids.values()) == {ids["/"]: "/system.slice", ids["/a.service"]: "/system.slice/a.service"}
    assert tree.processes([ids["/a.service"]]) == [17, 18]


def test_so_many_processes_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = make_tree(tmp_path, "/a", "/b")
    for name in "ab":
        (tmp_path / "cgroup" / name / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in range(1, 100)))
    monkeypatch.setattr(cgroup, "MOST_PROCESSES", 150)
    tree = tree_of(tmp_path)
    tree.paths(ids.values())

    assert len(tree.processes(ids.values())) == 150


# --- the real hierarchy -------------------------------------------------------------------------------------------


def resolve(ids: Sequence[int]) -> tuple[dict[int, str], list[int], str | None]:
    tree = CgroupTree(Path("/proc"), time.monotonic)
    return tree.paths(ids), tree.processes(ids), tree.problem


@pytest.mark.only_root("makes cgroups")
def test_real_cgroups_are_found_with_their_processes() -> None:
    with Namespace() as ns, Cgroups(ns) as cgroups:
        names = ("", "a.slice", "a.slice/one.service", "b.slice/two.service", "b.slice/two.service/inner/most")
        ids = {name: cgroups.make(name) for name in names}
        with cgroups.agent("a.slice/one.service") as one, cgroups.agent("b.slice/two.service/inner/most") as two:
            paths, pids, _ = cgroups.observer.call(resolve, list(ids.values()))
            expected = {inode: f"/{cgroups.top}/{name}".rstrip("/") for name, inode in ids.items()}

            assert paths == expected
            assert sorted(pids) == sorted([one.pid, two.pid])


ISOLATED = "umount --all --types cgroup2 && mount -t cgroup2 none"
"""What a container runtime does for a container with a cgroup namespace of its own."""


INTO_NAMESPACES = ("unshare", "--cgroup", "--mount", "--")


@pytest.mark.only_root("makes cgroups")
def test_a_container_sees_its_own_part_alone() -> None:
    with Namespace() as ns, Cgroups(ns) as cgroups:
        inner, outer = cgroups.make("pod/inner"), cgroups.make("outer")
        isolate = ("sh", "-c", f'{ISOLATED} "$0" && exec "$@"', str(cgroups.mounted))
        with cgroups.agent("pod", *INTO_NAMESPACES, *isolate) as agent:
            isolated, _, problem = agent.call(resolve, [inner, outer])

        assert isolated == {inner: "/inner"}
        assert problem is not None
        assert "Only a part" in problem


@pytest.mark.only_root("makes cgroups")
@pytest.mark.host_cgroups("mounts all of them for a container")
def test_a_container_that_has_the_hosts_mount_sees_all() -> None:
    with Namespace() as ns, Cgroups(ns) as cgroups:
        inner, outer = cgroups.make("pod/inner"), cgroups.make("outer")
        with cgroups.agent("pod", *INTO_NAMESPACES) as agent:
            paths, _, problem = agent.call(resolve, [inner, outer, 1 << 60])

        assert problem is None
        assert paths == {inner: f"/{cgroups.top}/pod/inner", outer: f"/{cgroups.top}/outer"}
