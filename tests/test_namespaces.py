"""The harness itself: namespaces are isolated, bounded and leave nothing behind."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

from tests import sockets
from tests.agent import AgentError
from tests.namespaces import Agent, Namespace, connect
from tests.ordinary_user import as_ordinary_user, as_thread_of_ordinary_user
from tests.sockets import FillResult, Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PORT_RANGE = "net.ipv4.ip_local_port_range"


@pytest.fixture(name="ns")
def _ns() -> Iterator[Namespace]:
    with Namespace() as ns:
        ns.call(sockets.write_sysctl, PORT_RANGE, "40000 40999")
        yield ns


def test_the_agent_has_a_network_namespace_of_its_own(ns: Namespace) -> None:
    assert ns.inode != Path("/proc/self/ns/net").stat().st_ino
    assert ns.call(socket.if_nameindex) == [(1, "lo")]


def test_proc_sys_net_shows_the_namespace_of_the_agent(ns: Namespace) -> None:
    """A sysctl that is written inside reads back inside, and the one outside is untouched."""
    before = sockets.read_sysctl(PORT_RANGE)

    ns.call(sockets.write_sysctl, PORT_RANGE, "50000 50009")

    assert ns.call(sockets.read_sysctl, PORT_RANGE) == "50000\t50009"
    assert sockets.read_sysctl(PORT_RANGE) == before


def test_a_fill_takes_every_port_toward_one_destination_and_then_fails_as_connect_does(ns: Namespace) -> None:
    ns.call(sockets.listen, "127.0.0.1", 80, tag="server")

    assert ns.call(sockets.fill, "127.0.0.1", 80, tag="clients") == FillResult(1000, errno.EADDRNOTAVAIL)
    assert sorted(ns.call(sockets.ports_of, "clients")) == list(range(40000, 41000))


def test_an_aborted_fill_gives_every_port_back(ns: Namespace) -> None:
    ns.call(sockets.listen, "127.0.0.1", 80, tag="server")
    ns.call(sockets.fill, "127.0.0.1", 80, tag="clients")

    ns.call(sockets.abort, "clients")

    assert ns.call(sockets.fill, "127.0.0.1", 80, tag="clients", limit=1000) == FillResult(1000, 0)


def test_the_side_that_closes_first_keeps_time_wait(ns: Namespace) -> None:
    ns.call(sockets.write_sysctl, "net.ipv4.tcp_rfc1337", 1)
    ns.call(sockets.listen, "127.0.0.1", 80, tag="server")
    ns.call(sockets.fill, "127.0.0.1", 80, tag="clients", limit=7)
    ports = ns.call(sockets.ports_of, "clients")

    assert ns.call(sockets.accept_all, "server", tag="accepted") == 7
    ns.call(sockets.close, "clients")
    ns.call(sockets.close, "accepted")

    assert ns.call(_time_wait_ports) == sorted(ports)


def _time_wait_ports() -> list[int]:
    rows = [row.split() for row in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]]
    return sorted(int(row[1].partition(":")[2], 16) for row in rows if row[3] == "06")


@pytest.mark.parametrize(
    ("recipe", "filled"),
    [
        (Recipe(bind=("127.0.0.1", 0)), FillResult(1000, errno.EADDRINUSE)),
        (Recipe(bind=("::1", 0), v6only=True), FillResult(1000, errno.EADDRINUSE)),
        (Recipe(bind=("127.0.0.1", 40005)), FillResult(1, errno.EADDRINUSE)),
        (Recipe(udp=True, connect=("127.0.0.1", 53)), FillResult(1000, errno.EAGAIN)),
        (Recipe(listen=1), FillResult(1000, errno.EADDRINUSE)),
        (Recipe(connect=("127.0.0.1", 81)), FillResult(0, errno.ECONNREFUSED)),
        (Recipe(port_range=(40100, 40199), udp=True, connect=("127.0.0.1", 53)), FillResult(100, errno.EAGAIN)),
        (Recipe(no_port=True, bind=("127.0.0.1", 0), device="lo"), FillResult(1500, 0)),
    ],
)
def test_a_recipe_fails_as_the_kernel_makes_it_fail(ns: Namespace, recipe: Recipe, filled: FillResult) -> None:
    assert ns.call(sockets.open_sockets, recipe, tag="bound", limit=1500) == filled


def test_a_port_that_is_taken_cannot_be_listened_on(ns: Namespace) -> None:
    port = ns.call(sockets.listen, "127.0.0.1", 0, tag="server")

    with pytest.raises(OSError, match=f"EADDRINUSE.*127.0.0.1 port {port}") as caught:
        ns.call(sockets.listen, "127.0.0.1", port, tag="again")

    assert caught.value.errno == errno.EADDRINUSE


def test_two_namespaces_can_be_connected() -> None:
    """Packets pass both ways at once, over IPv4 and IPv6."""
    with Namespace() as left, Namespace(beside=left) as right:
        connect(left, right, addresses=("10.9.0.1/24", "10.9.0.2/24"))
        connect(left, right, addresses=("fd00:9::1/64", "fd00:9::2/64"), device="veth1")
        right.call(sockets.listen, "::", 80, tag="server")

        assert left.call(sockets.fill, "10.9.0.2", 80, tag="clients", limit=3) == FillResult(3, 0)
        assert left.call(sockets.fill, "fd00:9::2", 80, tag="clients", limit=3) == FillResult(3, 0)


def test_without_waiting_a_connection_to_a_black_hole_holds_its_port(ns: Namespace) -> None:
    with Namespace(beside=ns) as hole:
        connect(ns, hole, addresses=("10.9.0.1/24", "10.9.0.2/24"))
        recipe = Recipe(connect=("10.9.0.3", 80), wait=False)

        assert ns.call(sockets.open_sockets, recipe, tag="clients", limit=1500) == FillResult(1000, errno.EADDRNOTAVAIL)


def test_addresses_are_there_from_the_start() -> None:
    with Namespace(addresses=("10.8.0.1/32", "fd00:8::1/128")) as ns:
        ns.call(sockets.listen, "10.8.0.1", 80, tag="server")
        ns.call(sockets.listen, "fd00:8::1", 80, tag="server")

        assert ns.call(sockets.fill, "10.8.0.1", 80, tag="clients", source="127.0.0.1", limit=1) == FillResult(1, 0)


def test_another_agent_shares_the_namespace_but_not_the_descriptors(ns: Namespace) -> None:
    ns.call(sockets.listen, "127.0.0.1", 80, tag="server")
    second = ns.another_agent()

    assert second.call(sockets.fill, "127.0.0.1", 80, tag="clients", limit=2) == FillResult(2, 0)
    assert second.pid != ns.pid
    assert Path(f"/proc/{second.pid}/ns/net").stat().st_ino == ns.inode
    assert list(second.call(dict, sockets.held)) == []


def rights() -> tuple[str, str]:
    """Return the user ids and the effective capabilities of the calling thread."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/thread-self/status").read_text().splitlines())
    return status["Uid"], status["CapEff"]


@pytest.mark.only_root("it becomes another user")
@pytest.mark.parametrize("call", [as_ordinary_user, as_thread_of_ordinary_user])
def test_an_ordinary_user_has_no_rights_and_the_agent_keeps_its_own(
    ns: Namespace, call: Callable[..., tuple[str, str]]
) -> None:
    before = ns.call(rights)

    assert ns.call(call, rights) == ("65534\t65534\t65534\t65534", "0000000000000000")
    assert ns.call(rights) == before != ns.call(call, rights)


def test_a_program_can_be_run_in_the_namespace(ns: Namespace) -> None:
    ns.call(sockets.listen, "127.0.0.1", 80, tag="server")

    shown = subprocess.run(ns.command("ss", "-Hltn"), capture_output=True, text=True, timeout=10, check=True).stdout

    assert [line.split()[3] for line in shown.splitlines()] == ["127.0.0.1:80"]


def test_an_error_in_the_agent_is_raised_in_the_test_with_the_place(ns: Namespace) -> None:
    with pytest.raises(FileNotFoundError, match="no_such_sysctl") as caught:
        ns.call(sockets.read_sysctl, "net.ipv4.no_such_sysctl")

    assert "in read_sysctl" in "".join(caught.value.__notes__)


class _UnpicklableError(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def _raise_unpicklable() -> NoReturn:
    raise _UnpicklableError(1, 2)


def test_an_error_that_cannot_travel_is_reported_in_words(ns: Namespace) -> None:
    with pytest.raises(AgentError, match=r"_UnpicklableError: 1 and 2"):
        ns.call(_raise_unpicklable)


def test_a_call_that_does_not_return_is_ended(ns: Namespace) -> None:
    with pytest.raises(AgentError, match=r"^pause did not return within 0.1 s, the agent was killed$"):
        ns.call_within(0.1, signal.pause)


def test_an_agent_that_dies_is_reported(ns: Namespace) -> None:
    with pytest.raises(AgentError, match=r"^the agent ended during _exit, exit status 3: it has printed nothing$"):
        ns.call(os._exit, 3)


def test_an_agent_that_cannot_start_says_why() -> None:
    with pytest.raises(AgentError, match=r"exit status 1: .*/proc/0/ns/net: No such file or directory$"):
        Agent(["nsenter", "--net=/proc/0/ns/net", "--"])


def test_a_namespace_leaves_no_process_behind() -> None:
    with Namespace() as ns:
        ns.another_agent()
        inode = ns.inode
        assert len(_processes_in(inode)) == 2

    assert _processes_in(inode) == []


_KILLED_TEST = """
import signal
from tests.namespaces import Namespace
with Namespace() as ns:
    print(ns.pid, ns.another_agent().pid, ns.inode, flush=True)
    ns.call(signal.pause)
"""


def test_a_killed_test_leaves_no_process_behind() -> None:
    """SIGKILL gives the test no chance to clean up: the kernel ends the agents, a busy one too."""
    root = Path(__file__).parents[1]
    with subprocess.Popen([sys.executable, "-c", _KILLED_TEST], cwd=root, stdout=subprocess.PIPE, text=True) as test:
        assert test.stdout is not None
        *pids, inode = map(int, test.stdout.readline().split())
        agents = [os.pidfd_open(pid) for pid in pids]
        test.kill()

    assert _all_end(agents, within_seconds=10)
    assert _processes_in(inode) == []


def _all_end(pidfds: list[int], *, within_seconds: float) -> bool:
    deadline = time.monotonic() + within_seconds
    ended = [bool(select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]) for fd in pidfds]
    for fd in pidfds:
        os.close(fd)
    return all(ended)


def _processes_in(inode: int) -> list[str]:
    """Names in /proc of the processes whose network namespace has this inode number."""
    found = []
    for link in Path("/proc").glob("[0-9]*/ns/net"):
        try:
            target = link.readlink()
        except OSError:  # it has ended since the listing, or is someone else's
            continue
        if str(target) == f"net:[{inode}]":
            found.append(link.parts[2])
    return found
