"""The results as a page in Markdown: a section for each scenario, and the bounds of all of them gathered at its head.

Sections stand between comments, so that a page can be renewed section by section.
"""

from __future__ import annotations

import re

from benchmarks.measurement import table

BOUNDS = "bounds"
"""The name of the section that gathers the bounds."""
_SECTION = re.compile(r"<!-- begin (\S+) -->\n(.*?)<!-- end \1 -->", re.DOTALL)
_BOUNDED_ROW = re.compile(r"^\| (.+?) \| (.+?) \| (<= .+?) \| (kept|missed) \|", re.MULTILINE)


class NoSuchSectionError(Exception):
    """The page has no place for the section; the message says what to add."""


def section(name: str, body: str) -> str:
    """Return a section."""
    return f"<!-- begin {name} -->\n### {name}\n\n{body}<!-- end {name} -->"


def renewed(page: str, new: str) -> str:
    """Return the page with the section of the same name replaced, and the bounds gathered anew.

    Raises:
        NoSuchSectionError: The page has not exactly one such section.
    """
    page = _replaced(page, new)
    return _replaced(page, bounds(page))


def bounds(page: str) -> str:
    """Return the section that repeats each row of the page that says whether a bound is kept."""
    rows = [
        (name, *row) for name, body in _SECTION.findall(page) if name != BOUNDS for row in _BOUNDED_ROW.findall(body)
    ]
    return section(BOUNDS, table(("scenario", "what", "measured", "bound", ""), rows))


def _replaced(page: str, new: str) -> str:
    ((name, _),) = _SECTION.findall(new)
    pattern = rf"<!-- begin {re.escape(name)} -->\n.*?<!-- end {re.escape(name)} -->"
    replaced, count = re.subn(pattern, lambda _: new, page, flags=re.DOTALL)
    if count != 1:
        raise NoSuchSectionError(
            f"The page needs one section {name}: a line <!-- begin {name} --> followed by <!-- end {name} -->."
        )
    return replaced
