"""Faults that others on the host cause: what they open, what they call themselves, and what they remove."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import ephmon
from tests import sockets
from tests.cgroups import Cgroups
from tests.faults.attacks import call_yourself, open_toward
from tests.faults.case import CONFIG, Check, Fault, Start, parameters, run_with_configuration
from tests.faults.checks import ALERT_FIRES, IS_SCRAPED, POLLS_GO_ON
from tests.faults.stage import HERE, PORT
from tests.namespaces import ip
from tests.sockets import FillResult, Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults.case import Case
    from tests.faults.stage import Stage
    from tests.namespaces import Agent

DESTINATIONS, DESTINATIONS_OF_AN_AGENT = 60_000, 7_500
LISTENERS, LISTENERS_OF_AN_AGENT = 10_000, 5_000
HOSTILE = b'\x1b[2J\n"\xff\x00'
"""What clears a screen, ends a line, ends a quotation, and is not UTF-8."""
HOSTILE_CGROUP = "system.slice/\x1b[2J\"'{}.service"
MOST_SERIES = 50 * 8
"""pools.top times the metrics of a pool."""


@contextmanager
def _many_destinations(stage: Stage) -> Iterator[None]:
    """Let nobody answer in 10.0.0.0/8: its packets go to the loopback device, and are for no address there."""
    stage.ns.add_address("192.0.2.1/32")
    stage.ns.call(ip, "route", "add", "10.0.0.0/8", "dev", "lo")
    stage.ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", "20000 60999")
    for first in range(0, DESTINATIONS, DESTINATIONS_OF_AN_AGENT):
        stage.ns.another_agent().call(open_toward, first, DESTINATIONS_OF_AN_AGENT)
    yield


@contextmanager
def _many_listeners(stage: Stage) -> Iterator[None]:
    stage.ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", "30000 60999")
    holder = Recipe(bind=(HERE, 0), listen=1)
    for _ in range(LISTENERS // LISTENERS_OF_AN_AGENT):
        agent = stage.ns.another_agent()
        opened = agent.call(sockets.open_sockets, holder, tag="listeners", limit=LISTENERS_OF_AN_AGENT)
        assert opened == FillResult(LISTENERS_OF_AN_AGENT, 0)
    yield


def _counts_the_destinations(stage: Stage) -> None:
    stage.wait_for_value('pools{kind="tcp_connect",netns="own"}', DESTINATIONS)
    series = [name for name in stage.daemon.metrics() if name.startswith("ephmon_pool_")]
    assert len(series) <= MOST_SERIES


def _counts_the_listeners(stage: Stage) -> None:
    stage.wait_for_value('blocked_ports{netns="own"}', LISTENERS)


@contextmanager
def _hostile_name(stage: Stage) -> Iterator[None]:
    agent = stage.ns.another_agent()
    agent.call(call_yourself, HOSTILE)
    _hold_ports(stage, agent)
    yield


@contextmanager
def _hostile_cgroup(stage: Stage) -> Iterator[None]:
    cgroups = stage.keep(Cgroups(stage.ns))
    cgroups.make(HOSTILE_CGROUP)
    _hold_ports(stage, stage.keep(cgroups.agent(HOSTILE_CGROUP)))
    yield


def _hold_ports(stage: Stage, agent: Agent) -> None:
    assert agent.call(sockets.fill, HERE, PORT, tag="clients", limit=950) == FillResult(950, 0)
    stage.daemon.wait_for_line("are held by ")


def _shows_no_control_characters(stage: Stage) -> None:
    assert all(line.isascii() and line.isprintable() for line in stage.daemon.lines)
    for path in ("/metrics", "/", "/api/v1/pools"):
        assert not any(character < " " for character in stage.daemon.get(path).body.replace("\n", ""))
    json.loads(stage.daemon.get("/api/v1/pools").body)


@contextmanager
def _modules_removed(stage: Stage) -> Iterator[None]:
    """Remove the package, as an upgrade does, and let an alert fire after that."""
    shutil.rmtree(stage.folder / "code")
    stage.fill()
    yield


def _run_a_copy(folder: Path) -> list[str]:
    """Return the command line of a daemon whose modules lie in the folder."""
    script = 'PYTHONPATH="$0:$PYTHONPATH" exec "$@"'
    return ["sh", "-c", script, str(folder / "code"), *run_with_configuration(folder)]


def _copy_modules(stage: Stage) -> None:
    package = Path(ephmon.__file__).parent
    shutil.copytree(package, stage.folder / "code" / "ephmon", ignore=shutil.ignore_patterns("__pycache__"))


SHOWS_NO_CONTROL_CHARACTERS = Check(
    "Log, page, metrics and JSON have no control character and no broken line.", _shows_no_control_characters
)

CASES: tuple[Case, ...] = (
    Fault(
        name=f"{DESTINATIONS:,} destinations",
        done="A client has begun a connection to each of them.",
        inject=_many_destinations,
        start=Start(config=CONFIG.replace("interval: 100ms", "interval: 2s")),
        meanwhile=[
            Check("It counts them all, and has series of the fullest 50.", _counts_the_destinations),
            IS_SCRAPED,
        ],
    ),
    Fault(
        name=f"{LISTENERS:,} listeners",
        done="Others listen on so many ports of the range.",
        inject=_many_listeners,
        meanwhile=[Check("It counts them all as blocked.", _counts_the_listeners), POLLS_GO_ON, IS_SCRAPED],
    ),
    Fault(
        name="a process has a hostile name",
        done="It clears the screen, ends the line, and is not UTF-8. The process holds the ports of an alert.",
        inject=_hostile_name,
        meanwhile=[POLLS_GO_ON, ALERT_FIRES, SHOWS_NO_CONTROL_CHARACTERS],
        says=["are held by "],
    ),
    Fault(
        name="a cgroup has a hostile name",
        done="It clears the screen and has quotation marks and braces. A process in it holds the ports of an alert.",
        inject=_hostile_cgroup,
        meanwhile=[POLLS_GO_ON, ALERT_FIRES, SHOWS_NO_CONTROL_CHARACTERS],
        says=["are held by "],
        needs={"only_root": "makes cgroups"},
    ),
    Fault(
        name="its modules are removed",
        done="The package is removed, as an upgrade does, before an alert fires.",
        inject=_modules_removed,
        start=Start(config=CONFIG, prepare=_copy_modules, command=_run_a_copy),
        meanwhile=[POLLS_GO_ON, ALERT_FIRES],
    ),
)


@pytest.mark.parametrize("case", parameters(CASES))
def test_ephmon_does_and_says_what_it_should(case: Case, stage: Stage) -> None:
    case.play(stage)
