"""Sequences of what happens to sockets between polls: no number is called exact that is not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kernel_truth.memory_fuzz import KINDS, Way, play

if TYPE_CHECKING:
    from tests.namespaces import Namespace

SEEDS = {Way.PROBE: [1, 2], Way.NO_PROBE: [3, 4, 5]}
"""Without the probe less is called exact."""
SECONDS = 600.0
"""An emulated machine takes its time."""


@pytest.mark.parametrize("way", SEEDS, ids=[way.value for way in SEEDS])
def test_what_a_daemon_calls_exact_is(agent: Namespace, way: Way) -> None:
    found = agent.call_within(SECONDS, play, SEEDS[way], way=way, remembers=True)

    assert found.wrong == []
    assert found.of_tcp > 0


def test_many_kinds_of_sockets_are_played() -> None:
    assert len({kind.__name__ for kind in KINDS}) == len(KINDS) >= 32
