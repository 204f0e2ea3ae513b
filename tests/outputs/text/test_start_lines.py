"""What the daemon says in the log when it starts."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from ephmon.config.settings import NotifyConfig
from ephmon.facts.snapshot import PortRange, Sysctls
from ephmon.outputs.text.start_lines import (
    access_at_risk,
    external_url,
    listen_port_at_risk,
    serving,
    source_ports_at_risk,
)

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


OPEN = (
    "Everybody who reaches this address can read the destinations of this host. Listen on 127.0.0.1, or set"
    " http.token_file, or tls.certificate, tls.key and tls.client_ca."
)
BARE_TOKEN = "Clients send the token unencrypted, so it can be read on its way. Set tls.certificate and tls.key."


@pytest.mark.parametrize(
    ("host", "is_tls", "certificate", "token", "warning"),
    [
        ("127.0.0.1", False, False, False, None),
        ("::1", False, False, True, None),
        ("0.0.0.0", False, False, False, OPEN),
        ("::", True, False, False, OPEN),
        ("10.0.0.1", True, True, False, None),
        ("10.0.0.1", True, False, True, None),
        ("10.0.0.1", True, True, True, None),
        ("10.0.0.1", False, False, True, BARE_TOKEN),
    ],
)
def test_an_address_that_others_reach_without_certificate_or_token_is_warned_of(
    host: str, is_tls: bool, certificate: bool, token: bool, warning: str | None
) -> None:
    line = access_at_risk(host, f"{host}:19100", is_tls=is_tls, asks_for_certificate=certificate, asks_for_token=token)

    assert told(line) == warning
    assert line is None or line.level == logging.WARNING


def test_the_start_names_the_url_and_the_process() -> None:
    line = serving("1", "10.0.0.1:19100", 7, is_tls=True)

    assert (line.level, line.message) == (logging.INFO, "ephmon 1 serves https://10.0.0.1:19100/metrics.")
    assert line.fields == {"pid": 7}


@pytest.mark.parametrize(("host", "url"), [("127.0.0.1", ""), ("::", ""), ("10.0.0.1", "https://10.0.0.1:19100/")])
def test_people_elsewhere_are_led_only_to_what_they_can_reach(host: str, url: str) -> None:
    assert external_url(host, f"{host}:19100", is_tls=True) == url
