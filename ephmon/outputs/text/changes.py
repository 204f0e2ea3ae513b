"""The log lines of a poll: one for each change between two reports, none while nothing changes."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ephmon.facts.namespaces import OWN_NETNS
from ephmon.log import Line
from ephmon.model.advice.for_alert import advice_on
from ephmon.model.alerting.conditions import is_covered
from ephmon.model.alerting.state_machine import Phase, transitions
from ephmon.model.alerting.thresholds import Severity
from ephmon.model.collectors import Collector
from ephmon.outputs.text.alerts import figures, sentence
from ephmon.outputs.text.owners import largest_owner_sentence, owners_behind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ephmon.model.alerting.state_machine import Transition
    from ephmon.model.collectors import Health
    from ephmon.model.report import NamespaceReport, Report


def poll_lines(previous: Report, report: Report) -> Iterator[Line]:
    """Yield a line for each change from the previous report to this one."""
    yield from _poll_changes(previous, report)
    if report.narrow_poll_error != previous.narrow_poll_error:
        yield _narrow_poll_line(report.narrow_poll_error)
    # Also after a failed poll: while full polls fail, a narrow poll may still change alerts.
    for transition in transitions(previous.alerts, report.alerts):
        yield from _alert_changes(transition, report)


def _narrow_poll_line(error: str | None) -> Line:
    if error is None:
        return Line(logging.INFO, "Urgent polls in between full polls succeed again.")
    return Line(logging.WARNING, f"Urgent polls in between full polls fail: {error}")


def _alert_changes(transition: Transition, report: Report) -> Iterator[Line]:
    before, alert = transition
    name, said = alert.key.name, figures(alert)
    if alert.phase is Phase.RESOLVED and alert.ended is not None:
        cause = "; its pool is now covered by EphmonPortsBlocked" if is_covered(alert, report.alerts) else ""
        lasted = round(alert.ended.monotonic - alert.since.monotonic, 1)
        yield Line(logging.INFO, f"{name} is resolved{cause}.", {**said, "lasted_seconds": lasted}, name)
    elif alert.phase is Phase.FIRING and alert.is_announced:
        level = logging.ERROR if alert.severity is Severity.CRITICAL else logging.WARNING
        advice = advice_on(alert, report)
        owners = owners_behind(alert, report)
        parts = [sentence(alert), largest_owner_sentence(owners) if owners else "", advice.in_short if advice else ""]
        yield Line(level, f"{name} fires as {alert.severity}: {' '.join(filter(None, parts))}", said, name)
    elif before is not None and before.is_announced and alert.phase is Phase.FIRING:
        yield Line(
            logging.INFO, f"{name} is still active, but alerts.max_active keeps it from being shown.", said, name
        )
    elif alert.phase is Phase.PENDING:
        yield Line(logging.DEBUG, f"{name} is pending: {sentence(alert)}", said, name)


def _poll_changes(previous: Report, report: Report) -> Iterator[Line]:
    if not report.success:
        if previous.success or previous.error != report.error:
            yield Line(logging.ERROR, f"The poll failed: {report.error}")
        return
    if previous.error is not None:
        yield Line(logging.INFO, "Polls succeed again.", {"failed": sum(report.totals.failures.values())})
    yield from _bpf_changes(previous.health(Collector.BPF), report.health(Collector.BPF))
    yield from _probe_changes(previous.health(Collector.PROBE), report.health(Collector.PROBE))
    yield from _owner_changes(previous.health(Collector.OWNERS), report.health(Collector.OWNERS))
    yield from _process_changes(previous.health(Collector.PROCESSES), report.health(Collector.PROCESSES))
    yield from _pace_changes(previous, report)
    # Containers come and go by the thousand, so that they are in metrics and not in the log.
    own = report.namespace(OWN_NETNS)
    if own is not None:
        yield from _backend_changes(previous.namespace(OWN_NETNS), own)
        yield from _namespace_changes(previous.namespace(OWN_NETNS), own)


def _backend_changes(previous: NamespaceReport | None, now: NamespaceReport) -> Iterator[Line]:
    for protocol, backend in now.backends.items():
        before = previous.backends.get(protocol) if previous else None
        reason, known = now.fallbacks.get(protocol), previous.fallbacks.get(protocol) if previous else None
        if before != backend or (reason is not None and reason != known):
            level = logging.INFO if before is None and reason is None else logging.WARNING
            because = "." if reason is None else f": {reason}"
            fields = {"netns": now.netns, "before": before}
            yield Line(level, f"Sockets of {protocol} are read by {backend}{because}", fields)
    for protocol, reason in now.missing.items():
        if previous is None or previous.missing.get(protocol) != reason:
            fields = {"netns": now.netns, "protocol": protocol}
            yield Line(logging.ERROR, f"Sockets of {protocol} cannot be read: {reason}", fields)


def _bpf_changes(previous: Health, now: Health) -> Iterator[Line]:
    if now.reason is not None and now.reason != previous.reason:
        # Nobody has to have it: most hosts are read well without.
        level = logging.WARNING if previous.available else logging.INFO
        yield Line(level, f"TCP is not read by BPF: {now.reason}")


def _probe_changes(previous: Health, now: Health) -> Iterator[Line]:
    if now.reason is not None and now.reason != previous.reason:
        probed = "not all probed" if now.available else "not probed"
        yield Line(logging.WARNING, f"Ambiguous ports are {probed}: {now.reason}")


def exhaustion_lines(previous: Report, report: Report, *, required: bool) -> Iterator[Line]:
    """Yield the changes of the collector of failed connect() calls, which is read between polls too.

    A warning says that it is not available only if it is `required`.
    """
    before, now = previous.health(Collector.EXHAUSTIONS), report.health(Collector.EXHAUSTIONS)
    if now.reason is not None and now.reason != before.reason:
        level = logging.WARNING if required or before.available else logging.INFO
        yield Line(level, f"Failed connect() calls are not counted: {now.reason}")
    elif now.available and not before.available:
        yield Line(logging.INFO, "Failed connect() calls are counted.")


def _owner_changes(previous: Health, now: Health) -> Iterator[Line]:
    """Yield why owners are not known, or not all; a reason that differs only in its figures is not repeated."""
    if now.reason is None:
        return
    if not now.available and now.reason != previous.reason:
        yield Line(logging.WARNING, f"The owners of ports are not known: {now.reason}")
    elif now.available and (previous.reason is None or not previous.available):
        yield Line(logging.INFO, f"Not all owners of ports are known: {now.reason}")


def _process_changes(previous: Health, now: Health) -> Iterator[Line]:
    if now.reason is not None and previous.reason is None:
        yield Line(logging.INFO, f"Not all processes that hold ports can be named: {now.reason}")


def _pace_changes(previous: Report, report: Report) -> Iterator[Line]:
    key, before = report.pace.limited_by, previous.pace.limited_by
    # Only the first key is named: a pool that wavers around its threshold would change it at every poll.
    if key is not None and before is None:
        yield Line(
            logging.WARNING,
            f"Polls come less often than poll.interval says, because they would use more CPU than {key} allows. "
            f"Raise {key} to poll more often.",
            {
                "interval_seconds": round(report.pace.full, 1),
                "cpu_seconds": round(report.full_poll_cpu_seconds or 0.0, 3),
            },
        )
    if key is None and before is not None:
        yield Line(logging.INFO, "Polls come as often as poll.interval says again.")


def _namespace_changes(known: NamespaceReport | None, namespace: NamespaceReport) -> Iterator[Line]:
    port_range, reserved = namespace.sysctls.port_range, namespace.reserved_ports
    if known is None or (known.sysctls.port_range, known.reserved_ports) != (port_range, reserved):
        yield Line(
            logging.INFO,
            f"{namespace.usable_ports} ports are usable.",
            {
                "netns": namespace.netns,
                "port_range": f"{port_range.low}-{port_range.high}",
                "reserved": reserved,
            },
        )
    if namespace.blind_to and not (known and known.blind_to == namespace.blind_to):
        yield Line(
            logging.WARNING,
            "This kernel or backend does not show every socket, so fewer ports may remain than reported.",
            {"netns": namespace.netns, "blind_to": ",".join(namespace.blind_to)},
        )
    if namespace.overfull_pools and not (known and known.overfull_pools):
        yield Line(
            logging.WARNING,
            "Sockets changed while they were read, so pools seem to use more ports than exist; their remaining ports"
            " are reported as 0.",
            {"netns": namespace.netns, "pools": namespace.overfull_pools},
        )
