"""The time of a search of connect(), measured in a namespace; only that it grows with the ports is asserted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ephmon.errors import KernelError
from ephmon.kernel.proc.sysctl import read_sysctls
from ephmon.kernel.search_time import PORTS, measure_search_time
from tests import sockets
from tests.namespaces import Namespace

if TYPE_CHECKING:
    from collections.abc import Iterator

RANGE = (30_000, 38_191)


@pytest.fixture(name="ns")
def _ns() -> Iterator[Namespace]:
    with Namespace() as ns:
        ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", f"{RANGE[0]} {RANGE[1]}")
        yield ns


def measure() -> float:
    return measure_search_time(read_sysctls(Path("/proc")))


def tcp_counters() -> str:
    return Path("/proc/self/net/snmp").read_text(encoding="ascii").split("Udp:")[0]


def test_a_port_that_is_looked_at_takes_time_and_nothing_is_sent_or_kept(ns: Namespace) -> None:
    before = ns.call(tcp_counters)
    seconds = ns.call(measure)

    assert 0 < seconds < 1e-4
    assert ns.call(tcp_counters) == before
    assert "127.254" not in ns.call(open_sockets)


def open_sockets() -> str:
    return Path("/proc/self/net/tcp").read_text(encoding="ascii").replace("FE7F", "127.254")


def test_a_small_range_is_left_alone(ns: Namespace) -> None:
    ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", f"{RANGE[0]} {RANGE[0] + 2 * PORTS - 2}")

    with pytest.raises(KernelError, match="fewer than 512 ports"):
        ns.call(measure)


def test_without_deferred_fast_open_it_says_what_is_missing(ns: Namespace) -> None:
    ns.call(sockets.write_sysctl, "net.ipv4.tcp_fastopen", 0)

    with pytest.raises(KernelError, match=r"bit 0 of net\.ipv4\.tcp_fastopen"):
        ns.call(measure)
