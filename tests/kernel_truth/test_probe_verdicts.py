"""The probe against the kernel: what it says of every port is what connect() then finds, and it changes nothing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from ephmon.kernel.deadline import Deadline
from ephmon.kernel.probe import probe
from tests import sockets
from tests.kernel_truth.experiment import (
    ANY_V4,
    ELSEWHERE,
    FIRST_NAMED,
    HERE,
    HIGH,
    LOW,
    OTHER_PORT,
    PORT,
    PORTS,
    V6,
    accepted_side_by_side,
    closed,
    connect,
    left_in_time_wait,
    opened,
    opened_side_by_side,
    prepare,
)
from tests.kernel_truth.mixes import Asks
from tests.kernel_truth.prediction import predict
from tests.ordinary_user import as_thread_of_ordinary_user
from tests.sockets import Recipe

if TYPE_CHECKING:
    from tests.namespaces import Namespace

EVERY_PORT = range(LOW, HIGH + 1)
BLOCKED = 115
BLOCKING = (
    opened_side_by_side(10, Recipe(bind=(HERE, FIRST_NAMED + 100), listen=1)),
    opened_side_by_side(10, Recipe(bind=(V6, FIRST_NAMED + 150), v6only=True, listen=1)),
    opened_side_by_side(10, Recipe(bind=(ELSEWHERE, FIRST_NAMED + 200), reuse_address=True)),
    opened_side_by_side(10, Recipe(bind=(HERE, FIRST_NAMED + 250), connect=(HERE, OTHER_PORT))),
    accepted_side_by_side(25),  # its clients take any ports, so what names its port comes before
    closed("listeners"),
    # Of the whole range these could be given a port that is blocked already, by another address or family.
    opened(20, Recipe(bind=(ANY_V4, 0), port_range=(HIGH - 199, HIGH - 100))),
    left_in_time_wait(30, Recipe(bind=(HERE, 0), port_range=(HIGH - 99, HIGH), connect=(HERE, OTHER_PORT))),
)
SHARED = (
    opened(200, Recipe(connect=(HERE, OTHER_PORT))),
    opened(100, Recipe(bind=(ELSEWHERE, 0), no_port=True, connect=(HERE, OTHER_PORT))),
    left_in_time_wait(50, Recipe(connect=(HERE, OTHER_PORT))),
    opened(30, Recipe(udp=True, bind=(HERE, 0))),
)


def probe_every_port(asks: Asks) -> dict[int, bool]:
    if asks is Asks.ORDINARY_USER:
        return as_thread_of_ordinary_user(probe, EVERY_PORT, Deadline(20.0, time.monotonic))
    sockets.write_sysctl("net.ipv4.tcp_fastopen", 0)
    return probe(EVERY_PORT, Deadline(20.0, time.monotonic))


def verdicts_and_truth(asks: Asks) -> tuple[set[int], set[int]]:
    """Return the ports that the probe says may be shared, and those that connect() gets toward a new destination."""
    prepare()
    for step in (*BLOCKING, *SHARED):
        step()
    answers = probe_every_port(asks)
    sockets.open_sockets(connect(None).recipe, tag="truth", limit=sockets.ALL_PORTS)
    return {port for port, shared in answers.items() if shared}, set(sockets.ports_of("truth"))


@pytest.mark.parametrize("asks", Asks)
def test_row_55_the_verdict_on_every_port_is_what_connect_finds(agent: Namespace, asks: Asks) -> None:
    verdicts, truth = agent.call(verdicts_and_truth, asks)

    assert verdicts == truth
    assert len(truth) == PORTS - BLOCKED


def time_waits_around_the_probe(asks: Asks) -> tuple[int, int, int]:
    """Return how many TIME_WAITs are reusable before and after every port is probed, and how many connect() takes."""
    prepare()
    sockets.write_sysctl("net.ipv4.tcp_tw_reuse", 1)
    recipe = connect(None).recipe
    left_in_time_wait(40, recipe)()
    before = predict(HERE, PORT, HERE)
    probe_every_port(asks)
    after = predict(HERE, PORT, HERE)
    sockets.open_sockets(recipe, tag="drawn", limit=sockets.ALL_PORTS)
    return before.reusable, after.reusable, after.reusable - predict(HERE, PORT, HERE).time_wait


@pytest.mark.parametrize("asks", Asks)
def test_row_55b_the_probe_keeps_the_time_waits_that_connect_would_take(agent: Namespace, asks: Asks) -> None:
    assert agent.call(time_waits_around_the_probe, asks) == (40, 40, 40)
