"""Advice: literal situations beside the sentences that they lead to. `test_proxies` has real programs read settings."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ephmon.model.advice.causes import MAX_STEPS, Advice, advise, advise_blocked
from ephmon.model.alerting.blocked import BlockedPorts
from ephmon.model.pools.kinds import PoolKind
from tests import sockets
from tests.builders import make_bind_pool, make_pool
from tests.model.facts import make_sysctls
from tests.namespaces import Namespace
from tests.processes import run

if TYPE_CHECKING:
    from collections.abc import Collection

    from ephmon.facts.snapshot import Sysctls
    from ephmon.model.pools.kinds import Pool

DEFAULT = make_sysctls(32_768, 60_999)
WIDEST = make_sysctls(1_024, 65_535)
"""A range that cannot be wider, so that other steps have room."""
HERE = "127.0.0.1"
WIDEN = "Widen the port range from 28232 to 55296 ports"
WIDER = "sysctl -w net.ipv4.ip_local_port_range='10240 65535'"
NOTHING_LISTENS = f"{WIDEN}; no TCP service listens in the new part: `{WIDER}`."


def connect_pool(**changes: Any) -> Pool:
    """Build a tcp_connect pool of which 25,000 of 28,232 ports are used, without a blocked port."""
    return make_pool(**{"in_use": 25_000, "time_wait": 0, "blocked": 0, **changes})


def test_a_call_that_failed_with_room_is_about_the_socket_and_not_about_the_connections() -> None:
    pool = connect_pool(in_use=50)
    advice = advise(pool, DEFAULT, failed_with_room=True)

    assert "28182 of 28232 are left" in advice.cause
    assert "IP_LOCAL_PORT_RANGE" in advice.cause
    assert not any("idle" in step or "Widen the port range" in step for step in advice.steps)
    assert "stay open" in advise(pool, DEFAULT).cause


def in_state(**states: int) -> Pool:
    return connect_pool(states=states)


CAUSES: dict[str, tuple[Pool, str]] = {
    "short connections": (
        connect_pool(time_wait=20_000),
        "Connections to 10.0.0.9:443 do not last: 20000 of 28232 usable ports wait in TIME_WAIT, each for 60 s.",
    ),
    "short connections over IPv6": (
        connect_pool(time_wait=20_000, source="2001:db8::1", destination="2001:db8::9"),
        "Connections to [2001:db8::9]:443 do not last: 20000 of 28232 usable ports wait in TIME_WAIT, each for 60 s.",
    ),
    "a destination that does not answer": (
        in_state(syn_sent=20_000, established=5_000),
        "10.0.0.9:443 does not answer: 20000 of 25000 sockets wait for its handshake (SYN_SENT).",
    ),
    "a leak": (
        in_state(close_wait=13_000, established=12_000),
        "A program leaks connections to 10.0.0.9:443: 13000 of 25000 are closed there and not here (CLOSE_WAIT).",
    ),
    "half-closed connections": (
        in_state(fin_wait2=25_000),
        "10.0.0.9:443 does not close: 25000 of 25000 sockets are closed on this side only (FIN_WAIT2).",
    ),
    "ends that are not acknowledged": (
        in_state(fin_wait1=9_000, last_ack=4_000, closing=1_000, established=11_000),
        (
            "10.0.0.9:443 does not acknowledge that connections end: 14000 of 25000 sockets wait for it (FIN_WAIT1, "
            "CLOSING, LAST_ACK)."
        ),
    ),
    "long connections": (
        in_state(established=24_000, syn_sent=1_000),
        "Connections to 10.0.0.9:443 stay open: 24000 of 25000 sockets are ESTABLISHED.",
    ),
    "a failed call while nobody knows whether the peer speaks timestamps": (
        connect_pool(time_wait=20_000, reusable=20_000, reusable_unproven=20_000, is_doubted=True, remaining=0),
        (
            "connect() failed although 20000 TIME_WAITs count as reusable. They are reusable only if 10.0.0.9:443 "
            "speaks TCP timestamps."
        ),
    ),
    "a failed call while ports are in doubt": (
        connect_pool(in_doubt=3_000, is_doubted=True, remaining=0),
        (
            "connect() failed while nobody knows of 3000 ports whether bind() chose them. Such ports are blocked for "
            "every connect()."
        ),
    ),
    "live connections beside TIME_WAIT that is handed out again": (
        connect_pool(time_wait=20_000, reusable=20_000),
        "Connections to 10.0.0.9:443 stay open: 5000 of 5000 sockets are ESTABLISHED.",
    ),
    "a mixture": (
        in_state(established=10_000, syn_sent=8_000, close_wait=7_000),
        "Connections to 10.0.0.9:443 hold 25000 of 28232 usable ports.",
    ),
    "no sockets at all": (
        connect_pool(in_use=0, states={}),
        "Connections to 10.0.0.9:443 hold 0 of 28232 usable ports.",
    ),
    "blocked ports": (
        connect_pool(in_use=9_000, time_wait=1_000, blocked=9_001),
        (
            "9001 of 28232 usable ports are blocked for every connect(), whatever its destination. TCP sockets hold "
            "them whose port connect() did not choose, usually those of one program that calls bind(ADDRESS, 0) first."
        ),
    ),
    "fewer blocked ports than its own": (
        connect_pool(in_use=9_000, time_wait=1_000, blocked=9_000),
        "Connections to 10.0.0.9:443 stay open: 8000 of 8000 sockets are ESTABLISHED.",
    ),
    "nothing usable": (
        connect_pool(usable=0, in_use=0),
        "No port is usable: net.ipv4.ip_local_reserved_ports reserves all of 32768-60999.",
    ),
    "bind to an address": (
        make_bind_pool(in_use=25_000),
        (
            "bind(10.0.0.1, 0) needs a port that no TCP socket of 10.0.0.1 or the wildcard holds, whatever its "
            "destination: 25000 of 28232 are taken."
        ),
    ),
    "bind to the wildcard": (
        make_bind_pool(source="::", in_use=25_000),
        (
            "bind(::, 0) needs a port that no TCP socket of any address holds, whatever its destination: 25000 of "
            "28232 are taken."
        ),
    ),
    "UDP": (
        make_pool(kind=PoolKind.UDP_CONNECT, source="0.0.0.0", destination=None, in_use=25),
        "An unbound UDP socket needs a port that no UDP socket holds, whatever its destination: 25 of 28232 are taken.",
    ),
    "UDP bound to an address": (
        make_pool(kind=PoolKind.UDP_BIND, destination=None, in_use=25_000),
        (
            "bind(10.0.0.1, 0) needs a port that no UDP socket of 10.0.0.1 or the wildcard holds: 25000 of 28232 "
            "are taken."
        ),
    ),
}


@pytest.mark.parametrize(("pool", "cause"), CAUSES.values(), ids=CAUSES)
def test_the_cause_follows_from_the_numbers_and_states(pool: Pool, cause: str) -> None:
    assert advise(pool, DEFAULT).cause == cause


def first_words(advice: Advice) -> list[str]:
    return [" ".join(step.split()[:4]).rstrip(":;,.") for step in advice.steps]


REUSE, TIME_WAIT = "Send many requests over", "Let connect() take over"
RANGE, SOURCE, DESTINATION = "Widen the port range", "Connect from a second", "Let the service listen"
UNIX, IDLE, NO_PORT = "Use a Unix socket", "Close idle connections sooner", "Let connect() choose the"
SECOND_BIND, OWN_RANGE, UDP_OWNER = "Bind to a second", "Give each program a", "Find the program that"
BRIEF = connect_pool(time_wait=20_000)
BRIEF_HERE = connect_pool(time_wait=20_000, source=HERE, destination=HERE)
STEPS: dict[str, tuple[Pool, Sysctls, list[str]]] = {
    "TIME_WAIT": (BRIEF, DEFAULT, [REUSE, RANGE, TIME_WAIT]),
    "TIME_WAIT in the widest range": (BRIEF, WIDEST, [REUSE, TIME_WAIT, SOURCE]),
    "TIME_WAIT that is taken over already": (
        BRIEF,
        make_sysctls(1_024, 65_535, tw_reuse=1),
        [REUSE, SOURCE, DESTINATION],
    ),
    "TIME_WAIT without timestamps": (
        BRIEF,
        make_sysctls(1_024, 65_535, timestamps=0),
        [REUSE, SOURCE, DESTINATION],
    ),
    "TIME_WAIT on loopback": (BRIEF_HERE, WIDEST, [REUSE, UNIX, SOURCE]),
    "TIME_WAIT on loopback that is never taken over": (
        BRIEF_HERE,
        make_sysctls(1_024, 65_535, tw_reuse=0),
        [REUSE, UNIX, TIME_WAIT],
    ),
    "TIME_WAIT on IPv6's one loopback address": (
        connect_pool(time_wait=20_000, source="::1", destination="::1"),
        WIDEST,
        [REUSE, UNIX, DESTINATION],
    ),
    "TIME_WAIT toward an address of the host": (
        connect_pool(time_wait=20_000, source="10.8.0.1", destination="10.8.0.1"),
        WIDEST,
        [REUSE, UNIX, TIME_WAIT],
    ),
    "long connections": (connect_pool(), DEFAULT, [IDLE, RANGE, SOURCE]),
    "no answer": (
        in_state(syn_sent=20_000),
        DEFAULT,
        ["Check the route, the", "Give up on it", "Send nothing there while"],
    ),
    "a leak": (
        in_state(close_wait=20_000),
        DEFAULT,
        ["Find the program, as", "Restart it, which closes", "Have it close a"],
    ),
    "half-closed": (
        in_state(fin_wait2=20_000),
        DEFAULT,
        ["Find the program, as", "Give up on connections", "Have the service at"],
    ),
    "not acknowledged": (
        in_state(fin_wait1=20_000),
        DEFAULT,
        ["Check the route, the", "Give up on them", RANGE],
    ),
    "bind": (make_bind_pool(in_use=25_000), DEFAULT, [NO_PORT, RANGE, SECOND_BIND]),
    "bind to the wildcard": (make_bind_pool(source="0.0.0.0", in_use=25_000), DEFAULT, [NO_PORT, RANGE, OWN_RANGE]),
    "UDP": (
        make_pool(kind=PoolKind.UDP_CONNECT, source="::", destination=None),
        DEFAULT,
        [UDP_OWNER, "Send many requests over", RANGE],
    ),
    "UDP bound": (
        make_pool(kind=PoolKind.UDP_BIND, destination=None),
        WIDEST,
        [UDP_OWNER, "Send many requests over", SECOND_BIND],
    ),
    "nothing usable": (connect_pool(usable=0, in_use=0), WIDEST, ["Take out what need"]),
}


@pytest.mark.parametrize(("pool", "sysctls", "steps"), STEPS.values(), ids=STEPS)
def test_the_steps_are_the_safest_three_that_do_good(pool: Pool, sysctls: Sysctls, steps: list[str]) -> None:
    assert first_words(advise(pool, sysctls)) == steps


def test_blocked_ports_of_a_namespace_are_advised_on_as_those_of_a_pool() -> None:
    of_pool = advise(connect_pool(in_use=10, blocked=20_000, source="10.0.0.1"), DEFAULT, program="haproxy")
    advice = advise_blocked(BlockedPorts(netns="own", blocked=20_000, usable=28_232), DEFAULT, program="haproxy")

    assert (advice.cause, advice.avoid) == (of_pool.cause, of_pool.avoid)
    assert first_words(advice) == first_words(of_pool) == ["Find that program, as", NO_PORT, RANGE]
    assert advice.steps[1].endswith(" HAProxy: `source ADDRESS` without a port does it by itself.")
    assert of_pool.steps[1].endswith(" HAProxy: `source 10.0.0.1` without a port does it by itself.")
    assert advise_blocked(BlockedPorts(netns="own", blocked=0, usable=0), DEFAULT).cause.startswith("No port is usable")


# --- words --------------------------------------------------------------------------------------------------------


def test_time_wait_is_taken_over_as_the_kernel_does_it() -> None:
    delayed = make_sysctls(1_024, 65_535, tw_reuse=0, delay_ms=2_500)

    assert advise(BRIEF, delayed).steps[1] == (
        "Let connect() take over TIME_WAITs older than 2.5 s toward other hosts too, if they use TCP timestamps "
        "(`ss -tin` prints `ts`): `sysctl -w net.ipv4.tcp_tw_reuse=1`."
    )
    assert advise(BRIEF_HERE, delayed).steps[2] == (
        "Let connect() take over TIME_WAITs older than 2.5 s on loopback: `sysctl -w net.ipv4.tcp_tw_reuse=2`."
    )


def test_a_second_source_on_loopback_is_there_already() -> None:
    sources = [advise(connect_pool(source=f"127.0.0.{last}", destination=HERE), WIDEST).steps[2] for last in (1, 2)]
    elsewhere = advise(connect_pool(blocked=32), WIDEST, program="haproxy.service").steps[1]

    assert ["source 127.0.0.2`" in sources[0], "source 127.0.0.3`" in sources[1]] == [True, True]
    assert elsewhere == (
        "Connect from a second address, which has 28200 ports of its own toward 10.0.0.9:443. "
        "HAProxy: `server second 10.0.0.9:443 source SOURCE2`."
    )


def test_a_program_gets_its_own_setting_and_an_unknown_one_all_of_them() -> None:
    haproxy, other, unknown = (advise(BRIEF, DEFAULT, program=name).steps[0] for name in ("haproxy", "java", None))

    assert haproxy == (
        "Send many requests over one connection. HAProxy: `http-reuse safe`, or where clients retry `http-reuse "
        "aggressive`, in mode http, without `option httpclose` and `option http-server-close`."
    )
    assert other == (
        "Send many requests over one connection. In its settings or its code: keep-alive, or a pool of connections."
    )
    assert re.findall(r"[.;] (\w+(?: programs)?): ", unknown) == [
        "HAProxy",
        "nginx",
        "Envoy",
        "Squid",
        "other programs",
    ]


def test_in_short_it_is_the_cause_and_the_first_step() -> None:
    assert advise(in_state(close_wait=20), DEFAULT).in_short == (
        "A program leaks connections to 10.0.0.9:443: 20 of 20 are closed there and not here (CLOSE_WAIT). "
        "Find the program, as root: `ss -Htnp state close-wait dst '10.0.0.9:443'`."
    )


ENDS = [("10.0.0.1", "10.0.0.9"), (HERE, HERE), ("::1", "::1"), ("2001:db8::1", "2001:db8::9")]
STATES = st.sampled_from(["established", "syn_sent", "fin_wait2", "time_wait", "state_14"])


@st.composite
def any_pool(draw: st.DrawFn) -> Pool:
    kind = draw(st.sampled_from(PoolKind))
    source, destination = draw(st.sampled_from(ENDS))
    numbers = st.integers(0, 30_000)
    return make_pool(
        kind=kind,
        source=source,
        destination=destination if kind == PoolKind.TCP_CONNECT else None,
        usable=draw(numbers),
        blocked=draw(numbers),
        in_use=draw(numbers),
        time_wait=draw(numbers),
        states=draw(st.dictionaries(STATES, st.integers(0, 9))),
    )


@given(
    pool=any_pool(),
    reuse=st.integers(0, 2),
    program=st.sampled_from([None, "nginx", "x\x1b[2J|"]),
    listening=st.none() | st.frozensets(st.integers(1, 65_535)),
)
def test_there_is_always_advice_in_plain_lines(
    pool: Pool, reuse: int, program: str | None, listening: frozenset[int] | None
) -> None:
    """Nothing of a program's name gets in, and no bar either, which would end the text of a plugin."""
    advice = advise(pool, make_sysctls(40_000, 49_999, tw_reuse=reuse), listening_ports=listening, program=program)

    assert 1 <= len(advice.steps) <= MAX_STEPS
    for line in filter(None, (advice.cause, *advice.steps, advice.avoid)):
        assert line.isprintable()
        assert "|" not in line
        assert line.endswith(".")
        assert not re.search(r"tw_recycle|tcp_fin_timeout=", line)


# --- the wider range ----------------------------------------------------------------------------------------------

PORTS_UNKNOWN = f"{WIDEN}; for PORTS write the ports of services there, which `ss -Htuln` lists: "
KEEP_OFF = f"{WIDEN}, but keep it off the services that listen there: "
RESERVE = "sysctl -w net.ipv4.ip_local_reserved_ports="
RANGES: dict[str, tuple[Sysctls, Collection[int] | None, str]] = {
    "who listens is not known": (DEFAULT, None, f"{PORTS_UNKNOWN}`{RESERVE}PORTS && {WIDER}`."),
    "nor that, with ports reserved": (
        make_sysctls(32_768, 60_999, reserved=[8080, 9000, 9001]),
        None,
        f"{PORTS_UNKNOWN}`{RESERVE}8080,9000-9001,PORTS && {WIDER}`.",
    ),
    "nobody listens there": (DEFAULT, {80, 443, 10_239, 32_768, 40_000, 60_999}, NOTHING_LISTENS),
    "some listen there": (
        DEFAULT,
        {80, 10_240, 19_100, 19_101, 40_000, 61_000, 65_535},
        f"{KEEP_OFF}`{RESERVE}10240,19100-19101,61000,65535 && {WIDER}`.",
    ),
    "some listen there, and others are reserved": (
        make_sysctls(32_768, 60_999, reserved=[50_000]),
        {19_100},
        f"{KEEP_OFF}`{RESERVE}19100,50000 && {WIDER}`.",
    ),
    "those that listen there are reserved": (
        make_sysctls(32_768, 60_999, reserved=[19_100]),
        {19_100},
        NOTHING_LISTENS.replace("no TCP service listens in the new part", "every TCP service there is reserved"),
    ),
}


@pytest.mark.parametrize(("sysctls", "listening", "step"), RANGES.values(), ids=RANGES)
def test_a_wider_range_leaves_out_the_services_that_it_would_come_to_cover(
    sysctls: Sysctls, listening: Collection[int] | None, step: str
) -> None:
    assert advise(BRIEF, sysctls, listening_ports=listening).steps[1] == step


def test_for_udp_it_is_not_known_who_listens() -> None:
    """Services of TCP do not matter to UDP sockets, and those of UDP are not looked for."""
    pool = make_pool(kind=PoolKind.UDP_CONNECT, source="0.0.0.0", destination=None, destination_port=None)

    assert f"{PORTS_UNKNOWN}`{RESERVE}PORTS && {WIDER}`." in advise(pool, DEFAULT, listening_ports={19_100}).steps


def test_a_range_that_is_wide_is_widened_to_the_last() -> None:
    wide = make_sysctls(10_240, 65_535)

    assert "`sysctl -w net.ipv4.ip_local_port_range='1024 65535'`" in advise(BRIEF, wide, listening_ports=[]).steps[1]
    assert RANGE not in first_words(advise(BRIEF, make_sysctls(1_000, 65_535)))


def test_the_range_of_ipv6_is_the_same() -> None:
    pool = connect_pool(time_wait=20_000, source="2001:db8::1", destination="2001:db8::9")

    assert advise(pool, DEFAULT, listening_ports=[]).steps[1] == NOTHING_LISTENS.replace(
        " ports;", " ports, for IPv6 too;"
    )


MANY = range(20_000, 20_200, 2)
"""Too many to be repeated in a line, but not too many for the kernel."""


def test_the_commands_do_what_they_say() -> None:
    """A word that was not filled in changes nothing."""
    results = []
    with Namespace() as ns:
        for reserved, listening in (([8080], [19_100, 29_090, 9_090]), (MANY, [19_100, 20_000]), ([8080], None)):
            ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", "40000 40999")
            ns.call(sockets.write_sysctl, "net.ipv4.ip_local_reserved_ports", ",".join(map(str, reserved)))
            sysctls = make_sysctls(40_000, 40_999, reserved=reserved)
            (command,) = re.findall(r"`(sysctl [^`]*)`", advise(BRIEF, sysctls, listening_ports=listening).steps[1])
            status = run(ns.command("sh", "-c", command)).returncode
            kept = ns.call(sockets.read_sysctl, "net.ipv4.ip_local_reserved_ports").split(",")
            port_range = ns.call(sockets.read_sysctl, "net.ipv4.ip_local_port_range")
            results.append((status == 0, len(kept), kept[0], kept[-1], port_range, len(command) < 300))

    assert results == [
        (True, 3, "8080", "29090", "10240\t65535", True),
        (True, 101, "19100", "20198", "10240\t65535", True),
        (False, 1, "8080", "8080", "40000\t40999", True),
    ]


def test_a_list_that_the_kernel_would_cut_is_not_written() -> None:
    sysctls = make_sysctls(32_768, 60_999, reserved=range(20_000, 22_000, 2))

    for listening in ([19_100], None):
        assert advise(BRIEF, sysctls, listening_ports=listening).steps[1] == (
            f"{WIDEN}, once the services there are added to net.ipv4.ip_local_reserved_ports: `{WIDER}`."
        )


QUESTIONS = [
    advise(pool, DEFAULT)
    for pool in (
        *(in_state(**{state: 20}) for state in ("syn_sent", "close_wait", "fin_wait2", "fin_wait1")),
        connect_pool(states={"syn_sent": 20}, source="::1", destination="::1"),
        connect_pool(in_use=0, blocked=9),
        make_pool(kind=PoolKind.UDP_BIND, destination=None),
    )
]


@pytest.mark.parametrize("advice", QUESTIONS, ids=lambda advice: advice.cause[:30])
def test_ss_takes_what_it_is_to_be_asked(advice: Advice) -> None:
    (command,) = re.findall(r"`(ss [^`]*)`", advice.steps[0])
    result = run(["sh", "-c", command])

    assert (result.returncode, result.stderr) == (0, "")
