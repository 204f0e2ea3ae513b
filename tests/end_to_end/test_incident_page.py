"""The page docs/walkthrough-incident.md, played: HAProxy runs out of ports, ephmon says what and why, the fix ends it.

The commands are those of the page, run once in a shell in a network namespace; only where the page sleeps, what it
sleeps for is waited for instead. The page ends with a minute of waiting for TIME_WAITs and alerts to end, which is left
out. What the tests look at is what the commands have printed.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.cgroups import Cgroups
from tests.namespaces import Namespace
from tests.pages import Block, Shell, blocks_of
from tests.processes import ephmon, eventually, fetch, parse_metrics
from tests.tracing import host_pids

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tests.processes import Metrics

pytestmark = [pytest.mark.only_root("mounts tracefs and makes cgroups"), host_pids]

PAGE = (Path(__file__).parents[2] / "docs" / "walkthrough-incident.md").read_text(encoding="utf-8")
BACKEND = "10.8.0.2:8080"
TOWARD = 'ephmon_destination_connect_exhaustions_total{destination="10.8.0.2",destination_port="8080",netns="own"}'
ERRORS, RETRIES = (f'haproxy_backend_{name}_total{{proxy="shop"}}' for name in ("connection_errors", "retry_warnings"))
HAPROXY = 8404
FIRST_CALLS, ALL_CALLS = 4, 400
"""What one request and a hundred of them make: each is tried four times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """What the commands have printed, and what else was seen."""

    outputs: Mapping[str, str]
    """By the first line of the block."""
    incident: Mapping[str, Any]
    """The file of the first failed call."""
    exhaustions: Mapping[str, Any]
    """/api/v1/exhaustions before the fix."""
    haproxy: Metrics
    """HAProxy's own metrics before the fix."""
    log: list[str]
    """HAProxy's log, to the end."""
    ephmon: Metrics
    """ephmon's metrics at the end."""
    left: set[str]
    """What is left of the cgroup once the shell has ended."""

    def of(self, command: str) -> str:
        """Return what the block that begins so has printed."""
        (found,) = (printed for first, printed in self.outputs.items() if first.startswith(command))
        return found


class Stage:
    """The shell of the page, and eyes on what happens in it."""

    def __init__(self, ns: Namespace, shell: Shell) -> None:
        self.ns = ns
        self.shell = shell

    def metrics(self, port: int = 19100) -> Metrics:
        """Return what somebody says on /metrics, nothing while nobody does."""
        try:
            reply = self.ns.call(fetch, "/metrics", port=port)
        except ConnectionRefusedError:
            return {}
        return parse_metrics(reply.body) if reply.status == 200 else {}

    def waits(self) -> list[Callable[[], object]]:
        """Return what to wait for instead of each of the page's sleeps, but for the last, which nobody waits for."""
        return [
            lambda: eventually(self._service_network, lambda inode: inode != str(self.ns.inode)),
            lambda: eventually(self._ready, bool),
            lambda: eventually(self._first_incident, lambda file: file.strip().endswith("-exhaustion.json")),
            lambda: eventually(lambda: self.metrics().get(TOWARD), lambda number: number == ALL_CALLS),
            lambda: eventually(lambda: self.metrics(HAPROXY).get(ERRORS), lambda number: number == 0),
        ]

    def _service_network(self) -> str:
        (inode,) = re.findall(r"net:\[(\d+)\]", self.shell.run("readlink /proc/$SERVICE/ns/net"))
        return str(inode)

    def _ready(self) -> bool:
        seen = self.metrics()
        counts = seen.get('ephmon_collector_available{collector="exhaustions"}') == 1
        return counts and seen.get("ephmon_poll_success") == 1 and ERRORS in self.metrics(HAPROXY)

    def _first_incident(self) -> str:
        return self.shell.run("ls -d incidents/*-exhaustion.json 2> ls.err")

    def read(self, file: str) -> str:
        return self.shell.run(f"cat {file}")


@pytest.fixture(scope="module", name="story")
def _story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """Play the page below a cgroup of the test's own, so that nothing is left whatever happens."""
    clone = tmp_path_factory.mktemp("clone")
    program = clone / ".venv" / "bin" / "ephmon"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec {shlex.join(ephmon())} "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    with Namespace() as ns, Cgroups(ns) as cgroups:
        cgroups.make("shell")
        # It is to end by itself when the test does, and to clear up on its way.
        alone = ("setpriv", "--pdeathsig", "clear", "unshare", "--mount", "bash")
        with Shell(cgroups.command("shell", *alone), EPHMON=str(clone)) as shell:
            told = _tell(Stage(ns, shell), [_moved(block, cgroups.top) for block in blocks_of(PAGE)])
        yield Story(**told, left=set(cgroups.observer.call(_below, cgroups.mounted / cgroups.top)))


def _moved(block: Block, top: str) -> Block:
    """Return the block with the page's slice put below that of the test."""
    return block._replace(commands=block.commands.replace("cgroup/incident.slice", f"cgroup/{top}/incident.slice"))


def _below(top: Path) -> list[str]:
    return [path.name for path in top.rglob("*.s*") if path.is_dir()]


def _tell(stage: Stage, blocks: list[Block]) -> dict[str, Any]:
    waits = iter(stage.waits())
    outputs: dict[str, str] = {}
    before: dict[str, Any] = {}
    for block in blocks:
        name, printed = block.commands.splitlines()[0], []
        for place, part in enumerate(block.parts()):
            if place and (wait := next(waits, None)) is not None:
                wait()
            elif place:  # the minute at the end
                return {
                    **before,
                    "outputs": outputs,
                    "log": stage.read("proxy.log").splitlines(),
                    "ephmon": stage.metrics(),
                }
            if "proxy.cfg && kill -USR2" in part:
                before = _before_the_fix(stage)
            printed.append(stage.shell.run(part))
        outputs[name] = "".join(printed)
    raise AssertionError("the page does not end with a wait")


def _before_the_fix(stage: Stage) -> dict[str, Any]:
    return {
        "incident": json.loads(stage.read("incidents/*-exhaustion.json")),
        "exhaustions": json.loads(stage.ns.call(fetch, "/api/v1/exhaustions").body),
        "haproxy": stage.metrics(HAPROXY),
    }


def at(line: str) -> datetime:
    """Return the time at the beginning of a line of HAProxy's log, or of one of ephmon."""
    return datetime.fromisoformat(line.split(maxsplit=1)[0])


@pytest.mark.parametrize("block", [block for block in blocks_of(PAGE) if "\nask " in f"\n{block.commands}"])
def test_clients_get_what_the_page_says(story: Story, block: Block) -> None:
    """All are served until no port is left, none after that, all again after the fix, and nothing fails any more."""
    assert story.of(block.commands.splitlines()[0]) == block.printed


def test_ephmon_counts_the_calls_that_haproxy_logs_and_its_metrics_count(story: Story) -> None:
    document = story.exhaustions
    toward = [one["events"] for one in document["destinations"] if one["destination"] == "10.8.0.2"]

    assert (story.haproxy[ERRORS], story.haproxy[RETRIES]) == (100, 300)
    assert toward == [ALL_CALLS]
    assert (document["totals"]["own"], document["lost"]) == (ALL_CALLS, 0)
    assert story.of("grep -c 'no free ports'").splitlines()[:4] == [
        f"{ALL_CALLS}",
        f"{ERRORS} 100",
        f"{RETRIES} 300",
        f"{TOWARD} {ALL_CALLS}.0",
    ]


def test_the_count_stops_with_the_fix(story: Story) -> None:
    assert story.ephmon[TOWARD] == ALL_CALLS
    assert [line.partition(" ")[2] for line in story.log] == [
        "Connect() failed for backend shop: no free ports."
    ] * ALL_CALLS


def test_the_moment_is_that_of_haproxys_own_log(story: Story) -> None:
    """The first call and the last, and the incident comes as soon as they have been asked for and looked into."""
    events = [event for event in story.incident["exhaustions"]["events"] if event["netns"] == "own"]
    own = [event for event in story.exhaustions["events"] if event["netns"] == "own"]

    assert 1 <= len(events) <= FIRST_CALLS
    assert abs((at(events[0]["at"]) - at(story.log[0])).total_seconds()) < 1
    assert abs((at(own[-1]["at"]) - at(story.log[-1])).total_seconds()) < 1
    assert 0 <= (at(story.incident["at"]) - at(story.log[0])).total_seconds() < 3


def test_every_call_is_put_down_to_the_unit(story: Story) -> None:
    events = [event for event in story.exhaustions["events"] if event["netns"] == "own"]

    assert {(event["command"], event["owner"], event["destination"]) for event in events} == {
        ("haproxy", "haproxy.service", "10.8.0.2")
    }


def test_the_incident_names_the_backend_and_the_unit(story: Story) -> None:
    text = story.of("head -n 1 proxy.log")

    assert f": A connect() from 10.8.0.1 to {BACKEND} found no port. It was made by " in text
    assert "It was made by haproxy of haproxy.service (pid " in text
    assert re.search(rf" 10\.8\.0\.1 to {BACKEND}  haproxy \(pid \d+, uid 0\) of haproxy\.service$", text, re.MULTILINE)
    assert re.search(rf"^tcp_connect  10\.8\.0\.1  +{BACKEND}  +100\.0 ", text, re.MULTILINE)


def test_the_log_says_all_of_it_without_being_asked(story: Story) -> None:
    text = story.of("grep -o 'time=")

    assert "EphmonConnectExhaustions fires as critical: " in text
    assert "The last one was made by haproxy of haproxy.service (pid " in text
    assert f"Connections to {BACKEND} do not last: 980 of 1000 usable ports wait in TIME_WAIT" in text


def test_the_advice_is_for_haproxy_and_is_what_the_page_does(story: Story) -> None:
    text = story.of("ephmon pools --owners")
    (fix,) = (block.commands for block in blocks_of(PAGE) if "kill -USR2" in block.commands)

    assert f"tcp_connect from 10.8.0.1 to {BACKEND}: haproxy.service 1000 ports (980 estimated)\n" in text
    assert "1. Send many requests over one connection. HAProxy: `http-reuse safe`, or where clients retry" in text
    assert "nginx" not in text
    assert "http-reuse safe" in fix
    (sysctl,) = re.findall(r"3\. Let connect\(\) take over TIME_WAITs .*: `(.*)`\.", text)
    assert sysctl in fix.splitlines()


def test_nothing_is_left(story: Story) -> None:
    assert story.left == set()
