"""What ephmon asks inet_diag for: the dumps that make up one reading of a protocol's sockets.

Only sockets inside the port range are asked for; the kernel drops the others by bytecode before it copies anything.
"""

from __future__ import annotations

import socket
from array import array
from itertools import islice
from typing import TYPE_CHECKING

from ephmon.facts.addresses import ANY_V6, PORTS, is_wildcard
from ephmon.facts.sockets import NO_SOCKETS, Blindness, Protocol, SocketTable, TcpSockets, TcpState, UdpSockets
from ephmon.kernel.netlink import inet_diag

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ephmon.facts.snapshot import PortRange
    from ephmon.kernel.deadline import Deadline
    from ephmon.kernel.netlink.inet_diag import Condition
    from ephmon.kernel.netlink.sock_diag import Request, SockDiag

MOST_LISTENERS_LEFT_OUT = 64
"""So many listeners inside the range have what they accepted dropped in the kernel; each costs every socket a test."""


def read_tcp(
    diag: SockDiag,
    port_range: PortRange,
    deadline: Deadline,
    *,
    shows_bound_unconnected: bool,
    ports_recover: bool,
    evidence: bool = True,
) -> TcpSockets:
    """Read the TCP sockets of both families: first what can block ports, then the connections.

    Without `evidence` two walks over all sockets are left out, those for bound and for port-naming ones, and no
    fingerprints are made.

    A socket that appears between two of the dumps is seen by one of them only; the error is as large as the churn
    within one poll.

    Raises:
        KernelError: inet_diag is not available, or its reply cannot be trusted.
    """
    inside = _inside(port_range)
    fingerprints = array("Q", bytes(8 * PORTS)) if evidence else None
    states = inet_diag.BOUND_STATES if evidence else 1 << TcpState.LISTEN
    bound = _table(diag, [inet_diag.tcp_request(states, inside)], deadline, fingerprints=fingerprints)
    named = inet_diag.tcp_request(inet_diag.FULL_SOCKET_STATES, [*inside, inet_diag.port_named_in_bind()])
    named_sockets = _table(diag, [named], deadline, with_options=False) if evidence else NO_SOCKETS
    listening_ports = read_listening_ports(diag, deadline) if evidence else None
    not_accepted = islice(_not_accepted(bound), MOST_LISTENERS_LEFT_OUT)
    connections = inet_diag.tcp_request(inet_diag.CONNECTION_STATES, [*inside, *not_accepted])
    return TcpSockets(
        bound=bound,
        named=named_sockets,
        connections=_table(diag, [connections], deadline, with_options=evidence, fingerprints=fingerprints),
        bound_to_any_port=_tcp_bound_to_any_port(diag, bound, inside, deadline),
        listening_ports=listening_ports,
        fingerprints=fingerprints,
        has_evidence=evidence,
        ports_recover=ports_recover,
        blind_to=frozenset() if shows_bound_unconnected else frozenset({Blindness.BOUND_UNCONNECTED}),
    )


def read_listening_ports(diag: SockDiag, deadline: Deadline) -> frozenset[int]:
    """Read the ports that have a TCP listener of either family, inside the range or not.

    Raises:
        KernelError: inet_diag is not available, or its reply cannot be trusted.
    """
    return _table(diag, [inet_diag.tcp_request(1 << TcpState.LISTEN, [])], deadline).ports


def read_connections(
    diag: SockDiag, port_range: PortRange, destinations: Iterable[tuple[bytes, int]], deadline: Deadline
) -> SocketTable:
    """Read the TCP connections toward some destinations (packed address, port) alone.

    Raises:
        KernelError: inet_diag is not available, or its reply cannot be trusted.
    """
    peers = [inet_diag.remote(port, address) for address, port in destinations]
    request = inet_diag.tcp_request(inet_diag.CONNECTION_STATES, _inside(port_range), peers)
    return _table(diag, [request], deadline)


def read_udp(diag: SockDiag, port_range: PortRange, deadline: Deadline) -> UdpSockets:
    """Read the UDP sockets of both families.

    Raises:
        KernelError: inet_diag is not available, or its reply cannot be trusted.
    """
    inside = _inside(port_range)
    sockets = _table(diag, _udp_requests(inet_diag.ALL_STATES, inside), deadline, with_peer=False)
    bound_to_any_port: frozenset[bytes] = frozenset()
    if any(group.state == TcpState.CLOSE and not is_wildcard(group.source) for group in sockets.groups):
        unnamed = _udp_requests(1 << TcpState.CLOSE, [*inside, inet_diag.port_left_to_bind()])
        groups = _table(diag, unnamed, deadline, with_peer=False).groups
        bound_to_any_port = frozenset(group.source for group in groups if not is_wildcard(group.source))
    return UdpSockets(sockets=sockets, bound_to_any_port=bound_to_any_port)


def _tcp_bound_to_any_port(
    diag: SockDiag, bound: SocketTable, inside: Iterable[Condition], deadline: Deadline
) -> frozenset[bytes]:
    if all(group.state == TcpState.LISTEN for group in bound.groups):
        return frozenset()
    request = inet_diag.tcp_request(1 << TcpState.BOUND_INACTIVE, [*inside, inet_diag.port_left_to_bind()])
    return frozenset(group.source for group in _table(diag, [request], deadline).groups)


def _udp_requests(states: int, conditions: Sequence[Condition]) -> list[Request]:
    number = inet_diag.protocol_number(Protocol.UDP)
    return [
        inet_diag.family_request(number, family, states, conditions) for family in (socket.AF_INET, socket.AF_INET6)
    ]


def shows_bound_unconnected(diag: SockDiag, port: int, deadline: Deadline) -> bool:
    """Tell whether a TCP socket bound to `port`, and neither connected nor listening, is reported (Linux 6.8)."""
    here = [inet_diag.local_port_at_least(port), inet_diag.local_port_at_most(port)]
    table = _table(diag, [inet_diag.tcp_request(inet_diag.BOUND_STATES, here)], deadline)
    return any(group.state == TcpState.CLOSE for group in table.groups)


def _inside(port_range: PortRange) -> list[Condition]:
    return [inet_diag.local_port_at_least(port_range.low), inet_diag.local_port_at_most(port_range.high)]


def _table(
    diag: SockDiag,
    requests: Iterable[Request],
    deadline: Deadline,
    *,
    with_peer: bool = True,
    with_options: bool = True,
    fingerprints: array[int] | None = None,
) -> SocketTable:
    tabulator = inet_diag.Tabulator(with_peer=with_peer, with_options=with_options, fingerprints=fingerprints)
    for request in requests:
        diag.dump(request, tabulator.add, deadline)
    return tabulator.table()


def _not_accepted(bound: SocketTable) -> Iterator[Condition]:
    """Yield, for each listening socket, the condition that leaves out what it accepted.

    An accepted socket has its listener's port and an address that the listener covers (`addresses.covers`).
    """
    for port, index in zip(bound.port_of, bound.group_of, strict=True):
        group = bound.groups[index]
        if group.state != TcpState.LISTEN:
            continue
        if group.source != ANY_V6:
            yield inet_diag.not_local(port, group.source)
        elif group.dual_stack:
            yield inet_diag.not_local(port, b"")
        # A listener at :: with IPV6_V6ONLY gets no condition: in bytecode AF_INET6 is true of IPv4-mapped sockets too,
        # which are not its own.
