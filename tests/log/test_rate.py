"""How many lines of a kind are written in a minute."""

from __future__ import annotations

import logging

from ephmon.log.rate import MOST_A_MINUTE, WINDOW_SECONDS, Kind, RateLimit

FLOOD = Kind("ephmon.daemon", logging.WARNING, "EphmonConnectExhaustions")
OTHER = Kind("ephmon.daemon", logging.WARNING, "")


def flood(limit: RateLimit, lines: int, now: float) -> int:
    """Return how many of so many lines are written."""
    return sum(limit.allows(FLOOD, now) for _ in range(lines))


def test_a_minute_has_so_many_lines_of_a_kind_and_the_rest_is_counted_once() -> None:
    limit = RateLimit()

    assert flood(limit, MOST_A_MINUTE + 500, 10.0) == MOST_A_MINUTE
    assert limit.ended(10.0 + WINDOW_SECONDS - 0.1) == []
    assert limit.ended(10.0 + WINDOW_SECONDS) == [(FLOOD, 500)]
    assert limit.ended(10.0 + WINDOW_SECONDS) == []
    assert flood(limit, MOST_A_MINUTE + 1, 10.0 + WINDOW_SECONDS) == MOST_A_MINUTE


def test_a_flood_of_one_kind_keeps_no_other_out() -> None:
    limit = RateLimit()
    flood(limit, 10_000, 0.0)

    assert limit.allows(OTHER, 0.0)


def test_the_end_of_a_minute_is_waited_for_only_where_lines_were_left_out() -> None:
    limit = RateLimit()
    flood(limit, MOST_A_MINUTE, 5.0)
    assert limit.next_end() is None

    flood(limit, 1, 6.0)
    assert limit.next_end() == 5.0 + WINDOW_SECONDS


def test_a_minute_without_a_line_left_out_is_forgotten() -> None:
    limit = RateLimit()
    flood(limit, 1, 0.0)

    assert limit.ended(WINDOW_SECONDS) == []
    assert flood(limit, MOST_A_MINUTE, WINDOW_SECONDS) == MOST_A_MINUTE
