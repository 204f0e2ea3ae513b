"""`ephmon incident`: print one incident, from this host or another."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

from ephmon.commands.terminal import print_answer
from ephmon.config.file import quote_path
from ephmon.errors import EphmonError
from ephmon.outputs.documents.incident_reading import IncidentError, read
from ephmon.outputs.text.incident import render

if TYPE_CHECKING:
    import argparse


def run(options: argparse.Namespace) -> int:
    """Print the incident as text or as JSON.

    Raises:
        EphmonError: The file is not an incident or cannot be read.
    """
    on_terminal = sys.stdout is not None and sys.stdout.isatty()
    try:
        incident = read(str(options.file))
        text = render(incident, width=shutil.get_terminal_size().columns if on_terminal else None)
    except IncidentError as error:
        raise EphmonError(f"{quote_path(options.file)} cannot be shown. {error}") from error
    print_answer(incident.json() if options.json else text)
    return 0
