"""Pools: what they are, and the quantities that each has. The rules of each kind are in the module of that kind.

A *pool* is the set of ports that one kind of allocation chooses from. Linux has no host-wide budget of ephemeral ports.
Which sockets conflict depends on the system call, so each kind has a key of its own.

=============  ======================================================================  ================================
kind           the call that allocates from it                                         key, beside the namespace
=============  ======================================================================  ================================
tcp_connect    connect() on a socket that has no port yet (__inet_hash_connect() in    source, destination and
               net/ipv4/inet_hashtables.c)                                             destination port
tcp_bind       bind(source, 0) without IP_BIND_ADDRESS_NO_PORT (inet_csk_get_port()    source
               in net/ipv4/inet_connection_sock.c)
udp_connect    connect() or sendto() on an unbound UDP socket (inet_autobind() in      family, written as the source
               net/ipv4/af_inet.c, udp_lib_get_port() in net/ipv4/udp.c)               0.0.0.0 or ::
udp_bind       bind(source, 0) of a UDP socket (udp_lib_get_port())                    source
=============  ======================================================================  ================================

The quantities, in ports:

usable
    `ip_local_port_range`, both ends included, minus `ip_local_reserved_ports`: what an allocation may ever get.
blocked
    Usable ports that no tcp_connect allocation can take, because a TCP socket holds them whose port connect() did not
    choose; 0 for other kinds. See `ephmon.model.pools.port_classes`.
capacity
    tcp_connect: usable minus blocked. Other kinds: usable.
in use
    Ports of the capacity on which the next allocation of this pool would conflict.
time_wait
    The ports in use with nothing but TIME_WAITs.
reusable
    The part of time_wait that the kernel hands out again right now. See `ephmon.model.pools.time_wait`.
remaining
    capacity - in use + reusable: how many more allocations succeed. `remaining` is the best estimate, and the true
    number lies between `remaining_min` and `remaining_max`. `exact` says that these are equal, that nothing is
    invisible, and that the kernel chooses the ports of the pool: not if its sockets named all of theirs in bind().
utilisation
    1 - remaining / usable; 1.0 if usable is 0. It is 1.0 exactly when the next allocation fails.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from ephmon.facts.sockets import Protocol, TcpState

if TYPE_CHECKING:
    from collections.abc import Mapping


MOSTLY = 0.9
"""This share of the live sockets of a pool counts as all of them."""


class PoolKind(StrEnum):
    """The kinds of allocation, each with a key and a conflict rule of its own."""

    TCP_CONNECT = "tcp_connect"
    TCP_BIND = "tcp_bind"
    UDP_CONNECT = "udp_connect"
    UDP_BIND = "udp_bind"

    @property
    def protocol(self) -> Protocol:
        """The protocol whose sockets make up the pool."""
        return Protocol.UDP if self in (PoolKind.UDP_CONNECT, PoolKind.UDP_BIND) else Protocol.TCP


class PoolKey(NamedTuple):
    """What identifies a pool. Addresses are canonical text; both destination fields are None where a kind has none."""

    netns: str
    kind: PoolKind
    source: str
    destination: str | None
    destination_port: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """One pool at one moment. All quantities are counts of ports, as the head of this module defines them."""

    key: PoolKey
    taken_at: float
    """When its sockets were read, seconds since the epoch."""
    usable: int
    blocked: int
    capacity: int
    in_use: int
    time_wait: int
    reusable: int
    remaining: int
    remaining_min: int
    remaining_max: int
    exact: bool
    failure_errno: str
    """Name of the errno that the application sees when the pool is exhausted."""
    states: Mapping[str, int]
    """Sockets of the pool inside the range by TCP state name in lower case, those on blocked ports included."""
    held: int
    """Ports of the range that the pool's sockets hold, blocked ones included; compared with `pools.min_in_use`."""
    in_doubt: int = 0
    """Ports of the namespace of which nobody knows whether connect() may share them; 0 for other kinds."""
    reusable_unproven: int = 0
    """Those of `reusable` that the kernel hands out only if the peer speaks TCP timestamps, which is not known."""
    search_ports: float | None = None
    """How many ports one connect() looks at on average (`ephmon.model.pools.connect_search`); None for other kinds."""
    is_doubted: bool = False
    """Whether connect() failed although the estimate had room, so that `remaining` is lowered to `remaining_min`.

    See `ephmon.model.failures.doubted_pools`.
    """
    peer_timestamps: bool | None = None
    """tcp_connect: whether the peer uses TCP timestamps, as live connections show; None if that is not known."""
    only_on_devices: int = 0
    """tcp_connect: ports in use that stop only sockets bound to the same device (SO_BINDTODEVICE)."""
    named: int = 0
    """tcp_connect: live sockets whose port the application named in bind()."""

    @property
    def proven_utilisation(self) -> float:
        """The utilisation if the peer does not use TCP timestamps, where that is not known."""
        is_counted = 0 if self.is_doubted else self.reusable_unproven
        return share_of_usable(self.usable - self.remaining + is_counted, self.usable)

    @property
    def application_chooses_ports(self) -> bool:
        """Whether the live sockets named their ports, so that a list of the application decides how many more it gets.

        A few may not have been seen to: sockets come and go between the two dumps that are compared.
        """
        return self.named > 0 and self.named >= MOSTLY * self.live

    @property
    def live(self) -> int:
        """Sockets that are not in TIME_WAIT."""
        return sum(self.states.values()) - self.states.get(_STATE_NAMES[TcpState.TIME_WAIT], 0)

    @property
    def utilisation(self) -> float:
        """1 - remaining / usable, between 0 and 1."""
        return share_of_usable(self.usable - self.remaining, self.usable)


def share_of_usable(ports: int, usable: int) -> float:
    """Return ports / usable ports, between 0 and 1.

    It is 1.0 where no port is usable: the next allocation fails, as it does where every port is taken.
    """
    return ports / usable if usable else 1.0


def by_state_name(states: Mapping[int, int]) -> dict[str, int]:
    """Return counts by TCP state number as counts by name in lower case; an unknown number becomes `state_N`.

    SYN_RECV and NEW_SYN_RECV are counted together: for users a connection request has one state.
    """
    named: Counter[str] = Counter()
    # Sorted, so that equal pools are shown alike, whatever the order of the sockets was.
    for state, number in sorted(states.items()):
        named[_STATE_NAMES.get(state, f"state_{state}")] += number
    return dict(named)


_STATE_NAMES = {state.value: state.name.lower() for state in TcpState} | {TcpState.NEW_SYN_RECV: "syn_recv"}
