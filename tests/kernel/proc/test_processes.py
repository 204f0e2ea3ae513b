"""Which processes have sockets open: what is found, how much is looked at, and what each capability is needed for."""

from __future__ import annotations

import ctypes
import os
import resource
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ephmon.kernel.proc import processes
from ephmon.kernel.proc.processes import Process, ProcessSearch, Search, processes_of_users
from ephmon.supervision import threads
from tests.namespaces import Agent, Namespace

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

PROC = Path("/proc")
ROOT = pytest.mark.only_root("starts processes of other users")
_PR_SET_DUMPABLE, _PR_SET_NAME = 4, 15  # include/uapi/linux/prctl.h

held: list[socket.socket] = []


def search(inodes: Collection[int], pids: Collection[int]) -> Search:
    return ProcessSearch(PROC, time.monotonic).find(inodes, pids)


def open_sockets(number: int, comm: bytes = b"proxy") -> list[int]:
    """Open sockets, take a name, and return the inode numbers."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, comm)
    new = [socket.socket() for _ in range(number)]
    held.extend(new)
    return [os.fstat(sock.fileno()).st_ino for sock in new]


@pytest.fixture(name="agents")
def _agents() -> Iterator[list[Agent]]:
    """Two agents of the same user as the test."""
    with Namespace() as ns:
        yield [ns.another_agent(), ns.another_agent()]


def test_processes_are_found_with_their_names_and_how_many_of_the_sockets_they_have(agents: list[Agent]) -> None:
    few, many = agents[0].call(open_sockets, 2, b"few"), agents[1].call(open_sockets, 5, b"many")
    agents[0].call(open_sockets, 3, b"few")  # not asked for
    pids = [agent.pid for agent in agents]

    assert agents[0].call(search, [*few, *many], [*pids, 1 << 30]) == Search(
        processes=(Process(pids[1], "many", 5), Process(pids[0], "few", 2)), is_complete=True
    )
    assert agents[0].call(search, few, pids[1:]) == Search(processes=(), is_complete=True)


@pytest.mark.parametrize(
    ("comm", "shown"),
    [
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b'a"b\\c', 'a"b\\c'),
        (b"two\nlines\x1b[", "two\ufffdlines\ufffd["),
        (b"x" * 20, "x" * 15),
        (b"", ""),
    ],
)
def test_a_name_of_any_bytes_is_printable_text(agents: list[Agent], comm: bytes, shown: str) -> None:
    inodes = agents[0].call(open_sockets, 1, comm)

    (process,) = agents[1].call(search, inodes, [agents[0].pid]).processes
    assert process.comm == shown


def test_two_thousand_descriptors_of_a_process_are_looked_at_and_no_more(agents: list[Agent]) -> None:
    inodes = agents[0].call(open_sockets, 2500)
    found = agents[1].call(search, inodes, [agents[0].pid])

    (process,) = found.processes
    assert 1900 < process.sockets <= processes.MOST_DESCRIPTORS
    assert not found.is_complete
    assert found.problem is None


def test_sockets_of_several_sets_are_counted_by_set_at_one_look(agents: list[Agent]) -> None:
    first, second = agents[0].call(open_sockets, 3, b"both"), agents[1].call(open_sockets, 2, b"one")
    pids = [agent.pid for agent in agents]
    both, one, none = agents[0].call(search_each, [first, [*first[:1], *second], [1]], [*pids, *pids])

    assert both.processes == (Process(pids[0], "both", 3),)
    assert one.processes == (Process(pids[1], "one", 2), Process(pids[0], "both", 1))
    assert none == Search(processes=(), is_complete=True)


def search_each(wanted: list[list[int]], pids: list[int]) -> list[Search]:
    return ProcessSearch(PROC, time.monotonic).find_each(wanted, iter(pids))


@ROOT
def test_processes_of_a_user_are_those_that_run_as_it_by_any_of_their_user_ids() -> None:
    with Namespace() as ns:
        real, saved, other = (ns.another_agent() for _ in range(3))
        real.call(become, 54321)
        saved.call(os.setresuid, 0, 0, 54321)
        other.call(become, 54322)
        found = ns.call(users_processes, {54321})

        assert found == {real.pid, saved.pid}
        assert ns.call(users_processes, {54321, 54322}) == {real.pid, saved.pid, other.pid}
        assert ns.call(users_processes, set()) == set()


def users_processes(uids: set[int]) -> set[int]:
    return set(processes_of_users(uids, PROC))


# --- a made procfs ------------------------------------------------------------------------------------------------


def make_process(proc: Path, pid: int, *inodes: int, links: tuple[str, ...] = ()) -> None:
    descriptors = proc / str(pid) / "fd"
    descriptors.mkdir(parents=True)
    (proc / str(pid) / "comm").write_text(f"p{pid}\n")
    for number, target in enumerate([*links, *(f"socket:[{inode}]" for inode in inodes)]):
        (descriptors / str(number)).symlink_to(target)


class Clock:
    """A clock that goes on by a step each time it is read."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def test_what_is_found_until_the_time_is_up_counts(tmp_path: Path) -> None:
    for pid in (1, 2, 3, 4):
        make_process(tmp_path, pid, *range(10 * pid, 10 * pid + 10))

    found = ProcessSearch(tmp_path, Clock(0.1)).find(range(100), [1, 2, 3, 4])

    assert [process.sockets for process in found.processes] == [10, 7]
    assert not found.is_complete


def test_a_search_that_hangs_is_left_behind_and_the_next_does_not_join_it(tmp_path: Path) -> None:
    """What a process before it has shown is there all the same."""
    make_process(tmp_path, 1, 10)
    make_process(tmp_path, 2, 11)
    (tmp_path / "2/comm").unlink()
    os.mkfifo(tmp_path / "2/comm")  # opening it waits for a writer
    search = ProcessSearch(tmp_path, time.monotonic)

    started = time.monotonic()
    found = search.find([10, 11], [1, 2], 0.2)
    assert time.monotonic() - started < 4.0
    threads = threading.active_count()
    again = search.find([10], [1], 0.2)

    assert found == Search(processes=(Process(1, "p1", 1),), is_complete=False)
    assert again.processes == ()
    assert again.problem == "The previous process search is still running; skipped."
    assert threading.active_count() == threads

    (tmp_path / "2/comm").write_text("p2\n")  # lets the thread go on and end
    assert search._thread is not None
    search._thread.join(10)
    assert search.find([10], [1]).processes == (Process(1, "p1", 1),)


def test_without_a_thread_to_be_had_nothing_is_found_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_process(tmp_path, 1, 10)
    search = ProcessSearch(tmp_path, time.monotonic)

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        found = search.find([10], [1])

    assert (found.processes, found.is_complete) == ((), False)
    assert found.problem == f"No thread can be started now; {threads.ADVICE}."
    assert search.find([10], [1]).processes == (Process(1, "p1", 1),)


def test_files_of_any_name_are_no_sockets(tmp_path: Path) -> None:
    make_process(tmp_path, 1, 10, links=("/dev/null", "pipe:[10]", "socket:[x]", "socket:[10] (deleted)", "a" * 4000))

    assert ProcessSearch(tmp_path, time.monotonic).find([10], [1]).processes == (Process(1, "p1", 1),)


def test_that_no_process_at_all_is_visible_is_said(tmp_path: Path) -> None:
    found = ProcessSearch(tmp_path, time.monotonic).find([10], [1, 2])

    assert found.problem is not None
    assert found.problem.startswith(f"None of the 2 processes that own ports is visible in {tmp_path}.")
    assert all(fix in found.problem for fix in ("hidepid=", "ProtectProc=", "CAP_SYS_PTRACE", "container"))
    assert not found.is_complete
    assert ProcessSearch(tmp_path, time.monotonic).find([10], []) == Search(processes=(), is_complete=True)


def test_a_lack_of_descriptors_is_said(tmp_path: Path) -> None:
    make_process(tmp_path, 1, 10)

    with Namespace() as ns:
        found = ns.call(search_without_descriptors, tmp_path)

    assert found.problem is not None
    assert found.problem.endswith(": Too many open files.")
    assert not found.is_complete


def search_without_descriptors(proc: Path) -> Search:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    return ProcessSearch(proc, time.monotonic).find([10], [1])


# --- capability by capability -------------------------------------------------------------------------------------

NEEDED = (
    "ephmon may not read the descriptors of 1 of 1 processes. To see which processes own ports, give it "
    "CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH."
)


@ROOT
@pytest.mark.parametrize(
    ("capabilities", "problem"),
    [("", NEEDED), (",+sys_ptrace", NEEDED), (",+dac_read_search", NEEDED), (",+sys_ptrace,+dac_read_search", None)],
    ids=["none", "ptrace", "dac_read_search", "both"],
)
def test_processes_of_another_user_take_both_capabilities(capabilities: str, problem: str | None) -> None:
    """A uid 0 that has only these capabilities looks at a process of user 12345."""
    with Namespace() as ns:
        owner = Agent(ns.command("unshare", "--net", "--"))
        inodes = owner.call(open_sockets, 3)
        owner.call(become, 12345)
        observer = Agent(ns.command("setpriv", "--bounding-set", f"-all{capabilities}", "--"))
        found = observer.call(search, inodes, [owner.pid])
        own = observer.call(search_own)
        owner.close()
        observer.close()

    assert found.problem == problem
    assert found.processes == (() if problem else (Process(owner.pid, "proxy", 3),))
    assert found.is_complete == (problem is None)
    assert own == 2


def search_own() -> int:
    """Return how many sockets of its own a process finds: that takes no capability."""
    (process,) = search(open_sockets(2), [os.getpid()]).processes
    return process.sockets


def become(uid: int) -> None:
    """Be another user as if started by it: a change of user alone would leave /proc/PID with root (man 5 proc_pid)."""
    os.setresuid(uid, uid, uid)
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 1)
