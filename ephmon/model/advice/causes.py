"""Advice: the likely cause of a pool that fills up, and what to do about it, the safest step first.

The rules are a table. The first rule that fits gives the cause, and the advice is the first three of its steps that
would help here. The tests compare what the causes rest on with the real kernel. The settings of proxies are in
`ephmon.model.advice.proxies`, with their sources. One port range serves both address families.

Two settings are never advised. `tcp_tw_recycle` broke clients behind NAT and is gone since Linux 4.12.
`tcp_fin_timeout` only limits FIN_WAIT2; a TIME_WAIT lasts 60 seconds whatever its value is (TCP_TIMEWAIT_LEN).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ephmon.model.advice.pool_facts import PoolFacts
from ephmon.model.advice.steps import (
    Step,
    bind_without_port,
    check_health,
    close_idle,
    find_blocker,
    find_udp_holder,
    give_up_connecting,
    give_up_half_closed,
    own_ranges,
    reuse,
    reuse_time_wait,
    second_address_to_bind,
    second_destination,
    second_source,
    share_udp_sockets,
    to_say,
    unix_socket,
    widen,
)
from ephmon.model.alerting.blocked import BlockedPorts
from ephmon.model.failures.doubted_pools import Cause, possible_causes
from ephmon.model.pools.kinds import PoolKind

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from ephmon.facts.snapshot import Sysctls
    from ephmon.model.pools.kinds import Pool

MAX_STEPS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """The likely cause, in one or two sentences, and at most three steps of one line each, the safest first.

    Text between backticks is for a shell, or it is a line or block of a configuration. Its words in capitals have to be
    filled in first.
    """

    cause: str
    steps: tuple[str, ...]
    avoid: str | None = None
    """One sentence about what seems to help and does not."""

    @property
    def in_short(self) -> str:
        """The cause and the first step, on one line."""
        return " ".join([self.cause, *self.steps[:1]])


def advise(
    pool: Pool,
    sysctls: Sysctls,
    *,
    listening_ports: Collection[int] | None = None,
    program: str | None = None,
    failed_with_room: bool = False,
    is_slow: bool = False,
) -> Advice:
    """Return what to do about a pool. The caller decides whether the pool is full enough to need advice.

    Args:
        pool: The pool.
        sysctls: The sysctls of its namespace.
        listening_ports: The TCP ports of the namespace that have a listener, inside the range or not, and others that a
            wider range has to leave out; None if they are not known.
        program: The name of the process or unit that holds most of the ports, None if that is not known.
        failed_with_room: Whether the advice is about calls that failed although the pool is not full.
        is_slow: Whether it is about the long search of each connect().
    """
    key = pool.key
    facts = PoolFacts(
        kind=key.kind,
        source=key.source,
        destination=key.destination,
        destination_port=key.destination_port,
        usable=pool.usable,
        blocked=pool.blocked,
        is_mostly_blocked=BlockedPorts.behind(pool).outweigh(pool),
        in_use=pool.in_use,
        time_wait=pool.time_wait - pool.reusable,
        live=pool.in_use - pool.time_wait,
        room=pool.remaining_max if pool.is_doubted else pool.remaining,
        possible_causes=possible_causes(pool) if failed_with_room or pool.is_doubted else (),
        in_doubt=pool.in_doubt,
        search_ports=(pool.search_ports or 0.0) if is_slow else 0.0,
        reusable_unproven=pool.reusable_unproven,
        states=pool.states,
        sysctls=sysctls,
        listening_ports=listening_ports,
        program=program,
    )
    return next(rule for rule in _RULES if rule.fits(facts)).advice(facts)


def advise_blocked(
    ports: BlockedPorts,
    sysctls: Sysctls,
    *,
    listening_ports: Collection[int] | None = None,
    program: str | None = None,
) -> Advice:
    """Return what to do about the ports of a namespace that are blocked for every connect().

    Args:
        ports: The blocked ports.
        sysctls: The sysctls of the namespace.
        listening_ports: As in `advise`.
        program: The name of the process or unit that blocks most of these ports, None if that is not known.
    """
    facts = PoolFacts(
        kind=PoolKind.TCP_CONNECT,
        usable=ports.usable,
        blocked=ports.blocked,
        sysctls=sysctls,
        listening_ports=listening_ports,
        program=program,
    )
    return (_NOTHING_USABLE if _NOTHING_USABLE.fits(facts) else _BLOCKED).advice(facts)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """One row of the table. It fits pools of its kinds for which its condition holds.

    With `states` it fits only if at least half of the sockets that are not in TIME_WAIT are in one of these states.
    """

    kinds: tuple[PoolKind, ...]
    holds: Callable[[PoolFacts], bool] = lambda _: True
    states: tuple[str, ...] = ()
    cause: str
    """One or two sentences, a format string with `facts` and with `count`, the number of sockets in one of `states`."""
    steps: tuple[Step, ...]
    """The safest first. Steps that would not help are left out, and at most MAX_STEPS are given."""
    avoid: str | None = None

    def fits(self, facts: PoolFacts) -> bool:
        """Tell whether the rule fits these facts."""
        enough = not self.states or 0 < facts.sockets <= 2 * facts.count(self.states)
        return facts.kind in self.kinds and enough and self.holds(facts)

    def advice(self, facts: PoolFacts) -> Advice:
        """Return the advice for these facts."""
        steps = [step for make in self.steps if (step := make(facts)) is not None]
        cause = self.cause.format(facts=facts, count=facts.count(self.states))
        return Advice(cause=cause, steps=tuple(steps[:MAX_STEPS]), avoid=self.avoid)


_NO_TIME_WAIT_OF_UDP = "Do not change TCP settings: UDP has no TIME_WAIT, a port is free once its socket is closed."

_NOTHING_USABLE = _Rule(
    kinds=tuple(PoolKind),
    holds=lambda facts: facts.usable == 0,
    cause="No port is usable: net.ipv4.ip_local_reserved_ports reserves all of {facts.port_range}.",
    steps=(
        to_say("Take out what need not be reserved: `sysctl net.ipv4.ip_local_reserved_ports` shows what is."),
        widen,
    ),
)
_BLOCKED = _Rule(
    kinds=(PoolKind.TCP_CONNECT,),
    holds=lambda facts: facts.is_mostly_blocked,
    cause=(
        "{facts.blocked} of {facts.usable} usable ports are blocked for every connect(), whatever its destination. TCP "
        "sockets hold them whose port connect() did not choose, usually those of one program that calls "
        "bind(ADDRESS, 0) first."
    ),
    steps=(find_blocker, bind_without_port, widen),
    avoid="Do not add destinations or set tcp_tw_reuse: a blocked port is lost to all of them.",
)
_RULES = (
    _NOTHING_USABLE,
    _Rule(
        kinds=(PoolKind.TCP_CONNECT,),
        holds=lambda facts: facts.search_ports > 0,
        cause=(
            "connect() tries every second port of the range first. Toward {facts.toward} nearly all of those are "
            "taken, so each call looks at about {facts.search_ports:.0f} ports."
        ),
        steps=(widen, second_source, second_destination, reuse, unix_socket),
        avoid="Do not wait for an alert of full ports: nothing fails yet, but each connection costs processor time.",
    ),
    _BLOCKED,
    # Then calls that failed toward a pool that seems to have room: its states say nothing about the reason.
    _Rule(
        kinds=(PoolKind.TCP_CONNECT,),
        holds=lambda facts: Cause.NO_TIMESTAMPS in facts.possible_causes,
        cause=(
            "connect() failed although {facts.reusable_unproven} TIME_WAITs count as reusable. They are reusable only "
            "if {facts.toward} speaks TCP timestamps."
        ),
        steps=(
            to_say(
                "See whether it does: `ss -Htin dst '{facts.toward}'` prints `ts` for a connection with timestamps."
            ),
            reuse,
            widen,
            second_source,
            second_destination,
        ),
        avoid="Do not count on tcp_tw_reuse before that is known: it takes over no TIME_WAIT without timestamps.",
    ),
    _Rule(
        kinds=(PoolKind.TCP_CONNECT,),
        holds=lambda facts: Cause.PORTS_IN_DOUBT in facts.possible_causes,
        cause=(
            "connect() failed while nobody knows of {facts.in_doubt} ports whether bind() chose them. Such ports are "
            "blocked for every connect()."
        ),
        steps=(
            to_say("Ask the kernel about each of them: `ephmon check '{facts.toward}'`."),
            find_blocker,
            bind_without_port,
        ),
    ),
    _Rule(
        kinds=(PoolKind.TCP_CONNECT,),
        holds=lambda facts: Cause.OWN_RANGE in facts.possible_causes,
        cause=(
            "connect() found no port although {facts.room} of {facts.usable} are left. Either the socket has a port "
            "range of its own (IP_LOCAL_PORT_RANGE), or the pool was full for a moment."
        ),
        steps=(
            to_say("See who called: `curl --local-port 20000-20099 http://127.0.0.1:19100/api/v1/exhaustions`."),
            to_say("See whether it sets a range, as root: `strace -f -e trace=setsockopt -p PID`."),
            to_say("Widen the range where the program sets it, or let the program use the range of the host."),
        ),
        avoid="Do not widen net.ipv4.ip_local_port_range for this: it does not widen a range that a socket has itself.",
    ),
    # Before the rules on states, which look at live sockets only: these are the smaller part of the ports here.
    _Rule(
        kinds=(PoolKind.TCP_CONNECT,),
        holds=lambda facts: facts.time_wait > facts.live,
        cause=(
            "Connections to {facts.toward} do not last: {facts.time_wait} of {facts.usable} usable ports wait in "
            "TIME_WAIT, each for 60 s."
        ),
        steps=(reuse, unix_socket, widen, reuse_time_wait, second_source, second_destination),
        avoid="Do not lower tcp_fin_timeout: it is about FIN_WAIT2, and TIME_WAIT lasts 60 s whatever it says.",
    ),
    _Rule(
        kinds=(PoolKind.TCP_CONNECT,),
        states=("syn_sent",),
        cause="{facts.toward} does not answer: {count} of {facts.sockets} sockets wait for its handshake (SYN_SENT).",
        steps=(
            to_say(
                "Check the route, the firewall and the service there; who waits, as root: "
                "`ss -Htnp state syn-sent dst '{facts.toward}'`."
            ),
            give_up_connecting,
            check_health,
        ),
        avoid="Do not widen the range for this: every further attempt waits just as long.",
    ),
    _Rule(
        kinds=(PoolKind.TCP_CONNECT,),
        states=("close_wait",),
        cause=(
            "A program leaks connections to {facts.toward}: {count} of {facts.sockets} are closed there and not here "
            "(CLOSE_WAIT)."
        ),
        steps=(
            to_say("Find the program, as root: `ss -Htnp state close-wait dst '{facts.toward}'`."),
            to_say("Restart it, which closes them all."),
            to_say("Have it close a socket when it reads the end of the stream, also after an error."),
        ),
        avoid="Do not look for a sysctl: none ends CLOSE_WAIT, and a wider range only puts the end off.",
    ),
    _Rule(
        kinds=(PoolKind.TCP_CONNECT,),
        states=("fin_wait2",),
        cause=(
            "{facts.toward} does not close: {count} of {facts.sockets} sockets are closed on this side only "
            "(FIN_WAIT2)."
        ),
        steps=(
            to_say(
                "Find the program, as root; what has none is an orphan and ends by itself: "
                "`ss -Htnp state fin-wait-2 dst '{facts.toward}'`."
            ),
            give_up_half_closed,
            to_say("Have the service at {facts.toward} close when it reads the end of the stream."),
        ),
        avoid="Do not set tcp_tw_reuse for this: it takes over no FIN_WAIT2.",
    ),
    _Rule(
        kinds=(PoolKind.TCP_CONNECT,),
        states=("fin_wait1", "closing", "last_ack"),
        cause=(
            "{facts.toward} does not acknowledge that connections end: {count} of {facts.sockets} sockets wait for it "
            "(FIN_WAIT1, CLOSING, LAST_ACK)."
        ),
        steps=(
            to_say(
                "Check the route, the firewall and the service there; what waits: "
                "`ss -Htno state fin-wait-1 state closing state last-ack dst '{facts.toward}'`."
            ),
            to_say("Give up on them after 3 attempts instead of 8: `sysctl -w net.ipv4.tcp_orphan_retries=3`."),
            widen,
        ),
        avoid="Do not set tcp_tw_reuse for this: it takes over TIME_WAIT alone.",
    ),
    _Rule(
        kinds=(PoolKind.TCP_CONNECT,),
        states=("established",),
        cause="Connections to {facts.toward} stay open: {count} of {facts.sockets} sockets are ESTABLISHED.",
        steps=(close_idle, unix_socket, widen, second_source, second_destination),
        avoid="Do not set tcp_tw_reuse for this: it takes over TIME_WAIT alone.",
    ),
    _Rule(
        kinds=(PoolKind.TCP_CONNECT,),
        cause="Connections to {facts.toward} hold {facts.in_use} of {facts.usable} usable ports.",
        steps=(reuse, unix_socket, widen, second_source, second_destination),
    ),
    _Rule(
        kinds=(PoolKind.TCP_BIND,),
        cause=(
            "bind({facts.source}, 0) needs a port that no TCP socket of {facts.whose} holds, whatever its destination: "
            "{facts.in_use} of {facts.usable} are taken."
        ),
        steps=(bind_without_port, widen, second_address_to_bind, own_ranges),
        avoid="Do not set tcp_tw_reuse, which bind() ignores, nor ip_autobind_reuse: then connect() fails instead.",
    ),
    _Rule(
        kinds=(PoolKind.UDP_CONNECT,),
        cause=(
            "An unbound UDP socket needs a port that no UDP socket holds, whatever its destination: {facts.in_use} of "
            "{facts.usable} are taken."
        ),
        steps=(find_udp_holder, share_udp_sockets, widen, own_ranges),
        avoid=_NO_TIME_WAIT_OF_UDP,
    ),
    _Rule(
        kinds=(PoolKind.UDP_BIND,),
        cause=(
            "bind({facts.source}, 0) needs a port that no UDP socket of {facts.whose} holds: {facts.in_use} of "
            "{facts.usable} are taken."
        ),
        steps=(find_udp_holder, share_udp_sockets, widen, second_address_to_bind),
        avoid=_NO_TIME_WAIT_OF_UDP,
    ),
)
"""The last rule for each kind fits every pool of the kind."""
