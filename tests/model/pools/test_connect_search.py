"""How many ports one connect() looks at: literal pools beside what the rule of the kernel gives."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from ephmon.facts.sockets import TcpState
from ephmon.model.pools.connect_search import LITTLE_LOST, Parity, expected_ports
from tests.model.facts import LOW, connected, listening, make_ports, make_sysctls, make_tcp, own
from tests.model.kernel_sockets import Peer
from tests.model.pools.test_tcp_connect import make_pools

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ephmon.facts.snapshot import Sysctls
    from tests.model.facts import Sockets

HERE, THERE, PORT = "10.0.0.1", "10.0.0.9", 443
FIRST, SECOND = range(LOW, LOW + 100, 2), range(LOW + 1, LOW + 100, 2)


def walk(taken: set[int], start: int, ports: int = 100) -> int:
    """Return how many ports the search looks at, as __inet_hash_connect() walks a range of even size."""
    offset, looked_at = start & ~1, 0
    for parity in (0, 1):
        for step in range(0, ports, 2):
            looked_at += 1
            if (offset + parity + step) % ports not in taken:
                return looked_at
    return looked_at


@pytest.mark.parametrize(
    ("first", "second"), [(0, 0), (25, 0), (49, 0), (50, 0), (50, 25), (50, 49), (50, 50), (20, 9)]
)
def test_the_average_is_that_of_the_kernels_walk_from_a_random_start(first: int, second: int) -> None:
    draw = random.Random(7)
    walks = [
        walk({*draw.sample(range(0, 100, 2), first), *draw.sample(range(1, 100, 2), second)}, draw.randrange(100))
        for _ in range(4_000)
    ]

    assert expected_ports(Parity(50, 50 - first), Parity(50, 50 - second)) == pytest.approx(
        sum(walks) / len(walks), rel=0.05
    )


def toward(ports: Iterable[int], *, state: int = TcpState.ESTABLISHED, left_ms: int = 0) -> Sockets:
    return connected(HERE, ports, THERE, PORT, state=state, left_ms=left_ms)


def searched(*rows: Sockets, blocked: Iterable[int] = (), sysctls: Sysctls | None = None) -> float | None:
    sysctls = sysctls or make_sysctls()
    ports = make_ports(sysctls, blocked=blocked)
    return make_pools(make_tcp(*rows), sysctls, ports=ports).pool(own(Peer(HERE, THERE, PORT))).search_ports


def test_an_empty_pool_finds_a_port_at_once() -> None:
    assert searched() == 1.0


def test_the_search_steps_up_once_the_first_parity_is_taken() -> None:
    assert searched(toward(FIRST[:45])) == pytest.approx(51 / 6)
    assert searched(toward(FIRST)) == 51.0
    assert searched(toward([*FIRST, *SECOND[:40]])) == pytest.approx(50 + 51 / 11)
    assert searched(toward([*FIRST, *SECOND])) == 100.0


def test_ports_of_the_second_parity_are_no_obstacle_while_the_first_has_some() -> None:
    assert searched(toward([*SECOND[:45], *FIRST[:25]])) == pytest.approx(51 / 26)


def test_parity_counts_from_the_low_end_of_the_range() -> None:
    odd = make_sysctls(LOW + 1, LOW + 100)

    assert searched(toward(SECOND), sysctls=odd) == 51.0
    assert searched(toward(range(LOW + 2, LOW + 101, 2)), sysctls=odd) == 1.0


def test_blocked_ports_are_walked_and_never_free() -> None:
    rows = listening("0.0.0.0", FIRST[:25])

    assert searched(rows, toward(FIRST[25:45]), blocked=FIRST[:25]) == pytest.approx(51 / 6)


def test_reserved_ports_are_skipped() -> None:
    reserving = make_sysctls(reserved=FIRST[:40])

    assert searched(toward(FIRST[40:]), sysctls=reserving) == pytest.approx(10 + 1)


def test_a_time_wait_that_is_given_out_again_is_free() -> None:
    reusing = make_sysctls(tw_reuse=1)
    old = toward(FIRST[:10], state=TcpState.TIME_WAIT, left_ms=1_000)
    young = toward(FIRST[10:], state=TcpState.TIME_WAIT, left_ms=59_900)
    old_of_second = toward(SECOND, state=TcpState.TIME_WAIT, left_ms=1_000)

    assert searched(old, young, sysctls=reusing) == pytest.approx(51 / 11)
    assert searched(toward(FIRST), old_of_second, sysctls=reusing) == 51.0
    assert searched(old, young) == 51.0


def test_connections_of_other_pools_are_no_obstacle() -> None:
    assert searched(connected(HERE, [*FIRST, *SECOND], "10.0.0.8", PORT)) == 1.0


def test_below_two_fifths_every_port_is_taken_for_one_of_the_first_parity() -> None:
    assert LITTLE_LOST == 0.4
    assert searched(toward(SECOND[:40])) == pytest.approx(51 / 11)
    assert searched(toward(SECOND[:41])) == 1.0
