"""The daemon asks the kernel about ports in doubt by default (poll.probe: auto), as an ordinary user."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests import sockets
from tests.namespaces import Namespace
from tests.ordinary_user import command_of_nobody, readable_folder
from tests.processes import Running, ephmon, put
from tests.sockets import FillResult, Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.only_root("becomes another user")

RANGE = "net.ipv4.ip_local_port_range"
LOW, HIGH = 40_000, 40_099
HERE, PORT = "127.0.0.1", 80
AMBIGUOUS, BLOCKED = (f'{name}_ports{{netns="own"}}' for name in ("ambiguous", "blocked"))
POOL = f'destination="{HERE}",destination_port="{PORT}",kind="tcp_connect",netns="own",source="{HERE}"'
IN_USE = f"pool_in_use_ports{{{POOL}}}"
QUICK = "poll: {interval: 100ms, cpu_budget: 1}\n"
ONE_POLL = "poll: {interval: 1h, deadline: 50s}\n"
MANY = 4_000
"""More ports in doubt than are asked about in one poll where they cannot matter."""


@pytest.fixture(name="ns")
def _ns() -> Iterator[Namespace]:
    """A host where 20 ports were chosen by connect() and 5 by bind(), and no socket tells which."""
    with Namespace() as ns:
        ns.call(sockets.write_sysctl, RANGE, f"{LOW} {HIGH}")
        ns.call(sockets.listen, HERE, PORT, tag="server")
        for number, recipe in ((20, Recipe(connect=(HERE, PORT))), (5, Recipe(bind=(HERE, 0), connect=(HERE, PORT)))):
            assert ns.call(sockets.open_sockets, recipe, tag="clients", limit=number) == FillResult(number, 0)
        yield ns


@pytest.fixture(name="config")
def _config() -> Iterator[Path]:
    """A file that everybody may read."""
    with readable_folder() as folder:
        yield put(folder / "config.yaml", QUICK)


def test_its_figures_are_those_of_the_kernel(ns: Namespace, config: Path) -> None:
    with Running(ns, [*command_of_nobody(), *ephmon("run", "--config", config)]) as daemon:
        metrics = daemon.wait_for(poll_success=1)
        daemon.stop()

    assert metrics[f"ephmon_{AMBIGUOUS}"] == 0
    assert metrics[f"ephmon_{BLOCKED}"] == 5
    assert not [line for line in daemon.lines if "Ambiguous ports are" in line]


def test_where_the_probe_is_not_possible_the_log_says_what_would_help(ns: Namespace, config: Path) -> None:
    ns.call(sockets.write_sysctl, "net.ipv4.tcp_fastopen", 0)
    with Running(ns, [*command_of_nobody(), *ephmon("run", "--config", config)]) as daemon:
        metrics = daemon.wait_for(poll_success=1)
        daemon.wait_for_polls(2)
        daemon.stop()

    assert metrics[f"ephmon_{AMBIGUOUS}"] >= 25  # whoever fetches the metrics may have a port too
    (said,) = [line.partition(" level=")[2] for line in daemon.lines if "Ambiguous ports are" in line]
    assert said == (
        'warning msg="Ambiguous ports are not probed: The probe needs bit 0 of net.ipv4.tcp_fastopen, which is set by '
        'default, or CAP_NET_ADMIN. Set that bit, or run ephmon as root."'
    )


def listen_for_a_moment(number: int) -> None:
    """Listen on so many ports of the range."""
    for _ in range(number):
        assert sockets.open_sockets(Recipe(bind=(HERE, 0), listen=5), tag="moment", limit=1) == FillResult(1, 0)


def test_ports_that_connect_took_after_a_listener_had_left_count_as_in_use(ns: Namespace, config: Path) -> None:
    ns.call(sockets.abort, "clients")
    ns.call(listen_for_a_moment, 30)
    with Running(ns, [*command_of_nobody(), *ephmon("run", "--config", config)]) as daemon:
        daemon.wait_for(**{BLOCKED: 30})
        ns.call(sockets.close, "moment")
        taken = ns.call(sockets.fill, HERE, PORT, tag="clients").count
        seen = daemon.wait_for(**{BLOCKED: 0, IN_USE: taken})
        daemon.stop()

    assert taken >= 98  # whoever fetches the metrics may have a port too
    assert seen[f"ephmon_{AMBIGUOUS}"] == 0


def test_where_ports_in_doubt_can_matter_the_first_poll_asks_about_as_many_as_it_takes(
    ns: Namespace, config: Path
) -> None:
    """Nine of ten are blocked, which is critical, and no socket shows it."""
    ns.call(sockets.write_sysctl, RANGE, f"{LOW} {LOW + MANY - 1}")
    ns.call(sockets.open_sockets, Recipe(bind=(HERE, 0), connect=(HERE, PORT)), tag="clients", limit=MANY * 19 // 20)
    put(config, ONE_POLL)
    with Running(ns, [*command_of_nobody(), *ephmon("run", "--config", config)]) as daemon:
        metrics = daemon.wait_for(poll_success=1)
        daemon.stop()

    assert metrics[f"ephmon_{BLOCKED}"] >= MANY * 9 // 10


def test_where_they_cannot_matter_they_have_their_turn_in_a_later_poll(ns: Namespace, config: Path) -> None:
    ns.call(sockets.write_sysctl, RANGE, f"{LOW} {LOW + MANY * 5 // 2 - 1}")
    ns.call(sockets.fill, HERE, PORT, tag="clients", limit=MANY)
    put(config, ONE_POLL)
    with Running(ns, [*command_of_nobody(), *ephmon("run", "--config", config)]) as daemon:
        first = daemon.wait_for(poll_success=1)
        put(config, QUICK)
        daemon.signal(signal.SIGHUP)
        daemon.wait_for(**{AMBIGUOUS: 0})
        daemon.stop()

    # Some of the clients of the fixture and whoever fetches the metrics have ports too.
    assert 1_000 <= first[f"ephmon_{AMBIGUOUS}"] <= 1_100
    assert not [line for line in daemon.lines if "Ambiguous ports are" in line]
