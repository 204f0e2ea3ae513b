"""Experiments: sockets are set up, ephmon says how many more there can be, and the kernel is asked to give them.

An `Experiment` is data: its steps are done one after another, in an agent (`tests.namespaces`) that goes into a network
namespace of its own for it. A step is a function without arguments, made by `partial` so that it can be sent to the
agent, or a `Draw`: that one is predicted, done, and predicted again, which is its `Outcome`.
"""

from __future__ import annotations

import errno
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from ephmon.facts.sockets import Protocol
from ephmon.model.pools.kinds import Pool, PoolKind
from tests import sockets
from tests.kernel_truth.differences import PATIENCE_SECONDS, hides_sockets, let_time_waits_grow_old
from tests.kernel_truth.mixes import OWN, fresh_namespace, read_with_probe
from tests.kernel_truth.prediction import look, pool_in, walk
from tests.ordinary_user import as_thread_of_ordinary_user
from tests.sockets import Recipe

if TYPE_CHECKING:
    from ephmon.model.pools.survey import NamespaceSurvey

LOW, HIGH = 40_000, 40_999
PORTS = HIGH - LOW + 1
HERE, THERE, ELSEWHERE, V6 = "127.0.0.1", "127.0.0.2", "127.0.0.9", "::1"
MAPPED = f"::ffff:{HERE}"
PORT, OTHER_PORT = 80, 81
ANY_V4, ANY_V6 = "0.0.0.0", "::"
SERVERS = [(HERE, PORT), (HERE, OTHER_PORT), (THERE, PORT), (OWN, PORT), (V6, PORT)]
PLAIN = Recipe()
MANY = 3 * PORTS
"""As many as are opened where there is no limit."""
FIRST_NAMED = LOW + 100
"""Where ports begin that bind() names."""

_FAILURES = {
    PoolKind.TCP_CONNECT: "EADDRNOTAVAIL",
    PoolKind.TCP_BIND: "EADDRINUSE",
    PoolKind.UDP_CONNECT: "EAGAIN",
    PoolKind.UDP_BIND: "EADDRINUSE",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """Sockets that are opened until the kernel refuses, and what must come of it; numbers are ports."""

    kind: PoolKind
    source: str
    destination: tuple[str, int] | None = None
    recipe: Recipe
    gives: int | None
    """How many the kernel gives; None if that is luck, but for being what ephmon says."""
    or_fewer: int = 0
    """So many fewer it may give."""
    says: int | None = None
    """What ephmon says before, if not `gives`."""
    failure: str = ""
    """Name of the errno that ends it, if not that of the pool's own system call; "none" if nothing does."""
    most: int = sockets.ALL_PORTS
    is_outside: bool = False
    """The sockets are none that the pool is defined for: they share ports, or limit themselves to some."""
    is_in_doubt: bool = False
    """What ephmon says without the probe is an estimate, of which only the bounds are held against the kernel."""

    @property
    def pool_failure(self) -> str:
        """Name of the errno of the pool's own system call."""
        return _FAILURES[self.kind]


Action = Callable[[], object]
Step = Action | Draw


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """One row of the table of experiments, or one variant of a row."""

    row: str
    title: str
    steps: tuple[Step, ...]
    sysctls: tuple[tuple[str, str | int], ...] = ()
    """Beside the port range, without the leading `net.ipv4.`."""

    @property
    def id(self) -> str:
        """What pytest calls it."""
        return f"row-{self.row}-{self.title}".replace(" ", "-")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was said of one draw, and what came of it."""

    draw: Draw
    before: Pool
    probed: Pool | None
    """The prediction with the probe, for tcp_connect."""
    walked: Pool | None
    """The prediction by the kernel's bind table, for TCP where that can be walked."""
    count: int
    failure: str
    ports: int
    """On how many ports the sockets sit."""
    after: Pool
    probed_after: Pool | None
    walked_after: Pool | None
    had_hidden: bool
    """Sockets were there that this kernel does not show."""
    has_hidden: bool
    """The same afterwards."""


def experiment(row: str, title: str, *steps: Step, **settings: str | int) -> Experiment:
    """Return an experiment; `settings` are sysctls without the leading `net.ipv4.`."""
    return Experiment(row=row, title=title, steps=steps, sysctls=tuple(settings.items()))


# --- draws --------------------------------------------------------------------------------------------------------


def connect(
    gives: int | None,
    destination: str = HERE,
    port: int = PORT,
    *,
    source: str | None = None,
    recipe: Recipe = PLAIN,
) -> Draw:
    """Draw from tcp_connect; with a source, by sockets bound to it with IP_BIND_ADDRESS_NO_PORT."""
    steps = replace(
        recipe, connect=(destination, port), no_port=source is not None, bind=None if source is None else (source, 0)
    )
    chosen = source or {OWN: OWN, V6: V6}.get(destination, HERE)
    seen = HERE if destination == MAPPED else destination
    return Draw(kind=PoolKind.TCP_CONNECT, source=chosen, destination=(seen, port), recipe=steps, gives=gives)


def bind(gives: int, source: str = HERE, recipe: Recipe = PLAIN) -> Draw:
    """Draw from tcp_bind or, as the recipe says, udp_bind."""
    kind = PoolKind.UDP_BIND if recipe.udp else PoolKind.TCP_BIND
    pool_source = HERE if source == MAPPED else source
    return Draw(kind=kind, source=pool_source, recipe=replace(recipe, bind=(source, 0)), gives=gives)


def udp_connect(gives: int, destination: str = HERE, port: int = 9, recipe: Recipe = PLAIN) -> Draw:
    """Draw from udp_connect by connect()."""
    steps = replace(recipe, udp=True, connect=(destination, port))
    return Draw(kind=PoolKind.UDP_CONNECT, source=ANY_V6 if ":" in destination else ANY_V4, recipe=steps, gives=gives)


def udp_send(gives: int, destination: str = HERE) -> Draw:
    """Draw from udp_connect by sendto()."""
    steps = Recipe(udp=True, send=(destination, 9))
    return Draw(kind=PoolKind.UDP_CONNECT, source=ANY_V6 if ":" in destination else ANY_V4, recipe=steps, gives=gives)


def without_limit(draw: Draw) -> Draw:
    """Return the draw by sockets that share ports: ephmon says what it would for others, and the kernel gives more."""
    return replace(draw, says=draw.gives, gives=MANY, most=MANY, failure="none", is_outside=True)


def by_others(draw: Draw, *, says: int) -> Draw:
    """Return the draw by sockets that the pool is not defined for, and what ephmon says of those it is defined for."""
    return replace(draw, says=says, is_outside=True)


def in_doubt(draw: Draw) -> Draw:
    """Return the draw where it cannot be seen how the sockets got their ports."""
    return replace(draw, is_in_doubt=True)


# --- other steps --------------------------------------------------------------------------------------------------


def opened(number: int, recipe: Recipe, tag: str = "others") -> Action:
    """Open so many sockets."""
    return partial(_open, number, recipe, tag)


def opened_side_by_side(number: int, recipe: Recipe, tag: str = "others") -> Action:
    """Open so many sockets on ports in a row, from the one that `recipe` binds to."""
    return partial(_open_side_by_side, number, recipe, tag)


def opened_on_ports_of(others: str, recipe: Recipe, tag: str) -> Action:
    """Open a socket on the port of each socket of another tag, instead of the one that `recipe` binds to."""
    return partial(_open_on_ports_of, others, recipe, tag)


def accepted_side_by_side(number: int) -> Action:
    """Open so many listeners (tag `listeners`), a client of each (`clients`) and accept it (`accepted`)."""
    return partial(_accept_side_by_side, number)


def closed(tag: str) -> Action:
    """Close the sockets of a tag."""
    return partial(sockets.close, tag)


def aborted(tag: str = "drawn") -> Action:
    """Close the sockets of a tag, by default all that were drawn, so that nothing is left of them."""
    return partial(sockets.abort, tag)


def write(name: str, value: str | int) -> Action:
    """Set a sysctl, named without the leading `net.ipv4.`."""
    return partial(sockets.write_sysctl, f"net.ipv4.{name}", value)


def first_taken_when_said_to_be_reusable(number: int) -> Action:
    """Draw the first port as soon as ephmon says of so many TIME_WAITs toward HERE that they are reusable."""
    return partial(_take_when_said_to_be_reusable, number)


def left_in_time_wait(number: int, recipe: Recipe) -> Action:
    """Open so many connections and leave their TIME_WAITs, old enough for reuse."""
    return partial(leave_time_wait, number, recipe)


def same_ports_drawn(times: int) -> Action:
    """Check that the draws so far, of which there were so many, got the same ports."""
    return partial(check_that_each_port_was_drawn, times)


def _open(number: int, recipe: Recipe, tag: str) -> None:
    result = sockets.open_sockets(recipe, tag=tag, limit=number)
    if result.count != number:
        raise OSError(result.errno, errno.errorcode[result.errno], f"after {result.count} sockets of {recipe}")


def _open_side_by_side(number: int, recipe: Recipe, tag: str) -> None:
    assert recipe.bind is not None
    address, port = recipe.bind
    for one in range(port, port + number):
        _open(1, replace(recipe, bind=(address, one)), tag)


def _open_on_ports_of(others: str, recipe: Recipe, tag: str) -> None:
    assert recipe.bind is not None
    for port in sockets.ports_of(others):
        _open(1, replace(recipe, bind=(recipe.bind[0], port)), tag)


def _accept_side_by_side(number: int) -> None:
    _open_side_by_side(number, Recipe(bind=(HERE, FIRST_NAMED), listen=1), "listeners")
    for port in sockets.ports_of("listeners"):
        _open(1, Recipe(connect=(HERE, port)), "clients")
    assert sockets.accept_all("listeners", tag="accepted") == number


def leave_time_wait(number: int, recipe: Recipe) -> None:
    """Open so many connections and close them, this side first, and let their TIME_WAITs grow old enough for reuse."""
    sockets.accept_all("server", tag="staying")  # those of earlier connections stay open
    _open(number, recipe, "leaving")
    sockets.accept_all("server", tag="left")
    sockets.close("leaving")
    sockets.close("left")
    let_time_waits_grow_old()


def check_that_each_port_was_drawn(times: int) -> None:
    """Assert that every port drawn so far was drawn so often."""
    counted = Counter(sockets.ports_of("drawn"))
    assert set(counted.values()) == {times}, counted


def _take_when_said_to_be_reusable(number: int) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while pool_in(look(), PoolKind.TCP_CONNECT, HERE, (HERE, PORT)).reusable < number:
        assert time.monotonic() < deadline
    _open(1, Recipe(connect=(HERE, PORT)), "drawn")


# --- the way through ----------------------------------------------------------------------------------------------


def carry_out(one: Experiment) -> list[Outcome]:
    """Do the steps of an experiment in a fresh namespace and return the outcome of each draw; for `Namespace.call`."""
    prepare()
    for name, value in one.sysctls:
        sockets.write_sysctl(f"net.ipv4.{name}", value)
    outcomes = []
    for step in one.steps:
        if isinstance(step, Draw):
            outcomes.append(carry_out_draw(step))
        else:
            step()
    return outcomes


def prepare() -> None:
    """Go into a fresh namespace with a small port range and servers outside it.

    There a TIME_WAIT ends only by its time (tcp_rfc1337).
    """
    fresh_namespace()
    sockets.write_sysctl("net.ipv4.ip_local_port_range", f"{LOW} {HIGH}")
    sockets.write_sysctl("net.ipv4.tcp_rfc1337", 1)
    for address, port in SERVERS:
        sockets.listen(address, port, tag="server")


def carry_out_draw(draw: Draw) -> Outcome:
    """Predict a draw, with and without the probe, do it, and predict once more."""
    one, probed, walked = look(), _with_probe(draw), _by_walk(draw)
    had_hidden = hides_sockets(one)
    filled = sockets.open_sockets(draw.recipe, tag="drawn", limit=draw.most)
    then, probed_then, walked_then = look(), _with_probe(draw), _by_walk(draw)
    return Outcome(
        draw=draw,
        before=_pool(one, draw),
        probed=probed,
        walked=walked,
        count=filled.count,
        failure=errno.errorcode.get(filled.errno, "none"),
        ports=len(set(sockets.ports_of("drawn")[-filled.count :]) - {0}) if filled.count else 0,
        after=_pool(then, draw),
        probed_after=probed_then,
        walked_after=walked_then,
        had_hidden=had_hidden,
        has_hidden=hides_sockets(then),
    )


def _by_walk(draw: Draw) -> Pool | None:
    if draw.kind.protocol is not Protocol.TCP or (one := walk()) is None:
        return None
    return _pool(one, draw)


def _with_probe(draw: Draw) -> Pool | None:
    return as_thread_of_ordinary_user(_pool_with_probe, draw) if draw.kind == PoolKind.TCP_CONNECT else None


def _pool_with_probe(draw: Draw) -> Pool:
    return _pool(read_with_probe(), draw)


def _pool(one: NamespaceSurvey, draw: Draw) -> Pool:
    return pool_in(one, draw.kind, draw.source, draw.destination)
