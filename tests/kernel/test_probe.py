"""The probe on a real kernel: what it says, what it needs, and that nobody notices it."""

from __future__ import annotations

import errno
import itertools
import os
import re
import resource
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import pytest

from ephmon.errors import KernelError, StopRequestedError
from ephmon.kernel.deadline import Deadline
from ephmon.kernel.probe import Answers, ProbeUnavailableError, probe, require_probe, unlikely_destination
from ephmon.kernel.probe import ask as ask_in_turn
from tests import sockets
from tests.kernel.seccomp import refuse_to_connect
from tests.namespaces import Namespace, ip
from tests.ordinary_user import as_ordinary_user
from tests.sockets import FillResult, Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ephmon.model.pools.probe_questions import Questions

P = ParamSpec("P")
R = TypeVar("R")

LOW, HIGH = 40_000, 40_099
PORT = LOW + 10
HERE, ELSEWHERE = "127.0.0.1", "127.0.0.9"
NEITHER_WAY = (
    "The probe needs bit 0 of net.ipv4.tcp_fastopen, which is set by default, or CAP_NET_ADMIN. "
    "Set that bit, or run ephmon as root."
)
LOOPBACK_NEVER_UP = "The probe cannot connect to loopback (Network is unreachable): set the device lo up."
FORBIDDEN = (
    "The probe cannot connect to loopback ({}): a security module (SELinux, AppArmor, Landlock) or a BPF program of "
    "the cgroup forbids it. Allow ephmon to connect to 127.0.0.0/8."
)
OTHER_RANGE = "ip_local_port_range changed during the probe; try again."

TO_SERVER = (HERE, 80)
FAST_OPEN, WITHOUT_CLIENTS = "net.ipv4.tcp_fastopen", 2
"""Bit 0 is for clients, bit 1 for servers."""
TCP_FASTOPEN_NO_COOKIE = 34  # include/uapi/linux/tcp.h


@pytest.fixture(name="ns")
def _ns() -> Iterator[Namespace]:
    with Namespace() as ns:
        ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", f"{LOW} {HIGH}")
        ns.call(sockets.listen, *TO_SERVER, tag="server")
        yield ns


@dataclass(frozen=True, slots=True)
class Asking:
    """Who asks, and by which way of the two."""

    ns: Namespace
    is_ordinary_user: bool

    def call(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a module-level function as the one who asks."""
        if self.is_ordinary_user:
            return self.ns.call(as_ordinary_user, function, *args, **kwargs)
        return self.ns.call(function, *args, **kwargs)


@pytest.fixture(name="asking", params=["ordinary user with fast open", "root without fast open"])
def _asking(request: pytest.FixtureRequest, ns: Namespace) -> Asking:
    is_ordinary_user = request.param.startswith("ordinary user")
    if not is_ordinary_user:
        ns.call(sockets.write_sysctl, FAST_OPEN, WITHOUT_CLIENTS)
    return Asking(ns, is_ordinary_user)


def ask(ports: Sequence[int]) -> dict[int, bool]:
    return probe(ports, Deadline(10.0, time.monotonic))


SHARED = {
    "connected": Recipe(port_range=(PORT, PORT), connect=TO_SERVER),
    "bound without a port, connected": Recipe(
        bind=(ELSEWHERE, 0), no_port=True, port_range=(PORT, PORT), connect=TO_SERVER
    ),
    "UDP": Recipe(udp=True, bind=(HERE, PORT)),
}
BLOCKED = {
    "listening": Recipe(bind=(HERE, PORT), listen=1),
    "listening on IPv6 alone": Recipe(bind=("::1", PORT), v6only=True, listen=1),
    "bound to the port": Recipe(bind=(ELSEWHERE, PORT)),
    "bound to the port, with SO_REUSEADDR": Recipe(bind=(ELSEWHERE, PORT), reuse_address=True),
    "bound to any port": Recipe(bind=(ELSEWHERE, 0), port_range=(PORT, PORT)),
    "bound to any port, connected": Recipe(bind=(HERE, 0), port_range=(PORT, PORT), connect=TO_SERVER),
}


def test_a_free_port_may_be_shared(asking: Asking) -> None:
    assert asking.call(ask, [LOW, PORT, HIGH]) == {LOW: True, PORT: True, HIGH: True}


def test_no_port_is_no_answer(asking: Asking) -> None:
    assert asking.call(ask, []) == {}


@pytest.mark.parametrize("recipe", SHARED.values(), ids=SHARED)
def test_a_port_that_blocks_nobody_may_be_shared(ns: Namespace, asking: Asking, recipe: Recipe) -> None:
    ns.call(sockets.open_sockets, recipe, tag="one", limit=1)

    assert ns.call(sockets.ports_of, "one") == [PORT]
    assert asking.call(ask, [PORT]) == {PORT: True}


@pytest.mark.parametrize("recipe", BLOCKED.values(), ids=BLOCKED)
def test_a_port_that_blocks_everybody_may_not(ns: Namespace, asking: Asking, recipe: Recipe) -> None:
    ns.call(sockets.open_sockets, recipe, tag="one", limit=1)

    assert ns.call(sockets.ports_of, "one") == [PORT]
    assert asking.call(ask, [PORT, PORT + 1]) == {PORT: False, PORT + 1: True}


def test_a_socket_to_any_destination_blocks_nobody(ns: Namespace, asking: Asking) -> None:
    """Port 9 of 127.0.0.1 is nobody's, and a client may well lead to it."""
    ns.call(sockets.listen, HERE, 9, tag="discard")
    ns.call(sockets.fill, HERE, 9, tag="clients", limit=20)

    assert asking.call(ask, range(LOW, HIGH + 1)) == dict.fromkeys(range(LOW, HIGH + 1), True)


def ask_toward(ports: Sequence[int], *dummies: tuple[str, int]) -> dict[int, bool]:
    """Ask with these dummies, and with destinations that nobody leads to after them."""
    drawn = itertools.chain(dummies, ((f"127.9.9.{number}", 9) for number in itertools.count(1)))
    return probe(ports, Deadline(10.0, time.monotonic), drawn.__next__)


def test_a_dummy_that_a_socket_leads_to_is_reported_by_a_second_one(ns: Namespace, asking: Asking) -> None:
    clients, bound = Recipe(connect=TO_SERVER, port_range=(LOW, PORT)), Recipe(bind=(ELSEWHERE, 0))
    ns.call(sockets.open_sockets, clients, tag="clients", limit=5)
    ns.call(sockets.open_sockets, replace(bound, port_range=(PORT + 1, HIGH)), tag="bound", limit=5)
    held, blocked = ns.call(sockets.ports_of, "clients"), ns.call(sockets.ports_of, "bound")

    assert asking.call(ask_toward, held, TO_SERVER) == dict.fromkeys(held, True)
    assert asking.call(ask_toward, blocked, TO_SERVER) == dict.fromkeys(blocked, False)


def test_dummies_differ_and_are_none_of_the_addresses_that_people_choose() -> None:
    drawn = [unlikely_destination() for _ in range(1_000)]
    addresses = [IPv4Address(address) for address, _ in drawn]

    assert len(set(drawn)) == 1_000
    assert all(address in IPv4Network("127.0.0.0/8") for address in addresses)
    assert not any(address in IPv4Network("127.0.0.0/16") for address in addresses)
    assert IPv4Address("127.255.255.255") not in addresses
    assert all(1_024 <= port <= 65_535 for _, port in drawn)


def test_the_ports_that_were_asked_about_are_free_afterwards(ns: Namespace, asking: Asking) -> None:
    asking.call(ask, range(LOW, HIGH + 1))

    for port in range(LOW, HIGH + 1):
        bound = ns.call(sockets.open_sockets, Recipe(bind=(HERE, port)), tag="bound", limit=1)
        assert bound == FillResult(1, 0)


def test_a_full_pool_stays_as_it_is(ns: Namespace, asking: Asking) -> None:
    ns.call(sockets.fill, *TO_SERVER, tag="clients")
    before = ns.call(ip, "-statistics", "link", "show", "dev", "lo")

    assert asking.call(ask, range(LOW, HIGH + 1)) == dict.fromkeys(range(LOW, HIGH + 1), True)
    assert ns.call(ip, "-statistics", "link", "show", "dev", "lo") == before


def counters() -> dict[str, int]:
    """Return the counters of all protocols in /proc/net/snmp and /proc/net/netstat."""
    found: dict[str, int] = {}
    for name in ("snmp", "netstat"):
        lines = [line.split() for line in Path(f"/proc/net/{name}").read_text(encoding="ascii").splitlines()]
        for names, values in zip(lines[::2], lines[1::2], strict=True):
            found |= {f"{names[0]}{one}": int(value) for one, value in zip(names[1:], values[1:], strict=True)}
    return found


def test_no_segment_is_sent_and_no_counter_moves_but_the_resets_of_repair_mode(ns: Namespace, asking: Asking) -> None:
    for port in range(PORT, PORT + 30):
        ns.call(sockets.open_sockets, Recipe(bind=(HERE, port)), tag="bound", limit=1)
    packets = ns.call(ip, "-statistics", "link", "show", "dev", "lo")
    before = ns.call(counters)
    asking.call(ask, range(LOW, HIGH + 1))
    after = ns.call(counters)

    moved = {name: after[name] - before[name] for name in before if after[name] != before[name]}
    assert moved == ({} if asking.is_ordinary_user else {"Tcp:EstabResets": 70})
    assert ns.call(ip, "-statistics", "link", "show", "dev", "lo") == packets


def test_no_socket_is_left_of_it(ns: Namespace, asking: Asking) -> None:
    descriptors = ns.call(os.listdir, "/proc/self/fd")
    asking.call(ask, range(LOW, HIGH + 1))

    assert len(ns.call(os.listdir, "/proc/self/fd")) == len(descriptors)
    assert re.search(r"^TCP: inuse 1 orphan \d+ tw 0 ", ns.call(Path("/proc/net/sockstat").read_text), re.MULTILINE)


def starts_of_a_service(seconds: float) -> set[str]:
    """Listen and stop again and again, and return which errors came of it."""
    errors = set()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with socket.socket() as service:
            service.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                service.bind((HERE, PORT))
                service.listen()
            except OSError as error:
                errors.add(errno.errorcode[error.errno or 0])
    return errors


def ask_for(seconds: float) -> set[bool]:
    until = time.monotonic() + seconds
    answers: set[bool] = set()
    while time.monotonic() < until:
        answers.update(ask([PORT] * 100).values())
    return answers


def test_a_service_with_so_reuseaddr_can_start_on_a_port_that_is_being_asked_about(
    ns: Namespace, asking: Asking
) -> None:
    service = ns.another_agent()
    with ThreadPoolExecutor(1) as pool:
        errors = pool.submit(service.call, starts_of_a_service, 3.0)
        answers = asking.call(ask_for, 3.0)

    assert errors.result() == set()
    assert answers == {True, False}


def test_where_neither_way_is_allowed_it_says_what_would_help(ns: Namespace) -> None:
    ns.call(sockets.write_sysctl, FAST_OPEN, WITHOUT_CLIENTS)

    with pytest.raises(ProbeUnavailableError) as before:
        ns.call(as_ordinary_user, require_probe)
    with pytest.raises(ProbeUnavailableError) as asked:
        ns.call(as_ordinary_user, ask, [PORT])
    assert str(before.value) == str(asked.value) == NEITHER_WAY


def test_it_is_available_while_no_port_is_left(ns: Namespace, asking: Asking) -> None:
    ns.call(sockets.open_sockets, Recipe(bind=("0.0.0.0", 0)), tag="all", limit=sockets.ALL_PORTS)

    asking.call(require_probe)


def meet_a_black_hole() -> None:
    """Connect with fast open to where no SYN is answered, so that the kernel switches fast open off for an hour."""
    sockets.write_sysctl("net.ipv4.tcp_fastopen_blackhole_timeout_sec", 3600)
    sockets.listen(HERE, 81, tag="full", backlog=0)
    sockets.fill(HERE, 81, tag="filling", limit=1)
    with socket.socket() as ours:
        ours.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE, 1)
        ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, 1)
        with pytest.raises(TimeoutError):
            ours.sendto(b"data", socket.MSG_FASTOPEN, (HERE, 81))


def test_after_fast_open_has_met_a_black_hole_a_syn_is_refused_and_the_answer_is_the_same(ns: Namespace) -> None:
    ns.call(sockets.open_sockets, Recipe(bind=(ELSEWHERE, PORT)), tag="blocking", limit=1)
    ns.call(meet_a_black_hole)
    before = ns.call(counters)

    assert ns.call(as_ordinary_user, ask, [PORT, PORT + 1]) == {PORT: False, PORT + 1: True}
    assert ns.call(counters)["Tcp:OutRsts"] == before["Tcp:OutRsts"] + 1


def test_where_loopback_was_never_up_it_says_so_instead_of_a_verdict(ns: Namespace, asking: Asking) -> None:
    """A device that was set up once keeps its address when it is set down, and the probe keeps working."""
    ns.call(sockets.listen, HERE, PORT, tag="blocking")
    ns.call(ip, "link", "set", "lo", "down")
    assert asking.call(ask, [PORT, PORT + 1]) == {PORT: False, PORT + 1: True}

    ns.call(ip, "address", "flush", "dev", "lo")  # as it is before it is set up for the first time
    with pytest.raises(ProbeUnavailableError) as raised:
        asking.call(ask, [PORT])
    assert str(raised.value) == LOOPBACK_NEVER_UP


def test_a_port_that_has_left_the_range_is_no_verdict(ns: Namespace, asking: Asking) -> None:
    """The kernel ignores a limit outside the range and takes any port."""
    ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", "50000 50099")

    with pytest.raises(KernelError) as raised:
        asking.call(ask, [PORT])
    assert (str(raised.value), raised.value.reason) == (OTHER_RANGE, "sysctl")


def ask_without_descriptors() -> dict[int, bool]:
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
    return ask([PORT])


def test_without_a_descriptor_it_says_so(ns: Namespace) -> None:
    with pytest.raises(KernelError) as raised:
        ns.call(as_ordinary_user, ask_without_descriptors)

    assert str(raised.value).startswith("Too many open files; ")


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES])
def test_where_connect_is_forbidden_it_says_so(ns: Namespace, number: int) -> None:
    sandboxed = ns.another_agent()
    sandboxed.call(refuse_to_connect, number)

    with pytest.raises(ProbeUnavailableError) as raised:
        sandboxed.call(ask, [PORT])
    assert str(raised.value) == FORBIDDEN.format(os.strerror(number))


def ask_with_ticks(ports: Sequence[int], seconds: int) -> dict[int, bool]:
    """Ask while each look at the clock takes a second."""
    return probe(ports, Deadline(seconds, itertools.count().__next__))


def test_what_was_answered_when_the_time_is_up_counts(ns: Namespace, asking: Asking) -> None:
    ns.call(sockets.listen, HERE, PORT, tag="blocking")

    assert asking.call(ask_with_ticks, range(PORT, HIGH), 1) == {}
    assert asking.call(ask_with_ticks, range(PORT, HIGH), 3) == {PORT: False, PORT + 1: True}


def test_it_ends_when_it_is_reported_to_stop(ns: Namespace) -> None:
    with pytest.raises(StopRequestedError):
        ns.call(ask_unwanted)


def ask_unwanted() -> None:
    probe([PORT], Deadline(10.0, time.monotonic, lambda: False))


# --- questions ----------------------------------------------------------------------------------------------------


def ask_in_parts(seconds: int) -> tuple[Answers, list[dict[int, bool]]]:
    """Ask about two ports and then two more, a port a second; return the answers, and what the asker was told."""
    told: list[dict[int, bool]] = []

    def questions() -> Questions:
        told.append(dict((yield [PORT, PORT + 1])))
        told.append(dict((yield [PORT + 2, PORT + 3])))

    return ask_in_turn(questions(), Deadline(seconds + 1, itertools.count().__next__)), told


def test_who_asks_is_told_each_answer_before_the_next_question(ns: Namespace) -> None:
    ns.call(sockets.listen, HERE, PORT, tag="blocking")
    first, second = {PORT: False, PORT + 1: True}, {PORT + 2: True, PORT + 3: True}

    assert ns.call(ask_in_parts, 9) == (Answers(first | second, is_cut=False), [first, second])


def test_questions_end_when_the_time_is_up(ns: Namespace) -> None:
    assert ns.call(ask_in_parts, 3) == (
        Answers({PORT: True, PORT + 1: True, PORT + 2: True}, is_cut=True),
        [{PORT: True, PORT + 1: True}],
    )
