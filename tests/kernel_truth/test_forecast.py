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
    from collections.abc import Callable

    from ephmon.model.forecast.forecast import Forecast
    from tests.namespaces import Namespace

BETWEEN_POLLS = 5.0


def stay(number: int) -> int:
    """Open so many connections at most, keep them, and return how many there are."""
    return sockets.fill(HERE, PORT, tag="ramp", limit=number).count


def come_and_go(number: int) -> int:
    """Open so many connections at most, one after another, and return how many there were; this side closes them."""
    for count in range(number):
        if not sockets.fill(HERE, PORT, tag="leaving", limit=1).count:
            return count
        sockets.accept_all("server", tag="left")
        sockets.close("leaving")
        sockets.close("left")
    return number


def foretell(batches: list[int], open_some: Callable[[int], int] = stay) -> Forecast | None:
    """Open connections, so many before each poll, in polls that say to be five seconds apart."""
    state = initial_state(Rules(), ReloadStatus(successful=True, succeeded_at=time.time()))
    source = SocketSource(proc=Path("/proc"), clock=time.monotonic, wall_clock=time.time)
    for place, number in enumerate(batches):
        assert open_some(number) == number
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


@pytest.mark.parametrize("most", [PORTS, PORTS // 4])
def test_short_connections_fill_no_pool_that_has_more_ports_than_time_waits_are_allowed(
    agent: Namespace, most: int
) -> None:
    agent.call(prepare)
    agent.call(sockets.write_sysctl, "net.ipv4.tcp_tw_reuse", 0)
    agent.call(sockets.write_sysctl, "net.ipv4.tcp_max_tw_buckets", most)
    batches = [PORTS // 5] * 3
    forecast = agent.call(foretell, batches, come_and_go)
    more = agent.call(come_and_go, 2 * PORTS)

    assert forecast is not None
    is_filled = more == PORTS - sum(batches)
    assert is_filled or more == 2 * PORTS
    assert is_filled is (forecast.seconds_to_exhaustion is not None)
    assert is_filled is (forecast.sustainable_opens_per_second is not None)
    assert is_filled is (most == PORTS)


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
