"""The commands of a documentation page, run in one shell as a reader runs them, and what the page says they print."""

from __future__ import annotations

import os
import re
import select
import subprocess
import time
from typing import TYPE_CHECKING, NamedTuple, Self

from tests.processes import WAIT_SECONDS, environment

if TYPE_CHECKING:
    from collections.abc import Sequence

_BLOCK = re.compile(r"^```sh\n(.*?)^```\n(?:\n```\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)
_END = "--- what follows comes from the next commands ---"


class Block(NamedTuple):
    """Commands of a page."""

    commands: str
    printed: str
    """What the page shows as their output, "" if nothing."""

    def parts(self) -> list[str]:
        """Return the commands in the pieces that the lines `sleep SECONDS` make of them, which are left out."""
        return re.split(r"^sleep \d+\n", self.commands, flags=re.MULTILINE)


def blocks_of(page: str) -> list[Block]:
    """Return the blocks for a shell, in the order of the page."""
    return [Block(*match.groups(default="")) for match in _BLOCK.finditer(page)]


class Shell:
    """A bash that goes on from one command to the next, as a context manager.

    It ends by itself when nobody writes to it any more, so what its commands do at their end happens in any case.
    """

    def __init__(self, command: Sequence[str], **variables: str) -> None:
        self._process = subprocess.Popen(
            command,
            env=environment(**variables),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(WAIT_SECONDS)
        finally:
            self._process.kill()
            self._process.stdout.close()

    def run(self, commands: str) -> str:
        """Run commands and return what they print, errors too."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{commands}\necho; echo '{_END}'\n".encode())
        self._process.stdin.flush()
        return self._read_to_the_end().removesuffix("\n")

    def _read_to_the_end(self) -> str:
        assert self._process.stdout is not None
        end, seen = f"{_END}\n", ""
        deadline = time.monotonic() + WAIT_SECONDS
        while not seen.endswith(end):
            left = max(0.0, deadline - time.monotonic())
            ready = select.select([self._process.stdout], [], [], left)[0]
            chunk = os.read(self._process.stdout.fileno(), 1 << 16) if ready else b""
            assert chunk, f"the commands have not ended, but printed {seen!r}"
            seen += chunk.decode()
        return seen.removesuffix(end)
