"""The page is complete in itself, says the worst first, and shows text as text."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ephmon import __version__
from ephmon.facts.sockets import Protocol
from ephmon.model.alerting.state_machine import Phase
from ephmon.model.alerting.thresholds import Severity
from ephmon.model.pools.kinds import PoolKind
from ephmon.model.report import ListedPool, ReloadStatus
from ephmon.outputs.page.status_page import render
from tests.builders import (
    TAKEN_AT,
    make_alert,
    make_bind_pool,
    make_first_failure,
    make_forecast,
    make_namespace_report,
    make_owners,
    make_pool,
    make_report,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from ephmon.model.forecast.forecast import Forecast
    from ephmon.model.report import Report

GOLDEN = Path(__file__).parents[1] / "golden"
SCRIPT = "<script>alert('1')</script>\"&"


class Outline(HTMLParser):
    """Reads a page: its tags, attributes and texts; closing tags must match."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(page.decode("utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(data)


def busy() -> Report:
    return make_report(
        success=False,
        error="the netlink dump took longer than 5 s",
        missing={Protocol.UDP: "no such file"},
        namespaces=[make_namespace_report(blind_to=("bound_unconnected",), pools={PoolKind.TCP_CONNECT: 312})],
        listed=[
            ListedPool(
                pool=make_pool(in_use=28229), peak_utilisation=1.0, forecast=make_forecast(seconds_to_exhaustion=0)
            ),
            ListedPool(
                pool=make_pool(in_use=20000, remaining_min=8000), peak_utilisation=0.85, forecast=make_forecast()
            ),
            make_bind_pool(),
        ],
    )


def test_page_is_the_golden_file(golden: Callable[[Path, str], None]) -> None:
    page = render(busy(), expired=False).decode("utf-8")
    golden(GOLDEN / "page.html", page.replace(f"ephmon {__version__}", "ephmon X.Y.Z"))


def test_page_is_well_formed_and_needs_nothing_else() -> None:
    outline = Outline(render(busy(), expired=False))

    assert outline.open == []
    assert not {"script", "link", "img", "iframe"} & set(outline.tags)
    assert not {name for name, _ in outline.attributes} & {"src", "style", "onclick", "onload"}
    assert [value for name, value in outline.attributes if name == "href"] == [
        "/metrics",
        "/api/v1/pools",
        "/api/v1/exhaustions",
        "/-/healthy",
        "/-/ready",
    ]


def test_last_error_comes_first() -> None:
    texts = Outline(render(busy(), expired=False)).texts

    assert (
        texts[texts.index(f"ephmon {__version__}") + 1] == "The last poll failed: the netlink dump took longer than 5 s"
    )


def test_rows_carry_the_severity_they_have_reached() -> None:
    page = render(busy(), expired=False).decode("utf-8")

    assert re.findall(r"<tr( class=\"\w+\")?><td>(\w+)</td>", page) == [
        (' class="critical"', "tcp_connect"),
        (' class="warning"', "tcp_connect"),
        ("", "tcp_bind"),
    ]


def test_with_every_port_blocked_the_page_says_so_and_marks_the_range() -> None:
    namespace = make_namespace_report(usable_ports=1000, blocked_ports=1000)
    page = render(make_report(namespaces=[namespace]), expired=False).decode("utf-8")
    expired = render(make_report(namespaces=[namespace]), expired=True).decode("utf-8")

    assert '<p class="trouble">No port is left for any connect(): all 1000 usable ports are blocked.</p>' in page
    assert '<p class="critical">Ports 32768-60999: 1000 usable' in page
    assert "<p>As root, `ss -tlnp` shows who listens" in page
    assert "No port is left" not in expired


def test_peak_stands_beside_the_utilisation() -> None:
    page = render(busy(), expired=False).decode("utf-8")

    assert '<th class="figure">UTIL%</th><th class="figure">PEAK%</th>' in page
    assert '<td class="figure">70.9</td><td class="figure">85.0</td>' in page


@pytest.mark.parametrize(
    ("forecast", "shown"),
    [
        (None, "-"),
        (make_forecast(), "-"),
        (make_forecast(seconds_to_exhaustion=0), "0 s"),
        (make_forecast(seconds_to_exhaustion=119.4), "119 s"),
        (make_forecast(seconds_to_exhaustion=120), "2 min"),
        (make_forecast(seconds_to_exhaustion=3600), "60 min"),
    ],
)
def test_time_to_exhaustion_stands_behind_what_remains(forecast: Forecast | None, shown: str) -> None:
    listed = ListedPool(pool=make_pool(), peak_utilisation=0.1, forecast=forecast)
    page = render(make_report(listed=[listed]), expired=False).decode("utf-8")

    assert '<th class="figure">REMAINING</th><th class="figure">FULL-IN</th>' in page
    assert f'<td class="figure">28109</td><td class="figure">{shown}</td>' in page


def test_an_alert_is_critical_since_it_became_so_and_not_since_it_was_a_warning() -> None:
    alert = make_alert(make_pool(), severity=Severity.CRITICAL, since=60.0)
    begun = make_alert(make_pool(), since=0.0).since
    page = render(make_report(alerts=[replace(alert, since=begun)]), expired=False).decode("utf-8")

    assert "critical since 2026-01-02T03:05:05.006Z" in page


def test_alerts_that_fire_stand_at_the_top_and_stay_when_the_figures_have_expired() -> None:
    pool = make_pool(usable=100, blocked=0, in_use=95)
    report = make_report(
        alerts=[make_alert(pool, severity=Severity.CRITICAL), make_alert(make_bind_pool(), phase=Phase.PENDING)]
    )
    said = "tcp_connect from 10.0.0.1 to 10.0.0.9:443 is at 95.0%: 5 of 100 ports are left."
    since = "critical since 2026-01-02T03:04:05.006Z"
    live, expired = (Outline(render(report, expired=expired)).texts for expired in (False, True))

    assert live[live.index(f"ephmon {__version__}") + 1] == f"{since}: {said}"
    assert f"{since}, last seen: {said}" in expired
    assert '<p class="critical">critical since' in render(report, expired=False).decode("utf-8")
    assert not any("tcp_bind" in text for text in live + expired if "since" in text)


def test_expired_page_shows_no_figures_and_says_from_when_they_were() -> None:
    outline = Outline(render(replace(busy(), error=None, success=True), expired=True))

    assert "table" not in outline.tags
    assert (
        "The figures have expired and are not shown: the kernel was last read at 2026-01-02T03:04:05.006Z."
        in outline.texts
    )
    assert not any("28232" in text or "tcp_connect" in text for text in outline.texts)


def test_nothing_read_yet_is_said() -> None:
    for expired in (False, True):
        outline = Outline(render(make_first_failure("netlink is not allowed here"), expired=expired))

        assert "The last poll failed: netlink is not allowed here" in outline.texts
        assert "The kernel has not been read successfully yet, so there are no figures." in outline.texts
        assert "table" not in outline.tags


def test_report_without_listed_pools_has_no_table() -> None:
    outline = Outline(render(make_report(listed=[]), expired=False))

    assert "table" not in outline.tags
    assert "Pools listed, fullest first: 0 of 1." in outline.texts


def test_markup_in_any_string_is_shown_as_text() -> None:
    """Every string of a report that somebody else may choose, and the words that nobody should."""
    pool = make_pool(
        netns=SCRIPT, source=SCRIPT, destination=SCRIPT, failure_errno=SCRIPT, states={SCRIPT: 1}, in_use=28229
    )
    report = make_report(
        error=SCRIPT,
        namespaces=[
            make_namespace_report(netns=SCRIPT, blind_to=(SCRIPT,), backends={}, missing={Protocol.UDP: SCRIPT})
        ],
        listed=[pool],
        reload=ReloadStatus(successful=False, succeeded_at=TAKEN_AT, error=SCRIPT),
        alerts=[make_alert(pool)],
        owners={pool.key: make_owners((SCRIPT, 3))},
    )

    for expired in (False, True):
        page = render(report, expired=expired)
        outline = Outline(page)
        assert b"<script" not in page
        assert b'"&' not in page.replace(b'"&amp;', b"").replace(b'">', b"")
        assert "script" not in outline.tags
        assert outline.open == []
    assert sum(text.count(SCRIPT) for text in Outline(render(report, expired=False)).texts) == 14


def test_lone_surrogates_and_control_characters_do_not_reach_the_page() -> None:
    page = render(make_report(listed=[make_pool(netns="a\udce9\x00\x1b")]), expired=False)

    assert "<td>a\ufffd\ufffd\ufffd</td>" in page.decode("utf-8")
