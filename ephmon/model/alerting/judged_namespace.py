"""What it takes to judge the pools of one namespace, whatever the kind of condition."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ephmon.model.alerting.state_machine import AlertKey, AlertName, Judgement, Signal
from ephmon.model.alerting.thresholds import Severity
from ephmon.model.pools.kinds import share_of_usable

if TYPE_CHECKING:
    from ephmon.model.alerting.blocked import BlockedPorts
    from ephmon.model.alerting.state_machine import Alerts
    from ephmon.model.alerting.thresholds import Threshold, Thresholds
    from ephmon.model.pools.kinds import Pool

TAKE_OVER_MARGIN = 0.05
"""EphmonPortsBlocked takes a pool over whose own alert fires only where blocked ports take so much more of it than its
own connections. Else the two alerts would take turns while both shares are about equal."""

OVER = {severity: Judgement(Signal.BELOW) for severity in Severity}
"""The judgements of an alert that has to end, whatever its figures are."""


class JudgedNamespace(NamedTuple):
    """A namespace at one poll: its blocked ports, the alerts before, and the thresholds."""

    netns: str
    blocked: BlockedPorts | None
    """None where TCP could not be read."""
    previous: Alerts
    thresholds: Thresholds

    @property
    def blocked_key(self) -> AlertKey:
        """The key of EphmonPortsBlocked."""
        return AlertKey(AlertName.PORTS_BLOCKED, self.netns)

    def is_blocked_share_urgent(self) -> bool:
        """Tell whether the blocked share alone reaches a threshold, whatever the pools that it covers do."""
        return self.blocked is not None and self.blocked.severity(self.thresholds) is not None

    def is_covered(self, pool: Pool) -> bool:
        """Tell whether EphmonPortsBlocked is to cover the pool."""
        if self.blocked is None:
            return False
        fires = self.previous.is_firing(AlertKey(AlertName.POOL_NEAR_EXHAUSTION, self.netns, pool.key))
        return self.blocked.covers(pool, self.thresholds, margin=TAKE_OVER_MARGIN if fires else 0.0)

    def has_an_alert_already(self, pool: Pool) -> bool:
        """Tell whether an alert of the pool, or one that covers it, fires by a threshold."""
        key = AlertKey(AlertName.POOL_NEAR_EXHAUSTION, self.netns, pool.key)
        is_covered_now = self.is_covered(pool) and self.previous.is_firing(self.blocked_key)
        return is_covered_now or self.previous.is_firing(key)

    def is_scarce(self, pool: Pool | None) -> bool:
        """Tell whether the pool, or the blocked share, has reached its warning threshold."""
        if self.is_blocked_share_urgent():
            return True
        return pool is not None and self.thresholds.severity_at(pool.key, pool.utilisation) is not None

    def is_full_by_itself(self, pool: Pool | None) -> bool:
        """Tell whether the pool has reached its warning threshold, and not because blocked ports alone have reached it.

        Of a range of five ports, few are many.
        """
        if pool is None or not self.is_blocked_share_urgent():
            return pool is not None and self.is_scarce(pool)
        own_share = share_of_usable(pool.in_use - pool.reusable, pool.usable)
        return own_share >= self.thresholds.of(pool.key)[Severity.WARNING].utilisation


def judge_ratio(value: float, threshold: Threshold, lasting: float = 0.0) -> Judgement:
    """Return the judgement of a ratio; while `lasting` is not clear of the threshold, an alert that fires goes on.

    A pool does not recover by TIME_WAITs that the kernel gives back only if the peer uses timestamps, which nobody has
    seen.
    """
    if value >= threshold.utilisation:
        signal = Signal.REACHED
    else:
        signal = Signal.BETWEEN if max(value, lasting) >= threshold.clear else Signal.BELOW
    return Judgement(signal, threshold.for_seconds)
