"""Situations in which somebody who guesses is wrong, made with real sockets, and what ephmon says in each.

A situation is played in a namespace of its own, in one of several shapes. Three look at it in its end: a daemon that
polled from the start, one that starts then, and the commands. What is true is found out by drawing from a pool.
"""

from __future__ import annotations

import errno
import json
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests import sockets
from tests.commands.answers import answer
from tests.kernel_truth.mixes import OWN, fresh_namespace
from tests.kernel_truth.polls import Polls
from tests.sockets import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ephmon.model.pools.kinds import Pool
    from ephmon.model.report import Report

Endpoint = tuple[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Where a situation takes place."""

    name: str
    low: int
    size: int
    here: str
    """The address that connections to `other` come from."""
    elsewhere: str
    """Another address of the host and the family."""
    busy: tuple[Endpoint, ...]
    """Where connections lead to, by turns."""
    other: Endpoint
    """A destination toward which there is one connection when it is looked at."""


SHAPES = (
    Shape(
        name="IPv4",
        low=40_000,
        size=200,
        here="127.0.0.1",
        elsewhere="127.0.0.3",
        busy=(("127.0.0.1", 80),),
        other=("127.0.0.1", 81),
    ),
    Shape(
        name="IPv6, a range with an odd beginning",
        low=41_001,
        size=120,
        here="::1",
        elsewhere="::1",
        busy=(("::1", 80),),
        other=("::1", 81),
    ),
    Shape(
        name="several sources and destinations",
        low=50_000,
        size=160,
        here="127.0.0.1",
        elsewhere="127.0.0.3",
        busy=(("127.0.0.1", 80), (OWN, 80), ("127.0.0.2", 80)),
        other=("127.0.0.2", 81),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What somebody says of the host, and of the pool toward `other`."""

    blocked: int
    ambiguous: int
    has_bind_pool: bool
    urgent: frozenset[str]
    """What alerts: the names of alerts with their severities; of a command, its exit status."""
    exact: bool
    remaining: int
    least: int
    most: int


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What was said of a situation, and what was true."""

    truth: int
    """How many ports the pool toward `other` had."""
    hides_sockets: bool
    """Whether this kernel does not show all sockets that hold a port; then a daemon calls no number exact."""
    said: dict[str, Said] = field(default_factory=dict)


class Scene:
    """A namespace of some shape in which servers listen, and a daemon that polls when told to."""

    def __init__(self, shape: Shape, *, probe: bool) -> None:
        self.shape = shape
        self._probe = probe
        self.random = random.Random(1)
        fresh_namespace()
        self.set_range(shape.low, shape.size)
        for address, port in (*shape.busy, shape.other):
            sockets.listen(address, port, tag="servers")
        self.daemon = Polls(probe=probe)

    def set_range(self, low: int, size: int) -> None:
        self.range = range(low, low + size)
        sockets.write_sysctl("net.ipv4.ip_local_port_range", f"{low} {low + size - 1}")

    def connect(self, number: int, tag: str = "clients") -> None:
        """Connect so many times toward the busy destinations by turns, or until that fails."""
        for peer, share in self._shares(number):
            sockets.open_sockets(Recipe(connect=peer), tag=tag, limit=share)

    def bind_and_connect(self, number: int, source: str) -> None:
        """Let bind(source, 0) choose so many ports."""
        for peer, share in self._shares(number):
            recipe = Recipe(bind=(source, 0), connect=peer)
            assert sockets.open_sockets(recipe, tag="binders", limit=share).count == share

    def _shares(self, number: int) -> Iterator[tuple[Endpoint, int]]:
        busy = self.shape.busy
        for index, peer in enumerate(busy):
            yield peer, number // len(busy) + (index < number % len(busy))

    def abort(self, wanted: Callable[[int], bool], tag: str = "clients") -> None:
        """Close the sockets on some ports, without a TIME_WAIT."""
        held = sockets.held[tag]
        sockets.held["leaving"] = [one for one in held if wanted(one.getsockname()[1])]
        sockets.held[tag] = [one for one in held if one not in sockets.held["leaving"]]
        sockets.abort("leaving")

    def outcome(self) -> Outcome:
        """Ask all three, then draw from the pool toward `other`."""
        assert sockets.open_sockets(self._drawing(), tag="one", limit=1).count == 1
        said = {"a daemon from the start": self._of_report(self.daemon.poll())}
        late = Polls(probe=self._probe)
        report = late.poll()
        said["a daemon that starts now"] = self._of_report(report)
        said["that daemon, two polls later"] = self._of_report([late.poll() for _ in range(2)][-1])
        said["commands"] = self._of_commands()
        filled = sockets.open_sockets(self._drawing(), tag="drawn", limit=sockets.ALL_PORTS)
        assert filled.errno == errno.EADDRNOTAVAIL
        return Outcome(truth=filled.count, hides_sockets=bool(report.namespaces[0].blind_to), said=said)

    def _drawing(self) -> Recipe:
        return Recipe(bind=(self.shape.here, 0), no_port=True, connect=self.shape.other)

    def _of_report(self, report: Report) -> Said:
        (namespace,) = report.namespaces
        pools = [one.pool for one in report.listed]
        alerts = frozenset(f"{alert.key.name} {alert.severity}" for alert in report.alerts.firing)
        return self._said(
            {"blocked": namespace.blocked_ports, "ambiguous": namespace.ambiguous_ports},
            {(one.key.kind, one.key.source, (one.key.destination, one.key.destination_port)): one for one in pools},
            alerts,
        )

    def _said(self, ports: dict[str, Any], pools: dict[Any, Pool], urgent: frozenset[str]) -> Said:
        pool = pools["tcp_connect", self.shape.here, self.shape.other]
        return Said(
            **ports,
            has_bind_pool=any(kind == "tcp_bind" for kind, _, _ in pools),
            urgent=urgent,
            exact=pool.exact,
            remaining=pool.remaining,
            least=pool.remaining_min,
            most=pool.remaining_max,
        )

    def _of_commands(self) -> Said:
        options = [] if self._probe else ["--no-probe"]
        (address, port), here = self.shape.other, self.shape.here
        host = f"[{address}]" if ":" in address else address
        headroom = json.loads(answer("headroom", f"{host}:{port}", "--from", here, "--json", *options).out)
        document = json.loads(answer("pools", "--json", *options).out)
        (namespace,) = document["namespaces"]
        return Said(
            blocked=namespace["blocked_ports"],
            ambiguous=namespace["ambiguous_ports"],
            has_bind_pool=any(pool["kind"] == "tcp_bind" for pool in document["pools"]),
            urgent=frozenset({f"status {status}"} if (status := answer("check", *options).status) else ()),
            exact=headroom["exact"],
            remaining=headroom["remaining_ports"],
            least=headroom["remaining_ports_min"],
            most=headroom["remaining_ports_max"],
        )


# --- the situations -----------------------------------------------------------------------------------------------


def a_peak_of_which_one_parity_is_left(scene: Scene) -> None:
    """The oldest connections end first, which connect() gave the ports of the other parity."""
    scene.connect(scene.shape.size * 95 // 100)
    scene.daemon.poll()
    scene.abort(lambda port: port % 2 == scene.shape.low % 2)
    scene.daemon.poll()


def a_peak_of_which_half_is_left_at_random(scene: Scene) -> None:
    scene.connect(scene.shape.size * 95 // 100)
    scene.daemon.poll()
    scene.abort(lambda _: scene.random.random() < 0.5)
    scene.daemon.poll()


def bursts_between_two_polls(scene: Scene) -> None:
    """No poll sees a reason for the ports that are left."""
    scene.daemon.poll()
    for _ in range(4):
        scene.connect(scene.shape.size * 9 // 10)
        scene.abort(lambda port: port % 2 == scene.shape.low % 2 or scene.random.random() < 0.5)
        sockets.held["left"] = sockets.held.get("left", []) + sockets.held.pop("clients")
        scene.abort(lambda _: scene.random.random() < 0.5, tag="left")


def a_range_that_was_widened_under_load(scene: Scene) -> None:
    scene.connect(scene.shape.size * 95 // 100)
    scene.daemon.poll()
    scene.set_range(scene.shape.low - scene.shape.size // 2, scene.shape.size * 2)
    scene.daemon.poll()


def a_range_whose_low_end_changes_parity(scene: Scene) -> None:
    scene.connect(scene.shape.size * 45 // 100)
    scene.daemon.poll()
    scene.set_range(scene.shape.low + 1, scene.shape.size)
    scene.daemon.poll()


def clients_with_a_range_of_their_own(scene: Scene) -> None:
    """The search in such a range does not go by parity."""
    for peer in scene.shape.busy:
        low = scene.shape.low + 10
        recipe = Recipe(port_range=(low, low + scene.shape.size // 3), connect=peer)
        sockets.open_sockets(recipe, tag="own range", limit=scene.shape.size // 4)
    scene.daemon.poll()
    scene.connect(scene.shape.size // 5)


ONLY_CONNECT: list[Callable[[Scene], None]] = [
    a_peak_of_which_one_parity_is_left,
    a_peak_of_which_half_is_left_at_random,
    bursts_between_two_polls,
    a_range_that_was_widened_under_load,
    a_range_whose_low_end_changes_parity,
    clients_with_a_range_of_their_own,
]
"""Nobody calls bind()."""


def programs_that_bind(scene: Scene) -> None:
    scene.daemon.poll()
    scene.bind_and_connect(scene.shape.size * 95 // 100, scene.shape.elsewhere)
    scene.daemon.poll()


def programs_that_bind_the_address_that_others_use(scene: Scene) -> None:
    scene.connect(scene.shape.size // 20)
    scene.bind_and_connect(scene.shape.size * 9 // 10, scene.shape.here)
    scene.daemon.poll()


BIND: list[Callable[[Scene], None]] = [programs_that_bind, programs_that_bind_the_address_that_others_use]
"""Nine of ten ports are blocked."""


def listened_ports_that_connect_takes(scene: Scene) -> None:
    """They had a listener at one poll, and connect() takes them before the next."""
    listening = Recipe(bind=(scene.shape.here, 0), listen=5)
    assert sockets.open_sockets(listening, tag="listeners", limit=30).count == 30
    scene.daemon.poll()
    sockets.close("listeners")
    sockets.open_sockets(Recipe(connect=scene.shape.other), tag="clients", limit=scene.shape.size - 1)


def shared_ports_that_somebody_binds_for_a_moment(scene: Scene) -> None:
    """Before Linux 6.18 they are blocked until they are empty, and no socket on them has changed."""
    scene.connect(scene.shape.size // 3)
    scene.daemon.poll()
    scene.daemon.poll()
    for port in sockets.ports_of("clients")[::2]:
        assert sockets.open_sockets(Recipe(bind=(_unused_address(scene), port)), tag="moment", limit=1).count == 1
        sockets.close("moment")


def blocked_ports_that_somebody_binds_for_a_moment(scene: Scene) -> None:
    """What blocks them named them at the wildcard. Since Linux 6.18 it stops to when that somebody leaves."""
    (address, _), family = scene.shape.busy[0], "::" if ":" in scene.shape.here else "0.0.0.0"
    more = (address, sockets.listen(address, 82, tag="servers"))
    client = Recipe(reuse_address=True, connect=scene.shape.busy[0])
    assert sockets.open_sockets(client, tag="clients", limit=20).count == 20
    ports = sockets.ports_of("clients")
    for port in ports:
        named = Recipe(bind=(family, port), reuse_address=True, connect=more)
        assert sockets.open_sockets(named, tag="named", limit=1).count == 1
    for _ in range(3):
        scene.daemon.poll()
    for port in ports[::2]:
        moment = Recipe(bind=(_unused_address(scene), port), reuse_address=True)
        assert sockets.open_sockets(moment, tag="moment", limit=1).count == 1
        sockets.close("moment")


def _unused_address(scene: Scene) -> str:
    return "127.0.0.9" if ":" not in scene.shape.here else "127.0.0.1"


PASSING: list[Callable[[Scene], None]] = [
    listened_ports_that_connect_takes,
    shared_ports_that_somebody_binds_for_a_moment,
    blocked_ports_that_somebody_binds_for_a_moment,
]
"""What a daemon remembers is not so any more."""


def play(situation: Callable[[Scene], None], shape: Shape, *, probe: bool) -> Outcome:
    """Return what came of a situation; runs in an agent."""
    scene = Scene(shape, probe=probe)
    situation(scene)
    return scene.outcome()
