"""The demo from its first line to its last: real connections through HAProxy, ephmon, Prometheus' rules, Alertmanager.

It runs once, for less than two minutes, and the tests look at what it printed and at what was to be seen meanwhile.
Only root sees failed connect() calls; what is claimed of them is left out for others.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import pytest

from demo.story import FASTER, RULES, cured, shortened_times
from demo.timeline import COMMAND, WIDTH, Entry, shortened
from tests.machine import HAS_HOST_PIDS, IS_ROOT
from tests.namespaces import Namespace
from tests.processes import WAIT_SECONDS, environment, eventually, python_with_libbpf
from tests.tracing import host_pids, instances, only_root, tracing_agent

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "demo.md").read_text(encoding="utf-8")
MOST_SECONDS = 180.0
"""How long the demo takes at most beside other tests. On a machine that does nothing else it takes less than 120."""
RUNBOOK = "runbook file:///usr/share/doc/ephmon/runbook.md#ephmonpoolnearexhaustion"
LABELS = (
    'EphmonPoolNearExhaustion{severity="critical", kind="tcp_connect", source="10.8.0.1", destination="10.8.0.2", '
    'destination_port="8080"}'
)
PROGRAMS = {"ephmon", "haproxy", "prometheus", "prometheus-alertmanager", "wrk", "demo.shop"}
_LINE = re.compile(r"^ *(\d+\.\d) s  (\S+) +(\S.*)$")
_CONTINUED = re.compile(r"^ {20,}(\S.*)$")
_MARK = "EPHMON_DEMO_MARK"


class Said(NamedTuple):
    """Something that the demo printed."""

    seconds: float
    who: str
    text: str


@dataclass(frozen=True, slots=True)
class Shown:
    """What was seen of one demo from its beginning to its end."""

    status: int
    said: Sequence[Said]
    block: str
    """What --transcript printed."""
    programs: frozenset[str]
    """Those that ran while Alertmanager held the alert."""


class Watched:
    """A demo that runs, as a context manager; all its processes can be found by a mark in their environment."""

    def __init__(self, *arguments: str, prefix: Sequence[str] = ()) -> None:
        self.mark = f"{_MARK}={uuid.uuid4()}"
        self.printed = ""
        self.pids: set[int] = set()
        """Of all its processes that were seen."""
        name, _, value = self.mark.partition("=")
        self.process = subprocess.Popen(
            [*prefix, *python_with_libbpf("-m", "demo", *arguments)],
            env=environment(**{name: value}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def read_until(self, words: str | None) -> None:
        """Read standard error until it has these words, or to its end."""
        assert self.process.stderr is not None
        deadline = time.monotonic() + 1.5 * MOST_SECONDS
        while words is None or words not in self.printed:
            ready = select.select([self.process.stderr], [], [], max(0.0, deadline - time.monotonic()))[0]
            assert ready, f"the demo does not go on after {self.printed}"
            chunk = os.read(self.process.stderr.fileno(), 1 << 16)
            if not chunk:
                assert words is None, f"the demo has ended after {self.printed}"
                return
            self.printed += chunk.decode()

    def processes(self) -> dict[int, str]:
        """Return the command lines of its processes by their ids."""
        found = {}
        for directory in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has just ended, or is another user's
                if self.mark.encode() in (directory / "environ").read_bytes().split(b"\0"):
                    command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    found[int(directory.name)] = command
        self.pids |= found.keys()
        return found


@dataclass(frozen=True, slots=True)
class Outside:
    """What a demo might leave behind on the host."""

    mounts: frozenset[str]
    files: frozenset[Path]

    @classmethod
    def now(cls) -> Self:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
        ours = (line for line in mounts if line.startswith(("ephmon-demo ", "nsfs ")))
        return cls(frozenset(ours), frozenset(Path("/tmp").glob("ephmon-demo*")))


def entries(text: str) -> list[Said]:
    """Return what a demo has printed, or a page shows."""
    found: list[Said] = []
    for line in text.splitlines():
        if match := _LINE.match(line):
            found.append(Said(float(match[1]), match[2], match[3]))
        elif found and (more := _CONTINUED.match(line)):
            found[-1] = found[-1]._replace(text=f"{found[-1].text} {more[1]}")
    return found


def tracing_instances_of(pids: Iterable[int]) -> set[str]:
    """Return the tracing instances that daemons with these process ids have made; only root sees any."""
    if not IS_ROOT:
        return set()
    with Namespace() as ns:
        agent = tracing_agent(ns)
        try:
            names = agent.call(instances)
        finally:
            agent.close()
    return {name for name in names if any(name.startswith(f"ephmon-{pid}-") for pid in pids)}


def nothing_is_left(demo: Watched, before: Outside) -> None:
    """Wait until the demo is gone with all that it made, and fail if it stays."""
    eventually(demo.processes, lambda left: left == {})
    eventually(lambda: tracing_instances_of(demo.pids), lambda left: left == set())
    assert Outside.now() == before


@pytest.fixture(scope="module", name="shown")
def _shown() -> Shown:
    before = Outside.now()
    with Watched("--transcript") as demo:
        demo.read_until("Alertmanager  holds")
        programs = " ".join(demo.processes().values())
        if IS_ROOT and HAS_HOST_PIDS:
            assert len(tracing_instances_of(demo.pids)) == 1
        demo.read_until(None)
        block, _ = demo.process.communicate(timeout=WAIT_SECONDS)
        nothing_is_left(demo, before)
    return Shown(
        status=demo.process.returncode,
        said=entries(demo.printed),
        block=block.decode(),
        programs=frozenset(name for name in PROGRAMS if name in programs),
    )


def find(shown: Shown, who: str, words: str) -> int:
    """Return where the first entry with these words stands."""
    places = [place for place, one in enumerate(shown.said) if one.who == who and words in one.text]
    assert places, f"{who} never says {words!r}: {shown.said}"
    return places[0]


def number(shown: Shown, who: str, pattern: str) -> list[int]:
    """Return the numbers in the one text that has this pattern."""
    (found,) = [match for one in shown.said if one.who == who and (match := re.search(pattern, one.text))]
    return [int(group) for group in found.groups()]


def test_it_ends_by_itself_in_a_few_minutes(shown: Shown) -> None:
    assert shown.status == 0
    assert shown.said[-1].seconds < MOST_SECONDS


def test_all_the_programs_take_part(shown: Shown) -> None:
    assert shown.programs == PROGRAMS


def test_one_thing_follows_from_another(shown: Shown) -> None:
    """Warning and critical come before the last port is gone, the fix after the alert, and its end after the fix."""
    places = [
        find(shown, "wrk", "40 clients a second"),
        find(shown, "ephmon", "WARNING EphmonPoolNearExhaustion"),
        find(shown, "ephmon", "CRITICAL EphmonPoolNearExhaustion"),
        find(shown, "ephmon", "100% |"),
        find(shown, "Alertmanager", "holds EphmonPoolNearExhaustion"),
        find(shown, "advice", "1. Send many requests over one connection. HAProxy: `http-reuse safe`"),
        find(shown, "fix", "Step 1"),
        find(shown, "ephmon", "EphmonPoolNearExhaustion is over."),
        find(shown, "HAProxy", "No connection fails any more."),
        find(shown, "fix", "The TIME_WAITs are gone"),
        find(shown, "Alertmanager", "holds no alert any more."),
    ]

    assert places == sorted(places)


def test_the_pager_says_the_warning_the_critical_and_the_end(shown: Shown) -> None:
    places = [
        find(shown, "pager", "FIRING EphmonPoolNearExhaustion, warning"),
        find(shown, "pager", "FIRING EphmonPoolNearExhaustion, critical"),
        find(shown, "fix", "Step 1"),
        find(shown, "pager", "RESOLVED EphmonPoolNearExhaustion, critical"),
    ]

    assert places == sorted(places)
    # The log and the pager are two streams, so which of them is read first is left to chance.
    assert find(shown, "ephmon", "WARNING EphmonPoolNearExhaustion") < places[1]


def test_alertmanager_holds_the_alert_with_its_labels_and_the_runbook(shown: Shown) -> None:
    assert shown.said[find(shown, "Alertmanager", "holds Ephmon")].text == f"holds {LABELS}, {RUNBOOK}"


@only_root
@host_pids
def test_the_kernel_tells_of_as_many_failed_calls_as_haproxy_and_who_made_them(shown: Shown) -> None:
    critical = find(shown, "ephmon", "CRITICAL EphmonPoolNearExhaustion")
    failed = find(shown, "ephmon", "connect() FAILED for want of a port: haproxy (pid ")

    assert critical < failed < find(shown, "fix", "Step 1")
    assert number(shown, "ephmon", r"^(\d+) connect\(\) calls failed, says the kernel") == number(
        shown, "HAProxy", r"(\d+) did, says its log"
    )


def test_more_requests_than_ports_take_few_connections_after_the_fix(shown: Shown) -> None:
    requests, connections = number(shown, "HAProxy", r"^(\d+) requests since the reload have taken (\d+) connections")

    assert requests > 2000
    assert 0 < connections < 100


def test_nobody_waits_in_vain_after_the_fix(shown: Shown) -> None:
    """The clients that got no answer are those that HAProxy had no port for."""
    answered, lost = number(shown, "wrk", r"^(\d+) requests were answered, (\d+) were not")

    assert answered > 2000
    assert [lost] == number(shown, "HAProxy", r"(\d+) did, says its log")


@only_root
@host_pids
def test_the_readme_shows_what_the_demo_prints(shown: Shown) -> None:
    """But for what there may be or not: figures, forecasts, and an alert that is a warning before it is over."""
    (block,) = re.findall(r"^<!-- demo: begin -->\n(.*?)<!-- demo: end -->$", PAGE, re.MULTILINE | re.DOTALL)

    assert block.startswith(f"```\n{COMMAND}\n")
    assert structure(block) == structure(shown.block)
    assert [line for line in block.splitlines() if len(line) > WIDTH] == []


def structure(block: str) -> list[tuple[str, str]]:
    """Return how the entries of a block begin, without the figures, and in no order: some happen at the same time."""
    said = {
        (one.who, " ".join(without_figures(one.text).split()[:6]))
        for one in entries(block)
        if not any(perhaps in one.text for perhaps in (" |", "Forecast", "is but a warning now"))
    }
    return sorted(said)


def without_figures(text: str) -> str:
    return re.sub(r"\d+(\.\d+)?", "N", text).replace("calls", "call")


def test_the_block_says_little_that_only_repeats() -> None:
    said = [
        Entry(seconds=1.0, who="ephmon", text="10% |", is_figures=True),
        Entry(seconds=2.0, who="ephmon", text="20% |", is_figures=True),
        Entry(seconds=3.0, who="fix", text="Step 1"),
        Entry(seconds=4.04, who="advice", text=f"1. Send {'many ' * 40}requests"),
        Entry(seconds=111.0, who="ephmon", text="0% |", is_figures=True),
    ]

    assert shortened(said) == (
        "```\n"
        "$ ./script/demo\n"
        "   2.0 s  ephmon        20% |\n"
        "   3.0 s  fix           Step 1\n"
        f"   4.0 s  advice        1. Send {'many ' * 16}many ...\n"
        " 111.0 s  ephmon        0% |\n"
        "```\n"
    )


def test_the_times_that_the_demo_shortens_stand_in_the_rules() -> None:
    rules = (RULES / "ephmon-alerts.yml").read_text(encoding="utf-8")

    assert [usual for usual in FASTER if usual not in rules] == []
    assert [usual for usual in FASTER if usual in shortened_times(rules)] == []


def test_the_cure_changes_what_the_advice_names_and_nothing_else() -> None:
    proxy = (ROOT / "demo" / "proxy.cfg").read_text(encoding="utf-8").splitlines()

    assert set(cured("\n".join(proxy)).splitlines()) ^ set(proxy) == {
        "  mode tcp",
        "  http-reuse aggressive",
    }


def test_without_root_it_says_what_is_missing_and_ctrl_c_leaves_but_what_is_to_be_kept() -> None:
    before = Outside.now()
    unprivileged = ["unshare", "--user", "--map-root-user", "--"] if IS_ROOT else []
    with Watched("--transcript", "--keep", prefix=unprivileged) as demo:
        demo.read_until("MISSING is what the kernel says of failed connect() calls, for which it takes root")
        demo.processes()
        demo.process.send_signal(signal.SIGINT)

        assert demo.process.wait(WAIT_SECONDS) == 128 + signal.SIGINT
        demo.read_until(None)
        (kept,) = re.findall(r"^The files are in (\S+)\.$", demo.printed, re.MULTILINE)
        assert {"ephmon.err", "proxy.cfg", "prometheus.err"} <= {path.name for path in Path(kept).iterdir()}
        shutil.rmtree(kept)
        nothing_is_left(demo, before)


def test_killing_it_leaves_nothing() -> None:
    before = Outside.now()
    with Watched("--transcript") as demo:
        demo.read_until("40 clients a second")
        assert len(demo.processes()) > len(PROGRAMS)
        demo.process.kill()

        nothing_is_left(demo, before)


def test_a_wrong_option_is_one_sentence() -> None:
    done = subprocess.run(
        python_with_libbpf("-m", "demo", "--fast"),
        env=environment(),
        capture_output=True,
        timeout=WAIT_SECONDS,
        check=False,
    )

    assert done.returncode == 2
    assert done.stderr.endswith(b"script/demo: error: unrecognized arguments: --fast\n")
