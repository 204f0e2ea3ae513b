"""From snapshots to reports: which pools are told of, what is kept from poll to poll, and what a failure leaves."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ephmon.errors import POLL_FAILURES, Reason
from ephmon.facts.failed_calls import Destination
from ephmon.facts.namespaces import OWN_NETNS
from ephmon.facts.sockets import Backend, Blindness, Protocol, TcpState
from ephmon.model.collectors import Collector, Health
from ephmon.model.pace import Costs, Pace, Poll, Watch
from ephmon.model.pools.kinds import PoolKind
from ephmon.model.pools.survey import every_pool, survey
from ephmon.model.report import PollTotals
from ephmon.model.rules import DestinationPattern, ListingRules
from ephmon.model.step import (
    after_failed_poll,
    after_narrow_poll,
    classify_with_memory,
    conclude,
    next_full_poll,
    watch_of,
    with_pace,
)
from tests.model.facts import (
    LOW,
    RELOAD,
    TAKEN_AT,
    Sockets,
    blank_state,
    bound,
    clients,
    connect_key,
    connected,
    listening,
    make_namespace,
    make_narrow,
    make_snapshot,
    make_sysctls,
    make_tcp,
    packed,
    snapshot_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ephmon.facts.snapshot import NarrowSnapshot
    from ephmon.model.pools.kinds import PoolKey
    from ephmon.model.state import State

CONNECT = PoolKind.TCP_CONNECT


def toward(host: int, port: int = 443) -> PoolKey:
    return connect_key(f"10.0.0.{host}", port, "10.0.0.1")


def listed(state: State) -> list[PoolKey]:
    """Return the keys of the listed tcp_connect pools, in their order."""
    return [one.pool.key for one in state.report.listed if one.pool.key.kind == CONNECT]


def peaks(state: State) -> list[float]:
    return [one.peak_utilisation for one in state.report.listed if one.pool.key.kind == CONNECT]


# What a good poll tells


def test_a_report_tells_of_the_namespace() -> None:
    sysctls = make_sysctls(reserved=[40098, 40099, 50000], tw_reuse=1)
    tcp = make_tcp(
        clients(30), clients(10, 8), listening("0.0.0.0", 40050), connected("10.0.0.1", 40040, "10.0.0.7", 443)
    )
    state = conclude(make_snapshot(make_namespace(tcp, sysctls)), blank_state(), 1000.0)
    (namespace,) = state.report.namespaces

    assert (namespace.netns, namespace.inode) == ("own", 4026531833)
    assert namespace.sysctls.port_range == (40000, 40099)
    assert (namespace.reserved_ports, namespace.usable_ports) == (2, 98)
    assert (namespace.blocked_ports, namespace.ambiguous_ports) == (1, 1)
    assert (namespace.blind_to, namespace.sysctls.tcp_tw_reuse, namespace.overfull_pools) == ((), 1, 0)
    assert (namespace.pools[CONNECT], namespace.listed[CONNECT]) == (3, 2)
    assert namespace.worst[CONNECT] == 31 / 98


def test_a_report_tells_when_and_how_it_was_read() -> None:
    before = blank_state()
    snapshot = make_snapshot(make_namespace(make_tcp()), taken_at=TAKEN_AT, duration_seconds=0.25)
    state = conclude(snapshot, before, 1000.0)

    assert (state.report.success, state.report.error) == (True, None)
    assert (state.report.taken_at, state.report.taken_at_monotonic) == (TAKEN_AT, 1000.0)
    assert state.report.duration_seconds == 0.25
    assert (state.report.backends, state.report.missing) == ({"tcp": "inet_diag", "udp": "inet_diag"}, {})
    assert state.report.totals == PollTotals().counted()
    assert (state.rules, state.report.reload, state.report.pace.full) == (before.rules, RELOAD, 5.0)


def test_before_the_first_poll_nothing_is_known() -> None:
    report = blank_state().report

    assert (report.success, report.error, report.taken_at, report.taken_at_monotonic) == (False, None, None, None)
    assert (report.namespaces, report.listed, report.totals) == ((), (), PollTotals())


def test_a_kind_without_pools_has_no_worst() -> None:
    (namespace,) = conclude(snapshot_of(), blank_state(), 0.0).report.namespaces

    assert (namespace.pools[CONNECT], namespace.listed[CONNECT]) == (0, 0)
    assert CONNECT not in namespace.worst


def test_no_usable_port_is_the_worst_there_is() -> None:
    sysctls = make_sysctls(40000, 40001, reserved=[40000, 40001])
    (namespace,) = conclude(snapshot_of(clients(2), sysctls=sysctls), blank_state(), 0.0).report.namespaces

    assert (namespace.usable_ports, namespace.worst[CONNECT]) == (0, 1.0)


def test_a_torn_reading_is_counted() -> None:
    torn = [replace(clients(100), group=clients(1).group._replace(state=state)) for state in (1, 4)]
    (namespace,) = conclude(snapshot_of(*torn), blank_state(), 0.0).report.namespaces

    assert namespace.overfull_pools == 1


def test_what_cannot_be_seen_is_named() -> None:
    tcp = make_tcp(blind_to=[Blindness.V6ONLY, Blindness.BOUND_UNCONNECTED])
    (namespace,) = conclude(make_snapshot(make_namespace(tcp)), blank_state(), 0.0).report.namespaces

    assert namespace.blind_to == ("bound_unconnected", "v6only")


def test_a_protocol_that_could_not_be_read_leaves_its_pools_out_and_is_named() -> None:
    before = conclude(snapshot_of(clients(30)), blank_state(), 0.0)
    without = make_snapshot(make_namespace(None, missing="inet_diag refuses TCP."))
    state = conclude(without, before, 5.0)
    (namespace,) = state.report.namespaces

    assert state.report.success
    assert (state.report.backends, state.report.missing) == ({"udp": "inet_diag"}, {"tcp": "inet_diag refuses TCP."})
    assert (listed(before), listed(state)) == ([toward(9)], [])
    assert CONNECT not in {*namespace.pools, *namespace.listed, *namespace.worst}
    assert (namespace.usable_ports, namespace.blocked_ports, namespace.ambiguous_ports) == (100, None, None)


def test_a_pool_is_listed_again_at_once_when_its_protocol_is_read_again() -> None:
    state = conclude(snapshot_of(clients(30)), blank_state(ListingRules(top=1)), 0.0)
    state = conclude(snapshot_of(clients(30), clients(40, 8)), state, 5.0)
    state = conclude(make_snapshot(make_namespace(None)), state, 10.0)
    state = conclude(snapshot_of(clients(30)), state, 15.0)

    assert listed(state) == [toward(9)]


# Which pools are listed


def test_pools_are_listed_worst_utilisation_first_then_most_ports_held() -> None:
    """A TIME_WAIT that may be reused is held, but takes nothing away."""
    left = connected(
        "10.0.0.1", range(40050, 40090), "10.0.0.8", 443, state=TcpState.TIME_WAIT, left_ms=1, no_port=True
    )
    state = conclude(
        snapshot_of(clients(20, 7), left, clients(20, 8), clients(21, 9), sysctls=make_sysctls(tw_reuse=1)),
        blank_state(),
        0.0,
    )

    assert listed(state) == [toward(9), toward(8), toward(7)]
    assert [one.pool.utilisation for one in state.report.listed] == [0.21, 0.20, 0.20]
    assert [one.pool.held for one in state.report.listed] == [21, 60, 20]


def test_no_more_than_top_are_listed_and_the_rest_is_counted() -> None:
    state = conclude(
        snapshot_of(*(clients(host, host) for host in range(10, 40))),
        blank_state(ListingRules(top=3)),
        0.0,
    )
    (namespace,) = state.report.namespaces

    assert listed(state) == [toward(39), toward(38), toward(37)]
    assert (namespace.pools[CONNECT], namespace.listed[CONNECT], namespace.worst[CONNECT]) == (30, 3, 0.39)


@pytest.mark.parametrize(("min_in_use", "hosts"), [(0, [7, 8, 9]), (10, [8, 9]), (11, [9]), (12, [])])
def test_a_pool_needs_min_in_use_ports(min_in_use: int, hosts: list[int]) -> None:
    state = conclude(
        snapshot_of(clients(9, 7), clients(10, 8), clients(11, 9)),
        blank_state(ListingRules(min_in_use=min_in_use)),
        0.0,
    )

    assert sorted(listed(state)) == [toward(host) for host in hosts]
    assert (state.report.namespaces[0].pools[CONNECT], state.report.namespaces[0].worst[CONNECT]) == (3, 0.11)


def test_blocked_ports_count_toward_min_in_use() -> None:
    tcp = replace(make_tcp(clients(10), explicit=range(LOW, LOW + 10)), ports_recover=False)
    state = conclude(make_snapshot(make_namespace(tcp)), blank_state(ListingRules(min_in_use=10)), 0.0)

    assert listed(state) == [toward(9)]
    assert [one.pool.in_use for one in state.report.listed if one.pool.key == toward(9)] == [0]


def test_a_listed_pool_may_fall_below_min_in_use_for_ten_minutes() -> None:
    state = conclude(snapshot_of(clients(10)), blank_state(), 0.0)
    for now, expected in [(5.0, [toward(9)]), (599.9, [toward(9)]), (600.0, [])]:
        state = conclude(snapshot_of(clients(1)), state, now)
        assert listed(state) == expected


def test_a_pool_whose_sockets_are_gone_is_not_listed() -> None:
    state = conclude(snapshot_of(clients(10)), blank_state(), 0.0)

    assert listed(conclude(snapshot_of(), state, 5.0)) == []


IGNORED = [
    DestinationPattern(network=ip_network("10.0.0.8/32")),
    DestinationPattern(network=ip_network("10.0.0.0/24"), port=444),
    DestinationPattern(network=ip_network("::/0")),
]


def test_ignored_destinations_are_left_out_of_the_list_and_the_worst() -> None:
    rows = [clients(50, 8), clients(40, 9, port=444), clients(30, 9), clients(20, 7)]
    (namespace,) = (
        state := conclude(snapshot_of(*rows), blank_state(ListingRules(ignore_destinations=tuple(IGNORED))), 0.0)
    ).report.namespaces

    assert listed(state) == [toward(9), toward(7)]
    assert (namespace.listed[CONNECT], namespace.worst[CONNECT]) == (2, 0.3)
    assert [pool.key for pool in every_pool(survey(snapshot_of(*rows)), IGNORED) if pool.key.kind == CONNECT] == [
        toward(9),
        toward(7),
    ]


def test_destinations_that_a_reload_ignores_leave_the_list_at_once() -> None:
    state = conclude(snapshot_of(clients(50, 8), clients(30, 9)), blank_state(), 0.0)
    state = replace(state, rules=blank_state(ListingRules(ignore_destinations=tuple(IGNORED))).rules)

    assert listed(conclude(snapshot_of(clients(50, 8), clients(30, 9)), state, 5.0)) == [toward(9)]


def test_pools_of_several_namespaces_are_ordered_by_utilisation_not_by_ports() -> None:
    small = make_namespace(make_tcp(clients(9, 7)), make_sysctls(40000, 40009), netns="small", inode=1)
    large = make_namespace(make_tcp(clients(90, 8)), make_sysctls(40000, 40999), netns="large", inode=2)
    state = conclude(make_snapshot(large, small), blank_state(ListingRules(top=1, min_in_use=1)), 0.0)

    assert listed(state) == [toward(7)._replace(netns="small")]
    assert [one.worst[CONNECT] for one in state.report.namespaces] == [0.09, 0.9]
    assert [one.listed[CONNECT] for one in state.report.namespaces] == [0, 1]


@given(st.integers())
def test_the_order_of_the_sockets_does_not_matter_even_among_equals(seed: int) -> None:
    rows = [clients(10, host, port=port) for host in range(1, 6) for port in (443, 444)]
    shuffled = Random(seed).sample(rows, len(rows))
    one, other = (conclude(snapshot_of(*mixed), blank_state(ListingRules(top=3)), 0.0) for mixed in (rows, shuffled))

    assert one == other
    assert listed(one) == [toward(1), toward(1, 444), toward(2)]


def test_every_pool_is_reported_worst_first_whatever_it_holds() -> None:
    surveys = survey(snapshot_of(clients(1, 7), clients(3, 8), clients(2, 9)))

    assert [pool.key for pool in every_pool(surveys, ()) if pool.key.kind == CONNECT] == [
        toward(8),
        toward(9),
        toward(7),
    ]


def test_equal_pools_have_one_order_whether_all_are_shown_or_the_worst_are_chosen() -> None:
    """By address and port as numbers, not as text: 10.0.0.9 comes before 10.0.0.10."""
    rows = [clients(2, host, port=port) for host in (10, 9, 100) for port in (5432, 443)]
    (one,) = surveys = survey(snapshot_of(*rows))
    expected = [toward(host, port) for host in (9, 10, 100) for port in (443, 5432)]

    assert [pool.key for pool in every_pool(surveys, ()) if pool.key.kind == CONNECT] == expected
    chosen = [entry.pools.pool(entry.key).key for entry in one.worst((), number=100)]
    assert [key for key in chosen if key.kind == CONNECT] == expected


def test_sixty_thousand_pools_are_counted_and_few_are_listed_and_remembered() -> None:
    """Somebody who picks destinations: all other ones in the second poll, and again others in the third."""
    state = blank_state(ListingRules(min_in_use=1))
    for poll in range(3):
        rows = (clients(1, 9 + poll, port=port) for port in range(1, 60_001))
        state = conclude(snapshot_of(*rows), state, 5.0 * poll)
        (namespace,) = state.report.namespaces

        assert (namespace.pools[CONNECT], namespace.listed[CONNECT]) == (60_000, len(state.report.listed))
        assert len(state.report.listed) == (50 if poll < 2 else 0)
        assert len(state.listing.newcomers.seen) <= 150
        assert len(state.listing.newcomers.entries) <= 50


# What is kept from poll to poll


def test_the_peak_is_that_of_the_window() -> None:
    state = blank_state(ListingRules(peak_window_seconds=60.0))
    for now, number, peak in [(0.0, 20, 0.2), (5.0, 90, 0.9), (10.0, 30, 0.9), (64.9, 10, 0.9), (65.0, 10, 0.3)]:
        state = conclude(snapshot_of(clients(number)), state, now)

        assert peaks(state) == [peak]
    assert peaks(conclude(snapshot_of(clients(40)), state, 70.0)) == [0.4]


def test_polls_are_counted_by_scope_and_failures_by_reason() -> None:
    late = Reason.DEADLINE
    totals = PollTotals().counted().counted(failure=late).counted(Poll.NARROW).counted(failure=late)

    assert totals.polls == {"full": 3, "narrow": 1}
    assert totals.failures == dict.fromkeys(POLL_FAILURES, 0) | {"deadline": 2}


def test_every_counter_of_polls_is_there_from_the_beginning() -> None:
    """A counter that is born at its first failure has no increase that Prometheus could see."""
    assert PollTotals().polls == {"full": 0, "narrow": 0}
    assert set(PollTotals().failures) == set(POLL_FAILURES)


def test_a_failed_poll_keeps_the_facts_and_counts() -> None:
    good = conclude(snapshot_of(clients(30)), blank_state(), 1000.0)
    failed = after_failed_poll(good, "The kernel said no.", Reason.KERNEL, 5.0)

    assert failed == good.with_report(
        success=False,
        error="The kernel said no.",
        duration_seconds=5.0,
        totals=PollTotals().counted().counted(failure=Reason.KERNEL),
    )
    assert (failed.report.taken_at, failed.report.taken_at_monotonic) == (TAKEN_AT, 1000.0)
    assert listed(failed) == [toward(9)]


def test_a_first_poll_that_fails_knows_nothing() -> None:
    failed = after_failed_poll(blank_state(), "The kernel said no.", Reason.KERNEL, 5.0).report

    assert (failed.success, failed.taken_at, failed.taken_at_monotonic) == (False, None, None)
    assert (failed.namespaces, failed.listed) == ((), ())
    assert failed.totals == PollTotals().counted(failure=Reason.KERNEL)


def test_a_good_poll_takes_the_error_back_and_goes_on_where_the_last_good_one_left() -> None:
    good = conclude(snapshot_of(clients(30)), blank_state(), 0.0)
    failed = after_failed_poll(after_failed_poll(good, "No.", Reason.KERNEL, 5.0), "No.", Reason.DEADLINE, 5.0)
    again = conclude(snapshot_of(clients(10)), failed, 15.0)

    assert (again.report.success, again.report.error, peaks(again)) == (True, None, [0.3])
    assert again.report.totals.polls["full"] == 4
    assert {reason for reason, number in again.report.totals.failures.items() if number == 1} == {"kernel", "deadline"}
    assert again.listing.newcomers.entries == ()


# --- narrow polls -------------------------------------------------------------------------------------------------


def narrow(*rows: Sockets, taken_at: float = TAKEN_AT + 1, reserved: tuple[int, ...] = ()) -> NarrowSnapshot:
    """Return what a narrow poll read of the destination 10.0.0.9:443."""
    sysctls = make_sysctls(reserved=reserved)
    return make_narrow(rows, taken_at=taken_at, sysctls=sysctls, destinations=[(packed("10.0.0.9"), 443)])


def test_a_narrow_poll_refreshes_its_pools_alone() -> None:
    full = conclude(make_snapshot(make_namespace(make_tcp(clients(80), clients(20, host=8)))), blank_state(), 100.0)
    state = after_narrow_poll(narrow(clients(95)), full, 101.0)
    assert state is not None
    pools = {one.pool.key.destination: one for one in state.report.listed}

    assert (pools["10.0.0.9"].pool.in_use, pools["10.0.0.9"].pool.taken_at) == (95, TAKEN_AT + 1)
    assert (pools["10.0.0.8"].pool.in_use, pools["10.0.0.8"].pool.taken_at) == (20, TAKEN_AT)
    assert state.report.namespaces[0].worst[CONNECT] == pytest.approx(0.95)
    assert state.report.taken_at == TAKEN_AT
    assert state.report.totals.polls == {"full": 1, "narrow": 1}


def test_a_narrow_poll_remembers_peaks_and_keeps_the_blocked_ports_of_the_full_one() -> None:
    tcp = make_tcp(clients(80), listening("10.0.0.1", range(40_095, 40_100)))
    full = conclude(make_snapshot(make_namespace(tcp)), blank_state(), 100.0)
    state = after_narrow_poll(narrow(clients(10)), full, 101.0)
    assert state is not None
    (one,) = state.report.listed

    assert (one.pool.blocked, one.pool.in_use) == (5, 10)
    assert one.peak_utilisation == pytest.approx(0.85)


def test_a_pool_that_a_narrow_poll_finds_empty_is_empty() -> None:
    full = conclude(make_snapshot(make_namespace(make_tcp(clients(80)))), blank_state(), 100.0)
    state = after_narrow_poll(narrow(), full, 101.0)
    assert state is not None

    assert [(one.pool.in_use, one.pool.remaining) for one in state.report.listed] == [(0, 100)]


def test_a_narrow_poll_after_a_change_of_the_sysctls_calls_for_a_full_one() -> None:
    full = conclude(make_snapshot(make_namespace(make_tcp(clients(80)))), blank_state(), 100.0)

    assert after_narrow_poll(narrow(clients(80), reserved=(40_000,)), full, 101.0) is None
    assert after_narrow_poll(narrow(clients(80)), blank_state(), 101.0) is None


def test_a_pool_above_its_warning_threshold_sets_the_pace() -> None:
    full = conclude(make_snapshot(make_namespace(make_tcp(clients(80)))), blank_state(), 100.0)

    assert watch_of(full) == Watch(destinations=(Destination(OWN_NETNS, packed("10.0.0.9"), 443),))
    assert with_pace(replace(full, costs=Costs(full=(0.01,)))).report.pace == Pace(full=5.0, narrow=1.0)
    assert with_pace(replace(blank_state(), costs=Costs(full=(0.01,)))).report.pace == Pace(full=5.0)


def test_where_evidence_is_dear_and_settles_little_three_polls_count_after_each_that_gathers_it() -> None:
    tcp = make_tcp(connected("10.0.0.1", range(LOW, LOW + 40, 2), "10.0.0.9", 443))
    evidence = make_snapshot(make_namespace(tcp))
    counting = make_snapshot(make_namespace(replace(tcp, has_evidence=False)))
    dear = Costs(full=(1.0,), counting=(0.6,))
    state = blank_state()
    kinds = []
    for now in range(6):
        kinds.append(next_full_poll(state))
        snapshot = evidence if kinds[-1] is Poll.FULL else counting
        state = with_pace(replace(conclude(snapshot, state, float(now)), costs=dear))

    assert kinds == [Poll.FULL, Poll.COUNTING, Poll.COUNTING, Poll.COUNTING, Poll.FULL, Poll.COUNTING]
    assert state.report.pace.full == pytest.approx(35.0)
    assert state.report.totals.polls["full"] == 6


def test_a_poll_that_only_counts_claims_no_exactness_of_the_ports_that_bind_has_left() -> None:
    """The program has bound a second port meanwhile, which is not seen."""
    one = replace(make_tcp(bound("10.0.0.1", LOW)), bound_to_any_port=frozenset({packed("10.0.0.1")}))
    state = conclude(make_snapshot(make_namespace(one)), blank_state(ListingRules(min_in_use=0)), 0.0)
    counting = make_snapshot(make_namespace(replace(make_tcp(), has_evidence=False)))
    state = conclude(counting, state, 5.0)

    assert [(one.pool.key.kind, one.pool.exact) for one in state.report.listed] == [(PoolKind.TCP_BIND, False)]


def test_where_evidence_settles_the_ports_every_poll_gathers_it() -> None:
    state = conclude(snapshot_of(clients(20)), blank_state(), 0.0)

    assert with_pace(replace(state, costs=Costs(full=(1.0,), counting=(0.6,)))).report.pace.polls_per_evidence == 1


def test_a_narrow_poll_claims_no_exactness_because_it_did_not_look_at_what_blocks() -> None:
    full = conclude(make_snapshot(make_namespace(make_tcp(clients(80)))), blank_state(), 100.0)
    state = after_narrow_poll(narrow(clients(80)), full, 101.0)
    assert state is not None
    (before,), (after,) = full.report.listed, state.report.listed

    assert (before.pool.exact, before.pool.remaining_min, before.pool.remaining_max) == (True, 20, 20)
    assert (after.pool.exact, after.pool.remaining_min, after.pool.remaining_max) == (False, 0, 20)


def test_the_worst_of_the_unlisted_pools_stays_the_worst_between_full_polls() -> None:
    tcp = make_tcp(clients(80), clients(95, host=8))
    full = conclude(make_snapshot(make_namespace(tcp)), blank_state(ListingRules(top=1)), 100.0)
    crowded_out = conclude(
        make_snapshot(make_namespace(make_tcp(clients(80), clients(95, host=8), clients(99, host=7)))),
        full,
        101.0,
    )
    state = after_narrow_poll(narrow(clients(80)), crowded_out, 102.0)
    assert state is not None

    assert [one.pool.key.destination for one in crowded_out.report.listed] == ["10.0.0.7"]
    assert state.report.namespaces[0].worst[CONNECT] == pytest.approx(0.99)


def test_what_a_listener_accepted_is_no_destination_after_it_has_gone_if_the_port_is_known_to_be_blocked() -> None:
    """Otherwise connect() may have taken the port since, so what is there counts."""
    accepted = [connected("10.0.0.1", 40_000, f"10.0.0.{host}", 50_000) for host in range(7, 20)]
    listening_now = make_tcp(*accepted, listening("10.0.0.1", 40_000))
    before = conclude(make_snapshot(make_namespace(listening_now)), blank_state(), 100.0)
    snapshot = make_snapshot(make_namespace(make_tcp(*accepted)))
    inode = snapshot.namespaces[0].inode

    def destinations(answers: Mapping[int, bool]) -> int:
        after = conclude(snapshot, before, 105.0, classify_with_memory(snapshot, before, {inode: answers}))
        return after.report.namespaces[0].pools[CONNECT]

    assert before.report.namespaces[0].pools[CONNECT] == 0
    assert destinations({40_000: False}) == 0
    assert destinations({40_000: True}) == destinations({}) == len(accepted)


def test_without_inet_diag_there_are_no_narrow_polls() -> None:
    full = conclude(make_snapshot(make_namespace(make_tcp(clients(80)))), blank_state(), 100.0)

    by_procfs = replace(full.report.namespaces[0], backends={Protocol.TCP: Backend.PROCFS})

    assert watch_of(full.with_report(namespaces=(by_procfs,))) == Watch(everything=True)


def test_the_watched_destinations_of_a_namespace_are_those_of_that_namespace_alone() -> None:
    """Two namespaces with the same addresses: the pool of one is full, the other is idle."""
    full, idle = (
        make_namespace(make_tcp(clients(80)), netns="full", inode=1),
        make_namespace(make_tcp(clients(1))),
    )
    state = conclude(make_snapshot(idle, full), blank_state(), 100.0)

    assert watch_of(state) == Watch(destinations=(Destination("full", packed("10.0.0.9"), 443),))
    refreshed = after_narrow_poll(narrow(clients(95)), state, 101.0)
    assert refreshed is not None
    assert {one.pool.key.netns: one.pool.in_use for one in refreshed.report.listed} == {"full": 80}


def test_a_protocol_that_is_missing_in_one_namespace_is_missing() -> None:
    """It does not depend on which namespace comes last."""
    blind, seen = (
        make_namespace(None, netns="blind", inode=1, missing="It is refused."),
        make_namespace(make_tcp()),
    )
    for order in ((blind, seen), (seen, blind)):
        report = conclude(make_snapshot(*order), blank_state(), 0.0).report

        assert report.collectors[Collector.TCP] == Health(available=False, reason="It is refused.")
        assert report.missing == {"tcp": "It is refused."}
        assert report.backends[Protocol.TCP] == "inet_diag"
