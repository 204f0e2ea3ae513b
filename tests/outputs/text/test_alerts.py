"""Alerts in words: the sentence of each kind, the figures that stand beside it, and the JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from ephmon.http.rendering import publication_of
from ephmon.model.alerting.state_machine import SUMMARY, Alert, AlertName, Phase, UserFailures
from ephmon.model.alerting.thresholds import Severity
from ephmon.outputs.metrics.exposition import process_registry
from ephmon.outputs.text.alerts import alert_objects, figures, sentence
from tests.builders import make_alert, make_bind_pool, make_pool, make_report

FULL = make_pool(usable=28_232, blocked=0, in_use=28_232)
NEAR = make_pool(usable=28_232, blocked=3, in_use=20_000)
DOUBTED = replace(NEAR, remaining=0, remaining_max=9_000, in_doubt=7, reusable_unproven=80, is_doubted=True)
ESTIMATED = make_pool(usable=28_232, blocked=0, in_use=20_000, remaining_min=8_000)
BOUND = make_bind_pool(in_use=20_000)
ELSEWHERE = make_pool(
    netns="pod\x1b", source="2001:db8::1", destination="2001:db8::9", usable=100, blocked=0, in_use=75
)


MANY_USERS = (UserFailures(1, 8), UserFailures(2, 7), UserFailures(None, 1), *[UserFailures(4, 1)] * 7)


@pytest.mark.parametrize(
    ("alert", "expected"),
    [
        (make_alert(NEAR), "tcp_connect from 10.0.0.1 to 10.0.0.9:443 is at 70.9%: 8229 of 28232 ports are left."),
        (
            make_alert(ESTIMATED),
            "tcp_connect from 10.0.0.1 to 10.0.0.9:443 is at 70.8%: ~8232 of 28232 ports are left.",
        ),
        (
            make_alert(FULL),
            (
                "tcp_connect from 10.0.0.1 to 10.0.0.9:443 is at 100.0%: none of 28232 ports is left, the next "
                "allocation fails with EADDRNOTAVAIL."
            ),
        ),
        (
            make_alert(
                make_pool(usable=200, blocked=0, in_use=195, time_wait=195, reusable=195, reusable_unproven=195)
            ),
            (
                "tcp_connect from 10.0.0.1 to 10.0.0.9:443 is at 0.0%: 200 of 200 ports are left, "
                "195 of them only if the peer uses TCP timestamps."
            ),
        ),
        (make_alert(BOUND), "tcp_bind at 10.0.0.1 is at 70.8%: 8232 of 28232 ports are left."),
        (
            make_alert(ELSEWHERE),
            "tcp_connect from 2001:db8::1 to [2001:db8::9]:443 in pod\ufffd is at 75.0%: 25 of 100 ports are left.",
        ),
        (
            make_alert(ELSEWHERE, name=AlertName.POOL_EXHAUSTION_FORECAST, value=41.6),
            (
                "tcp_connect from 2001:db8::1 to [2001:db8::9]:443 in pod\ufffd runs out of ports in about 42 s at the "
                "present rate, now at 75.0%."
            ),
        ),
        (
            make_alert(name=AlertName.PORTS_BLOCKED, value=0.703),
            "70.3% of the usable ports are blocked for every connect().",
        ),
        (
            make_alert(name=AlertName.PORTS_BLOCKED, netns="pod", value=0.9, named=[ELSEWHERE, NEAR]),
            (
                "90.0% of the usable ports of pod are blocked for every connect(). The fullest pools: tcp_connect from "
                "2001:db8::1 to [2001:db8::9]:443 in pod\ufffd is at 75.0%; tcp_connect from 10.0.0.1 to 10.0.0.9:443 "
                "is at 70.9%."
            ),
        ),
        (
            make_alert(FULL, name=AlertName.CONNECT_EXHAUSTIONS, value=1),
            (
                "1 connect() call of tcp_connect from 10.0.0.1 to 10.0.0.9:443 failed because no port was left; the "
                "pool is at 100.0%."
            ),
        ),
        (
            make_alert(NEAR, name=AlertName.CONNECT_EXHAUSTIONS, value=12),
            (
                f"12 connect() calls of tcp_connect from 10.0.0.1 to 10.0.0.9:443 found no port. Now {NEAR.remaining} "
                f"of {NEAR.usable} ports are left. Possible causes: the socket has a port range of its own; the "
                "pool was full between two polls."
            ),
        ),
        (
            make_alert(DOUBTED, name=AlertName.CONNECT_EXHAUSTIONS, value=12),
            (
                f"12 connect() calls of tcp_connect from 10.0.0.1 to 10.0.0.9:443 found no port. Now 0 to 9000 of "
                f"{NEAR.usable} ports are left. Possible causes: some of 7 ports in doubt are blocked; the destination "
                "speaks no TCP timestamps, so 80 TIME_WAITs keep their ports; the socket has a port range of its own; "
                "the pool was full between two polls."
            ),
        ),
        (
            make_alert(DOUBTED, value=1.0),
            (
                "tcp_connect from 10.0.0.1 to 10.0.0.9:443 is at 100.0%: connect() failed, so the lower bound counts: "
                f"0 to 9000 of {NEAR.usable} ports are left."
            ),
        ),
        (
            replace(make_alert(name=AlertName.CONNECT_EXHAUSTIONS), users=(UserFailures(33, 60),)),
            (
                "connect() calls of uid 33 toward 60 destinations found no port, in pools that hardly "
                "hold one. Sockets with a port range of their own run out like that."
            ),
        ),
        (
            replace(
                make_alert(name=AlertName.CONNECT_EXHAUSTIONS, severity=Severity.CRITICAL),
                users=(UserFailures(33, 60),),
            ),
            (
                "connect() calls of uid 33 toward 60 destinations found no port, in pools that hardly "
                "hold one. Other sockets block the ports."
            ),
        ),
        (
            replace(make_alert(name=AlertName.CONNECT_EXHAUSTIONS), users=MANY_USERS),
            (
                "connect() calls of uid 1 toward 8 destinations, uid 2 toward 7 destinations, an unknown user toward 1 "
                "destination and 7 more found no port, in pools that hardly hold one. Sockets "
                "with a port range of their own run out like that."
            ),
        ),
        (
            make_alert(name=AlertName.TOO_MANY_ALERTS, netns="", value=1),
            "1 more alert is active than may be shown one by one.",
        ),
        (
            make_alert(name=AlertName.TOO_MANY_ALERTS, netns="", value=7),
            "7 more alerts are active than may be shown one by one.",
        ),
    ],
)
def test_an_alert_is_one_sentence_with_the_figures_that_matter(alert: Alert, expected: str) -> None:
    assert sentence(alert) == expected


def test_the_figures_of_an_alert_are_those_of_its_pool() -> None:
    assert figures(make_alert(NEAR, severity=Severity.CRITICAL)) == {
        "alert": "EphmonPoolNearExhaustion",
        "severity": "critical",
        "netns": "own",
        "kind": "tcp_connect",
        "source": "10.0.0.1",
        "destination": "10.0.0.9:443",
        "value": 0.708522,
        "usable": 28232,
        "blocked": 3,
        "in_use": 20000,
        "time_wait": 30,
        "reusable": 0,
        "remaining": 8229,
        "since": "2026-01-02T03:04:05.006Z",
    }


def test_an_alert_that_is_of_no_single_pool_has_no_figures_of_one() -> None:
    assert figures(make_alert(name=AlertName.PORTS_BLOCKED, value=0.75, named=[NEAR])) == {
        "alert": "EphmonPortsBlocked",
        "severity": "warning",
        "netns": "own",
        "value": 0.75,
        "since": "2026-01-02T03:04:05.006Z",
    }


def test_the_json_holds_the_alerts_that_fire_the_most_urgent_first() -> None:
    report = make_report(
        alerts=[
            make_alert(FULL, severity=Severity.CRITICAL, since=5.0),
            make_alert(BOUND, phase=Phase.PENDING),
            make_alert(ELSEWHERE, is_announced=False),
            make_alert(name=SUMMARY.name, netns=SUMMARY.netns, value=1),
        ]
    )

    assert alert_objects(report.alerts) == [
        {
            "alertname": "EphmonPoolNearExhaustion",
            "severity": "critical",
            "netns": "own",
            "pool": {
                "netns": "own",
                "kind": "tcp_connect",
                "source": "10.0.0.1",
                "destination": "10.0.0.9",
                "destination_port": 443,
            },
            "since": "2026-01-02T03:04:10.006Z",
            "value": 1.0,
            "summary": "tcp_connect from 10.0.0.1 to 10.0.0.9:443 is at 100.0%: none of 28232 ports is left, the next "
            "allocation fails with EADDRNOTAVAIL.",
        },
        {
            "alertname": "EphmonTooManyAlerts",
            "severity": "warning",
            "netns": "",
            "pool": None,
            "since": "2026-01-02T03:04:05.006Z",
            "value": 1,
            "summary": "1 more alert is active than may be shown one by one.",
        },
    ]


def test_what_the_http_side_serves_as_pools_carries_the_alerts() -> None:
    report = make_report(alerts=[make_alert(FULL, severity=Severity.CRITICAL)])
    published = publication_of(report, kernel_release="6.1", process_registry=process_registry(), expires_at=1.0)

    assert json.loads(published.pools.plain)["alerts"] == alert_objects(report.alerts)
