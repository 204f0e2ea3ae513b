"""The advice that goes with an alert, from the report that the alert is part of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ephmon.model.advice.causes import Advice, advise, advise_blocked
from ephmon.model.advice.inside import inside
from ephmon.model.advice.proxies import known_program
from ephmon.model.alerting.blocked import BlockedPorts
from ephmon.model.alerting.state_machine import AlertName

if TYPE_CHECKING:
    from ephmon.model.alerting.state_machine import Alert
    from ephmon.model.owners.shares import Owners
    from ephmon.model.report import NamespaceReport, Report


def advice_on(alert: Alert, report: Report) -> Advice | None:
    """Return what to do about an alert.

    None for the summary alert, and for a namespace that was never read. If a known proxy holds most of the ports, or
    made the call that failed, the advice is about that proxy.
    """
    namespace = report.namespace(alert.key.netns)
    if namespace is None:
        return None
    advice = _advice_on(alert, report, namespace)
    return None if advice is None else inside(advice, namespace)


def _advice_on(alert: Alert, report: Report, namespace: NamespaceReport) -> Advice | None:
    if alert.key.name is AlertName.PORTS_BLOCKED:
        return advise_blocked(
            namespace.blocked or BlockedPorts(netns=namespace.netns, blocked=0, usable=namespace.usable_ports),
            namespace.sysctls,
            listening_ports=namespace.kept_ports,
            program=known_program([largest_owner(report.blocked_owners.get(namespace.netns))]),
        )
    pool = alert.pools[0] if alert.pools and alert.key.pool else None
    if pool is None:
        return None
    caller = None if alert.call is None else alert.call.command
    program = known_program([largest_owner(report.owners.get(pool.key)), caller])
    is_failure = alert.key.name is AlertName.CONNECT_EXHAUSTIONS
    return advise(
        pool,
        namespace.sysctls,
        listening_ports=namespace.kept_ports,
        program=program,
        is_slow=alert.key.name is AlertName.CONNECT_SLOW,
        failed_with_room=is_failure and report.thresholds.severity_at(pool.key, pool.utilisation) is None,
    )


def largest_owner(owners: Owners | None) -> str | None:
    """Return the name of the owner that holds most of some ports, None if no owner is known."""
    return owners.shares[0].owner.name if owners and owners.shares else None
