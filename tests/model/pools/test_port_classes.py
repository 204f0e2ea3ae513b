"""Which ports every connect() of a namespace may still take: usable, blocked and ambiguous ones."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from ephmon.facts.addresses import PORTS as ALL_PORTS
from ephmon.facts.sockets import TcpState
from ephmon.model.pools.classify_ports import Evidence, classify_ports
from ephmon.model.pools.port_classes import Listeners, PortClass, TcpPorts, usable_ports
from tests.model.facts import (
    HIGH,
    LOW,
    Sockets,
    bound,
    connected,
    listening,
    make_ports,
    make_sysctls,
    make_tcp,
    packed,
)

if TYPE_CHECKING:
    from ephmon.facts.snapshot import Sysctls
    from ephmon.facts.sockets import TcpSockets

PORTS = HIGH - LOW + 1
FREE = (PORTS, 0, 0)
AMBIGUOUS = (PORTS, 0, 1)
BLOCKED = (PORTS, 1, 0)


def look(tcp: TcpSockets, sysctls: Sysctls | None = None) -> TcpPorts:
    """Return what a first reading says of the ports."""
    ports, _ = classify_ports(sysctls or make_sysctls(), tcp, Evidence())
    return ports


def counts(*rows: Sockets, explicit: tuple[int, ...] = ()) -> tuple[int, int, int]:
    """Return the usable, blocked and ambiguous ports of a namespace with these sockets."""
    ports = look(make_tcp(*rows, explicit=explicit))
    return ports.usable, ports.blocked, ports.ambiguous


@pytest.mark.parametrize(
    ("low", "high", "reserved", "usable"),
    [
        (32768, 60999, [], 28232),
        (40000, 40099, [], 100),
        (40000, 40099, [40000, 40099], 98),
        (40000, 40099, [39999, 40100, 80], 100),
        (40000, 40001, [40000, 40001], 0),
        (40000, 40000, [], 1),
        (1, 65535, [], 65535),
        (65535, 65535, [], 1),
        (0, 65535, [0], 65535),
    ],
)
def test_usable_is_the_range_with_both_ends_minus_the_reserved_ports_inside_it(
    low: int, high: int, reserved: list[int], usable: int
) -> None:
    sysctls = make_sysctls(low, high, reserved=reserved)
    inside = set(range(low, high + 1)) - set(reserved)

    assert make_ports(sysctls).usable == usable
    assert {port for port, is_usable in enumerate(usable_ports(sysctls)) if is_usable} == inside


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "0.0.0.0", "::1", "::", "2001:db8::1"])
def test_a_listening_or_bound_socket_of_any_address_and_family_blocks_its_port(address: str) -> None:
    assert counts(listening(address, 40007)) == BLOCKED
    assert counts(bound(address, 40007)) == BLOCKED


@pytest.mark.parametrize("no_port", [False, True])
def test_a_connected_socket_that_named_its_port_is_not_shared_whatever_flag_it_carries(no_port: bool) -> None:
    """Before Linux 6.18 it certainly blocks it."""
    one = connected("10.0.0.1", 40007, "10.0.0.9", 443, no_port=no_port)
    before = look(replace(make_tcp(one, explicit=[40007]), ports_recover=False))

    assert counts(one, explicit=(40007,)) == AMBIGUOUS
    assert (before.usable, before.blocked, before.ambiguous) == BLOCKED


@pytest.mark.parametrize("state", [state for state in TcpState if state not in (TcpState.LISTEN, TcpState.CLOSE)])
def test_a_connection_without_the_flag_leaves_its_port_ambiguous_in_every_state(state: TcpState) -> None:
    assert counts(connected("10.0.0.1", 40007, "10.0.0.9", 443, state=state)) == AMBIGUOUS


def test_a_connection_that_certainly_got_its_port_from_connect_leaves_it_to_others() -> None:
    assert counts(connected("10.0.0.1", 40007, "10.0.0.9", 443, no_port=True)) == FREE


def test_the_worst_socket_on_a_port_decides() -> None:
    shared = connected("10.0.0.1", 40007, "10.0.0.9", 443, no_port=True)
    unclear = connected("10.0.0.1", 40007, "10.0.0.9", 444)
    blocker = listening("::1", 40007)

    assert counts(shared, unclear) == counts(unclear, shared) == AMBIGUOUS
    assert counts(shared, unclear, blocker) == counts(blocker, unclear, shared) == BLOCKED


def test_a_port_counts_once_however_many_sockets_sit_on_it() -> None:
    destinations = [connected("10.0.0.1", 40007, "10.0.0.9", port) for port in range(1, 50)]
    listeners = [listening(address, 40008) for address in ("127.0.0.1", "127.0.0.2", "::1")]

    assert counts(*destinations, *listeners) == (PORTS, 1, 1)


def test_reserved_ports_are_neither_blocked_nor_ambiguous() -> None:
    tcp = make_tcp(
        listening("0.0.0.0", 40000), connected("10.0.0.1", [40001, 40002], "10.0.0.9", 443), explicit=[40001]
    )
    ports = look(tcp, make_sysctls(reserved=[40000, 40001, 40002]))

    assert (ports.usable, ports.blocked, ports.ambiguous) == (97, 0, 0)


def test_sockets_outside_the_range_change_nothing() -> None:
    outside = [LOW - 1, HIGH + 1, 80, 65535]

    assert counts(listening("0.0.0.0", outside), bound("::", outside), explicit=tuple(outside)) == FREE


def test_every_usable_port_is_counted_by_its_class() -> None:
    classes = bytearray(ALL_PORTS)
    for port_class, number in {
        PortClass.SHARED: 1,
        PortClass.AMBIGUOUS: 20,
        PortClass.BLOCKED: 300,
    }.items():
        classes[number : 2 * number] = bytes([port_class]) * number
    ports = TcpPorts.of(bytes(classes), frozenset())

    assert (ports.usable, ports.blocked, ports.ambiguous) == (321, 300, 20)


def test_a_range_may_be_blocked_as_a_whole() -> None:
    assert counts(bound("127.0.0.1", range(LOW, HIGH + 1))) == (PORTS, PORTS, 0)


@pytest.mark.parametrize(
    ("listener", "source", "accepted"),
    [
        (listening("10.0.0.1", 40007), "10.0.0.1", True),
        (listening("10.0.0.1", 40007), "10.0.0.2", False),
        (listening("0.0.0.0", 40007), "10.0.0.1", True),
        (listening("0.0.0.0", 40007), "2001:db8::1", False),
        (listening("::", 40007, dual_stack=True), "10.0.0.1", True),
        (listening("::", 40007, dual_stack=True), "2001:db8::1", True),
        (listening("::", 40007), "2001:db8::1", True),
        (listening("::", 40007), "10.0.0.1", False),
        (listening("2001:db8::1", 40007, dual_stack=True), "10.0.0.1", False),
        (listening("10.0.0.1", 40008), "10.0.0.1", False),
        (bound("10.0.0.1", 40007), "10.0.0.1", False),
    ],
)
def test_a_socket_was_accepted_if_a_listener_on_its_port_covers_its_address(
    listener: Sockets, source: str, accepted: bool
) -> None:
    assert Listeners(make_tcp(listener).bound).have_accepted(40007, packed(source)) is accepted


def test_one_of_several_listeners_on_a_port_is_enough() -> None:
    tcp = make_tcp(listening("10.0.0.1", 40007), listening("10.0.0.2", 40007), bound("10.0.0.3", 40007))
    listeners = Listeners(tcp.bound)

    assert [listeners.have_accepted(40007, packed(f"10.0.0.{host}")) for host in (1, 2, 3)] == [True, True, False]
