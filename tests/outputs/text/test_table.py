"""The table is aligned, says what is wrong first, and withstands whatever stands in a report."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ephmon.facts.sockets import Backend, Protocol
from ephmon.model.alerting.thresholds import Threshold, ThresholdOverride, Thresholds
from ephmon.model.pools.kinds import Pool, PoolKind
from ephmon.model.report import ReloadStatus
from ephmon.outputs.text.table import Selection, render
from tests.builders import TAKEN_AT, make_bind_pool, make_first_failure, make_namespace_report, make_pool, make_report

if TYPE_CHECKING:
    from collections.abc import Callable

GOLDEN = Path(__file__).parents[1] / "golden"
RED = "\x1b[31m"
YELLOW = "\x1b[33m"
RESET = "\x1b[0m"

LONG_SOURCE = "2001:db8:1111:2222:3333:4444:5555:6666"
LONG_DESTINATION = "2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff"


def some_pools() -> list[Pool]:
    """Pools of every shape: exhausted, warning, without destination, inexact, with the longest addresses."""
    return [
        make_pool(in_use=28229, time_wait=12000),
        make_bind_pool(in_use=20000),
        make_pool(
            source=LONG_SOURCE, destination=LONG_DESTINATION, destination_port=65535, in_use=9000, remaining_min=7
        ),
        make_pool(
            kind=PoolKind.UDP_CONNECT,
            source="::",
            destination=None,
            destination_port=None,
            blocked=0,
            in_use=4,
            time_wait=0,
            states={"close": 4},
            exact=False,
        ),
    ]


def pool_lines(text: str) -> list[str]:
    return [
        line for line in text.splitlines() if line.removeprefix(RED).removeprefix(YELLOW).startswith(("tcp_", "udp_"))
    ]


def test_table_is_the_golden_file(golden: Callable[[Path, str], None]) -> None:
    report = make_report(
        success=False,
        error="the netlink dump took longer than 5 s",
        backends={Protocol.TCP: Backend.PROCFS},
        missing={Protocol.UDP: "/proc/net/udp cannot be read: permission denied"},
        namespaces=[make_namespace_report(blind_to=("bound_unconnected",), pools={PoolKind.TCP_CONNECT: 312})],
        reload=ReloadStatus(successful=False, succeeded_at=TAKEN_AT, error="/etc/ephmon/config.yaml: line 3"),
    )
    golden(GOLDEN / "table.txt", render(report, some_pools(), colour=False, width=None))


def test_columns_start_where_their_headings_start() -> None:
    lines = render(make_report(), some_pools(), colour=False, width=None).splitlines()
    headings = next(line for line in lines if line.startswith("KIND"))

    for line in pool_lines("\n".join(lines)):
        for heading in ("SOURCE", "DESTINATION", "STATES"):
            start = headings.index(heading)
            assert line[start - 2 : start] == "  "
            assert line[start] != " "
        for heading in ("UTIL%", "IN-USE", "TIME-WAIT", "REUSABLE"):
            end = headings.index(heading) + len(heading)
            assert line[end - 1].isdigit()
            assert line[end : end + 2] == "  "


def test_colour_follows_the_thresholds() -> None:
    pools = [make_pool(usable=100, blocked=0, in_use=used) for used in (90, 89, 70, 69)]
    text = render(make_report(), pools, colour=True, width=None)

    assert [line.partition("tcp")[0] for line in pool_lines(text)] == [RED, YELLOW, YELLOW, ""]
    assert [line.endswith(RESET) for line in pool_lines(text)] == [True, True, True, False]


def test_colour_follows_the_override_that_matches_the_pool() -> None:
    override = ThresholdOverride(
        destination=ip_network("10.0.0.0/24"), critical=Threshold(utilisation=0.5, for_seconds=0.0, clear=0.4)
    )
    report = make_report(thresholds=Thresholds(overrides=(override,)))
    pools = [make_pool(usable=100, blocked=0, in_use=60, destination=address) for address in ("10.0.0.9", "10.0.1.9")]

    lines = pool_lines(render(report, pools, colour=True, width=None))

    assert [line.startswith(RED) for line in lines] == [True, False]


def test_without_colour_there_is_no_escape_character() -> None:
    report = make_report(error="\x1b[2Jgone", namespaces=[make_namespace_report(netns="\x1b]0;x\x07")])
    pools = [make_pool(netns="\x1b[31m", in_use=28229, states={"\x1b": 1})]

    assert "\x1b" not in render(report, pools, colour=False, width=None)


def test_colour_changes_nothing_but_the_colour() -> None:
    plain = render(make_report(), some_pools(), colour=False, width=120)
    coloured = render(make_report(), some_pools(), colour=True, width=120)

    assert coloured.replace(RED, "").replace(YELLOW, "").replace(RESET, "") == plain
    assert coloured != plain


def test_what_is_wrong_comes_first_and_in_red() -> None:
    report = make_report(success=False, error="the dump timed out", missing={Protocol.UDP: "no such file"})
    lines = render(report, [], colour=True, width=None).splitlines()

    assert lines[:2] == [
        f"{RED}The last poll failed: the dump timed out{RESET}",
        f"{YELLOW}udp is missing: no such file{RESET}",
    ]


BLOCKED = {
    "all, without a pool": (1000, RED),
    "critical": (900, RED),
    "warning": (700, YELLOW),
    "few": (699, ""),
}


@pytest.mark.parametrize(("blocked", "colour"), BLOCKED.values(), ids=BLOCKED)
def test_the_range_has_the_colour_of_its_blocked_share(blocked: int, colour: str) -> None:
    namespace = make_namespace_report(usable_ports=1000, blocked_ports=blocked, pools={})
    lines = render(make_report(namespaces=[namespace]), [], colour=True, width=None).splitlines()
    (place,) = [place for place, line in enumerate(lines) if " usable (" in line]

    assert lines[place].startswith(f"{colour}Ports 32768-60999: 1000 usable")
    assert lines[place + 1].startswith("As root, `ss -tlnp` shows who listens") is bool(colour)


def test_with_every_port_blocked_the_first_line_says_in_red_that_no_connect_gets_one() -> None:
    namespaces = [
        make_namespace_report(usable_ports=1000, blocked_ports=1000),
        make_namespace_report(netns="blue", reserved_ports=1000, usable_ports=0, blocked_ports=0),
        make_namespace_report(netns="green", blocked_ports=None),
    ]
    lines = render(make_report(namespaces=namespaces), [], colour=True, width=None).splitlines()

    assert lines[0] == f"{RED}No port is left for any connect(): all 1000 usable ports are blocked.{RESET}"
    assert lines[1] == f"{RED}No port of blue is usable: all 1000 ports of the range are reserved.{RESET}"
    assert sum("No port" in line for line in lines) == 2


def test_the_last_line_says_what_the_pools_were_chosen_from() -> None:
    report = make_report(namespaces=[make_namespace_report(pools={PoolKind.TCP_CONNECT: 7})])

    def last(shown: int, selection: Selection | None = None) -> str:
        pools = [make_pool()] * shown
        return render(report, pools, colour=False, width=None, selection=selection).splitlines()[-1]

    assert last(7).startswith("tcp_connect")
    assert last(7, Selection(matching=7)).startswith("tcp_connect")
    assert last(2) == "Pools shown: 2 of 7; --top N shows more."
    assert last(6, Selection(matching=6)) == "Pools shown: 6 of 7; pools.ignore_destinations excludes 1."
    assert last(2, Selection(matching=6)) == (
        "Pools shown: 2 of 7; pools.ignore_destinations excludes 1; --top N shows more."
    )
    assert last(1, Selection(matching=1, toward="10.8.0.1")) == "Pools shown: 1 of 1 toward 10.8.0.1 (7 in all)."
    assert last(1, Selection(matching=2, toward="10.8.0.1")) == (
        "Pools shown: 1 of 2 toward 10.8.0.1 (7 in all); --top N shows more."
    )


def test_an_estimate_is_explained_where_there_is_one() -> None:
    inexact = make_pool(exact=False), make_pool(kind=PoolKind.UDP_BIND, destination=None, exact=False)
    texts = [render(make_report(), [pool], colour=False, width=None) for pool in (*inexact, make_pool())]

    assert ["~ marks an estimate" in text for text in texts] == [True, True, False]
    assert not any("exact" in text for text in texts)


def test_exhausted_pool_says_what_the_application_sees() -> None:
    text = render(
        make_report(), [make_pool(in_use=28229), make_pool(in_use=28229), make_bind_pool()], colour=False, width=None
    )

    assert text.count("At 100.0 the next tcp_connect fails with EADDRNOTAVAIL.\n") == 1
    assert "tcp_bind fails" not in text


def test_only_the_states_are_cut_to_the_width() -> None:
    whole = pool_lines(render(make_report(), some_pools(), colour=False, width=None))
    cut = pool_lines(render(make_report(), some_pools(), colour=False, width=len(whole[0]) - 10))
    without = pool_lines(render(make_report(), some_pools(), colour=False, width=20))

    assert cut[0] == whole[0][:-13] + "..."
    assert [line.rstrip() for line in without] == [
        line.partition("established")[0].partition("close")[0].rstrip() for line in whole
    ]


def test_namespace_is_a_column_only_where_there_are_others() -> None:
    pools = [make_pool(), make_pool(netns="blue")]

    assert "NETNS" not in render(make_report(), pools[:1], colour=False, width=None)
    table = render(make_report(), pools, colour=False, width=None).splitlines()
    assert [line[:20].split() for line in table if "tcp_connect" in line] == [
        ["own", "tcp_connect"],
        ["blue", "tcp_connect"],
    ]


def test_empty_table_is_one_sentence() -> None:
    nobody = make_report(namespaces=[make_namespace_report(pools={PoolKind.TCP_CONNECT: 0}, listed={})], listed=[])

    assert render(nobody, [], colour=False, width=80).endswith(
        "\n\nThere are no pools: no socket that could be read uses the port range.\n"
    )
    assert render(make_report(), [], colour=False, width=80).endswith(
        "\n\nNo pool is shown.\nPools shown: 0 of 1; --top N shows more.\n"
    )
    assert render(make_first_failure(), [], colour=False, width=80).endswith("\n\nNo pool is known yet.\n")


COUNTS = st.integers(-(2**63), 2**63)


@given(
    name=st.text(st.characters() | st.characters(categories=["Cs", "Cc"])),
    counts=st.tuples(COUNTS, COUNTS, COUNTS, COUNTS),
    port=st.none() | COUNTS,
    width=st.none() | st.integers(-5, 300),
    colour=st.booleans(),
)
def test_odd_values_are_shown_rather_than_raised(
    name: str, counts: tuple[int, int, int, int], port: int | None, width: int | None, colour: bool
) -> None:
    usable, in_use, time_wait, left = counts
    pool = make_pool(
        netns=name,
        source=name,
        destination=name,
        destination_port=port,
        usable=usable,
        in_use=in_use,
        time_wait=time_wait,
        remaining=left,
        exact=False,
        failure_errno=name,
        states={name: in_use},
    )
    report = make_report(
        error=name,
        namespaces=[make_namespace_report(netns=name, blind_to=(name,), missing={Protocol.UDP: name}, backends={})],
    )

    text = render(report, [pool, make_pool()], colour=colour, width=width)

    text.encode("utf-8")
    assert str(in_use) in text
