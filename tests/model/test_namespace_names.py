"""What network namespaces are called, and whose may raise alerts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ephmon.facts.namespaces import NamespaceIdentity, Pod
from ephmon.facts.snapshot import NamespaceSnapshot, PortRange, Snapshot, Sysctls, TcpBinds
from ephmon.model.namespace_names import SECONDS_BEFORE_REUSE, NamespaceNames, name_namespaces, pod_uid, runtime_of
from ephmon.model.report import MOST_NAMESPACES, ReloadStatus
from ephmon.model.rules import Rules
from ephmon.model.state import initial_state
from ephmon.model.step import conclude
from tests.model.pools.bind_table.tables import make_binds

HOST, OTHER_USER = 3, 9
"""The user namespace of the host, which `make_binds` has, and that of somebody else."""
ID = "0123456789abcdef" * 4
UID = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"
POD_SLICE = f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID.replace('-', '_')}.slice"
PODS = {UID: Pod("shop", "web-5d4f")}


def other(cookie: int, *, cgroup: str | None = None, mount: str | None = None, user: int = HOST) -> NamespaceSnapshot:
    identity = NamespaceIdentity(cookie=cookie, user_namespace_inode=user, cgroup=cgroup, mount=mount)
    own = snapshot().namespaces[0]
    return replace(own, netns=f"netns:{4000 + cookie}", inode=4000 + cookie, identity=identity)


def snapshot(*others: NamespaceSnapshot) -> Snapshot:
    binds = TcpBinds(table=make_binds(), listening_ports=None)
    sysctls = Sysctls(port_range=PortRange(40000, 40099))
    own = NamespaceSnapshot(netns="own", inode=1, sysctls=sysctls, tcp=None, udp=None, backends={}, binds=binds)
    return Snapshot(taken_at=0.0, duration_seconds=0.0, namespaces=(own, *others), pods=PODS)


def names(*others: NamespaceSnapshot) -> list[str]:
    named, _ = name_namespaces(snapshot(*others), NamespaceNames(), 0.0)
    return [one.netns for one in named.namespaces[1:]]


@pytest.mark.parametrize(
    ("cgroup", "mount", "name"),
    [
        (f"{POD_SLICE}/cri-containerd-{ID}.scope", "cni-7f", "pod/shop/web-5d4f"),
        (f"/kubepods/besteffort/pod{UID}/{ID}", None, "pod/shop/web-5d4f"),
        (f"/kubepods/besteffort/pod{'ab' * 16}/{ID}", None, f"pod/{'ab' * 16}"),
        (f"/system.slice/docker-{ID}.scope", None, "docker/0123456789ab"),
        (f"/docker/{ID}", None, "docker/0123456789ab"),
        (f"/machine.slice/libpod-{ID}.scope/container", "netns-1", "podman/0123456789ab"),
        ("/lxc.payload.mail/system.slice/exim4.service", None, "lxc/mail"),
        (f"/system.slice/{ID}", None, "container/0123456789ab"),
        ("/system.slice/haproxy.service", "blue", "blue"),
        ("/system.slice/haproxy.service", None, "haproxy.service"),
        ("/user.slice/user-1000.slice/session-3.scope", None, "user-1000.slice/session-3.scope"),
        ("/", None, "netns:4007"),
        (None, None, "netns:4007"),
        (None, "blue", "blue"),
        (None, "own", "own@7"),
    ],
)
def test_a_namespace_is_called_by_the_best_that_is_known(cgroup: str | None, mount: str | None, name: str) -> None:
    assert names(other(7, cgroup=cgroup, mount=mount)) == [name]


def test_two_namespaces_never_have_one_name() -> None:
    assert names(other(7, mount="blue"), other(8, mount="blue")) == ["blue", "blue@8"]


def test_a_name_stays_with_its_namespace_and_is_given_to_another_after_ten_minutes() -> None:
    first, blue = name_namespaces(snapshot(other(7, mount="blue")), NamespaceNames(), 0.0)
    renamed, blue = name_namespaces(snapshot(other(7, mount="red")), blue, 10.0)
    soon, _ = name_namespaces(snapshot(other(8, mount="blue")), blue, 9.0 + SECONDS_BEFORE_REUSE)
    late, _ = name_namespaces(snapshot(other(8, mount="blue")), blue, 10.0 + SECONDS_BEFORE_REUSE)

    assert [one.namespaces[1].netns for one in (first, renamed, soon, late)] == ["blue", "blue", "blue@8", "blue"]


def test_a_namespace_that_was_called_by_its_inode_takes_a_name_once_it_is_known() -> None:
    _, before = name_namespaces(snapshot(other(7)), NamespaceNames(), 0.0)
    known, _ = name_namespaces(snapshot(other(7, cgroup="/system.slice/a.service")), before, 1.0)

    assert known.namespaces[1].netns == "a.service"


def test_what_is_ignored_by_its_name_is_left_out_and_our_own_never() -> None:
    named, _ = name_namespaces(
        snapshot(other(7, mount="blue"), other(8, mount="red")), NamespaceNames(), 0.0, ("b*", "own")
    )

    assert [one.netns for one in named.namespaces] == ["own", "red"]


@pytest.mark.parametrize(
    ("cgroup", "mount", "user", "may_alert"),
    [
        ("/system.slice/haproxy.service", None, HOST, True),
        (f"/system.slice/docker-{ID}.scope", None, OTHER_USER, True),
        (None, "blue", OTHER_USER, True),
        ("/", None, HOST, True),
        (None, None, HOST, True),
        # What a user can make without a privilege: user namespaces, cgroups below their own, and names there.
        ("/", None, OTHER_USER, False),
        (None, None, OTHER_USER, False),
        ("/user.slice/user-1000.slice/session-3.scope", None, OTHER_USER, False),
        (f"/user.slice/user-1000.slice/user@1000.service/docker-{ID}.scope", None, OTHER_USER, False),
        (f"/user.slice/user-1000.slice/user@1000.service{POD_SLICE}", None, OTHER_USER, False),
    ],
)
def test_only_namespaces_that_took_a_privilege_may_raise_alerts(
    cgroup: str | None, mount: str | None, user: int, *, may_alert: bool
) -> None:
    named, _ = name_namespaces(snapshot(other(7, cgroup=cgroup, mount=mount, user=user)), NamespaceNames(), 0.0)

    assert named.namespaces[1].may_alert is may_alert


def test_a_user_cannot_take_the_name_of_a_pod() -> None:
    path = f"/user.slice/user-1000.slice/user@1000.service{POD_SLICE}/{ID}"

    assert pod_uid(path) is None
    assert names(other(7, cgroup=path)) == ["container/user@1000.service/0123456789ab"]


def test_a_runtime_is_known_by_its_cgroups() -> None:
    paths = {
        f"/system.slice/docker-{ID}.scope": "docker",
        f"/machine.slice/libpod-{ID}.scope": "podman",
        f"/system.slice/crio-{ID}.scope": "crio",
        f"/system.slice/cri-containerd-{ID}.scope": "containerd",
        f"/kata/{ID}": "container",
    }

    assert {path: runtime_of(path) for path in paths} == paths


def test_nothing_is_remembered_of_the_ports_of_others() -> None:
    """There may be a thousand of them, and what is remembered of one takes hundreds of KiB."""
    state = initial_state(Rules(), ReloadStatus(successful=True, succeeded_at=0.0))
    named, _ = name_namespaces(snapshot(other(7), other(8)), NamespaceNames(), 0.0)

    after = conclude(named, state, 1.0)

    assert list(after.namespaces) == [1]
    assert [one.netns for one in after.report.namespaces] == ["own", "netns:4007", "netns:4008"]


def test_of_many_namespaces_those_that_may_alert_are_listed_and_all_are_counted() -> None:
    state = initial_state(Rules(), ReloadStatus(successful=True, succeeded_at=0.0))
    theirs = [other(cookie, user=OTHER_USER) for cookie in range(100, 100 + MOST_NAMESPACES)]
    named, _ = name_namespaces(snapshot(*theirs, other(7), other(8)), NamespaceNames(), 0.0)

    report = conclude(named, state, 1.0).report

    assert len(report.namespaces) == 1 + MOST_NAMESPACES
    assert {"own", "netns:4007", "netns:4008"} <= {one.netns for one in report.namespaces}
    assert report.namespaces_read == 3 + MOST_NAMESPACES
