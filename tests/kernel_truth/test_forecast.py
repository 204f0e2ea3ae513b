"""What is foretold of real connections is what the kernel then does."""

from __future__ import annotations

import errno
import time
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ephmon.facts.socket_groups import ConnectKey
from ephmon.kernel.source import SocketSource
from ephmon.model.forecast.release_schedule import EMPTY_SCHEDULE, TIME_WAIT_SECONDS, schedules_toward
from ephmon.model.report import ReloadStatus
from ephmon.model.rules import Rules
from ephmon.model.state import initial_state
from ephmon.model.step import conclude
from tests import sockets
from tests.kernel_truth.experiment import HERE, PORT, PORTS, leave_time_wait, prepare
from tests.kernel_truth.prediction import DEADLINE_SECONDS, look
from tests.model.facts import packed
from tests.sockets import Recipe

if TYPE_CHECKING:
    from ephmon.model.forecast.forecast import Forecast
    from tests.namespaces import Namespace

BETWEEN_POLLS = 5.0


def foretell(batches: list[int]) -> Forecast | None:
    """Open connections, so many before each poll, in polls that say to be five seconds apart."""
    state = initial_state(Rules(), ReloadStatus(successful=True, succeeded_at=time.time()))
    source = SocketSource(proc=Path("/proc"), clock=time.monotonic, wall_clock=time.time)
    for place, number in enumerate(batches):
        assert sockets.fill(HERE, PORT, tag="ramp", limit=number).count == number
        state = conclude(source.read(DEADLINE_SECONDS), state, BETWEEN_POLLS * place)
    (found,) = [one.forecast for one in state.report.listed if one.pool.key.destination_port == PORT]
    return found


@pytest.mark.parametrize("batches", [[100, 100, 100], [20, *[80] * 10], [300, 100, 100, 100, 100]])
def test_a_ramp_ends_when_it_was_forecast(agent: Namespace, batches: list[int]) -> None:
    agent.call(prepare)
    forecast = agent.call(foretell, batches)
    rest = agent.call(sockets.fill, HERE, PORT, tag="rest")

    assert rest == sockets.FillResult(PORTS - sum(batches), errno.EADDRNOTAVAIL)
    assert forecast is not None
    assert forecast.seconds_to_exhaustion == pytest.approx(BETWEEN_POLLS * rest.count / batches[-1])


def schedule() -> tuple[float, ...]:
    """Read the schedule of the TIME_WAITs of the namespace."""
    tcp = look().namespace.tcp
    assert tcp is not None
    ours = ConnectKey(packed(HERE), packed(HERE), PORT)
    return schedules_toward(tcp.connections, [ours]).get(ours, EMPTY_SCHEDULE)


def test_time_waits_stand_in_the_schedule_when_they_were_closed(agent: Namespace) -> None:
    """They are less than five seconds old."""
    agent.call(prepare)
    agent.call(leave_time_wait, 300, Recipe(connect=(HERE, PORT)))
    found = agent.call(schedule)

    assert sum(found) == 300
    assert list(accumulate(found))[TIME_WAIT_SECONDS - 6] == 0
