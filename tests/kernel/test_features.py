"""What the kernel can do is found by trying, without taking anything from anybody."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ephmon.facts.snapshot import PortRange
from ephmon.kernel.deadline import Deadline
from ephmon.kernel.features import ports_recover, shows_bound_unconnected
from ephmon.kernel.netlink.sock_diag import Request, SockDiag
from ephmon.kernel.proc.sysctl import read_release
from tests import sockets
from tests.namespaces import Namespace, ip
from tests.sockets import FillResult, Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SHOWS = read_release(Path("/proc")) >= (6, 8)
ONE_PORT_OUTSIDE, NONE_OUTSIDE = PortRange(1_024, 65_534), PortRange(1_024, 65_535)


@pytest.fixture(name="ns")
def _ns() -> Iterator[Namespace]:
    with Namespace() as ns:
        yield ns


class _CountingDiag(SockDiag):
    """Counts the dumps that are asked for, and lets a server come up in each."""

    dumps = 0
    server: Recipe | None = None

    def dump(self, request: Request, consume: Callable[[int, bytearray], None], deadline: Deadline) -> None:
        self.dumps += 1
        if self.server:
            assert sockets.open_sockets(self.server, tag="meanwhile", limit=1) == FillResult(1, 0)
        super().dump(request, consume, deadline)


def try_it(
    port_range: PortRange, release: tuple[int, int] = (0, 0), *, meanwhile: Recipe | None = None
) -> tuple[bool, int]:
    """Return the finding, and how many dumps it took."""
    with _CountingDiag() as diag:
        diag.server = meanwhile
        return shows_bound_unconnected(diag, port_range, Deadline(60, time.monotonic), release=release), diag.dumps


def test_it_is_tried_on_a_port_outside_the_range(ns: Namespace) -> None:
    assert ns.call(try_it, PortRange(32_768, 60_999)) == (SHOWS, 1)
    assert ns.call(try_it, ONE_PORT_OUTSIDE) == (SHOWS, 1)


def test_where_no_port_is_outside_the_release_decides(ns: Namespace) -> None:
    assert ns.call(try_it, NONE_OUTSIDE, (6, 7)) == (False, 0)
    assert ns.call(try_it, NONE_OUTSIDE, (6, 8)) == (True, 0)


def test_where_every_port_outside_is_taken_the_release_decides(ns: Namespace) -> None:
    ns.call(sockets.listen, "0.0.0.0", 65_535, tag="server")

    assert ns.call(try_it, ONE_PORT_OUTSIDE, (6, 7)) == (False, 0)
    assert ns.call(try_it, ONE_PORT_OUTSIDE, (6, 8)) == (True, 0)


def test_where_loopback_has_no_address_the_release_decides(ns: Namespace) -> None:
    ns.call(ip, "address", "flush", "dev", "lo")

    assert ns.call(try_it, ONE_PORT_OUTSIDE, (6, 7)) == (False, 0)
    assert ns.call(try_it, ONE_PORT_OUTSIDE, (6, 8)) == (True, 0)


def test_servers_of_one_address_leave_the_port_for_it(ns: Namespace) -> None:
    ns.call(sockets.listen, "127.0.0.1", 65_535, tag="server")

    assert ns.call(try_it, ONE_PORT_OUTSIDE) == (SHOWS, 1)


@pytest.mark.parametrize(
    "server",
    [Recipe(bind=("127.0.0.1", 65_535)), Recipe(bind=("0.0.0.0", 65_535), reuse_address=True)],
    ids=["of one address", "of all addresses, with SO_REUSEADDR"],
)
def test_it_leaves_the_port_for_a_server_that_comes_up_meanwhile(ns: Namespace, server: Recipe) -> None:
    assert ns.call(try_it, ONE_PORT_OUTSIDE, meanwhile=server) == (SHOWS, 1)


def test_the_port_it_was_tried_on_is_free_again(ns: Namespace) -> None:
    ns.call(try_it, ONE_PORT_OUTSIDE)

    assert ns.call(sockets.open_sockets, Recipe(bind=("0.0.0.0", 65_535)), tag="bound", limit=1).count == 1


@pytest.mark.parametrize(("release", "recover"), [((6, 17), False), ((6, 18), True), ((7, 0), True), ((5, 19), False)])
def test_ports_recover_since_linux_6_18(release: tuple[int, int], recover: bool) -> None:
    assert ports_recover(release) == recover
