"""Random mixes of sockets: every prediction is held against the kernel, and one miss fails.

How good the best estimate is where ports are in doubt is printed (`pytest -s`), and stands in docs/proof/exactness.md.
`pytest --mixes 1/3` plays a third of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kernel_truth.mixes import (
    Asks,
    Outcome,
    bind_outcomes,
    connect_outcomes,
    shows_every_socket,
    shows_everything,
    udp_connect_outcomes,
)
from tests.namespaces import Namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CONNECT_SEEDS = range(120)
REPAIR_SEEDS = range(500, 530)
CERTAIN_SEEDS = range(40)
ADDRESS_SEEDS = range(60)
SECONDS = 900.0
"""An emulated machine takes its time."""


@pytest.fixture(name="ns")
def _ns() -> Iterator[Namespace]:
    with Namespace() as ns:
        yield ns


@pytest.fixture(name="chosen")
def _chosen(request: pytest.FixtureRequest) -> Callable[[range], list[int]]:
    """A function that returns the seeds to play of all that there are."""
    share: slice = request.config.getoption("--mixes")
    return lambda seeds: list(seeds[share])


def summary(name: str, outcomes: list[Outcome]) -> str:
    """Return what the page quotes: how often the numbers were right, and how far off they were otherwise."""
    probed = sum(one.probed.remaining == one.count for one in outcomes if one.probed)
    claimed = sum(one.pool.exact for one in outcomes)
    parts = [f"{name}: {len(outcomes)} mixes, claimed exact {claimed}, with the probe exact {probed}"]
    for label, predicted in {
        "estimate": [one.pool.remaining for one in outcomes],
        "upper bound": [one.pool.remaining_max for one in outcomes],
        "lower bound": [one.pool.remaining_min for one in outcomes],
    }.items():
        errors = [number - one.count for number, one in zip(predicted, outcomes, strict=True)]
        mean = sum(map(abs, errors)) / len(errors)
        parts.append(f"{label}: exact {errors.count(0)}, off by {min(errors):+d} to {max(errors):+d}, mean {mean:.1f}")
    return "; ".join(parts)


def test_tcp_connect(ns: Namespace, chosen: Callable[[range], list[int]]) -> None:
    """With the probe every prediction is exact; without it the bounds hold, and a claim of exactness is true.

    Whoever asks the kernel is an ordinary user without a capability.
    """
    is_bounded = ns.call(shows_every_socket)
    outcomes = ns.call_within(SECONDS, connect_outcomes, chosen(CONNECT_SEEDS), asks=Asks.ORDINARY_USER)
    print(summary("tcp_connect", outcomes))

    check_probed(outcomes)
    assert [one for one in outcomes if one.count > one.pool.remaining_max] == []
    assert [one for one in outcomes if one.pool.exact and one.pool.remaining != one.count] == []
    if is_bounded:
        assert [one for one in outcomes if one.count < one.pool.remaining_min] == []
    check_counted(outcomes, is_bounded=is_bounded)


def test_tcp_connect_without_fast_open(ns: Namespace, chosen: Callable[[range], list[int]]) -> None:
    """Root asks in repair mode, and every prediction is exact too."""
    outcomes = ns.call_within(SECONDS, connect_outcomes, chosen(REPAIR_SEEDS), asks=Asks.ROOT)
    print(summary("tcp_connect without fast open", outcomes))

    check_probed(outcomes)


def check_probed(outcomes: list[Outcome]) -> None:
    """With the probe the prediction is what the kernel gives, and says so unless what else decides is not seen."""
    assert {outcome.errno for outcome in outcomes} == {"EADDRNOTAVAIL"}
    assert [one for one in outcomes if not one.probed or one.probed.remaining != one.count] == []
    unclaimed = [one for one in outcomes if one.probed and not one.probed.exact]
    assert [one for one in unclaimed if not one.is_unsure] == []


def check_counted(outcomes: list[Outcome], *, is_bounded: bool) -> None:
    """A reading that only counts knows less than the one with evidence before it, and says so."""
    pairs = [(one.counted, one) for one in outcomes if one.counted]

    assert len(pairs) == len(outcomes)
    assert [one for counted, one in pairs if counted.exact] == []
    assert [one for counted, one in pairs if one.count > counted.remaining_max] == []
    if is_bounded:
        assert [one for counted, one in pairs if one.count < counted.remaining_min] == []


def test_tcp_connect_without_doubt(ns: Namespace, chosen: Callable[[range], list[int]]) -> None:
    """Where every socket tells how it got its port, the prediction is exact without the probe, and says so.

    Before Linux 6.18 it does not say so of ports that are held: what blocked them may have gone.
    """
    is_bounded, is_complete = ns.call(shows_every_socket), ns.call(shows_everything)
    outcomes = ns.call_within(SECONDS, connect_outcomes, chosen(CERTAIN_SEEDS), asks=None, only_certain=True)
    print(summary("tcp_connect without doubt", outcomes))

    assert [one for one in outcomes if one.pool.exact and one.pool.remaining != one.count] == []
    if is_bounded:
        assert [one for one in outcomes if one.pool.remaining != one.count] == []
    if is_complete:
        assert {outcome.ambiguous for outcome in outcomes} == {0}
        assert [one for one in outcomes if not one.pool.exact and not one.is_unsure] == []


def test_tcp_bind(ns: Namespace, chosen: Callable[[range], list[int]]) -> None:
    """Where the kernel does not show every socket, the prediction may be over, and does not claim to be exact."""
    is_bounded = ns.call(shows_every_socket)
    outcomes = ns.call_within(SECONDS, bind_outcomes, chosen(ADDRESS_SEEDS), is_udp=False)
    check_addresses("tcp_bind", outcomes, "EADDRINUSE", is_bounded=is_bounded)


def test_udp_connect(ns: Namespace, chosen: Callable[[range], list[int]]) -> None:
    check_addresses("udp_connect", ns.call_within(SECONDS, udp_connect_outcomes, chosen(ADDRESS_SEEDS)), "EAGAIN")


def test_udp_bind(ns: Namespace, chosen: Callable[[range], list[int]]) -> None:
    check_addresses(
        "udp_bind", ns.call_within(SECONDS, bind_outcomes, chosen(ADDRESS_SEEDS), is_udp=True), "EADDRINUSE"
    )


def check_addresses(name: str, outcomes: list[Outcome], failure: str, *, is_bounded: bool = True) -> None:
    print(summary(name, outcomes))

    assert {outcome.errno for outcome in outcomes} == {failure}
    assert {outcome.pool.failure_errno for outcome in outcomes} == {failure}
    assert [one for one in outcomes if one.pool.remaining_max < one.count] == []
    assert [one for one in outcomes if one.pool.exact and one.pool.remaining != one.count] == []
    if is_bounded:
        assert [one for one in outcomes if one.pool.remaining != one.count] == []
