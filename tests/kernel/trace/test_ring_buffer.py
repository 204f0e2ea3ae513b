"""Pages of the trace ring buffer taken apart: one that Linux 6.18 on x86_64 wrote, and what others may write.

The page in data/tracefs was read in a namespace where two connections held the one port that the client was limited to,
toward 127.0.0.1:8080 and [::1]:8443: two calls to the first, 0.3 s later one to it as an IPv4-mapped address, and one
to the second.
"""

from __future__ import annotations

import struct
from pathlib import Path
from socket import AF_INET, AF_INET6

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ephmon.errors import KernelError
from ephmon.kernel.trace.ring_buffer import Call, parse_page, parse_page_layout, parse_record_layout

DATA = Path(__file__).parents[1] / "data" / "tracefs"
PAGE = (DATA / "page.bin").read_bytes()
HEADER_PAGE = (DATA / "header_page").read_text(encoding="ascii")
FORMAT = (DATA / "format").read_text(encoding="ascii")
PAGES = parse_page_layout(HEADER_PAGE)
RECORDS = parse_record_layout(FORMAT)

THREAD = 30_316
MAPPED_HERE = bytes(10) + b"\xff\xff\x7f\x00\x00\x01"
HERE6 = bytes(15) + b"\x01"
TO_HERE = Call(THREAD, 8080, AF_INET, MAPPED_HERE, MAPPED_HERE)
TO_HERE_MAPPED = Call(THREAD, 8080, AF_INET6, MAPPED_HERE, MAPPED_HERE)
TO_HERE6 = Call(THREAD, 8443, AF_INET6, HERE6, HERE6)

DATA_RECORD = PAGE[20:92]
"""The first of the records, without the word before it."""
LENGTH_18_WORDS = 18


def page(*parts: bytes | int, time: int = 1000, flags: int = 0) -> bytes:
    """Return a page of words and bytes."""
    data = b"".join(struct.pack("=I", part) if isinstance(part, int) else part for part in parts)
    return struct.pack("=QQ", time, len(data) | flags) + data


def times(raw: bytes) -> list[int]:
    return parse_page(raw, PAGES, RECORDS).get(TO_HERE, [])


def test_a_page_of_the_kernel() -> None:
    assert parse_page(PAGE, PAGES, RECORDS) == {
        TO_HERE: [13_230_353_082_468, 13_230_353_088_167],
        TO_HERE_MAPPED: [13_230_655_900_159],
        TO_HERE6: [13_230_656_038_076],
    }


def test_the_layout_of_pages() -> None:
    assert (PAGES.data, PAGES.size, PAGES.header.size) == (16, 4096, 16)


def test_the_layout_of_pages_on_32_bits() -> None:
    text = HEADER_PAGE.replace("offset:8;\tsize:8", "offset:8;\tsize:4").replace(
        "offset:16;\tsize:4080", "offset:12;\tsize:4084"
    )
    layout = parse_page_layout(text)

    assert (layout.data, layout.size, layout.header.size) == (12, 4096, 12)
    assert parse_page(PAGE[:12] + PAGE[16:], layout, RECORDS) == parse_page(PAGE, PAGES, RECORDS)


def test_the_flags_of_a_loss_are_no_part_of_the_length() -> None:
    """As Linux 6.18 wrote it: missed events, their number stored behind the data, the sign extended."""
    (commit,) = struct.unpack_from("=Q", PAGE, 8)
    lossy = PAGE[:8] + struct.pack("=Q", commit | 0xFFFFFFFFC0000000) + PAGE[16:] + struct.pack("=Q", 4134)

    assert parse_page(lossy, PAGES, RECORDS) == parse_page(PAGE, PAGES, RECORDS)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        pytest.param(page(), [], id="nothing"),
        pytest.param(page(LENGTH_18_WORDS | 7 << 5, DATA_RECORD), [1007], id="a record"),
        pytest.param(page(0, 76, DATA_RECORD), [1000], id="its length in a word of its own"),
        pytest.param(page(30 | 1 << 5, 1, 18, DATA_RECORD), [1001 + (1 << 27)], id="time extended"),
        pytest.param(page(31 | 1 << 5, 2, 18, DATA_RECORD), [1 + (2 << 27)], id="an absolute time"),
        pytest.param(page(31, 2, 18, DATA_RECORD, time=9 << 59), [(9 << 59) + (2 << 27)], id="its upper bits"),
        pytest.param(page(29, 12, DATA_RECORD), [], id="padding to the end"),
        pytest.param(page(29 | 5 << 5, 76, DATA_RECORD, 18, DATA_RECORD), [1005], id="a discarded record"),
        pytest.param(page(18, b"\x01\x00" + DATA_RECORD[2:], 18, DATA_RECORD), [1000], id="another tracepoint"),
        pytest.param(page(2, bytes(8), 18, DATA_RECORD), [1000], id="a shorter record"),
        pytest.param(page(20, DATA_RECORD + bytes(8)), [1000], id="a longer record"),
    ],
)
def test_records_of_each_kind(raw: bytes, expected: list[int]) -> None:
    assert times(raw) == expected


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b"", "has 0 bytes only"),
        (PAGE[:300], "claims 328 bytes and has 300"),
        (page(18, DATA_RECORD[:-4]), "has a record that ends at 92, after the last one's end at 88"),
        (page(0, 4000), "has a record that ends at 4020, after the last one's end at 24"),
    ],
)
def test_a_broken_page_is_refused(raw: bytes, what: str) -> None:
    with pytest.raises(KernelError) as caught:
        parse_page(raw, PAGES, RECORDS)
    assert str(caught.value) == f"A page of the trace buffer {what}; please report it."


@given(st.binary(max_size=400))
def test_no_data_makes_it_run_on_or_raise_anything_else(data: bytes) -> None:
    try:
        found = parse_page(page(data), PAGES, RECORDS)
    except KernelError:
        return
    assert sum(map(len, found.values())) <= len(data) / RECORDS.fields.size


def test_the_fields_are_found_where_the_kernel_says() -> None:
    """Real-time kernels have a longer common part."""
    moved = FORMAT.replace("offset:8;", "offset:16;")
    for old in (26, 28, 40, 56):
        moved = moved.replace(f"offset:{old};", f"offset:{old + 8};")
    raw = page(20, DATA_RECORD[:8] + bytes(8) + DATA_RECORD[8:])

    assert parse_page(raw, PAGES, parse_record_layout(moved)) == {TO_HERE: [1000]}


@pytest.mark.parametrize(
    "description",
    [
        "",
        FORMAT.replace("ID: ", "No: "),
        FORMAT.replace("saddr_v6[16];", "s;"),
        FORMAT.replace("26;\tsize:2", "26;\tsize:4"),
    ],
)
def test_an_unknown_description_of_records_is_refused(description: str) -> None:
    with pytest.raises(KernelError, match=r"^events/sock/inet_sock_set_state/format describes .* please report it"):
        parse_record_layout(description)


@pytest.mark.parametrize(
    "description", ["", HEADER_PAGE.replace("u64 timestamp;\toffset:0", "u64 timestamp;\toffset:4")]
)
def test_an_unknown_description_of_pages_is_refused(description: str) -> None:
    with pytest.raises(KernelError, match=r"^events/header_page describes .* please report it"):
        parse_page_layout(description)
