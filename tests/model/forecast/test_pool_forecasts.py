"""Full polls make the history of each listed pool; what is forecast of it stays until the next full poll."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ephmon.errors import Reason
from ephmon.facts.namespaces import OWN_NETNS
from ephmon.facts.sockets import TcpState, UdpSockets
from ephmon.model.pools.kinds import PoolKey, PoolKind
from ephmon.model.rules import ListingRules
from ephmon.model.step import after_failed_poll, after_narrow_poll, conclude
from tests.model.facts import (
    TAKEN_AT,
    Sockets,
    blank_state,
    bound,
    clients,
    connect_key,
    connected,
    make_namespace,
    make_narrow,
    make_snapshot,
    make_sysctls,
    make_table,
    make_tcp,
    packed,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from random import Random

    from ephmon.facts.snapshot import Sysctls
    from ephmon.model.forecast.forecast import Forecast
    from ephmon.model.state import State

LOW, HIGH = 40_000, 40_999
SYSCTLS = make_sysctls(LOW, HIGH, tw_reuse=0)
TOWARD = connect_key("10.0.0.9", 443, "10.0.0.1")


def closed(first: int, number: int, left_ms: int, host: int = 9) -> Sockets:
    """Build TIME_WAITs on ports of their own."""
    ports = range(LOW + first, LOW + first + number)
    return connected("10.0.0.1", ports, f"10.0.0.{host}", 443, state=TcpState.TIME_WAIT, no_port=True, left_ms=left_ms)


def polled(polls: Iterable[Iterable[Sockets]], state: State | None = None, sysctls: Sysctls = SYSCTLS) -> State:
    """Return the state after polls that come every five seconds."""
    after = state or blank_state()
    for rows in polls:
        before = after.report.taken_at_monotonic
        now = 0.0 if before is None else before + 5
        after = conclude(make_snapshot(make_namespace(make_tcp(*rows), sysctls)), after, now)
    return after


def foretold(state: State, key: PoolKey = TOWARD) -> Forecast | None:
    (found,) = [one.forecast for one in state.report.listed if one.pool.key == key]
    return found


def seconds(state: State, key: PoolKey = TOWARD) -> float | None:
    found = foretold(state, key)
    return None if found is None else found.seconds_to_exhaustion


RAMP = [[clients(number)] for number in (100, 200, 300)]


def test_the_third_full_poll_brings_the_first_forecast() -> None:
    state = polled(RAMP)

    assert foretold(polled(RAMP[:2])) is None
    assert seconds(state) == 35
    assert foretold(state) is not None
    assert (forecast := foretold(state)) is not None
    assert (forecast.opens_per_second, forecast.growth_per_second) == (20, 20)
    assert forecast.sustainable_opens_per_second == pytest.approx(1000 / 60)


def test_a_failed_poll_adds_nothing_and_keeps_what_was_reported() -> None:
    state = after_failed_poll(polled(RAMP), "It failed.", Reason.DEADLINE, 0.1)

    assert seconds(state) == 35
    assert seconds(polled([[clients(400)]], state)) == 30


def test_a_narrow_poll_keeps_what_was_reported_and_adds_nothing() -> None:
    full = polled([*RAMP, [clients(400)]])
    narrow = make_narrow([clients(900)], taken_at=TAKEN_AT, sysctls=SYSCTLS, destinations={(packed("10.0.0.9"), 443)})
    state = after_narrow_poll(narrow, full, 16.0)
    assert state is not None

    assert [one.pool.in_use for one in state.report.listed] == [900]
    assert seconds(state) == 30
    assert state.histories == full.histories


def test_a_pool_that_is_no_longer_listed_loses_its_history() -> None:
    state = polled([[]], polled(RAMP))

    assert (state.report.listed, state.histories) == ((), {})


def test_only_listed_pools_have_a_history() -> None:
    polls = [[clients(number), clients(number // 2, 8)] for number in (100, 200, 300)]

    assert set(polled(polls, blank_state(ListingRules(top=1))).histories) == {TOWARD}


def test_a_change_of_the_range_begins_anew() -> None:
    wider = make_sysctls(LOW, HIGH + 1, tw_reuse=0)

    assert foretold(polled(RAMP[:1], polled(RAMP), wider)) is None


def test_time_waits_come_back_when_their_rows_say_so() -> None:
    """A burst a minute ago: 900 of 1,000 ports end within two seconds, before 20 a second can take what is left."""
    polls = [[clients(20 * at), closed(100 + 20 * at, 900 - 20 * at, 60_000 - 1000 * (48 + at))] for at in (0, 5, 10)]
    late = [[clients(20 * at), closed(100 + 20 * at, 900 - 20 * at, 55_000 - 1000 * at)] for at in (0, 5, 10)]

    assert polled(polls).report.listed[0].pool.remaining == polled(late).report.listed[0].pool.remaining == 100
    assert seconds(polled(late)) == 5
    assert seconds(polled(polls)) == pytest.approx((1000 - 200) / 20, abs=1)


@pytest.mark.parametrize(("tw_reuse", "opens", "sustainable"), [(0, 20, 1000 / 60), (1, 20, None)])
def test_whether_time_waits_keep_ports_is_the_sysctls_to_say(
    tw_reuse: int, opens: float, sustainable: float | None
) -> None:
    polls = [[closed(20 * age, 20, 60_000 - 1000 * age - 500) for age in range(at)] for at in (10, 15, 20)]
    forecast = foretold(polled(polls, sysctls=make_sysctls(LOW, HIGH, tw_reuse=tw_reuse)))
    assert forecast is not None

    assert forecast.opens_per_second == pytest.approx(opens)
    assert forecast.sustainable_opens_per_second == sustainable
    assert (forecast.seconds_to_exhaustion is None) == (tw_reuse == 1)


def test_for_bind_the_time_waits_of_the_address_count_once_a_port() -> None:
    """All of them served two destinations; 15 a second begin and end, which is no growth."""
    each_second = [closed(15 * second, 15, 1000 * second + 500, host) for second in range(60) for host in (8, 9)]
    sockets = make_tcp(bound("10.0.0.1", HIGH), *each_second)
    namespace = make_namespace(replace(sockets, bound_to_any_port=frozenset({packed("10.0.0.1")})), SYSCTLS)
    state = blank_state()
    for at in (0.0, 5.0, 10.0):
        state = conclude(make_snapshot(namespace), state, at)
    key = PoolKey(OWN_NETNS, PoolKind.TCP_BIND, "10.0.0.1", None, None)
    forecast = foretold(state, key)
    assert forecast is not None

    assert [one.pool.time_wait for one in state.report.listed if one.pool.key == key] == [900]
    assert (forecast.opens_per_second, forecast.seconds_to_exhaustion) == (15, None)


def test_udp_leaves_no_time_wait() -> None:
    state = blank_state()
    for at, number in enumerate((100, 200, 300)):
        sockets = UdpSockets(sockets=make_table([bound("10.0.0.1", range(LOW, LOW + number))]))
        namespace = replace(make_namespace(make_tcp(), SYSCTLS), udp=sockets)
        state = conclude(make_snapshot(namespace), state, 5.0 * at)
    forecast = foretold(state, PoolKey(OWN_NETNS, PoolKind.UDP_CONNECT, "0.0.0.0", None, None))
    assert forecast is not None

    assert (forecast.sustainable_opens_per_second, forecast.seconds_to_exhaustion) == (None, 35)


@settings(max_examples=25)
@given(st.lists(st.integers(0, 59_999), min_size=3, max_size=30), st.randoms(use_true_random=False))
def test_the_order_of_the_sockets_does_not_matter(lefts: list[int], random: Random) -> None:
    polls = [
        [connected("10.0.0.1", LOW + 500 + at, "10.0.0.9", 443), clients(100 * at)]
        + [closed(600 + place, 1, left) for place, left in enumerate(lefts[: 10 * at])]
        for at in (1, 2, 3)
    ]
    shuffled = [random.sample(rows, len(rows)) for rows in polls]

    assert [one.forecast for one in polled(polls).report.listed] == [
        one.forecast for one in polled(shuffled).report.listed
    ]
