"""One reading of a live namespace: the backends agree with each other and with ss, and what fails is named."""

from __future__ import annotations

import errno
import itertools
import socket
import subprocess
import time
from collections import Counter
from contextlib import suppress
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ephmon.errors import KernelError, StopRequestedError
from ephmon.facts.snapshot import PortRange
from ephmon.facts.sockets import Backend, Blindness, Capability, Protocol, SocketTable, TcpState
from ephmon.kernel.netlink import inet_diag
from ephmon.kernel.netlink.sock_diag import InterruptedDumpError, Request, SockDiag
from ephmon.kernel.source import SocketSource
from tests import sockets
from tests.kernel import every_socket
from tests.kernel.every_socket import PORT_RANGE
from tests.kernel.seccomp import BIND, GETSOCKNAME, refuse, refuse_netlink
from tests.namespaces import Namespace
from tests.processes import make_proc
from tests.sockets import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ephmon.facts.snapshot import NamespaceSnapshot
    from ephmon.kernel.deadline import Deadline

PROC = Path("/proc")
MINUTE = 60.0
TCP, UDP = Protocol.TCP, Protocol.UDP
DIAG, PROCFS = Backend.INET_DIAG, Backend.PROCFS
NO_HANDLER = "The kernel has no inet_diag handler for the protocol."
NO_SOCKET = "The socket for inet_diag cannot be opened: Address family not supported by protocol (EAFNOSUPPORT)."
WHAT_HELPS = "Load the kernel modules tcp_diag and udp_diag, allow AF_NETLINK, or set poll.backend: auto."

Row = tuple[str, str, int, str, int]
"""State, local address and port, peer's address and port; addresses in canonical text, IPv4-mapped ones as IPv4."""


@pytest.fixture(name="ns")
def _ns() -> Iterator[Namespace]:
    with Namespace() as ns:
        ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", f"{PORT_RANGE.low} {PORT_RANGE.high}")
        yield ns


def source(
    mode: str = "auto",
    *,
    proc: Path = PROC,
    open_diag: Callable[[], SockDiag] = SockDiag,
    wanted: Callable[[], bool] = lambda: True,
) -> SocketSource:
    return SocketSource(
        proc=proc, clock=time.monotonic, wall_clock=time.time, mode=mode, open_diag=open_diag, wanted=wanted
    )


def read(
    mode: str = "auto", open_diag: Callable[[], SockDiag] = SockDiag, *, proc: Path = PROC, seconds: float = MINUTE
) -> NamespaceSnapshot:
    """Read the namespace once."""
    (namespace,) = source(mode, proc=proc, open_diag=open_diag).read(seconds).namespaces
    return namespace


# --- agreement ----------------------------------------------------------------------------------------------------


def rows(*tables: SocketTable) -> Counter[Row]:
    """Return the rows of tables without what only one of the backends tells."""
    return Counter(
        (
            TcpState(group.state).name,
            str(ip_address(group.source)),
            port,
            str(ip_address(group.destination)),
            group.destination_port,
        )
        for table in tables
        for group, port in ((table.groups[i], port) for i, port in zip(table.group_of, table.port_of, strict=True))
    )


def shown_by_ss(ns: Namespace, options: str) -> Counter[Row]:
    """Return what ss shows inside the port range; of UDP without the peers, which no backend tells either."""
    printed = subprocess.run(ns.command("ss", options), capture_output=True, text=True, timeout=10, check=True).stdout
    found = (_row_of_ss(line, with_peer="t" in options) for line in printed.splitlines())
    return Counter(row for row in found if PORT_RANGE.low <= row[2] <= PORT_RANGE.high)


_STATES_OF_SS = {"ESTAB": "ESTABLISHED", "UNCONN": "CLOSE", "FIN-WAIT-1": "FIN_WAIT1", "FIN-WAIT-2": "FIN_WAIT2"}


def _row_of_ss(line: str, *, with_peer: bool) -> Row:
    state, _, _, local, peer = line.split()[:5]
    source, port = _endpoint_of_ss(local)
    destination, destination_port = _endpoint_of_ss(peer)
    if not (with_peer and destination_port):
        destination, destination_port = "::" if ":" in source else "0.0.0.0", 0
    return _STATES_OF_SS.get(state, state.replace("-", "_")), source, port, destination, destination_port


def _endpoint_of_ss(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    address = ip_address("::" if host == "*" else host.strip("[]"))
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address), 0 if port == "*" else int(port)


def test_tcp_sockets_of_all_sorts_are_the_same_by_inet_diag_by_procfs_and_in_ss(ns: Namespace) -> None:
    """But for what listeners accepted, which inet_diag leaves out."""
    ns.call(every_socket.open_tcp)

    by_procfs, by_diag, in_ss = ns.call(read, "procfs").tcp, ns.call(read, "inet_diag").tcp, shown_by_ss(ns, "-tanH")
    assert by_procfs is not None
    assert by_diag is not None
    accepted = Counter({row: n for row, n in in_ss.items() if row[2] < 40_100 and row[0] != "LISTEN"})

    assert rows(by_procfs.bound, by_procfs.connections) == in_ss
    assert accepted.total() == 7
    assert rows(by_diag.bound, by_diag.connections) == in_ss - accepted
    assert by_diag.explicit_ports == {41_001, 41_002, 41_003, 41_008, 41_009, 41_010, 41_011}


def test_udp_sockets_of_all_sorts_are_the_same_by_inet_diag_by_procfs_and_in_ss(ns: Namespace) -> None:
    ns.call(every_socket.open_udp)

    by_procfs, by_diag, in_ss = ns.call(read, "procfs").udp, ns.call(read, "inet_diag").udp, shown_by_ss(ns, "-uanH")
    assert by_procfs is not None
    assert by_diag is not None

    assert in_ss.total() == len(every_socket.UDP)
    assert rows(by_procfs.sockets) == rows(by_diag.sockets) == in_ss


def test_a_reading_tells_what_namespace_it_is_of_and_what_cannot_be_seen(ns: Namespace) -> None:
    by_diag, by_procfs = ns.call(read, "inet_diag"), ns.call(read, "procfs")

    for reading, backend in ((by_diag, DIAG), (by_procfs, PROCFS)):
        assert (reading.netns, reading.inode, reading.missing) == ("own", ns.inode, {})
        assert reading.sysctls.port_range == PORT_RANGE
        assert reading.backends == {TCP: backend, UDP: backend}
    assert by_procfs.tcp is not None
    assert by_procfs.tcp.blind_to == set(Blindness) - {Blindness.VRF}


def test_the_moment_and_the_length_of_a_reading_are_those_of_the_clocks() -> None:
    clock = itertools.count(100.0, 0.5)
    reading = SocketSource(proc=PROC, clock=clock.__next__, wall_clock=lambda: 1767323045.006).read(1e6)

    assert reading.taken_at == 1767323045.006
    assert reading.duration_seconds == next(clock) - 0.5 - 100.0


# --- which backend ------------------------------------------------------------------------------------------------


class LacksBoth(SockDiag):
    """Asks the kernel for a protocol that no kernel has a handler for, whatever it is asked."""

    lacks: tuple[int, ...] = (inet_diag.TCPDIAG_GETSOCK, inet_diag.SOCK_DIAG_BY_FAMILY)

    def dump(self, request: Request, consume: Callable[[int, bytearray], None], deadline: Deadline) -> None:
        if request.message_type in self.lacks:
            # 253 is for experiments: RFC 3692.
            request = inet_diag.family_request(253, socket.AF_INET, inet_diag.ALL_STATES, [])
        super().dump(request, consume, deadline)


class LacksTcp(LacksBoth):
    lacks = (inet_diag.TCPDIAG_GETSOCK,)


class LacksUdp(LacksBoth):
    lacks = (inet_diag.SOCK_DIAG_BY_FAMILY,)


def read_by_turns(
    turns: Sequence[type[SockDiag]], proc: Path = PROC, socket_counts: Sequence[int] = ()
) -> list[tuple[Backend, Backend]]:
    """Return the backends of TCP and UDP each time; see `fall_back_by_turns`."""
    return [(backends[TCP], backends[UDP]) for backends, _, _ in fall_back_by_turns(turns, proc, socket_counts)]


def fall_back_by_turns(
    turns: Sequence[type[SockDiag]], proc: Path = PROC, socket_counts: Sequence[int] = ()
) -> list[tuple[dict[Protocol, Backend], dict[Protocol, str], bool]]:
    """Read with each kind of socket in turn.

    Return the backends, why they are not others, and whether narrow polls would do, each time.

    `proc` says that there are so many sockets of each protocol, if a number is given for the turn.
    """
    kind: type[SockDiag] = SockDiag
    reader = source(proc=proc, open_diag=lambda: kind())  # noqa: PLW0108 - whichever it is by then
    found = []
    for kind, count in itertools.zip_longest(turns, socket_counts):  # noqa: B007 - read by the lambda
        if count is not None:
            say_count(proc, tcp=count, udp=count)
        (namespace,) = reader.read(MINUTE).namespaces
        found.append(
            (dict(namespace.backends), dict(namespace.fallbacks), Capability.NARROW_POLLS in reader.capabilities)
        )
    return found


def test_a_protocol_without_a_handler_is_read_by_procfs_until_three_tries_in_a_row_were_good(ns: Namespace) -> None:
    turns = [SockDiag, LacksBoth, SockDiag, SockDiag, LacksBoth, SockDiag, SockDiag, SockDiag, SockDiag]

    found = [backends[0] for backends in ns.call(read_by_turns, turns)]

    assert found == [DIAG, PROCFS, PROCFS, PROCFS, PROCFS, PROCFS, PROCFS, DIAG, DIAG]


def test_why_procfs_is_read_is_reported_for_as_long_as_it_is(ns: Namespace) -> None:
    found = ns.call(fall_back_by_turns, [SockDiag, LacksTcp, LacksBoth, SockDiag, SockDiag, SockDiag])

    both = {TCP: NO_HANDLER, UDP: NO_HANDLER}
    assert [fallbacks for _, fallbacks, _ in found] == [{}, {TCP: NO_HANDLER}, both, both, both, {}]


def test_procfs_that_was_chosen_stands_in_for_nothing(ns: Namespace) -> None:
    assert ns.call(read, "procfs").fallbacks == {}


def test_narrow_polls_would_do_while_tcp_is_read_by_inet_diag(ns: Namespace) -> None:
    found = ns.call(fall_back_by_turns, [LacksUdp, LacksTcp, SockDiag, SockDiag, SockDiag])

    assert [narrow for _, _, narrow in found] == [True, False, False, False, True]
    assert ns.call(would_read_narrowly) == [False, True, True]


def would_read_narrowly() -> list[bool]:
    """Return whether narrow polls would do before a reading, after it, and after one that failed."""
    reader = source()
    told = [Capability.NARROW_POLLS in reader.capabilities]
    for seconds in (MINUTE, 1e-9):
        with suppress(KernelError):
            reader.read(seconds)
        told.append(Capability.NARROW_POLLS in reader.capabilities)
    return told


def test_each_protocol_has_a_backend_of_its_own(ns: Namespace) -> None:
    assert ns.call(read_by_turns, [LacksTcp, LacksUdp]) == [(PROCFS, DIAG), (PROCFS, PROCFS)]


def test_what_is_read_instead_is_what_there_is(ns: Namespace) -> None:
    ns.call(sockets.listen, "127.0.0.1", 40_007, tag="server")
    namespace = ns.call(read, "auto", LacksBoth)

    assert namespace.backends == {TCP: PROCFS, UDP: PROCFS}
    assert namespace.tcp is not None
    assert rows(namespace.tcp.bound) == Counter([("LISTEN", "127.0.0.1", 40_007, "0.0.0.0", 0)])


def test_a_sandbox_without_netlink_is_read_by_procfs(ns: Namespace) -> None:
    sandboxed = ns.another_agent()
    sandboxed.call(refuse_netlink)

    reading = sandboxed.call(read, "auto")
    assert reading.backends == {TCP: PROCFS, UDP: PROCFS}
    assert reading.fallbacks == {TCP: NO_SOCKET, UDP: NO_SOCKET}
    with pytest.raises(KernelError) as caught:
        sandboxed.call(read, "inet_diag")
    assert str(caught.value) == f"{NO_SOCKET} {WHAT_HELPS}"


@pytest.mark.parametrize("system_call", [BIND, GETSOCKNAME], ids=["bind", "getsockname"])
def test_a_sandbox_that_refuses_to_set_a_netlink_socket_up_is_read_by_procfs(ns: Namespace, system_call: int) -> None:
    sandboxed = ns.another_agent()
    sandboxed.call(refuse, system_call)

    reading = sandboxed.call(read, "auto")

    sentence = "The socket for inet_diag cannot be set up: Operation not permitted (EPERM)."
    assert reading.backends == {TCP: PROCFS, UDP: PROCFS}
    assert reading.fallbacks == {TCP: sentence, UDP: sentence}


def proc_that_counts(folder: Path, *, tcp: int, udp: int) -> Path:
    """Make a procfs that shows the reader's own sockets, and says that there are so many."""
    (folder / "sys").symlink_to("/proc/sys")
    (folder / "self").symlink_to("/proc/self")
    net = folder / "net"
    net.mkdir()
    for name in ("tcp", "tcp6", "udp", "udp6"):
        (net / name).symlink_to(f"/proc/self/net/{name}")
    say_count(folder, tcp=tcp, udp=udp)
    return folder


def say_count(proc: Path, *, tcp: int, udp: int) -> None:
    sockstat = f"TCP: inuse {tcp} orphan 0 tw 0 alloc 0 mem 0\nUDP: inuse {udp} mem 0\n"
    (proc / "net" / "sockstat").write_text(sockstat, encoding="ascii")


def test_procfs_is_read_below_50000_sockets(ns: Namespace, tmp_path: Path) -> None:
    proc = proc_that_counts(tmp_path, tcp=49_999, udp=49_999)

    assert ns.call(read, "auto", LacksBoth, proc=proc).backends == {TCP: PROCFS, UDP: PROCFS}


def test_procfs_is_not_read_from_50000_sockets_on_unless_it_was_chosen(ns: Namespace, tmp_path: Path) -> None:
    proc = proc_that_counts(tmp_path, tcp=50_000, udp=49_999)
    sentence = (
        f"{NO_HANDLER} /proc/net is slow from 50,000 sockets on, so it is not read instead. "
        "Load the kernel modules tcp_diag and udp_diag, allow AF_NETLINK, or set poll.backend: procfs."
    )

    reading = ns.call(read, "auto", LacksBoth, proc=proc)

    assert (reading.backends, reading.missing, reading.tcp) == ({UDP: PROCFS}, {TCP: sentence}, None)
    assert ns.call(read, "procfs", proc=proc).backends == {TCP: PROCFS, UDP: PROCFS}


def test_with_50000_sockets_the_first_good_try_is_enough_to_return(ns: Namespace, tmp_path: Path) -> None:
    """Reading so many from procfs twice more would be worse than a backend that comes and goes."""
    proc = proc_that_counts(tmp_path, tcp=0, udp=0)

    found = ns.call(read_by_turns, [LacksBoth, SockDiag], proc, [49_999, 50_000])

    assert found == [(PROCFS, PROCFS), (DIAG, DIAG)]


@pytest.mark.parametrize("mode", ["inet_diag", "procfs"])
def test_whether_ports_recover_is_reported_by_the_release_that_procfs_shows(
    ns: Namespace, tmp_path: Path, mode: str
) -> None:
    """And not by that of uname(), which the personality UNAME26 changes."""
    proc = make_proc(tmp_path)
    release = proc / "sys/kernel/osrelease"
    found = []
    for text in ("6.17.9\n", "6.18.0\n"):
        release.unlink()
        release.write_text(text, encoding="ascii")
        tcp = ns.call(read, mode, proc=proc).tcp
        found.append(tcp and tcp.ports_recover)

    assert found == [False, True]


# --- what fails ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lacking", "missing", "read_still"), [(LacksTcp, TCP, UDP), (LacksUdp, UDP, TCP)])
def test_a_protocol_that_cannot_be_read_does_not_fail_the_other(
    ns: Namespace, lacking: type[SockDiag], missing: Protocol, read_still: Protocol
) -> None:
    reading = ns.call(read, "inet_diag", lacking)

    assert (reading.backends, reading.missing) == ({read_still: DIAG}, {missing: f"{NO_HANDLER} {WHAT_HELPS}"})
    assert {TCP: reading.tcp is None, UDP: reading.udp is None} == {missing: True, read_still: False}


def test_a_reading_that_brings_neither_protocol_fails_and_says_why_once(ns: Namespace) -> None:
    with pytest.raises(KernelError) as caught:
        ns.call(read, "inet_diag", LacksBoth)

    assert (str(caught.value), caught.value.reason) == (f"{NO_HANDLER} {WHAT_HELPS}", "unavailable")


@pytest.mark.parametrize("mode", ["auto", "inet_diag", "procfs"])
def test_a_reading_that_takes_too_long_fails_as_a_whole(ns: Namespace, mode: str) -> None:
    with pytest.raises(KernelError, match=r"longer than poll.deadline \(1e-09 s\) and was cancelled; raise") as caught:
        ns.call(read, mode, seconds=1e-9)

    assert caught.value.reason == "deadline"


def read_until_told_to_stop(mode: str) -> NamespaceSnapshot:
    (namespace,) = source(mode, wanted=lambda: False).read(MINUTE).namespaces
    return namespace


@pytest.mark.parametrize("mode", ["auto", "inet_diag", "procfs"])
def test_a_reading_that_is_not_wanted_any_more_ends(ns: Namespace, mode: str) -> None:
    with pytest.raises(StopRequestedError):
        ns.call(read_until_told_to_stop, mode)


class Interrupted(SockDiag):
    """Says of the first dumps of the process that they are inconsistent, as no test can make the kernel do."""

    left = 0

    def dump(self, request: Request, consume: Callable[[int, bytearray], None], deadline: Deadline) -> None:
        super().dump(request, consume, deadline)
        if Interrupted.left:
            Interrupted.left -= 1
            raise InterruptedDumpError("The dump is inconsistent.")


def read_interrupted(times: int) -> NamespaceSnapshot:
    Interrupted.left = times
    return read("auto", Interrupted)


def test_a_dump_that_the_kernel_calls_inconsistent_is_made_once_more(ns: Namespace) -> None:
    ns.call(sockets.listen, "127.0.0.1", 40_007, tag="server")
    once, twice = ns.call(read_interrupted, 1), ns.call(read_interrupted, 2)

    assert once.backends == {TCP: DIAG, UDP: DIAG}
    assert once.tcp is not None
    assert rows(once.tcp.bound) == Counter([("LISTEN", "127.0.0.1", 40_007, "0.0.0.0", 0)])
    assert (twice.backends, twice.missing) == ({UDP: DIAG}, {TCP: "The dump is inconsistent."})


def read_while_it_changes(sysctl: str, values: Sequence[str]) -> tuple[NamespaceSnapshot, int]:
    """Read while a sysctl takes these values, one in each reading; return how many sockets were opened for it, too."""
    opened = itertools.count()
    changes = iter(values)

    def open_diag() -> SockDiag:
        is_for_tcp = next(opened) % 2 == 0
        if is_for_tcp and (value := next(changes, None)) is not None:
            sockets.write_sysctl(sysctl, value)
        return SockDiag()

    return read("inet_diag", open_diag), next(opened)


def test_a_range_that_changes_meanwhile_is_read_anew(ns: Namespace) -> None:
    ns.call(sockets.listen, "127.0.0.1", 45_007, tag="server")

    reading, opened = ns.call(read_while_it_changes, "net.ipv4.ip_local_port_range", ["45000 45999"])

    assert opened == 4
    assert reading.sysctls.port_range == PortRange(45_000, 45_999)
    assert reading.tcp is not None
    assert list(reading.tcp.bound.port_of) == [45_007]


def test_reserved_ports_that_change_meanwhile_are_read_anew(ns: Namespace) -> None:
    reading, opened = ns.call(read_while_it_changes, "net.ipv4.ip_local_reserved_ports", ["40010-40019"])

    assert (opened, reading.sysctls.reserved_ports) == (4, frozenset(range(40_010, 40_020)))


@pytest.mark.parametrize(
    ("sysctl", "values"),
    [
        ("net.ipv4.ip_local_port_range", ["45000 45999", "46000 46999"]),
        ("net.ipv4.ip_local_reserved_ports", ["40010", "40011"]),
    ],
)
def test_ports_that_change_in_two_readings_in_a_row_fail_it(ns: Namespace, sysctl: str, values: list[str]) -> None:
    with pytest.raises(KernelError, match=r"changed during two readings in a row; the next poll tries again") as caught:
        ns.call(read_while_it_changes, sysctl, values)

    assert caught.value.reason == "sysctl"


def test_another_sysctl_that_changes_meanwhile_is_left_to_the_next_poll(ns: Namespace) -> None:
    assert ns.call(read_while_it_changes, "net.ipv4.tcp_tw_reuse", ["1"])[1] == 2


# --- what is left behind ------------------------------------------------------------------------------------------


def read_often(times: int) -> tuple[list[str], list[str]]:
    """Return the open descriptors before and after."""
    reader = source()
    before = descriptors()
    for _ in range(times):
        reader.read(MINUTE)
    return before, descriptors()


def descriptors() -> list[str]:
    return sorted(entry.name for entry in Path("/proc/self/fd").iterdir())


def test_nothing_stays_open_after_a_reading(ns: Namespace) -> None:
    """An open netlink socket would keep the namespace alive."""
    before, after = ns.call(read_often, 5)

    assert before == after


def test_a_reading_takes_no_port_of_the_range(ns: Namespace) -> None:
    """It works with every port taken, and is right about it."""
    ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", "40000 40099")
    filled = ns.call(sockets.open_sockets, Recipe(bind=("0.0.0.0", 0)), tag="held", limit=1_000)

    reading = ns.call(read, "inet_diag")

    assert filled == sockets.FillResult(100, errno.EADDRINUSE)
    assert reading.tcp is not None
    assert reading.tcp.blind_to or set(reading.tcp.bound.port_of) == set(range(40_000, 40_100))
