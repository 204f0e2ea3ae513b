"""An incident as a document: everything known at its moment, so that people can understand it elsewhere and later.

Its size is bounded, whatever the host does. It contains nothing of the configuration, which may contain secrets.
"""

from __future__ import annotations

from dataclasses import replace
from heapq import nsmallest
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, NamedTuple

from ephmon.facts.addresses import address_text
from ephmon.facts.foreign_text import printable
from ephmon.facts.namespaces import OWN_NETNS
from ephmon.facts.port_list import format_ports
from ephmon.model.advice.for_alert import advice_on
from ephmon.model.alerting.state_machine import Alerts
from ephmon.model.incidents import Reason
from ephmon.model.owners.names import owner_of
from ephmon.model.pools.kinds import PoolKey, PoolKind
from ephmon.model.pools.ranking import worst_first
from ephmon.outputs.documents import api
from ephmon.outputs.documents.exhaustions import exhaustions_document
from ephmon.outputs.text.advice import advice_object
from ephmon.outputs.text.alerts import alert_objects, sentence
from ephmon.outputs.text.wording import endpoint, one_line, utc_time

if TYPE_CHECKING:
    from ephmon.facts.failed_calls import ExhaustionEvent
    from ephmon.facts.snapshot import Sysctls
    from ephmon.model.alerting.state_machine import Alert
    from ephmon.model.failures.counters import Exhaustions
    from ephmon.model.incidents import Incident
    from ephmon.model.pools.kinds import Pool
    from ephmon.model.report import Report

SCHEMA = 1
DOCUMENT = "ephmon incident"
"""The value of `document`, which identifies such a file."""

MAX_POOLS = 20
"""The pools that the incident is about, then the fullest ones."""
MAX_ALERTS = 20
MAX_ADVISED = 5
"""How many of the alerts have advice. Advice may be long, because it may list every reserved port."""
MAX_EVENTS = 50
"""The last failed connect() calls of ephmon's own namespace."""
MAX_DESTINATIONS = 20


class Origin(NamedTuple):
    """Which host and which versions a document comes from."""

    host: str
    """Its name."""
    ephmon: str
    """Versions."""
    python: str
    kernel: str


def document(report: Report, incident: Incident, *, at: float, origin: Origin) -> dict[str, Any]:
    """Return the document; `at` is when the incident was noticed, in seconds since the epoch.

    `snapshot` and `exhaustions` have the form of `/api/v1/pools` and `/api/v1/exhaustions`, cut to the fullest pools
    and the latest calls.
    """
    alerts = _alerts(report, incident)
    return {
        "document": DOCUMENT,
        "schema": SCHEMA,
        "at": utc_time(at),
        "reason": incident.reason,
        "summary": _summary(incident),
        "host": printable(origin.host),
        "versions": {name: printable(getattr(origin, name)) for name in ("ephmon", "python", "kernel")},
        "poll_error": None if report.error is None else one_line(report.error),
        "missing": {protocol: one_line(reason) for protocol, reason in report.missing.items()},
        "sysctls": [
            {"netns": printable(namespace.netns), **_sysctls(namespace.sysctls)} for namespace in report.namespaces
        ],
        "alerts_total": len(report.alerts.firing),
        "alerts": _alert_objects(alerts, report),
        "snapshot": api.pools_document(report, _pools(report, incident, alerts)),
        "exhaustions": exhaustions_document(replace(report, exhaustions=_cut(report.exhaustions))),
    }


def _summary(incident: Incident) -> str:
    if incident.reason is Reason.EXHAUSTION and incident.call is not None:
        return _failed_call(incident.call)
    return " ".join(sentence(alert) for alert in incident.alerts[:1])


def _failed_call(call: ExhaustionEvent) -> str:
    toward = endpoint(address_text(call.destination), call.destination_port)
    failure = f"A connect() from {address_text(call.source)} to {toward} found no port."
    if call.pid is None:
        return failure
    owner = owner_of(call.cgroup, call.uid)
    where = "" if owner is None else f" of {printable(owner.name)}"
    return f"{failure} It was made by {printable(call.command or '?')}{where} (pid {call.pid})."


def _alerts(report: Report, incident: Incident) -> list[Alert]:
    """Return active alerts, beginning with those that the incident is about."""
    about = {alert.key: alert for alert in incident.alerts}
    others = (alert for alert in report.alerts.firing if alert.key not in about)
    return list(islice(chain(about.values(), others), MAX_ALERTS))


def _alert_objects(alerts: list[Alert], report: Report) -> list[dict[str, Any]]:
    objects = alert_objects(Alerts(states={alert.key: alert for alert in alerts}))
    advice = (advice_on(alert, report) if index < MAX_ADVISED else None for index, alert in enumerate(alerts))
    return [
        {**one, "advice": None if known is None else advice_object(known)}
        for one, known in zip(objects, advice, strict=True)
    ]


def _pools(report: Report, incident: Incident, alerts: list[Alert]) -> list[Pool]:
    """Return the pools of the document, fullest first."""
    known = {pool.key: pool for alert in alerts for pool in alert.pools}
    known |= {listed.pool.key: listed.pool for listed in report.listed}
    about = {alert.key.pool for alert in incident.alerts} | {_pool_of(incident.call)}
    chosen = nsmallest(MAX_POOLS, known.values(), key=lambda pool: (pool.key not in about, worst_first(pool)))
    return sorted(chosen, key=worst_first)


def _pool_of(call: ExhaustionEvent | None) -> PoolKey | None:
    if call is None:
        return None
    source, destination = address_text(call.source), address_text(call.destination)
    return PoolKey(OWN_NETNS, PoolKind.TCP_CONNECT, source, destination, call.destination_port)


def _cut(exhaustions: Exhaustions | None) -> Exhaustions | None:
    """Return the failed calls with the first destinations and the last calls of ephmon's own namespace only."""
    if exhaustions is None:
        return None
    own = [event for event in exhaustions.events if event.netns.label == OWN_NETNS]
    return replace(
        exhaustions,
        events=tuple(own[-MAX_EVENTS:]),
        destinations=dict(islice(exhaustions.destinations.items(), MAX_DESTINATIONS)),
    )


def _sysctls(sysctls: Sysctls) -> dict[str, Any]:
    """Return the sysctls by their names below net.ipv4; before Linux 6.14 the reuse delay is fixed."""
    low, high = sysctls.port_range
    return {
        "ip_local_port_range": f"{low} {high}",
        "ip_local_reserved_ports": format_ports(sysctls.reserved_ports),
        "tcp_tw_reuse": sysctls.tcp_tw_reuse,
        "tcp_tw_reuse_delay_ms": sysctls.tcp_tw_reuse_delay_ms,
        "tcp_timestamps": sysctls.tcp_timestamps,
        "ip_autobind_reuse": sysctls.ip_autobind_reuse,
        "tcp_max_tw_buckets": sysctls.tcp_max_tw_buckets,
    }
