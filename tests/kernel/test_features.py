"""What the kernel can do is found by trying, without taking anything from anybody."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from ephmon.kernel.deadline import Deadline
from ephmon.kernel.features import release_number, shows_bound_unconnected
from ephmon.kernel.netlink import Request, SockDiag
from ephmon.model.snapshot import PortRange
from tests import sockets
from tests.namespaces import Namespace
from tests.sockets import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SHOWS = release_number(os.uname().release) >= (6, 8)
ONE_PORT_OUTSIDE, NONE_OUTSIDE = PortRange(1_024, 65_534), PortRange(1_024, 65_535)


@pytest.fixture(name="ns")
def _ns() -> Iterator[Namespace]:
    with Namespace() as ns:
        yield ns


class _CountingDiag(SockDiag):
    """Counts the dumps that are asked for."""

    dumps = 0

    def dump(self, request: Request, consume: Callable[[int, bytearray], None], deadline: Deadline) -> None:
        self.dumps += 1
        super().dump(request, consume, deadline)


def try_it(port_range: PortRange) -> tuple[bool, int]:
    """Return the finding, and how many dumps it took."""
    with _CountingDiag() as diag:
        return shows_bound_unconnected(diag, port_range, Deadline(60, time.monotonic)), diag.dumps


def test_it_is_tried_on_a_port_outside_the_range(ns: Namespace) -> None:
    assert ns.call(try_it, PortRange(32_768, 60_999)) == (SHOWS, 1)
    assert ns.call(try_it, ONE_PORT_OUTSIDE) == (SHOWS, 1)


def test_where_no_port_is_outside_the_release_decides(ns: Namespace) -> None:
    assert ns.call(try_it, NONE_OUTSIDE) == (SHOWS, 0)


def test_where_every_port_outside_is_taken_the_release_decides(ns: Namespace) -> None:
    ns.call(sockets.listen, "0.0.0.0", 65_535, tag="server")

    assert ns.call(try_it, ONE_PORT_OUTSIDE) == (SHOWS, 0)


def test_the_port_it_was_tried_on_is_free_again(ns: Namespace) -> None:
    ns.call(try_it, ONE_PORT_OUTSIDE)

    assert ns.call(sockets.open_sockets, Recipe(bind=("0.0.0.0", 65_535)), tag="bound", limit=1).count == 1


@pytest.mark.parametrize(
    ("release", "number"),
    [("6.18.44-generic", (6, 18)), ("6.1.0-38-amd64", (6, 1)), ("5.10", (5, 10)), ("six", (0, 0)), ("", (0, 0))],
)
def test_a_release_is_its_first_two_numbers(release: str, number: tuple[int, int]) -> None:
    assert release_number(release) == number
