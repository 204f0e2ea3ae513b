"""Pages of the kernel's trace ring buffer, taken apart: bytes in, failed connect() calls out. Nothing is read here.

The binary pages of `trace_pipe_raw` are read and not the text of `trace_pipe`: a record costs 0.5 microseconds instead
of 3.4, and has no command name in it, so that no process can pass a line off as another event by what it calls itself.

Sources: Documentation/trace/ring-buffer-design.rst; `rb_event_length` and `ring_buffer_read_page` in
kernel/trace/ring_buffer.c; `events/header_page`, `events/header_event` and `events/*/*/format` of the running kernel.
"""

from __future__ import annotations

import re
import struct
from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from ephmon.errors import KernelError, Reason, quote

if TYPE_CHECKING:
    from collections.abc import Iterator

# Matched line by line: over a whole text it would take time that grows with the cube of its length.
_FIELD = re.compile(r"[ \t]*field:([^;]*);[ \t]*offset:([0-9]{1,7});[ \t]*size:([0-9]{1,7});")
_ID = re.compile(r"^ID: ([0-9]{1,5})$", re.MULTILINE)
_LARGEST_PAGE = 1 << 20
"""Bytes. A page of the buffer is one of memory unless somebody made it larger (buffer_subbuf_size_kb, Linux 6.8)."""

_PADDING, _TIME_EXTEND, _TIME_STAMP = 29, 30, 31
_TYPE_BITS, _DELTA_BITS = 5, 27
_TYPE_MASK = (1 << _TYPE_BITS) - 1
_UPPER_BITS_OF_TIME = 0xF8 << 56
"""An absolute time stamp carries the other 59 bits."""
_COMMIT_MASK = (1 << 27) - 1
"""What is above it in the page's `commit` are flags: events were lost before this page, and how many."""
_HEAD = struct.Struct("=II")
"""The first word of a record, type and time since the one before, and the word after it."""
_CODES = {
    "common_type": "H",
    "common_pid": "i",
    "dport": "H",
    "family": "H",
    "saddr_v6": "16s",
    "daddr_v6": "16s",
}
"""The fields that are wanted, in the order they have in the record: the type, then those of `Call`."""


class Call(NamedTuple):
    """Who called connect(), and where to: what failed calls are grouped by."""

    thread_id: int
    destination_port: int
    family: int
    source: bytes
    """16 bytes, as the next; the kernel writes IPv4 addresses into the IPv6 fields too, mapped."""
    destination: bytes


class PageLayout(NamedTuple):
    """Where a page has its parts, in bytes."""

    header: struct.Struct
    """Time stamp in nanoseconds, and how many bytes of data there are."""
    data: int
    size: int
    """Of the whole page."""


class RecordLayout(NamedTuple):
    """Where a record of the tracepoint has its fields."""

    event_id: int
    """What `common_type` is in records of this tracepoint."""
    fields: struct.Struct


def parse_page_layout(header_page: str) -> PageLayout:
    """Return the layout that `events/header_page` describes.

    Raises:
        KernelError: The description is not understood.
    """
    found = _fields(header_page)
    if found.get("timestamp") != (0, 8) or found.get("commit") not in ((8, 4), (8, 8)) or "data" not in found:
        raise _not_understood("events/header_page", header_page)
    data, size = found["data"]
    header = struct.Struct("=QI" if found["commit"] == (8, 4) else "=QQ")
    if data < header.size or data + size > _LARGEST_PAGE:
        raise _not_understood("events/header_page", header_page)
    return PageLayout(header, data, data + size)


def parse_record_layout(description: str) -> RecordLayout:
    """Return the layout that the file `format` of sock:inet_sock_set_state describes.

    Raises:
        KernelError: The description is not understood.
    """
    number, found = _ID.search(description), _fields(description)
    parts, end = ["="], 0
    for name, code in _CODES.items():
        offset, size = found.get(name, (-1, 0))
        if number is None or offset < end or size != struct.calcsize(f"={code}"):
            raise _not_understood("events/sock/inet_sock_set_state/format", description)
        parts.append(f"{offset - end}x{code}")
        end = offset + size
    assert number is not None  # the loop has seen to it
    return RecordLayout(int(number[1]), struct.Struct("".join(parts)))


def parse_page(page: bytes, layout: PageLayout, record: RecordLayout) -> dict[Call, list[int]]:
    """Return the failed calls that a page tells of, each with its times in nanoseconds, in order.

    Records of other tracepoints, which somebody else may have let into the instance, are passed over.

    Raises:
        KernelError: The page is not what its header says.
    """
    event_id, fields = record
    times: defaultdict[tuple[int, int, int, int, bytes, bytes], list[int]] = defaultdict(list)
    for time, start, end in _records(page, layout):
        if end - start >= fields.size:
            times[fields.unpack_from(page, start)].append(time)
    return {Call._make(values[1:]): found for values, found in times.items() if values[0] == event_id}


def _records(page: bytes, layout: PageLayout) -> Iterator[tuple[int, int, int]]:
    """Yield (time in nanoseconds, start, end) of each record of a page."""
    time, stop = _start_and_stop(page, layout)
    offset = layout.data
    unpack = _HEAD.unpack_from
    padded = page + bytes(_HEAD.size)  # so that the last record may be looked at as any other
    while offset < stop:
        head, word = unpack(padded, offset)
        kind, delta = head & _TYPE_MASK, head >> _TYPE_BITS
        start = offset + 4
        if 0 < kind < _PADDING:
            time += delta
            offset = start + 4 * kind
            if offset <= stop:
                yield time, start, offset
        elif kind == _TIME_EXTEND:
            time += word << _DELTA_BITS | delta
            offset += 8
        elif kind == _TIME_STAMP:
            time = time & _UPPER_BITS_OF_TIME | word << _DELTA_BITS | delta
            offset += 8
        elif kind == _PADDING and delta == 0:
            return  # nothing follows
        else:  # a discarded record, or one so long that its length stands in a word of its own, which it counts too
            time += delta
            offset = start + max(4, word)
            if kind == 0 and offset <= stop:
                yield time, start + 4, offset
    if offset > stop:
        raise _broken(f"has a record that ends at {offset}, after the last one's end at {stop}")


def _start_and_stop(page: bytes, layout: PageLayout) -> tuple[int, int]:
    """Return when the page begins, in nanoseconds, and where its last record ends."""
    if len(page) < layout.data:
        raise _broken(f"has {len(page)} bytes only")
    time, commit = layout.header.unpack_from(page)
    stop = layout.data + (commit & _COMMIT_MASK)
    if stop > len(page):
        raise _broken(f"claims {stop} bytes and has {len(page)}")
    return time, stop


def _fields(description: str) -> dict[str, tuple[int, int]]:
    """Return (offset, size) of each field in bytes. A field is declared as in C: `__u8 saddr_v6[16]`."""
    found = (match.groups() for line in description.split("\n") if (match := _FIELD.match(line)) is not None)
    return {
        words[-1].partition("[")[0]: (int(offset), int(size))
        for declaration, offset, size in found
        if (words := declaration.split())
    }


def _broken(what: str) -> KernelError:
    return KernelError(f"A page of the trace buffer {what}; please report it.", reason=Reason.TRACEFS)


def _not_understood(name: str, content: str) -> KernelError:
    return KernelError(
        f"{name} describes the trace buffer in an unknown way: {quote(content, 200)}; please report it.",
        reason=Reason.TRACEFS,
    )
