"""The inet_diag codec, on replies captured from a real kernel (`tests.kernel.netlink.capture_inet_diag`)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ephmon.errors import KernelError
from ephmon.facts.socket_groups import SocketGroup
from ephmon.facts.sockets import SocketTable, TcpState
from ephmon.kernel.netlink import inet_diag
from ephmon.kernel.netlink.sock_diag import NetlinkError, split

DATA = Path(__file__).parents[1] / "data" / "inet_diag"
SEQUENCE = 7

V4, V6 = bytes([127, 0, 0, 1]), bytes(15) + b"\1"
ANY4, ANY6 = bytes(4), bytes(16)


def captured(name: str) -> list[bytearray]:
    return [bytearray.fromhex(datagram) for datagram in json.loads((DATA / f"{name}.json").read_text())]


def tabulated(datagrams: list[bytearray], *, message_type: int, with_peer: bool = True) -> SocketTable:
    tabulator = inet_diag.Tabulator(with_peer=with_peer)
    for datagram in datagrams:
        _, blocks = split(datagram, len(datagram), message_type, SEQUENCE, 0)
        for length, block in blocks:
            tabulator.add(length, block)
    return tabulator.table()


def by_port(table: SocketTable) -> dict[int, SocketGroup]:
    return {port: table.groups[group] for group, port in zip(table.group_of, table.port_of, strict=True)}


def test_tcp_sockets_of_both_families_and_all_states() -> None:
    table = tabulated(captured("tcp"), message_type=inet_diag.TCPDIAG_GETSOCK)

    listen, bound, open_ = TcpState.LISTEN, TcpState.CLOSE, TcpState.ESTABLISHED
    assert by_port(table) == {
        40001: SocketGroup(listen, ANY4, ANY4, 0),
        40002: SocketGroup(listen, ANY6, ANY6, 0),
        40003: SocketGroup(listen, ANY6, ANY6, 0, dual_stack=True),
        40010: SocketGroup(open_, V4, V4, 80),
        40011: SocketGroup(open_, V6, V6, 80, dual_stack=True),
        40012: SocketGroup(open_, V4, V4, 80, dual_stack=True),
        40013: SocketGroup(open_, V4, V4, 80, bind_address_no_port=True),
        40014: SocketGroup(open_, V4, V4, 80, device=1),
        40020: SocketGroup(bound, V4, ANY4, 0),
        40021: SocketGroup(bound, V6, ANY6, 0),
        40030: SocketGroup(TcpState.FIN_WAIT2, V4, V4, 80, minisock=True),
        40031: SocketGroup(TcpState.TIME_WAIT, V4, V4, 40003, minisock=True),
    }


def test_time_wait_tells_how_long_it_lasts() -> None:
    table = tabulated(captured("tcp"), message_type=inet_diag.TCPDIAG_GETSOCK)
    left = dict(zip(table.port_of, table.time_wait_left_ms_of, strict=True))

    assert 59_900 < left[40031] <= 60_000


def test_sockets_that_named_their_port_can_be_reported() -> None:
    table = tabulated(captured("tcp_port_named"), message_type=inet_diag.TCPDIAG_GETSOCK)

    assert set(table.port_of) == {40010, 40011, 40012, 40014}


def test_udp_sockets_are_grouped_without_their_peers() -> None:
    v4 = tabulated(captured("udp4"), message_type=inet_diag.SOCK_DIAG_BY_FAMILY, with_peer=False)
    v6 = tabulated(captured("udp6"), message_type=inet_diag.SOCK_DIAG_BY_FAMILY, with_peer=False)

    connected, unconnected = TcpState.ESTABLISHED, TcpState.CLOSE
    assert by_port(v4) == {
        40040: SocketGroup(unconnected, V4, ANY4, 0),
        40041: SocketGroup(connected, V4, ANY4, 0),
    }
    assert by_port(v6) == {
        40042: SocketGroup(unconnected, ANY6, ANY6, 0, dual_stack=True),
        40043: SocketGroup(unconnected, ANY6, ANY6, 0),
        40044: SocketGroup(connected, V6, ANY6, 0, dual_stack=True),
    }


@pytest.mark.parametrize("name", ["no_handler", "no_family"])
def test_a_refusal_is_an_error(name: str) -> None:
    with pytest.raises(NetlinkError):
        tabulated(captured(name), message_type=inet_diag.SOCK_DIAG_BY_FAMILY)


def test_blocks_decode_like_their_records_one_by_one() -> None:
    """The columns of a block give what its records give, also where the records' attributes differ."""
    (datagram, *_) = captured("tcp")
    _, blocks = split(datagram, len(datagram), inet_diag.TCPDIAG_GETSOCK, SEQUENCE, 0)
    whole, single = inet_diag.Tabulator(with_peer=True), inet_diag.Tabulator(with_peer=True)
    for length, block in blocks:
        for start in range(0, len(block), length):
            single.add(length, block[start : start + length])
        whole.add(length, block)

    assert by_port(whole.table()) == by_port(single.table())


def test_records_whose_attributes_are_laid_out_differently_are_told_apart() -> None:
    """An attribute that only some kernels or privileges add must not shift what is read of the others."""
    (datagram, *_) = captured("tcp")
    _, blocks = split(datagram, len(datagram), inet_diag.TCPDIAG_GETSOCK, SEQUENCE, 0)
    block = next(block for length, block in blocks if length == 124)
    shifted = bytearray(block[:124])
    # Attributes in another order: the socket's options first.
    shifted[88:124] = block[116:124] + block[88:116]
    tabulator = inet_diag.Tabulator(with_peer=True)
    tabulator.add(124, block + shifted)
    ports = list(tabulator.table().port_of)

    assert ports[-1] == ports[0]
    assert tabulator.table().group_of[-1] == tabulator.table().group_of[0]


def test_a_record_of_broken_words_is_refused() -> None:
    with pytest.raises(KernelError, match="not whole words"):
        inet_diag.Tabulator(with_peer=True).add(125, bytearray(125))


def test_a_time_beyond_what_the_column_holds_is_the_longest() -> None:
    (datagram, *_) = captured("tcp")
    _, blocks = split(datagram, len(datagram), inet_diag.TCPDIAG_GETSOCK, SEQUENCE, 0)
    block = next(block for length, block in blocks if length == 96)
    block[68:72] = (70_000).to_bytes(4, "little")
    tabulator = inet_diag.Tabulator(with_peer=True)
    tabulator.add(96, block)

    assert max(tabulator.table().time_wait_left_ms_of) == 65_535


def test_an_unknown_state_stays_a_number() -> None:
    (datagram, *_) = captured("tcp_port_named")
    datagram[17] = 77
    table = tabulated([datagram], message_type=inet_diag.TCPDIAG_GETSOCK)

    assert 77 in {group.state for group in table.groups}


@given(st.sampled_from(["tcp", "udp4", "udp6"]), st.data())
def test_any_damage_raises_our_error_or_gives_a_table(name: str, data: st.DataObject) -> None:
    datagrams = captured(name)
    datagram = datagrams[0]
    datagram[data.draw(st.integers(0, len(datagram) - 1))] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(0, len(datagram)))
    datagrams[0] = datagram[:cut]
    with_peer = name == "tcp"
    kind = inet_diag.TCPDIAG_GETSOCK if with_peer else inet_diag.SOCK_DIAG_BY_FAMILY

    try:
        table = tabulated(datagrams, message_type=kind, with_peer=with_peer)
    except KernelError:
        return
    assert len(table.group_of) == len(table.port_of) == len(table.time_wait_left_ms_of)
    assert all(index < len(table.groups) for index in table.group_of)


def run(program: bytes, port: int) -> bool:
    """Run a filter program of port tests as the kernel does (inet_diag_bc_run())."""
    position, end = 0, len(program)
    while position < end:
        code, yes, no = (
            program[position],
            program[position + 1],
            int.from_bytes(program[position + 2 : position + 4], "little"),
        )
        holds = True
        if code in (2, 3):
            bound = int.from_bytes(program[position + 6 : position + 8], "little")
            holds = port >= bound if code == 2 else port <= bound
        elif code in (7, 8):
            holds = int.from_bytes(program[position + 8 : position + 12], "little") == port
        else:
            assert code == 1
            holds = False
        position += yes if holds else no
    return position == end


@given(
    st.integers(0, 65535), st.integers(0, 65535), st.lists(st.integers(0, 65535), max_size=70), st.integers(0, 65535)
)
def test_a_program_accepts_exactly_what_its_conditions_hold_for(
    low: int, high: int, left_out: list[int], port: int
) -> None:
    program = inet_diag.assemble(
        [
            inet_diag.local_port_at_least(low),
            inet_diag.local_port_at_most(high),
            *(inet_diag.not_local(other, b"") for other in left_out),
        ]
    )

    assert run(program, port) == (low <= port <= high and port not in left_out)


@given(st.integers(0, 9), st.integers(0, 9), st.lists(st.integers(0, 9), max_size=9), st.integers(0, 9))
def test_a_program_with_alternatives_accepts_what_one_of_them_holds_for(
    low: int, high: int, alternatives: list[int], port: int
) -> None:
    program = inet_diag.assemble(
        [inet_diag.local_port_at_least(low), inet_diag.local_port_at_most(high)],
        [inet_diag.remote(other, b"") for other in alternatives],
    )

    assert run(program, port) == (low <= port <= high and (port in alternatives or not alternatives))


def test_no_condition_is_no_program() -> None:
    assert inet_diag.assemble([]) == b""
