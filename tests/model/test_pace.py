"""How often to poll: what the budget allows, and closer where a pool is about to run out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ephmon.facts.failed_calls import Destination
from ephmon.facts.namespaces import OWN_NETNS
from ephmon.model.alerting.blocked import BlockedPorts
from ephmon.model.alerting.thresholds import Threshold, ThresholdOverride, Thresholds
from ephmon.model.pace import MOST_WATCHED, Costs, Pace, Poll, Watch, pace, watch
from ephmon.model.rules import PollingRules
from tests.builders import make_bind_pool, make_pool

RULES = PollingRules(interval_seconds=5.0, urgent_interval_seconds=1.0, cpu_budget=0.02, urgent_cpu_budget=0.25)
NEAR = Watch(destinations=(Destination(OWN_NETNS, bytes([10, 0, 0, 9]), 443),))


def blocked(number: int, usable: int = 100) -> BlockedPorts:
    return BlockedPorts(netns="own", blocked=number, usable=usable)


def test_a_cheap_poll_comes_as_configured() -> None:
    assert pace(RULES, Costs(full=(0.1,)), Watch()) == Pace(full=5.0)


def test_a_dear_poll_comes_as_often_as_the_budget_allows() -> None:
    assert pace(RULES, Costs(full=(1.0, 1.0, 1.0)), Watch()) == Pace(full=50.0, is_stretched=True)


def test_one_dear_poll_among_three_changes_nothing() -> None:
    assert pace(RULES, Costs(full=(0.05, 9.0, 0.05)), Watch()).full == 5.0


def test_only_the_last_three_polls_count() -> None:
    costs = Costs()
    for seconds in (9.0, 9.0, 0.1, 0.2, 0.3):
        costs = costs.after(Poll.FULL, seconds)

    assert costs == Costs(full=(0.1, 0.2, 0.3))
    assert costs.after(Poll.NARROW, 0.01) == Costs(full=(0.1, 0.2, 0.3), narrow=(0.01,))


def test_dear_evidence_that_settles_little_is_gathered_at_every_fourth_poll() -> None:
    """A quarter of the polls cost 1.0 s and the others 0.6: 0.7 each on average."""
    chosen = pace(RULES, Costs(full=(1.0,), counting=(0.6,)), Watch(), evidence_settles_much=False)

    assert chosen.full == pytest.approx(35.0)
    assert (chosen.polls_per_evidence, chosen.is_stretched) == (4, True)


def test_before_the_first_poll_that_only_counts_it_is_taken_to_cost_as_much() -> None:
    assert pace(RULES, Costs(full=(1.0,)), Watch(), evidence_settles_much=False).full == 50.0


def test_evidence_is_gathered_at_every_poll_where_it_is_cheap_or_settles_much_or_is_urgent() -> None:
    dear = Costs(full=(1.0,), counting=(0.6,))

    assert pace(RULES, Costs(full=(0.1,)), Watch(), evidence_settles_much=False).polls_per_evidence == 1
    assert pace(RULES, dear, Watch(), evidence_settles_much=True).polls_per_evidence == 1
    assert pace(RULES, dear, NEAR, evidence_settles_much=False).polls_per_evidence == 1
    assert pace(RULES, dear, Watch(everything=True), evidence_settles_much=False).polls_per_evidence == 1


def test_a_pool_near_its_end_is_watched_in_between() -> None:
    assert pace(RULES, Costs(full=(0.1,), narrow=(0.01,)), NEAR) == Pace(full=5.0, narrow=1.0)


def test_near_the_end_more_may_be_spent_but_not_everything() -> None:
    """An eighth of a core for full polls and an eighth for narrow ones."""
    assert pace(RULES, Costs(full=(1.0,), narrow=(0.25,)), NEAR) == Pace(
        full=8.0, narrow=2.0, soonest=2.0, is_stretched=True
    )


def test_a_narrow_poll_that_would_not_come_before_the_next_full_one_is_none() -> None:
    assert pace(RULES, Costs(full=(0.5,), narrow=(1.0,)), NEAR).narrow is None


def test_what_no_destination_can_show_is_watched_by_full_polls() -> None:
    assert pace(RULES, Costs(full=(0.1,)), Watch(everything=True)) == Pace(full=1.0)
    assert pace(RULES, Costs(full=(2.0,)), Watch(everything=True)) == Pace(full=8.0, is_stretched=True)


@given(st.floats(0.0, 20.0), st.floats(0.0, 20.0), st.booleans(), st.booleans())
def test_no_pace_spends_more_than_the_urgent_budget(full: float, narrow: float, everything: bool, near: bool) -> None:
    watched = Watch(destinations=NEAR.destinations if near else (), everything=everything)
    chosen = pace(RULES, Costs(full=(full,), narrow=(narrow,)), watched)
    spent = full / chosen.full + (narrow / chosen.narrow if chosen.narrow else 0.0)
    budget = RULES.urgent_cpu_budget if everything or near else RULES.cpu_budget

    assert spent <= budget + 1e-9


def test_a_pool_is_watched_from_its_own_warning_threshold_on() -> None:
    strict = Threshold(utilisation=0.3, for_seconds=0.0, clear=0.2)
    thresholds = Thresholds(overrides=(ThresholdOverride(destination_port=5432, warning=strict),))
    calm = make_pool(usable=100, in_use=40, destination_port=443)
    strictly = make_pool(usable=100, in_use=40, destination_port=5432)

    assert watch([calm, strictly], [blocked(0)], thresholds).destinations == (
        Destination(OWN_NETNS, bytes([10, 0, 0, 9]), 5432),
    )


def test_pools_of_several_sources_toward_one_destination_are_watched_once() -> None:
    pools = [make_pool(usable=100, in_use=95, source=f"10.0.0.{number}") for number in range(1, 4)]

    assert len(watch(pools, [], Thresholds()).destinations) == 1


def test_no_more_destinations_are_watched_than_a_filter_should_hold() -> None:
    pools = [make_pool(usable=100, in_use=95, destination_port=port) for port in range(1, 100)]

    assert [one.port for one in watch(pools, [], Thresholds()).destinations] == list(range(1, MOST_WATCHED + 1))


@pytest.mark.parametrize(("number", "everything"), [(69, False), (70, True)])
def test_many_blocked_ports_need_full_polls(number: int, *, everything: bool) -> None:
    assert watch([], [blocked(0), blocked(number)], Thresholds()) == Watch(everything=everything)


def test_a_namespace_without_a_usable_port_needs_full_polls() -> None:
    assert watch([], [blocked(0, usable=0)], Thresholds()) == Watch(everything=True)


def test_a_full_pool_without_a_destination_needs_full_polls() -> None:
    assert watch([make_bind_pool(in_use=27_000)], [], Thresholds()).everything
