"""Records of the log for tests."""

from __future__ import annotations

import logging


def flush() -> None:
    """Wait until all that was logged is written."""
    for handler in logging.getLogger("ephmon").handlers:
        handler.flush()
