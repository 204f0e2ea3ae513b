"""What people read is right to the last digit, and safe whatever a name contains."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ephmon.facts.sockets import Backend, Blindness, Protocol
from ephmon.model.alerting.thresholds import Severity
from ephmon.outputs.text.wording import (
    COLUMNS,
    cells,
    endpoint,
    exhaustion,
    facts,
    failures,
    gaps,
    one_line,
    percent,
    remaining,
    utc_time,
)
from tests.builders import make_bind_pool, make_first_failure, make_namespace_report, make_pool, make_report


def test_one_line_joins_lines_with_blanks() -> None:
    assert one_line("cannot read\n  /proc/net/tcp:\tdenied\x07") == "cannot read /proc/net/tcp: denied\ufffd"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1767323045.006, "2026-01-02T03:04:05.006Z"),
        (1767323045.0, "2026-01-02T03:04:05.000Z"),
        (0.0, "1970-01-01T00:00:00.000Z"),
    ],
)
def test_time_is_rfc_3339_in_utc_with_milliseconds(seconds: float, text: str) -> None:
    assert utc_time(seconds) == text


@pytest.mark.parametrize(
    ("address", "port", "text"),
    [
        ("10.0.0.9", 443, "10.0.0.9:443"),
        ("2001:db8::9", 443, "[2001:db8::9]:443"),
        ("10.0.0.9", None, "10.0.0.9"),
        ("2001:db8::9", None, "2001:db8::9"),
        (None, None, "-"),
    ],
)
def test_ipv6_has_brackets_where_a_port_follows(address: str | None, port: int | None, text: str) -> None:
    assert endpoint(address, port) == text


@pytest.mark.parametrize(
    ("ratio", "text"),
    [(0.0, "0.0"), (0.005, "0.5"), (0.7, "70.0"), (0.9994, "99.9"), (0.99998, "99.9"), (1.0, "100.0")],
)
def test_only_an_exhausted_pool_reads_100(ratio: float, text: str) -> None:
    assert percent(ratio) == text


def test_remaining_is_marked_as_an_estimate_unless_it_is_exact() -> None:
    assert remaining(make_pool()) == "28109"
    assert remaining(make_pool(remaining_min=28100)) == "~28109"
    assert remaining(make_pool(exact=False)) == "~28109"


def test_cells_stand_under_their_columns() -> None:
    assert dict(zip(COLUMNS, cells(make_bind_pool()), strict=True)) == {
        "KIND": "tcp_bind",
        "SOURCE": "10.0.0.1",
        "DESTINATION": "-",
        "UTIL%": "0.4",
        "IN-USE": "120",
        "TIME-WAIT": "30",
        "REUSABLE": "0",
        "REMAINING": "28112",
        "STATES": "established 90, time_wait 30",
    }


def test_every_blindness_is_put_into_words_once() -> None:
    namespaces = [
        make_namespace_report(blind_to=tuple(Blindness)),
        make_namespace_report(netns="blue", blind_to=tuple(Blindness)),
    ]
    sentences = gaps(make_report(namespaces=namespaces))

    assert len(sentences) == len(Blindness)
    assert not any(word in sentence for word in Blindness for sentence in sentences)


def test_blindness_without_words_is_named() -> None:
    assert gaps(make_report(namespaces=[make_namespace_report(blind_to=("x_rays",))])) == ("Not visible: x_rays.",)


def test_all_well_means_no_failures_and_no_gaps() -> None:
    assert failures(make_report()) == ()
    assert gaps(make_report()) == ()


@pytest.mark.parametrize(
    ("usable", "blocked", "severity"),
    [
        (1000, 1000, Severity.CRITICAL),
        (1000, 900, Severity.CRITICAL),
        (1000, 899, Severity.WARNING),
        (1000, 700, Severity.WARNING),
        (1000, 699, None),
        (1000, None, None),
        (0, 0, Severity.CRITICAL),
        (0, None, None),
    ],
)
def test_the_blocked_share_is_held_against_the_general_thresholds(
    usable: int, blocked: int | None, severity: Severity | None
) -> None:
    report = make_report(namespaces=[make_namespace_report(usable_ports=usable, blocked_ports=blocked)])

    assert facts(report)[0][1] is severity
    assert (facts(report)[1][0].startswith("As root, `ss -tlnp` shows")) is (severity is not None and usable > 0)
    assert (exhaustion(report) != ()) is (usable == 0 or blocked == 1000)


def test_a_namespace_in_which_no_connect_gets_a_port_is_named_with_the_reason() -> None:
    blocked = make_namespace_report(netns="blue", usable_ports=5, blocked_ports=5)
    reserved = make_namespace_report(netns="green", usable_ports=0, reserved_ports=28_232, blocked_ports=0)
    unread = make_namespace_report(usable_ports=0, reserved_ports=5, blocked_ports=None)

    assert exhaustion(make_report(namespaces=[blocked, reserved, unread])) == (
        "No port of blue is left for any connect(): all 5 usable ports are blocked.",
        "No port of green is usable: all 28232 ports of the range are reserved.",
        "No port is usable: all 5 ports of the range are reserved.",
    )


def test_first_failure_says_why_there_are_no_figures() -> None:
    assert failures(make_first_failure("netlink is not allowed here.")) == (
        "The last poll failed: netlink is not allowed here.",
        "The kernel has not been read successfully yet, so there are no figures.",
    )
    assert facts(make_first_failure()) == ()


def test_facts_say_unknown_rather_than_zero() -> None:
    namespaces = [make_namespace_report(blocked_ports=None, ambiguous_ports=None)]

    assert facts(make_report(namespaces=namespaces, backends={Protocol.UDP: Backend.PROCFS})) == (
        ("Ports 32768-60999: 28232 usable (0 reserved), unknown blocked for connect(), unknown ambiguous.", None),
        ("Read at 2026-01-02T03:04:05.006Z: udp through procfs.", None),
    )


def test_of_other_namespaces_only_those_have_a_sentence_whose_blocked_ports_may_raise_an_alert() -> None:
    namespaces = [
        make_namespace_report(),
        make_namespace_report(netns="blue", blocked_ports=27_000),
        replace(make_namespace_report(netns="netns:7", blocked_ports=27_000), may_alert=False),
        make_namespace_report(netns="quiet"),
    ]

    sentences = [sentence for sentence, _ in facts(make_report(namespaces=namespaces))]

    assert [one.partition(":")[0] for one in sentences[:2]] == ["Ports 32768-60999", "Ports of blue 32768-60999"]
    assert sentences[3] == "TCP of 3 other network namespaces is read too, and no UDP there."
    assert not any("netns:7" in one or "quiet" in one for one in sentences)
