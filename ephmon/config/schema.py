"""Shapes: what may stand at a place of the configuration, and how it becomes a value.

A shape reads a node of the document into a value and notes every mistake in a `Reading`; it also turns a value back
into plain text, lists and mappings. Defaults are no business of a shape: a section starts from the value it is given.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from ephmon.config.document import (
    Document,
    MappingNode,
    Node,
    Plain,
    Problem,
    RefusedNode,
    ScalarNode,
    SequenceNode,
    quotes_needed,
)
from ephmon.errors import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from _typeshed import DataclassInstance

    from ephmon.config.scalars import Scalar

MAX_PROBLEMS = 200
"""Mistakes that are told of one file; the rest is counted."""

T = TypeVar("T")
S = TypeVar("S", bound="DataclassInstance")


@dataclass(slots=True)
class Reading:
    """The state of reading one document: what was wrong, and which keys stand in it."""

    document: Document
    problems: list[Problem] = field(default_factory=list)
    set_keys: set[str] = field(default_factory=set)

    def refuse(self, node: Node, path: str, sentence: str) -> None:
        """Note a mistake."""
        self.problems.append(Problem(node.line, path, sentence))

    def misshapen(self, node: Node, path: str, wanted: str) -> None:
        """Note that a node is of the wrong shape, unless what stands there was refused already."""
        if isinstance(node, RefusedNode):
            return
        found = "there is no value" if _is_blank(node) else f"this is {_FORMS[type(node)]}"
        self.refuse(node, path, f"{found}; write {wanted}")

    def entries(self, node: Node, path: str, known: Iterable[str]) -> dict[str, Node]:
        """Return the values of a mapping by key: the known keys alone, and of a double one the first."""
        found: dict[str, Node] = {}
        lines: dict[str, int] = {}
        names = tuple(known)
        for name, key, value in self.pairs(node, path, f"a mapping with keys such as {names[0]}"):
            if name == "<<":
                self.refuse(key, path, "the merge key << is not supported; write the keys out")
            elif name not in names:
                # Looking for the word that was meant takes time, and the first mistakes are enough to see it.
                near = [] if len(self.problems) >= MAX_PROBLEMS else _words_near(name, names)
                hint = f"did you mean {near[0]}?" if near else f"the keys here are {', '.join(names)}"
                self.refuse(key, join(path, name), f"there is no such key; {hint}")
            elif name in found:
                self.refuse(key, join(path, name), f"this key stands in line {lines[name]} already; keep one")
            else:
                found[name], lines[name] = value, key.line
        return found

    def pairs(self, node: Node, path: str, wanted: str) -> list[tuple[str, ScalarNode, Node]]:
        """Return name, key and value of each entry of a mapping whose keys are text."""
        if _is_blank(node):
            return []
        if not isinstance(node, MappingNode):
            self.misshapen(node, path, wanted)
            return []
        found = []
        for key, value in node.entries:
            if isinstance(key, ScalarNode):
                found.append((key.text, key, value))
            else:
                self.misshapen(key, path, "a plain word as the key")
        return found


_FORMS: Mapping[type[Node], str] = {ScalarNode: "a single value", SequenceNode: "a list", MappingNode: "a mapping"}


class Shape(Protocol[T]):
    """What may stand at a place."""

    def read(self, node: Node, path: str, reading: Reading) -> T | None:
        """Return the value, or None after noting why there is none."""

    def plain(self, value: T) -> Plain:
        """Return what `read` reads as the value."""


@dataclass(frozen=True, slots=True)
class Single(Generic[T]):
    """A single value."""

    scalar: Scalar[T]

    def read(self, node: Node, path: str, reading: Reading) -> T | None:
        """Return the value, or None after noting why there is none."""
        if not isinstance(node, ScalarNode):
            literal = reading.document.unquoted_ipv6(node.line)
            if literal is not None and not isinstance(node, RefusedNode):
                reading.refuse(node, path, quotes_needed(literal))
            else:
                reading.misshapen(node, path, "a single value")
            return None
        try:
            return self.scalar.parse(node.text)
        except ValueError as error:
            if _is_blank(node):
                reading.refuse(node, path, "there is no value; write one or remove the key")
            else:
                reading.refuse(node, path, str(error))
            return None

    def plain(self, value: T) -> Plain:
        """Return the value as text."""
        return self.scalar.show(value)


@dataclass(frozen=True, slots=True)
class ListOf(Generic[T]):
    """A list whose items are of one shape; nothing at all is an empty list."""

    item: Shape[T]

    def read(self, node: Node, path: str, reading: Reading) -> tuple[T, ...] | None:
        """Return the items, or None after noting what is wrong with one of them."""
        if _is_blank(node):
            return ()
        if not isinstance(node, SequenceNode):
            reading.misshapen(node, path, "a list, each item in a line of its own after a dash")
            return None
        read = [self.item.read(item, f"{path}[{index}]", reading) for index, item in enumerate(node.items)]
        items = tuple(item for item in read if item is not None)
        return items if len(items) == len(read) else None

    def plain(self, value: Sequence[T]) -> Plain:
        """Return the items as a list."""
        return [self.item.plain(item) for item in value]


@dataclass(frozen=True, slots=True)
class TextByName:
    """A mapping from names that the user chooses to text."""

    name: Scalar[str]
    text: Scalar[str]

    def read(self, node: Node, path: str, reading: Reading) -> dict[str, str] | None:
        """Return the mapping, or None after noting what is wrong with it."""
        before = len(reading.problems)
        found: dict[str, str] = {}
        for name, key, value in reading.pairs(node, path, "a mapping of names to values"):
            inner = join(path, name)
            if name in found:
                reading.refuse(key, inner, "this name stands here already; keep one")
            found[name] = Single(self.text).read(value, inner, reading) or ""
            Single(self.name).read(key, inner, reading)
        return found if len(reading.problems) == before else None

    def plain(self, value: Mapping[str, str]) -> Plain:
        """Return the mapping."""
        return dict(value)


@dataclass(frozen=True, slots=True)
class Section(Generic[S]):
    """A mapping with a fixed set of keys, each a field of a dataclass; a key left out keeps the default's value."""

    default: S
    keys: Mapping[str, tuple[str, Shape[Any]]]
    """Key in the file -> field of the dataclass and shape. A field that is None is left out of `plain`."""
    check: Callable[[S], Iterable[tuple[str, str]]] = lambda _: ()
    """Returns path (below this section) and sentence of each mistake that lies between keys, asked only if every key
    by itself is right."""

    def read(self, node: Node, path: str, reading: Reading) -> S | None:
        """Return the section, or None after noting what is wrong with it."""
        before = len(reading.problems)
        entries = reading.entries(node, path, self.keys)
        values = {}
        for key, inner in entries.items():
            name, shape = self.keys[key]
            values[name] = shape.read(inner, join(path, key), reading)
            if _is_leaf(shape):
                reading.set_keys.add(join(path, key))
        # What the composer refused was noted before, so that the number of problems does not tell.
        if len(reading.problems) > before or None in values.values() or isinstance(node, RefusedNode):
            return None
        section = replace(self.default, **values)
        for key, sentence in self.check(section):
            reading.refuse(locate(node, key), f"{path}.{key}" if path else key, sentence)
        return section if len(reading.problems) == before else None

    def plain(self, value: S) -> Plain:
        """Return the section as a mapping in the order of `keys`."""
        fields = ((key, getattr(value, name), shape) for key, (name, shape) in self.keys.items())
        return {key: shape.plain(inner) for key, inner, shape in fields if inner is not None}


def join(path: str, key: str) -> str:
    """Return the path of a key below a path."""
    name = shown(key)
    return f"{path}.{name}" if path else name


def locate(node: Node, path: str) -> Node:
    """Return the node at a dotted path below a node, or where the path ends early, the last that is there."""
    for name in path.split("."):
        pairs = node.entries if isinstance(node, MappingNode) else ()
        found = [value for key, value in pairs if isinstance(key, ScalarNode) and key.text == name]
        if not found:
            break
        node = found[0]
    return node


def _is_leaf(shape: Shape[Any]) -> bool:
    """Tell whether what stands there is one key to the user, however many values it has."""
    return isinstance(shape, Single | TextByName) or (isinstance(shape, ListOf) and isinstance(shape.item, Single))


def _is_blank(node: Node) -> bool:
    """Tell whether nothing stands there, as after a key whose inner keys are all commented out."""
    return isinstance(node, ScalarNode) and node.plain and node.text == ""


def _words_near(name: str, known: Sequence[str]) -> list[str]:
    return get_close_matches(name, known, n=1) if len(name) <= 60 else []
