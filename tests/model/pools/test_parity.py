"""What the parity of a port says of the call that chose it: suspect where connect() had no reason to take it."""

from __future__ import annotations

from dataclasses import replace

from ephmon.model.pools.classify_ports import Evidence, classify_ports
from ephmon.model.pools.port_classes import PortClass
from tests.model.facts import LOW, connected, listening, make_sysctls, make_tcp
from tests.model.pools.classified import FIRST, HERE, SECOND, THERE, classes, plain, remembered


def test_a_port_of_the_second_parity_is_suspect_while_the_first_has_ports_left() -> None:
    assert classes(make_tcp(plain(FIRST), plain(SECOND))) == {FIRST: PortClass.AMBIGUOUS, SECOND: PortClass.SUSPECT}


def test_the_parity_counts_from_the_lower_end_of_the_range() -> None:
    ports, _ = classify_ports(make_sysctls(low=LOW + 1), make_tcp(plain(FIRST + 2), plain(SECOND)), Evidence())

    assert (ports.classes[FIRST + 2], ports.classes[SECOND]) == (PortClass.SUSPECT, PortClass.AMBIGUOUS)


def test_a_destination_that_used_up_the_first_parity_goes_on_to_the_second() -> None:
    tcp = make_tcp(plain(range(LOW, LOW + 100, 2)), plain(SECOND))

    assert classes(tcp)[SECOND] == PortClass.AMBIGUOUS


def test_blocked_ports_of_the_first_parity_are_not_there_to_be_had() -> None:
    tcp = make_tcp(listening(HERE, range(LOW, LOW + 80, 2)), plain(range(LOW + 80, LOW + 100, 2)), plain(SECOND))

    assert classes(tcp)[SECOND] == PortClass.AMBIGUOUS


def test_before_6_18_the_parity_says_nothing_of_a_socket_that_carries_the_flag() -> None:
    """It is from connect(), so the ports of the first parity were taken then."""
    tcp = replace(make_tcp(plain(FIRST), connected(HERE, SECOND, THERE, 443, no_port=True)), ports_recover=False)

    assert classes(tcp) == {FIRST: PortClass.AMBIGUOUS, SECOND: PortClass.AMBIGUOUS}


def test_a_port_that_one_source_shares_toward_two_destinations_is_no_suspect() -> None:
    assert classes(make_tcp(plain(SECOND), plain(SECOND, "10.0.0.8"))) == {SECOND: PortClass.AMBIGUOUS}


def test_a_port_that_two_sources_have_may_be_from_bind() -> None:
    assert classes(make_tcp(plain(SECOND), plain(SECOND, "10.0.0.8", source="10.0.0.2"))) == {SECOND: PortClass.SUSPECT}


# --- destinations that empty --------------------------------------------------------------------------------------


def test_a_destination_that_empties_oldest_first_leaves_no_suspects() -> None:
    """Ports of the first parity were taken first, and are given back first."""
    full = plain(range(LOW, LOW + 90))
    emptied = plain(range(LOW + 1, LOW + 90, 2))

    assert set(classes(make_tcp(emptied)).values()) == {PortClass.SUSPECT}
    assert set(classes(make_tcp(emptied), remembered(make_tcp(full))).values()) == {PortClass.AMBIGUOUS}


def test_a_port_that_was_shared_stays_explained_when_the_other_connection_has_gone() -> None:
    shared = make_tcp(plain(SECOND), plain(SECOND, "10.0.0.8"))

    assert classes(make_tcp(plain(SECOND)), remembered(shared)) == {SECOND: PortClass.AMBIGUOUS}


def test_a_port_seen_without_a_socket_is_explained_no_longer() -> None:
    shared = remembered(make_tcp(plain(SECOND), plain(SECOND, "10.0.0.8")))
    empty = remembered(make_tcp(), shared)

    assert classes(make_tcp(plain(SECOND)), empty) == {SECOND: PortClass.SUSPECT}
