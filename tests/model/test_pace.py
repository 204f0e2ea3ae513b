"""How often to poll: what the budget allows, and closer where a pool is about to run out."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ephmon.facts.failed_calls import Destination
from ephmon.facts.namespaces import OWN_NETNS
from ephmon.model.alerting.blocked import BlockedPorts
from ephmon.model.alerting.thresholds import Threshold, ThresholdOverride, Thresholds
from ephmon.model.pace import MOST_WATCHED, BudgetKey, Costs, Pace, Poll, Watch, pace, watch
from ephmon.model.rules import PollingRules
from tests.builders import make_bind_pool, make_pool

RULES = PollingRules(interval_seconds=5.0, urgent_interval_seconds=1.0, cpu_budget=0.02, urgent_cpu_budget=0.25)
NEAR = Watch(destinations=(Destination(OWN_NETNS, bytes([10, 0, 0, 9]), 443),))


def blocked(number: int, usable: int = 100) -> BlockedPorts:
    return BlockedPorts(netns="own", blocked=number, usable=usable)


def test_a_cheap_poll_comes_as_configured() -> None:
    assert pace(RULES, Costs(full=(0.1,)), Watch()) == Pace(full=5.0)


def test_an_expensive_poll_comes_as_often_as_the_budget_allows() -> None:
    assert pace(RULES, Costs(full=(1.0, 1.0, 1.0)), Watch()) == Pace(
        full=50.0, soonest_full=4.0, limited_by=BudgetKey.USUAL
    )


def test_one_expensive_poll_among_three_changes_nothing() -> None:
    assert pace(RULES, Costs(full=(0.05, 9.0, 0.05)), Watch()).full == 5.0


def test_only_the_last_three_polls_count() -> None:
    costs = Costs()
    for seconds in (9.0, 9.0, 0.1, 0.2, 0.3):
        costs = costs.after(Poll.FULL, seconds)

    assert costs == Costs(full=(0.1, 0.2, 0.3))
    assert costs.after(Poll.NARROW, 0.01) == Costs(full=(0.1, 0.2, 0.3), narrow=(0.01,))


def test_expensive_evidence_that_settles_little_is_gathered_at_every_fourth_poll() -> None:
    """A quarter of the polls cost 1.0 s and the others 0.6: 0.7 each on average."""
    chosen = pace(RULES, Costs(full=(1.0,), counting=(0.6,)), Watch(), evidence_settles_much=False)

    assert chosen.full == pytest.approx(35.0)
    assert (chosen.polls_per_evidence, chosen.limited_by) == (4, BudgetKey.USUAL)


def test_before_the_first_poll_that_only_counts_it_is_taken_to_cost_as_much() -> None:
    assert pace(RULES, Costs(full=(1.0,)), Watch(), evidence_settles_much=False).full == 50.0


def test_evidence_is_gathered_at_every_poll_where_it_is_cheap_or_settles_much_or_is_urgent() -> None:
    expensive = Costs(full=(1.0,), counting=(0.6,))

    assert pace(RULES, Costs(full=(0.1,)), Watch(), evidence_settles_much=False).polls_per_evidence == 1
    assert pace(RULES, expensive, Watch(), evidence_settles_much=True).polls_per_evidence == 1
    assert pace(RULES, expensive, NEAR, evidence_settles_much=False).polls_per_evidence == 1
    assert pace(RULES, expensive, Watch(everything=True), evidence_settles_much=False).polls_per_evidence == 1


def test_a_pool_near_its_end_is_watched_in_between() -> None:
    assert pace(RULES, Costs(full=(0.1,), narrow=(0.01,)), NEAR) == Pace(full=5.0, narrow=1.0)


def test_near_the_end_more_may_be_spent_but_not_everything() -> None:
    """An eighth of a core for full polls and an eighth for narrow ones."""
    assert pace(RULES, Costs(full=(1.0,), narrow=(0.25,)), NEAR) == Pace(
        full=8.0, narrow=2.0, soonest=2.0, soonest_full=4.0, limited_by=BudgetKey.URGENT
    )


def test_a_narrow_poll_that_would_not_come_before_the_next_full_one_is_none() -> None:
    assert pace(RULES, Costs(full=(0.5,), narrow=(1.0,)), NEAR).narrow is None


def test_what_no_destination_can_show_is_watched_by_full_polls() -> None:
    assert pace(RULES, Costs(full=(0.1,)), Watch(everything=True)) == Pace(full=1.0)
    assert pace(RULES, Costs(full=(2.0,)), Watch(everything=True)) == Pace(
        full=8.0, soonest_full=8.0, limited_by=BudgetKey.URGENT
    )


RATIOS = st.floats(0.001, 1.0)
SECONDS = st.floats(0.001, 60.0)
COSTS = st.one_of(st.just(()), st.tuples(st.floats(0.0, 20.0)))
ANY_RULES = st.builds(
    PollingRules,
    interval_seconds=SECONDS,
    urgent_interval_seconds=SECONDS,
    cpu_budget=RATIOS,
    urgent_cpu_budget=RATIOS,
)
ANY_COSTS = st.builds(Costs, full=COSTS, counting=COSTS, narrow=COSTS)
URGENT = st.sampled_from([NEAR, Watch(everything=True), replace(NEAR, everything=True)])


@given(ANY_RULES, ANY_COSTS, URGENT, st.booleans())
def test_full_polls_never_come_less_often_because_a_pool_runs_out(
    rules: PollingRules, costs: Costs, watched: Watch, settles_much: bool
) -> None:
    urgent, usual = (pace(rules, costs, some, evidence_settles_much=settles_much).full for some in (watched, Watch()))

    assert urgent <= usual


@given(ANY_RULES, ANY_COSTS, st.one_of(URGENT, st.just(Watch())), st.booleans())
def test_full_polls_come_more_often_if_the_budget_that_limits_them_is_raised(
    rules: PollingRules, costs: Costs, watched: Watch, settles_much: bool
) -> None:
    chosen = pace(rules, costs, watched, evidence_settles_much=settles_much)
    if chosen.limited_by is None:
        assert chosen.full <= rules.interval_seconds
        return
    raised = {
        BudgetKey.USUAL: replace(rules, cpu_budget=2 * rules.cpu_budget),
        BudgetKey.URGENT: replace(rules, urgent_cpu_budget=2 * rules.urgent_cpu_budget),
    }[chosen.limited_by]

    assert rules.interval_seconds < chosen.full
    assert pace(raised, costs, watched, evidence_settles_much=settles_much).full < chosen.full


@given(ANY_RULES, ANY_COSTS, st.one_of(URGENT, st.just(Watch())))
def test_no_pace_uses_more_cpu_than_the_budgets(rules: PollingRules, costs: Costs, watched: Watch) -> None:
    chosen = pace(rules, costs, watched)
    of_full, of_narrow = (sum(one) for one in (costs.full, costs.narrow))
    used = of_full / chosen.full + (of_narrow / chosen.narrow if chosen.narrow else 0.0)
    urgent_budget = rules.urgent_cpu_budget if watched != Watch() else 0.0

    assert used <= max(rules.cpu_budget, urgent_budget) + 1e-9


def test_a_large_usual_budget_is_used_while_a_pool_runs_out_too() -> None:
    """An eighth of a core, which is half of the urgent budget, would give 8 s instead of 5."""
    rules = replace(RULES, cpu_budget=0.20)

    assert pace(rules, Costs(full=(1.0,), narrow=(0.01,)), NEAR) == Pace(full=5.0, narrow=1.0, soonest_full=4.0)
    assert pace(rules, Costs(full=(2.0,)), NEAR).limited_by is BudgetKey.USUAL


def test_polls_that_mostly_count_go_on_where_evidence_at_every_poll_would_make_them_rarer() -> None:
    rules = replace(RULES, cpu_budget=0.10)
    costs = Costs(full=(1.0,), counting=(0.2,))

    assert pace(rules, costs, NEAR, evidence_settles_much=False).full == 5.0
    assert pace(rules, costs, NEAR, evidence_settles_much=False).polls_per_evidence == 4
    assert pace(rules, costs, NEAR, evidence_settles_much=True).full == 8.0


def test_there_are_no_narrow_polls_where_full_ones_use_the_whole_urgent_budget() -> None:
    """One that connect() asks for because it failed may come all the same."""
    chosen = pace(replace(RULES, cpu_budget=0.25), Costs(full=(2.0,), narrow=(0.01,)), NEAR)

    assert (chosen.narrow, chosen.soonest) == (None, 1.0)


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
