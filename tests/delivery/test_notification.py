"""Which alerts stand, and what they are known by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from ephmon.delivery.notification import MOST_RESOLVED, RESOLVED_KEPT_SECONDS, Notification, Standing

if TYPE_CHECKING:
    from collections.abc import Iterable


def alert(name: str, *, starts_at: float = 100.0, ends_at: float | None = None, **labels: str) -> Notification:
    return Notification(labels={"alertname": name, **labels}, starts_at=starts_at, ends_at=ends_at)


def names(alerts: Iterable[Notification]) -> list[str]:
    return [dict(one.identity)["alertname"] for one in alerts]


def test_a_label_without_a_value_is_no_label() -> None:
    assert alert("A", destination="").identity == (("alertname", "A"),)
    assert alert("A", destination="").identity == alert("A").identity


def test_the_fingerprint_is_that_of_the_data_model_of_prometheus() -> None:
    """As Alertmanager 0.25 has them; tests/delivery/test_real_alertmanager.py asks it."""
    assert Notification(labels={}, starts_at=0).fingerprint == "cbf29ce484222325"
    assert alert("A", severity="critical").fingerprint == "b807e636403824b5"


def test_what_is_no_longer_active_was_resolved_now() -> None:
    first = Standing().followed_by([alert("A"), alert("B")], {}, 100.0)
    second = first.followed_by([alert("B")], {}, 160.0)

    assert names(second.active.values()) == ["B"]
    assert list(second.resolved.values()) == [alert("A", ends_at=160.0)]


def test_what_fires_again_is_no_longer_among_the_resolved() -> None:
    standing = Standing().followed_by([alert("A")], {}, 100.0).followed_by([], {}, 160.0)
    again = standing.followed_by([alert("A", starts_at=170.0)], {}, 170.0)

    assert list(again.active.values()) == [alert("A", starts_at=170.0)]
    assert not again.resolved


def test_every_alert_gets_the_extra_labels_and_keeps_its_own() -> None:
    standing = Standing().followed_by([alert("A", kind="tcp_bind")], {"team": "network", "kind": "other"}, 100.0)
    (one,) = standing.active.values()

    assert one.labels == {"alertname": "A", "kind": "tcp_bind", "team": "network"}


def test_other_extra_labels_make_other_alerts_and_end_the_old_ones() -> None:
    before = Standing().followed_by([alert("A")], {"team": "network"}, 100.0)
    after = before.followed_by([alert("A")], {"team": "storage"}, 160.0)

    assert list(after.active.values()) == [alert("A", team="storage")]
    assert list(after.resolved.values()) == [alert("A", team="network", ends_at=160.0)]


def test_resolved_alerts_are_kept_for_a_day_and_the_latest_of_very_many() -> None:
    many = [alert(f"A{number}") for number in range(MOST_RESOLVED + 1)]
    standing = Standing().followed_by(many, {}, 100.0).followed_by([], {}, 160.0)

    assert len(standing.resolved) == MOST_RESOLVED
    assert names(standing.resolved.values())[0] == "A1"
    assert len(standing.followed_by([], {}, 160.0 + RESOLVED_KEPT_SECONDS).resolved) == MOST_RESOLVED
    assert not standing.followed_by([], {}, 161.0 + RESOLVED_KEPT_SECONDS).resolved


@given(st.lists(st.sets(st.sampled_from("ABCDE")), max_size=10))
def test_no_alert_is_lost_and_none_is_both_active_and_resolved(updates: list[set[str]]) -> None:
    standing, seen = Standing(), set()
    for moment, update in enumerate(updates):
        standing = standing.followed_by([alert(name) for name in sorted(update)], {}, float(moment))
        seen |= update

        assert set(names(standing.active.values())) == update
        assert set(names(standing.resolved.values())) == seen - update
