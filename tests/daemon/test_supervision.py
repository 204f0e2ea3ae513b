"""The daemon under a service manager: what it says of itself at its start, a reload, its stop, and while it polls."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.namespaces import Namespace
from tests.processes import (
    WAIT_SECONDS,
    Running,
    environment,
    ephmon,
    eventually,
    make_proc,
    opened_by_its_reader,
    put,
    python,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

QUICK = "poll: {interval: 100ms, deadline: 1s, cpu_budget: 1}\n"
SLOW = "poll: {interval: 1h}\n"
"""Between two polls of this one only signals and the watchdog wake the daemon."""
WATCHDOG = "WATCHDOG=1"


class Listener:
    """A service manager that listens, and remembers all that it was told, in order."""

    def __init__(self, listening: socket.socket) -> None:
        self._socket = listening
        self.messages: list[str] = []

    def wait_for(self, is_meant: Callable[[str], bool]) -> str:
        """Wait until a message is told that is meant, and return it; those told before do not count."""
        while True:
            self.messages.append(self._socket.recv(1 << 16).decode())
            if is_meant(self.messages[-1]):
                return self.messages[-1]

    def read_all(self) -> list[str]:
        """Return all that was told until now."""
        self._socket.setblocking(False)
        try:
            while True:
                self.messages.append(self._socket.recv(1 << 16).decode())
        except BlockingIOError:
            return self.messages


def is_ready(message: str) -> bool:
    return message.startswith("READY=1\n")


@pytest.fixture(name="ns")
def _ns() -> Iterator[Namespace]:
    with Namespace() as ns:
        yield ns


@pytest.fixture(name="config")
def _config(tmp_path: Path) -> Path:
    return put(tmp_path / "config.yaml", QUICK)


@contextmanager
def supervised(
    ns: Namespace, folder: Path, watchdog_seconds: float = 60.0, *, command: list[str] | None = None
) -> Iterator[tuple[Running, Listener]]:
    """Start the daemon as a service manager does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(folder / "notify"))
        listening.settimeout(WAIT_SECONDS)
        env = environment(NOTIFY_SOCKET=str(folder / "notify"), WATCHDOG_USEC=str(int(watchdog_seconds * 1e6)))
        with Running(ns, command or ephmon("run", "--config", folder / "config.yaml"), env=env) as daemon:
            yield daemon, Listener(listening)


@pytest.mark.usefixtures("config")
def test_it_is_ready_after_its_first_poll_and_says_when_it_stops(ns: Namespace, tmp_path: Path) -> None:
    with supervised(ns, tmp_path) as (daemon, listener):
        ready = listener.wait_for(is_ready)
        polls = daemon.metrics()['ephmon_polls_total{scope="full"}']
        daemon.stop()
        told = listener.read_all()

    assert ready == "READY=1\nSTATUS=No pool holds enough ports to be listed."
    assert polls >= 1
    assert told[:2] == ["EXTEND_TIMEOUT_USEC=12000000", WATCHDOG]
    assert told[-1] == "STOPPING=1\nSTATUS=Stopping."


@pytest.mark.usefixtures("config")
def test_a_first_poll_that_fails_makes_it_ready_too_and_stands_in_the_status(ns: Namespace, tmp_path: Path) -> None:
    hidden = ["unshare", "--mount", "--", "sh", "-c", 'mount -t tmpfs none /proc/sys && exec "$@"', "sh"]
    command = [*hidden, *ephmon("run", "--config", tmp_path / "config.yaml")]
    with supervised(ns, tmp_path, command=command) as (daemon, listener):
        ready = listener.wait_for(is_ready)
        listener.wait_for(lambda message: message == WATCHDOG)
        metrics = daemon.metrics()

    assert ready.startswith("READY=1\nSTATUS=The last poll failed: /proc/sys/")
    assert ready.endswith("The kernel has not been read successfully yet, so there are no figures.")
    assert metrics["ephmon_poll_success"] == 0


def test_a_reload_is_reported_with_its_time_and_its_end(ns: Namespace, tmp_path: Path, config: Path) -> None:
    put(config, SLOW)
    with supervised(ns, tmp_path) as (daemon, listener):
        listener.wait_for(is_ready)
        daemon.signal(signal.SIGHUP)
        good = [listener.wait_for(lambda _: True) for _ in range(2)]
        listener.wait_for(lambda message: message == WATCHDOG)
        put(config, "poll: {interval: never}\n")
        daemon.signal(signal.SIGHUP)
        bad = [listener.wait_for(lambda _: True) for _ in range(2)]

    assert good[0].startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert good[1] == "READY=1\nSTATUS=No pool holds enough ports to be listed."
    assert bad[0].startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert bad[1].startswith("READY=1\nSTATUS=The last reload failed, the old configuration is in force: ")
    assert "poll.interval" in bad[1]


def test_the_watchdog_is_fed_between_polls_that_are_far_apart(ns: Namespace, tmp_path: Path, config: Path) -> None:
    """The interval is an hour, and the watchdog waits for half a second by itself."""
    put(config, SLOW)
    with supervised(ns, tmp_path, watchdog_seconds=0.5) as (_, listener):
        listener.wait_for(is_ready)
        fed = [listener.wait_for(lambda _: True) for _ in range(3)]

    assert fed == [WATCHDOG] * 3
    assert "WATCHDOG_USEC=20000000" in listener.messages


def test_a_poll_beyond_its_deadline_that_does_not_end_feeds_no_watchdog(
    ns: Namespace, tmp_path: Path, config: Path
) -> None:
    """It waits for a file that nobody writes, which no deadline can cut, as a file of a kernel that hangs."""
    put(config, "poll: {backend: procfs, interval: 100ms, deadline: 100ms, cpu_budget: 1}\n")
    with supervised(ns, tmp_path, 0.2, command=with_proc(tmp_path)) as (daemon, listener):
        listener.wait_for(is_ready)
        table = tmp_path / "proc" / "net" / "tcp"
        pause(table)
        with opened_by_its_reader(table):
            listener.read_all()
            before = listener.read_all().count(WATCHDOG)
            eventually(lambda: daemon.get("/metrics").body, lambda body: "ephmon_poll_success 0" in body)
            assert listener.read_all().count(WATCHDOG) == before


def pause(table: Path) -> None:
    """Put a FIFO without a writer in the place of a table."""
    fifo = table.with_suffix(".fifo")
    os.mkfifo(fifo)
    fifo.rename(table)


def with_proc(folder: Path) -> list[str]:
    """Return the command line of a daemon that reads a procfs and config.yaml of this folder."""
    make_proc(folder)
    return python(
        "-c",
        "import sys; from pathlib import Path; "
        "from ephmon.config.settings import load; from ephmon.daemon.loop import Daemon; "
        "here = Path(sys.argv[1]); Daemon(lambda: load(here / 'config.yaml'), proc=here / 'proc').run()",
        str(folder),
    )
