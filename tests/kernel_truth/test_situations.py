"""Where a guess would be wrong ephmon is right, or says how little it knows; and nothing likely raises an alert."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.kernel_truth.situations import BIND, ONLY_CONNECT, PASSING, SHAPES, Outcome, Said, Scene, Shape, play

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.namespaces import Namespace

A_DAEMON, COMMANDS = "a daemon that starts now", "commands"
BLOCKED = frozenset({"EphmonPortsBlocked critical"})


def in_every_shape(*situations: Callable[[Scene], None]) -> pytest.MarkDecorator:
    pairs = [(situation, shape) for situation in situations for shape in SHAPES]
    names = [f"{situation.__name__}: {shape.name}" for situation, shape in pairs]
    return pytest.mark.parametrize(("situation", "shape"), pairs, ids=names)


def with_and_without_the_probe(*situations: Callable[[Scene], None]) -> pytest.MarkDecorator:
    """With the probe in every shape, and without it in one of them, by turns."""
    cases = [(situation, shape, True) for situation in situations for shape in SHAPES]
    cases += [(situation, SHAPES[index % len(SHAPES)], False) for index, situation in enumerate(situations)]
    names = [f"{one.__name__}: {shape.name}, {'' if probe else 'no '}probe" for one, shape, probe in cases]
    return pytest.mark.parametrize(("situation", "shape", "probe"), cases, ids=names)


def check_numbers(outcome: Outcome, *, probe: bool) -> None:
    """The bounds hold, and with the probe everybody has the kernel's number.

    Commands say what a daemon says in its first poll.
    """
    for who, said in outcome.said.items():
        assert said.least <= outcome.truth <= said.most, who
        assert not said.exact or said.remaining == outcome.truth, who
        if probe:
            assert (said.remaining, said.ambiguous) == (outcome.truth, 0), who
            assert said.exact or outcome.hides_sockets, who
    assert numbers(outcome.said[A_DAEMON]) == numbers(outcome.said[COMMANDS])
    assert bool(outcome.said[A_DAEMON].urgent) is bool(outcome.said[COMMANDS].urgent)


def numbers(said: Said) -> Said:
    """Return what can be compared: `headroom` asks about more ports where sockets are hidden, so it is exact there."""
    return replace(said, urgent=frozenset(), exact=False)


@with_and_without_the_probe(*ONLY_CONNECT)
def test_where_nobody_binds_nothing_is_blocked_and_nobody_is_alarmed(
    agent: Namespace, situation: Callable[[Scene], None], shape: Shape, probe: bool
) -> None:
    outcome = agent.call(play, situation, shape, probe=probe)

    check_numbers(outcome, probe=probe)
    for who, said in outcome.said.items():
        assert (said.blocked, said.has_bind_pool, said.urgent) == (0, False, frozenset()), who
        assert said.remaining == outcome.truth, who


@in_every_shape(*BIND)
def test_ports_that_bind_took_are_critical_before_connect_fails(
    agent: Namespace, situation: Callable[[Scene], None], shape: Shape
) -> None:
    outcome = agent.call(play, situation, shape, probe=True)

    check_numbers(outcome, probe=True)
    for who, said in outcome.said.items():
        assert said.has_bind_pool, who
        assert said.blocked >= 0.9 * shape.size, who
        assert said.urgent == {"status 2"} if who == COMMANDS else said.urgent >= BLOCKED, who


@in_every_shape(*BIND)
def test_without_the_probe_ports_that_bind_took_are_in_doubt(
    agent: Namespace, situation: Callable[[Scene], None], shape: Shape
) -> None:
    """A pool that is full by itself may alert; what is only likely may not."""
    outcome = agent.call(play, situation, shape, probe=False)

    check_numbers(outcome, probe=False)
    for who, said in outcome.said.items():
        assert (said.blocked, said.has_bind_pool) == (0, False), who
        assert said.ambiguous >= 0.9 * shape.size, who
        assert not any(alert.startswith("EphmonPortsBlocked") for alert in said.urgent), who


@with_and_without_the_probe(*PASSING)
def test_what_a_daemon_remembers_does_not_deceive_it(
    agent: Namespace, situation: Callable[[Scene], None], shape: Shape, probe: bool
) -> None:
    check_numbers(agent.call(play, situation, shape, probe=probe), probe=probe)
