"""Who called: what /proc tells of a thread, and what it does not."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from ephmon.errors import KernelError
from ephmon.kernel.proc.callers import GONE, Callers
from tests.namespaces import Agent, Namespace
from tests.tracing import host_pids

PROC = Path("/proc")
KTHREADD = "2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 2 0 0 20 0 1 0 14 0 0 18446744073709551615\n"
"""As Linux 6.18 writes it, up to the end of the longest part that is read."""


def caller(thread_id: int) -> tuple[str, bool, int | None, str | None]:
    """Ask who a thread is; the inode of its namespace is given as whether it is known."""
    found = Callers(PROC).find(thread_id, time.monotonic())
    return found.netns.label, found.netns.inode is not None, found.pid, found.command


@host_pids
def test_a_neighbour_is_in_our_own_namespace_and_a_stranger_is_not() -> None:
    with Namespace() as ns, Namespace() as other:
        neighbour = ns.another_agent()

        assert neighbour.call(caller, ns.pid)[:3] == ("own", True, ns.pid)
        assert neighbour.call(caller, other.pid)[0] == "other"


@host_pids
def test_without_cap_sys_ptrace_the_own_namespace_is_still_told_from_others() -> None:
    with Namespace() as ns, Namespace() as other:
        agent = Agent(ns.command("setpriv", "--bounding-set", "-sys_ptrace", "--inh-caps", "-sys_ptrace", "--"))
        try:
            assert agent.call(caller, ns.pid)[:3] == ("own", True, ns.pid)
            assert agent.call(caller, other.pid)[:3] == ("other", False, other.pid)
        finally:
            agent.close()


@host_pids
def test_a_number_that_nobody_has_is_gone() -> None:
    assert Callers(PROC).find(2**22 + 1, time.monotonic()) == GONE


@host_pids
def test_a_number_that_was_given_away_since_is_gone() -> None:
    """This process began after the call."""
    with Namespace() as ns:
        assert Callers(PROC).find(ns.pid, time.monotonic()).pid == ns.pid
        assert Callers(PROC).find(ns.pid, time.monotonic() - 3600) == GONE


def test_a_procfs_with_other_numbers_is_refused(tmp_path: Path) -> None:
    """As in a container with a pid namespace of its own: there is no kernel thread 2."""
    me = tmp_path / "77"
    for name in ("net/dev", "ns/net", "ns/pid"):
        (me / name).parent.mkdir(parents=True, exist_ok=True)
        (me / name).touch()
    (tmp_path / "self").symlink_to("77")
    with pytest.raises(KernelError) as caught:
        Callers(tmp_path)

    assert f"the host's process ids, and {tmp_path} shows others" in str(caught.value)
    assert "--pid=host, hostPID: true" in str(caught.value)
    (tmp_path / "2").mkdir()
    (tmp_path / "2/stat").write_text(KTHREADD)
    assert Callers(tmp_path).own_pid == 77
    (tmp_path / "2/stat").write_text(KTHREADD.replace("2129984", "4194560"))
    with pytest.raises(KernelError, match="shows others"):
        Callers(tmp_path)


def test_no_procfs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match=rf"^{tmp_path} does not show ephmon itself \(.*\); mount a procfs there\.$"):
        Callers(tmp_path)
