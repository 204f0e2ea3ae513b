"""The schedule of TIME_WAITs is what the rows say, second by second, and belongs to whom it should."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ephmon.facts.socket_groups import ConnectKey
from ephmon.facts.sockets import TcpState
from ephmon.model.forecast.release_schedule import (
    EMPTY_SCHEDULE,
    TIME_WAIT_SECONDS,
    ended_by,
    schedules_from,
    schedules_toward,
)
from tests.model.facts import LOW, Sockets, connected, make_table, packed

if TYPE_CHECKING:
    from random import Random

TIME_WAIT = TcpState.TIME_WAIT
OURS = ConnectKey(packed("10.0.0.1"), packed("10.0.0.9"), 443)


def waiting(left_ms: int, ports: int | range = LOW, host: int = 9, *, source: str = "10.0.0.1") -> Sockets:
    """Build TIME_WAITs toward 10.0.0.`host`."""
    return connected(source, ports, f"10.0.0.{host}", 443, state=TIME_WAIT, left_ms=left_ms)


@pytest.mark.parametrize(
    ("left_ms", "second"),
    [(0, 0), (999, 0), (1000, 1), (30_500, 30), (59_999, 59), (60_000, 59), (65_535, 59)],
)
def test_a_time_wait_stands_at_the_whole_seconds_that_it_has_left(left_ms: int, second: int) -> None:
    schedule = schedules_toward(make_table([waiting(left_ms)]), [OURS])[OURS]

    assert [place for place, number in enumerate(schedule) if number] == [second]
    assert len(schedule) == TIME_WAIT_SECONDS


def test_only_time_waits_count_and_those_of_every_device() -> None:
    table = make_table(
        [
            waiting(30_000, range(LOW, LOW + 3)),
            connected("10.0.0.1", LOW + 3, "10.0.0.9", 443, state=TIME_WAIT, device=2, left_ms=30_100),
            connected("10.0.0.1", LOW + 4, "10.0.0.9", 443, left_ms=30_000),
            connected("10.0.0.1", LOW + 5, "10.0.0.9", 443, state=TcpState.FIN_WAIT2, left_ms=30_000),
        ]
    )

    assert sum(schedules_toward(table, [OURS])[OURS]) == schedules_toward(table, [OURS])[OURS][30] == 4


def test_each_tuple_has_its_own() -> None:
    table = make_table([waiting(1000, host=8), waiting(2000), waiting(3000, source="10.0.0.2"), waiting(4000)])
    other = OURS._replace(destination=packed("10.0.0.8"))
    nobody = OURS._replace(destination_port=80)
    found = schedules_toward(table, [OURS, other, nobody])

    assert set(found) == {OURS, other}
    assert {key: [second for second, number in enumerate(one) if number] for key, one in found.items()} == {
        OURS: [2, 4],
        other: [1],
    }


@pytest.mark.parametrize(
    ("newcomer", "met"),
    [("10.0.0.1", 5), ("10.0.0.2", 1), ("10.0.0.3", 0), ("0.0.0.0", 6), ("::", 9), ("2001:db8::1", 3)],
)
def test_bind_meets_what_overlaps_its_address(newcomer: str, met: int) -> None:
    table = make_table(
        [
            waiting(1000, range(LOW, LOW + 2), 8),
            waiting(1000, range(LOW, LOW + 3)),
            waiting(1000, source="10.0.0.2"),
            connected("2001:db8::1", range(LOW, LOW + 3), "2001:db8::9", 443, state=TIME_WAIT, left_ms=1000),
            connected("10.0.0.1", LOW + 9, "10.0.0.9", 443),
        ]
    )
    found = schedules_from(table, [packed(newcomer)])

    assert found.get(packed(newcomer), EMPTY_SCHEDULE)[1] == sum(found.get(packed(newcomer), EMPTY_SCHEDULE)) == met


def test_a_bind_to_any_ipv4_address_meets_ipv6_sockets_without_v6only() -> None:
    ipv6 = connected("2001:db8::1", LOW, "2001:db8::9", 443, state=TIME_WAIT, left_ms=1000)
    table = make_table([replace(ipv6, group=ipv6.group._replace(dual_stack=True))])

    assert schedules_from(table, [packed("0.0.0.0"), packed("10.0.0.1")]) == {
        packed("0.0.0.0"): (0, 1, *EMPTY_SCHEDULE[2:])
    }


def test_no_sockets_and_nobody_asking_are_no_schedule() -> None:
    assert schedules_toward(make_table([]), [OURS]) == {}
    assert schedules_toward(make_table([waiting(1000)]), []) == {}
    assert schedules_from(make_table([waiting(1000)]), []) == {}


def test_a_second_ends_evenly() -> None:
    schedule = (4, 0, 2, *EMPTY_SCHEDULE[3:])
    expected = {-1: 0, 0: 0, 0.25: 1, 1: 4, 2: 4, 2.5: 5, 3: 6, 60: 6, 99: 6}

    assert {seconds: ended_by(schedule, seconds) for seconds in expected} == expected


@given(st.lists(st.integers(0, 60_000), max_size=40), st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(lefts: list[int], random: Random) -> None:
    rows = [waiting(left, LOW + place, 8 + place % 2) for place, left in enumerate(lefts)]
    shuffled = random.sample(rows, len(rows))

    assert schedules_toward(make_table(rows), [OURS]) == schedules_toward(make_table(shuffled), [OURS])
