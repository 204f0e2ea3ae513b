"""Facts as `ephmon.kernel` would report them, from short literal rows.

    make_tcp(
        listening("0.0.0.0", 40007),
        connected("10.0.0.1", range(40010, 40020), "10.0.0.9", 443),
        connected("10.0.0.1", 40020, "10.0.0.9", 443, state=TcpState.TIME_WAIT, left_ms=30_000),
    )

The port range has the 100 ports 40000 to 40099 unless a test says otherwise.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import TYPE_CHECKING

from ephmon.facts.addresses import Endpoint
from ephmon.facts.namespaces import OWN_NETNS
from ephmon.facts.snapshot import NamespaceSnapshot, NarrowReading, NarrowSnapshot, PortRange, Snapshot, Sysctls
from ephmon.facts.socket_groups import ConnectKey, SocketGroup, SocketGroups
from ephmon.facts.sockets import Backend, Blindness, Protocol, SocketTable, TcpSockets, TcpState, UdpSockets
from ephmon.model.pools.kinds import PoolKey, PoolKind
from ephmon.model.pools.port_classes import PortClass, TcpPorts, usable_ports
from ephmon.model.report import ReloadStatus
from ephmon.model.rules import ListingRules, Rules
from ephmon.model.state import State, initial_state

if TYPE_CHECKING:
    from tests.model.kernel_sockets import Peer

Ports = int | Iterable[int]

LOW, HIGH = 40_000, 40_099
TAKEN_AT = 1_767_323_045.0

RELOAD = ReloadStatus(successful=True, succeeded_at=TAKEN_AT - 60)
"""The configuration was loaded a minute before the first poll."""

_BOUND_STATES = (TcpState.LISTEN, TcpState.CLOSE)


@dataclass(frozen=True, slots=True)
class Sockets:
    """Sockets that are alike but for their ports, one on each port."""

    group: SocketGroup
    ports: tuple[int, ...]
    left_ms: int = 0


def connected(
    source: str,
    ports: Ports,
    destination: str,
    destination_port: int,
    *,
    state: int = TcpState.ESTABLISHED,
    device: int = 0,
    no_port: bool = False,
    left_ms: int = 0,
) -> Sockets:
    """Build sockets with a peer, one on each port; a TIME_WAIT has `left_ms` left of its 60,000 ms."""
    group = SocketGroup(
        state=state,
        source=packed(source),
        destination=packed(destination),
        destination_port=destination_port,
        device=device,
        minisock=state == TcpState.TIME_WAIT,
        bind_address_no_port=no_port,
    )
    return Sockets(group, _ports(ports), left_ms)


def listening(address: str, ports: Ports, *, dual_stack: bool = False) -> Sockets:
    """Build listening sockets, one on each port."""
    return _without_peer(TcpState.LISTEN, address, ports, dual_stack=dual_stack)


def bound(address: str, ports: Ports) -> Sockets:
    """Build sockets that are bound and neither connected nor listening, one on each port."""
    return _without_peer(TcpState.CLOSE, address, ports)


def make_tcp(*rows: Sockets, explicit: Iterable[int] = (), blind_to: Iterable[Blindness] = ()) -> TcpSockets:
    """Build the TCP sockets of a namespace; `explicit` are the ports that a connected socket named in bind()."""
    return TcpSockets(
        bound=make_table(row for row in rows if row.group.state in _BOUND_STATES),
        named=make_table(_named(rows, frozenset(explicit))),
        connections=make_table(row for row in rows if row.group.state not in _BOUND_STATES),
        blind_to=frozenset(blind_to),
    )


def _named(rows: Iterable[Sockets], ports: frozenset[int]) -> Iterator[Sockets]:
    """Yield the live sockets on some ports."""
    for row in rows:
        if not row.group.minisock and (on_these := tuple(port for port in row.ports if port in ports)):
            yield replace(row, ports=on_these)


def make_table(rows: Iterable[Sockets]) -> SocketTable:
    """Build a dump that lists the sockets in the order given."""
    groups: dict[SocketGroup, int] = {}
    group_of, port_of, left_of = array("I"), array("H"), array("H")
    for row in rows:
        index = groups.setdefault(row.group, len(groups))
        group_of.extend([index] * len(row.ports))
        port_of.extend(row.ports)
        left_of.extend([row.left_ms] * len(row.ports))
    return SocketTable(groups=SocketGroups.of(groups), group_of=group_of, port_of=port_of, time_wait_left_ms_of=left_of)


def make_sysctls(
    low: int = LOW,
    high: int = HIGH,
    *,
    reserved: Iterable[int] = (),
    tw_reuse: int = 2,
    delay_ms: int = 1000,
    timestamps: int = 1,
) -> Sysctls:
    """Build the sysctls of a namespace; what is not given is as the kernel has it at boot, but for the range."""
    return Sysctls(
        port_range=PortRange(low, high),
        reserved_ports=frozenset(reserved),
        tcp_tw_reuse=tw_reuse,
        tcp_tw_reuse_delay_ms=delay_ms,
        tcp_timestamps=timestamps,
    )


def make_namespace(
    tcp: TcpSockets | None,
    sysctls: Sysctls | None = None,
    *,
    netns: str = OWN_NETNS,
    inode: int = 4026531833,
    missing: str = "TCP cannot be read here.",
) -> NamespaceSnapshot:
    """Build what was read of one namespace, with no UDP socket; without TCP, `missing` says why there is none."""
    protocols = [Protocol.UDP] if tcp is None else [Protocol.TCP, Protocol.UDP]
    return NamespaceSnapshot(
        netns=netns,
        inode=inode,
        sysctls=sysctls or make_sysctls(),
        tcp=tcp,
        udp=UdpSockets(sockets=make_table([])),
        backends=dict.fromkeys(protocols, Backend.INET_DIAG),
        missing={Protocol.TCP: missing} if tcp is None else {},
    )


def make_snapshot(
    *namespaces: NamespaceSnapshot, taken_at: float = TAKEN_AT, duration_seconds: float = 0.012
) -> Snapshot:
    """Build what one poll read."""
    return Snapshot(taken_at=taken_at, duration_seconds=duration_seconds, namespaces=namespaces)


def make_ports(
    sysctls: Sysctls,
    *,
    blocked: Iterable[int] = (),
    ambiguous: Iterable[int] = (),
    blind_to: Iterable[Blindness] = (),
) -> TcpPorts:
    """Build the classes of all ports: UNUSABLE if reserved or outside the range, else the worst given, else SHARED."""
    classes = usable_ports(sysctls)
    given = {PortClass.AMBIGUOUS: ambiguous, PortClass.BLOCKED: blocked}
    for port_class, ports in given.items():
        for port in ports:
            classes[port] = port_class if classes[port] else PortClass.UNUSABLE
    return TcpPorts.of(bytes(classes), frozenset(blind_to))


def connect_key(destination: str, destination_port: int, source: str, netns: str = OWN_NETNS) -> PoolKey:
    """Return the key of the tcp_connect pool from `source` toward a destination."""
    return PoolKey(netns, PoolKind.TCP_CONNECT, source, destination, destination_port)


def own(peer: Peer) -> ConnectKey:
    """Return the key of a tcp_connect pool among those of its namespace."""
    return ConnectKey(packed(peer.source), packed(peer.destination), peer.port)


def packed(address: str) -> bytes:
    """Return an address as the kernel packs it."""
    return ip_address(address).packed


def _without_peer(state: TcpState, address: str, ports: Ports, *, dual_stack: bool = False) -> Sockets:
    source = packed(address)
    return Sockets(SocketGroup(state, source, bytes(len(source)), 0, dual_stack=dual_stack), _ports(ports))


def _ports(ports: Ports) -> tuple[int, ...]:
    return (ports,) if isinstance(ports, int) else tuple(ports)


def clients(number: int, host: int = 9, port: int = 443, *, source: str = "10.0.0.1") -> Sockets:
    """Build so many connections to 10.0.0.`host`, which certainly got their ports from connect()."""
    return connected(source, range(LOW, LOW + number), f"10.0.0.{host}", port, no_port=True)


def listeners(number: int) -> Sockets:
    """Build a program that listens on so many of the 100 ports, from the end."""
    return listening("0.0.0.0", range(HIGH + 1 - number, HIGH + 1))


def snapshot_of(*rows: Sockets, sysctls: Sysctls | None = None, taken_at: float = TAKEN_AT) -> Snapshot:
    """Build a snapshot of one namespace with these TCP sockets."""
    return make_snapshot(make_namespace(make_tcp(*rows), sysctls), taken_at=taken_at)


def blank_state(rules: Rules | ListingRules | None = None) -> State:
    """Return the state before the first poll, with these rules, or with these rules of listing and the defaults."""
    return initial_state(Rules(listing=rules) if isinstance(rules, ListingRules) else rules or Rules(), RELOAD)


def make_narrow(
    rows: Iterable[Sockets],
    *,
    destinations: Iterable[tuple[bytes, int]],
    sysctls: Sysctls | None = None,
    taken_at: float = TAKEN_AT,
) -> NarrowSnapshot:
    """Build what a narrow poll of our own namespace read; destinations are packed addresses and ports."""
    return NarrowSnapshot(
        taken_at=taken_at,
        namespaces=(
            NarrowReading(
                netns=OWN_NETNS,
                inode=make_namespace(make_tcp()).inode,
                sysctls=sysctls or make_sysctls(),
                destinations=frozenset(Endpoint(*one) for one in destinations),
                connections=make_table(rows),
            ),
        ),
    )
