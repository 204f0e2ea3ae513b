"""What the demo prints: lines with the seconds since its start and who says it, and the same shortened for a page."""

from __future__ import annotations

import textwrap
import time
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMAND = "$ ./script/demo"
WIDTH = 120
_WHO_WIDTH = 13
_INDENT = " " * 23


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Something that was said."""

    seconds: float
    """Since the start of the demo."""
    who: str
    """A word: `ephmon`, `HAProxy` and the like."""
    text: str
    is_figures: bool = False
    """Whether it is one of the many that only say how full the pool is."""

    def lines(self, most: int | None = None) -> list[str]:
        """Return it as it is printed, at most `WIDTH` characters wide and as many lines long."""
        return textwrap.wrap(
            self.text,
            WIDTH,
            initial_indent=f"{self.seconds:6.1f} s  {self.who:<{_WHO_WIDTH}} ",
            subsequent_indent=_INDENT,
            break_long_words=False,
            break_on_hyphens=False,
            max_lines=most,
            placeholder=" ...",
        )


class Timeline:
    """Prints what is said, as it is said, and remembers it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._start = time.monotonic()
        self.said: list[Entry] = []

    def say(self, who: str, text: str, *, is_figures: bool = False) -> None:
        """Print one entry."""
        entry = Entry(seconds=time.monotonic() - self._start, who=who, text=text, is_figures=is_figures)
        self.said.append(entry)
        # In one piece: Ctrl-C between a line and its end would let the next line begin in the middle of it.
        self._stream.write("".join(f"{line}\n" for line in entry.lines()))
        self._stream.flush()


def shortened(said: Sequence[Entry]) -> str:
    """Return the block for a page: the last of figures that follow each other, and the first line of what is long.

    What Alertmanager says is kept as a whole, because that is what all the others lead to.
    """
    kept = [one for one, following in pairwise(said) if not (one.is_figures and following.is_figures)] + [*said[-1:]]
    lines = [line for entry in kept for line in entry.lines(None if entry.who == "Alertmanager" else 1)]
    return "\n".join(["```", COMMAND, *lines, "```", ""])
