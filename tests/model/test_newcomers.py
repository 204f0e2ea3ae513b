"""How many new things come in within a time, and that what was there lately is not new."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from ephmon.model.newcomers import Admission, Newcomers

if TYPE_CHECKING:
    from collections.abc import Iterable

HOUR = 3600.0


def let_in(before: Newcomers[str], keys: Iterable[str], now: float, most: int = 2) -> tuple[str, Newcomers[str]]:
    """Return which keys come in, and what is remembered while these stay."""
    admission = Admission(before, most=most, seconds=HOUR, now=now)
    admitted = [key for key in keys if admission.admits(key)]
    return "".join(admitted), admission.after(admitted, 3 * most)


def test_so_many_come_in_within_the_time_and_more_after_it() -> None:
    first, memory = let_in(Newcomers(), "abcd", 0.0)
    second, memory = let_in(memory, "cd", HOUR - 0.1)
    third, _ = let_in(memory, "cd", HOUR)

    assert (first, second, third) == ("ab", "", "cd")


def test_what_was_there_within_the_time_comes_back_although_no_new_one_may_come() -> None:
    _, memory = let_in(Newcomers(), "ab", 0.0)
    _, memory = let_in(memory, "a", 100.0)

    assert let_in(memory, "bc", 200.0)[0] == "b"


def test_what_is_there_all_along_never_becomes_new() -> None:
    memory: Newcomers[str] = Newcomers()
    for now in range(0, 10 * int(HOUR), 600):
        admitted, memory = let_in(memory, "ab", float(now))
        assert admitted == "ab"


@given(st.lists(st.tuples(st.integers(0, 900), st.text("abcdefghijklmnop")), max_size=60))
def test_whatever_comes_no_time_has_more_new_ones_and_the_memory_is_bounded(steps: list[tuple[int, str]]) -> None:
    memory: Newcomers[str] = Newcomers()
    now, entered = 0.0, list[float]()
    for pause, keys in steps:
        now += pause
        known = set(memory.seen)
        admitted, memory = let_in(memory, keys, now)
        entered += [now for _ in set(admitted) - known]

        assert sum(now - HOUR < at for at in entered) <= 2
        assert (len(memory.seen) <= 6, len(memory.entries) <= 2) == (True, True)
