"""The dashboard of a host: how near it is to running out of local ports, toward what, and who holds them."""

from __future__ import annotations

from dashboards import Dashboard, Row
from health import HEALTH
from panels import (
    ALERT_CELLS,
    BARS,
    FAILED,
    FILLING,
    NONE_OR_SOME,
    RATIO_CELLS,
    SEVERITIES,
    STACKED,
    THRESHOLDS,
    YES_OR_NO,
    Query,
    series,
    stat,
    states,
    steps,
    table,
)

POOL_LABELS = ("instance", "netns", "kind", "source", "destination", "destination_port")
BY_POOL = f"by ({', '.join(POOL_LABELS)})"
ON_POOL = f"on (job, {', '.join(POOL_LABELS)})"
POOL_NAME = "{{instance}} {{kind}} {{source}} {{destination}} {{destination_port}}"

SOON = steps("red", orange=60, green=600)


def worst(number: int, metric: str = "ephmon_pool_utilisation_ratio") -> str:
    """Return what picks the pools with the highest values in the time that is shown, each for all of that time."""
    return f"topk({number}, max_over_time({metric}[$__range] @ end()))"


def of_the_fullest(expression: str) -> str:
    """Return an expression for the one pool that was fullest."""
    return f"{expression} and {ON_POOL} {worst(1)}"


def alerts(labels: str, metric: str) -> str:
    """Return 1 for a warning that fires and 2 for a critical alert."""
    return f'max by ({labels}) ({metric}{{severity="warning"}} or 2 * {metric}{{severity="critical"}})'


def of_pools(metric: str) -> str:
    """Return a metric of pools, for a column."""
    return f"max {BY_POOL} ({metric})"


NOW = Row(
    "Now",
    (
        stat(
            "Fullest pool",
            "The highest utilisation of any pool, listed or not; at 100 % its next connect() or bind() fails. The"
            " variable Destination does not narrow it.",
            "percentunit",
            Query("max(ephmon_worst_pool_utilisation_ratio)"),
            **FILLING,
        ),
        stat(
            "Fewest ports remaining",
            "How many more connections or sockets of the listed pool that has fewest left get a port.",
            "none",
            Query("min(ephmon_pool_remaining_ports)"),
        ),
        stat(
            "First pool exhausted in",
            "The earliest forecast of when a pool's next allocation fails if the load goes on. 0 means that it does"
            " now.",
            "s",
            Query("min(ephmon_pool_seconds_to_exhaustion)"),
            noValue="not in sight",
            thresholds=SOON,
        ),
        stat(
            "Alerts firing",
            "Alerts that ephmon's own thresholds raise, those of pools and of namespaces together, and how many more"
            " there are than may be shown one by one.",
            "none",
            Query("sum by (severity) (ephmon_alerts_active)", "{{severity}}"),
            Query("sum(ephmon_alerts_unlisted)", "not shown"),
        ),
        stat(
            "Failed connect() calls",
            "Calls from this host's own network namespace that found no port, in the time that is shown. Empty where"
            " they cannot be counted.",
            "none",
            Query(f"sum(increase({FAILED}[$__range]))"),
            decimals=0,
            noValue="not counted",
            thresholds=NONE_OR_SOME,
        ),
        stat(
            "Polls succeed",
            "Whether the latest poll read the kernel. If not, the figures of pools are old or gone; alerts are held.",
            "none",
            Query("min(ephmon_poll_success)"),
            mappings=list(YES_OR_NO),
        ),
    ),
)

POOLS = Row(
    "Pools",
    (
        series(
            "Fullest pools against their thresholds",
            "Utilisation of the ten pools that were fullest in the time that is shown. The dashed lines are the"
            " general thresholds; a pool with an override has others.",
            "percentunit",
            Query(f"ephmon_pool_utilisation_ratio and {worst(10)}", POOL_NAME),
            THRESHOLDS,
            max=1,
        ),
        states(
            "Alerts",
            "When alerts of pools, and of whole namespaces, fired: what ephmon holds, its `for` and `clear` included.",
            Query(alerts(f"job, {', '.join(POOL_LABELS)}", "ephmon_pool_alert_active"), POOL_NAME),
            Query(
                alerts("job, instance, netns, alertname", "ephmon_namespace_alert_active"), "{{instance}} {{alertname}}"
            ),
            values=SEVERITIES,
        ),
        table(
            "Listed pools",
            "Every listed pool as it is now. Do not add them up: one local port may serve many destinations.",
            Query(of_pools("ephmon_pool_utilisation_ratio"), "utilisation", "percentunit"),
            Query(of_pools("ephmon_pool_peak_utilisation_ratio"), "peak", "percentunit"),
            Query(of_pools("ephmon_pool_in_use_ports"), "in use"),
            Query(of_pools("ephmon_pool_time_wait_ports"), "TIME_WAIT"),
            Query(of_pools("ephmon_pool_reusable_ports"), "reusable"),
            Query(of_pools("ephmon_pool_remaining_ports"), "remaining"),
            Query(of_pools("ephmon_pool_opens_per_second"), "opened", "ops"),
            Query(of_pools("ephmon_pool_seconds_to_exhaustion"), "exhausted in", "s"),
            Query(of_pools("ephmon_pool_connect_search_ports"), "searched"),
            Query(of_pools("ephmon_pool_connect_search_cpu_ratio"), "search CPU", "percentunit"),
            Query(alerts(", ".join(POOL_LABELS), "ephmon_pool_alert_active"), "alert"),
            labels=POOL_LABELS,
            overrides=(RATIO_CELLS, ALERT_CELLS),
        ),
        series(
            "States of the fullest pool's ports",
            "Every usable port of the pool that was fullest, by what becomes of it in the next allocation: live"
            " connections and TIME_WAITs that are not handed out again are taken, blocked ports are taken for every"
            " destination.",
            "none",
            Query(of_the_fullest("ephmon_pool_in_use_ports - ephmon_pool_time_wait_ports"), "live"),
            Query(of_the_fullest("ephmon_pool_time_wait_ports - ephmon_pool_reusable_ports"), "TIME_WAIT, kept"),
            Query(of_the_fullest("ephmon_pool_reusable_ports"), "TIME_WAIT, reusable now"),
            Query(
                of_the_fullest(
                    '(ephmon_pool_in_use_ports{kind="tcp_connect"} >= bool 0)'
                    " * on (job, instance, netns) group_left () ephmon_blocked_ports"
                ),
                "blocked",
            ),
            Query(of_the_fullest("ephmon_pool_remaining_ports - ephmon_pool_reusable_ports"), "free"),
            custom=STACKED,
        ),
        series(
            "Share of TIME_WAIT",
            "The part of the ports in use on which TIME_WAIT is all there is, of the ten fullest pools. Near 100 %"
            " the connections do not last: reuse them.",
            "percentunit",
            Query(
                f"ephmon_pool_time_wait_ports / (ephmon_pool_in_use_ports > 0) and {worst(10)}",
                POOL_NAME,
            ),
            max=1,
        ),
        series(
            "Connections opened against the sustainable rate",
            "Connections opened per second, a lower bound, of the ten tcp_connect pools that open most. The dashed"
            " line is what one pool bears of connections that this host closes while TIME_WAITs are not reused: the"
            " ports that are not blocked / 60 s.",
            "ops",
            Query(
                'ephmon_pool_opens_per_second{kind="tcp_connect"} and '
                + worst(10, 'ephmon_pool_opens_per_second{kind="tcp_connect"}'),
                POOL_NAME,
            ),
            Query("(ephmon_usable_ports - ephmon_blocked_ports) / 60", "sustainable {{instance}} {{netns}}"),
        ),
        series(
            "Time to exhaustion",
            "Forecast of when the next allocation of a pool fails if the load goes on. No line: it is not heading"
            " there.",
            "s",
            Query("ephmon_pool_seconds_to_exhaustion", POOL_NAME),
            custom={"showPoints": "auto"},
        ),
    ),
)

OWNERS = Row(
    "Blocked ports and owners",
    (
        series(
            "Blocked ports against the thresholds",
            "The share of the usable ports that no connect() of the namespace can take, whatever the destination,"
            " because a bound or listening socket sits on them; and those of which the kernel does not say.",
            "percentunit",
            Query("ephmon_blocked_ports / ephmon_usable_ports", "{{instance}} {{netns}} blocked"),
            Query("ephmon_ambiguous_ports / ephmon_usable_ports", "{{instance}} {{netns}} not known"),
            THRESHOLDS,
            max=1,
        ),
        series(
            "Who blocks ports",
            "Blocked ports by unit, container, slice or user, while EphmonPortsBlocked is pending or fires.",
            "none",
            Query("ephmon_blocked_port_owner_ports", "{{instance}} {{netns}} {{owner}}"),
            Query("ephmon_blocked_port_other_owner_ports", "{{instance}} {{netns}} others"),
            Query("ephmon_blocked_port_unknown_owner_ports", "{{instance}} {{netns}} not known"),
        ),
        table(
            "Who holds the ports of pools that alert",
            "Ports by unit, container, slice or user, of pools with an alert that is pending or fires. Whose the"
            " TIME_WAITs are is estimated.",
            Query(
                f"max by ({', '.join(POOL_LABELS)}, owner) (ephmon_pool_owner_ports"
                ' or label_replace(ephmon_pool_other_owner_ports > 0, "owner", "(others)", "", "")'
                ' or label_replace(ephmon_pool_unknown_owner_ports > 0, "owner", "(not known)", "", ""))',
                "ports",
            ),
            labels=(*POOL_LABELS, "owner"),
            width=14,
        ),
        table(
            "Port ranges",
            "ip_local_port_range, what is reserved in it, and what is left to draw from.",
            *(
                Query(f"max by (instance, netns) (ephmon_{metric})", name)
                for metric, name in (
                    ("port_range_low", "lowest"),
                    ("port_range_high", "highest"),
                    ("reserved_ports", "reserved"),
                    ("usable_ports", "usable"),
                )
            ),
            labels=("instance", "netns"),
            width=10,
        ),
    ),
)

EXHAUSTIONS = Row(
    "Failed connect() calls",
    (
        series(
            "By namespace of the caller",
            "connect() calls per second that failed because no port was left: in ephmon's own network namespace, in"
            " others, and where the caller was gone. No line: they cannot be counted.",
            "ops",
            Query(
                "sum by (instance, netns) (rate(ephmon_connect_exhaustions_total[$__rate_interval]))",
                "{{instance}} {{netns}}",
            ),
            Query(
                "sum by (instance) (rate(ephmon_exhaustion_events_lost_total[$__rate_interval]))", "{{instance}} lost"
            ),
            custom=BARS,
        ),
        series(
            "By destination",
            "The same of the ten destinations with most failures. Only some destinations are counted one by one.",
            "ops",
            Query(
                "topk(10, sum by (instance, netns, destination, destination_port)"
                " (rate(ephmon_destination_connect_exhaustions_total[$__rate_interval])))",
                "{{instance}} {{netns}} {{destination}} {{destination_port}}",
            ),
            custom=BARS,
        ),
    ),
)

HOST = Dashboard(
    uid="ephmon-host",
    title="ephmon / Host",
    description="How near a host is to running out of local ports, toward what, and who holds them.",
    rows=(NOW, POOLS, OWNERS, EXHAUSTIONS, HEALTH),
    has_destination=True,
)
