from __future__ import annotations

import pytest

from ephmon.http.wrong_tokens import (
    GUESSES_OF_ALL,
    GUESSES_OF_CLIENT,
    KNOWN_SECONDS,
    SECONDS_EACH_OF_ALL,
    SECONDS_EACH_OF_CLIENT,
    WrongTokens,
)

A, B = "192.0.2.1", "192.0.2.2"
NOW = 1000.0


def after_guesses(address: str, guesses: int = GUESSES_OF_CLIENT, *, now: float = NOW) -> WrongTokens:
    memory = WrongTokens()
    for _ in range(guesses):
        assert not memory.is_refused(address, now)
        memory.note_wrong(address, now)
    return memory


def test_an_address_is_refused_after_ten_wrong_tokens_and_others_are_not() -> None:
    memory = after_guesses(A)

    assert memory.is_refused(A, NOW)
    assert not memory.is_refused(B, NOW)


def test_one_more_guess_comes_back_every_ten_seconds_and_no_more_than_ten_in_all() -> None:
    memory = after_guesses(A)
    assert memory.is_refused(A, NOW + SECONDS_EACH_OF_CLIENT - 0.1)
    assert not memory.is_refused(A, NOW + SECONDS_EACH_OF_CLIENT)
    memory.note_wrong(A, NOW + SECONDS_EACH_OF_CLIENT)
    assert memory.is_refused(A, NOW + SECONDS_EACH_OF_CLIENT)

    later = NOW + 1_000_000.0
    for _ in range(GUESSES_OF_CLIENT):
        assert not memory.is_refused(A, later)
        memory.note_wrong(A, later)
    assert memory.is_refused(A, later)


def test_many_addresses_together_have_a_limit_too() -> None:
    memory = WrongTokens()
    for number in range(GUESSES_OF_ALL):
        assert not memory.is_refused("198.51.100.1", NOW)
        memory.note_wrong(f"203.0.113.{number}", NOW)

    assert memory.is_refused("198.51.100.1", NOW)
    assert not memory.is_refused("198.51.100.1", NOW + SECONDS_EACH_OF_ALL)


def test_whoever_knows_the_token_is_not_kept_away_by_guesses_from_the_same_address_or_from_others() -> None:
    memory = after_guesses(A)
    memory.note_right(B, NOW)
    for number in range(GUESSES_OF_ALL):
        memory.note_wrong(f"203.0.113.{number}", NOW)
        memory.note_wrong(B, NOW)

    assert memory.is_at_limit(B, NOW)
    assert not memory.is_refused(B, NOW)
    assert memory.is_refused(A, NOW)


def test_knowing_the_token_is_forgotten_after_a_day() -> None:
    memory = WrongTokens()
    memory.note_right(A, NOW)
    later = NOW + KNOWN_SECONDS
    for _ in range(GUESSES_OF_CLIENT):
        memory.note_wrong(A, later - 1.0)

    assert not memory.is_refused(A, later - 1.0)
    assert memory.is_refused(A, later)


def test_whoever_showed_the_token_last_is_remembered_longest() -> None:
    memory = WrongTokens()
    for number in range(400):
        if number in {0, 200}:
            memory.note_right(A, NOW)
        memory.note_right(f"10.0.{number >> 8}.{number & 255}", NOW)
    for _ in range(GUESSES_OF_CLIENT):
        memory.note_wrong(A, NOW)

    assert memory.is_at_limit(A, NOW)
    assert not memory.is_refused(A, NOW)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::2:3", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("fe80::1%eth0", "fe80::1", True),
    ],
)
def test_the_addresses_that_one_host_may_have_are_one_client(one: str, other: str, same: bool) -> None:
    assert after_guesses(one).is_refused(other, NOW) is same


def test_what_is_remembered_is_bounded_whoever_asks() -> None:
    memory = WrongTokens()
    for number in range(5000):
        address = f"10.0.{number >> 8}.{number & 255}"
        memory.note_wrong(address, NOW)
        memory.note_right(address, NOW)

    assert len(memory._guessers) == 1024
    assert len(memory._known_at) == 256
