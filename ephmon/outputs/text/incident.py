"""An incident as text: what happened and when, the pools, their owners, the failed calls, and advice.

A document that was read goes in, text comes out. An `IncidentError` names the part of it that is damaged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ephmon.facts.snapshot import PortRange, Sysctls
from ephmon.model.advice.causes import Advice
from ephmon.model.owners.names import Owner, OwnerKind
from ephmon.model.owners.shares import Owners, OwnerShare
from ephmon.model.pools.kinds import Pool, PoolKey, PoolKind
from ephmon.model.report import NamespaceReport
from ephmon.outputs.text.advice import advice_lines
from ephmon.outputs.text.owners import owners_line
from ephmon.outputs.text.table import aligned
from ephmon.outputs.text.wording import blindness, endpoint, grid, one_line, pool_name, range_sentence

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ephmon.outputs.documents.incident_reading import Part


def render(incident: Part, *, width: int | None) -> str:
    """Return the incident as text with a newline at its end; the table of pools is cut to `width` columns.

    Raises:
        IncidentError: A member is missing or has the wrong type.
    """
    snapshot = incident.part("snapshot")
    sections = (
        _head(incident),
        _namespaces(incident, snapshot),
        _pools(snapshot, width),
        _forecasts(snapshot),
        _owners(snapshot),
        _failed_calls(incident.part("exhaustions")),
        _alerts(incident),
    )
    return "\n\n".join("\n".join(lines) for lines in map(list, sections) if lines) + "\n"


def worst_pool(incident: Part) -> Pool | None:
    """Return the fullest pool of an incident, None if it has none."""
    pools = incident.part("snapshot").parts("pools")
    return _pool(pools[0]) if pools else None


def _head(incident: Part) -> Iterator[str]:
    yield f"{incident.text('at')}  {incident.text('host')}: {incident.text('summary')}"
    versions = incident.part("versions")
    yield (
        f"Reason: {incident.text('reason')}. Written by ephmon {versions.text('ephmon')} on Linux"
        f" {versions.text('kernel')}, with Python {versions.text('python')}."
    )
    if incident.has("poll_error"):
        yield f"The last poll had failed, so the figures are older: {incident.text('poll_error')}"
    missing = incident.part("missing")
    yield from (f"{one_line(name)} is missing: {missing.text(name)}" for name in missing.names())


def _namespaces(incident: Part, snapshot: Part) -> Iterator[str]:
    sysctls = {one.text("netns"): one for one in incident.parts("sysctls")}
    for part in snapshot.parts("namespaces"):
        namespace = _namespace(part)
        yield range_sentence(namespace)
        yield from blindness(namespace.blind_to)
        if namespace.netns in sysctls:
            yield from _sysctls(sysctls[namespace.netns])
    if snapshot.has("taken_at"):
        yield f"Read at {snapshot.text('taken_at')}."


def _namespace(part: Part) -> NamespaceReport:
    return NamespaceReport(
        netns=part.text("netns"),
        inode=part.count("inode"),
        sysctls=Sysctls(
            port_range=PortRange(part.count("port_range_low"), part.count("port_range_high")),
            tcp_tw_reuse=part.count("tcp_tw_reuse"),
        ),
        reserved_ports=part.count("reserved_ports"),
        usable_ports=part.count("usable_ports"),
        blocked_ports=part.count_or_none("blocked_ports"),
        ambiguous_ports=part.count_or_none("ambiguous_ports"),
        blind_to=tuple(part.texts("blind_to")),
        pools={},
        listed={},
        worst={},
    )


def _sysctls(part: Part) -> Iterator[str]:
    numbers = ("tcp_tw_reuse", "tcp_tw_reuse_delay_ms", "tcp_timestamps", "ip_autobind_reuse", "tcp_max_tw_buckets")
    yield ", ".join(f"{name} {part.count(name)}" for name in numbers) + "."
    if part.text("ip_local_reserved_ports"):
        yield f"ip_local_reserved_ports {part.text('ip_local_reserved_ports')}"


def _pools(snapshot: Part, width: int | None) -> Iterator[str]:
    pools = [_pool(part) for part in snapshot.parts("pools")]
    if not pools:
        yield "The incident has no pools."
        return
    headings, rows = grid(pools)
    yield from aligned(headings, rows, width)
    if not all(pool.exact for pool in pools):
        yield "~ marks an estimate."
    total = snapshot.count("pools_total")
    if total > len(pools):
        yield f"Pools shown: {len(pools)} of {total}."


def _key(part: Part) -> PoolKey:
    return PoolKey(
        part.text("netns"),
        part.word("kind", PoolKind),
        part.text("source"),
        part.text_or_none("destination"),
        part.count_or_none("destination_port"),
    )


def _pool(part: Part) -> Pool:
    return Pool(
        key=_key(part),
        taken_at=0.0,  # not printed
        usable=part.count("usable_ports"),
        blocked=part.count("blocked_ports"),
        capacity=part.count("capacity_ports"),
        in_use=part.count("in_use_ports"),
        time_wait=part.count("time_wait_ports"),
        reusable=part.count("reusable_ports"),
        remaining=part.count("remaining_ports"),
        remaining_min=part.count("remaining_ports_min"),
        remaining_max=part.count("remaining_ports_max"),
        exact=part.truth("exact"),
        failure_errno=part.text("failure_errno"),
        states=part.counts("states"),
        held=part.count("in_use_ports"),
    )


def _forecasts(snapshot: Part) -> Iterator[str]:
    for part in snapshot.parts("pools"):
        if not part.has("opens_per_second"):
            continue
        rate = f"{pool_name(_key(part))}: {part.number('opens_per_second'):.1f} opens a second"
        if part.has("seconds_to_exhaustion"):
            yield f"{rate}, exhausted in about {part.number('seconds_to_exhaustion'):.0f} s at this rate."
        elif part.number("opens_per_second"):
            yield f"{rate}."


def _owners(snapshot: Part) -> Iterator[str]:
    for part in snapshot.parts("pools"):
        if part.has("owners"):
            yield f"Ports of {pool_name(_key(part))} are held by: {_holders(part, 'owner')}"
    for part in snapshot.parts("namespaces"):
        if part.has("blocked_owners"):
            yield f"Blocked ports are held by: {_holders(part, 'blocked_owner')}"


def _holders(part: Part, word: str) -> str:
    owners = Owners(
        shares=tuple(
            OwnerShare(
                owner=Owner(share.word("kind", OwnerKind), share.text("owner")),
                ports=share.count("ports"),
                estimated_ports=share.count("estimated_ports"),
            )
            for share in part.parts(f"{word}s")
        ),
        other_owners=part.count(f"other_{word}s"),
        other_ports=part.count(f"other_{word}_ports"),
        unknown_ports=part.count(f"unknown_{word}_ports"),
    )
    return owners_line(owners) or "nobody"


def _failed_calls(part: Part) -> Iterator[str]:
    if not part.has("totals"):
        yield "Failed connect() calls were not counted."
        return
    totals = ", ".join(f"{name} {number}" for name, number in part.counts("totals").items())
    yield f"Failed connect() calls since the start, by network namespace: {totals}; lost: {part.count('lost')}."
    for event in part.parts("events"):
        toward = endpoint(event.text("destination"), event.count("destination_port"))
        yield f"  {event.text('at')}  {event.text('source')} to {toward}{_caller(event)}"


def _caller(event: Part) -> str:
    if not event.has("pid"):
        return ""
    user = f", uid {event.count('uid')}" if event.has("uid") else ""
    owner = f" of {event.text('owner')}" if event.has("owner") else ""
    return f"  {event.text_or_none('command') or '?'} (pid {event.count('pid')}{user}){owner}"


def _alerts(incident: Part) -> Iterator[str]:
    alerts = incident.parts("alerts")
    for alert in alerts:
        yield f"{alert.text('alertname')} fires as {alert.text('severity')}: {alert.text('summary')}"
        if alert.has("advice"):
            yield from (f"  {line}" for line in advice_lines(_advice(alert.part("advice"))))
    more = incident.count("alerts_total") - len(alerts)
    if more > 0:
        yield f"More active alerts: {more}."


def _advice(part: Part) -> Advice:
    return Advice(cause=part.text("cause"), steps=tuple(part.texts("steps")), avoid=part.text_or_none("avoid"))
