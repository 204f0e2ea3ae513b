"""TCP sockets as the kernel knows them, what inet_diag shows of them, and the kernel's rule, one port at a time.

The slow and obvious side of a comparison: nothing here is shared with the code under test. Two questions are asked.

- `successes`: given all that the kernel knows, how many connect() calls succeed?
- `estimate`: given only what inet_diag shows, what are the quantities of a pool, each by its own definition?
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from ephmon.facts.socket_groups import SocketGroup
from ephmon.facts.sockets import TcpState
from tests.model.facts import Sockets, make_sysctls, make_table, make_tcp, packed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ephmon.facts.snapshot import Sysctls
    from ephmon.facts.sockets import TcpSockets

LOOPBACK_DEVICE = 1
LOW = 40_000

MINISOCK_STATES = {TcpState.TIME_WAIT, TcpState.SYN_RECV, TcpState.NEW_SYN_RECV}
"""Sockets that are no full ones: inet_diag shows none of their options."""


class Origin(Enum):
    """How a socket came by its port."""

    CONNECT = auto()
    NO_PORT_CONNECT = auto()
    """bind(address, 0) with IP_BIND_ADDRESS_NO_PORT, then connect()."""
    BIND_ANY = auto()
    """bind(address, 0) without it."""
    BIND_NAMED = auto()
    """bind(address, port)."""
    ACCEPTED = auto()


@dataclass(frozen=True, slots=True)
class Peer:
    """What a tcp_connect pool is told by."""

    source: str
    destination: str
    port: int


@dataclass(frozen=True, slots=True)
class KernelSocket:
    """One TCP socket; `peer` is None if it listens or is bound and unconnected."""

    port: int
    source: str
    state: TcpState
    origin: Origin
    peer: Peer | None = None
    device: int = 0
    has_timestamps: bool = True
    """Whether both ends agreed on TCP timestamps."""
    left_ms: int = 0
    dual_stack: bool = False

    @property
    def is_full(self) -> bool:
        """Whether inet_diag shows its options."""
        return self.state not in MINISOCK_STATES

    @property
    def got_its_port_from_connect(self) -> bool:
        """Whether its bind bucket stays open to others: a connected socket whose port connect() chose."""
        return self.peer is not None and self.origin in (Origin.CONNECT, Origin.NO_PORT_CONNECT)

    @property
    def shows_that_connect_chose(self) -> bool:
        """Whether inet_diag proves that."""
        return self.is_full and self.peer is not None and self.origin is Origin.NO_PORT_CONNECT

    @property
    def named_its_port(self) -> bool:
        """Whether inet_diag says that it named its port in bind()."""
        return self.peer is not None and self.is_full and self.origin is Origin.BIND_NAMED

    @property
    def shows_that_connect_did_not(self) -> bool:
        """Whether inet_diag proves the opposite."""
        return self.peer is None or self.named_its_port

    @property
    def is_on_loopback(self) -> bool:
        """Whether `tcp_twsk_unique()` takes it so."""
        addresses = {self.source, self.peer.destination} if self.peer else {self.source}
        return self.device == LOOPBACK_DEVICE or any(one.startswith("127.") or one == "::1" for one in addresses)

    def is_reusable(self, sysctls: Sysctls) -> bool:
        """Whether connect() may take its 4-tuple over right now."""
        wanted = sysctls.tcp_tw_reuse == 1 or (sysctls.tcp_tw_reuse == 2 and self.is_on_loopback)
        is_old = 60_000 - self.left_ms > sysctls.tcp_tw_reuse_delay_ms
        return self.state == TcpState.TIME_WAIT and self.has_timestamps and wanted and is_old

    def was_accepted_from(self, listener: KernelSocket) -> bool:
        """Whether it can only have come from a listener: its port, and an address that the listener covers."""
        same_family = (":" in self.source) == (":" in listener.source)
        covered = listener.source == self.source or (
            listener.source in ("0.0.0.0", "::") and (same_family or listener.dual_stack)
        )
        return listener.state == TcpState.LISTEN and listener.port == self.port and covered


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The quantities of a pool, named as `Pool` names them."""

    usable: int
    blocked: int
    capacity: int
    in_use: int
    time_wait: int
    reusable: int
    remaining: int
    remaining_min: int
    remaining_max: int
    states: dict[str, int]
    held: int
    peer_timestamps: bool | None
    only_on_devices: int
    named: int


def usable_ports(sysctls: Sysctls) -> set[int]:
    """Return the ports that an allocation may ever draw from."""
    low, high = sysctls.port_range
    return {port for port in range(low, high + 1) if port not in sysctls.reserved_ports}


def may_lose_a_port(sysctls: Sysctls, can_be_taken: set[int]) -> int:
    """Return 1 for a range of odd size but 1, if the first or the last port can be taken: the search leaves out one."""
    low, high = sysctls.port_range
    size = high - low + 1
    return 1 if size % 2 == 1 and size > 1 and {low, high} & can_be_taken else 0


def successes(sockets: Iterable[KernelSocket], sysctls: Sysctls, peer: Peer, device: int = 0) -> int:
    """Return for how many ports a connect() on a socket that is bound to `device` succeeds, all ports being tried."""
    return len(takeable(sockets, sysctls, peer, device))


def takeable(sockets: Iterable[KernelSocket], sysctls: Sysctls, peer: Peer, device: int = 0) -> set[int]:
    """Return those ports."""
    everything = list(sockets)
    free = set()
    for port in usable_ports(sysctls):
        on_port = [one for one in everything if one.port == port]
        if not all(one.got_its_port_from_connect for one in on_port):
            continue
        conflicting = [one for one in on_port if one.peer == peer and one.device in (0, device)]
        if all(one.is_reusable(sysctls) for one in conflicting):
            free.add(port)
    return free


def blocked_for_sure(sockets: Iterable[KernelSocket], sysctls: Sysctls) -> set[int]:
    """Return the usable ports of which inet_diag proves that connect() passes over them."""
    return {one.port for one in sockets if one.shows_that_connect_did_not} & usable_ports(sysctls)


def ambiguous_ports(sockets: Sequence[KernelSocket], sysctls: Sysctls) -> set[int]:
    """Return the usable ports of which it proves nothing."""
    unclear = {one.port for one in sockets if not one.shows_that_connect_chose} & usable_ports(sysctls)
    return unclear - blocked_for_sure(sockets, sysctls)


def estimate(
    sockets: Sequence[KernelSocket], sysctls: Sysctls, peer: Peer, answered: set[int], known: Mapping[Peer, bool]
) -> Estimate:
    """Return the quantities of a pool from what inet_diag shows.

    The kernel was asked about some ambiguous ports and answered that they are blocked; the others are estimated to be
    shared. Timestamps are in use if live connections of the peer, which are in `known`, show them. Else they likely are
    if the namespace has them on.
    """
    seen = known.get(peer)
    is_on = sysctls.tcp_timestamps != 0
    shown = [replace(one, has_timestamps=is_on and seen is not False) for one in sockets]
    generous = [replace(one, has_timestamps=not is_on or seen is not False) for one in sockets]
    usable = usable_ports(sysctls)
    blocked = blocked_for_sure(sockets, sysctls) | answered
    ambiguous = ambiguous_ports(sockets, sysctls) - answered
    own = [one for one in shown if one.peer == peer and not any(one.was_accepted_from(other) for other in shown)]
    at = {port: [one for one in own if one.port == port] for port in {one.port for one in own}}
    capacity = usable - blocked
    in_use = at.keys() & capacity
    time_wait = {port for port in in_use if all(one.state == TcpState.TIME_WAIT for one in at[port])}
    reusable = {port for port in in_use if all(one.is_reusable(sysctls) for one in at[port])}
    stops_unbound, stops_likely = (
        {
            one.port
            for one in those
            if (one.port in at and one.peer == peer and one.device == 0 and not one.is_reusable(sysctls))
        }
        for those in (generous, shown)
    )
    reusable_for_sure = reusable if seen else set()
    remaining = len(capacity - in_use) + len(reusable)
    open_for_sure = usable - blocked - ambiguous
    # TIME_WAITs on the ends of a range of odd size count as reusable, whatever is known of them.
    ends = open_for_sure - {port for port in at if any(one.state != TcpState.TIME_WAIT for one in at[port])}
    least = len(open_for_sure - (in_use - reusable_for_sure)) - may_lose_a_port(sysctls, ends)
    return Estimate(
        usable=len(usable),
        blocked=len(blocked),
        capacity=len(capacity),
        in_use=len(in_use),
        time_wait=len(time_wait),
        reusable=len(reusable),
        remaining=remaining,
        remaining_min=min(remaining, max(0, least)),
        remaining_max=len(usable - blocked - stops_unbound),
        states=dict(Counter(STATE_NAMES[one.state] for one in own)),
        held=len(at),
        peer_timestamps=seen,
        only_on_devices=len(in_use - reusable - stops_likely),
        named=min(
            sum(one.named_its_port for one in sockets if one.peer == peer),
            sum(one.state != TcpState.TIME_WAIT for one in own),
        ),
    )


STATE_NAMES = {
    TcpState.ESTABLISHED: "established",
    TcpState.SYN_SENT: "syn_sent",
    TcpState.SYN_RECV: "syn_recv",
    TcpState.NEW_SYN_RECV: "syn_recv",
    TcpState.FIN_WAIT1: "fin_wait1",
    TcpState.FIN_WAIT2: "fin_wait2",
    TcpState.TIME_WAIT: "time_wait",
    TcpState.CLOSE_WAIT: "close_wait",
    TcpState.LAST_ACK: "last_ack",
    TcpState.CLOSING: "closing",
}


def shown_by_inet_diag(sockets: Sequence[KernelSocket]) -> TcpSockets:
    """Return what ephmon reads of the sockets."""
    named = make_table(_row(one) for one in sockets if one.named_its_port)
    return replace(make_tcp(*map(_row, sockets)), named=named)


def _row(one: KernelSocket) -> Sockets:
    source = packed(one.source)
    group = SocketGroup(
        state=one.state,
        source=source,
        destination=packed(one.peer.destination) if one.peer else bytes(len(source)),
        destination_port=one.peer.port if one.peer else 0,
        device=one.device,
        minisock=one.state == TcpState.TIME_WAIT,
        bind_address_no_port=one.is_full and one.origin is Origin.NO_PORT_CONNECT,
        dual_stack=one.dual_stack,
    )
    return Sockets(group, (one.port,), one.left_ms)


PEERS = [
    Peer("127.0.0.1", "127.0.0.1", 80),
    Peer("10.0.0.1", "10.0.0.9", 443),
    Peer("10.0.0.1", "10.0.0.9", 444),
    Peer("10.0.0.2", "10.0.0.9", 443),
    Peer("2001:db8::1", "2001:db8::9", 443),
    Peer("::1", "::1", 80),
]
"""Few pools, so that the sockets of a mix meet."""


@st.composite
def sysctls(draw: st.DrawFn) -> Sysctls:
    """Draw the sysctls of a namespace whose range has 1 to 9 ports, some of them reserved."""
    size = draw(st.integers(1, 9))
    return make_sysctls(
        LOW,
        LOW + size - 1,
        reserved=draw(st.frozensets(st.integers(LOW - 1, LOW + size), max_size=3)),
        tw_reuse=draw(st.sampled_from([0, 1, 2])),
        delay_ms=draw(st.sampled_from([1, 1000, 60_000])),
        timestamps=draw(st.sampled_from([0, 1, 2])),
    )


def sockets(facts: Sysctls) -> st.SearchStrategy[list[KernelSocket]]:
    """Draw sockets inside the range, of which no two have one 4-tuple on one device."""
    return st.lists(_sockets(facts), max_size=25, unique_by=lambda one: (one.port, one.source, one.peer, one.device))


def _sockets(facts: Sysctls) -> st.SearchStrategy[KernelSocket]:
    ports = st.integers(facts.port_range.low, facts.port_range.high)
    return st.one_of(_connections(ports), _connections(ports), _without_peer(ports))


@st.composite
def _connections(draw: st.DrawFn, ports: st.SearchStrategy[int]) -> KernelSocket:
    peer = draw(st.sampled_from(PEERS))
    return KernelSocket(
        port=draw(ports),
        source=peer.source,
        state=draw(st.sampled_from([*STATE_NAMES, *[TcpState.TIME_WAIT] * 5])),
        origin=draw(st.sampled_from(Origin)),
        peer=peer,
        device=draw(st.sampled_from([0, 0, LOOPBACK_DEVICE, 2])),
        left_ms=draw(st.sampled_from([0, 1, 58_999, 59_000, 59_998, 59_999, 60_000])),
        # Whatever the sysctl says: it may have changed since, the peer may not use them, and TCP-MD5 leaves them out.
        has_timestamps=draw(st.booleans()),
    )


@st.composite
def _without_peer(draw: st.DrawFn, ports: st.SearchStrategy[int]) -> KernelSocket:
    source = draw(st.sampled_from(["127.0.0.1", "10.0.0.1", "0.0.0.0", "::1", "::"]))
    return KernelSocket(
        port=draw(ports),
        source=source,
        state=draw(st.sampled_from([TcpState.LISTEN, TcpState.CLOSE])),
        origin=draw(st.sampled_from([Origin.BIND_ANY, Origin.BIND_NAMED])),
        dual_stack=source == "::" and draw(st.booleans()),
    )
