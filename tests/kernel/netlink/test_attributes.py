"""Netlink attributes are walked to the end of a message and never beyond it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ephmon.kernel.netlink.attributes import attributes, have_all, packed_attribute
from ephmon.kernel.netlink.sock_diag import MalformedReplyError

ATTRIBUTES = st.lists(st.tuples(st.integers(0, 0xFFFF), st.binary(max_size=20)), max_size=5)


@given(ATTRIBUTES, st.binary(max_size=12))
def test_what_was_packed_is_found_after_the_fixed_part(packed: list[tuple[int, bytes]], fixed: bytes) -> None:
    message = fixed + b"".join(packed_attribute(kind, value) for kind, value in packed)
    found = [(kind, message[start:end]) for kind, start, end in attributes(message, len(fixed), len(message))]

    assert found == packed


@given(st.binary(max_size=40))
def test_any_bytes_give_attributes_within_the_message_or_an_error(message: bytes) -> None:
    try:
        found = list(attributes(message, 0, len(message)))
    except MalformedReplyError:
        return
    assert all(4 <= start <= end <= len(message) for _, start, end in found)


@pytest.mark.parametrize("size", [0, 3, 9])
def test_a_length_that_lies_is_refused(size: int) -> None:
    message = size.to_bytes(2, "little") + bytes(6)
    with pytest.raises(MalformedReplyError, match=f"claims {size} of 8 bytes"):
        list(attributes(message, 0, 8))


def test_records_have_an_attribute_in_one_place_or_not() -> None:
    one, other = packed_attribute(21, b"1234"), packed_attribute(22, b"1234")
    first, second = bytearray(bytes(4) + one), bytearray(bytes(4) + other)

    assert have_all(first * 3, 12, 8)
    assert not have_all(first * 2 + second, 12, 8)
