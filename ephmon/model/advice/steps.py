"""What can be done about a pool that fills up: the steps that the table in `ephmon.model.advice.causes` chooses from.

A step is a function that takes the `PoolFacts` and returns one line, or None where the step would not help. The sysctls
are those of Documentation/networking/ip-sysctl.rst.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from ephmon.facts.addresses import HIGHEST_PORT
from ephmon.facts.port_list import format_ports
from ephmon.facts.snapshot import PortRange
from ephmon.facts.sockets import Protocol
from ephmon.model.advice.pool_facts import PoolFacts
from ephmon.model.advice.proxies import Setting, how_to
from ephmon.model.pools.time_wait import REUSE_ALL, REUSE_LOOPBACK

if TYPE_CHECKING:
    from collections.abc import Collection


WIDER_RANGES = (PortRange(10_240, HIGHEST_PORT), PortRange(1_024, HIGHEST_PORT))
"""What to widen the range to, the more careful range first. Ports below 1024 are privileged. Both ends of a range have
different parity, so its size is even and a search by parity loses no port."""

_LONGEST_LIST = 200
"""A line to paste writes reserved ports out up to so many characters. Longer lists come from a command in it."""
_LONGEST_WRITE = 3_500
"""Characters of ports that fit into one write to a sysctl, with room for what the reader fills in. The kernel takes
less than a page (proc_do_large_bitmap() in kernel/sysctl.c)."""
_PLACEHOLDER = re.compile(r"\b(?:DESTINATION|ADDRESS|SOURCE2?)\b")


Step = Callable[[PoolFacts], str | None]


def to_set(setting: Setting, purpose: str) -> Step:
    """Return the step that changes a setting of the program."""
    return lambda facts: f"{purpose}. {_how_to(setting, facts)}."


def to_say(sentence: str) -> Step:
    """Return the step that is one sentence, in which `{facts}` and its properties are filled in."""
    return lambda facts: sentence.format(facts=facts)


def widen(facts: PoolFacts) -> str | None:
    """Say how to widen the range without taking ports that the host's own services listen on.

    A running service keeps its port, but once it restarts, a connection may sit there, unless the port is reserved.
    """
    # UDP sockets can only take ports from UDP services, and listening ports are known for TCP alone.
    old, listening = facts.sysctls.port_range, None if facts.kind.protocol == Protocol.UDP else facts.listening_ports
    new = next((new for new in WIDER_RANGES if new.low <= old.low and old.high <= new.high and new != old), None)
    if new is None:
        return None
    more = f"Widen the port range from {old.size} to {new.size} ports{', for IPv6 too' if ':' in facts.source else ''}"
    wider = f"sysctl -w net.ipv4.ip_local_port_range='{new.low} {new.high}'"
    services = None if listening is None else _come_inside(listening, old, new)
    if services is not None and services <= facts.sysctls.reserved_ports:
        safe = "every TCP service there is reserved" if services else "no TCP service listens in the new part"
        return f"{more}; {safe}: `{wider}`."
    reserve = _reserve(facts.sysctls.reserved_ports, services)
    if reserve is None:
        return f"{more}, once the services there are added to net.ipv4.ip_local_reserved_ports: `{wider}`."
    if services is None:
        return f"{more}; for PORTS write the ports of services there, which `ss -Htuln` lists: `{reserve} && {wider}`."
    return f"{more}, but keep it off the services that listen there: `{reserve} && {wider}`."


def _come_inside(ports: Collection[int], old: PortRange, new: PortRange) -> frozenset[int]:
    return frozenset(port for port in ports if new.low <= port < old.low or old.high < port <= new.high)


def _reserve(reserved: frozenset[int], services: frozenset[int] | None) -> str | None:
    """Return the command that reserves the ports of services too, None if it would be too long.

    Args:
        reserved: The ports that are reserved now.
        services: The ports of services, None if they are not known; the command then has the word PORTS to fill in.
    """
    # A write replaces the whole list, so the command has to write the present list again. The kernel cuts off what does
    # not fit into one write.
    kept, new = format_ports(reserved), "PORTS" if services is None else format_ports(services)
    if len(kept) + len(new) > _LONGEST_WRITE:
        return None
    if len(kept) > _LONGEST_LIST:
        kept = '"$(sysctl -n net.ipv4.ip_local_reserved_ports)"'
    elif services is not None:
        kept, new = "", format_ports(reserved | services)
    return f"sysctl -w net.ipv4.ip_local_reserved_ports={','.join(filter(None, (kept, new)))}"


def reuse_time_wait(facts: PoolFacts) -> str | None:
    """Say which value of tcp_tw_reuse helps. On loopback 2, the kernel's default, is enough."""
    now, wanted = facts.sysctls.tcp_tw_reuse, REUSE_LOOPBACK if facts.is_loopback else REUSE_ALL
    # The kernel needs timestamps to tell an old segment from a new one (`ephmon.model.pools.time_wait`).
    if not facts.sysctls.tcp_timestamps or now in (REUSE_ALL, wanted):
        return None
    where = (
        "on loopback"
        if facts.is_loopback
        else "toward other hosts too, if they use TCP timestamps (`ss -tin` prints `ts`)"
    )
    age = f"{facts.sysctls.tcp_tw_reuse_delay_ms / 1000:g} s"
    return f"Let connect() take over TIME_WAITs older than {age} {where}: `sysctl -w net.ipv4.tcp_tw_reuse={wanted}`."


def second_source(facts: PoolFacts) -> str | None:
    """Say how to connect from one more address."""
    # IPv6 has one loopback address, ::1, where IPv4 has all of 127.0.0.0/8.
    if facts.is_loopback and ":" in facts.source:
        return None
    purpose = f"Connect from a second address, which has {facts.capacity} ports of its own toward {facts.toward}"
    return f"{purpose}. {_how_to(Setting.SECOND_SOURCE, facts)}."


def unix_socket(facts: PoolFacts) -> str | None:
    """Say how to do without ports if both ends are on this host."""
    if not facts.stays_on_host:
        return None
    return f"Use a Unix socket, which needs no port, as both ends are here. {_how_to(Setting.UNIX_SOCKET, facts)}."


def second_address_to_bind(facts: PoolFacts) -> str | None:
    """Say that a second address has ports of its own for bind()."""
    # A wildcard conflicts with every address, so a second one would not help.
    if facts.is_wildcard:
        return None
    return f"Bind to a second address too: each has {facts.usable} ports of its own for bind(ADDRESS, 0)."


def _how_to(setting: Setting, facts: PoolFacts) -> str:
    """Return what to write for a setting, with the words in capitals filled in where they are known."""
    known = {"DESTINATION": facts.toward, "SOURCE": facts.source, "SOURCE2": _another(facts.source)}
    if facts.source and not facts.is_wildcard:
        known["ADDRESS"] = facts.source
    return _PLACEHOLDER.sub(lambda word: known.get(word[0], word[0]), how_to(setting, facts.program))


def _another(source: str) -> str:
    """Return one more address of the host, or the word to fill in."""
    # All of 127.0.0.0/8 is on every host, so there the address needs no look at the host's interfaces.
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
    "Let the service listen on a second port or address and spread over both: each has {facts.capacity} ports."
)
own_ranges = to_say(
    "Give each program a part of the range, so that none starves the others: IP_LOCAL_PORT_RANGE (Linux 6.3)."
)
find_blocker = to_say("Find that program, as root: `ss -Htanp state all`.")
find_udp_holder = to_say("Find the program that holds most, as root: `ss -Huanp`.")
share_udp_sockets = to_say("Send many requests over one UDP socket, or close each as soon as it is answered.")
