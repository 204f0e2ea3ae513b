"""Reads incident files: every member of the document is checked when it is used.

The file may come from another host or version, may be cut off, or may be crafted to deceive. Everything wrong with it
is an `IncidentError` with one sentence. Values have the requested type, and text is printable.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from ephmon.errors import EphmonError, quote
from ephmon.facts.foreign_text import printable
from ephmon.outputs.documents import api
from ephmon.outputs.documents.incident import DOCUMENT, SCHEMA
from ephmon.outputs.text.wording import one_line
from ephmon.regular_file import UnreadableFileError, read_regular_file

if TYPE_CHECKING:
    from enum import StrEnum

W = TypeVar("W", bound="StrEnum")

MAX_BYTES = 8 << 20
"""Far more than the bounds of `ephmon.outputs.documents.incident` allow."""
_MAX_NUMBER = 1 << 53
"""Programs that read numbers as IEEE 754 doubles lose digits of larger ones (RFC 8259, section 6)."""
_MAX_ENTRIES = 100
"""How many entries of a list are used."""


class IncidentError(EphmonError):
    """A file is not an incident, is damaged, or comes from an unknown version."""


class Part:
    """An object of a document. A member is requested by type; a missing member or another type is an error."""

    def __init__(self, value: object, path: str = "") -> None:
        self._path = path
        self._members: dict[str, Any] = value if isinstance(value, dict) else self._refuse("", "is not an object")

    def text(self, name: str) -> str:
        """Return a text, printable and on one line."""
        value = self._member(name)
        return one_line(value) if isinstance(value, str) else self._refuse(name, "is not text")

    def number(self, name: str) -> float:
        """Return a number."""
        value = self._member(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > _MAX_NUMBER:
            self._refuse(name, "is not a valid number")
        return value

    def count(self, name: str) -> int:
        """Return a whole number that is not negative."""
        value = self.number(name)
        return value if isinstance(value, int) and value >= 0 else self._refuse(name, "is not a count")

    def text_or_none(self, name: str) -> str | None:
        """Return a text, None if it is null or missing."""
        return self.text(name) if self.has(name) else None

    def count_or_none(self, name: str) -> int | None:
        """Return a count, None if it is null or missing."""
        return self.count(name) if self.has(name) else None

    def truth(self, name: str) -> bool:
        """Return true or false."""
        value = self._member(name)
        return value if isinstance(value, bool) else self._refuse(name, "is neither true nor false")

    def word(self, name: str, words: type[W]) -> W:
        """Return a word of a closed set."""
        text = self.text(name)
        if text not in list(words):
            self._refuse(name, f"is {quote(text)}, which this version of ephmon does not know")
        return words(text)

    def part(self, name: str) -> Part:
        """Return an object."""
        return Part(self._member(name), self._at(name))

    def parts(self, name: str) -> list[Part]:
        """Return the first `_MAX_ENTRIES` objects of a list."""
        return [Part(value, f"{self._at(name)}[{index}]") for index, value in enumerate(self._list(name))]

    def texts(self, name: str) -> list[str]:
        """Return the first `_MAX_ENTRIES` texts of a list."""
        values = self._list(name)
        if not all(isinstance(value, str) for value in values):
            self._refuse(name, "is not a list of texts")
        return [printable(value) for value in values]

    def counts(self, name: str) -> dict[str, int]:
        """Return counts by name."""
        part = self.part(name)
        return {one_line(key): part.count(key) for key in part.names()}

    def names(self) -> list[str]:
        """Return the names of the first `_MAX_ENTRIES` members."""
        return list(self._members)[:_MAX_ENTRIES]

    def json(self) -> str:
        """Return the object as JSON, in ASCII with a newline at its end."""
        return api.encode(self._members).decode()

    def has(self, name: str) -> bool:
        """Return whether a member exists and is not null."""
        return self._members.get(name) is not None

    def _list(self, name: str) -> list[Any]:
        value = self._member(name)
        return value[:_MAX_ENTRIES] if isinstance(value, list) else self._refuse(name, "is not a list")

    def _member(self, name: str) -> Any:
        return self._members[name] if name in self._members else self._refuse(name, "is missing")

    def _at(self, name: str) -> str:
        shown_name = quote(name)
        return f"{self._path}.{shown_name}" if self._path and name else shown_name if name else self._path

    def _refuse(self, name: str, problem: str) -> NoReturn:
        raise IncidentError(f"It is damaged: {self._at(name) or 'the document'} {problem}.")


def read(path: str) -> Part:
    """Return the document of a file.

    Raises:
        IncidentError: The file cannot be read, is not an incident, or has a schema that this version does not know.
    """
    return parse(_content(path))


def parse(content: bytes) -> Part:
    """Return the document in the content of a file.

    Raises:
        IncidentError: As `read` does.
    """
    try:
        value = json.loads(content.decode(), parse_constant=_refuse_constant, parse_float=_finite)
        json.dumps(value)  # a document that can just be read may be nested too deeply to be written
    except UnicodeDecodeError as error:
        raise IncidentError(f"It is not text: byte {error.start} is not UTF-8.") from None
    except json.JSONDecodeError as error:
        raise IncidentError(f"It is cut off or damaged at line {error.lineno}, column {error.colno}.") from None
    except RecursionError:
        raise IncidentError("It is damaged: it is nested too deeply.") from None
    except ValueError as error:
        raise IncidentError(f"It is damaged: {one_line(str(error))}.") from None
    if not isinstance(value, dict) or value.get("document") != DOCUMENT:
        raise IncidentError("It is not an incident of ephmon.")
    document = Part(value)
    schema = document.count("schema")
    if schema != SCHEMA:
        raise IncidentError(f"It has the schema {schema}, but this version of ephmon reads only {SCHEMA}.")
    return document


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{quote(text)} is too large a number")
    return number


def _content(path: str) -> bytes:
    try:
        return read_regular_file(path, MAX_BYTES)
    except UnreadableFileError as error:
        raise IncidentError(f"It {error}.") from None
