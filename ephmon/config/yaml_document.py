"""A YAML text as a tree of text: composed strictly, each node with its line.

Text goes in, a `Document` comes out. Scalars stay text, because only a schema knows what the user meant: YAML 1.1 makes
booleans of `off`, octal numbers of `0443` and base-60 numbers of `1:30`. Anchors, aliases and tags are refused, because
with them a small file can expand to a huge tree. The tree is built from the events of PyYAML's parser, which keeps its
state in a list; PyYAML's own composer and libyaml recurse, and overflow the stack on deeply nested brackets.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from ipaddress import ip_interface
from typing import TYPE_CHECKING, NamedTuple

import yaml

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_DEPTH = 50
MAX_NODES = 20_000
"""Keys and values: more than a configuration needs, and what PyYAML reads in about a second."""


class Problem(NamedTuple):
    """One mistake in a document."""

    line: int
    """Counted from 1."""
    path: str
    """Of the key, such as `thresholds.overrides[0].kind`; "" if the mistake has no key."""
    message: str
    """One sentence, which says what is wrong and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalarNode:
    """A single value as text, escapes resolved."""

    line: int
    text: str
    is_plain: bool
    """Whether it is neither quoted nor a block (YAML 1.1, section 9.1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceNode:
    """A list of nodes."""

    line: int
    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MappingNode:
    """Pairs of nodes in the order of the file; a key may be of any shape and may occur twice."""

    line: int
    entries: tuple[tuple[Node, Node], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedNode:
    """Stands in the tree for something that was refused and is among the problems already."""

    line: int


Node = ScalarNode | SequenceNode | MappingNode | RefusedNode
TextTree = str | list["TextTree"] | dict[str, "TextTree"]
"""What a document says, without lines and styles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """What `compose` built from a text."""

    root: Node | None
    """None if the document is empty or could not be composed."""
    problems: tuple[Problem, ...]
    lines: Sequence[str]

    def unquoted_ipv6(self, line: int) -> str | None:
        """Return the first IPv6 literal outside quotes in a line, which is counted from 1."""
        return _unquoted_ipv6(self.lines[line - 1]) if 0 < line <= len(self.lines) else None


class _Unreadable(Exception):  # noqa: N818  # it names the state of the document and never leaves this module
    """Composing cannot continue."""

    def __init__(self, line: int, message: str) -> None:
        self.problem = Problem(line, "", message)


def compose(text: str) -> Document:
    """Build the tree of a text, or list in `problems` what prevents that. No text raises an exception."""
    lines = text.splitlines()
    composer = _Composer()
    try:
        _feed(composer, text, lines)
    except _Unreadable as stop:
        return Document(root=None, problems=(*composer.problems, stop.problem), lines=lines)
    return Document(root=composer.root, problems=tuple(composer.problems), lines=lines)


def dump(tree: TextTree) -> str:
    """Return YAML text from which `compose` builds the same tree: block style, keys in the order given."""
    return yaml.dump(
        tree, Dumper=_TextDumper, default_flow_style=False, sort_keys=False, allow_unicode=True, width=math.inf
    )


def _feed(composer: _Composer, text: str, lines: Sequence[str]) -> None:
    try:
        loader = yaml.SafeLoader(text)
    except yaml.reader.ReaderError as error:
        line = len(text[: error.position].splitlines()) or 1
        raise _Unreadable(line, f"YAML does not allow the character U+{error.character:04X}; remove it") from None
    try:
        while loader.check_event():
            composer.add(loader.get_event())  # type: ignore[no-untyped-call]  # the stubs leave it bare
    except yaml.MarkedYAMLError as error:
        raise _syntax_problem(error, lines) from None
    except (ValueError, OverflowError):  # PyYAML does not check what chr() of an escape and int() of a version raise
        raise _Unreadable(loader.line + 1, "a number in an escape or a directive is out of range") from None
    finally:
        loader.dispose()


def _syntax_problem(error: yaml.MarkedYAMLError, lines: Sequence[str]) -> _Unreadable:
    mark = error.problem_mark or error.context_mark
    line = 1 if mark is None else mark.line + 1
    literal = _unquoted_ipv6(lines[line - 1]) if line <= len(lines) else None
    if literal is not None:
        return _Unreadable(line, quotes_needed(literal))
    # PyYAML repeats a tag handle, which may be a password without quotes.
    what = re.sub(r"(tag handle) .*", r"\1", error.problem or "it cannot be read", flags=re.DOTALL)
    if "'\\t'" in what:
        return _Unreadable(line, "YAML does not allow a tab here; indent with spaces")
    if error.context and error.context_mark is not None and error.context_mark.line + 1 != line:
        what = f"{what}, {error.context} that begins in line {error.context_mark.line + 1}"
    return _Unreadable(line, f"this is not valid YAML: {what}")


def quotes_needed(literal: str) -> str:
    """Return the message about an IPv6 literal that YAML parsed as a list or a mapping."""
    return f'an IPv6 address needs quotes in YAML; write "{literal}"'


_TEXT_TAG = "tag:yaml.org,2002:str"


@dataclass(slots=True)
class _Frame:
    """A list or mapping that is not closed yet."""

    line: int
    is_mapping: bool
    children: list[Node] = field(default_factory=list)

    def close(self) -> Node:
        if not self.is_mapping:
            return SequenceNode(line=self.line, items=tuple(self.children))
        pairs = zip(self.children[::2], self.children[1::2], strict=True)
        return MappingNode(line=self.line, entries=tuple(pairs))


class _Composer:
    """Builds the tree of one document from its events."""

    def __init__(self) -> None:
        self.root: Node | None = None
        self.problems: list[Problem] = []
        self._open: list[_Frame] = []
        self._nodes = 0
        self._documents = 0

    def add(self, event: yaml.Event) -> None:
        """Add one event; raises _Unreadable where a configuration cannot continue."""
        line = 1 if event.start_mark is None else event.start_mark.line + 1
        match event:
            case yaml.DocumentStartEvent():
                self._documents += 1
                if self._documents > 1:
                    raise _Unreadable(line, "a second YAML document begins here; keep one document")
            case yaml.AliasEvent():
                self._refuse(line, "an alias (*) is not supported; quote the value, or write it out")
                self._append(RefusedNode(line=line))
            case yaml.ScalarEvent():
                self._refuse_anchor_and_tag(event, line)
                self._append(self._scalar(event, line))
            case yaml.CollectionStartEvent():
                self._refuse_anchor_and_tag(event, line)
                self._enter(_Frame(line=line, is_mapping=isinstance(event, yaml.MappingStartEvent)))
            case yaml.CollectionEndEvent():
                self._append(self._open.pop().close())

    def _enter(self, frame: _Frame) -> None:
        if len(self._open) == MAX_DEPTH:
            raise _Unreadable(frame.line, f"lists and mappings are nested more than {MAX_DEPTH} levels deep here")
        self._open.append(frame)

    def _append(self, node: Node) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise _Unreadable(node.line, f"the file has more than {MAX_NODES} keys and values")
        if self._open:
            self._open[-1].children.append(node)
        else:
            self.root = node

    def _scalar(self, event: yaml.ScalarEvent, line: int) -> Node:
        if any("\ud800" <= character <= "\udfff" for character in event.value):
            self._refuse(line, "an escape here is half a character (a surrogate); write the character itself")
            return RefusedNode(line=line)
        return ScalarNode(line=line, text=event.value, is_plain=not event.style)

    def _refuse_anchor_and_tag(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent, line: int) -> None:
        # None is repeated: a password without quotes may begin with one of these signs.
        if event.anchor is not None:
            self._refuse(line, "an anchor (&) is not supported; quote the value, or remove it")
        if event.tag is not None:
            self._refuse(line, "a tag (!) is not supported; quote the value, or remove it")

    def _refuse(self, line: int, message: str) -> None:
        self.problems.append(Problem(line, "", message))


_QUOTED = re.compile(r"\"[^\"]*\"|'[^']*'|(?:^|\s)#.*")
_BRACKETED_IPV6 = r"\[(?P<host>[0-9A-Fa-f:.]+)\]:[0-9]+"
_IPV6_LIKE = re.compile(rf"{_BRACKETED_IPV6}|(?<!\w)(?P<literal>[0-9A-Fa-f:.]+(?:/[0-9]+)?)")


def _unquoted_ipv6(line: str) -> str | None:
    for match in _IPV6_LIKE.finditer(_QUOTED.sub(" ", line[:1000])):
        literal = match["host"] or match["literal"]
        if literal.count(":") < 2:
            continue
        try:
            ip_interface(literal)
        except ValueError:
            continue
        return match[0]
    return None


_NEEDS_NO_QUOTES = re.compile(r"[0-9A-Za-z/](?:[0-9A-Za-z_./:-]*[0-9A-Za-z_./-])?")


class _TextDumper(yaml.SafeDumper):
    """Writes every scalar as text, whatever type YAML 1.1 would see in it: `off` and `1:30` stay as they are."""

    # Without resolvers every plain scalar is text to PyYAML.
    yaml_implicit_resolvers = {}  # noqa: RUF012  # PyYAML's own form

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002
        # PyYAML puts the items of a list at the indentation of their key.
        super().increase_indent(flow, indentless=False)

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002
        # A value that occurs twice would become an alias, which `compose` refuses.
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        # PyYAML decides by the resolvers that were removed here, and would write an empty text as nothing.
        return self.represent_scalar(_TEXT_TAG, text, style=None if _NEEDS_NO_QUOTES.fullmatch(text) else '"')


_TextDumper.add_representer(str, _TextDumper.represent_text)
