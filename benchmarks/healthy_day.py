"""A day of healthy load through the whole of the model, at the default settings: it must raise no alert.

    python -m benchmarks.healthy_day [--hours 24]

Ten destinations have short connections at random moments, as many as keep 60 % of a range of 1,000 ports in TIME_WAIT.
Beside them a backend on loopback has three times as many as the range bears otherwise: its TIME_WAITs are handed out
again after a second (tcp_tw_reuse is 2). What a poll sees each 5 seconds goes through evidence, pools, forecast and
alerts, as in the daemon. A day takes some four minutes.
"""

from __future__ import annotations

import argparse
import heapq
from array import array
from collections import Counter
from dataclasses import dataclass, field, replace
from random import Random
from typing import TYPE_CHECKING

from ephmon.facts.socket_groups import SocketGroup, SocketGroups
from ephmon.facts.sockets import NO_SOCKETS, SocketTable, TcpSockets, TcpState
from ephmon.model.pace import Costs, Poll
from ephmon.model.report import ReloadStatus
from ephmon.model.rules import Rules
from ephmon.model.state import initial_state
from ephmon.model.step import conclude, next_full_poll, with_pace
from tests.model.facts import make_namespace, make_snapshot, make_sysctls, packed

if TYPE_CHECKING:
    from collections.abc import Sequence

LOW, PORTS = 40_000, 1_000
POLL_SECONDS = 5
TIME_WAIT_SECONDS = 60.0
REUSE_SECONDS = 1.0
SHARE = 0.6


@dataclass(slots=True)
class Destination:
    """Short connections toward one destination; each leaves a port in TIME_WAIT."""

    source: str
    address: str
    per_second: float
    kept_seconds: float = TIME_WAIT_SECONDS
    """How long a port cannot be had after it was closed."""
    random: Random = field(default_factory=Random)
    free: list[tuple[int, int]] = field(default_factory=lambda: [(port % 2, port) for port in range(LOW, LOW + PORTS)])
    """Ports that connect() would take, those of the first parity first, as a heap."""
    used: list[tuple[float, int]] = field(default_factory=list)
    """When each port that cannot be had was closed, the oldest first."""
    closed: dict[int, float] = field(default_factory=dict)
    """When each port was closed last."""
    next_at: float = 0.0

    def advance(self, until: float) -> None:
        """Open and close connections at random moments."""
        heapq.heapify(self.free)
        while self.next_at < until:
            self._give_back(self.next_at)
            _, port = heapq.heappop(self.free)
            self.used.append((self.next_at, port))
            self.closed[port] = self.next_at
            self.next_at += self.random.expovariate(self.per_second)
        self._give_back(until)

    def rows(self, now: float) -> list[tuple[int, int]]:
        """Return port and milliseconds left of each TIME_WAIT."""
        left = ((port, closed + TIME_WAIT_SECONDS - now) for port, closed in self.closed.items())
        return [(port, int(1000 * seconds)) for port, seconds in left if seconds > 0]

    def _give_back(self, now: float) -> None:
        ended = 0
        while ended < len(self.used) and self.used[ended][0] + self.kept_seconds <= now:
            ended += 1
        for _, port in self.used[:ended]:
            heapq.heappush(self.free, (port % 2, port))
        del self.used[:ended]


def table_of(destinations: Sequence[Destination], now: float) -> SocketTable:
    """Return what a poll sees of the destinations."""
    groups = []
    columns = array("I"), array("H"), array("H")
    for index, one in enumerate(destinations):
        groups.append(SocketGroup(TcpState.TIME_WAIT, packed(one.source), packed(one.address), 443, minisock=True))
        for port, left in one.rows(now):
            for column, value in zip(columns, (index, port, left), strict=True):
                column.append(value)
    group_of, port_of, left_of = columns
    return SocketTable(groups=SocketGroups.of(groups), group_of=group_of, port_of=port_of, time_wait_left_ms_of=left_of)


def main() -> None:
    """Run the day and print what fired."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.healthy_day")
    parser.add_argument("--hours", type=float, default=24.0)
    seconds = int(parser.parse_args().hours * 3600)
    rate = SHARE * PORTS / TIME_WAIT_SECONDS
    destinations = [Destination("10.0.0.1", f"10.0.0.{host}", rate, random=Random(host)) for host in range(10, 20)]
    # Handed out again after a second, so each port's latest TIME_WAIT is the only one.
    loopback = Destination("127.0.0.1", "127.0.0.1", 3 * PORTS / TIME_WAIT_SECONDS, REUSE_SECONDS, Random(1))
    sysctls = make_sysctls(LOW, LOW + PORTS - 1)
    state = initial_state(Rules(), ReloadStatus(successful=True, succeeded_at=0.0))
    fired: Counter[str] = Counter()
    highest, polls = 0.0, 0
    for now in map(float, range(POLL_SECONDS, seconds + 1, POLL_SECONDS)):
        for one in (*destinations, loopback):
            one.advance(now)
        tcp = TcpSockets(bound=NO_SOCKETS, named=NO_SOCKETS, connections=table_of((*destinations, loopback), now))
        snapshot = make_snapshot(make_namespace(tcp, sysctls), taken_at=now)
        state = replace(conclude(snapshot, state, now), costs=Costs(full=(0.01,), narrow=(0.001,)))
        state = with_pace(state)
        assert next_full_poll(state) is Poll.FULL
        fired.update(alert.key.name for alert in state.report.alerts.firing)
        highest = max(highest, *(listed.pool.utilisation for listed in state.report.listed))
        polls += 1
    print(f"{polls:,} polls, {seconds / 3600:g} hours; the fullest pool was at {100 * highest:.1f} %.")
    print("No alert fired." if not fired else f"Polls at which alerts fired: {dict(fired)}")


if __name__ == "__main__":
    main()
