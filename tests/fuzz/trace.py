"""The kernel's tracing: pages of the ring buffer, and the files that describe their layout."""

from __future__ import annotations

import math
import struct
from pathlib import Path

from ephmon.errors import KernelError
from ephmon.kernel.trace.ring_buffer import (
    Call,
    PageLayout,
    RecordLayout,
    parse_page,
    parse_page_layout,
    parse_record_layout,
)
from ephmon.kernel.trace.tracefs import parse_lost, parse_now
from tests.fuzz.target import RECORDED, Target, answer

DATA = RECORDED / "tracefs"
PAGE = (DATA / "page.bin").read_bytes()
PAGES = parse_page_layout((DATA / "header_page").read_text(encoding="ascii"))
RECORDS = parse_record_layout((DATA / "format").read_text(encoding="ascii"))
LARGEST_PAGE = 1 << 20
"""Bytes. A page of the ring buffer is one of memory: 4 KiB, on some machines 64; since Linux 6.8 an order more."""
_WHERE = Path("per_cpu/cpu0/stats")
_TIME_STAMP, _WORDS_OF_TIME = 31, 1 << 59


def check_ring_buffer(data: bytes) -> None:
    """Read a page, write what was found as a page of our own, and read the same from that."""
    calls = answer(KernelError, parse_page, data, PAGES, RECORDS)
    if calls is None:
        return
    assert sum(map(len, calls.values())) <= len(data) // RECORDS.fields.size
    assert all(call.source in data and call.destination in data for call in calls)
    if all(time < _WORDS_OF_TIME for times in calls.values() for time in times):
        assert parse_page(_page(calls), PAGES, RECORDS) == calls


def _page(calls: dict[Call, list[int]]) -> bytes:
    """Return a page that tells of the calls, each behind an absolute time stamp."""
    parts = []
    for call, times in calls.items():
        record = RECORDS.fields.pack(RECORDS.event_id, *call)
        record += bytes(-len(record) % 4)
        for time in times:
            stamp = (time & (1 << 27) - 1) << 5 | _TIME_STAMP
            parts.append(struct.pack("=III", stamp, time >> 27, len(record) // 4) + record)
    body = b"".join(parts)
    return PAGES.header.pack(0, len(body)) + body


def check_trace_formats(data: bytes) -> None:
    """Read a description of pages or records, and a real page with it: whatever it says, no page is misread for ever.

    The files are read as text, so what is not UTF-8 does not get here.
    """
    text = data.decode("utf-8", "replace")
    pages = answer(KernelError, parse_page_layout, text)
    records = answer(KernelError, parse_record_layout, text)
    if pages is not None:
        assert isinstance(pages, PageLayout)
        assert pages.header.size <= pages.data <= pages.size <= LARGEST_PAGE
    if records is not None:
        assert isinstance(records, RecordLayout)
        assert records.fields.size <= LARGEST_PAGE
    for page in (PAGE, PAGE[:13]):
        answer(KernelError, parse_page, page, pages or PAGES, records or RECORDS)
    lost = answer(KernelError, parse_lost, data, _WHERE)
    assert lost is None or lost >= 0
    now = answer(KernelError, parse_now, data, _WHERE)
    assert now is None or 0 <= now < math.inf


TARGETS = (
    Target(
        name="ring_buffer",
        parsers=("kernel.trace.ring_buffer.parse_page",),
        check=check_ring_buffer,
        seeds=lambda: [PAGE, PAGE[:400]],
        executions=15_000,
    ),
    Target(
        name="trace_formats",
        parsers=(
            "kernel.trace.ring_buffer.parse_page_layout",
            "kernel.trace.ring_buffer.parse_record_layout",
            "kernel.trace.tracefs.parse_lost",
            "kernel.trace.tracefs.parse_now",
        ),
        check=check_trace_formats,
        seeds=lambda: [(DATA / name).read_bytes() for name in ("header_page", "format")],
        executions=4_000,
    ),
)
