"""Netlink attributes: the values of varying number and length that follow the fixed part of a message.

Each is a header of four bytes, its length with the header and its type, then the value, then zeros up to the next
multiple of four bytes (man 7 netlink; struct nlattr in include/uapi/linux/netlink.h, struct rtattr in rtnetlink.h).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from ephmon.kernel.netlink.sock_diag import MalformedReplyError

if TYPE_CHECKING:
    from collections.abc import Iterator

_HEADER = struct.Struct("=HH")


def attributes(message: bytes | bytearray, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield each attribute between two offsets of a message: its type, and where its value starts and ends.

    Raises:
        MalformedReplyError: An attribute claims to be longer than what is left, or shorter than its header.
    """
    offset = start
    while offset + _HEADER.size <= end:
        size, kind = _HEADER.unpack_from(message, offset)
        if size < _HEADER.size or offset + size > end:
            raise MalformedReplyError(f"A netlink attribute claims {size} of {end - offset} bytes.")
        yield kind, offset + _HEADER.size, offset + size
        offset += (size + 3) & ~3


def packed_attribute(kind: int, value: bytes) -> bytes:
    """Return an attribute with the zeros that pad it."""
    return _HEADER.pack(_HEADER.size + len(value), kind) + value + bytes(-len(value) % 4)


def have_all(block: bytearray, length: int, value_start: int) -> bool:
    """Tell whether all records of a block have the attribute that the first has, in the same place.

    Args:
        block: Records of `length` bytes each, a multiple of four.
        length: Of one record.
        value_start: Where the value of the attribute starts in the first record.
    """
    header = value_start - _HEADER.size
    # Headers are compared as a column of 32-bit words: one step in C however many records there are.
    words = memoryview(block).cast("I")[header // 4 :: length // 4]
    return words.tobytes() == block[header:value_start] * (len(block) // length)
