"""A YAML file as a tree of text: read within bounds, composed strictly, each node with its line.

A path or text goes in, a `Document` comes out. Scalars stay text, because only a schema knows what the user meant:
YAML 1.1 makes booleans of `off`, octal numbers of `0443` and base-60 ones of `1:30`. Anchors, aliases and tags are
refused: they are what makes a small file large. The tree is built from the events of PyYAML's parser, which keeps
its state in a list; its own composer and libyaml recurse, and die of brackets that are nested deeply enough.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from ipaddress import ip_interface
from typing import TYPE_CHECKING, NamedTuple

import yaml

from ephmon.errors import ConfigError, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

MAX_BYTES = 1 << 20
MAX_DEPTH = 50
MAX_NODES = 20_000
"""Keys and values: more than a configuration needs, and what PyYAML reads in about a second."""

_FORMS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class Problem(NamedTuple):
    """One mistake in a document: its line, the path of its key ("" if it has none) and one sentence."""

    line: int
    path: str
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalarNode:
    """A single value as its text, escapes resolved."""

    line: int
    text: str
    plain: bool
    """Neither quoted nor a block."""


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
    """A place where something stood that is refused; its problem is told already."""

    line: int


Node = ScalarNode | SequenceNode | MappingNode | RefusedNode
Plain = str | list["Plain"] | dict[str, "Plain"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """What `compose` made of a text."""

    root: Node | None
    """None if the document is empty or could not be composed."""
    problems: tuple[Problem, ...]
    lines: Sequence[str]

    def unquoted_ipv6(self, line: int) -> str | None:
        """Return the first IPv6 literal of a line, counted from 1, that stands outside of quotes."""
        return _unquoted_ipv6(self.lines[line - 1]) if 0 < line <= len(self.lines) else None


class _Unreadable(Exception):  # noqa: N818  # it names the state of the document and never leaves this module
    """Composing cannot go on; carries the Problem."""

    def __init__(self, line: int, sentence: str) -> None:
        self.problem = Problem(line, "", sentence)


def read_text(path: Path) -> str:
    """Read a regular file of at most 1 MiB as UTF-8, without ever waiting for a FIFO or a device.

    Raises:
        ConfigError: One sentence that names the path.
    """
    name = shown_path(path)
    try:
        data = _read_bytes(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{name}: the file cannot be read: {reason}") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{name}: the file is larger than 1 MiB, which no configuration needs")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = f"the byte 0x{data[error.start]:02x} at offset {error.start}"
        raise ConfigError(f"{name}:{line}: {byte} is not UTF-8; save the file as UTF-8 text") from None


def shown_path(path: Path | str) -> str:
    """Return a path for the head of a message."""
    return shown(str(path), limit=4096)


def _read_bytes(path: Path) -> bytes:
    """Read at most one byte more than the limit."""
    # O_NONBLOCK: open() of a FIFO would wait for a writer. O_NOCTTY: a terminal must not become ours.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            form = next((name for is_form, name in _FORMS if is_form(mode)), "no regular file")
            raise ConfigError(f"{shown_path(path)}: this is {form}; a configuration is a regular file")
        data = bytearray()
        while len(data) <= MAX_BYTES and (piece := os.read(descriptor, MAX_BYTES + 1 - len(data))):
            data += piece
        return bytes(data)
    finally:
        os.close(descriptor)


def compose(text: str) -> Document:
    """Build the tree of a text, or say in `problems` what stands in the way; nothing is raised, whatever the text."""
    lines = text.splitlines()
    composer = _Composer()
    try:
        _feed(composer, text, lines)
    except _Unreadable as stop:
        return Document(root=None, problems=(*composer.problems, stop.problem), lines=lines)
    return Document(root=composer.root, problems=tuple(composer.problems), lines=lines)


def render(plain: Plain) -> str:
    """Return YAML text of which `compose` makes the same tree: blocks, in the order given, quoted where it must be."""
    return "".join(f"{line}\n" for line in _block(plain))


def _feed(composer: _Composer, text: str, lines: Sequence[str]) -> None:
    try:
        loader = yaml.SafeLoader(text)
    except yaml.reader.ReaderError as error:
        line = len(text[: error.position].splitlines()) or 1
        raise _Unreadable(line, f"the character U+{error.character:04X} cannot stand in YAML; remove it") from None
    try:
        while loader.check_event():
            composer.take(loader.get_event())  # type: ignore[no-untyped-call]  # the stubs leave it bare
    except yaml.MarkedYAMLError as error:
        raise _syntax_problem(error, lines) from None
    except (ValueError, OverflowError):  # from chr() of an escape and int() of a version, which PyYAML lets through
        raise _Unreadable(loader.line + 1, "a number in an escape or a directive is out of range") from None
    finally:
        loader.dispose()


def _syntax_problem(error: yaml.MarkedYAMLError, lines: Sequence[str]) -> _Unreadable:
    mark = error.problem_mark or error.context_mark
    line = 1 if mark is None else mark.line + 1
    literal = _unquoted_ipv6(lines[line - 1]) if line <= len(lines) else None
    if literal is not None:
        return _Unreadable(line, quotes_needed(literal))
    what = (error.problem or "it cannot be read")[:200]  # PyYAML quotes a tag handle whole
    if "'\\t'" in what:
        return _Unreadable(line, "a tab cannot stand here in YAML; indent with spaces")
    if error.context and error.context_mark is not None and error.context_mark.line + 1 != line:
        what = f"{what}, {error.context} that begins in line {error.context_mark.line + 1}"
    return _Unreadable(line, f"this is not valid YAML: {what}")


def quotes_needed(literal: str) -> str:
    """Return the sentence about an IPv6 literal that YAML took for something else."""
    return f'YAML reads an IPv6 address as something else unless it is quoted; write "{literal}"'


_STANDARD_TAG = "tag:yaml.org,2002:"
"""What PyYAML makes of `!!`."""


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
    """Takes the events of one document and holds the tree that they make."""

    def __init__(self) -> None:
        self.root: Node | None = None
        self.problems: list[Problem] = []
        self._open: list[_Frame] = []
        self._nodes = 0
        self._documents = 0

    def take(self, event: yaml.Event) -> None:
        """Add one event; raises _Unreadable where the document cannot be one of ours."""
        line = 1 if event.start_mark is None else event.start_mark.line + 1
        match event:
            case yaml.DocumentStartEvent():
                self._documents += 1
                if self._documents > 1:
                    raise _Unreadable(line, "a second document begins here; a configuration is a single one")
            case yaml.AliasEvent():
                self._refuse(line, f"the alias *{shown(event.anchor or '')} is not supported; write the value out")
                self._add(RefusedNode(line=line))
            case yaml.ScalarEvent():
                self._decorated(event, line)
                self._add(self._scalar(event, line))
            case yaml.CollectionStartEvent():
                self._decorated(event, line)
                self._enter(_Frame(line=line, is_mapping=isinstance(event, yaml.MappingStartEvent)))
            case yaml.CollectionEndEvent():
                self._add(self._open.pop().close())

    def _enter(self, frame: _Frame) -> None:
        if len(self._open) == MAX_DEPTH:
            raise _Unreadable(frame.line, f"lists and mappings are nested more than {MAX_DEPTH} deep here")
        self._open.append(frame)

    def _add(self, node: Node) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise _Unreadable(node.line, f"the file has more than {MAX_NODES} keys and values up to here")
        if self._open:
            self._open[-1].children.append(node)
        else:
            self.root = node

    def _scalar(self, event: yaml.ScalarEvent, line: int) -> Node:
        if any("\ud800" <= character <= "\udfff" for character in event.value):
            self._refuse(line, "an escape here makes half a character (a surrogate); write the character itself")
            return RefusedNode(line=line)
        return ScalarNode(line=line, text=event.value, plain=not event.style)

    def _decorated(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent, line: int) -> None:
        if event.anchor is not None:
            self._refuse(line, f"the anchor &{shown(event.anchor)} is not supported; remove it")
        if event.tag is not None:
            self._refuse(
                line, f"the tag {shown(event.tag.replace(_STANDARD_TAG, '!!', 1))} is not supported; remove it"
            )

    def _refuse(self, line: int, sentence: str) -> None:
        self.problems.append(Problem(line, "", sentence))


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


_BARE = re.compile(r"[0-9A-Za-z/](?:[0-9A-Za-z_./:-]*[0-9A-Za-z_./-])?")


def _block(plain: Plain) -> Iterator[str]:
    if isinstance(plain, str):
        yield _scalar_text(plain)
    elif not plain:
        yield "[]" if isinstance(plain, list) else "{}"
    elif isinstance(plain, dict):
        yield from _block_mapping(plain)
    else:
        for item in plain:
            first, *rest = _block(item)
            yield f"- {first}"
            yield from (f"  {line}" for line in rest)


def _block_mapping(mapping: Mapping[str, Plain]) -> Iterator[str]:
    for key, value in mapping.items():
        name = _scalar_text(key)
        lines = list(_block(value))
        if isinstance(value, str) or not value:
            yield f"{name}: {lines[0]}"
        else:
            yield f"{name}:"
            yield from (f"  {line}" for line in lines)


def _scalar_text(text: str) -> str:
    if _BARE.fullmatch(text):
        return text
    return '"' + "".join(_escaped(character) for character in text) + '"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
