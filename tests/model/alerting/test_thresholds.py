"""Which thresholds a pool gets, and which of them its utilisation reaches."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from ephmon.model.alerting.thresholds import Severity, Threshold, ThresholdOverride, Thresholds
from ephmon.model.pools.kinds import PoolKey, PoolKind

CONNECT = PoolKey("own", PoolKind.TCP_CONNECT, "10.0.0.1", "10.1.2.3", 5432)
BIND = PoolKey("own", PoolKind.TCP_BIND, "2001:db8::1", None, None)

LOW = Threshold(utilisation=0.3, for_seconds=0.0, clear=0.2)
HALF = Threshold(utilisation=0.5, for_seconds=0.0, clear=0.4)


@pytest.mark.parametrize(
    ("override", "connect", "bind"),
    [
        (ThresholdOverride(), True, True),
        (ThresholdOverride(kind="tcp_connect"), True, False),
        (ThresholdOverride(source=ip_network("10.0.0.0/24")), True, False),
        (ThresholdOverride(source=ip_network("2001:db8::/32")), False, True),
        (ThresholdOverride(destination=ip_network("10.0.0.0/8")), True, False),
        (ThresholdOverride(destination=ip_network("0.0.0.0/0")), True, False),
        (ThresholdOverride(destination_port=5432), True, False),
        (ThresholdOverride(destination_port=5433), False, False),
        (ThresholdOverride(destination=ip_network("10.0.0.0/8"), destination_port=443), False, False),
        (
            ThresholdOverride(destination=ip_network("10.0.0.0/8"), destination_port=5432, kind="tcp_connect"),
            True,
            False,
        ),
    ],
)
def test_override_matches_a_pool_that_meets_every_condition(
    override: ThresholdOverride, connect: bool, bind: bool
) -> None:
    assert override.matches(CONNECT) is connect
    assert override.matches(BIND) is bind


def test_first_override_that_matches_wins_and_leaves_the_rest_general() -> None:
    thresholds = Thresholds(
        overrides=(
            ThresholdOverride(destination_port=443, critical=LOW),
            ThresholdOverride(destination_port=5432, critical=HALF),
            ThresholdOverride(warning=LOW, critical=LOW),
        )
    )

    assert thresholds.of(CONNECT) == {Severity.CRITICAL: HALF, Severity.WARNING: thresholds.warning}
    assert thresholds.of(BIND) == {Severity.CRITICAL: LOW, Severity.WARNING: LOW}


@pytest.mark.parametrize(
    ("utilisation", "severity"),
    [(0.0, None), (0.6999, None), (0.7, "warning"), (0.8999, "warning"), (0.9, "critical"), (1.0, "critical")],
)
def test_severity_is_the_most_urgent_one_reached(utilisation: float, severity: str | None) -> None:
    assert Thresholds().severity_at(CONNECT, utilisation) == severity
