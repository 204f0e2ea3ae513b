"""The dashboard of many hosts: which of them are nearest to running out of local ports, and toward what."""

from __future__ import annotations

from dashboards import Dashboard, Row
from panels import (
    ALERT_CELLS,
    BARS,
    FAILED,
    NONE_OR_SOME,
    RATIO_CELLS,
    THRESHOLDS,
    Query,
    of_ephmon,
    override,
    series,
    stat,
    table,
)

HOST_LINK = override(
    "byName",
    "instance",
    links=[
        {
            "targetBlank": False,
            "title": "Look at this host",
            "url": "/d/ephmon-host?${datasource:queryparam}&var-job=${__data.fields.job}&var-instance=${__value.raw}"
            "&${__url_time_range}",
        }
    ],
)


FULLEST_HOSTS = "topk(50, max by (job, instance) (ephmon_worst_pool_utilisation_ratio))"
BY_DESTINATION = "by (destination, destination_port)"
FULLEST_DESTINATIONS = (
    f"topk(50, topk {BY_DESTINATION} (1, max by (job, instance, destination, destination_port)"
    ' (ephmon_pool_utilisation_ratio{kind="tcp_connect"})))'
)


def of_hosts(expression: str) -> str:
    """Return a column of the table of hosts."""
    return f"{expression} and on (job, instance) {FULLEST_HOSTS}"


def of_destinations(expression: str) -> str:
    """Return a column of the table of destinations."""
    return f"{expression} and on (destination, destination_port) {FULLEST_DESTINATIONS}"


FLEET_NOW = Row(
    "Now",
    (
        stat("Hosts", "Hosts on which ephmon runs and can be scraped.", "none", Query("count(ephmon_poll_success)")),
        stat(
            "Not scraped",
            "Hosts whose ephmon Prometheus reached in the time that is shown, and cannot now: it is down, or a"
            " Prometheus on the same host has no port left to connect from.",
            "none",
            Query("sum((1 - up) and on (job, instance) last_over_time(ephmon_poll_success[$__range]))"),
            thresholds=NONE_OR_SOME,
        ),
        stat(
            "Hosts that alert",
            "Hosts with alerts that fire, by severity; a host may count for both.",
            "none",
            Query("sum by (severity) (ephmon_alerts_active > bool 0)", "{{severity}}"),
        ),
        stat(
            "Failed connect() calls",
            "Calls of all hosts that found no port, in the time that is shown. Empty where no host can count them.",
            "none",
            Query(f"sum(increase({FAILED}[$__range]))"),
            decimals=0,
            noValue="not counted",
            thresholds=NONE_OR_SOME,
        ),
        stat(
            "Hosts whose polls fail",
            "Their figures of pools are old or gone; alerts are held.",
            "none",
            Query("sum(1 - ephmon_poll_success)"),
            thresholds=NONE_OR_SOME,
        ),
        stat(
            "Refused configurations",
            "Hosts whose configuration could not be read again; the one before is in force.",
            "none",
            Query("sum(1 - ephmon_config_last_reload_successful)"),
            thresholds=NONE_OR_SOME,
        ),
    ),
)

HOSTS = Row(
    "Hosts",
    (
        series(
            "How full the fullest pools are",
            "The utilisation of each host's fullest pool, over all hosts: the fullest, one in twenty, and the one in"
            " the middle.",
            "percentunit",
            Query("max(ephmon_worst_pool_utilisation_ratio)", "fullest host"),
            Query(
                "quantile(0.95, max by (job, instance) (ephmon_worst_pool_utilisation_ratio))", "95 of 100 are below"
            ),
            Query("quantile(0.5, max by (job, instance) (ephmon_worst_pool_utilisation_ratio))", "half are below"),
            THRESHOLDS,
            max=1,
        ),
        series(
            "Fullest hosts",
            "The utilisation of the fullest pool of the ten hosts that were fullest in the time that is shown.",
            "percentunit",
            Query(
                "max by (job, instance) (ephmon_worst_pool_utilisation_ratio) and topk(10, max by (job, instance)"
                " (max_over_time(ephmon_worst_pool_utilisation_ratio[$__range] @ end())))",
                "{{instance}}",
            ),
            max=1,
        ),
        table(
            "Hosts by their fullest pool",
            "The 50 fullest hosts. A click on one leads to its own dashboard.",
            Query(FULLEST_HOSTS, "utilisation", "percentunit"),
            Query(of_hosts("min by (job, instance) (ephmon_pool_remaining_ports)"), "fewest remaining"),
            Query(of_hosts("min by (job, instance) (ephmon_pool_seconds_to_exhaustion)"), "exhausted in", "s"),
            Query(
                of_hosts("max by (job, instance) (ephmon_blocked_ports / ephmon_usable_ports)"),
                "blocked",
                "percentunit",
            ),
            Query(of_hosts(f"sum by (job, instance) (increase({FAILED}[$__range]))"), "failed calls"),
            Query(
                of_hosts(
                    'max by (job, instance) ((ephmon_alerts_active{severity="warning"} > bool 0)'
                    ' or 2 * (ephmon_alerts_active{severity="critical"} > bool 0))'
                ),
                "alert",
            ),
            labels=("job", "instance"),
            overrides=(RATIO_CELLS, ALERT_CELLS, HOST_LINK),
        ),
    ),
)

DESTINATIONS = Row(
    "Destinations",
    (
        table(
            "Destinations by their worst host",
            "The 50 destinations toward which some host is nearest to its end, which host that is, how many hosts"
            " list a pool toward it, how full these are on average, and how many connect() calls of all hosts failed.",
            Query(FULLEST_DESTINATIONS, "utilisation", "percentunit"),
            Query(
                of_destinations(
                    f"count {BY_DESTINATION} (max by (job, instance, destination, destination_port)"
                    ' (ephmon_pool_utilisation_ratio{kind="tcp_connect"}))'
                ),
                "hosts",
            ),
            Query(
                of_destinations(f'avg {BY_DESTINATION} (ephmon_pool_utilisation_ratio{{kind="tcp_connect"}})'),
                "on average",
                "percentunit",
            ),
            Query(
                of_destinations(
                    f"sum {BY_DESTINATION} (increase(ephmon_destination_connect_exhaustions_total[$__range]))"
                ),
                "failed calls",
            ),
            labels=("destination", "destination_port", "job", "instance"),
            overrides=(RATIO_CELLS, HOST_LINK),
        ),
    ),
)

FLEET_EXHAUSTIONS = Row(
    "Failed connect() calls",
    (
        series(
            "By host",
            "connect() calls per second that failed because no port was left, of the ten hosts with most.",
            "ops",
            Query(f"topk(10, sum by (job, instance) (rate({FAILED}[$__rate_interval])))", "{{instance}}"),
            custom=BARS,
        ),
        series(
            "By destination",
            "The same by destination, over all hosts.",
            "ops",
            Query(
                f"topk(10, sum {BY_DESTINATION}"
                " (rate(ephmon_destination_connect_exhaustions_total[$__rate_interval])))",
                "{{destination}} {{destination_port}}",
            ),
            custom=BARS,
        ),
    ),
)

FLEET_HEALTH = Row(
    "ephmon itself",
    (
        table(
            "Versions",
            "Hosts by the versions of ephmon, Python and the kernel.",
            Query("count by (version, python, kernel) (ephmon_build_info)", "hosts"),
            labels=("version", "python", "kernel"),
            width=8,
        ),
        table(
            "How sockets are read",
            "Hosts by the interface that each protocol is read through.",
            Query("count by (protocol, backend) (ephmon_backend_info)", "hosts"),
            labels=("protocol", "backend"),
            width=8,
        ),
        table(
            "What cannot be read",
            "Hosts on which a source of facts was asked for and cannot be used.",
            Query("sum by (collector) (1 - ephmon_collector_available)", "hosts without"),
            labels=("collector",),
            width=8,
        ),
        series(
            "Stretched intervals",
            "The interval between full polls of the ten hosts where it is longest.",
            "s",
            Query("topk(10, ephmon_poll_interval_seconds)", "{{instance}}"),
            width=8,
        ),
        series(
            "Processor",
            "Share of one processor that polls take, of the ten hosts where they take most.",
            "percentunit",
            Query("topk(10, rate(ephmon_poll_cpu_seconds_total[$__rate_interval]))", "{{instance}}"),
            width=8,
        ),
        series(
            "Memory",
            "Memory of the ten largest processes.",
            "bytes",
            Query(f"topk(10, {of_ephmon('process_resident_memory_bytes')})", "{{instance}}"),
            width=8,
        ),
    ),
)

FLEET = Dashboard(
    uid="ephmon-fleet",
    title="ephmon / Fleet",
    description="Which hosts are nearest to running out of local ports, and toward what.",
    rows=(FLEET_NOW, HOSTS, DESTINATIONS, FLEET_EXHAUSTIONS, FLEET_HEALTH),
)
