"""Whether a port in doubt is shared or blocked: certain, remembered, probed or likely."""

from __future__ import annotations

from array import array
from dataclasses import replace
from typing import TYPE_CHECKING

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


def waiting(port: int) -> Sockets:
    return connected(HERE, port, THERE, 443, state=TcpState.TIME_WAIT, left_ms=30_000)


# --- one reading --------------------------------------------------------------------------------------------------


def test_a_port_whose_sockets_all_carry_the_flag_is_shared() -> None:
    assert classes(make_tcp(connected(HERE, FIRST, THERE, 443, no_port=True))) == {}


def test_one_socket_without_the_flag_puts_the_port_in_doubt() -> None:
    tcp = make_tcp(connected(HERE, FIRST, THERE, 443, no_port=True), plain(FIRST, "10.0.0.8"))

    assert classes(tcp) == {FIRST: PortClass.AMBIGUOUS}


def test_listening_bound_and_naming_sockets_block() -> None:
    tcp = make_tcp(listening(HERE, LOW + 2), bound(HERE, LOW + 4), plain(LOW + 6), explicit=[LOW + 6])

    assert classes(tcp) == dict.fromkeys([LOW + 2, LOW + 4, LOW + 6], PortClass.BLOCKED)


def test_reserved_and_outside_ports_have_no_class() -> None:
    tcp = make_tcp(listening(HERE, LOW + 2), plain(LOW + 4), plain(LOW - 2))
    ports, _ = classify_ports(make_sysctls(reserved=[LOW + 2, LOW + 4]), tcp, Evidence())

    assert (ports.usable, ports.blocked, ports.ambiguous) == (98, 0, 0)


def test_before_6_18_a_flag_makes_nothing_certain() -> None:
    """The port may be blocked by a socket that has gone."""
    tcp = replace(make_tcp(connected(HERE, FIRST, THERE, 443, no_port=True)), ports_recover=False)

    assert classes(tcp) == {FIRST: PortClass.AMBIGUOUS}


# --- memory -------------------------------------------------------------------------------------------------------


def test_a_verdict_outlives_the_flag_while_the_same_sockets_are_there() -> None:
    before = remembered(with_cookies(make_tcp(connected(HERE, FIRST, THERE, 443, no_port=True)), {FIRST: 7}))

    assert classes(with_cookies(make_tcp(waiting(FIRST)), {FIRST: 7}), before) == {}
    assert classes(with_cookies(make_tcp(waiting(FIRST)), {FIRST: 8}), before) == {FIRST: PortClass.AMBIGUOUS}


def test_a_time_wait_of_a_socket_that_named_its_port_blocks_on() -> None:
    before = remembered(with_cookies(make_tcp(plain(FIRST), explicit=[FIRST]), {FIRST: 7}))

    assert classes(with_cookies(make_tcp(waiting(FIRST)), {FIRST: 7}), before) == {FIRST: PortClass.BLOCKED}


def test_a_socket_that_was_seen_bound_blocks_on_when_it_connects() -> None:
    before = remembered(with_cookies(make_tcp(bound(HERE, FIRST)), {FIRST: 7}))

    assert classes(with_cookies(make_tcp(plain(FIRST)), {FIRST: 7}), before) == {FIRST: PortClass.BLOCKED}


def test_a_suspect_stays_one_when_the_signs_fade() -> None:
    """Its parity says nothing any more once the ports of the first are used up, but its sockets are the same."""
    before = remembered(with_cookies(make_tcp(plain(SECOND)), {SECOND: 7}))
    crowded = make_tcp(plain(range(LOW, LOW + 100, 2)), plain(SECOND))

    assert classes(with_cookies(crowded, {SECOND: 7}), before)[SECOND] == PortClass.SUSPECT
    assert classes(with_cookies(crowded, {SECOND: 8}), before)[SECOND] == PortClass.AMBIGUOUS


def test_without_cookies_nothing_is_remembered_as_certain() -> None:
    before = remembered(make_tcp(connected(HERE, FIRST, THERE, 443, no_port=True)))

    assert classes(make_tcp(waiting(FIRST)), before) == {FIRST: PortClass.AMBIGUOUS}


def test_what_is_left_on_a_port_after_its_listener_was_accepted() -> None:
    listened = remembered(make_tcp(listening(HERE, FIRST)))
    left = make_tcp(connected(HERE, FIRST, "10.0.0.7", 50_000, no_port=True))

    assert classes(left, listened) == {FIRST: PortClass.SUSPECT}
    assert classes(left, remembered(left, listened)) == {FIRST: PortClass.SUSPECT}


def test_the_past_of_a_port_ends_when_it_is_seen_empty() -> None:
    empty = remembered(make_tcp(), remembered(make_tcp(listening(HERE, FIRST))))

    assert classes(make_tcp(plain(FIRST)), empty) == {FIRST: PortClass.AMBIGUOUS}


def test_before_6_18_a_port_that_was_bound_is_suspect_until_it_is_empty() -> None:
    was_bound = remembered(make_tcp(bound(HERE, FIRST)))
    now = make_tcp(plain(FIRST))

    assert classes(now, was_bound) == {FIRST: PortClass.AMBIGUOUS}
    assert classes(replace(now, ports_recover=False), was_bound) == {FIRST: PortClass.SUSPECT}


# --- the probe ----------------------------------------------------------------------------------------------------


def test_the_probe_decides() -> None:
    tcp = make_tcp(plain(FIRST), plain(LOW + 2))

    assert classes(tcp, answers={FIRST: True, LOW + 2: False}) == {LOW + 2: PortClass.BLOCKED}


def test_an_answer_holds_while_the_same_sockets_are_there() -> None:
    tcp = with_cookies(make_tcp(plain(FIRST), plain(LOW + 2)), {FIRST: 7, LOW + 2: 8})
    before = remembered(tcp, answers={FIRST: True, LOW + 2: False})

    assert classes(tcp, before) == {LOW + 2: PortClass.BLOCKED}


def test_before_6_18_an_answer_that_a_port_is_shared_says_nothing_certain_of_the_next_reading() -> None:
    """A bind() that came and went in between blocks the port until it is empty, and changes no socket that stays."""
    tcp = with_cookies(make_tcp(plain(SECOND), plain(LOW + 2)), {SECOND: 7, LOW + 2: 8})
    old = replace(tcp, ports_recover=False)
    before = remembered(old, answers={SECOND: True, LOW + 2: False})

    # Its parity would make it suspect, but it was shared a moment ago.
    assert classes(old, before) == {SECOND: PortClass.AMBIGUOUS, LOW + 2: PortClass.BLOCKED}
    assert classes(old, remembered(old, before)) == {SECOND: PortClass.AMBIGUOUS, LOW + 2: PortClass.BLOCKED}


def test_a_port_that_the_probe_calls_shared_has_nothing_left_of_a_listener() -> None:
    """Its listener went between two readings, and connect() took the port before the second."""
    tcp = with_cookies(make_tcp(plain(FIRST)), {FIRST: 7})
    listened = remembered(make_tcp(listening(HERE, FIRST)))
    ports, evidence = classify_ports(make_sysctls(), tcp, listened, answers={FIRST: True})
    later, _ = classify_ports(make_sysctls(), tcp, evidence)
    unasked, _ = classify_ports(make_sysctls(), tcp, listened)

    assert unasked.left_by_listeners == {FIRST}
    assert ports.left_by_listeners == later.left_by_listeners == frozenset()
    assert (ports.ambiguous, later.ambiguous) == (0, 0)


def test_the_probe_finds_bound_sockets_that_are_not_shown() -> None:
    """Asked of every port that may have one, it ends the blindness; ports that look free may be blocked too."""
    tcp = make_tcp(plain(FIRST), blind_to=[Blindness.BOUND_UNCONNECTED])
    everywhere = {port: port != LOW + 50 for port in range(LOW, LOW + 100)}
    some, _ = classify_ports(make_sysctls(), tcp, Evidence(), answers={FIRST: True})
    every, _ = classify_ports(make_sysctls(), tcp, Evidence(), answers=everywhere)

    assert some.blind_to == {Blindness.BOUND_UNCONNECTED}
    assert (every.blind_to, every.blocked, every.certainly_blocked) == (frozenset(), 1, 1)


# --- binders ------------------------------------------------------------------------------------------------------


def binders(tcp: TcpSockets, previous: Evidence | None = None, answers: Mapping[int, bool] | None = None) -> set[bytes]:
    _, evidence = classify_ports(
        make_sysctls(), tcp, previous or Evidence(), answers=answers or {}, likely_binder_ports=3
    )
    return set(evidence.binders)


def test_an_address_is_a_binder_if_a_bound_socket_says_so_or_enough_are_likely_to() -> None:
    seconds = [SECOND, SECOND + 2, SECOND + 4]

    assert binders(replace(make_tcp(), bound_to_any_port=frozenset([packed(HERE)]))) == {packed(HERE)}
    assert binders(make_tcp(plain(seconds))) == {packed(HERE)}
    assert binders(make_tcp(plain(seconds[:2]))) == set()


def test_a_host_that_only_connects_has_no_binder() -> None:
    assert binders(make_tcp(plain(range(LOW, LOW + 100)))) == set()


def test_one_port_that_the_probe_found_blocked_makes_a_binder() -> None:
    assert binders(make_tcp(plain(FIRST)), answers={FIRST: False}) == {packed(HERE)}


def test_a_known_binder_is_one_while_a_port_of_it_is_likely() -> None:
    known = Evidence(binders=frozenset([packed(HERE)]))

    assert binders(make_tcp(plain(SECOND)), known) == {packed(HERE)}
    assert binders(make_tcp(plain(FIRST)), known) == set()


def test_what_a_listener_accepted_makes_no_binder() -> None:
    listened = remembered(make_tcp(listening(HERE, [SECOND, SECOND + 2, SECOND + 4])))
    left = make_tcp(connected(HERE, [SECOND, SECOND + 2, SECOND + 4], "10.0.0.7", 50_000))

    assert binders(left, listened) == set()


# --- readings that only count -------------------------------------------------------------------------------------


def counted(*rows: Sockets) -> TcpSockets:
    """Build what a reading without evidence shows: neither bound sockets nor who named its port."""
    return replace(make_tcp(*rows), has_evidence=False)


def test_without_evidence_every_port_in_use_is_in_doubt() -> None:
    """Also one that was certain: other sockets may be on it by now."""
    certain = connected(HERE, FIRST, THERE, 443, no_port=True)

    assert classes(counted(certain), remembered(make_tcp(certain))) == {FIRST: PortClass.AMBIGUOUS}


def test_without_evidence_what_was_judged_blocked_is_suspect() -> None:
    before = remembered(make_tcp(plain([FIRST, FIRST + 2]), explicit=[FIRST]))

    assert classes(counted(plain([FIRST, FIRST + 2])), before) == {
        FIRST: PortClass.SUSPECT,
        FIRST + 2: PortClass.AMBIGUOUS,
    }
    assert classes(counted(), before) == {}


def test_without_evidence_bound_ports_are_taken_to_be_bound_still_and_listeners_are_seen() -> None:
    before = remembered(make_tcp(bound(HERE, LOW + 2), listening(HERE, LOW + 4), listening(HERE, LOW + 6)))
    now = counted(listening(HERE, LOW + 6), listening(HERE, LOW + 8))

    assert classes(now, before) == {
        LOW + 2: PortClass.SUSPECT,
        LOW + 6: PortClass.BLOCKED,
        LOW + 8: PortClass.BLOCKED,
    }
    assert classes(counted(), remembered(now, before)) == {LOW + 2: PortClass.SUSPECT}
    assert classes(make_tcp(), remembered(now, before)) == {}


def test_verdicts_wait_for_the_next_reading_with_evidence() -> None:
    """The port was judged shared, then counted; the same sockets are on it still."""
    certain = with_cookies(make_tcp(connected(HERE, FIRST, THERE, 443, no_port=True)), {FIRST: 7})
    after = remembered(counted(waiting(FIRST)), remembered(certain))

    assert classes(with_cookies(make_tcp(waiting(FIRST)), {FIRST: 7}), after) == {}
    assert classes(with_cookies(make_tcp(waiting(FIRST)), {FIRST: 8}), after) == {FIRST: PortClass.AMBIGUOUS}


def test_a_reading_that_only_counts_never_claims_that_nothing_is_hidden() -> None:
    ports, _ = classify_ports(make_sysctls(), counted(), Evidence())

    assert ports.blind_to == {Blindness.BOUND_UNCONNECTED}


def test_a_reading_that_only_counts_forgets_no_binder() -> None:
    """Its sockets are bound and not connected yet, which is not seen."""
    before = remembered(replace(make_tcp(bound(HERE, LOW)), bound_to_any_port=frozenset({packed(HERE)})))

    assert remembered(counted(), before).binders == {packed(HERE)}


def test_counting_would_miss_much_where_many_ports_are_blocked_by_others_than_listeners() -> None:
    """Those that come later would not be seen: 1 of 100 ports is little, 2 are not."""
    in_doubt = plain(range(FIRST + 20, FIRST + 40, 2))

    assert not remembered(make_tcp(in_doubt, bound(HERE, LOW))).settles_much
    assert remembered(make_tcp(in_doubt, bound(HERE, [LOW, LOW + 2]))).settles_much
    assert remembered(make_tcp(in_doubt, plain([SECOND, SECOND + 2], "10.0.0.7"))).settles_much
    assert not remembered(make_tcp(in_doubt, listening(HERE, [LOW, LOW + 2, LOW + 4]))).settles_much
