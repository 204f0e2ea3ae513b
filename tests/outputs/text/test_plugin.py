"""The answer of a plugin: its first line, the lines below it, and that nothing in them ends the text early."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ephmon.model.advice.causes import Advice
from ephmon.model.alerting.assessment import Assessment, Finding, assess_pool
from ephmon.model.alerting.blocked import BlockedPorts
from ephmon.model.alerting.thresholds import Severity, Thresholds
from ephmon.outputs.text.plugin import Status, answer, failure
from tests.builders import make_bind_pool, make_pool
from tests.model.facts import make_sysctls

if TYPE_CHECKING:
    from ephmon.model.pools.kinds import Pool

GENERAL = Thresholds()
TOWARD = "tcp_connect from 10.0.0.1 to"


def of(pool: Pool) -> Finding:
    (finding,) = filter(None, [assess_pool(pool, make_sysctls(), GENERAL).fullest])
    return finding


def pool_at(percent: int, host: int = 9) -> Finding:
    return of(make_pool(usable=100, blocked=0, in_use=percent, destination=f"10.0.0.{host}"))


def blocked(share: BlockedPorts, severity: Severity, *covered: Pool) -> Finding:
    thresholds = {Severity.CRITICAL: GENERAL.critical, Severity.WARNING: GENERAL.warning}
    return Finding(subject=share, severity=severity, thresholds=thresholds, sysctls=make_sysctls(), covered=covered)


def test_the_worst_is_reported_first_and_some_of_the_rest_below() -> None:
    findings = tuple(pool_at(95 - host, host) for host in range(8))
    got = answer(Assessment(urgent=findings, fullest=findings[0]), advice=None)

    first, *rest = got.text.splitlines()
    assert got.status is Status.CRITICAL
    assert first == (
        f"EPHMON CRITICAL - {TOWARD} 10.0.0.0:443 is at 95.0% (critical from 90.0%), 5 of 100 ports are left"
        " | utilisation=0.95;0.7;0.9;0;1 remaining=5;;;0;100"
    )
    assert rest == [
        f"CRITICAL: {TOWARD} 10.0.0.1:443 is at 94.0% (critical from 90.0%), 6 of 100 ports are left.",
        f"CRITICAL: {TOWARD} 10.0.0.2:443 is at 93.0% (critical from 90.0%), 7 of 100 ports are left.",
        f"CRITICAL: {TOWARD} 10.0.0.3:443 is at 92.0% (critical from 90.0%), 8 of 100 ports are left.",
        f"CRITICAL: {TOWARD} 10.0.0.4:443 is at 91.0% (critical from 90.0%), 9 of 100 ports are left.",
        f"CRITICAL: {TOWARD} 10.0.0.5:443 is at 90.0% (critical from 90.0%), 10 of 100 ports are left.",
        "2 more reached a threshold.",
    ]


def test_a_long_search_of_the_fullest_pool_is_told_and_changes_no_status() -> None:
    dear = of(make_pool(usable=28_232, blocked=0, in_use=14_500, search_ports=14_117.2))
    got = answer(Assessment(urgent=(), fullest=dear), advice=None)

    assert got.status is Status.OK
    assert got.text.splitlines()[1:] == [
        f"Each connect() of {TOWARD} 10.0.0.9:443 looks at about 14117 ports to find one."
    ]
    assert answer(Assessment(urgent=(), fullest=pool_at(50)), advice=None).text.count("\n") == 1


def test_advice_stands_at_the_end() -> None:
    advice = Advice(cause="It leaks.", steps=("Close.", "Restart."), avoid="Do not wait.")
    assessment = Assessment(urgent=(pool_at(75),), fullest=pool_at(75))

    assert answer(assessment, advice=advice, remarks=["Not all is seen."]).text.splitlines()[1:] == [
        "Not all is seen.",
        "Likely cause: It leaks.",
        "  1. Close.",
        "  2. Restart.",
        "Do not wait.",
    ]


def test_what_is_missing_makes_unknown_of_ok_and_of_nothing_else() -> None:
    missing = ["UDP cannot be read.", "TCP neither."]
    fine, bad = (
        answer(Assessment(urgent=urgent, fullest=pool), advice=None, missing=missing)
        for urgent, pool in (((), pool_at(5)), ((pool_at(95),), pool_at(95)))
    )

    assert (fine.status, bad.status) == (Status.UNKNOWN, Status.CRITICAL)
    assert fine.text == (
        f"EPHMON UNKNOWN - UDP cannot be read; apart from that, {TOWARD} 10.0.0.9:443 is at 5.0%, 95 of 100 ports are "
        "left | utilisation=0.05;0.7;0.9;0;1 remaining=95;;;0;100\nTCP neither.\n"
    )
    assert bad.text.splitlines()[1:] == missing
    assert answer(Assessment(urgent=(), fullest=None), advice=None, missing=missing[:1]).text == (
        "EPHMON UNKNOWN - UDP cannot be read; apart from that, no pool exists, because no socket uses the port range\n"
    )


def test_blocked_ports_name_the_pools_that_they_stand_for() -> None:
    pools = [make_pool(usable=1000, blocked=660, in_use=used, destination=f"10.0.0.{used}") for used in (250, 10)]
    ports = BlockedPorts(netns="own", blocked=660, usable=1000)
    assessment = Assessment(urgent=(blocked(ports, Severity.CRITICAL, *pools),), fullest=of(pools[0]))

    assert answer(assessment, advice=None).text == (
        f"EPHMON CRITICAL - 660 of 1000 usable ports, 66.0%, are blocked for every connect(); {TOWARD} 10.0.0.250:443 "
        f"is at 91.0%, {TOWARD} 10.0.0.10:443 is at 67.0% | "
        "utilisation=0.91;0.7;0.9;0;1 remaining=90;;;0;1000\n"
    )


def test_the_figures_are_the_same_whatever_is_worst() -> None:
    ports = blocked(BlockedPorts(netns="blue", blocked=1, usable=3), Severity.WARNING)
    bind = of(make_bind_pool(in_use=28_231))

    assert answer(Assessment(urgent=(bind,), fullest=bind, blocked=ports), advice=None).text.partition(" | ")[2] == (
        "utilisation=0.999965;0.7;0.9;0;1 remaining=1;;;0;28232 blocked=0.333333;0.7;0.9;0;1\n"
    )


def test_an_estimate_is_marked_and_another_namespace_named() -> None:
    pool = make_pool(netns="blue", usable=100, blocked=0, in_use=50, remaining_min=40)
    ports = blocked(BlockedPorts(netns="blue", blocked=80, usable=100), Severity.WARNING)

    assert "tcp_connect from 10.0.0.1 to 10.0.0.9:443 in blue is at 50.0%, ~50 of 100 ports are left" in (
        answer(Assessment(urgent=(), fullest=of(pool)), advice=None).text
    )
    assert "80 of 100 usable ports in blue, 80.0%, are blocked" in (
        answer(Assessment(urgent=(ports,), fullest=None), advice=None).text
    )


def test_nothing_foreign_ends_the_text_or_the_line() -> None:
    pool = make_pool(netns="a|b\n\x1b[2J", usable=100, blocked=0, in_use=95, failure_errno="E|")
    full = replace(pool, remaining=0)
    texts = [answer(Assessment(urgent=(of(one),), fullest=of(one)), advice=None).text for one in (pool, full)]

    for text in texts:
        assert (text.count("|"), text.count("\n")) == (1, 1)
        assert "\x1b" not in text
    assert failure("a|b\n\x1b[2J").text == "EPHMON UNKNOWN - a/b\n\N{REPLACEMENT CHARACTER}[2J\n"
    assert failure("").text == "EPHMON UNKNOWN - it failed\n"
