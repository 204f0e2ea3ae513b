"""Advice as lines of text, and as an object for JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ephmon.model.advice.causes import Advice


def advice_lines(advice: Advice) -> list[str]:
    """Return the cause, a numbered line for each step, and what not to do."""
    steps = (f"  {number}. {step}" for number, step in enumerate(advice.steps, start=1))
    return [f"Likely cause: {advice.cause}", *steps, *([advice.avoid] if advice.avoid else [])]


def advice_object(advice: Advice) -> dict[str, object]:
    """Return the parts by their names in JSON."""
    return {"cause": advice.cause, "steps": list(advice.steps), "avoid": advice.avoid}
