"""Owners of ports as text, the same in the log, in deliveries and below the table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ephmon.facts.foreign_text import printable
from ephmon.model.alerting.state_machine import AlertName
from ephmon.model.collectors import Collector
from ephmon.model.owners.questions import BLOCKED_PORTS, PortSet
from ephmon.outputs.text.wording import endpoint, pool_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ephmon.model.alerting.state_machine import Alert
    from ephmon.model.owners.shares import Owners, OwnerShare
    from ephmon.model.pools.kinds import PoolKey
    from ephmon.model.report import Report

MAX_PROCESSES = 5
"""How many processes are named; the others are counted."""


def owners_behind(alert: Alert, report: Report) -> Owners | None:
    """Return the owners of the ports that an alert is about, None if they were not read."""
    if alert.key.name is AlertName.PORTS_BLOCKED:
        return report.blocked_owners.get(alert.key.netns)
    return None if alert.key.pool is None else report.owners.get(alert.key.pool)


def owners_line(owners: Owners) -> str:
    """Return `haproxy.service 812 ports, uid 33 12 (estimated), 3 others 40, unknown 5`; "" if there are no owners."""
    parts = [(share.owner.name, share.ports, _mark(share)) for share in owners.shares]
    if owners.other_owners:
        others = "1 other" if owners.other_owners == 1 else f"{owners.other_owners} others"
        parts.append((others, owners.other_ports, ""))
    if owners.unknown_ports:
        parts.append(("unknown", owners.unknown_ports, ""))
    return ", ".join(
        f"{printable(name)} {number if index else ports(number)}{mark}"
        for index, (name, number, mark) in enumerate(parts)
    )


def largest_owner_sentence(owners: Owners) -> str:
    """Return a sentence about the owner with the most ports, "" if no owner is known."""
    if not owners.shares:
        return ""
    share = owners.shares[0]
    return f"{printable(share.owner.name)} holds {ports(share.ports)}{_mark(share)}."


def ports(number: int) -> str:
    """Return `1 port`, `812 ports`."""
    return "1 port" if number == 1 else f"{number} ports"


def port_set_name(port_set: PortSet) -> str:
    """Return `Ports toward 10.0.0.9:443`, `Ports of tcp_bind at 10.0.0.1` or `Blocked ports`."""
    if port_set is BLOCKED_PORTS:
        return "Blocked ports"
    if port_set.destination is None:
        return f"Ports of {pool_name(port_set)}"
    return f"Ports toward {endpoint(port_set.destination, port_set.destination_port)}"


def processes_line(found: Sequence[tuple[int, str, int]], *, is_complete: bool) -> str:
    """Return `haproxy (pid 123, 812 sockets), nginx (pid 7, 1 socket) and 3 more`.

    Args:
        found: Process id, name and number of sockets of each, most sockets first.
        is_complete: Whether all descriptors of all processes were checked.
    """
    named = [
        f"{printable(comm)} (pid {pid}, {sockets} {'socket' if sockets == 1 else 'sockets'})"
        for pid, comm, sockets in found[:MAX_PROCESSES]
    ]
    more = len(found) - len(named)
    rest = f" and {more} more" if more else ""
    return f"{', '.join(named)}{rest}{'' if is_complete else '; not all descriptors were checked'}"


def owner_lines(
    report: Report, asked: Sequence[PoolKey], processes: Mapping[PortSet, str], left_out: int
) -> Iterator[str]:
    """Yield the lines below a table: the owners of each pool in `asked`, then those of the blocked ports.

    Args:
        report: Contains the owners, and why some are not known.
        asked: The pools whose owners were read.
        processes: A line about the processes that hold the ports, if any were found.
        left_out: How many pools of the table are not in `asked`.
    """
    yield ""
    yield "Who holds the ports:"
    answers: list[tuple[PortSet, str, Owners | None]] = [(key, pool_name(key), report.owners.get(key)) for key in asked]
    answers += [
        (BLOCKED_PORTS, "blocked ports", owners) for owners in report.blocked_owners.values() if owners_line(owners)
    ]
    for port_set, name, owners in answers:
        yield f"{name}: {_line_or_nobody(owners)}"
        if line := processes.get(port_set):
            yield f"  {line}"
    if left_out:
        more = "1 more pool" if left_out == 1 else f"{left_out} more pools"
        yield f"The owners of {more} were not read; choose pools with --top or --destination."
    health = (report.health(collector) for collector in (Collector.OWNERS, Collector.PROCESSES))
    yield from (one.reason for one in health if one.reason)


def _line_or_nobody(owners: Owners | None) -> str:
    if owners is None:
        return "not known"
    return owners_line(owners) or "nobody"


def _mark(share: OwnerShare) -> str:
    if not share.is_estimated:
        return ""
    if share.estimated_ports == share.ports:
        return " (estimated)"
    return f" ({share.estimated_ports} estimated)"
