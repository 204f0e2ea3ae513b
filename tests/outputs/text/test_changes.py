"""What the log says when one report follows another: each change once, and nothing while nothing changes."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from ephmon.facts.sockets import Backend, Protocol
from ephmon.model.advice.causes import advise, advise_blocked
from ephmon.model.alerting.blocked import BlockedPorts
from ephmon.model.alerting.state_machine import AlertName, Phase
from ephmon.model.alerting.thresholds import Severity
from ephmon.model.collectors import Health
from ephmon.model.pace import BudgetKey, Pace
from ephmon.outputs.text import changes
from tests.builders import make_alert, make_first_failure, make_namespace_report, make_owners, make_pool, make_report

if TYPE_CHECKING:
    from ephmon.model.pools.kinds import Pool

GOOD = make_report()
NOTHING_YET = make_report(success=False, taken_at=None, namespaces=(), listed=())
FAILED = make_report(success=False, error="The table is cut.")
PROCFS = {Protocol.TCP: Backend.PROCFS, Protocol.UDP: Backend.INET_DIAG}
FALLEN_BACK = make_report(namespaces=[make_namespace_report(backends=PROCFS, fallbacks={Protocol.TCP: "No handler."})])
BLIND = make_namespace_report(blind_to=("bound_unconnected", "v6only"))
BLIND_TO = "netns=own blind_to=bound_unconnected,v6only"
TORN = (
    "Sockets changed while they were read, so pools seem to use more ports than exist; "
    "their remaining ports are reported as 0."
)
LEVELS = {logging.DEBUG: "debug", logging.INFO: "info", logging.WARNING: "warning", logging.ERROR: "error"}
NEAR = make_pool(usable=28_232, blocked=3, in_use=20_000)
STRETCHED = replace(GOOD, pace=Pace(full=8.0, limited_by=BudgetKey.URGENT), full_poll_cpu_seconds=1.0)
LIFTED = make_pool(usable=28_232, blocked=20_001, in_use=3_001)
IS_NEAR = "tcp_connect from 10.0.0.1 to 10.0.0.9:443 is at 70.9%: 8229 of 28232 ports are left."
SYSCTLS = make_namespace_report().sysctls
ADVICE = advise(NEAR, SYSCTLS, listening_ports=None).in_short
ADVICE_ON_HAPROXY = advise(NEAR, SYSCTLS, listening_ports=None, program="haproxy").in_short
ADVICE_ON_BLOCKED = advise_blocked(
    BlockedPorts(netns="own", blocked=3, usable=28_232), SYSCTLS, listening_ports=None
).in_short
BLOCKED = make_alert(name=AlertName.PORTS_BLOCKED, value=0.75)


def of_alert(severity: str, pool: Pool = NEAR) -> str:
    """Return the figures of an alert of a pool, as they follow the sentence."""
    return (
        f"alert=EphmonPoolNearExhaustion severity={severity} netns=own kind=tcp_connect source=10.0.0.1 "
        f"destination=10.0.0.9:443 value={pool.utilisation:.6f} usable=28232 blocked={pool.blocked} "
        f"in_use={pool.in_use} time_wait=30 reusable=0 remaining={pool.remaining} since=2026-01-02T03:04:05.006Z"
    )


CHANGES: dict[str, tuple[Any, Any, list[tuple[str, str]]]] = {
    "the first good poll": (
        NOTHING_YET,
        GOOD,
        [
            ("info", "Sockets of tcp are read by inet_diag. netns=own before=None"),
            ("info", "Sockets of udp are read by inet_diag. netns=own before=None"),
            ("info", "28232 ports are usable. netns=own port_range=32768-60999 reserved=0"),
        ],
    ),
    "a first poll that fails": (
        NOTHING_YET,
        make_first_failure("There is no procfs."),
        [("error", "The poll failed: There is no procfs.")],
    ),
    "a poll that fails": (GOOD, FAILED, [("error", "The poll failed: The table is cut.")]),
    "another reason": (
        FAILED,
        make_report(success=False, error="The range is gone."),
        [("error", "The poll failed: The range is gone.")],
    ),
    "a good poll after it": (FAILED, GOOD, [("info", "Polls succeed again. failed=0")]),
    "another backend": (
        GOOD,
        make_report(backends=PROCFS),
        [("warning", "Sockets of tcp are read by procfs. netns=own before=inet_diag")],
    ),
    "another backend, with the reason": (
        GOOD,
        FALLEN_BACK,
        [("warning", "Sockets of tcp are read by procfs: No handler. netns=own before=inet_diag")],
    ),
    "another reason for a backend": (
        FALLEN_BACK,
        make_report(namespaces=[make_namespace_report(backends=PROCFS, fallbacks={Protocol.TCP: "No socket."})]),
        [("warning", "Sockets of tcp are read by procfs: No socket. netns=own before=procfs")],
    ),
    "a first poll that falls back": (
        replace(NOTHING_YET, namespaces=(make_namespace_report(backends={}),)),
        FALLEN_BACK,
        [
            ("warning", "Sockets of tcp are read by procfs: No handler. netns=own before=None"),
            ("info", "Sockets of udp are read by inet_diag. netns=own before=None"),
        ],
    ),
    "the backend that is wanted again": (
        FALLEN_BACK,
        GOOD,
        [("warning", "Sockets of tcp are read by inet_diag. netns=own before=procfs")],
    ),
    "a probe that is refused": (
        GOOD,
        GOOD.with_health(probe=Health(available=False, reason="No capability.")),
        [("warning", "Ambiguous ports are not probed: No capability.")],
    ),
    "a probe that was cut": (
        GOOD,
        GOOD.with_health(probe=Health(available=True, reason="It was cut.")),
        [("warning", "Ambiguous ports are not all probed: It was cut.")],
    ),
    "a protocol that is missing": (
        GOOD,
        make_report(backends={Protocol.TCP: Backend.INET_DIAG}, missing={Protocol.UDP: "No handler."}),
        [("error", "Sockets of udp cannot be read: No handler. netns=own protocol=udp")],
    ),
    "a protocol that is back": (
        make_report(backends={Protocol.TCP: Backend.INET_DIAG}, missing={Protocol.UDP: "No handler."}),
        GOOD,
        [("info", "Sockets of udp are read by inet_diag. netns=own before=None")],
    ),
    "narrow polls that fail": (
        GOOD,
        replace(GOOD, narrow_poll_error="It is refused."),
        [("warning", "Urgent polls in between full polls fail: It is refused.")],
    ),
    "narrow polls that fail for another reason": (
        replace(GOOD, narrow_poll_error="It is refused."),
        replace(GOOD, narrow_poll_error="It was cut."),
        [("warning", "Urgent polls in between full polls fail: It was cut.")],
    ),
    "narrow polls that succeed again": (
        replace(GOOD, narrow_poll_error="It is refused."),
        GOOD,
        [("info", "Urgent polls in between full polls succeed again.")],
    ),
    "another range": (
        GOOD,
        make_report(namespaces=[make_namespace_report(port_range=(1024, 60999), usable_ports=59976)]),
        [("info", "59976 ports are usable. netns=own port_range=1024-60999 reserved=0")],
    ),
    "more reserved ports": (
        GOOD,
        make_report(namespaces=[make_namespace_report(reserved_ports=2, usable_ports=28230)]),
        [("info", "28230 ports are usable. netns=own port_range=32768-60999 reserved=2")],
    ),
    "what cannot be seen": (
        GOOD,
        make_report(namespaces=[BLIND]),
        [
            (
                "warning",
                "This kernel or backend does not show every socket, so fewer ports may remain than reported. "
                + BLIND_TO,
            ),
        ],
    ),
    "all is seen again": (make_report(namespaces=[BLIND]), GOOD, []),
    "pools that moved": (
        GOOD,
        make_report(namespaces=[replace(make_namespace_report(), overfull_pools=2)]),
        [
            ("warning", TORN + " netns=own pools=2"),
        ],
    ),
    "an alert that is pending": (
        GOOD,
        make_report(alerts=[make_alert(NEAR, phase=Phase.PENDING)]),
        [("debug", f"EphmonPoolNearExhaustion is pending: {IS_NEAR} {of_alert('warning')}")],
    ),
    "a warning": (
        make_report(alerts=[make_alert(NEAR, phase=Phase.PENDING)]),
        make_report(alerts=[make_alert(NEAR)]),
        [("warning", f"EphmonPoolNearExhaustion fires as warning: {IS_NEAR} {ADVICE} {of_alert('warning')}")],
    ),
    "a critical alert": (
        make_report(alerts=[make_alert(NEAR)]),
        make_report(alerts=[make_alert(NEAR, severity=Severity.CRITICAL)]),
        [("error", f"EphmonPoolNearExhaustion fires as critical: {IS_NEAR} {ADVICE} {of_alert('critical')}")],
    ),
    "an alert whose owners are known": (
        GOOD,
        make_report(
            alerts=[make_alert(NEAR)], owners={NEAR.key: make_owners(("haproxy.service", 812), ("uid 33", 12))}
        ),
        [
            (
                "warning",
                f"EphmonPoolNearExhaustion fires as warning: {IS_NEAR} haproxy.service holds 812 ports. "
                f"{ADVICE_ON_HAPROXY} " + of_alert("warning"),
            )
        ],
    ),
    "owners that cannot be read": (
        GOOD,
        GOOD.with_health(owners=Health(available=False, reason="It was refused.")),
        [("warning", "The owners of ports are not known: It was refused.")],
    ),
    "owners that cannot be read for another reason": (
        GOOD.with_health(owners=Health(available=False, reason="It was refused.")),
        GOOD.with_health(owners=Health(available=False, reason="It was cut.")),
        [("warning", "The owners of ports are not known: It was cut.")],
    ),
    "owners that cannot be read again": (
        GOOD.with_health(owners=Health(available=False, reason="It was refused.")),
        GOOD.with_health(owners=Health(available=False, reason="It was refused.")),
        [],
    ),
    "owners that lack something": (
        GOOD,
        GOOD.with_health(owners=Health(available=True, reason="20,000 cgroups were seen.")),
        [("info", "Not all owners of ports are known: 20,000 cgroups were seen.")],
    ),
    "owners that lack it with other figures": (
        GOOD.with_health(owners=Health(available=True, reason="20,000 cgroups were seen.")),
        GOOD.with_health(owners=Health(available=True, reason="19,000 cgroups were seen.")),
        [],
    ),
    "processes that may not be looked at": (
        GOOD,
        GOOD.with_health(processes=Health(available=False, reason="1 of 1 may not be read.")),
        [("info", "Not all processes that hold ports can be named: 1 of 1 may not be read.")],
    ),
    "more processes that may not": (
        GOOD.with_health(processes=Health(available=False, reason="1 of 1 may not be read.")),
        GOOD.with_health(processes=Health(available=False, reason="2 of 2 may not be read.")),
        [],
    ),
    "polls that become too expensive": (
        GOOD,
        STRETCHED,
        [
            (
                "warning",
                (
                    "Polls come less often than poll.interval says, because they would use more CPU than "
                    "poll.urgent_cpu_budget allows. Raise poll.urgent_cpu_budget to poll more often. "
                    "interval_seconds=8.0 cpu_seconds=1.0"
                ),
            )
        ],
    ),
    "polls that another budget limits now": (
        STRETCHED,
        replace(STRETCHED, pace=Pace(full=50.0, limited_by=BudgetKey.USUAL)),
        [],
    ),
    "polls that become cheap enough": (
        STRETCHED,
        GOOD,
        [("info", "Polls come as often as poll.interval says again.")],
    ),
    "an alert that ends": (
        make_report(alerts=[make_alert(NEAR)]),
        make_report(alerts=[make_alert(NEAR, phase=Phase.RESOLVED, ended=62.5)]),
        [("info", f"EphmonPoolNearExhaustion is resolved. {of_alert('warning')} lasted_seconds=62.5")],
    ),
    "an alert of a pool that blocked ports cover now": (
        make_report(alerts=[BLOCKED, make_alert(LIFTED)]),
        make_report(alerts=[BLOCKED, make_alert(LIFTED, phase=Phase.RESOLVED, ended=5.0)]),
        [
            (
                "info",
                (
                    "EphmonPoolNearExhaustion is resolved; its pool is now covered by EphmonPortsBlocked. "
                    f"{of_alert('warning', LIFTED)} lasted_seconds=5.0"
                ),
            )
        ],
    ),
    "an alert that loses its place": (
        make_report(alerts=[make_alert(NEAR)]),
        make_report(alerts=[make_alert(NEAR, is_announced=False)]),
        [
            (
                "info",
                "EphmonPoolNearExhaustion is still active, but alerts.max_active keeps it from being shown. "
                + of_alert("warning"),
            )
        ],
    ),
    "an alert that never had one": (GOOD, make_report(alerts=[make_alert(NEAR, is_announced=False)]), []),
    "an alert of the namespace while polls fail": (
        make_report(success=False, error="x"),
        make_report(success=False, error="x", alerts=[BLOCKED]),
        [
            (
                "warning",
                (
                    "EphmonPortsBlocked fires as warning: 75.0% of the usable ports are blocked for every connect(). "
                    f"{ADVICE_ON_BLOCKED} "
                    "alert=EphmonPortsBlocked severity=warning netns=own value=0.75 since=2026-01-02T03:04:05.006Z"
                ),
            )
        ],
    ),
    "an alert that is held": (
        make_report(alerts=[make_alert(NEAR)]),
        make_report(success=False, error="x", alerts=[make_alert(NEAR)]),
        [("error", "The poll failed: x")],
    ),
    "other figures": (GOOD, make_report(listed=[], duration_seconds=1.0, taken_at=1.0), []),
}


@pytest.mark.parametrize(("previous", "report", "said"), CHANGES.values(), ids=CHANGES)
def test_each_change_is_said_once(previous: Any, report: Any, said: list[tuple[str, str]]) -> None:
    lines = [
        (LEVELS[line.level], " ".join([line.message, *(f"{key}={value}" for key, value in line.fields.items())]))
        for line in changes.poll_lines(previous, report)
    ]

    assert lines == said
    assert list(changes.poll_lines(report, report)) == []
