"""Failed connect() calls on a real kernel: each is counted once, and nothing else is.

What the clients count themselves, by the errors that they get, is the truth.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ephmon.errors import KernelError
from ephmon.facts.failed_calls import Destination, ExhaustionBatch
from ephmon.facts.namespaces import Netns
from ephmon.kernel.deadline import Deadline
from ephmon.kernel.probe import probe
from ephmon.kernel.trace.reader import CPU_SHARE, GATHER_SECONDS, MOST_DESTINATIONS_OF_USER, MOST_EVENTS, Budget
from tests import io_uring, sockets, tracing
from tests.namespaces import Agent, Namespace
from tests.processes import eventually
from tests.sockets import FillResult, Recipe
from tests.tracing import CLOSED, HERE, LOW, OPEN, PORT, exhaust, failures, host_pids, only_root, total, tracing_agent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOBODY = 65_534
IP_LOCAL_PORT_RANGE = 51  # include/uapi/linux/in.h
HERE6, MAPPED = "::1", "::ffff:127.0.0.1"
CALLS = 250


@pytest.fixture(name="ns")
def _ns() -> Iterator[Namespace]:
    """A namespace in which every port toward `PORT` of two addresses is taken."""
    with Namespace() as ns:
        exhaust(ns, HERE, HERE6)
        yield ns


@pytest.fixture(name="agent")
def _agent(ns: Namespace) -> Iterator[Agent]:
    agent = tracing_agent(ns)
    before = agent.call(tracing.instances)
    try:
        yield agent
        agent.call(tracing.close_all)
        assert tracing.ours(agent.call(tracing.instances)) <= before
    finally:
        agent.close()


@pytest.fixture(name="collecting")
def _collecting(agent: Agent) -> Agent:
    agent.call(tracing.open_collector)
    return agent


kept: list[ThreadPoolExecutor] = []
"""Threads that go on living, so that they can be asked who they are."""


def failures_of_threads(address: str, calls: int, threads: int) -> int:
    kept.append(ThreadPoolExecutor(threads))
    return sum(kept[-1].map(failures, [address] * threads, [calls // threads] * threads))


def failures_of_io_uring(address: str, calls: int) -> int:
    found = 0
    for _ in range(calls):
        with socket.socket() as ours:
            found += io_uring.connect(ours, (address, PORT)) == errno.EADDRNOTAVAIL
    return found


def failures_without_end(calls: int, port: int) -> int:
    """Connect one socket that is limited to a port that is taken, again and again, as fast as can be."""
    with socket.socket() as ours:
        ours.setsockopt(socket.IPPROTO_IP, 51, struct.pack("=I", port << 16 | port))  # IP_LOCAL_PORT_RANGE
        return sum(ours.connect_ex((HERE, PORT)) == errno.EADDRNOTAVAIL for _ in range(calls))


def name_yourself(name: bytes) -> None:
    Path("/proc/thread-self/comm").write_bytes(name)


@only_root
@host_pids
@pytest.mark.parametrize(
    ("call", "address"),
    [
        pytest.param(lambda ns: ns.call(failures, HERE, CALLS), HERE, id="IPv4"),
        pytest.param(lambda ns: ns.call(failures, HERE6, CALLS), HERE6, id="IPv6"),
        pytest.param(lambda ns: ns.call(failures, MAPPED, CALLS), HERE, id="mapped"),
        pytest.param(lambda ns: ns.call(failures, HERE, CALLS, blocks=False), HERE, id="non-blocking"),
        pytest.param(lambda ns: ns.call(failures, MAPPED, CALLS, blocks=False), HERE, id="mapped, non-blocking"),
        pytest.param(lambda ns: ns.call(failures_of_threads, HERE, CALLS, 5), HERE, id="threads"),
    ],
)
def test_each_failed_call_is_counted_once(
    ns: Namespace, collecting: Agent, call: Callable[[Namespace], int], address: str
) -> None:
    assert call(ns) == CALLS

    batch = collecting.call(tracing.collected)
    assert batch == replace(
        batch,
        totals={Netns("own", ns.inode): CALLS},
        destinations={Destination("own", packed(address), PORT): CALLS},
        lost=0,
    )
    assert total(collecting.call(tracing.collected)) == 0


@only_root
@host_pids
@pytest.mark.skipif(not io_uring.is_available(), reason="io_uring is not to be had here")
def test_a_call_of_io_uring_is_counted_once(ns: Namespace, collecting: Agent) -> None:
    """Its caller is a worker of the kernel's, which may be gone by the time it is asked."""
    assert ns.call(failures_of_io_uring, HERE, CALLS) == CALLS

    batch = collecting.call(tracing.collected)
    assert {netns.label for netns in batch.totals} <= {"own", "unknown"}
    assert {(to.address, to.port) for to in batch.destinations} == {(packed(HERE), PORT)}
    assert (total(batch), batch.lost) == (CALLS, 0)


@only_root
@host_pids
def test_an_event_says_when_who_and_where_to(ns: Namespace, collecting: Agent) -> None:
    before = time.time(), time.monotonic()
    assert ns.call(failures, MAPPED, 1) == 1
    after = time.time(), time.monotonic()

    (event,) = collecting.call(tracing.collected).events
    assert before[0] <= event.at <= after[0]
    assert before[1] <= event.at_monotonic <= after[1]
    assert (event.source, event.destination, event.destination_port) == (packed(HERE), packed(HERE), PORT)
    assert event.family == socket.AF_INET6
    assert (event.netns, event.pid, event.thread_id) == (Netns("own", ns.inode), ns.pid, ns.pid)


@only_root
@host_pids
@pytest.mark.parametrize(("monotonic", "boottime"), [(100_000, 100_000), (100_000, 0), (-1_000, 50_000)])
def test_in_a_time_namespace_an_event_has_its_caller_and_the_time_that_clocks_show_there(
    ns: Namespace, agent: Agent, monotonic: int, boottime: int
) -> None:
    """The kernel stamps events with the clock of the host, and /proc has the offsets of who reads it."""
    agent.call(tracing.enter_time_namespace, monotonic, boottime)
    agent.call(tracing.open_collector)
    before = time.time(), time.monotonic() + monotonic
    assert ns.call(failures, HERE, 1) == 1
    after = time.time(), time.monotonic() + monotonic

    (event,) = agent.call(tracing.collected).events
    assert before[1] <= event.at_monotonic <= after[1]
    assert before[0] <= event.at <= after[0]
    assert (event.netns, event.pid) == (Netns("own", ns.inode), ns.pid)


@only_root
@host_pids
def test_a_hostile_name_is_printable_text(ns: Namespace, collecting: Agent) -> None:
    ns.call(name_yourself, b'\xff\xfe"\n')
    ns.call(failures, HERE, 1)

    (event,) = collecting.call(tracing.collected).events
    assert event.command == r"\xff\xfe" + '"' + r"\n"


def fail_in_a_thread() -> tuple[int, int]:
    """Return the ids of the process and the thread."""
    failures_of_threads(HERE, 1, 1)
    return os.getpid(), kept[-1].submit(threading.get_native_id).result()


@only_root
@host_pids
def test_a_thread_is_known_by_its_process(ns: Namespace, collecting: Agent) -> None:
    process, thread = ns.call(fail_in_a_thread)

    (event,) = collecting.call(tracing.collected).events
    assert process != thread
    assert (event.pid, event.thread_id, event.netns.label) == (process, thread, "own")


@only_root
@host_pids
def test_a_caller_that_is_gone_is_unknown(ns: Namespace, collecting: Agent) -> None:
    client = ns.another_agent()
    assert client.call(failures, HERE, 3) == 3
    client.close()

    batch = collecting.call(tracing.collected)
    assert batch.totals == {Netns("unknown"): 3}
    assert {(event.pid, event.command, event.thread_id) for event in batch.events} == {(None, None, client.pid)}


@only_root
@host_pids
def test_another_namespace_is_told_from_our_own(ns: Namespace, collecting: Agent) -> None:
    with Namespace() as other:
        exhaust(other, HERE)
        assert other.call(failures, HERE, 4) == 4
        assert ns.call(failures, HERE, 3) == 3

        batch = collecting.call(tracing.collected)
        # The call with which the filling ended failed too.
        assert batch.totals == {Netns("own", ns.inode): 3, Netns("other", other.inode): 5}
        assert batch.destinations == {
            Destination("own", packed(HERE), PORT): 3,
            Destination("other", packed(HERE), PORT): 5,
        }


def fail_otherwise() -> set[int]:
    """Let connect() and bind() fail in all the ways that are no want of a port; return the errors."""
    errors = set()
    for family, address in ((socket.AF_INET, (HERE, CLOSED)), (socket.AF_INET6, (HERE6, CLOSED))):
        with socket.socket(family) as refused:
            refused.bind(("", 41_000))
            errors.add(refused.connect_ex(address))
    with socket.socket() as first, socket.socket() as second:
        for one in (first, second):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind((HERE, 42_000))
            errors.add(one.connect_ex((HERE, PORT)))  # the second has the same addresses and ports as the first
    with socket.socket(socket.AF_INET6) as without_source:
        errors.add(without_source.connect_ex(("2001:db8::1", PORT)))
    with socket.socket() as bound:
        try:
            bound.bind(("192.0.2.1", 0))
        except OSError as error:
            errors.add(error.errno or 0)
    return errors


@only_root
@host_pids
def test_other_failures_are_not_counted(ns: Namespace, collecting: Agent) -> None:
    """A refusal, a pair that exists, no address to come from, one that is not ours; and a connection that succeeds."""
    ns.call(sockets.listen, HERE, OPEN, tag="server")
    errors = ns.call(fail_otherwise)
    assert ns.call(sockets.fill, HERE, OPEN, tag="more", limit=5) == FillResult(5, 0)

    assert errors == {errno.ECONNREFUSED, 0, errno.EADDRNOTAVAIL, errno.ENETUNREACH}
    assert collecting.call(tracing.collected) == ExhaustionBatch()


def reconnect_after_a_refusal() -> list[int]:
    with socket.socket() as ours:
        ours.setsockopt(socket.IPPROTO_IP, 51, struct.pack("=I", LOW << 16 | LOW))
        return [ours.connect_ex((HERE, port)) for port in (CLOSED, PORT)]


@only_root
@host_pids
def test_a_socket_that_had_a_port_before_is_not_counted(ns: Namespace, collecting: Agent) -> None:
    """docs/exhaustions.md says so: the kernel leaves the old port in the socket, and the event looks like a refusal."""
    assert ns.call(reconnect_after_a_refusal) == [errno.ECONNREFUSED, errno.EADDRNOTAVAIL]

    assert total(collecting.call(tracing.collected)) == 0


def probe_two_ports() -> dict[int, bool]:
    return probe([LOW, LOW + 1], Deadline(10, time.monotonic), lambda: ("127.99.9.9", PORT))


@only_root
@host_pids
def test_our_own_probe_is_not_counted(ns: Namespace, collecting: Agent) -> None:
    ns.call(sockets.open_sockets, Recipe(bind=("127.0.0.9", LOW)), tag="blocks", limit=1)
    ns.call(failures, HERE, 1)

    assert collecting.call(probe_two_ports) == {LOW: False, LOW + 1: True}
    assert total(collecting.call(tracing.collected)) == 1


@only_root
@host_pids
def test_what_the_buffer_could_not_hold_is_counted_as_lost(ns: Namespace, collecting: Agent) -> None:
    assert ns.call(failures_without_end, 20_000, LOW) == 20_000

    batch = collecting.call(tracing.collected)
    assert batch.lost > 0
    assert total(batch) + batch.lost == 20_000
    assert len(batch.events) == MOST_EVENTS
    assert total(collecting.call(tracing.collected)) == 0


@only_root
@host_pids
def test_a_flood_is_counted_to_the_last_call_within_the_share(ns: Namespace, agent: Agent) -> None:
    """Also across the rest of each second in which nothing is read."""
    calls = 600_000
    agent.call(tracing.open_reader)
    began, spent = time.monotonic(), agent.call(time.process_time)
    assert ns.call(failures_without_end, calls, LOW) == calls

    seen = []
    eventually(lambda: seen.append(agent.call(tracing.taken)), lambda _: sum(total(b) + b.lost for b in seen) >= calls)
    elapsed = time.monotonic() - began
    assert sum(total(batch) + batch.lost for batch in seen) == calls
    assert sum(batch.lost for batch in seen) > 0
    # The share of each second begun, and what the test itself asks for.
    assert agent.call(time.process_time) - spent < CPU_SHARE * (elapsed + 1) + 0.05 * elapsed


@only_root
@host_pids
def test_the_thread_reads_while_the_caller_lives(ns: Namespace, agent: Agent) -> None:
    agent.call(tracing.open_reader)
    ns.call(failures, HERE, 1)
    batch = eventually(lambda: agent.call(tracing.taken), lambda batch: total(batch) > 0)

    assert batch.totals == {Netns("own", ns.inode): 1}


@only_root
@host_pids
def test_two_readers_each_count_every_call(ns: Namespace, agent: Agent) -> None:
    other = tracing_agent(ns)
    for one in (agent, other):
        one.call(tracing.open_collector)
    ns.call(failures, HERE, 7)

    assert [total(one.call(tracing.collected)) for one in (agent, other)] == [7, 7]
    other.call(tracing.close_all)
    other.close()
    ns.call(failures, HERE, 2)
    assert total(agent.call(tracing.collected)) == 2


def fail_as_nobody(destinations: int) -> int:
    """Connect as another user toward so many addresses with a range of one port that is taken; return the failures."""
    os.setresuid(NOBODY, NOBODY, NOBODY)
    failed = 0
    with socket.socket() as taken:
        taken.bind((HERE, 0))
        port = taken.getsockname()[1]
        for number in range(destinations):
            with socket.socket() as ours:
                ours.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, struct.pack("=I", port << 16 | port))
                address = f"127.1.{number >> 8}.{number & 255}"
                failed += ours.connect_ex((address, PORT)) == errno.EADDRNOTAVAIL
    return failed


@only_root
@host_pids
def test_a_user_who_fails_toward_very_many_destinations_hides_no_failure_of_another(
    ns: Namespace, collecting: Agent
) -> None:
    ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", f"{LOW} {LOW + 200}")  # room for one more port
    assert ns.another_agent().call(fail_as_nobody, 600) == 600
    ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", f"{LOW} {LOW + 99}")
    assert ns.call(failures, HERE, 1) == 1

    batch = collecting.call(tracing.collected)
    assert total(batch) == 601
    assert Counter(event.uid for event in batch.latest) == {NOBODY: MOST_DESTINATIONS_OF_USER, 0: 1}


def switch_off(instance: str) -> None:
    (tracing.TRACING / "instances" / instance / "events/sock/inet_sock_set_state/enable").write_text("0")


@only_root
@host_pids
def test_a_recording_that_somebody_switched_off_is_an_error(agent: Agent) -> None:
    before = agent.call(tracing.instances)
    agent.call(tracing.open_collector)
    (name,) = tracing.ours(agent.call(tracing.instances)) - before
    agent.call(switch_off, name)

    with pytest.raises(KernelError, match=rf"{name}/events/sock/inet_sock_set_state/enable is off; switch it on"):
        agent.call(tracing.collected)


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_budget_ends_with_its_share_and_begins_anew_with_the_second() -> None:
    clock, cpu = Clock(), Clock()
    budget = Budget(0.05, clock=clock, cpu_clock=cpu)
    steps = [(0, 0), (0.25, 0.049), (0.25, 0.002), (0.25, 0), (0.25, 0), (0.25, 0.06), (0.5, 0), (0.25, 0)]
    seen = []
    for seconds, spent in steps:
        clock.now += seconds
        cpu.now += spent
        seen.append((budget.has_left(), round(budget.pause(), 3)))

    assert seen == [
        (True, GATHER_SECONDS),
        (True, GATHER_SECONDS),
        (False, 0.5),
        (False, 0.25),
        (True, GATHER_SECONDS),
        (False, 0.75),
        (False, 0.25),
        (True, GATHER_SECONDS),
    ]


def packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
