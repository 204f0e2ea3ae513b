"""Whether a port is shared, blocked or in doubt: certain, answered, remembered."""

from __future__ import annotations

from array import array
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from ephmon.facts.addresses import PORTS
from ephmon.facts.sockets import Blindness, TcpSockets, TcpState
from ephmon.model.pools.classify_ports import Evidence, classify_ports
from ephmon.model.pools.port_classes import PortClass
from tests.model.facts import LOW, Sockets, bound, connected, listening, make_sysctls, make_tcp, packed
from tests.model.pools.classified import FIRST, HERE, SECOND, THERE, classes, plain, remembered

if TYPE_CHECKING:
    from collections.abc import Mapping


def with_cookies(tcp: TcpSockets, fingerprints: Mapping[int, int]) -> TcpSockets:
    table = array("Q", bytes(8 * PORTS))
    for port, fingerprint in fingerprints.items():
        table[port] = fingerprint
    return replace(tcp, fingerprints=table)


def seen(tcp: TcpSockets, times: int, answers: Mapping[int, bool] | None = None) -> Evidence:
    """Return what is remembered after so many readings that show the same."""
    evidence = Evidence()
    for _ in range(times):
        evidence = remembered(tcp, evidence, answers)
    return evidence


def waiting(port: int) -> Sockets:
    return connected(HERE, port, THERE, 443, state=TcpState.TIME_WAIT, left_ms=30_000)


# --- one reading --------------------------------------------------------------------------------------------------


def test_a_port_whose_sockets_all_carry_the_flag_is_shared() -> None:
    assert classes(make_tcp(connected(HERE, FIRST, THERE, 443, no_port=True))) == {}


def test_one_socket_without_the_flag_puts_the_port_in_doubt() -> None:
    tcp = make_tcp(connected(HERE, FIRST, THERE, 443, no_port=True), plain(FIRST, "10.0.0.8"))

    assert classes(tcp) == {FIRST: PortClass.AMBIGUOUS}


def test_listening_and_bound_sockets_block() -> None:
    tcp = make_tcp(listening(HERE, LOW + 2), bound(HERE, LOW + 4))

    assert classes(tcp) == dict.fromkeys([LOW + 2, LOW + 4], PortClass.BLOCKED)


def test_reserved_and_outside_ports_have_no_class() -> None:
    tcp = make_tcp(listening(HERE, LOW + 2), plain(LOW + 4), plain(LOW - 2))
    ports, _ = classify_ports(make_sysctls(reserved=[LOW + 2, LOW + 4]), tcp, Evidence())

    assert (ports.usable, ports.blocked, ports.ambiguous) == (98, 0, 0)


def test_before_6_18_a_flag_makes_nothing_certain() -> None:
    """The port may be blocked by a socket that has gone."""
    tcp = replace(make_tcp(connected(HERE, FIRST, THERE, 443, no_port=True)), ports_recover=False)

    assert classes(tcp) == {FIRST: PortClass.AMBIGUOUS}


def test_a_connected_socket_that_named_its_port_is_proof_before_6_18_only() -> None:
    """It may have bound the wildcard, and another at its address may have left, which made the port shared."""
    tcp = make_tcp(plain(FIRST), explicit=[FIRST])

    assert classes(tcp) == {FIRST: PortClass.AMBIGUOUS}
    assert classes(tcp, answers={FIRST: True}) == {}
    assert classes(tcp, answers={FIRST: False}) == {FIRST: PortClass.BLOCKED}
    assert classes(replace(tcp, ports_recover=False)) == {FIRST: PortClass.BLOCKED}


def test_the_parity_of_a_port_says_nothing() -> None:
    assert classes(make_tcp(plain([FIRST, SECOND]))) == dict.fromkeys([FIRST, SECOND], PortClass.AMBIGUOUS)


# --- memory -------------------------------------------------------------------------------------------------------


def test_a_verdict_outlives_the_flag_while_the_same_sockets_are_there() -> None:
    before = remembered(with_cookies(make_tcp(connected(HERE, FIRST, THERE, 443, no_port=True)), {FIRST: 7}))

    assert classes(with_cookies(make_tcp(waiting(FIRST)), {FIRST: 7}), before) == {}
    assert classes(with_cookies(make_tcp(waiting(FIRST)), {FIRST: 8}), before) == {FIRST: PortClass.AMBIGUOUS}


@pytest.mark.parametrize(
    "tcp",
    [replace(make_tcp(plain(FIRST), explicit=[FIRST]), ports_recover=False), make_tcp(bound(HERE, FIRST))],
    ids=["named its port", "bound"],
)
def test_what_blocks_is_remembered_once_it_was_seen_twice(tcp: TcpSockets) -> None:
    """At one reading it may have come after the sockets were read, and it may be gone before the next."""
    left = with_cookies(make_tcp(waiting(FIRST)), {FIRST: 7})
    others = with_cookies(make_tcp(waiting(FIRST)), {FIRST: 8})
    once, twice = (seen(with_cookies(tcp, {FIRST: 7}), times) for times in (1, 2))

    assert classes(left, once) == {FIRST: PortClass.AMBIGUOUS}
    assert classes(left, twice) == {FIRST: PortClass.BLOCKED}
    assert classes(left, remembered(left, twice)) == {FIRST: PortClass.BLOCKED}
    assert classes(others, twice) == {FIRST: PortClass.AMBIGUOUS}


def test_without_cookies_nothing_is_remembered_as_certain() -> None:
    before = remembered(make_tcp(connected(HERE, FIRST, THERE, 443, no_port=True)))

    assert classes(make_tcp(waiting(FIRST)), before) == {FIRST: PortClass.AMBIGUOUS}


def test_what_is_left_on_a_port_after_its_listener_is_in_doubt_whatever_its_options() -> None:
    """An accepted socket has the options of its listener."""
    listened = remembered(make_tcp(listening(HERE, FIRST)))
    left = make_tcp(connected(HERE, FIRST, "10.0.0.7", 50_000, no_port=True))

    assert classes(left, listened) == {FIRST: PortClass.AMBIGUOUS}
    assert classes(left, remembered(left, listened)) == {FIRST: PortClass.AMBIGUOUS}
    assert classes(left, remembered(make_tcp(), listened)) == {}


def test_sockets_left_by_a_listener_were_accepted_if_they_block_the_port() -> None:
    listened = remembered(make_tcp(listening(HERE, FIRST)))
    tcp = make_tcp(plain([FIRST, SECOND]))

    def accepted(previous: Evidence, answers: Mapping[int, bool]) -> frozenset[int]:
        return classify_ports(make_sysctls(), tcp, previous, answers=answers)[0].left_by_listeners

    assert accepted(listened, {FIRST: False, SECOND: False}) == {FIRST}
    assert accepted(listened, {}) == accepted(listened, {FIRST: True}) == frozenset()
    assert accepted(remembered(tcp, listened, {FIRST: True}), {FIRST: False}) == frozenset()


# --- the probe ----------------------------------------------------------------------------------------------------


def test_the_probe_decides() -> None:
    tcp = make_tcp(plain(FIRST), plain(LOW + 2))

    assert classes(tcp, answers={FIRST: True, LOW + 2: False}) == {LOW + 2: PortClass.BLOCKED}


def test_an_answer_holds_while_the_same_sockets_are_there_and_one_that_blocks_is_asked_for_twice() -> None:
    tcp = with_cookies(make_tcp(plain(FIRST), plain(LOW + 2)), {FIRST: 7, LOW + 2: 8})
    once = remembered(tcp, answers={FIRST: True, LOW + 2: False})
    twice = remembered(tcp, once, answers={LOW + 2: False})

    assert classes(tcp, once) == {LOW + 2: PortClass.AMBIGUOUS}
    assert classes(tcp, twice) == classes(tcp, remembered(tcp, twice)) == {LOW + 2: PortClass.BLOCKED}


def test_the_two_answers_may_be_any_time_apart_while_the_same_sockets_are_there() -> None:
    tcp = with_cookies(make_tcp(plain(FIRST)), {FIRST: 7})
    once = remembered(tcp, answers={FIRST: False})
    later = remembered(tcp, remembered(tcp, once))

    assert later.blocked_once() == [FIRST]
    assert classes(tcp, remembered(tcp, later, answers={FIRST: False})) == {FIRST: PortClass.BLOCKED}
    assert remembered(with_cookies(tcp, {FIRST: 8}), later).blocked_once() == []
    assert remembered(tcp, later, answers={FIRST: True}).blocked_once() == []


def test_before_6_18_an_answer_that_a_port_is_shared_holds_for_one_reading() -> None:
    """A bind() that came and went in between blocks the port until it is empty, and changes no socket that stays."""
    tcp = replace(with_cookies(make_tcp(plain(FIRST), plain(LOW + 2)), {FIRST: 7, LOW + 2: 8}), ports_recover=False)
    answers = {FIRST: True, LOW + 2: False}
    before = seen(tcp, 2, answers)

    assert classes(tcp, before, answers) == {LOW + 2: PortClass.BLOCKED}
    assert classes(tcp, before) == {FIRST: PortClass.AMBIGUOUS, LOW + 2: PortClass.BLOCKED}


def test_a_blocked_port_is_asked_about_again_while_a_leaving_socket_may_make_it_shared() -> None:
    tcp = with_cookies(make_tcp(plain(FIRST), plain(FIRST, "10.0.0.8")), {FIRST: 7})

    assert classes(tcp, seen(tcp, 3, {FIRST: False})) == {FIRST: PortClass.AMBIGUOUS}


def test_the_probe_finds_bound_sockets_that_are_not_shown() -> None:
    """Asked of every port that may have one, it ends the blindness; ports that look free may be blocked too."""
    tcp = make_tcp(plain(FIRST), blind_to=[Blindness.BOUND_UNCONNECTED])
    everywhere = {port: port != LOW + 50 for port in range(LOW, LOW + 100)}
    some, _ = classify_ports(make_sysctls(), tcp, Evidence(), answers={FIRST: True})
    every, _ = classify_ports(make_sysctls(), tcp, Evidence(), answers=everywhere)

    assert some.blind_to == {Blindness.BOUND_UNCONNECTED}
    assert (every.blind_to, every.blocked, every.ambiguous) == (frozenset(), 1, 0)


# --- binders ------------------------------------------------------------------------------------------------------


def binders(*rows: Sockets, previous: Evidence | None = None, answers: Mapping[int, bool] | None = None) -> set[bytes]:
    tcp = with_cookies(make_tcp(*rows), {})
    return set(classify_ports(make_sysctls(), tcp, previous or Evidence(), answers=answers or {})[1].binders)


def test_a_bound_socket_that_did_not_name_its_port_makes_its_address_a_binder() -> None:
    tcp = replace(make_tcp(), bound_to_any_port=frozenset([packed(HERE)]))

    assert remembered(tcp).binders == {packed(HERE)}


def test_a_connection_alone_on_a_port_that_the_probe_found_blocked_makes_a_binder() -> None:
    blocked = {FIRST: False}

    assert binders(plain(FIRST), answers=blocked) == {packed(HERE)}
    assert binders(plain(FIRST)) == binders(plain(FIRST), answers={FIRST: True}) == set()


@pytest.mark.parametrize(
    "rows",
    [(waiting(FIRST),), (plain(FIRST), plain(FIRST, "10.0.0.8"))],
    ids=["a TIME_WAIT may have named its port", "two have the port, so it was shared or listened on"],
)
def test_what_may_have_had_another_reason_makes_no_binder(rows: tuple[Sockets, ...]) -> None:
    assert binders(*rows, answers={FIRST: False}) == set()


def test_where_the_kernel_does_not_show_who_named_a_port_nobody_is_proven_to_bind() -> None:
    """/proc/net shows no cookies either."""
    assert remembered(make_tcp(plain(FIRST)), answers={FIRST: False}).binders == set()


def test_what_a_listener_accepted_makes_no_binder() -> None:
    listened = remembered(make_tcp(listening(HERE, FIRST)))

    assert binders(plain(FIRST), previous=listened, answers={FIRST: False}) == set()


def test_a_known_binder_is_one_down_to_its_last_blocked_port() -> None:
    known = Evidence(binders=frozenset([packed(HERE)]))

    assert binders(waiting(FIRST), previous=known, answers={FIRST: False}) == {packed(HERE)}
    assert binders(waiting(FIRST), previous=known) == set()


# --- readings that only count -------------------------------------------------------------------------------------


def counted(*rows: Sockets) -> TcpSockets:
    """Build what a reading without evidence shows: neither bound sockets nor who named its port."""
    return replace(make_tcp(*rows), has_evidence=False)


def test_without_evidence_every_port_in_use_is_in_doubt_but_for_listeners() -> None:
    """Also one that was certain: other sockets may be on it by now."""
    certain = make_tcp(connected(HERE, FIRST, THERE, 443, no_port=True), plain(SECOND), explicit=[SECOND])
    now = counted(connected(HERE, FIRST, THERE, 443, no_port=True), plain(SECOND), listening(HERE, LOW + 6))

    assert classes(now, remembered(certain)) == {
        FIRST: PortClass.AMBIGUOUS,
        SECOND: PortClass.AMBIGUOUS,
        LOW + 6: PortClass.BLOCKED,
    }


def test_without_evidence_ports_that_were_bound_are_in_doubt_until_that_is_looked_for_again() -> None:
    before = remembered(make_tcp(bound(HERE, LOW + 2), listening(HERE, LOW + 4)))
    now = remembered(counted(), before)

    assert classes(counted(listening(HERE, LOW + 4)), before) == {
        LOW + 2: PortClass.AMBIGUOUS,
        LOW + 4: PortClass.BLOCKED,
    }
    assert classes(counted(), now) == dict.fromkeys([LOW + 2, LOW + 4], PortClass.AMBIGUOUS)
    assert classes(make_tcp(), now) == {}


def test_verdicts_wait_for_the_next_reading_with_evidence() -> None:
    """The port was judged shared, then counted; the same sockets are on it still."""
    certain = with_cookies(make_tcp(connected(HERE, FIRST, THERE, 443, no_port=True)), {FIRST: 7})
    after = remembered(counted(waiting(FIRST)), remembered(certain))

    assert classes(with_cookies(make_tcp(waiting(FIRST)), {FIRST: 7}), after) == {}
    assert classes(with_cookies(make_tcp(waiting(FIRST)), {FIRST: 8}), after) == {FIRST: PortClass.AMBIGUOUS}


def test_a_reading_that_only_counts_never_claims_that_nothing_is_hidden() -> None:
    ports, _ = classify_ports(make_sysctls(), counted(), Evidence())

    assert ports.blind_to == {Blindness.BOUND_UNCONNECTED}


def test_a_reading_that_only_counts_forgets_no_binder_and_sees_listeners_come_and_go() -> None:
    """The binder's sockets are bound and not connected yet, which is not seen."""
    before = remembered(replace(make_tcp(bound(HERE, LOW)), bound_to_any_port=frozenset({packed(HERE)})))
    listened = remembered(counted(listening(HERE, FIRST)), before)

    assert listened.binders == {packed(HERE)}
    assert remembered(counted(plain(FIRST)), listened).listened_on == {FIRST}
    assert remembered(counted(), listened).listened_on == set()


def test_counting_would_miss_much_where_many_ports_are_blocked_by_others_than_listeners() -> None:
    """Those that come later would not be seen: 1 of 100 ports is little, 2 are not."""
    in_doubt = plain(range(FIRST + 20, FIRST + 40, 2))

    assert not remembered(make_tcp(in_doubt, bound(HERE, LOW))).settles_much
    assert remembered(make_tcp(in_doubt, bound(HERE, [LOW, LOW + 2]))).settles_much
    assert remembered(make_tcp(in_doubt), answers=dict.fromkeys([FIRST + 20, FIRST + 22], False)).settles_much
    assert not remembered(make_tcp(in_doubt, listening(HERE, [LOW, LOW + 2, LOW + 4]))).settles_much


def test_counting_would_miss_much_where_most_ports_are_known_to_be_shared() -> None:
    tcp = make_tcp(plain(range(FIRST, FIRST + 10)))

    assert not remembered(tcp, answers=dict.fromkeys(range(FIRST, FIRST + 4), True)).settles_much
    assert remembered(tcp, answers=dict.fromkeys(range(FIRST, FIRST + 5), True)).settles_much
