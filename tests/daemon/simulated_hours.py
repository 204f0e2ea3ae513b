"""Hours of a host in minutes: a real poller reads and asks the real kernel, and only its clock is set by the test.

Functions for `Namespace.call`. Sockets come and go as the test says, and one step is two minutes of its clock.
Connections are reset and not closed: the kernel counts the minute of a TIME_WAIT by its own clock.
"""

from __future__ import annotations

import random
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from ephmon.config.settings import parse
from ephmon.daemon.owner_watch import OwnerWatch
from ephmon.daemon.poller import Poller
from ephmon.daemon.search_timer import SearchTimer
from ephmon.kernel.source import SocketSource
from ephmon.model.report import ReloadStatus
from ephmon.model.state import initial_state
from tests import sockets
from tests.sockets import FillResult, Recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ephmon.config.settings import Config
    from ephmon.model.report import Report
    from ephmon.model.state import State

LOW, SIZE = 40_000, 200
HERE = "10.9.0.1"
SERVERS = ("10.9.1.1", "10.9.1.2", "10.9.1.3")
HERE_V6, SERVER_V6 = "fd00::1", "fd00::2"
ADDRESSES = [f"{address}/32" for address in (HERE, *SERVERS)] + [f"{HERE_V6}/128", f"{SERVER_V6}/128"]
PORT = 443
MOST = SIZE * 69 // 100
"""So many ports of a pool are in use at most on a day on which nothing is wrong; the warning comes at 70 %."""

STEP_SECONDS = 120.0
RAMP_SECONDS = 60.0

_PROC = Path("/proc")


class Watched:
    """A host that is watched: a poller, what it remembers, and the clock of both."""

    def __init__(self, config: Config, source: type[SocketSource] = SocketSource) -> None:
        self.now = 1_000_000.0
        self.alerts: dict[str, float] = {}
        """Every alert that has fired, and when a poll first said so."""
        self._config = config
        self._source = source
        self.start_daemon()

    def start_daemon(self) -> None:
        """Begin without a memory, as a daemon that has just been started."""
        source = self._source(proc=_PROC, clock=self._clock, wall_clock=self._clock)
        owners = OwnerWatch(_PROC, self._clock, lambda: True)
        self._poller = Poller(source, owners, self._config.poll, clock=self._clock, wanted=lambda: True)
        self._search_timer = SearchTimer(self._clock)
        self._state: State = initial_state(self._config.rules, ReloadStatus(successful=True, succeeded_at=self.now))

    @property
    def report(self) -> Report:
        """What the last poll concluded."""
        return self._state.report

    def poll_after(self, seconds: float) -> None:
        """Let so much time pass, then poll."""
        self.now += seconds
        self._state = self._search_timer.with_search_time(self._poller.full(self._state), self._config.poll)
        if not self.report.success:
            raise AssertionError(self.report.error)
        for alert in self.report.alerts.firing:
            pool = alert.key.pool
            what = alert.key.name if pool is None else f"{alert.key.name} {pool.kind}"
            self.alerts.setdefault(f"{what} {alert.severity}", self.now)

    def _clock(self) -> float:
        return self.now


class Day:
    """A day on which nothing is wrong: no pool is ever fuller than `MOST`, and nobody lets bind() choose a port."""

    def __init__(self, watched: Sequence[Watched], seed: int) -> None:
        self._watched = watched
        self._chance = random.Random(seed)
        self._clients = 0

    def pass_by(self, hours: int) -> None:
        """Let so many hours pass, each with something else that hosts go through."""
        kinds = (
            self._peaks_and_drains,
            self._range_changes,
            self._clients_with_own_ranges,
            self._churn,
            self._services,
        )
        for hour in range(hours):
            self._restart_perhaps()
            kinds[hour % len(kinds)](self._chance.sample(SERVERS, 2))
        self._leave(1.0)

    def _peaks_and_drains(self, servers: list[str]) -> None:
        """What lives on after a peak lies where the peak put it: on ports of both parities."""
        for server in servers:
            for _ in range(10):
                self._fill(server, self._held(server) + MOST // 8)
                self._pass()
            self._restart_perhaps()
            for _ in range(5):
                self._leave(0.12, server)
                self._pass()
            self._restart_perhaps()

    def _range_changes(self, servers: list[str]) -> None:
        """The range is shifted by one under load, widened, and set back after the load."""
        for low, size in ((LOW, SIZE), (LOW + 1, SIZE), (LOW + 1, 2 * SIZE)):
            set_range(low, size)
            for _ in range(10):
                self._fill(servers[0], self._held(servers[0]) + 30)
                self._leave(0.2, servers[0])
                self._pass()
        self._leave(1.0)
        set_range(LOW, SIZE)

    def _clients_with_own_ranges(self, servers: list[str]) -> None:
        """Some clients keep to a quarter of the range (IP_LOCAL_PORT_RANGE), beside others that do not."""
        self._leave(1.0)
        quarter = (LOW + SIZE // 4, LOW + SIZE // 2 - 1)
        for _ in range(30):
            self._leave(0.2)
            self._fill(servers[0], SIZE // 5, port_range=quarter)
            self._fill(servers[1], SIZE // 2)
            self._pass()

    def _churn(self, servers: list[str]) -> None:
        """Nine of ten connections are other ones at the next poll."""
        for _ in range(30):
            self._leave(0.9)
            for server in servers:
                self._fill(server, MOST * 3 // 4)
            self._pass()

    def _services(self, servers: list[str]) -> None:
        """Services listen on ports of the range, accept, and leave while what they accepted stays."""
        for _ in range(10):
            sockets.listen(HERE, 0, tag="service")
            (port,) = sockets.ports_of("service")
            filled = sockets.open_sockets(Recipe(connect=(HERE, port)), tag="clients of it", limit=5)
            sockets.accept_all("service", tag="accepted")
            sockets.close("service")
            if filled != FillResult(5, 0):
                raise AssertionError(filled)
            self._fill(servers[0], self._held(servers[0]) + 20)
            for _ in range(3):
                self._leave(0.05)
                self._pass()
            sockets.abort("clients of it")
            sockets.abort("accepted")

    def _restart_perhaps(self) -> None:
        for one in self._watched:
            if self._chance.random() < 0.5:
                one.start_daemon()

    def _pass(self) -> None:
        sockets.accept_all("servers", tag="taken by servers")
        sockets.held["taken by servers"] = [one for one in sockets.held["taken by servers"] if not _was_reset(one)]
        for one in self._watched:
            one.poll_after(STEP_SECONDS)

    def _held(self, server: str) -> int:
        return sum(tag.startswith(f"{server} ") for tag in sockets.held)

    def _fill(self, server: str, number: int, port_range: tuple[int, int] | None = None) -> None:
        """Let clients connect until the server has so many, each under a tag of its own, so that each may leave."""
        recipe = Recipe(connect=(server, PORT), port_range=port_range)
        for _ in range(min(number, MOST) - self._held(server)):
            self._clients += 1
            got = sockets.open_sockets(recipe, tag=f"{server} {self._clients}", limit=1)
            if got != FillResult(1, 0):
                raise AssertionError(f"{server}: {got}")

    def _leave(self, share: float, server: str = "10.9.1.") -> None:
        """Let a share of the connections leave, whichever they are."""
        for tag in [tag for tag in sockets.held if tag.startswith(server)]:
            if self._chance.random() < share:
                sockets.abort(tag)


def _was_reset(taken: socket.socket) -> bool:
    """Tell whether the client of an accepted socket has gone, and close the socket then."""
    try:
        taken.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except ConnectionResetError:
        taken.close()
    return True


def set_range(low: int, size: int) -> None:
    """Set the port range of the namespace."""
    sockets.write_sysctl("net.ipv4.ip_local_port_range", f"{low} {low + size - 1}")


def prepare() -> None:
    """Make the servers and the range of the host."""
    set_range(LOW, SIZE)
    for server in (*SERVERS, SERVER_V6):
        sockets.listen(server, PORT, tag="servers")


def alerts_of_a_day(texts: Sequence[str], hours: int, seed: int) -> list[dict[str, float]]:
    """Return every alert that fired on a day on which nothing was wrong, for the daemon with each configuration."""
    prepare()
    watched = [Watched(parse(text, "test")) for text in texts]
    Day(watched, seed).pass_by(hours)
    return [one.alerts for one in watched]


def alerts_of_a_ramp(text: str, recipe: Recipe, *, interval: float) -> tuple[dict[str, float], float]:
    """Let sockets that bind(address, 0) gave ports take all of them within a minute.

    Returns every alert that fired, and when the first allocation failed, both in seconds since the ramp began.
    """
    prepare()
    watched = Watched(parse(text, "test"))
    began, opened = watched.now, 0
    while True:
        watched.poll_after(interval)
        due = round(SIZE * (watched.now - began) / RAMP_SECONDS)
        got = sockets.open_sockets(recipe, tag="binders", limit=due - opened)
        opened += got.count
        if got.errno:
            return {name: at - began for name, at in watched.alerts.items()}, watched.now - began
        sockets.accept_all("servers", tag="taken by servers")
