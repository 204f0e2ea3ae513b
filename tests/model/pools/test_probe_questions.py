"""Which ports in doubt are asked about: as many as can matter to a judgement, and then some of the others by turns."""

from __future__ import annotations

from array import array
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from ephmon.facts.addresses import PORTS
from ephmon.model.pools.classify_ports import Evidence, classify_ports
from ephmon.model.pools.probe_questions import (
    AT_ONCE,
    LARGE_POOLS,
    MOST_BY_TURNS,
    MOST_BY_TURNS_IF_FORGOTTEN,
    questions,
)
from tests.model.facts import Sockets, connected, make_ports, make_sysctls, make_tcp

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ephmon.facts.sockets import TcpSockets

LOW, SIZE = 20_000, 20_000
SYSCTLS = make_sysctls(low=LOW, high=LOW + SIZE - 1)
WARNING, CRITICAL = 0.7, 0.9
HERE, BUSY = "10.0.0.1", "10.0.0.9"


def some(number: int, start: int = 0) -> range:
    return range(LOW + start, LOW + start + number)


def clients(ports: Iterable[int], destination: str = BUSY, *, no_port: bool = False) -> Sockets:
    return connected(HERE, ports, destination, 443, no_port=no_port)


def scattered(ports: Iterable[int]) -> list[Sockets]:
    """Connect from each port to a destination of its own."""
    return [connected(HERE, port, f"10.1.{port // 256}.{port % 256}", 443) for port in ports]


def asked(
    tcp: TcpSockets,
    *,
    in_doubt: Iterable[int],
    blocked: Iterable[int] = (),
    truly_blocked: frozenset[int] = frozenset(),
    after: int = 0,
    blocked_once: Iterable[int] = (),
    most: int | None = 0,
) -> list[int]:
    """Return the ports that are asked about; by default only those that can matter."""
    ports = make_ports(SYSCTLS, ambiguous=in_doubt, blocked=blocked)
    asking = questions(tcp, ports, [WARNING, CRITICAL], after=after, blocked_once=blocked_once, most=most)
    found: list[int] = []
    batch = next(asking, None)
    while batch is not None:
        found += batch
        try:
            batch = asking.send({port: port not in truly_blocked for port in batch})
        except StopIteration:
            batch = None
    assert len(set(found)) == len(found)
    return found


def test_nothing_matters_while_all_in_doubt_may_be_blocked_and_no_threshold_is_reached() -> None:
    doubtful = some(int(SIZE * WARNING) - 2)

    assert asked(make_tcp(*scattered(doubtful)), in_doubt=doubtful) == []
    assert asked(make_tcp(*scattered(some(14_000))), in_doubt=some(14_000)) != []


def test_it_is_asked_until_the_rest_cannot_make_the_blocked_share_reach_a_threshold() -> None:
    """18,000 in doubt, and 14,000 blocked would be a warning: 4,001 that are shared settle it."""
    found = asked(make_tcp(*scattered(some(18_000))), in_doubt=some(18_000))

    assert 4_000 < len(found) <= 4_000 + 2 * AT_ONCE


def test_where_most_are_blocked_it_is_asked_until_the_highest_threshold_is_reached() -> None:
    doubtful = some(19_000)
    found = asked(make_tcp(*scattered(doubtful)), in_doubt=doubtful, truly_blocked=frozenset(doubtful))

    assert 18_000 <= len(found) <= 18_000 + AT_ONCE


def test_ports_in_doubt_do_not_matter_to_the_pool_that_holds_them() -> None:
    """It is at 69 % either way, and nobody else can reach a threshold."""
    own = some(13_800)

    assert asked(make_tcp(clients(own)), in_doubt=own) == []


def test_a_large_pool_needs_the_others_only() -> None:
    """It holds 60 %, and 20 % more are in doubt that others hold."""
    own, others = some(12_000), some(4_000, 12_000)
    tcp = make_tcp(clients(own, no_port=True), *scattered(others))

    found = asked(tcp, in_doubt=others)
    assert set(found) <= set(others)
    assert 2_000 < len(found) <= 2_000 + 2 * AT_ONCE


def test_time_waits_of_a_large_pool_may_be_given_back() -> None:
    """Its 60 % may all be free again; then 70 % in doubt elsewhere would be a warning, and otherwise they are one."""
    tcp = make_tcp(clients(some(12_000)))
    ports = some(12_000)

    assert asked(tcp, in_doubt=ports, blocked=some(1_900, 12_000)) == []
    assert asked(tcp, in_doubt=ports, blocked=some(2_100, 12_000)) != []


def test_pools_that_are_not_looked_at_one_by_one_are_bounded_by_their_largest() -> None:
    """17 pools of 10 % each, and 11,000 in doubt that none of them holds."""
    pools = [clients(some(2_000), f"10.0.1.{host}", no_port=True) for host in range(LARGE_POOLS + 1)]
    doubtful = some(12_500, 2_000)
    tcp = make_tcp(*pools, *scattered(doubtful))

    assert len(asked(tcp, in_doubt=doubtful)) > 500


@pytest.mark.parametrize(
    ("ports_recover", "number", "expected"),
    [
        (True, MOST_BY_TURNS + 1, MOST_BY_TURNS),
        (False, MOST_BY_TURNS, MOST_BY_TURNS),
        (False, MOST_BY_TURNS + 1, MOST_BY_TURNS_IF_FORGOTTEN),
    ],
)
def test_the_rest_has_its_turn_by_how_long_answers_hold(ports_recover: bool, number: int, expected: int) -> None:
    """Before Linux 6.18 all are asked about in one poll, or they are never all known."""
    tcp = replace(make_tcp(*scattered(some(number))), ports_recover=ports_recover)

    assert asked(tcp, in_doubt=some(number), most=None) == list(some(number))[:expected]


def test_turns_go_on_after_the_port_that_was_asked_about_last() -> None:
    tcp = make_tcp(*scattered(some(10)))

    assert asked(tcp, in_doubt=some(10), after=LOW + 7, most=4) == [LOW + 8, LOW + 9, LOW, LOW + 1]


def test_ports_that_were_found_blocked_once_come_first() -> None:
    tcp = make_tcp(*scattered(some(10)))
    once = [LOW + 9, LOW + 5, LOW + 20]  # the last is not in doubt any more

    assert asked(tcp, in_doubt=some(10), after=LOW + 7, blocked_once=once, most=4) == [LOW + 9, LOW + 5, LOW + 8, LOW]


@pytest.mark.parametrize(("ports_recover", "expected"), [(True, 4), (False, 8)])
def test_blocked_ports_that_cannot_matter_are_all_known_once_each_was_asked_about_twice(
    ports_recover: bool, expected: int
) -> None:
    doubtful = some(MOST_BY_TURNS + 1_500)
    fingerprints = array("Q", range(1, PORTS + 1))
    tcp = replace(make_tcp(*scattered(doubtful)), ports_recover=ports_recover, fingerprints=fingerprints)
    evidence, after, polls = Evidence(), 0, 0
    while (ports := classify_ports(SYSCTLS, tcp, evidence)[0]).ambiguous:
        _, unanswered = classify_ports(SYSCTLS, tcp, evidence)
        batch = next(questions(tcp, ports, [WARNING, CRITICAL], after=after, blocked_once=unanswered.blocked_once()))
        _, evidence = classify_ports(SYSCTLS, tcp, evidence, answers=dict.fromkeys(batch, False))
        after, polls = batch[-1], polls + 1

    assert polls == expected


def test_what_mattered_counts_toward_the_turns() -> None:
    doubtful = some(16_000)

    assert len(asked(make_tcp(*scattered(doubtful)), in_doubt=doubtful, most=MOST_BY_TURNS)) == MOST_BY_TURNS
