"""Owners in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ephmon.model.collectors import Health
from ephmon.model.owners.questions import BLOCKED_PORTS, PortSet
from ephmon.outputs.text.owners import largest_owner_sentence, owner_lines, owners_line, port_set_name, processes_line
from tests.builders import make_bind_pool, make_owners, make_pool, make_report

if TYPE_CHECKING:
    from ephmon.model.owners.shares import Owners


@pytest.mark.parametrize(
    ("owners", "line"),
    [
        (make_owners(), ""),
        (make_owners(("haproxy.service", 1)), "haproxy.service 1 port"),
        (
            make_owners(("haproxy.service", 812), ("uid 33", 12, 12)),
            "haproxy.service 812 ports, uid 33 12 (estimated)",
        ),
        (make_owners(("a.service", 50, 20)), "a.service 50 ports (20 estimated)"),
        (
            make_owners(("a.service", 50), other_owners=3, other_ports=40, unknown_ports=5),
            "a.service 50 ports, 3 others 40, unknown 5",
        ),
        (make_owners(("a.service", 50), other_owners=1, other_ports=4), "a.service 50 ports, 1 other 4"),
        (make_owners(unknown_ports=5), "unknown 5 ports"),
    ],
)
def test_owners_are_a_line(owners: Owners, line: str) -> None:
    assert owners_line(owners) == line


@pytest.mark.parametrize(
    ("owners", "sentence"),
    [
        (make_owners(("haproxy.service", 812), ("uid 33", 12)), "haproxy.service holds 812 ports."),
        (make_owners(("uid 33", 12, 12)), "uid 33 holds 12 ports (estimated)."),
        (make_owners(unknown_ports=5), ""),
    ],
)
def test_the_largest_owner_is_a_sentence(owners: Owners, sentence: str) -> None:
    assert largest_owner_sentence(owners) == sentence


def test_what_is_held_is_named() -> None:
    assert port_set_name(make_pool().key) == "Ports toward 10.0.0.9:443"
    assert port_set_name(make_bind_pool().key) == "Ports of tcp_bind at 10.0.0.1"
    assert port_set_name(BLOCKED_PORTS) == "Blocked ports"


def test_five_processes_are_named_and_the_others_counted() -> None:
    found = [(100 + number, f"worker{number}", 10 - number) for number in range(10)]

    assert processes_line([(7, "nginx", 1)], is_complete=True) == "nginx (pid 7, 1 socket)"
    assert processes_line(found, is_complete=False) == (
        "worker0 (pid 100, 10 sockets), worker1 (pid 101, 9 sockets), worker2 (pid 102, 8 sockets), "
        "worker3 (pid 103, 7 sockets), worker4 (pid 104, 6 sockets) and 5 more; not all descriptors were checked"
    )
    assert processes_line([(7, "\x1b[2J", 2)], is_complete=True) == "\ufffd[2J (pid 7, 2 sockets)"


def test_below_a_table_stands_who_holds_what_and_what_is_left_out() -> None:
    pools = [make_pool(), make_pool(destination_port=80)]
    report = make_report(
        owners={pools[0].key: make_owners(("haproxy.service", 90)), pools[1].key: make_owners()},
        blocked_owners={"own": make_owners(("nginx.service", 2))},
    )
    processes: dict[PortSet, str] = {
        pools[0].key: "haproxy (pid 7, 90 sockets)",
        BLOCKED_PORTS: "nginx (pid 8, 2 sockets)",
    }
    report = report.with_health(processes=Health(available=False, reason="Not permitted."))
    lines = [*owner_lines(report, [pool.key for pool in pools], processes, 3)]

    assert lines == [
        "",
        "Who holds the ports:",
        "tcp_connect from 10.0.0.1 to 10.0.0.9:443: haproxy.service 90 ports",
        "  haproxy (pid 7, 90 sockets)",
        "tcp_connect from 10.0.0.1 to 10.0.0.9:80: nobody",
        "blocked ports: nginx.service 2 ports",
        "  nginx (pid 8, 2 sockets)",
        "The owners of 3 more pools were not read; choose pools with --top or --destination.",
        "Not permitted.",
    ]
