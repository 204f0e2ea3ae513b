"""The ports that deliveries are sent from, on a real kernel."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import TYPE_CHECKING

import pytest

from ephmon.config.settings import NotifyConfig
from ephmon.delivery.settings import DeliveryTimes
from ephmon.delivery.source_ports import SourcePortError, SourcePorts
from ephmon.facts.snapshot import PortRange
from tests.namespaces import Namespace
from tests.sockets import Recipe, open_sockets, write_sysctl

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ephmon.delivery.source_ports import Address

PORTS = PortRange(19102, 19105)
TIME_WAIT_SECONDS = 60
"""TCP_TIMEWAIT_LEN in include/net/tcp.h."""


@pytest.fixture
def ns() -> Iterator[Namespace]:
    with Namespace() as namespace:
        yield namespace


def _loopback(port: int) -> Address:
    return socket.AF_INET, ("127.0.0.1", port)


def _connect(*, times: int, to_port: int, we_close_first: bool, listen: bool = True) -> list[int]:
    """Connect so often from `PORTS`, close each connection and return the local ports and, at an error, its number."""
    used = []

    async def run() -> None:
        ports = SourcePorts(PORTS)
        for _ in range(times):
            ours = await ports.connect(_loopback(to_port))
            used.append(ours.getsockname()[1])
            first, last = (ours, listener.accept()[0])[:: 1 if we_close_first else -1]
            first.close()
            last.recv(1)  # until the end, so that the one who closed first is the one left in TIME_WAIT
            last.close()

    with socket.create_server(("127.0.0.1", to_port if listen else 0)) as listener:
        try:
            asyncio.run(run())
        except OSError as error:
            used.append(-(error.errno or 0) if isinstance(error, SourcePortError) else 0)
    return used


def test_each_connection_takes_the_next_port_and_the_first_follows_the_last(ns: Namespace) -> None:
    used = ns.call(_connect, times=6, to_port=9093, we_close_first=False)

    assert used == [19102, 19103, 19104, 19105, 19102, 19103]


@pytest.mark.parametrize(
    ("we_close_first", "timestamps"), [(False, 0), (False, 1), (True, 1)], ids=["theirs", "theirs too", "ours"]
)
def test_a_few_ports_last_forever_unless_we_close_first_without_timestamps(
    ns: Namespace, we_close_first: bool, timestamps: int
) -> None:
    ns.call(write_sysctl, "net.ipv4.tcp_tw_reuse", 0)
    ns.call(write_sysctl, "net.ipv4.tcp_timestamps", timestamps)

    assert ns.call(_connect, times=200, to_port=9093, we_close_first=we_close_first)[-1] == 19105


def test_without_timestamps_a_port_in_time_wait_toward_the_receiver_is_passed_over(ns: Namespace) -> None:
    """Until none is left."""
    ns.call(write_sysctl, "net.ipv4.tcp_timestamps", 0)

    used = ns.call(_connect, times=5, to_port=9093, we_close_first=True)

    assert used == [19102, 19103, 19104, 19105, -errno.EADDRNOTAVAIL]
    assert ns.call(_connect, times=4, to_port=9094, we_close_first=True) == used[:4]  # toward another, all are free


def test_the_default_ports_outlast_every_time_wait_at_the_greatest_pace() -> None:
    deliveries = TIME_WAIT_SECONDS / DeliveryTimes().pause_seconds

    assert deliveries < NotifyConfig().source_ports.size


def test_a_port_that_another_program_has_bound_is_passed_over(ns: Namespace) -> None:
    for port in (19102, 19103, 19105):
        assert ns.call(open_sockets, Recipe(bind=("127.0.0.1", port)), tag="others", limit=1).count == 1

    assert ns.call(_connect, times=2, to_port=9093, we_close_first=False) == [19104, 19104]


def test_when_others_have_all_ports_the_error_says_so(ns: Namespace) -> None:
    for port in range(PORTS.low, PORTS.high + 1):
        ns.call(open_sockets, Recipe(bind=("0.0.0.0", port)), tag="others", limit=1)

    assert ns.call(_connect, times=1, to_port=9093, we_close_first=False) == [-errno.EADDRINUSE]


def test_a_socket_never_connects_to_itself(ns: Namespace) -> None:
    """As it would from the very port on which a receiver of this host should listen (simultaneous open)."""
    used = ns.call(_connect, times=4, to_port=19102, we_close_first=False, listen=False)

    assert used == [0]  # refused, from another port
