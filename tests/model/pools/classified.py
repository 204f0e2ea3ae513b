"""The classes of ports of small, literal readings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ephmon.model.pools.classify_ports import Evidence, classify_ports
from ephmon.model.pools.port_classes import PortClass
from tests.model.facts import LOW, Sockets, connected, make_sysctls

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ephmon.facts.sockets import TcpSockets

HERE, THERE = "10.0.0.1", "10.0.0.9"
FIRST, SECOND = LOW, LOW + 1
"""Ports of the parity that connect() tries first, and of the other."""


def classes(
    tcp: TcpSockets, previous: Evidence | None = None, answers: Mapping[int, bool] | None = None
) -> dict[int, PortClass]:
    """Return the class of every port that is not free."""
    ports, _ = classify_ports(make_sysctls(), tcp, previous or Evidence(), answers=answers or {})
    return {port: PortClass(value) for port, value in enumerate(ports.classes) if value > PortClass.SHARED}


def remembered(
    tcp: TcpSockets, previous: Evidence | None = None, answers: Mapping[int, bool] | None = None
) -> Evidence:
    return classify_ports(make_sysctls(), tcp, previous or Evidence(), answers=answers or {})[1]


def plain(ports: int | Iterable[int], destination: str = THERE, *, source: str = HERE) -> Sockets:
    return connected(source, ports, destination, 443)
