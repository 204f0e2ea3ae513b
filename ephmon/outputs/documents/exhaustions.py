"""The JSON of `/api/v1/exhaustions`: the connect() calls that failed because no port was left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ephmon.facts.addresses import address_text
from ephmon.facts.foreign_text import printable
from ephmon.model.collectors import Collector
from ephmon.model.owners.names import owner_of
from ephmon.outputs.documents.api import SCHEMA
from ephmon.outputs.text.wording import utc_time

if TYPE_CHECKING:
    from ephmon.facts.failed_calls import ExhaustionEvent
    from ephmon.model.report import Report


def exhaustions_document(report: Report) -> dict[str, Any]:
    """Return the failed calls; `available` is false if they are not counted now, and `error` says why."""
    exhaustions, health = report.exhaustions, report.health(Collector.EXHAUSTIONS)
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "available": health.available,
        "error": health.reason,
    }
    if exhaustions is None:
        return document | {"totals": None, "lost": None, "namespaces": [], "destinations": [], "events": []}
    return document | {
        "totals": dict(exhaustions.totals),
        "lost": exhaustions.lost,
        "namespaces": [{"inode": inode, "events": number} for inode, number in exhaustions.namespaces.items()],
        "destinations": [
            {"netns": netns, "destination": address_text(address), "destination_port": port, "events": count.events}
            for (netns, address, port), count in exhaustions.destinations.items()
        ],
        "events": [event_object(event) for event in exhaustions.events],
    }


def event_object(event: ExhaustionEvent) -> dict[str, Any]:
    """Return one failed call; fields of the caller that are not known are null."""
    owner = owner_of(event.cgroup, event.uid)
    return {
        "at": utc_time(event.at),
        "netns": event.netns.label,
        "netns_inode": event.netns.inode,
        "source": address_text(event.source),
        "destination": address_text(event.destination),
        "destination_port": event.destination_port,
        "pid": event.pid,
        "command": None if event.command is None else printable(event.command),
        "uid": event.uid,
        "owner": None if owner is None else printable(owner.name),
    }
