"""Targets with a mistake, to see that the harness finds it."""

from __future__ import annotations

import re

from tests.fuzz.target import Target

_held: list[bytearray] = []


def _fails_behind_four_bytes(data: bytes) -> None:
    """Fail for one input in four thousand million, which nobody meets who does not see which branches were taken."""
    if len(data) < 4 or data[0] != 0x7F:
        return
    if data[1] != 0x45:
        return
    if data[2] != 0x4C:
        return
    if data[3] == 0x46:
        raise IndexError("planted")


def _takes_all_memory(data: bytes) -> None:
    if b"!" in data:
        while True:
            _held.append(bytearray(b"x") * (64 << 20))


def _takes_long(data: bytes) -> None:
    """Look for what is not there in time that grows with the cube of the length."""
    re.search(rb"^\s*a[^;]*?(\w+);", data.replace(b"s", b"a") * 1000)


HIDDEN_MISTAKE, SLOW, GREEDY = TARGETS = (
    Target(name="hidden", parsers=(), check=_fails_behind_four_bytes, seeds=lambda: [b"some text"], max_bytes=16),
    Target(name="slow", parsers=(), check=_takes_long, seeds=lambda: [b"some text"], max_bytes=16),
    Target(name="greedy", parsers=(), check=_takes_all_memory, seeds=lambda: [b"some text"], max_bytes=16),
)
