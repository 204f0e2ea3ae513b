"""What is remembered of TCP timestamps: for how long it is believed, and what makes it unknown again."""

from __future__ import annotations

import pytest

from ephmon.facts.socket_groups import ConnectKey
from ephmon.facts.timestamps import (
    ASK_AGAIN_SECONDS,
    KEPT_SECONDS,
    MOST_KEPT,
    SETTLING_SECONDS,
    PeerTimestamps,
)

KEY = ConnectKey(b"\x0a\x00\x00\x01", b"\x0a\x00\x00\x09", 443)


def seen(*answers: bool, at: float = 100.0) -> PeerTimestamps:
    return PeerTimestamps().at(at, is_on=True).with_answers({KEY: answers})


@pytest.mark.parametrize(("answers", "expected"), [((True,), True), ((False, False), False), ((), None)])
def test_live_connections_are_believed_while_they_agree(answers: tuple[bool, ...], expected: bool | None) -> None:
    known = seen(*answers)

    assert known.of(KEY) is expected
    assert known.at(100.0 + KEPT_SECONDS - 1, is_on=True).of(KEY) is expected
    assert known.at(100.0 + KEPT_SECONDS, is_on=True).of(KEY) is None


def test_after_a_change_nothing_is_known_until_the_time_waits_of_before_are_gone() -> None:
    """A TIME_WAIT of before the change says what the peer did then."""
    after = seen(True).at(200.0, is_on=True).with_answers({KEY: [False]})

    assert seen(True).at(110.0, is_on=True).with_answers({KEY: [False]}).of(KEY) is None
    assert after.of(KEY) is False
    assert seen(True, False).of(KEY) is None
    assert seen(True, False).at(100.5 + SETTLING_SECONDS, is_on=True).with_answers({KEY: [True]}).of(KEY) is True


def test_the_setting_of_this_host_makes_all_unknown_when_it_changes() -> None:
    changed = seen(True).at(110.0, is_on=False)
    again = changed.at(120.0, is_on=True).with_answers({KEY: [True]})

    assert (changed.of(KEY), again.of(KEY)) == (None, None)
    assert again.at(120.0 + SETTLING_SECONDS - 1, is_on=True).of(KEY) is None
    assert again.at(120.0 + SETTLING_SECONDS, is_on=True).of(KEY) is True


def test_a_key_is_asked_about_again_from_time_to_time() -> None:
    known = seen(True)

    assert list(known.at(100.0 + ASK_AGAIN_SECONDS - 1, is_on=True).seen_lately()) == [KEY]
    assert list(known.at(100.0 + ASK_AGAIN_SECONDS, is_on=True).seen_lately()) == []
    assert list(seen().seen_lately()) == []


def test_as_many_keys_are_remembered_as_were_seen_last() -> None:
    before = seen(True).at(101.0, is_on=True)
    many = before.with_answers({KEY._replace(destination_port=port): [True] for port in range(1000, 999 + MOST_KEPT)})

    assert (len(before.seen), len(many.seen), many.of(KEY)) == (1, MOST_KEPT, True)
    assert many.with_answers({KEY._replace(destination_port=999): [True]}).of(KEY) is None
