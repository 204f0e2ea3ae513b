"""The links of Markdown pages, and whether they lead somewhere."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_FENCE = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\((?![a-z]+:)([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.*?) *$", re.MULTILINE)


def broken_links(pages: Iterable[Path], root: Path) -> list[str]:
    """Return the relative links of these pages that lead to no file below `root`, or to no heading of that page.

    Each is written as `PAGE: TARGET`, with the page as seen from `root`.
    """
    return [
        f"{page.relative_to(root)}: {target}"
        for page in pages
        for target in _LINK.findall(_prose(page))
        if not _leads_somewhere(page, target, root)
    ]


def _leads_somewhere(page: Path, target: str, root: Path) -> bool:
    name, _, anchor = target.partition("#")
    file = page.parent.joinpath(name).resolve() if name else page
    if not file.exists() or not file.is_relative_to(root.resolve()):
        return False
    return not anchor or (file.is_file() and anchor in anchors(file))


def anchors(page: Path) -> set[str]:
    """Return what a link can name after `#`: the headings as GitHub writes them, without a second one of the same name.

    They are in lower case, without punctuation, with a hyphen for each space.
    """
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in _HEADING.findall(_prose(page))}


def _prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text(encoding="utf-8"))
