"""Which pools are listed: never more than `top`, and calmly, whoever picks the destinations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ephmon.model.newcomers import Newcomers
from ephmon.model.pools.listing import STAY_SECONDS, ListingMemory, PoolMemory, choose, remember
from tests.model.facts import connect_key

if TYPE_CHECKING:
    from ephmon.model.pools.kinds import PoolKey

A, B, C, D, E, F = (connect_key(f"10.0.0.{host}", 443, "10.0.0.1") for host in range(1, 7))


@dataclass
class Host:
    """Pools that come and go, polled one time after another, and the listing as it becomes."""

    top: int
    listing: ListingMemory[PoolKey] = field(default_factory=ListingMemory)

    def poll(self, now: float, ranked: list[PoolKey], drained: tuple[PoolKey, ...] = ()) -> set[PoolKey]:
        """Return what is listed after a poll that found `ranked`; the drained exist but may not be listed anew."""
        existing = [key for key in [*ranked, *drained] if key in self.listing.listed]
        self.listing = choose(self.listing, ranked, existing, self.top, now)
        return set(self.listing.listed)


def test_the_worst_pools_are_listed_worst_first() -> None:
    listing = choose(ListingMemory(), [C, A, D, B], [], 3, 0.0)

    assert list(listing.listed) == [C, A, D]


def test_a_pool_stays_for_ten_minutes_after_it_left_the_top_while_there_is_room() -> None:
    host = Host(top=2)

    assert host.poll(0.0, [A]) == {A}
    assert host.poll(5.0, [B], drained=(A,)) == {A, B}
    assert host.poll(599.9, [B], drained=(A,)) == {A, B}
    assert host.poll(600.0, [B], drained=(A,)) == {B}


def test_the_ten_minutes_count_from_when_it_was_at_the_top_last() -> None:
    host = Host(top=2)
    host.poll(0.0, [A])
    host.poll(300.0, [A])

    assert host.poll(899.9, [], drained=(A,)) == {A}
    assert host.poll(900.0, [], drained=(A,)) == set()


def test_a_pool_stays_only_while_there_is_room() -> None:
    host = Host(top=2)
    host.poll(0.0, [A, B])

    assert host.poll(5.0, [C, A, B]) == {A, C}
    assert host.poll(10.0, [C, D, A]) == {C, D}


def test_of_those_that_might_stay_the_worst_do() -> None:
    host = Host(top=3)
    host.poll(0.0, [A, B, C])

    assert host.poll(5.0, [D], drained=(C, A, B)) == {D, C, A}


def test_a_pool_that_is_gone_does_not_stay() -> None:
    host = Host(top=2)
    host.poll(0.0, [A, B])

    assert host.poll(5.0, [B]) == {B}


def test_no_more_newcomers_than_top_within_ten_minutes_after_the_first_choice() -> None:
    host = Host(top=2)

    assert host.poll(0.0, [A, B]) == {A, B}
    assert host.poll(5.0, [C, D]) == {C, D}
    assert host.poll(10.0, [E, F]) == set()
    assert host.poll(604.9, [E, F]) == set()
    assert host.poll(605.0, [E, F]) == {E, F}


def test_a_place_refused_to_a_newcomer_is_kept_by_those_that_stay() -> None:
    host = Host(top=2)
    host.poll(0.0, [A, B])
    host.poll(5.0, [C, D])

    assert host.poll(10.0, [E, F, C, D]) == {C, D}


def test_a_pool_that_comes_back_within_ten_minutes_is_no_newcomer() -> None:
    host = Host(top=2)
    host.poll(0.0, [A, B])
    host.poll(5.0, [C, D])

    assert host.poll(599.0, [A, B]) == {A, B}
    assert host.poll(604.0, [E, F]) == set()
    assert host.poll(605.0, [E, F]) == {E, F}


def test_a_first_poll_that_finds_nothing_does_not_keep_later_pools_out() -> None:
    host = Host(top=2)
    host.poll(0.0, [])

    assert host.poll(5.0, [A, B]) == {A, B}


def test_a_pool_that_oscillates_around_the_least_that_is_listed_does_not_come_and_go() -> None:
    host = Host(top=2)
    host.poll(0.0, [A, B])
    states = [host.poll(5.0 * tick, [A, B] if tick % 2 else [A], drained=(B,)) for tick in range(1, 1000)]

    assert set(map(frozenset, states)) == {frozenset({A, B})}


def test_two_pools_that_change_places_around_the_last_are_all_that_is_ever_listed() -> None:
    host = Host(top=2)
    states = [host.poll(5.0 * tick, [A, B, C] if tick % 2 else [A, C, B]) for tick in range(1000)]

    assert set().union(*states) == {A, B, C}
    assert len(host.listing.newcomers.entries) <= 1


def test_a_smaller_top_takes_effect_at_once() -> None:
    host = Host(top=4)
    host.poll(0.0, [A, B])
    host.poll(5.0, [C, D, E, F])
    host.top = 1

    assert host.poll(10.0, [A, B, C, D, E, F]) == {A}
    assert (len(host.listing.newcomers.seen), len(host.listing.newcomers.entries)) == (3, 1)
    assert host.poll(15.0, [connect_key("10.9.9.9", 1, "10.0.0.1")]) == set()


def test_of_the_pools_that_were_listed_of_late_the_latest_are_remembered() -> None:
    before = ListingMemory(newcomers=Newcomers(seen={A: 1.0, B: 2.0, C: 3.0}), is_first=False)

    assert choose(before, [D], [], 1, 10.0).newcomers.seen == {D: 10.0, C: 3.0, B: 2.0}


def test_whoever_picks_destinations_fills_neither_the_listing_nor_what_is_remembered() -> None:
    """60,000 pools, others at the top in each poll, and each of them back at the top before it is forgotten."""
    top, now = 50, 0.0
    keys = [connect_key("10.0.0.9", port, "10.0.0.1") for port in range(60_000)]
    host = Host(top)
    ever: set[PoolKey] = set()
    for tick in range(720):
        first = 50 * (tick % 100)
        ever |= host.poll(now, keys[first:])
        now += 5.0
        assert len(host.listing.listed) <= top
        assert len(host.listing.newcomers.seen) <= 3 * top
        assert len(host.listing.newcomers.entries) <= top

    hours, first_choice = now / 3600, top
    assert len(ever) <= first_choice + top * 6 * (hours + 1)


STEPS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 1.0, 5.0, 60.0, 299.0, 300.0, 301.0, 599.0, 600.0, 601.0]),
        st.permutations([A, B, C, D, E, F]),
        st.integers(0, 6),
        st.integers(0, 6),
    ),
    max_size=40,
)


@given(st.integers(1, 4), STEPS)
def test_laws_of_the_listing(top: int, steps: list[tuple[float, list[PoolKey], int, int]]) -> None:
    """Whatever order the pools are in, which of them exist and how far apart the polls are."""
    host, now = Host(top), 0.0
    before: set[PoolKey] = set()
    last_listed: dict[PoolKey, float] = {}
    last_at_top: dict[PoolKey, float] = {}
    entered: list[float] = []
    for number, (step, order, candidates, existing) in enumerate(steps):
        now += step
        ranked, drained = order[:candidates], order[candidates:][:existing]
        listed = host.poll(now, ranked, tuple(drained))

        of_late = {key for key, at in last_listed.items() if now - at < STAY_SECONDS}
        entered += [now] * (len(listed - of_late) if number else 0)
        last_at_top |= dict.fromkeys(set(ranked[:top]) & listed, now)
        may_stay = {key for key in before & {*ranked, *drained} if now - last_at_top[key] < STAY_SECONDS}
        assert len(listed) <= top
        assert sum(now - at < STAY_SECONDS for at in entered) <= top
        assert listed <= {*ranked[:top]} | may_stay
        assert len(listed) == top or may_stay <= listed
        assert len(host.listing.newcomers.seen) <= 3 * top
        assert len(host.listing.newcomers.entries) <= top
        assert {*ranked[:top]} & set(host.listing.newcomers.seen) <= listed
        last_listed |= dict.fromkeys(listed, now)
        before = listed


# The peak of the window


def readings(*values: tuple[float, float], window: float = 60.0) -> PoolMemory:
    """Return what is remembered after readings of (time, utilisation)."""
    listed = PoolMemory(last_at_top=0.0)
    for at, utilisation in values:
        listed = remember(listed, utilisation, at, window)
    return listed


@pytest.mark.parametrize(
    ("values", "peak"),
    [
        ([], 0.0),
        ([(0, 0.5)], 0.5),
        ([(0, 0.5), (5, 0.9), (10, 0.2)], 0.9),
        ([(0, 0.9), (5, 0.5), (59.9, 0.2)], 0.9),
        ([(0, 0.9), (5, 0.5), (60, 0.2)], 0.5),
        ([(0, 0.9), (5, 0.5), (65, 0.2)], 0.2),
        ([(0, 0.9), (5, 0.5), (1000, 0.0)], 0.0),
        ([(0, 0.9), (30, 0.9), (80, 0.1)], 0.9),
        ([(0, 0.9), (30, 0.9), (90, 0.1)], 0.1),
    ],
)
def test_the_peak_is_the_highest_reading_of_the_last_window(values: list[tuple[float, float]], peak: float) -> None:
    assert readings(*values).peak == peak


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5)), min_size=1, max_size=60),
    st.integers(1, 100),
)
def test_the_peak_is_the_greatest_of_all_readings_younger_than_the_window(
    steps: list[tuple[int, int]], window: int
) -> None:
    now, values = 0, []
    for step, tenths in steps:
        now += step
        values.append((float(now), tenths / 10))
    listed = readings(*values, window=float(window))

    assert listed.peak == max(ratio for at, ratio in values if now - at < window)
    assert len(listed.peaks) <= len({ratio for _, ratio in values})


def test_a_pool_that_is_listed_all_along_keeps_its_readings() -> None:
    first = choose(ListingMemory(), [A], [], 1, 0.0)
    read = ListingMemory(
        listed={A: remember(first.listed[A], 0.7, 0.0, 60.0)}, newcomers=first.newcomers, is_first=False
    )
    second = choose(read, [A], [A], 1, 5.0)

    assert (second.listed[A].peak, second.listed[A].last_at_top) == (0.7, 5.0)
