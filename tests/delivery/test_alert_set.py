"""Which alerts are active or resolved."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from ephmon.delivery.alert_set import MAX_RESOLVED, RESOLVED_KEPT_SECONDS, AlertSet
from ephmon.delivery.notification import Notification

if TYPE_CHECKING:
    from collections.abc import Iterable


def alert(name: str, *, starts_at: float = 100.0, ends_at: float | None = None, **labels: str) -> Notification:
    return Notification(labels={"alertname": name, **labels}, starts_at=starts_at, ends_at=ends_at)


def names(alerts: Iterable[Notification]) -> list[str]:
    return [dict(one.identity)["alertname"] for one in alerts]


def test_what_is_no_longer_active_was_resolved_now() -> None:
    first = AlertSet().updated([alert("A"), alert("B")], {}, 100.0)
    second = first.updated([alert("B")], {}, 160.0)

    assert names(second.active.values()) == ["B"]
    assert list(second.resolved.values()) == [alert("A", ends_at=160.0)]


def test_what_fires_again_is_no_longer_among_the_resolved() -> None:
    alerts = AlertSet().updated([alert("A")], {}, 100.0).updated([], {}, 160.0)
    again = alerts.updated([alert("A", starts_at=170.0)], {}, 170.0)

    assert list(again.active.values()) == [alert("A", starts_at=170.0)]
    assert not again.resolved


def test_every_alert_gets_the_extra_labels_and_keeps_its_own() -> None:
    alerts = AlertSet().updated([alert("A", kind="tcp_bind")], {"team": "network", "kind": "other"}, 100.0)
    (one,) = alerts.active.values()

    assert one.labels == {"alertname": "A", "kind": "tcp_bind", "team": "network"}


def test_other_extra_labels_make_other_alerts_and_end_the_old_ones() -> None:
    before = AlertSet().updated([alert("A")], {"team": "network"}, 100.0)
    after = before.updated([alert("A")], {"team": "storage"}, 160.0)

    assert list(after.active.values()) == [alert("A", team="storage")]
    assert list(after.resolved.values()) == [alert("A", team="network", ends_at=160.0)]


def test_resolved_alerts_are_kept_for_a_day_and_the_latest_of_very_many() -> None:
    many = [alert(f"A{number}") for number in range(MAX_RESOLVED + 1)]
    alerts = AlertSet().updated(many, {}, 100.0).updated([], {}, 160.0)

    assert len(alerts.resolved) == MAX_RESOLVED
    assert names(alerts.resolved.values())[0] == "A1"
    assert len(alerts.updated([], {}, 160.0 + RESOLVED_KEPT_SECONDS).resolved) == MAX_RESOLVED
    assert not alerts.updated([], {}, 161.0 + RESOLVED_KEPT_SECONDS).resolved


@given(st.lists(st.sets(st.sampled_from("ABCDE")), max_size=10))
def test_no_alert_is_lost_and_none_is_both_active_and_resolved(updates: list[set[str]]) -> None:
    alerts, seen = AlertSet(), set()
    for moment, update in enumerate(updates):
        alerts = alerts.updated([alert(name) for name in sorted(update)], {}, float(moment))
        seen |= update

        assert set(names(alerts.active.values())) == update
        assert set(names(alerts.resolved.values())) == seen - update
