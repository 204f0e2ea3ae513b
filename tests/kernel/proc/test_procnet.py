"""The text tables of /proc/net: as captured from a kernel, as damaged by chance, and live."""

from __future__ import annotations

import io
import time
from collections import Counter
from functools import partial
from ipaddress import ip_address
from itertools import count
from pathlib import Path
from socket import AF_INET, AF_INET6
from typing import TYPE_CHECKING, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ephmon.errors import KernelError
from ephmon.facts.snapshot import PortRange
from ephmon.facts.socket_groups import SocketGroup
from ephmon.facts.sockets import Blindness, SocketTable, TcpSockets, TcpState, UdpSockets
from ephmon.kernel.deadline import Deadline
from ephmon.kernel.proc.procnet import decode_address, parse_table, read_tcp, read_udp
from ephmon.kernel.proc.sysctl import Sockstat, read_sockstat
from tests.kernel.every_socket import (
    BOUND,
    CLOSE,
    CONNECTIONS,
    LISTEN,
    PORT_RANGE,
    UDP,
    Seen,
    open_tcp,
    open_udp,
)
from tests.namespaces import Namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ephmon.kernel.proc.procnet import Row

CAPTURED = Path(__file__).parents[1] / "data" / "procnet"
ALL_PORTS = PortRange(0, 65535)


def minute() -> Deadline:
    return Deadline(60, time.monotonic)


def rows(table: SocketTable) -> list[Seen]:
    def seen(group: SocketGroup, port: int) -> Seen:
        source, destination = str(ip_address(group.source)), str(ip_address(group.destination))
        return Seen(port, group.state, source, destination, group.destination_port, group.minisock, group.dual_stack)

    return [seen(table.groups[group], port) for group, port in zip(table.group_of, table.port_of, strict=True)]


def left_ms(table: SocketTable) -> dict[int, int]:
    """Return what TIME_WAIT structures have left, by local port."""
    columns = zip(table.group_of, table.port_of, table.time_wait_left_ms_of, strict=True)
    return {port: left for group, port, left in columns if table.groups[group].minisock}


def captured_proc(tmp_path: Path, *names: str) -> Path:
    """Return the root of a procfs that has these captured tables."""
    (tmp_path / "net").mkdir()
    for name in names:
        (tmp_path / "net" / name).write_bytes((CAPTURED / name).read_bytes())
    return tmp_path


def parse(content: bytes, name: str, port_range: PortRange = ALL_PORTS) -> list[Row]:
    family = AF_INET6 if name.endswith("6") else AF_INET
    lines = io.BytesIO(content).readlines()
    table = parse_table(lines, family, port_range, Path("/proc/net") / name, ticks_per_second=100, byteorder="little")
    return list(table)


# --- captured tables ----------------------------------------------------------------------------------------------


def test_captured_tcp_tables_give_every_socket_inside_the_range_once(tmp_path: Path) -> None:
    tcp = read_tcp(captured_proc(tmp_path, "tcp", "tcp6"), PORT_RANGE, minute())

    assert Counter(rows(tcp.bound)) == Counter(BOUND)
    assert Counter(rows(tcp.connections)) == Counter(CONNECTIONS)


def test_captured_udp_tables_give_every_socket_inside_the_range_once(tmp_path: Path) -> None:
    udp = read_udp(captured_proc(tmp_path, "udp", "udp6"), PORT_RANGE, minute())

    assert Counter(rows(udp.sockets)) == Counter(UDP)


def test_sockets_that_differ_only_in_their_port_share_a_group(tmp_path: Path) -> None:
    tcp = read_tcp(captured_proc(tmp_path, "tcp", "tcp6"), PORT_RANGE, minute())

    loopback = [group for group in tcp.bound.groups if group.source == bytes([127, 0, 0, 1]) and not group.dual_stack]
    assert loopback == [SocketGroup(LISTEN, bytes([127, 0, 0, 1]), bytes(4), 0)]
    assert len(set(tcp.connections.groups)) == len(tcp.connections.groups)


def test_what_the_tables_do_not_show_is_named(tmp_path: Path) -> None:
    proc = captured_proc(tmp_path, "tcp", "udp")

    tcp, udp = read_tcp(proc, PORT_RANGE, minute()), read_udp(proc, PORT_RANGE, minute())

    assert tcp.blind_to == {Blindness.BOUND_UNCONNECTED, Blindness.BOUND_DEVICE, Blindness.V6ONLY}
    assert udp.blind_to == {Blindness.BOUND_DEVICE, Blindness.V6ONLY}
    assert tcp.explicit_ports == frozenset()


def test_both_ends_of_the_range_belong_to_it() -> None:
    content = (CAPTURED / "tcp").read_bytes()

    assert {row.port for row in parse(content, "tcp", PortRange(40006, 40008))} == {40006, 40007, 40008}
    assert {row.port for row in parse(content, "tcp", PortRange(80, 80))} == {80}


# --- lines by hand ------------------------------------------------------------------------------------------------

HEADINGS = b"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
TIME_WAIT_ROW = b"   0: 0100007F:A024 0100007F:9C41 06 00000000:00000000 03:0000176A 00000000     0        0 0 3 0\n"


@pytest.mark.parametrize(
    ("ticks", "ticks_per_second", "milliseconds"),
    [(b"00000000", 100, 0), (b"0000176A", 100, 59_940), (b"0000176A", 1000, 5_994), (b"FFFFFFFF", 100, 65_535)],
)
def test_clock_ticks_left_become_milliseconds_of_at_most_16_bits(
    ticks: bytes, ticks_per_second: int, milliseconds: int
) -> None:
    lines = [HEADINGS, TIME_WAIT_ROW.replace(b"0000176A", ticks)]

    (row,) = parse_table(lines, AF_INET, ALL_PORTS, Path("tcp"), ticks_per_second=ticks_per_second)

    assert row.minisock
    assert row.left_ms == milliseconds


@pytest.mark.parametrize(
    ("text", "byteorder", "address"),
    [
        (b"0100007F", "little", "127.0.0.1"),
        (b"7F000001", "big", "127.0.0.1"),
        (b"B80D0120000000000000000009000000", "little", "2001:db8::9"),
        (b"20010DB8000000000000000000000009", "big", "2001:db8::9"),
        (b"0000000000000000FFFF00000100007F", "little", "127.0.0.1"),
        (b"00000000000000000000FFFF7F000001", "big", "127.0.0.1"),
        (b"00000000000000000000000000000000", "little", "::"),
    ],
)
def test_addresses_are_words_as_the_machine_reads_them(
    text: bytes, byteorder: Literal["little", "big"], address: str
) -> None:
    assert str(ip_address(decode_address(text, byteorder))) == address


def test_an_unknown_state_stays_a_number() -> None:
    row = TIME_WAIT_ROW.replace(b" 06 ", b" 0F ").replace(b" 03:", b" 00:")

    assert parse(HEADINGS + row, "tcp")[0].state == 15


@pytest.mark.parametrize(
    "damaged",
    [
        TIME_WAIT_ROW.replace(b" 06 ", b" 6 "),
        TIME_WAIT_ROW.replace(b"0100007F", b"0100007G", 1),
        TIME_WAIT_ROW.replace(b"0100007F", b"0100007F00000000", 1),
        TIME_WAIT_ROW.replace(b"A024", b"1A024"),
        TIME_WAIT_ROW.replace(b" 03:", b" 00:"),
        TIME_WAIT_ROW.replace(b" 06 ", b" 01 "),
        TIME_WAIT_ROW.replace(b" 3 0\n", b" 3\n"),
        TIME_WAIT_ROW.replace(b"\n", b" ") + TIME_WAIT_ROW,
        TIME_WAIT_ROW.removesuffix(b"\n"),
        b"\n",
        HEADINGS,
    ],
    ids=[
        "one digit for the state",
        "a digit that is none",
        "an address of another family",
        "a port of more than 16 bits",
        "TIME_WAIT without its timer",
        "a timer of TIME_WAIT in another state",
        "a column too few",
        "two rows in one",
        "no end of the line",
        "an empty line",
        "headings again",
    ],
)
def test_a_row_that_the_kernel_does_not_write_raises_with_file_and_line(damaged: bytes) -> None:
    with pytest.raises(KernelError, match=r"^/proc/net/tcp, line 3") as caught:
        parse(HEADINGS + TIME_WAIT_ROW + damaged, "tcp", PortRange(1, 1))  # also of rows outside the range

    assert caught.value.reason == "procfs"


@pytest.mark.parametrize("content", [b"", TIME_WAIT_ROW, HEADINGS.replace(b"\n", b" ") + TIME_WAIT_ROW])
def test_a_table_without_its_headings_is_not_an_empty_table(content: bytes) -> None:
    with pytest.raises(KernelError, match=r"^/proc/net/tcp, line 1"):
        parse(content, "tcp")


def test_the_error_quotes_the_line() -> None:
    with pytest.raises(KernelError) as caught:
        parse(HEADINGS + b"\x1b[2J nonsense\n", "tcp")

    assert str(caught.value) == (r"/proc/net/tcp, line 2: '\x1b[2J nonsense\n' is not a row as the kernel writes it.")


# --- laws of damaged tables ---------------------------------------------------------------------------------------

tables = st.sampled_from(["tcp", "tcp6", "udp", "udp6"])


@given(name=tables, data=st.data())
def test_a_cut_table_raises_unless_cut_between_lines(name: str, data: st.DataObject) -> None:
    content = (CAPTURED / name).read_bytes()
    cut = content[: data.draw(st.integers(0, len(content) - 1))]

    if cut.endswith(b"\n"):
        assert len(parse(cut, name)) == cut.count(b"\n") - 1
    else:
        with pytest.raises(KernelError):
            parse(cut, name)


@given(name=tables, byte=st.integers(0, 255), data=st.data())
def test_a_changed_byte_raises_or_leaves_the_number_of_rows_as_it_is(name: str, byte: int, data: st.DataObject) -> None:
    content = bytearray((CAPTURED / name).read_bytes())
    rows_before = content.count(b"\n") - 1
    content[data.draw(st.integers(0, len(content) - 1))] = byte

    try:
        parsed = parse(bytes(content), name)
    except KernelError:
        return
    assert len(parsed) == rows_before


@given(name=tables, data=st.data())
def test_a_lost_newline_never_hides_a_row(name: str, data: st.DataObject) -> None:
    content = (CAPTURED / name).read_bytes()
    ends = [place for place, byte in enumerate(content) if byte == ord("\n")]
    place = data.draw(st.sampled_from(ends))
    replacement = data.draw(st.sampled_from([b"", b" ", b"0"]))

    with pytest.raises(KernelError):
        parse(content[:place] + replacement + content[place + 1 :], name)


# --- files --------------------------------------------------------------------------------------------------------


def test_where_ipv6_is_off_there_are_only_the_tables_of_ipv4(tmp_path: Path) -> None:
    proc = captured_proc(tmp_path, "tcp", "udp")

    assert {row.port for row in rows(read_tcp(proc, PORT_RANGE, minute()).bound)} == {40001, 40006, 40007, 40008}
    assert {row.port for row in rows(read_udp(proc, PORT_RANGE, minute()).sockets)} == {42001, 42002}


@pytest.mark.parametrize("read", [read_tcp, read_udp])
def test_that_the_table_of_ipv4_is_absent_is_an_error(
    read: Callable[[Path, PortRange, Deadline], object], tmp_path: Path
) -> None:
    proc = captured_proc(tmp_path, "tcp6", "udp6")

    with pytest.raises(KernelError, match=rf"^{proc}/net/(tcp|udp) cannot be read \(No such file or directory\)"):
        read(proc, PORT_RANGE, minute())


def test_that_the_table_of_ipv6_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    proc = captured_proc(tmp_path, "tcp")
    (proc / "net" / "tcp6").mkdir()

    with pytest.raises(KernelError, match=r"net/tcp6 cannot be read \(Is a directory\)") as caught:
        read_tcp(proc, PORT_RANGE, minute())

    assert caught.value.reason == "procfs"


def test_the_deadline_ends_a_read_between_chunks(tmp_path: Path) -> None:
    proc = captured_proc(tmp_path, "udp")
    (proc / "net" / "tcp").write_bytes(HEADINGS + TIME_WAIT_ROW * 20_000)
    now = count()  # every look at the clock takes a second

    with pytest.raises(KernelError) as caught:
        read_tcp(proc, PORT_RANGE, Deadline(3, partial(next, now)))

    assert caught.value.reason == "deadline"
    assert next(now) < 6


# --- live ---------------------------------------------------------------------------------------------------------


def read_live() -> tuple[TcpSockets, UdpSockets, Sockstat]:
    proc = Path("/proc")
    return read_tcp(proc, ALL_PORTS, minute()), read_udp(proc, ALL_PORTS, minute()), read_sockstat(proc)


def settled(connections: Iterable[Seen]) -> bool:
    """Tell whether the kernel is done with the handshakes and the FINs, which softirqs may process later."""
    return set(connections) == CONNECTIONS


def test_the_tables_of_a_live_namespace_show_the_sockets_that_are_open_in_it() -> None:
    with Namespace() as namespace:
        namespace.call(open_tcp)
        namespace.call(open_udp)
        give_up_at = time.monotonic() + 10
        tcp, udp, sockstat = namespace.call(read_live)
        while not settled(rows(tcp.connections)) and time.monotonic() < give_up_at:
            tcp, udp, sockstat = namespace.call(read_live)

    assert Counter(rows(tcp.connections)) == Counter(CONNECTIONS)
    assert Counter(rows(tcp.bound)) == Counter(BOUND | {Seen(80, LISTEN, "127.0.0.1", "0.0.0.0", 0)})
    assert Counter(rows(udp.sockets)) == Counter(UDP | {Seen(80, CLOSE, "127.0.0.1", "0.0.0.0", 0)})
    left = left_ms(tcp.connections)
    assert left.keys() == {41004, 41005, 41006, 41007}
    assert all(40_000 < milliseconds <= 60_000 for milliseconds in left.values())
    requests = sum(row.state == TcpState.SYN_RECV for row in rows(tcp.connections))
    assert sockstat.tcp == len(tcp.bound) + len(tcp.connections) - requests
    assert sockstat.tcp_time_wait == len(left)
    assert sockstat.udp == len(udp.sockets)
