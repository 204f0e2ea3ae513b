"""Failed connect() calls added up: exact totals, and a bounded choice of all else."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from socket import AF_INET

from hypothesis import given
from hypothesis import strategies as st

from ephmon.facts.failed_calls import Destination, ExhaustionBatch, ExhaustionEvent
from ephmon.facts.namespaces import Netns
from ephmon.model.failures.counters import (
    LABELS,
    MOST_EVENTS,
    MOST_LATEST_OF_USER,
    MOST_NAMESPACES,
    NEW_PER_COUNTED,
    NEW_SECONDS,
    STAY_SECONDS,
    Count,
    Exhaustions,
    add_batch,
)

OWN, UNKNOWN = Netns("own", 1), Netns("unknown")


def to(number: int, netns: str = "own") -> Destination:
    return Destination(netns, bytes([10, 0, number >> 8, number & 255]), 443)


def event(at: float, netns: Netns = OWN) -> ExhaustionEvent:
    return ExhaustionEvent(
        at=1e9 + at,
        at_monotonic=at,
        netns=netns,
        source=b"\x0a\x00\x00\x01",
        destination=b"\x0a\x00\x00\x02",
        destination_port=443,
        family=AF_INET,
        thread_id=7,
    )


def after(
    previous: Exhaustions, batch: ExhaustionBatch, *listed: Destination, top: int = 3, now: float = 100.0
) -> Exhaustions:
    return add_batch(previous, batch, listed=listed, top=top, now=now)


def numbers(exhaustions: Exhaustions) -> dict[Destination, int]:
    return {key: found.events for key, found in exhaustions.destinations.items()}


def test_every_label_is_there_as_0_before_anything_happened() -> None:
    assert Exhaustions().totals == {"own": 0, "other": 0, "unknown": 0}


def test_totals_add_up_by_label_and_namespace() -> None:
    first = ExhaustionBatch(totals={OWN: 2, UNKNOWN: 1, Netns("other", 5): 10, Netns("other"): 4}, lost=3)
    second = ExhaustionBatch(totals={OWN: 1, Netns("other", 6): 1, Netns("other", 5): 1}, lost=4)
    known = after(after(Exhaustions(), first), second)

    assert known.totals == {"own": 3, "other": 16, "unknown": 1}
    assert known.namespaces == {6: 1, 5: 11}
    assert known.lost == 7


def test_namespaces_that_had_an_event_last_are_told_apart() -> None:
    known = Exhaustions()
    for inode in (*range(MOST_NAMESPACES), 0, 99):
        known = after(known, ExhaustionBatch(totals={Netns("other", inode): 1}))

    assert list(known.namespaces.items())[-2:] == [(0, 2), (99, 1)]
    assert len(known.namespaces) == MOST_NAMESPACES
    assert 1 not in known.namespaces
    assert known.totals["other"] == MOST_NAMESPACES + 2


def test_the_destination_of_a_listed_pool_is_counted_from_0_on() -> None:
    known = after(Exhaustions(), ExhaustionBatch(), to(1))
    assert known.destinations == {to(1): Count(0, 100.0)}

    assert numbers(after(known, ExhaustionBatch(destinations={to(1): 5}), to(1))) == {to(1): 5}


def test_a_destination_keeps_its_place_against_newcomers() -> None:
    known = after(Exhaustions(), ExhaustionBatch(destinations={to(1): 1, to(2): 1, to(3): 1}))
    known = after(known, ExhaustionBatch(destinations={to(4): 9}), now=100 + STAY_SECONDS - 1)

    assert numbers(known) == {to(1): 1, to(2): 1, to(3): 1}


def test_an_idle_destination_gives_way_to_a_newcomer() -> None:
    known = after(Exhaustions(), ExhaustionBatch(destinations={to(1): 1, to(2): 1, to(3): 1}))
    known = after(known, ExhaustionBatch(destinations={to(2): 1, to(3): 1, to(4): 9}), now=100 + STAY_SECONDS)

    assert numbers(known) == {to(4): 9, to(2): 2, to(3): 2}


def test_an_idle_destination_stays_while_there_is_room() -> None:
    known = after(Exhaustions(), ExhaustionBatch(destinations={to(1): 1}))

    assert numbers(after(known, ExhaustionBatch(), now=1e6)) == {to(1): 1}


def test_a_listed_pool_takes_a_place_from_others() -> None:
    known = after(Exhaustions(), ExhaustionBatch(destinations={to(1): 1, to(2): 2, to(3): 3}))

    assert numbers(after(known, ExhaustionBatch(), to(9))) == {to(9): 0, to(3): 3, to(2): 2}


def test_other_namespaces_take_no_place_from_our_own() -> None:
    flood = {to(number, "other"): 1000 for number in range(50)} | {to(number, "unknown"): 9 for number in range(50)}
    known = after(Exhaustions(), ExhaustionBatch(destinations=flood))
    known = after(known, ExhaustionBatch(destinations={to(1): 1, to(2): 1, **flood}))

    assert len(known.destinations) == 3
    assert {to(1): 1, to(2): 1}.items() <= numbers(known).items()


def test_the_last_events_of_others_push_out_none_of_our_own() -> None:
    first = ExhaustionBatch(events=tuple(event(at) for at in range(MOST_EVENTS + 5)))
    flood = ExhaustionBatch(events=tuple(event(200 + at, UNKNOWN) for at in range(MOST_EVENTS + 7)))
    known = after(after(Exhaustions(), first), flood)

    assert [one.at_monotonic for one in known.events] == [
        *range(5, MOST_EVENTS + 5),
        *range(207, 207 + MOST_EVENTS),
    ]


batches = st.builds(
    ExhaustionBatch,
    totals=st.dictionaries(
        st.builds(Netns, st.sampled_from(["own", "other", "unknown"]), st.none() | st.integers(0, 99)),
        st.integers(1, 9),
    ),
    destinations=st.dictionaries(
        st.builds(to, st.integers(0, 300), st.sampled_from(["own", "other", "unknown"])), st.integers(1, 9)
    ),
    lost=st.integers(0, 9),
)


@given(st.lists(batches, max_size=8), st.lists(st.builds(to, st.integers(0, 20)), max_size=5))
def test_totals_are_exact_and_all_else_is_bounded(history: list[ExhaustionBatch], listed: list[Destination]) -> None:
    known = Exhaustions()
    for now, batch in zip(count(0, 300), history, strict=False):
        known = after(known, batch, *listed, top=7, now=now)

    assert sum(known.totals.values()) == sum(sum(batch.totals.values()) for batch in history)
    assert known.lost == sum(batch.lost for batch in history)
    assert len(known.destinations) <= 7
    assert len(known.namespaces) <= MOST_NAMESPACES
    assert not history or set(listed) <= set(known.destinations)


def test_a_batch_changes_nothing_that_was_known_before() -> None:
    before = after(Exhaustions(), ExhaustionBatch(totals={OWN: 1}, destinations={to(1): 1}, events=(event(1),)))
    as_it_was = replace(before, totals=dict(before.totals), destinations=dict(before.destinations))
    after(before, ExhaustionBatch(totals={OWN: 1}, destinations={to(1): 1}, events=(event(2),)))

    assert before == as_it_was


# --- what is new --------------------------------------------------------------------------------------------------


def test_an_hour_has_so_many_new_destinations_whatever_a_user_picks_and_the_rest_is_counted_together() -> None:
    known, seen, calls = Exhaustions(), set[Destination](), 0
    for number in range(1000):
        batch = ExhaustionBatch(totals={OWN: 2}, destinations={to(number): 2})
        known = after(known, batch, now=number * NEW_SECONDS / 1000)
        seen |= known.destinations.keys()
        calls += 2

    assert len(seen) == NEW_PER_COUNTED * 3
    assert known.others["own"] == calls - 2 * len(seen)
    known = after(known, ExhaustionBatch(totals={OWN: 1}, destinations={to(2000): 1}), now=2 * NEW_SECONDS)
    assert to(2000) in known.destinations


def test_new_destinations_of_other_namespaces_keep_none_of_our_own_out() -> None:
    known = Exhaustions()
    for number in range(100):
        known = after(known, ExhaustionBatch(destinations={to(number, "other"): 1}), now=number * 10.0)
    known = after(known, ExhaustionBatch(destinations={to(1): 1}), now=1000.0)

    assert to(1) in known.destinations


def test_destinations_of_listed_pools_are_counted_however_many_were_new() -> None:
    known = Exhaustions()
    for number in range(100):
        known = after(known, ExhaustionBatch(destinations={to(number): 1}), now=number * 10.0)
    known = after(known, ExhaustionBatch(totals={OWN: 5}, destinations={to(500): 5}), to(500), now=1000.0)

    assert numbers(known)[to(500)] == 5


@given(st.lists(st.dictionaries(st.integers(0, 20), st.integers(1, 5)), max_size=10))
def test_destinations_and_others_are_all_events_while_no_destination_is_dropped(batches: list[dict[int, int]]) -> None:
    known = Exhaustions()
    for calls in batches:
        batch = ExhaustionBatch(
            totals={OWN: sum(calls.values()) + 1},  # one toward a destination that the batch does not name
            destinations={to(number): events for number, events in calls.items()},
        )
        known = after(known, batch)

    assert sum(numbers(known).values()) + known.others["own"] == known.totals["own"]
    assert known.others.keys() == set(LABELS)


def test_a_user_who_fails_toward_ever_new_destinations_hides_no_failure_of_another() -> None:
    victim = replace(event(0.0), uid=1000)
    flood = tuple(
        replace(event(1.0 + number), uid=65534, destination=bytes([127, 0, number >> 8, number & 255]))
        for number in range(500)
    )
    known = after(Exhaustions(), ExhaustionBatch(latest=(victim, *flood)))

    assert victim in known.latest
    assert len(known.latest) == 1 + MOST_LATEST_OF_USER
    assert known.latest[-1] == flood[-1]
