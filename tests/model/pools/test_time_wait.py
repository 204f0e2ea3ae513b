"""When connect() may take over the 4-tuple of a TIME_WAIT: every condition of `tcp_twsk_unique()`, one at a time."""

from __future__ import annotations

import pytest

from ephmon.facts.namespaces import OWN_NETNS
from ephmon.facts.socket_groups import ConnectKey, SocketGroups
from ephmon.facts.sockets import TcpState
from ephmon.model.pools.tcp_connect import ConnectPools
from ephmon.model.pools.time_wait import Reuse, groups_open_to_reuse, is_group_on_loopback, reusable_below_ms, reuse_of
from tests.model.facts import TAKEN_AT, connected, make_ports, make_sysctls, make_tcp, packed

NEAR = ("127.0.0.1", "127.0.0.1")
FAR = ("10.0.0.1", "10.0.0.9")


@pytest.mark.parametrize(
    ("source", "destination", "device", "loopback"),
    [
        ("127.0.0.1", "127.0.0.1", 0, True),
        ("127.255.255.254", "10.0.0.9", 0, True),
        ("10.0.0.1", "127.0.0.2", 0, True),
        ("126.0.0.1", "128.0.0.1", 0, False),
        ("10.0.0.1", "10.0.0.1", 0, False),
        ("10.0.0.1", "10.0.0.9", 1, True),
        ("10.0.0.1", "10.0.0.9", 2, False),
        ("::1", "::1", 0, True),
        ("2001:db8::1", "::1", 0, True),
        ("2001:db8::1", "2001:db8::1", 0, False),
        ("2001:db8::1", "2001:db8::1", 1, True),
        ("7f00::1", "::2", 0, False),
    ],
)
def test_loopback_is_127_or_1_at_either_end_or_a_socket_bound_to_the_first_device(
    source: str, destination: str, device: int, loopback: bool
) -> None:
    row = connected(source, 40000, destination, 80, state=TcpState.TIME_WAIT, device=device)

    assert is_group_on_loopback(row.group) is loopback


@pytest.mark.parametrize(
    ("tw_reuse", "near", "far"),
    [(0, False, False), (1, True, True), (2, True, False), (3, False, False)],
)
def test_tcp_tw_reuse_says_where(tw_reuse: int, near: bool, far: bool) -> None:
    sysctls = make_sysctls(tw_reuse=tw_reuse)
    left = [
        connected(*ends, 80, state=TcpState.TIME_WAIT).group
        for ends in ((NEAR[0], 40000, NEAR[1]), (FAR[0], 40000, FAR[1]))
    ]
    may_be = [reuse_of(group, sysctls, uses_timestamps=True) is Reuse.CERTAIN for group in left]

    assert may_be == [near, far]
    assert list(groups_open_to_reuse(SocketGroups.of(left), sysctls)) == [
        i for i, reused in enumerate(may_be) if reused
    ]


@pytest.mark.parametrize("timestamps", [1, 2])
@pytest.mark.parametrize(
    ("seen", "reuse"),
    [(True, Reuse.CERTAIN), (False, Reuse.NEVER), (None, Reuse.LIKELY)],
    ids=["used", "not", "unknown"],
)
def test_what_live_connections_show_decides_on_loopback_too(timestamps: int, seen: bool | None, reuse: Reuse) -> None:
    sysctls = make_sysctls(tw_reuse=1, timestamps=timestamps)

    for ends in (NEAR, FAR):
        group = connected(*_left(ends), state=TcpState.TIME_WAIT).group
        assert reuse_of(group, sysctls, uses_timestamps=seen) is reuse


@pytest.mark.parametrize("seen", [True, False, None])
def test_while_timestamps_are_off_a_time_wait_may_be_older_than_that(seen: bool | None) -> None:
    group = connected(*_left(NEAR), state=TcpState.TIME_WAIT).group

    assert reuse_of(group, make_sysctls(tw_reuse=1, timestamps=0), uses_timestamps=seen) is Reuse.POSSIBLE


@pytest.mark.parametrize("state", [state for state in TcpState if state != TcpState.TIME_WAIT])
def test_only_the_state_time_wait_is_reused(state: TcpState) -> None:
    """A FIN_WAIT2 that the process has let go of is a structure of TIME_WAIT too, and is not."""
    group = connected(*_left(NEAR), state=state).group

    for one in (group, group._replace(minisock=True)):
        assert reuse_of(one, make_sysctls(tw_reuse=1), uses_timestamps=True) is Reuse.NEVER
    assert not groups_open_to_reuse(SocketGroups.of([group]), make_sysctls(tw_reuse=1))


@pytest.mark.parametrize(("delay_ms", "below"), [(1, 59_999), (1000, 59_000), (60_000, 0), (90_000, 0)])
def test_a_time_wait_has_lasted_longer_than_the_delay_once_less_than_the_rest_of_60_seconds_is_left(
    delay_ms: int, below: int
) -> None:
    assert reusable_below_ms(make_sysctls(delay_ms=delay_ms)) == below


@pytest.mark.parametrize(
    ("delay_ms", "left_ms", "reusable"),
    [
        (1000, 59_001, 0),
        (1000, 59_000, 0),
        (1000, 58_999, 1),
        (1000, 0, 1),
        (1, 59_999, 0),
        (1, 59_998, 1),
        (60_000, 0, 0),
    ],
)
def test_its_age_must_exceed_the_delay(delay_ms: int, left_ms: int, reusable: int) -> None:
    tcp = make_tcp(connected("127.0.0.1", 40000, "127.0.0.1", 80, state=TcpState.TIME_WAIT, left_ms=left_ms))
    sysctls = make_sysctls(delay_ms=delay_ms)
    pools = ConnectPools(OWN_NETNS, TAKEN_AT, sysctls, tcp, make_ports(sysctls))
    pool = pools.pool(ConnectKey(packed("127.0.0.1"), packed("127.0.0.1"), 80))

    assert (pool.time_wait, pool.reusable, pool.remaining) == (1, reusable, 99 + reusable)


def _left(ends: tuple[str, str]) -> tuple[str, int, str, int]:
    source, destination = ends
    return source, 40000, destination, 80
