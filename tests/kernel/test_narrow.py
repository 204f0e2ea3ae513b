"""Narrow polls on the real kernel: the filter copies the sockets toward some destinations alone."""

from __future__ import annotations

import time
from collections import Counter
from ipaddress import ip_address
from pathlib import Path

from ephmon.facts.failed_calls import Destination
from ephmon.facts.namespaces import OWN_NETNS
from ephmon.kernel.source import SocketSource
from tests import sockets
from tests.namespaces import Namespace


def read_toward(*destinations: tuple[str, int]) -> dict[tuple[str, int], int]:
    """Return how many sockets a narrow poll finds toward each destination."""
    source = SocketSource(proc=Path("/proc"), clock=time.monotonic, wall_clock=time.time)
    ends = [Destination(OWN_NETNS, ip_address(address).packed, port) for address, port in destinations]
    (narrow,) = source.read_toward(ends, 5.0).namespaces
    groups = [narrow.connections.groups[index] for index in narrow.connections.group_of]
    return Counter((str(ip_address(group.destination)), group.destination_port) for group in groups)


def test_only_the_destinations_asked_for_are_copied_out_of_the_kernel() -> None:
    with Namespace() as ns:
        ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", "40000 40999")
        for address, port in (("127.0.0.1", 80), ("127.0.0.1", 81), ("127.0.0.2", 80), ("::1", 80)):
            ns.call(sockets.listen, address, port, tag="server")
        ns.call(sockets.fill, "127.0.0.1", 80, tag="clients", limit=5)
        ns.call(sockets.fill, "127.0.0.1", 81, tag="clients", limit=6)
        ns.call(sockets.fill, "127.0.0.2", 80, tag="clients", limit=7)
        ns.call(sockets.fill, "::1", 80, tag="clients", limit=8)
        ns.call(sockets.fill, "::ffff:127.0.0.1", 80, tag="clients", limit=9)

        assert ns.call(read_toward, ("127.0.0.1", 80)) == {("127.0.0.1", 80): 14}
        assert ns.call(read_toward, ("127.0.0.2", 80), ("::1", 80)) == {("127.0.0.2", 80): 7, ("::1", 80): 8}
        assert ns.call(read_toward, ("127.0.0.9", 80)) == {}


def test_as_many_destinations_as_are_watched_at_most_fit_into_one_filter() -> None:
    with Namespace() as ns:
        ns.call(sockets.listen, "::1", 80, tag="server")
        ns.call(sockets.fill, "::1", 80, tag="clients", limit=3)
        others = [(f"2001:db8::{number}", 65_535) for number in range(1, 16)]

        assert ns.call(read_toward, *others, ("::1", 80)) == {("::1", 80): 3}
