"""A YAML document is composed strictly, and its values stay text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ephmon.config.yaml_document import (
    MAX_DEPTH,
    MAX_NODES,
    MappingNode,
    Node,
    RefusedNode,
    ScalarNode,
    SequenceNode,
    TextTree,
    compose,
    dump,
)


def _plain(node: Node | None) -> TextTree:
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
    assert compose(text).root == ScalarNode(line=1, text=text, is_plain=True)


def test_every_node_knows_its_line() -> None:
    document = compose("a: 1\n\nb:\n  - 'x'\n  - {c: y}\n")

    assert document.root == MappingNode(
        line=1,
        entries=(
            (ScalarNode(line=1, text="a", is_plain=True), ScalarNode(line=1, text="1", is_plain=True)),
            (
                ScalarNode(line=3, text="b", is_plain=True),
                SequenceNode(
                    line=4,
                    items=(
                        ScalarNode(line=4, text="x", is_plain=False),
                        MappingNode(
                            line=5,
                            entries=(
                                (
                                    ScalarNode(line=5, text="c", is_plain=True),
                                    ScalarNode(line=5, text="y", is_plain=True),
                                ),
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

    assert [(problem.line, problem.message) for problem in document.problems] == [
        (1, "an anchor (&) is not supported; quote the value, or remove it"),
        (2, "an alias (*) is not supported; quote the value, or write it out"),
        (3, "a tag (!) is not supported; quote the value, or remove it"),
    ]
    assert isinstance(document.root, MappingNode)
    assert document.root.entries[1][1] == RefusedNode(line=2)


@pytest.mark.parametrize(
    ("text", "line", "sentence"),
    [
        ("[" * 200_000, 1, "lists and mappings are nested more than 50 levels deep here"),
        ("[\n" * 200_000, MAX_DEPTH + 1, "lists and mappings are nested more than 50 levels deep here"),
        ("- " * 200_000, 1, "lists and mappings are nested more than 50 levels deep here"),
        ("- x\n" * 200_000, MAX_NODES + 1, "the file has more than 20000 keys and values"),
        ("a: 1\n---\nb: 2\n", 2, "a second YAML document begins here; keep one document"),
        ("a: 1\nb: \0\n", 2, "YAML does not allow the character U+0000; remove it"),
        ("a: 1\nb: \ud800\n", 2, "YAML does not allow the character U+D800; remove it"),
        ('a: 1\nb: "\\UFFFFFFFF"\n', 2, "a number in an escape or a directive is out of range"),
        (f"%YAML 1.{'1' * 5000}\n---\n", 1, "a number in an escape or a directive is out of range"),
        ("a: [1\nb: 2\n", 2, "this is not valid YAML: expected ',' or ']', but got ':', while parsing a flow sequence"),
    ],
)
def test_what_stops_the_reading_is_reported_with_its_line(text: str, line: int, sentence: str) -> None:
    document = compose(text)

    assert document.root is None
    assert document.problems[-1].line == line
    assert document.problems[-1].message.startswith(sentence)


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
def test_a_dumped_tree_is_composed_to_the_same_tree(tree: TextTree) -> None:
    assert _plain(compose(dump(tree)).root) == tree


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\n",
        "a\n\n b\n",
        "\x85",
        "\u2028",
        "\ufeff",
        "\x00",
        "\x7f",
        "\U0001f600",
        "~",
        "off",
        "0443",
        "1:30",
        "- a",
        "a: b",
        "a #b",
        "#a",
        "&a",
        "*a",
        "!!int 3",
        "%a",
        "@a",
        "'",
        '"',
        "\\",
        "<<",
        "=",
        "---",
        "...",
        "[::1]:80",
        "::1/128",
        "x" * 5000,
        "x " * 500,
    ],
)
def test_text_that_yaml_could_misread_survives_in_every_position(text: str) -> None:
    trees: list[TextTree] = [text, [text], {text: text}, {"a": [{text: [text, text]}]}]

    for tree in trees:
        document = compose(dump(tree))

        assert document.problems == ()
        assert _plain(document.root) == tree


@pytest.mark.parametrize("text", ["off", "0443", "1:30", "5s", "10.0.0.0/8", "2001:db8::1", "/etc/x"])
def test_a_plain_value_is_dumped_without_quotes(text: str) -> None:
    assert dump({"a": text}) == f"a: {text}\n"


@settings(deadline=None)
@given(st.text() | st.text(" \n\t\r:-[]{},#&*!|>'\"%@`\\ab01\ufeff\x85\u2028?=<"))
def test_nothing_is_raised_whatever_the_text(text: str) -> None:
    document = compose(text)

    assert all(len(problem.message.splitlines()) == 1 for problem in document.problems)
