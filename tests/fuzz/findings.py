"""What fuzzing found: the shortest input for each place where a check failed, kept as a file."""

from __future__ import annotations

import hashlib
import re
import sys
import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class Findings:
    """Keeps inputs in a folder, named for what they showed; prints the traceback of the first of each kind.

    Args:
        folder: Is made when there is something to keep.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shortest: dict[str, Path] = {}

    def keep(self, data: bytes, error: BaseException) -> None:
        """Keep an input unless a shorter one is kept that failed in the same place."""
        kind = _kind(error)
        known = self._shortest.get(kind)
        if known is None:
            sys.stderr.write(f"finding: {kind}\n{''.join(traceback.format_exception(error))}")
        elif known.stat().st_size <= len(data):
            return
        else:
            known.unlink()
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._folder / f"{kind}-{hashlib.sha256(data).hexdigest()[:12]}"
        file.write_bytes(data)
        self._shortest[kind] = file


def _kind(error: BaseException) -> str:
    """Return what the error is and where it was raised: `ValueError-inet_diag.py-209`."""
    name = re.sub(r"\W", "", type(error).__name__)
    if isinstance(error, RecursionError | MemoryError):
        return name  # raised wherever it happens to be
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{name}-{frame.filename.rpartition('/')[2]}-{frame.lineno}"
