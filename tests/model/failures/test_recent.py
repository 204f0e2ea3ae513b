"""Which pools connect() calls failed of late."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from socket import AF_INET
from typing import TYPE_CHECKING

from ephmon.facts.failed_calls import Destination, ExhaustionBatch, ExhaustionEvent
from ephmon.facts.namespaces import Netns
from ephmon.model.failures.counters import Count, Exhaustions, add_batch
from ephmon.model.failures.recent import QUIET_SECONDS, recent_failures
from ephmon.model.rules import DestinationPattern
from tests.model.facts import connect_key, packed

if TYPE_CHECKING:
    from ephmon.model.pools.kinds import PoolKey

OWN = Netns("own", 1)


def failed(at: float, host: int = 9) -> ExhaustionEvent:
    return ExhaustionEvent(
        at=1e9 + at,
        at_monotonic=at,
        netns=OWN,
        source=packed("10.0.0.1"),
        destination=packed(f"10.0.0.{host}"),
        destination_port=443,
        family=AF_INET,
        thread_id=7,
    )


def told(exhaustions: Exhaustions, now: float, *ignored: DestinationPattern) -> list[tuple[PoolKey, int, float]]:
    return [(one.key, one.count, one.last_at) for one in recent_failures(exhaustions, ignored, now)]


def test_failures_are_reported_by_pool_the_latest_last() -> None:
    known = Exhaustions(latest=(failed(2.0, 8), failed(3.0)))

    assert told(known, 10.0) == [
        (connect_key("10.0.0.8", 443, "10.0.0.1"), 1, 2.0),
        (connect_key("10.0.0.9", 443, "10.0.0.1"), 1, 3.0),
    ]


def test_a_destination_that_fails_often_hides_no_other() -> None:
    known = Exhaustions()
    for now in range(30):
        often = tuple(failed(now + number / 500) for number in range(500))
        batch = ExhaustionBatch(totals={OWN: 501}, events=often[-100:], latest=(failed(float(now), 8), often[-1]))
        known = add_batch(known, batch, listed=(), top=100, now=now + 1.0)

    assert {key.destination: at for key, _, at in told(known, 30.0)} == {"10.0.0.8": 29.0, "10.0.0.9": 29.998}


def test_the_count_is_that_of_the_destination_where_it_is_kept() -> None:
    """No more than the last hundred events are remembered one by one."""
    known = Exhaustions(
        latest=(failed(1.0),), destinations={Destination("own", packed("10.0.0.9"), 443): Count(5000, 1.0)}
    )

    assert [count for _, count, _ in told(known, 10.0)] == [5000]


def test_what_is_old_or_ignored_is_left_out() -> None:
    ignored = DestinationPattern(network=ip_network("10.0.0.8/32"), port=443)
    known = Exhaustions(latest=(failed(1.0), failed(50.0, 8), failed(50.0, 6)))

    assert [key for key, _, _ in told(known, 1.0 + QUIET_SECONDS, ignored)] == [
        connect_key("10.0.0.6", 443, "10.0.0.1")
    ]


def test_the_last_call_comes_with_it() -> None:
    last = replace(failed(2.0), command="curl", uid=1000)
    (one,) = recent_failures(Exhaustions(latest=(last,)), (), 10.0)

    assert one.call == last


def test_it_is_known_whose_calls_failed_toward_a_pool() -> None:
    calls = tuple(replace(failed(at), uid=uid) for at, uid in ((1.0, 1000), (2.0, 33)))
    known = add_batch(Exhaustions(), ExhaustionBatch(latest=calls), listed=(), top=100, now=3.0)
    (one,) = recent_failures(known, (), 3.0)

    assert (one.uids, one.last_at, one.call) == (frozenset({1000, 33}), 2.0, calls[1])
