"""Text that others chose is printable and valid UTF-8 once it is shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ephmon.facts.foreign_text import escaped, printable


@given(text=st.text(st.characters() | st.characters(categories=["Cs", "Cc"])))
def test_printable_text_is_valid_utf8_without_control_characters(text: str) -> None:
    shown = printable(text)

    assert shown.isprintable()
    assert shown.encode("utf-8").decode("utf-8") == shown
    assert len(shown) == len(text)


@pytest.mark.parametrize("text", ["", "own", "a b", "caf\u00e9", "\u540d\u524d"])
def test_text_for_display_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_escape_sequences_lose_their_escape() -> None:
    assert printable("\x1b[31mred\x1b[0m") == "\ufffd[31mred\ufffd[0m"


@given(st.binary())
def test_bytes_that_are_not_utf8_become_printable_text(name: bytes) -> None:
    assert printable(name).isprintable()
    assert printable(name) == printable(name.decode("utf-8", "replace"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"nginx", "nginx"),
        (b'\xff\xfe"\n', r"\xff\xfe" + '"' + r"\n"),
        ("Bücher".encode(), "Bücher"),
        (rb"\n", r"\\n"),
        ("a\u200bb\u2028".encode(), r"a\u200bb\u2028"),
        (b"\x1b[31m) S 1", r"\x1b[31m) S 1"),
        (b"", ""),
        (b"\xed\xb2\x80", r"\xed\xb2\x80"),
    ],
)
def test_a_name_is_printable_and_tells_escapes_from_what_is_written(name: bytes, text: str) -> None:
    assert escaped(name) == text
    assert escaped(name).isprintable()
