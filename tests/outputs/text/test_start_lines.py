"""What the daemon says in the log when it starts."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from ephmon.config.settings import NotifyConfig
from ephmon.facts.snapshot import PortRange, Sysctls
from ephmon.outputs.text.start_lines import external_url, listen_port_at_risk, serving, source_ports_at_risk

if TYPE_CHECKING:
    from ephmon.log import Line

WIDE, DEFAULT = PortRange(1024, 65535), PortRange(32768, 60999)
SOURCE_PORTS = PortRange(19102, 19105)


def told(line: Line | None) -> str | None:
    return None if line is None else line.message


def test_source_ports_outside_the_range_are_safe() -> None:
    assert source_ports_at_risk(NotifyConfig().source_ports, Sysctls(port_range=DEFAULT)) is None


@pytest.mark.parametrize(
    ("reserved", "fix"),
    [
        (frozenset(range(19102, 19106)), None),
        (
            frozenset({8080, 19103}),
            "sysctl -w net.ipv4.ip_local_reserved_ports=8080,19102-19105",
        ),
    ],
)
def test_source_ports_inside_the_range_must_be_reserved(reserved: frozenset[int], fix: str | None) -> None:
    line = source_ports_at_risk(SOURCE_PORTS, Sysctls(port_range=WIDE, reserved_ports=reserved))

    if fix is None:
        assert line is None
    else:
        assert line is not None
        assert line.message.startswith("Ports 19102,19104-19105 of notify.source_ports lie inside the port range")
        assert line.message.endswith(fix)


def test_a_port_that_is_listened_on_inside_the_range_must_be_reserved() -> None:
    line = listen_port_at_risk(19100, Sysctls(port_range=WIDE, reserved_ports=frozenset({8080})))

    assert line is not None
    assert line.message.endswith("sysctl -w net.ipv4.ip_local_reserved_ports=8080,19100")
    assert listen_port_at_risk(19100, Sysctls(port_range=DEFAULT)) is None
    assert listen_port_at_risk(19100, Sysctls(port_range=WIDE, reserved_ports=frozenset({19100}))) is None


@pytest.mark.parametrize(
    ("host", "asks_for_certificate", "levels"),
    [
        ("127.0.0.1", False, [logging.INFO]),
        ("0.0.0.0", False, [logging.INFO, logging.WARNING]),
        ("10.0.0.1", True, [logging.INFO]),
    ],
)
def test_an_address_that_others_reach_without_a_certificate_is_warned_of(
    host: str, asks_for_certificate: bool, levels: list[int]
) -> None:
    lines = serving("1", host, f"{host}:19100", 7, is_tls=False, asks_for_certificate=asks_for_certificate)

    assert [line.level for line in lines] == levels


@pytest.mark.parametrize(("host", "url"), [("127.0.0.1", ""), ("::", ""), ("10.0.0.1", "https://10.0.0.1:19100/")])
def test_people_elsewhere_are_led_only_to_what_they_can_reach(host: str, url: str) -> None:
    assert external_url(host, f"{host}:19100", is_tls=True) == url
