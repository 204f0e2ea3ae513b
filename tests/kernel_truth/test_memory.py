"""Sequences of what happens to sockets between polls: no number is called exact that is not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kernel_truth.memory_fuzz import KINDS, play

if TYPE_CHECKING:
    from tests.namespaces import Namespace

SEEDS = {True: [1, 2], False: [3, 4, 5]}
"""With the probe, and without it, where less is called exact."""
SECONDS = 600.0
"""An emulated machine takes its time."""


@pytest.mark.parametrize("probe", [True, False], ids=["with the probe", "without the probe"])
def test_what_a_daemon_calls_exact_is(agent: Namespace, probe: bool) -> None:
    found = agent.call_within(SECONDS, play, SEEDS[probe], probe=probe, remembers=True)

    assert found.wrong == []
    assert found.of_tcp > 0


def test_many_kinds_of_sockets_are_played() -> None:
    assert len({kind.__name__ for kind in KINDS}) == len(KINDS) >= 32
