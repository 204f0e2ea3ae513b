"""How the keeping of incidents fares: the closed set of words and the counts that become metrics."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class FailureReason(StrEnum):
    """Why an incident could not be kept."""

    NO_DIRECTORY = "no_directory"
    PERMISSION = "permission"
    READ_ONLY = "read_only"
    NO_SPACE = "no_space"
    TOO_LARGE = "too_large"
    """Alone it takes more than incidents.max_mib."""
    SYSTEM = "system"
    """Whatever else the file system or the system says."""
    DEFECT = "defect"


@dataclass(frozen=True, slots=True, kw_only=True)
class IncidentStatus:
    """Counts since the start."""

    written: int = 0
    failures: Mapping[FailureReason, int] = field(default_factory=lambda: dict.fromkeys(FailureReason, 0))
