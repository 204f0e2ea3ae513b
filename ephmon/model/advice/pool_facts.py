"""What the advice on a pool rests on, in the words that its sentences need."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ephmon.facts.addresses import host_and_port, is_wildcard, on_loopback, packed_address

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from ephmon.facts.snapshot import Sysctls
    from ephmon.model.failures.doubted_pools import Cause
    from ephmon.model.pools.kinds import PoolKind


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolFacts:
    """A pool that fills up, or with `source` empty the blocked ports of a namespace.

    All numbers are counts of ports, except those in `states`.
    """

    kind: PoolKind
    source: str = ""
    destination: str | None = None
    destination_port: int | None = None
    usable: int
    blocked: int
    is_mostly_blocked: bool = False
    """Whether blocked ports take more of the pool than its own connections take."""
    in_use: int = 0
    time_wait: int = 0
    """Ports with nothing but TIME_WAITs that the kernel does not hand out again now."""
    live: int = 0
    """Ports in use with a socket that is not in TIME_WAIT."""
    room: int = 0
    """How many ports remain at most."""
    possible_causes: Collection[Cause] = ()
    """Why connect() may have failed although the pool seems to have room; empty if the advice is not about that."""
    in_doubt: int = 0
    """Ports of which nobody knows whether connect() may share them."""
    reusable_unproven: int = 0
    """TIME_WAITs that are handed out again only if the peer speaks TCP timestamps, which is not known."""
    search_ports: float = 0.0
    """How many ports one connect() looks at; 0 if the advice is not about that."""
    states: Mapping[str, int] = field(default_factory=dict)
    """Sockets by TCP state name in lower case."""
    sysctls: Sysctls
    listening_ports: Collection[int] | None
    """TCP ports that a wider range has to leave out because a service listens there; None if they are not known."""
    program: str | None
    """The process or unit that holds most of the ports, None if that is not known."""

    @property
    def toward(self) -> str:
        """The destination as configurations and `ss` take it, or the word to fill in."""
        if self.destination is None or self.destination_port is None:
            return "DESTINATION"
        return host_and_port(self.destination, self.destination_port)

    @property
    def port_range(self) -> str:
        """The range as `low-high`."""
        return f"{self.sysctls.port_range.low}-{self.sysctls.port_range.high}"

    @property
    def sockets(self) -> int:
        """Sockets in any state but TIME_WAIT."""
        return sum(number for state, number in self.states.items() if state != "time_wait")

    @property
    def capacity(self) -> int:
        """How many ports another source or destination would have."""
        return self.usable - self.blocked

    @property
    def is_wildcard(self) -> bool:
        """Whether the source is 0.0.0.0 or ::."""
        return is_wildcard(packed_address(self.source))

    @property
    def whose(self) -> str:
        """Which local addresses have sockets that conflict with bind(source, 0)."""
        return "any address" if self.is_wildcard else f"{self.source} or the wildcard"

    @property
    def is_loopback(self) -> bool:
        """Whether the kernel takes the connection for one on loopback, as `ephmon.model.pools.time_wait` says."""
        return on_loopback(*(packed_address(address) for address in (self.source, self.destination) if address))

    @property
    def stays_on_host(self) -> bool:
        """Whether the destination is known to be on this host."""
        return self.is_loopback or self.source == self.destination

    def count(self, states: Collection[str]) -> int:
        """Return how many sockets are in one of the states."""
        return sum(self.states.get(state, 0) for state in states)
