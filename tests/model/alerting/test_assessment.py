"""The assessment of one poll: what reached a threshold, in which order, and which pools blocked ports cover."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from typing import TYPE_CHECKING

import pytest

from ephmon.facts.sockets import TcpState
from ephmon.model.alerting.assessment import Assessment, Finding, assess_host, assess_pool, with_limits
from ephmon.model.alerting.blocked import BlockedPorts
from ephmon.model.alerting.thresholds import Severity, Threshold, ThresholdOverride, Thresholds
from ephmon.model.pools.kinds import PoolKind
from ephmon.model.pools.survey import survey
from ephmon.model.rules import DestinationPattern
from tests.builders import make_pool
from tests.model.facts import (
    LOW,
    clients,
    connected,
    listeners,
    make_namespace,
    make_snapshot,
    make_sysctls,
    make_tcp,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ephmon.facts.snapshot import NamespaceSnapshot
    from tests.model.facts import Sockets

WARNING, CRITICAL = Severity.WARNING, Severity.CRITICAL


def at(utilisation: float) -> Threshold:
    return Threshold(utilisation=utilisation, for_seconds=60.0, clear=utilisation - 0.05)


def assessed(
    *rows: Sockets, thresholds: Thresholds | None = None, ignored: Sequence[DestinationPattern] = ()
) -> Assessment:
    return assess([make_namespace(make_tcp(*rows))], thresholds, ignored)


def assess(
    namespaces: Iterable[NamespaceSnapshot],
    thresholds: Thresholds | None = None,
    ignored: Sequence[DestinationPattern] = (),
) -> Assessment:
    return assess_host(survey(make_snapshot(*namespaces)), thresholds or Thresholds(), ignored)


def shown(findings: Iterable[Finding]) -> list[tuple[str | None, Severity | None]]:
    """Return the destination of each finding, or `blocked`, and how urgent it is."""
    return [
        ("blocked" if isinstance(one.subject, BlockedPorts) else one.subject.key.destination, one.severity)
        for one in findings
    ]


def test_what_reached_a_threshold_comes_the_most_urgent_first() -> None:
    rows = [clients(number, host) for host, number in ((1, 75), (2, 95), (3, 69), (4, 70), (5, 90))]

    assert shown(assessed(*rows).urgent) == [
        ("10.0.0.2", CRITICAL),
        ("10.0.0.5", CRITICAL),
        ("10.0.0.1", WARNING),
        ("10.0.0.4", WARNING),
    ]


def test_an_override_makes_less_more_urgent() -> None:
    override = ThresholdOverride(destination=ip_network("10.0.0.1/32"), warning=at(0.1), critical=at(0.2))
    assessment = assessed(clients(25, 1), clients(80, 2), thresholds=Thresholds(overrides=(override,)))

    assert shown(assessment.urgent) == [("10.0.0.1", CRITICAL), ("10.0.0.2", WARNING)]
    assert assessment.fullest is not None
    assert shown([assessment.fullest]) == [("10.0.0.2", WARNING)]


def test_where_nothing_is_urgent_the_fullest_pool_is_the_worst() -> None:
    assessment = assessed(clients(20, 1), clients(30, 2))

    assert assessment.urgent == ()
    assert assessment.worst == assessment.fullest
    assert assessment.worst is not None
    assert shown([assessment.worst]) == [("10.0.0.2", None)]


def test_without_a_pool_there_is_nothing_but_the_blocked_share() -> None:
    assessment = assessed()

    assert (assessment.urgent, assessment.worst) == ((), None)
    assert assessment.blocked is not None
    assert assessment.blocked.ratio == 0.0


def test_what_is_ignored_is_not_judged() -> None:
    ignored = [DestinationPattern(network=ip_network("10.0.0.2/32"))]

    assert shown(assessed(clients(75, 1), clients(95, 2), ignored=ignored).urgent) == [("10.0.0.1", WARNING)]


def test_blocked_ports_cover_the_pools_that_they_lift() -> None:
    assessment = assessed(listeners(70), clients(5, 1), clients(25, 2))

    assert shown(assessment.urgent) == [("blocked", CRITICAL)], "95 of 100 ports are gone for 10.0.0.2"
    assert [pool.key.destination for pool in assessment.urgent[0].covered] == ["10.0.0.2", "10.0.0.1"]
    assert assessment.urgent[0].reached is None, "critical is not what the share itself is"
    assert assessment.urgent[0].ratio == 0.7


def test_a_pool_that_uses_more_than_is_blocked_speaks_for_itself() -> None:
    thresholds = Thresholds(warning=at(0.35), critical=at(0.5))
    assessment = assessed(listeners(35), clients(40, 1), clients(34, 2), thresholds=thresholds)

    assert shown(assessment.urgent) == [("10.0.0.1", CRITICAL), ("blocked", CRITICAL)]


def test_ports_that_are_handed_out_again_are_not_used() -> None:
    """Of 40 ports of a pool 30 are in TIME_WAIT on loopback, so that it uses less than is blocked.

    That these lead to two destinations tells that connect() chose their ports.
    """
    waiting = [
        connected("127.0.0.1", range(LOW + 10, LOW + 40), "127.0.0.1", port, state=TcpState.TIME_WAIT, left_ms=30_000)
        for port in (80, 81)
    ]
    live = connected("127.0.0.1", range(LOW, LOW + 10), "127.0.0.1", 80, no_port=True)
    assessment = assessed(listeners(35), *waiting, live, thresholds=Thresholds(warning=at(0.35), critical=at(0.9)))

    assert shown(assessment.urgent) == [("blocked", WARNING)]
    assert [(pool.in_use, pool.reusable) for pool in assessment.urgent[0].covered] == [(40, 30), (30, 30)]


def test_few_blocked_ports_cover_no_pool() -> None:
    assessment = assessed(listeners(50), clients(45, 1))

    assert shown(assessment.urgent) == [("10.0.0.1", CRITICAL)]


def test_with_nothing_usable_everything_is_blocked() -> None:
    namespace = make_namespace(make_tcp(), make_sysctls(reserved=range(LOW, LOW + 100)))

    assert shown(assess([namespace]).urgent) == [("blocked", CRITICAL)]


def test_without_tcp_there_is_no_blocked_share() -> None:
    assessment = assess([make_namespace(None)])

    assert (assessment.urgent, assessment.fullest, assessment.blocked) == ((), None, None)


def test_every_namespace_counts() -> None:
    calm, full = (
        make_namespace(make_tcp(clients(number)), netns=name, inode=inode)
        for number, name, inode in ((75, "own", 1), (95, "blue", 2))
    )
    blocked = make_namespace(make_tcp(listeners(80)), netns="green", inode=3)
    assessment = assess([calm, full, blocked])

    assert shown(assessment.urgent) == [("10.0.0.9", CRITICAL), ("blocked", WARNING), ("10.0.0.9", WARNING)]
    assert assessment.fullest is not None
    assert assessment.blocked is not None
    assert (assessment.fullest.ratio, assessment.blocked.ratio) == (0.95, 0.8)


@pytest.mark.parametrize(("in_use", "severity"), [(69, None), (70, WARNING), (89, WARNING), (90, CRITICAL)])
def test_one_pool_is_judged_without_waiting(in_use: int, severity: Severity | None) -> None:
    """`for` is a minute here."""
    pool = make_pool(usable=100, blocked=0, in_use=in_use)
    assessment = assess_pool(pool, make_sysctls(), Thresholds(warning=at(0.7), critical=at(0.9)))

    assert assessment.worst is not None
    assert (assessment.worst.subject, assessment.worst.severity, assessment.blocked) == (pool, severity, None)
    assert len(assessment.urgent) == (severity is not None)


def test_limits_hold_for_every_pool_and_leave_the_other_severity() -> None:
    override = ThresholdOverride(kind=PoolKind.TCP_CONNECT, warning=at(0.2), critical=at(0.4))
    thresholds = Thresholds(warning=at(0.7), critical=at(0.9), overrides=(override,))
    key = make_pool().key

    def ratios(warning: float | None, critical: float | None) -> dict[str, float]:
        of_key = with_limits(thresholds, warning=warning, critical=critical).of(key)
        return {severity: threshold.utilisation for severity, threshold in of_key.items()}

    assert ratios(None, None) == {"warning": 0.2, "critical": 0.4}
    assert ratios(0.3, None) == {"warning": 0.3, "critical": 0.4}
    assert ratios(None, 0.8) == {"warning": 0.2, "critical": 0.8}
    assert ratios(0.03, 0.04) == {"warning": 0.03, "critical": 0.04}
    assert with_limits(thresholds, warning=None, critical=None) == thresholds
    assert with_limits(thresholds, warning=0.03, critical=None).warning == replace(at(0.7), utilisation=0.03, clear=0.0)
