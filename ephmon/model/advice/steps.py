"""What can be done about a pool that fills up: the steps that the table in `ephmon.model.advice.causes` chooses from.

A step is a function that takes the `Case` and returns one line, or None where it would do no good. The sysctls are
those of Documentation/networking/ip-sysctl.rst.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ephmon.facts.addresses import HIGHEST_PORT, host_and_port, is_wildcard, packed_address
from ephmon.facts.port_list import format_ports
from ephmon.facts.snapshot import PortRange
from ephmon.facts.sockets import Protocol
from ephmon.model.advice.proxies import Setting, how_to
from ephmon.model.pools.time_wait import REUSE_ALL, REUSE_LOOPBACK, on_loopback

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from ephmon.facts.snapshot import Sysctls
    from ephmon.model.pools.kinds import PoolKind

WIDER_RANGES = (PortRange(10_240, HIGHEST_PORT), PortRange(1_024, HIGHEST_PORT))
"""What to widen the range to, the more careful one first; below 1024 are the privileged ports. The ends of each are of
different parity, so that a search by parity loses no port."""

_LONGEST_LIST = 200
"""Characters of reserved ports that are still written out in a line to paste."""
_LONGEST_WRITE = 3_500
"""Characters of ports that surely go into one write to a sysctl, of which the kernel takes less than a page
(proc_do_large_bitmap() in kernel/sysctl.c), whatever is still filled in."""
_PLACEHOLDER = re.compile(r"\b(?:DESTINATION|ADDRESS|SOURCE2?)\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is known of a pool, or without a source of a namespace. Numbers are ports, but for `states`: sockets."""

    kind: PoolKind
    source: str = ""
    destination: str | None = None
    destination_port: int | None = None
    usable: int
    blocked: int
    is_mostly_blocked: bool = False
    """Whether blocked ports take more of the pool than its own connections do."""
    in_use: int = 0
    time_wait: int = 0
    """Ports that TIME_WAIT alone holds and that the kernel does not hand out again now."""
    live: int = 0
    """Ports in use on which more than TIME_WAIT is left."""
    states: Mapping[str, int] = field(default_factory=dict)
    sysctls: Sysctls
    listening_ports: Collection[int] | None
    program: str | None

    @property
    def toward(self) -> str:
        """The destination as a configuration takes it, and `ss` too."""
        if self.destination is None or self.destination_port is None:
            return "DESTINATION"
        return host_and_port(self.destination, self.destination_port)

    @property
    def port_range(self) -> str:
        """The range as people write it."""
        return f"{self.sysctls.port_range.low}-{self.sysctls.port_range.high}"

    @property
    def sockets(self) -> int:
        """Sockets in any state but TIME_WAIT."""
        return sum(number for state, number in self.states.items() if state != "time_wait")

    @property
    def capacity(self) -> int:
        """What the pool of another source or destination has."""
        return self.usable - self.blocked

    @property
    def is_wildcard(self) -> bool:
        """Whether the source stands for every address."""
        return is_wildcard(packed_address(self.source))

    @property
    def whose(self) -> str:
        """Whose sockets are in the way of bind(source, 0)."""
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


Step = Callable[[Case], str | None]


def to_set(setting: Setting, purpose: str) -> Step:
    """Return the step that changes a setting of the program."""
    return lambda case: f"{purpose}. {_how_to(setting, case)}."


def to_say(sentence: str) -> Step:
    """Return the step that is one sentence, in which `{case}` and its properties are filled in."""
    return lambda case: sentence.format(case=case)


def widen(case: Case) -> str | None:
    """Say how to widen the range without taking ports that the host's own services listen on.

    A running service keeps its port, but once it restarts, a connection may sit there, unless the port is reserved.
    """
    # Who listens is known of TCP alone, and it is services of their own protocol that UDP sockets take the ports of.
    old, listening = case.sysctls.port_range, None if case.kind.protocol == Protocol.UDP else case.listening_ports
    new = next((new for new in WIDER_RANGES if new.low <= old.low and old.high <= new.high and new != old), None)
    if new is None:
        return None
    more = f"Widen the port range from {old.size} to {new.size} ports{', for IPv6 too' if ':' in case.source else ''}"
    wider = f"sysctl -w net.ipv4.ip_local_port_range='{new.low} {new.high}'"
    services = None if listening is None else _come_inside(listening, old, new)
    if services is not None and services <= case.sysctls.reserved_ports:
        safe = "every TCP service there is reserved" if services else "no TCP service listens in the new part"
        return f"{more}; {safe}: `{wider}`."
    reserve = _reserve(case.sysctls.reserved_ports, services)
    if reserve is None:
        return f"{more}, once the services there are added to net.ipv4.ip_local_reserved_ports: `{wider}`."
    if services is None:
        return f"{more}; for PORTS write the ports of services there, which `ss -Htuln` lists: `{reserve} && {wider}`."
    return f"{more}, but keep it off the services that listen there: `{reserve} && {wider}`."


def _come_inside(ports: Collection[int], old: PortRange, new: PortRange) -> frozenset[int]:
    return frozenset(port for port in ports if new.low <= port < old.low or old.high < port <= new.high)


def _reserve(reserved: frozenset[int], services: frozenset[int] | None) -> str | None:
    """Return the command that reserves more ports, PORTS if they are not known; None if it would be too long.

    The sysctl is written as a whole, so what it holds has to be written again; what does not go into one write is lost.
    """
    kept, new = format_ports(reserved), "PORTS" if services is None else format_ports(services)
    if len(kept) + len(new) > _LONGEST_WRITE:
        return None
    if len(kept) > _LONGEST_LIST:
        kept = '"$(sysctl -n net.ipv4.ip_local_reserved_ports)"'
    elif services is not None:
        kept, new = "", format_ports(reserved | services)
    return f"sysctl -w net.ipv4.ip_local_reserved_ports={','.join(filter(None, (kept, new)))}"


def reuse_time_wait(case: Case) -> str | None:
    """Say which tcp_tw_reuse helps: on loopback 2, the kernel's default, is enough; without timestamps none does."""
    now, wanted = case.sysctls.tcp_tw_reuse, REUSE_LOOPBACK if case.is_loopback else REUSE_ALL
    if not case.sysctls.tcp_timestamps or now in (REUSE_ALL, wanted):
        return None
    where = "on loopback" if case.is_loopback else "toward other hosts too, if they speak TCP timestamps"
    age = f"{case.sysctls.tcp_tw_reuse_delay_ms / 1000:g} s"
    return f"Let connect() take over TIME_WAITs older than {age} {where}: `sysctl -w net.ipv4.tcp_tw_reuse={wanted}`."


def second_source(case: Case) -> str | None:
    """Say how to connect from one more address; of IPv6's loopback there is only ::1."""
    if case.is_loopback and ":" in case.source:
        return None
    purpose = f"Connect from a second address, which has {case.capacity} ports of its own toward {case.toward}"
    return f"{purpose}. {_how_to(Setting.SECOND_SOURCE, case)}."


def unix_socket(case: Case) -> str | None:
    """Say how to do without ports, where both ends are on this host."""
    if not case.stays_on_host:
        return None
    return f"Use a Unix socket, which needs no port, as both ends are here. {_how_to(Setting.UNIX_SOCKET, case)}."


def second_address_to_bind(case: Case) -> str | None:
    """Say that bind() counts by address; a wildcard has no second one."""
    if case.is_wildcard:
        return None
    return f"Bind to a second address too: each has {case.usable} ports of its own for bind(ADDRESS, 0)."


def _how_to(setting: Setting, case: Case) -> str:
    """Return what to write for a setting, with the words filled in that are known."""
    known = {"DESTINATION": case.toward, "SOURCE": case.source, "SOURCE2": _another(case.source)}
    if case.source and not case.is_wildcard:
        known["ADDRESS"] = case.source
    return _PLACEHOLDER.sub(lambda word: known.get(word[0], word[0]), how_to(setting, case.program))


def _another(source: str) -> str:
    """Return one more address of the host, where it is known without looking: all of 127.0.0.0/8 is."""
    if not source.startswith("127."):
        return "SOURCE2"
    return "127.0.0.3" if source == "127.0.0.2" else "127.0.0.2"


reuse = to_set(Setting.REUSE, "Send many requests over one connection")
close_idle = to_set(Setting.IDLE, "Close idle connections sooner, or keep fewer")
give_up_connecting = to_set(Setting.CONNECT_TIMEOUT, "Give up on it sooner, which frees the port")
check_health = to_set(Setting.HEALTH_CHECK, "Send nothing there while it does not answer")
give_up_half_closed = to_set(Setting.HALF_CLOSED, "Give up on connections that the other side does not close")
bind_without_port = to_set(Setting.NO_PORT, "Let connect() choose the port, by IP_BIND_ADDRESS_NO_PORT (Linux 4.2)")
second_destination = to_say(
    "Let the service listen on a second port or address and spread over both: each has {case.capacity} ports."
)
own_ranges = to_say(
    "Give each program a part of the range, so that none starves the others: IP_LOCAL_PORT_RANGE (Linux 6.3)."
)
find_blocker = to_say("Find that program, as root: `ss -Htanp state all`.")
find_udp_holder = to_say("Find the program that holds most, as root: `ss -Huanp`.")
share_udp_sockets = to_say("Send many requests over one UDP socket, or close each as soon as it is answered.")
