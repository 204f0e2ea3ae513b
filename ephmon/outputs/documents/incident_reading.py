"""Incidents read back: a file in, its document out, checked as far as it is used.

The file may come from another host and another version, may be cut off, and may be made to deceive. Whatever is wrong
with it is an `IncidentError` with one sentence; what comes out has the type that was asked for, and is printable.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from ephmon.errors import EphmonError, quote
from ephmon.outputs.documents import api
from ephmon.outputs.documents.incident import DOCUMENT, SCHEMA
from ephmon.outputs.text.wording import one_line, printable
from ephmon.regular_file import UnreadableFileError, read_regular_file

if TYPE_CHECKING:
    from enum import StrEnum

W = TypeVar("W", bound="StrEnum")

MOST_BYTES = 8 << 20
"""Far more than an incident ever has."""
_MOST = 1 << 53
"""Greater numbers are not the same in all programs that read JSON."""
_FEW = 100
"""So many entries of a list are looked at."""


class IncidentError(EphmonError):
    """A file is no incident, or a damaged one, or of a version that this one does not know."""


class Part:
    """An object of a document. Its members are asked for by type; what is missing or of another type is an error."""

    def __init__(self, value: object, place: str = "") -> None:
        self._place = place
        self._members: dict[str, Any] = value if isinstance(value, dict) else self._refuse("", "is no object")

    def text(self, name: str) -> str:
        """Return a text, printable and on one line."""
        value = self._member(name)
        return one_line(value) if isinstance(value, str) else self._refuse(name, "is no text")

    def number(self, name: str) -> float:
        """Return a number."""
        value = self._member(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > _MOST:
            self._refuse(name, "is no number that can be")
        return value

    def count(self, name: str) -> int:
        """Return a whole number that is not negative."""
        value = self.number(name)
        return value if isinstance(value, int) and value >= 0 else self._refuse(name, "is no count")

    def text_or_none(self, name: str) -> str | None:
        """Return a text, None for null and where it is missing."""
        return self.text(name) if self.has(name) else None

    def count_or_none(self, name: str) -> int | None:
        """Return a count, None for null and where it is missing."""
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
        """Return a list of objects, of a long one the first hundred."""
        return [Part(value, f"{self._at(name)}[{place}]") for place, value in enumerate(self._list(name))]

    def texts(self, name: str) -> list[str]:
        """Return a list of texts, of a long one the first hundred."""
        values = self._list(name)
        if not all(isinstance(value, str) for value in values):
            self._refuse(name, "is no list of texts")
        return [printable(value) for value in values]

    def counts(self, name: str) -> dict[str, int]:
        """Return counts by name."""
        part = self.part(name)
        return {one_line(key): part.count(key) for key in part.names()}

    def names(self) -> list[str]:
        """Return the names of the members, of many the first hundred."""
        return list(self._members)[:_FEW]

    def json(self) -> str:
        """Return the object as JSON, in ASCII with a newline at its end."""
        return api.encode(self._members).decode()

    def has(self, name: str) -> bool:
        """Tell whether a member is there and not null."""
        return self._members.get(name) is not None

    def _list(self, name: str) -> list[Any]:
        value = self._member(name)
        return value[:_FEW] if isinstance(value, list) else self._refuse(name, "is no list")

    def _member(self, name: str) -> Any:
        return self._members[name] if name in self._members else self._refuse(name, "is missing")

    def _at(self, name: str) -> str:
        shown_name = quote(name)
        return f"{self._place}.{shown_name}" if self._place and name else shown_name if name else self._place

    def _refuse(self, name: str, problem: str) -> NoReturn:
        raise IncidentError(f"It is damaged: {self._at(name) or 'the whole'} {problem}.")


def read(path: str) -> Part:
    """Return the document of a file.

    Raises:
        IncidentError: The file cannot be read, is no incident, or one that this version cannot read.
    """
    return parse(_content(path))


def parse(content: bytes) -> Part:
    """Return the document that a file holds; raises IncidentError as `read` does."""
    try:
        value = json.loads(content.decode(), parse_constant=_refuse_constant, parse_float=_finite)
        json.dumps(value)  # what is nested nearly too deep to be read may be too deep to be written
    except UnicodeDecodeError as error:
        raise IncidentError(f"It is no text: byte {error.start} is not UTF-8.") from None
    except json.JSONDecodeError as error:
        raise IncidentError(f"It is cut off or damaged at line {error.lineno}, column {error.colno}.") from None
    except RecursionError:
        raise IncidentError("It is damaged: it is nested too deep.") from None
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
        return read_regular_file(path, MOST_BYTES)
    except UnreadableFileError as error:
        raise IncidentError(f"It {error}.") from None
