"""A forecast comes when a pool is heading for exhaustion, is right when it comes, and stays away when it is not."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ephmon.model.forecast.forecast import HORIZON_SECONDS, Forecast, forecast
from ephmon.model.forecast.history import HISTORY_SECONDS, History, PoolSample
from ephmon.model.forecast.release_schedule import EMPTY_SCHEDULE, TIME_WAIT_SECONDS
from tests.model.loads import CAPACITY, Connection, Kernel, Run, churn, ramp, run, saw_tooth

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SUSTAINABLE = CAPACITY / 60
SEEDS = (None, 1, 2)
"""None: evenly; else at random moments."""


def reading(at: float, taken: int, *, capacity: int = 1000, **other: Any) -> PoolSample:
    """Build what a poll saw of a pool whose sockets hold `taken` ports."""
    plain = PoolSample(at=at, usable=capacity, capacity=capacity, remaining=capacity - taken, held=taken)
    return replace(plain, **other)


def foretold(*readings: PoolSample) -> Forecast | None:
    """Return the forecast after these readings."""
    history = History()
    for one in readings:
        history = history.after(one)
    return forecast(history, readings[-1])


def seconds(*readings: PoolSample) -> float | None:
    found = foretold(*readings)
    return None if found is None else found.seconds_to_exhaustion


# What it takes


def test_there_is_none_from_fewer_than_three_polls() -> None:
    polls = [reading(0, 100), reading(5, 200), reading(10, 300)]

    assert foretold(*polls[:1]) is foretold(*polls[:2]) is None
    assert seconds(*polls) == 35


@pytest.mark.parametrize(
    "change", [{"usable": 1001}, {"reusable_after": 1.0}], ids=["of the range", "of the reuse of TIME_WAIT"]
)
def test_a_change_begins_the_history_anew(change: dict[str, Any]) -> None:
    polls = [reading(0, 100), reading(5, 200), reading(10, 300)]
    changed = [reading(at, 100 + 20 * at, **change) for at in (15, 20, 25)]

    assert foretold(*polls, *changed[:2]) is None
    assert foretold(*polls, *changed) is not None


def test_ports_that_others_block_count() -> None:
    """A program takes ports by bind(): the pool's own sockets stay as they are."""
    polls = [reading(at, 300, usable=1000, capacity=1000 - 20 * at, remaining=700 - 20 * at) for at in (0, 5, 10)]
    found = foretold(*polls)

    assert found is not None
    assert (found.opens_per_second, found.growth_per_second, found.seconds_to_exhaustion) == (0, 20, 25)


def test_ports_that_are_blocked_at_once_are_no_trend() -> None:
    polls = [reading(at, 300, remaining=700 if at < 35 else 100) for at in range(0, 60, 5)]

    assert [seconds(*polls[: place + 1]) for place in range(len(polls))] == [None] * len(polls)


def test_a_few_ports_are_no_trend_however_evenly_they_come() -> None:
    """One more with each poll: nine in each half of the time are not yet more than chance, ten are."""
    polls = [reading(5 * number, 10 + number, capacity=100) for number in range(25)]
    found = [seconds(*polls[: place + 1]) for place in range(25)]

    assert found[:19] == [None] * 19
    assert found[20:] == pytest.approx([350, 345, 340, 335, 330])


def test_what_was_seen_for_a_moment_is_not_extrapolated_far() -> None:
    """20 ports a second in a pool of 10,000: 30 times as far ahead as it was seen to come."""
    polls = [reading(at, 20 * at, capacity=10_000) for at in range(0, 25, 5)]

    assert [seconds(*polls[: place + 1]) for place in range(5)] == [None, None, None, None, 480]


def test_a_pool_that_is_exhausted_is_so_in_no_time_whatever_its_trend() -> None:
    assert seconds(reading(0, 1000), reading(5, 1000), reading(10, 1000)) == 0
    assert seconds(reading(0, 1000), reading(5, 999), reading(10, 1000)) == 0


def test_polls_that_come_every_second_do_not_make_it_jumpy() -> None:
    """Of ten polls a second apart the sixth misses a beat, and the next makes up for it."""
    taken = [100, 200, 300, 400, 500, 500, 700, 800, 900, 1000]

    polls = [reading(at, number, capacity=4000) for at, number in enumerate(taken)]
    found = [seconds(*polls[: place + 1]) for place in range(6, 10)]

    assert found == [33, 32, 31, 30]


# Rates


def test_opens_are_the_change_of_live_connections_and_those_closed() -> None:
    """50 connections a second, of which 40 are closed at once; the first TIME_WAITs are older than the history."""
    polls = [
        reading(at, 100 + 50 * at, capacity=9000, schedule=(*EMPTY_SCHEDULE[: 60 - at - 2], *[40] * (at + 2)))
        for at in (0, 5, 10)
    ]
    found = foretold(*polls)

    assert found is not None
    assert found.opens_per_second == 50
    assert found.growth_per_second == 50


def test_opens_that_cannot_be_seen_are_not_made_up() -> None:
    """All connections of a steady pool may have been exchanged between two polls: the rate is a lower bound."""
    found = foretold(*(reading(at, 500) for at in (0, 5, 10)))

    assert found is not None
    assert (found.opens_per_second, found.growth_per_second, found.seconds_to_exhaustion) == (0, 0, None)


@pytest.mark.parametrize(
    ("change", "sustainable"),
    [
        ({}, 20),
        ({"reusable_after": 1.0}, None),
        ({"leaves_time_wait": False}, None),
        ({"most_time_wait": 1200}, 20),
        ({"most_time_wait": 1199}, None),
    ],
    ids=["60 s", "reusable", "UDP", "as many TIME_WAITs as ports", "fewer TIME_WAITs than ports"],
)
def test_what_can_be_sustained_is_the_capacity_over_60_seconds(
    change: dict[str, Any], sustainable: float | None
) -> None:
    found = foretold(*(reading(at, 500, capacity=1200, **change) for at in (0, 5, 10)))

    assert found is not None
    assert found.sustainable_opens_per_second == sustainable


def test_time_waits_take_no_more_ports_than_there_may_be_of_them() -> None:
    """30 connections are closed a second, which would fill the 1,000 ports after 33 seconds."""
    schedule = [(*EMPTY_SCHEDULE[: 60 - at], *[30] * at) for at in (10, 15, 20)]

    def polls(**other: Any) -> list[PoolSample]:
        return [
            reading(at, 30 * at, schedule=closed, **other) for at, closed in zip((10, 15, 20), schedule, strict=True)
        ]

    assert seconds(*polls()) == pytest.approx(400 / 30)
    assert seconds(*polls(most_time_wait=1000)) == pytest.approx(400 / 30, abs=1)
    assert seconds(*polls(most_time_wait=999)) is None
    assert seconds(*polls(most_time_wait=600)) is None


def test_what_grows_beside_the_most_time_waits_still_fills_the_pool() -> None:
    """10 a second stay beside 30 that are closed; TIME_WAITs take 700 ports of 1,000, so 300 last for half a minute."""
    schedule = [(*EMPTY_SCHEDULE[: 60 - at], *[30] * at) for at in (0, 5, 10)]
    polls = [
        reading(at, 40 * at, schedule=closed, most_time_wait=700)
        for at, closed in zip((0, 5, 10), schedule, strict=True)
    ]

    assert seconds(*polls) == pytest.approx(20, abs=1)


def test_time_waits_that_are_reusable_keep_no_port() -> None:
    """1,000 of them in a pool of 1,000 ports: it has all of its ports but for those closed in the last second."""
    schedule = (*[16] * 59, 56)
    polls = [reading(at, 1000, remaining=944, schedule=schedule, reusable_after=1.0) for at in (0, 5, 10)]

    assert seconds(*polls) is None


# Simulated loads that end in exhaustion: the error of the last forecast so many seconds before it, in seconds

BASE = [Connection(number / 10_000) for number in range(20_000)]

EXHAUSTING: dict[str, tuple[Callable[[], Iterable[Connection]], dict[int, float]]] = {
    "ramp of 60 s": (lambda: ramp(60), {30: 0.1, 10: 0.1}),
    "ramp of 60 s upon 20,000": (lambda: [*BASE, *ramp(60, ports=8232, start=100)], {30: 0.1, 10: 0.1}),
    "ramp of 5 min": (lambda: ramp(300), {60: 0.1, 10: 0.1}),
    "ramp of 1 h": (lambda: ramp(3600), {60: 0.5, 10: 0.5}),
    "churn at 120 %": (lambda: churn(1.2 * SUSTAINABLE, until=99, start=20), {30: 0.5, 10: 0.5}),
    "churn at 120 %, at random": (lambda: churn(1.2 * SUSTAINABLE, until=99, start=20, seed=1), {30: 1.0, 10: 0.5}),
    "churn at 120 % of 5 s each": (
        lambda: churn(1.2 * SUSTAINABLE, until=99, start=20, lifetime=5),
        {30: 1.0, 10: 0.5},
    ),
    "churn at 105 %": (lambda: churn(1.05 * SUSTAINABLE, until=99, start=20), {30: 1.0, 10: 0.5}),
    "churn at 200 %": (lambda: churn(2 * SUSTAINABLE, until=60, start=20), {10: 0.5}),
    "churn at 50 % and a ramp": (
        lambda: [*churn(0.5 * SUSTAINABLE, until=200, start=5, seed=3), *ramp(300, start=20)],
        {60: 12, 10: 2},
    ),
}


@pytest.mark.parametrize("name", EXHAUSTING)
def test_exhaustion_is_forecast_with_an_error_of_at_most(name: str) -> None:
    load, bounds = EXHAUSTING[name]
    served = run(load(), until=4000)
    errors = {before: served.error_before(before) for before in bounds}

    assert all(error is not None and abs(error) <= bounds[before] for before, error in errors.items()), errors


@pytest.mark.parametrize("seed", SEEDS)
def test_a_leak_under_reused_time_waits_is_forecast(seed: int | None) -> None:
    load = [*churn(300, until=400, start=20, lifetime=1, seed=seed), *ramp(300, start=20)]
    served = run(load, until=400, kernel=Kernel(reusable_after=1.0))
    errors = [served.error_before(before) for before in (60, 10)]

    assert all(error is not None and abs(error) <= 6 for error in errors), errors


# Simulated loads that do not


def served_without_end(run_: Run) -> list[tuple[float, float]]:
    """Return the forecasts of a load that gets all the ports it wants."""
    assert run_.failed_at is None
    return run_.foretold()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("lifetime", [0.2, 2])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_steady_churn_is_no_end_not_even_when_it_begins(share: float, lifetime: float, seed: int | None) -> None:
    load = churn(share * SUSTAINABLE, until=180, start=20, lifetime=lifetime, seed=seed)

    assert served_without_end(run(load, until=180)) == []


@pytest.mark.parametrize("in_batches", [False, True])
def test_steady_churn_at_95_percent_is_no_end(in_batches: bool) -> None:
    """Released in batches, the TIME_WAITs take 98 % of the ports at their most."""
    load = churn(0.95 * SUSTAINABLE, until=240, start=20)

    assert served_without_end(run(load, until=240, kernel=Kernel(in_batches=in_batches))) == []


@pytest.mark.parametrize("per_second", [500, 5000])
def test_churn_whose_time_waits_are_reused_is_no_end(per_second: int) -> None:
    load = churn(per_second, until=75, start=20, lifetime=1, seed=3)

    assert served_without_end(run(load, until=75, kernel=Kernel(reusable_after=1.0))) == []


@pytest.mark.parametrize("begins", [31, 34])
def test_a_step_is_no_end(begins: float) -> None:
    """20,000 connections within two seconds, between two polls and around one."""
    load = [Connection(begins + number / 10_000) for number in range(20_000)]

    assert served_without_end(run(load, until=240)) == []


@pytest.mark.parametrize("leaves_time_wait", [False, True])
@pytest.mark.parametrize(("high", "rise", "fall"), [(12_000, 40, 10), (9_000, 15, 5)])
def test_a_saw_tooth_is_taken_for_growth_the_first_time_only(
    high: int, rise: float, fall: float, leaves_time_wait: bool
) -> None:
    load = saw_tooth(low=2000, high=high, rise=rise, fall=fall, until=300, leaves_time_wait=leaves_time_wait)
    at = [at for at, _ in served_without_end(run(load, until=300))]

    assert [one for one in at if one > 10 + rise] == []


def test_a_saw_tooth_that_has_reached_the_end_before_is_forecast_again() -> None:
    """It rises from 100 to 1,000 of 1,000 ports in 40 seconds, falls, and rises again."""
    rising = [100 + 22.5 * at for at in range(0, 45, 5)]
    polls = [reading(5 * place, round(taken)) for place, taken in enumerate([*rising, 100, 100, *rising[1:-1]])]

    assert seconds(*polls) == pytest.approx(5, abs=0.1)


def test_a_pool_that_drains_into_time_wait_is_no_end() -> None:
    """A proxy closes its 20,000 idle connections within 20 seconds: they become TIME_WAITs, and nobody takes more."""
    load = [Connection(number / 10_000, 40 + number / 1000 - number / 10_000) for number in range(20_000)]

    assert served_without_end(run(load, until=150)) == []


def test_long_lived_connections_look_like_growth_until_the_first_close() -> None:
    """The price of forecasting ramps: each connection lasts 30 seconds, and for so long there is no telling."""
    load = churn(0.3 * SUSTAINABLE, until=240, start=20, lifetime=30)
    at = [at for at, _ in served_without_end(run(load, until=240))]

    assert at
    assert at[-1] <= 20 + 30 + 15


# Laws

POLLS = st.lists(
    st.tuples(st.floats(0, 90), st.integers(0, 1000), st.lists(st.integers(0, 20), min_size=60, max_size=60)),
    min_size=1,
    max_size=20,
)


@given(POLLS, st.sampled_from([None, 0.001, 1.0, 2.5, 60.0]))
def test_whatever_is_seen_a_forecast_is_within_its_bounds(
    polls: list[tuple[float, int, list[int]]], reusable_after: float | None
) -> None:
    history, now = History(), 0.0
    for wait, taken, schedule in polls:
        now += wait
        last = reading(now, taken, schedule=tuple(schedule), reusable_after=reusable_after)
        history = history.after(last)
        found = forecast(history, last)
        if len(history.points) < 3:
            assert found is None
            continue
        assert found is not None
        assert found.opens_per_second >= 0
        if last.remaining == 0:
            assert found.seconds_to_exhaustion == 0
        elif found.seconds_to_exhaustion is not None:
            assert 0 <= found.seconds_to_exhaustion <= HORIZON_SECONDS


@given(POLLS)
def test_a_history_is_small_and_reaches_back_two_minutes(polls: list[tuple[float, int, list[int]]]) -> None:
    history, now = History(), 0.0
    for wait, taken, schedule in [*polls * 5]:
        now += wait
        history = history.after(reading(now, taken, schedule=tuple(schedule)))
        assert now - history.points[0].at <= HISTORY_SECONDS
        assert history.points[-1].at == now
    assert sys.getsizeof(history) + sys.getsizeof(history.packed) < 2048


def test_polls_each_second_make_a_history_no_larger() -> None:
    history = History()
    for at in range(600):
        history = history.after(reading(at, at))

    assert sys.getsizeof(history) + sys.getsizeof(history.packed) < 2048
    assert [point.at for point in history.points[-3:]] == [592, 596, 599]


@given(st.integers(0, 999), st.lists(st.floats(0.5, 30), min_size=3, max_size=30))
def test_a_pool_in_which_nothing_happens_has_no_end(taken: int, waits: list[float]) -> None:
    times = [sum(waits[: place + 1]) for place in range(len(waits))]

    assert seconds(*(reading(at, taken) for at in times)) is None


@given(st.integers(0, 20), st.integers(1, 15))
def test_time_waits_that_are_replaced_as_they_end_have_no_end(live: int, per_second: int) -> None:
    polls = [
        reading(at, live + TIME_WAIT_SECONDS * per_second, schedule=(per_second,) * TIME_WAIT_SECONDS)
        for at in range(0, 60, 5)
    ]

    assert seconds(*polls) is None


@given(st.integers(2, 90), st.sampled_from([1.0, 2.0, 5.0, 30.0]))
def test_a_ramp_is_forecast_to_the_second(per_second: int, interval: float) -> None:
    capacity = 30_000
    polls = [reading(interval * n, round(per_second * interval * n), capacity=capacity) for n in range(12)]
    found = seconds(*polls)
    truth = capacity / per_second - polls[-1].at

    if truth <= 30 * min(polls[-1].at, HISTORY_SECONDS) and truth <= HORIZON_SECONDS and per_second * interval > 20:
        assert found == pytest.approx(truth, abs=0.01)


def test_noise_alone_has_no_end() -> None:
    """A pool at 85 % whose connections come and go at random, none of them into TIME_WAIT: 100 polls."""
    load = churn(850, until=500, lifetime=1.0, seed=7)
    served = run((one._replace(leaves_time_wait=False) for one in load), until=500, kernel=Kernel(capacity=1000))

    assert served.foretold() == []
