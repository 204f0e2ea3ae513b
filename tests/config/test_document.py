"""A YAML document is read within bounds and composed strictly, and its values stay text."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ephmon.config.document import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_NODES,
    MappingNode,
    Node,
    Plain,
    RefusedNode,
    ScalarNode,
    SequenceNode,
    compose,
    read_text,
    render,
)
from ephmon.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


def _plain(node: Node | None) -> Plain:
    """Return a tree without its lines."""
    match node:
        case ScalarNode():
            return node.text
        case SequenceNode():
            return [_plain(item) for item in node.items]
        case MappingNode():
            return {str(_plain(key)): _plain(value) for key, value in node.entries}
        case _:
            raise AssertionError(node)


@pytest.mark.parametrize(
    "text", ["off", "0443", "1:30", "1e3", "0x1f", "1_000", "~", "null", "2001-01-01", "=", ".nan"]
)
def test_a_scalar_is_the_text_that_was_written(text: str) -> None:
    assert compose(text).root == ScalarNode(line=1, text=text, plain=True)


def test_every_node_knows_its_line() -> None:
    document = compose("a: 1\n\nb:\n  - 'x'\n  - {c: y}\n")

    assert document.root == MappingNode(
        line=1,
        entries=(
            (ScalarNode(line=1, text="a", plain=True), ScalarNode(line=1, text="1", plain=True)),
            (
                ScalarNode(line=3, text="b", plain=True),
                SequenceNode(
                    line=4,
                    items=(
                        ScalarNode(line=4, text="x", plain=False),
                        MappingNode(
                            line=5,
                            entries=(
                                (ScalarNode(line=5, text="c", plain=True), ScalarNode(line=5, text="y", plain=True)),
                            ),
                        ),
                    ),
                ),
            ),
        ),
    )


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n", "\ufeff"])
def test_an_empty_document_has_no_root_and_no_problem(text: str) -> None:
    document = compose(text)

    assert (document.root, document.problems) == (None, ())


def test_a_byte_order_mark_and_either_line_end_are_accepted() -> None:
    assert _plain(compose("\ufeffa: 1\r\nb: 2\r\n").root) == {"a": "1", "b": "2"}


def test_a_refused_node_leaves_the_rest_readable() -> None:
    document = compose("a: &x 1\nb: *x\nc: !!int 3\n")

    assert [(problem.line, problem.sentence) for problem in document.problems] == [
        (1, "the anchor &x is not supported; remove it"),
        (2, "the alias *x is not supported; write the value out"),
        (3, "the tag !!int is not supported; remove it"),
    ]
    assert isinstance(document.root, MappingNode)
    assert document.root.entries[1][1] == RefusedNode(line=2)


@pytest.mark.parametrize(
    ("text", "line", "sentence"),
    [
        ("[" * 200_000, 1, "lists and mappings are nested more than 50 deep here"),
        ("[\n" * 200_000, MAX_DEPTH + 1, "lists and mappings are nested more than 50 deep here"),
        ("- " * 200_000, 1, "lists and mappings are nested more than 50 deep here"),
        ("- x\n" * 200_000, MAX_NODES + 1, "the file has more than 20000 keys and values up to here"),
        ("a: 1\n---\nb: 2\n", 2, "a second document begins here; a configuration is a single one"),
        ("a: 1\nb: \0\n", 2, "the character U+0000 cannot stand in YAML; remove it"),
        ("a: 1\nb: \ud800\n", 2, "the character U+D800 cannot stand in YAML; remove it"),
        ('a: 1\nb: "\\UFFFFFFFF"\n', 2, "a number in an escape or a directive is out of range"),
        (f"%YAML 1.{'1' * 5000}\n---\n", 1, "a number in an escape or a directive is out of range"),
        ("a: [1\nb: 2\n", 2, "this is not valid YAML: expected ',' or ']', but got ':', while parsing a flow sequence"),
    ],
)
def test_what_stops_the_reading_is_told_with_its_line(text: str, line: int, sentence: str) -> None:
    document = compose(text)

    assert document.root is None
    assert document.problems[-1].line == line
    assert document.problems[-1].sentence.startswith(sentence)


def test_nesting_up_to_the_limit_is_read() -> None:
    assert compose("[" * MAX_DEPTH + "]" * MAX_DEPTH).problems == ()


@pytest.mark.parametrize(
    ("line", "literal"),
    [
        ("listen: [::1]:80", "[::1]:80"),
        ("a: [::1/128]", "::1/128"),
        ("a: {b: 2001:db8::}", "2001:db8::"),
        ("a: {b: ::}", "::"),
        ('a: ["::1/128"]', None),
        ("a: ['::1/128'] # ::1", None),
        ("at: 10:30:00", None),
        ("source::1", None),
        ("a: 10.0.0.0/8:443", None),
    ],
)
def test_an_ipv6_literal_outside_of_quotes_is_found(line: str, literal: str | None) -> None:
    assert compose(f"# first\n{line}\n").unquoted_ipv6(2) == literal


@settings(deadline=None)
@given(
    st.recursive(
        st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=20), inner, max_size=3),
        max_leaves=10,
    )
)
def test_what_is_rendered_is_read_back(plain: Plain) -> None:
    assert _plain(compose(render(plain)).root) == plain


@settings(deadline=None)
@given(st.text() | st.text(" \n\t\r:-[]{},#&*!|>'\"%@`\\ab01\ufeff\x85\u2028?=<"))
def test_nothing_is_raised_whatever_the_text(text: str) -> None:
    document = compose(text)

    assert all(len(problem.sentence.splitlines()) == 1 for problem in document.problems)


def _refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as refusal:
        read_text(path)
    return str(refusal.value)


def test_a_file_is_read_as_utf8(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes("a: é\r\n".encode())

    assert read_text(path) == "a: é\r\n"


def test_a_file_of_the_largest_size_is_read_and_one_byte_more_is_not(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"#" * MAX_BYTES)
    assert len(read_text(path)) == MAX_BYTES

    path.write_bytes(b"#" * (MAX_BYTES + 1))
    assert _refusal(path) == f"{path}: the file is larger than 1 MiB, which no configuration needs"


def test_of_a_huge_file_only_the_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    with path.open("wb") as file:
        file.truncate(100 << 20)

    assert _refusal(path) == f"{path}: the file is larger than 1 MiB, which no configuration needs"


def test_a_fifo_is_refused_without_waiting_for_its_writer(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)

    assert _refusal(path) == f"{path}: this is a FIFO; a configuration is a regular file"


def test_a_directory_a_device_and_a_socket_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        assert _refusal(path) == f"{path}: the file cannot be read: No such device or address"

    assert _refusal(tmp_path) == f"{tmp_path}: this is a directory; a configuration is a regular file"
    assert _refusal(type(path)("/dev/zero")) == "/dev/zero: this is a device; a configuration is a regular file"


def test_a_missing_file_and_a_path_that_can_be_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "missing.yaml"

    assert _refusal(path) == f"{path}: the file cannot be read: No such file or directory"
    assert _refusal(tmp_path / "a\0b").endswith("a\\x00b': the file cannot be read: embedded null byte")


def test_a_loop_of_links_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "loop"
    path.symlink_to(path)

    assert _refusal(path) == f"{path}: the file cannot be read: Too many levels of symbolic links"


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"a: 1\nb: \xff\n", ":2: the byte 0xff at offset 8 is not UTF-8; save the file as UTF-8 text"),
        ("a: é\n".encode("latin-1"), ":1: the byte 0xe9 at offset 3 is not UTF-8; save the file as UTF-8 text"),
        ("a: 1\n".encode("utf-16"), ":1: the byte 0xff at offset 0 is not UTF-8; save the file as UTF-8 text"),
        (b"a: \xc3", ":1: the byte 0xc3 at offset 3 is not UTF-8; save the file as UTF-8 text"),
    ],
)
def test_bytes_that_are_no_utf8_are_named_with_their_place(tmp_path: Path, data: bytes, sentence: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(data)

    assert _refusal(path) == f"{path}{sentence}"


def test_a_file_without_permission_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.touch(mode=0)
    user = os.geteuid()
    try:
        os.seteuid(user or 65534)  # root may read everything
        assert _refusal(path) == f"{path}: the file cannot be read: Permission denied"
    finally:
        os.seteuid(user)
