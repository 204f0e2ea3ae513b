"""Shapes: which nodes a key of the configuration accepts, and how they become a value.

A shape reads a node of the document into a value and adds every mistake to a `ReadState`. It also turns a value back
into a tree of text. Shapes hold no defaults of their own: a section starts from the value that it is given.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from ephmon.config.scalars import may_be_secret
from ephmon.config.yaml_document import (
    Document,
    MappingNode,
    Node,
    Problem,
    RefusedNode,
    ScalarNode,
    SequenceNode,
    TextTree,
    quotes_needed,
)
from ephmon.errors import quote

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from _typeshed import DataclassInstance

    from ephmon.config.scalars import Scalar

MAX_PROBLEMS = 200
"""Mistakes of one file that are printed; the others are only counted."""

T = TypeVar("T")
S = TypeVar("S", bound="DataclassInstance")


@dataclass(slots=True)
class ReadState:
    """What reading one document has found so far: the mistakes, and the keys that it sets."""

    document: Document
    problems: list[Problem] = field(default_factory=list)
    set_keys: set[str] = field(default_factory=set)
    """Paths of the keys that hold a value, such as `poll.interval`."""

    def refuse(self, node: Node, path: str, message: str) -> None:
        """Add a mistake."""
        self.problems.append(Problem(node.line, path, message))

    def refuse_shape(self, node: Node, path: str, expected: str) -> None:
        """Add that a node has the wrong shape, unless the composer has refused it already."""
        if isinstance(node, RefusedNode):
            return
        found = "there is no value" if _is_blank(node) else f"this is {_SHAPE_NAMES[type(node)]}"
        self.refuse(node, path, f"{found}; write {expected}")

    def entries(self, node: Node, path: str, known: Iterable[str], *, has_secrets: bool = False) -> dict[str, Node]:
        """Return the values of a mapping by key, without unknown keys; if a key occurs twice, the first counts.

        Where the mapping `has_secrets`, an unknown key may be one, as in `{url:https://...}` without a space.
        """
        found: dict[str, Node] = {}
        lines: dict[str, int] = {}
        names = tuple(known)
        for name, key, value in self.pairs(node, path, f"a mapping with keys such as {names[0]}"):
            if name == "<<":
                self.refuse(key, path, "the merge key << is not supported; write the keys out")
            elif name not in names:
                # Finding the nearest word takes time, and what comes after the first mistakes is not printed.
                near = [] if len(self.problems) >= MAX_PROBLEMS else _nearest_words(name, names)
                hint = f"did you mean {near[0]}?" if near else f"the keys here are {', '.join(names)}"
                is_repeated = near or not has_secrets
                self.refuse(key, join(path, name) if is_repeated else path, f"there is no such key; {hint}")
            elif name in found:
                self.refuse(key, join(path, name), f"line {lines[name]} sets this key already; keep one")
            else:
                found[name], lines[name] = value, key.line
        return found

    def pairs(self, node: Node, path: str, expected: str) -> list[tuple[str, ScalarNode, Node]]:
        """Return name, key and value of each entry of a mapping whose keys are text."""
        if _is_blank(node):
            return []
        if not isinstance(node, MappingNode):
            self.refuse_shape(node, path, expected)
            return []
        found = []
        for key, value in node.entries:
            if isinstance(key, ScalarNode):
                found.append((key.text, key, value))
            else:
                self.refuse_shape(key, path, "a plain word as the key")
        return found


_SHAPE_NAMES: Mapping[type[Node], str] = {
    ScalarNode: "a single value",
    SequenceNode: "a list",
    MappingNode: "a mapping",
}


class Shape(Protocol[T]):
    """What a key accepts."""

    def read(self, node: Node, path: str, state: ReadState) -> T | None:
        """Return the value, or None after adding to `state` why there is none."""

    def dump(self, value: T) -> TextTree:
        """Return the tree from which `read` reads the same value."""


@dataclass(frozen=True, slots=True)
class Single(Generic[T]):
    """A single value."""

    scalar: Scalar[T]

    def read(self, node: Node, path: str, state: ReadState) -> T | None:
        """Return the value, or None after adding to `state` why there is none."""
        if not isinstance(node, ScalarNode):
            literal = state.document.unquoted_ipv6(node.line)
            if literal is not None and not isinstance(node, RefusedNode):
                state.refuse(node, path, quotes_needed(literal))
            else:
                state.refuse_shape(node, path, "a single value")
            return None
        try:
            return self.scalar.parse(node.text)
        except ValueError as error:
            if _is_blank(node):
                state.refuse(node, path, "there is no value; write one or remove the key")
            elif may_be_secret(node.text) and not self.scalar.is_secret:
                state.refuse(
                    node,
                    path,
                    "a URL or a key in PEM form does not belong here; it may be a secret, so it is not repeated",
                )
            else:
                state.refuse(node, path, str(error))
            return None

    def dump(self, value: T) -> TextTree:
        """Return the value as text."""
        return self.scalar.format(value)


@dataclass(frozen=True, slots=True)
class ListOf(Generic[T]):
    """A list whose items have one shape; a key without a value is an empty list."""

    item: Shape[T]

    def read(self, node: Node, path: str, state: ReadState) -> tuple[T, ...] | None:
        """Return the items, or None after adding what is wrong with one of them."""
        if _is_blank(node):
            return ()
        if not isinstance(node, SequenceNode):
            state.refuse_shape(node, path, "a list, with each item on its own line after a dash")
            return None
        read = [self.item.read(item, f"{path}[{index}]", state) for index, item in enumerate(node.items)]
        items = tuple(item for item in read if item is not None)
        return items if len(items) == len(read) else None

    def dump(self, value: Sequence[T]) -> TextTree:
        """Return the items as a list."""
        return [self.item.dump(item) for item in value]


@dataclass(frozen=True, slots=True)
class TextMapping:
    """A mapping from names to text, both chosen by the user."""

    name: Scalar[str]
    text: Scalar[str]

    def read(self, node: Node, path: str, state: ReadState) -> dict[str, str] | None:
        """Return the mapping, or None after adding what is wrong with it."""
        before = len(state.problems)
        found: dict[str, str] = {}
        for name, key, value in state.pairs(node, path, "a mapping of names to values"):
            inner = join(path, name)
            if name in found:
                state.refuse(key, inner, "this name is set twice; keep one")
            found[name] = Single(self.text).read(value, inner, state) or ""
            Single(self.name).read(key, inner, state)
        return found if len(state.problems) == before else None

    def dump(self, value: Mapping[str, str]) -> TextTree:
        """Return the mapping."""
        return dict(value)


@dataclass(frozen=True, slots=True)
class Section(Generic[S]):
    """A mapping with a fixed set of keys, each a field of a dataclass; a missing key keeps the value of `default`."""

    default: S
    keys: Mapping[str, tuple[str, Shape[Any]]]
    """Key in the file -> field of the dataclass and shape. `dump` leaves out a field that is None."""
    check: Callable[[S], Iterable[tuple[str, str]]] = lambda _: ()
    """Returns path (below this section) and message of each conflict between keys; called only if each key alone is
    valid."""

    def read(self, node: Node, path: str, state: ReadState) -> S | None:
        """Return the section, or None after adding what is wrong with it."""
        before = len(state.problems)
        has_secrets = any(_is_secret(shape) for _, shape in self.keys.values())
        entries = state.entries(node, path, self.keys, has_secrets=has_secrets)
        values = {}
        for key, inner in entries.items():
            name, shape = self.keys[key]
            values[name] = shape.read(inner, join(path, key), state)
            if _is_leaf(shape):
                state.set_keys.add(join(path, key))
        # What the composer refused was added before `before` was taken, so the number of problems does not show it.
        if len(state.problems) > before or None in values.values() or isinstance(node, RefusedNode):
            return None
        section = replace(self.default, **values)
        for key, message in self.check(section):
            state.refuse(locate(node, key), f"{path}.{key}" if path else key, message)
        return section if len(state.problems) == before else None

    def dump(self, value: S) -> TextTree:
        """Return the section as a mapping in the order of `keys`."""
        fields = ((key, getattr(value, name), shape) for key, (name, shape) in self.keys.items())
        return {key: shape.dump(inner) for key, inner, shape in fields if inner is not None}


def join(path: str, key: str) -> str:
    """Return the path of a key below a path, without the key if it may be a secret."""
    name = "..." if may_be_secret(key) else quote(key)
    return f"{path}.{name}" if path else name


def locate(node: Node, path: str) -> Node:
    """Return the node at a dotted path below a node; if the path leads further than the tree, the last node on it."""
    for name in path.split("."):
        pairs = node.entries if isinstance(node, MappingNode) else ()
        found = [value for key, value in pairs if isinstance(key, ScalarNode) and key.text == name]
        if not found:
            break
        node = found[0]
    return node


def _is_leaf(shape: Shape[Any]) -> bool:
    """Return whether the user sees one key, however many values it has."""
    return isinstance(shape, Single | TextMapping) or (isinstance(shape, ListOf) and isinstance(shape.item, Single))


def _is_secret(shape: Shape[Any]) -> bool:
    inner = shape.item if isinstance(shape, ListOf) else shape
    return isinstance(inner, Single) and inner.scalar.is_secret


def _is_blank(node: Node) -> bool:
    """Return whether a key has no value, for example because all keys below it are commented out."""
    return isinstance(node, ScalarNode) and node.is_plain and node.text == ""


def _nearest_words(name: str, known: Sequence[str]) -> list[str]:
    return get_close_matches(name, known, n=1) if len(name) <= 60 else []
