"""Loads as they develop: what is healthy raises no alert in a day, and what runs out is announced in time."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from itertools import count, product
from random import Random
from typing import TYPE_CHECKING

import pytest

from ephmon.facts.sockets import TcpState
from ephmon.model.alerting import conditions
from ephmon.model.alerting.state_machine import AlertName, Alerts, Moment
from ephmon.model.alerting.thresholds import Severity
from ephmon.model.pace import Costs
from ephmon.model.report import ReloadStatus
from ephmon.model.rules import Rules
from ephmon.model.state import State, initial_state
from ephmon.model.step import after_narrow_poll, conclude, with_pace
from tests.builders import TAKEN_AT, make_pool
from tests.model.facts import (
    Sockets,
    connected,
    make_namespace,
    make_narrow,
    make_snapshot,
    make_sysctls,
    make_tcp,
    packed,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

LOW, PORTS = 40_000, 200
DAY = 24 * 3600
DESTINATIONS = [f"10.0.0.{host}" for host in range(10, 20)]


@dataclass(slots=True)
class Watched:
    """A daemon's polls of a simulated host, at the pace that each state sets."""

    sockets: Callable[[float], Iterable[Sockets]]
    """What is open at a time."""
    state: State = field(
        default_factory=lambda: initial_state(Rules(), ReloadStatus(successful=True, succeeded_at=0.0))
    )
    fired: dict[tuple[AlertName, Severity], float] = field(default_factory=dict)
    """When each first fired."""
    polls: int = 0

    def until(self, end: float, start: float = 0.0) -> Watched:
        """Poll from `start` on until `end`."""
        now = full_at = start
        while now < end:
            is_full = now >= full_at + self.state.report.pace.full or now == start
            if is_full:
                full_at = now
            after = self._read(now) if is_full else self._look(now)
            self.state = with_pace(replace(after, costs=Costs(full=(0.01,), narrow=(0.001,))))
            self.polls += 1
            for alert in self.state.report.alerts.firing:
                self.fired.setdefault((alert.key.name, alert.severity), now)
            now = min(full_at + self.state.report.pace.full, now + (self.state.report.pace.narrow or math.inf))
        return self

    def _read(self, now: float) -> State:
        sysctls = make_sysctls(LOW, LOW + PORTS - 1)
        namespace = make_namespace(make_tcp(*self.sockets(now)), sysctls)
        return conclude(make_snapshot(namespace, taken_at=TAKEN_AT + now), self.state, now)

    def _look(self, now: float) -> State:
        sysctls = make_sysctls(LOW, LOW + PORTS - 1)
        ends = [(packed("10.0.0.9"), 443)]
        narrow = make_narrow(self.sockets(now), taken_at=TAKEN_AT + now, sysctls=sysctls, destinations=ends)
        state = after_narrow_poll(narrow, self.state, now)
        assert state is not None
        return state


def opened(number: int, destination: str = "10.0.0.9") -> Sockets:
    return connected("10.0.0.1", range(LOW, LOW + number), destination, 443, no_port=True)


# --- healthy ------------------------------------------------------------------------------------------------------


def test_a_day_of_ten_destinations_around_sixty_percent_raises_no_alert() -> None:
    """17,280 polls, each with noise of its own; the fullest of them comes close to the warning and none reaches it."""
    random = Random(20260102)
    alerts, highest = Alerts(), 0.0
    for number in range(DAY // 5):
        levels = [min(0.6999, random.gauss(0.60, 0.02)) for _ in DESTINATIONS]
        pools = [
            make_pool(destination=destination, usable=28_232, blocked=0, in_use=int(level * 28_232))
            for destination, level in zip(DESTINATIONS, levels, strict=True)
        ]
        highest = max(highest, *levels)
        alerts = conditions.judge_narrow_poll(pools, alerts, Rules(), Moment(5.0 * number, TAKEN_AT + 5.0 * number))
        assert alerts.states == {}

    assert highest > 0.67


def test_an_hour_of_connections_that_come_and_go_around_sixty_percent_raises_no_alert() -> None:
    random = Random(20260103)
    watched = Watched(lambda _: [opened(random.randint(114, 126), destination) for destination in DESTINATIONS[:3]])

    assert watched.until(3600.0).fired == {}
    assert watched.polls == 720


def test_a_day_of_short_connections_to_a_loopback_backend_raises_no_alert() -> None:
    """Each port is in TIME_WAIT, but all those older than a second are handed out again (tcp_tw_reuse is 2).

    3 connections a second leave 180 TIME_WAITs, which a count of sockets would take for a critical pool. Of each hour
    the first minutes are polled: what a poll sees depends on the last minute alone.
    """
    ages = [
        connected(
            "127.0.0.1",
            range(LOW + 3 * age, LOW + 3 * (age + 1)),
            "127.0.0.1",
            8080,
            state=TcpState.TIME_WAIT,
            left_ms=60_000 - 1_000 * age - 500,
            no_port=True,
        )
        for age in range(60)
    ]
    live = connected("127.0.0.1", range(LOW + 180, LOW + 183), "127.0.0.1", 8080, no_port=True)
    watched = Watched(lambda _: [*ages, live])
    for hour in range(24):
        watched.until(3600.0 * hour + 150.0, start=3600.0 * hour)

    assert watched.fired == {}
    (one,) = watched.state.report.listed
    assert (one.pool.in_use, one.pool.time_wait, one.pool.reusable, one.pool.utilisation) == (183, 180, 177, 0.03)


@pytest.mark.parametrize("offset", [0.0, 1.3, 2.5, 4.9])
def test_short_connections_that_begin_and_settle_at_sixty_percent_raise_no_alert(offset: float) -> None:
    """Each leaves a port in TIME_WAIT for a minute, so the pool fills as if for good, and then stays as it is."""

    def sockets(now: float) -> list[Sockets]:
        born = [number for number in range(int(2 * (now - offset)) + 1) if now - offset - number / 2 < 60.0]
        return [
            connected(
                "10.0.0.1",
                LOW + number % PORTS,
                "10.0.0.9",
                443,
                state=TcpState.TIME_WAIT,
                left_ms=60_000 - int(1_000 * (now - offset - number / 2)),
                no_port=True,
            )
            for number in born
        ]

    watched = Watched(sockets).until(300.0)
    (one,) = watched.state.report.listed

    assert watched.fired == {}
    assert one.pool.utilisation == pytest.approx(0.60, abs=0.01)


# --- heading for exhaustion ---------------------------------------------------------------------------------------

NEAR = AlertName.POOL_NEAR_EXHAUSTION
INTERVAL, URGENT, FOR = 5.0, 1.0, 10.0


@pytest.mark.parametrize(
    ("seconds", "offset"), [*product([60.0, 90.0, 300.0], [0.0, 1.3, 2.5, 4.9]), (3600.0, 0.0)]
)  # when in an interval a ramp begins decides nothing where it takes hundreds of them
def test_a_ramp_to_exhaustion_is_announced_before_its_end(seconds: float, offset: float) -> None:
    """The lead is (1 - threshold) * T - (interval + for) at least; from the warning on, the interval is the urgent one.

    Where the critical threshold is reached within the `for` of the warning, the alert is critical from the first.
    """
    watched = Watched(lambda now: [opened(min(PORTS, int(PORTS * max(0.0, now - offset) / seconds)))])
    watched.until(seconds + offset)
    exhausted_at = seconds + offset
    critical = watched.fired[NEAR, Severity.CRITICAL]
    first = watched.fired.get((NEAR, Severity.WARNING), critical)
    one_port = seconds / PORTS

    assert exhausted_at - first >= (1 - 0.70) * seconds - (INTERVAL + FOR) - one_port
    assert exhausted_at - critical >= (1 - 0.90) * seconds - URGENT - one_port
    assert first <= critical < exhausted_at


@pytest.mark.parametrize("seconds", [60.0, 90.0])
def test_a_steep_ramp_is_announced_by_the_forecast_before_any_threshold(seconds: float) -> None:
    """From the poll after the one that sees the pool half full: two polls later at the most."""
    watched = Watched(lambda now: [opened(min(PORTS, int(PORTS * now / seconds)))]).until(seconds)
    ahead = watched.fired[AlertName.POOL_EXHAUSTION_FORECAST, Severity.WARNING]

    assert ahead <= 0.50 * seconds + 2 * INTERVAL
    assert all(ahead < at for (name, _), at in watched.fired.items() if name is NEAR)


def test_a_ramp_of_blocked_ports_is_announced_before_its_end_and_once() -> None:
    """Somebody listens on ever more ports, while ten destinations have connections."""

    def sockets(now: float) -> list[Sockets]:
        taken = min(PORTS, int(PORTS * now / 60.0))
        blockers = connected("10.0.0.1", range(LOW, LOW + taken), "10.0.0.8", 80, state=TcpState.LISTEN)
        clients = [
            connected("10.0.0.1", range(LOW + PORTS - 8, LOW + PORTS), destination, 443, no_port=True)
            for destination in DESTINATIONS
        ]
        return [*clients, blockers] if taken else clients

    watched = Watched(sockets).until(58.0)

    assert {name for name, _ in watched.fired} == {AlertName.PORTS_BLOCKED}
    assert watched.fired[AlertName.PORTS_BLOCKED, Severity.CRITICAL] < 58.0
    assert 60.0 - watched.fired[AlertName.PORTS_BLOCKED, Severity.WARNING] >= 0.30 * 60.0 - (INTERVAL + FOR)


def test_a_pool_that_swings_around_its_threshold_does_not_flap() -> None:
    """A saw-tooth between 0.66 and 0.74 for an hour: one warning that stays."""
    levels = [132, 136, 140, 144, 148, 144, 140, 136]
    polls = count()
    watched = Watched(lambda _: [opened(levels[next(polls) // 5 % len(levels)])])
    watched.until(3600.0)
    (alert,) = (alert for alert in watched.state.report.alerts.firing if alert.key.name is NEAR)

    assert set(watched.fired) == {(NEAR, Severity.WARNING)}
    assert alert.since.monotonic == watched.fired[NEAR, Severity.WARNING]
