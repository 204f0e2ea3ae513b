"""Configurations that several faults start with, and what has to be there for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.faults.stage import Stage

HOOK = 'notify: {webhook: {url: "http://localhost:8080/"}}\n'
HOOK_PORT = 8080
INCIDENTS = "incidents: {directory: FOLDER/incidents}\n"
PAUSE_SECONDS = 601
"""After this time an incident that could not be written is tried again."""


def make_incidents(stage: Stage) -> None:
    """Make a directory for incidents that every user may write to."""
    directory = stage.folder / "incidents"
    directory.mkdir()
    directory.chmod(0o777)
