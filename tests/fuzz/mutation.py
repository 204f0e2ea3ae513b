"""How inputs are changed, besides what libFuzzer does by itself: by repetition, by odd numbers, and within documents.

A change depends on its input and seed alone, so that a run can be repeated.
"""

from __future__ import annotations

import json
import random
import re
import struct
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_NUMBER = re.compile(rb"[0-9]+")
_ODD_NUMBERS = (
    b"0",
    b"-1",
    b"00",
    b"255",
    b"256",
    b"65535",
    b"65536",
    b"2147483647",
    b"2147483648",
    b"4294967296",
    b"9007199254740993",
    b"18446744073709551616",
    b"1e309",
    b"9" * 30,
    b"9" * 5000,  # more digits than int() takes
)
_ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 0.5, 1e308, -1e308, 65536, 1 << 53, (1 << 53) + 1, 1 << 64, "", "x", "\n", "\x1b[31m",
    "\ud800", "own", "tcp_connect", [], {}, [None], {"": None},
)  # fmt: skip


class Structure(Enum):
    """What an input is made of, if changing its parts leads further than changing its bytes."""

    BYTES = auto()
    JSON = auto()
    NETLINK = auto()
    """Messages with attributes."""


def mutate(data: bytes, most: int, seed: int, ordinary: Callable[[bytes, int], bytes], structure: Structure) -> bytes:
    """Return another input of at most `most` bytes; `ordinary` is the mutation of libFuzzer."""
    draw = random.Random(seed)
    kind = draw.random()
    if structure is Structure.JSON and kind < 0.6:
        changed = _with_another_value(data, draw)
    elif structure is Structure.NETLINK and kind < 0.4:
        changed = _with_another_message(data, draw)
    elif kind < 0.7:
        return ordinary(data, most)
    elif kind < 0.8:
        changed = _with_odd_number(data, draw)
    elif kind < 0.9:
        changed = _with_line_moved(data, draw)
    else:
        changed = _with_repetition(data, most, draw)
    return changed[:most] if changed else ordinary(data, most)


def _with_odd_number(data: bytes, draw: random.Random) -> bytes:
    found = list(_NUMBER.finditer(data[:_MOST_SEARCHED]))
    if not found:
        return b""
    match = draw.choice(found)
    return data[: match.start()] + draw.choice(_ODD_NUMBERS) + data[match.end() :]


_MOST_SEARCHED = 1 << 14


def _with_line_moved(data: bytes, draw: random.Random) -> bytes:
    """Repeat a line elsewhere, or take it out."""
    lines = data.splitlines(keepends=True)
    if not lines:
        return b""
    line = draw.choice(lines)
    if draw.random() < 0.5:
        lines.remove(line)
    else:
        lines.insert(draw.randrange(len(lines) + 1), line)
    return b"".join(lines)


def _with_repetition(data: bytes, most: int, draw: random.Random) -> bytes:
    """Repeat a piece until the input is as long as it may be: a parser in quadratic time shows."""
    if not data:
        return b""
    start = draw.randrange(len(data))
    piece = data[start : start + draw.choice((1, 2, 3, 8, 32, 128))]
    times = min(draw.choice((2, 16, 1 << 20)), max(1, (most - len(data)) // len(piece)))
    return data[:start] + piece * times + data[start:]


def _with_another_value(data: bytes, draw: random.Random) -> bytes:
    """Replace, remove or copy a value of a JSON document."""
    try:
        document = json.loads(data)
        places = list(_places(document))
        if not places:
            return b""
        holder, key = draw.choice(places)
        change = draw.random()
        if change < 0.2:
            del holder[key]
        elif change < 0.4:
            other, name = draw.choice(places)
            holder[key] = json.loads(json.dumps(other[name]))
        elif change < 0.5 and isinstance(holder, list):
            holder += [holder[key]] * draw.choice((1, 200))
        else:
            holder[key] = draw.choice(_ODD_VALUES)
        return json.dumps(document).encode()
    except (ValueError, RecursionError):  # no document, or one that cannot be written
        return b""


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return each list or object in a document with each of its keys."""
    found: list[tuple[Any, Any]] = []
    queue = [value]
    while queue:
        holder = queue.pop()
        keys = _keys(holder)
        found += [(holder, key) for key in keys]
        queue += [holder[key] for key in keys]
    return found


def _keys(holder: Any) -> list[Any]:
    if isinstance(holder, dict):
        return list(holder)
    return list(range(len(holder))) if isinstance(holder, list) else []


_MESSAGE, _ATTRIBUTE = struct.Struct("=I12s"), struct.Struct("=HH")
_FIXED = 72
"""Bytes between the header of a message of inet_diag and its attributes."""
_ODD_TYPES = (1, 2, 3, 4, 11, 15, 18, 20, 21, 22, 24)


def _with_another_message(data: bytes, draw: random.Random) -> bytes:
    """Change the attributes of a message, its type, or which messages there are; lengths stay right."""
    messages = list(_messages(data))
    if not messages:
        return b""
    index = draw.randrange(len(messages))
    header, fixed, attributes = messages[index]
    change = draw.random()
    if change < 0.15:
        messages.insert(draw.randrange(len(messages) + 1), messages[index])
    elif change < 0.25:
        del messages[index]
    elif change < 0.35:
        messages[index] = (draw.choice(_ODD_TYPES).to_bytes(2, "little") + header[2:], fixed, attributes)
    elif change < 0.45:
        fixed = fixed[: draw.choice((0, 4, 20, 68))]
        messages[index] = (header, fixed, attributes)
    else:
        place = draw.randrange(len(attributes) + 1)
        value = draw.randbytes(draw.choice((0, 1, 2, 3, 4, 8, 9)))
        attributes[place : place + draw.randrange(2)] = [(draw.choice(_ODD_TYPES), value)] * draw.randrange(3)
    return b"".join(_packed(*message) for message in messages)


def _messages(data: bytes) -> list[tuple[bytes, bytes, list[tuple[int, bytes]]]]:
    """Return the header less its length, the fixed part, and the attributes of each whole message."""
    found = []
    offset = 0
    while offset + _MESSAGE.size <= len(data):
        length, header = _MESSAGE.unpack_from(data, offset)
        message = data[offset + _MESSAGE.size : offset + max(length, _MESSAGE.size)]
        found.append((header, message[:_FIXED], _attributes(message[_FIXED:])))
        offset += max((length + 3) & ~3, _MESSAGE.size)
    return found


def _attributes(data: bytes) -> list[tuple[int, bytes]]:
    found = []
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        size, kind = _ATTRIBUTE.unpack_from(data, offset)
        if size < _ATTRIBUTE.size:
            break
        found.append((kind, data[offset + _ATTRIBUTE.size : offset + size]))
        offset += (size + 3) & ~3
    return found


def _packed(header: bytes, fixed: bytes, attributes: list[tuple[int, bytes]]) -> bytes:
    body = fixed + b"".join(
        _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)
        for kind, value in attributes
    )
    return _MESSAGE.pack(_MESSAGE.size + len(body), header) + body + bytes(-len(body) % 4)
