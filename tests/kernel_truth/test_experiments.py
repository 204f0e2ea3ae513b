"""The table of experiments: each row is set up, predicted, done, and compared.

Of every draw the number that ephmon said before is held against how many sockets the kernel gave, and the errno too;
afterwards ephmon says 0 once the pool is empty. With the probe, which an ordinary user makes, the number is always
right, and without it where what decides it can be seen; where it cannot, the bounds hold.

The rows on random mixes are in `test_mixes`, those between two hosts in `test_experiments_between_hosts`, those on the
probe in `test_probe_verdicts`. The rows on the order of ports, on counters, events and NAT have no pool to predict.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kernel_truth import address_rows, connect_rows, time_wait_rows
from tests.kernel_truth.experiment import Experiment, Outcome, carry_out

if TYPE_CHECKING:
    from tests.namespaces import Namespace

ROWS = [*connect_rows.ROWS, *address_rows.ROWS, *time_wait_rows.ROWS]


@pytest.mark.parametrize("experiment", [pytest.param(one, id=one.id) for one in ROWS])
def test_row(agent: Namespace, experiment: Experiment) -> None:
    outcomes = agent.call(carry_out, experiment)

    assert outcomes
    for outcome in outcomes:
        check(outcome)


def check(one: Outcome) -> None:
    """Hold one draw against what must come of it."""
    draw = one.draw
    gives = one.count if draw.gives is None else draw.gives
    says = gives if draw.says is None else draw.says
    left = max(0, says - one.ports)

    assert gives - draw.or_fewer <= one.count <= gives
    assert one.failure == (draw.failure or draw.pool_failure)
    assert one.before.failure_errno == draw.pool_failure
    if one.probed and one.probed_after:
        assert (one.probed.remaining, one.probed_after.remaining) == (says, left)
    if one.walked and one.walked_after:
        # The bind table has IPV6_V6ONLY of connected sockets too, which inet_diag does not show.
        number = one.walked.remaining
        assert number == says or (number == gives and not draw.is_outside)
        assert one.walked_after.remaining == max(0, number - one.ports)
        assert draw.is_outside or not one.walked.exact or one.walked.remaining == one.count
    if not draw.is_in_doubt:
        check_estimate(one, says, left)
    if not draw.is_outside:
        check_bounds(one)


def check_estimate(one: Outcome, says: int, left: int) -> None:
    """What ephmon says is the number, but for sockets that this kernel does not show."""
    if one.had_hidden:
        assert one.before.remaining >= says
    else:
        assert one.before.remaining == says
    if one.has_hidden:
        assert one.after.remaining >= left
    else:
        assert (one.after.remaining, one.after.utilisation == 1.0) == (left, left == 0)


def check_bounds(one: Outcome) -> None:
    """The kernel gives what the bounds allow, and exactly what is said to be exact."""
    before = one.before
    assert one.count <= before.remaining_max
    assert one.had_hidden or before.remaining_min <= one.count
    assert not before.exact or before.remaining == one.count
    assert not (one.had_hidden and before.exact)
