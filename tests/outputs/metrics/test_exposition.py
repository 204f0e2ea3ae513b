"""The exposition: what is in it, what is left out of it, and that the programs which read it accept it."""

from __future__ import annotations

import platform
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families as parse_text

from ephmon import __version__
from ephmon.errors import Reason
from ephmon.facts.failed_calls import Destination
from ephmon.facts.sockets import Backend, Protocol
from ephmon.model.alerting.state_machine import AlertName, Phase
from ephmon.model.alerting.thresholds import Severity, Threshold, Thresholds
from ephmon.model.collectors import Health
from ephmon.model.failures.counters import Count, Exhaustions
from ephmon.model.owners.names import Owner, OwnerKind
from ephmon.model.owners.shares import Owners, OwnerShare
from ephmon.model.pools.kinds import PoolKind
from ephmon.model.report import ListedPool, PollTotals, ReloadStatus
from ephmon.model.status import (
    DeliveryFailure,
    DeliveryStatus,
    HttpStatus,
    IncidentFailure,
    IncidentStatus,
    ReceiverKind,
    RequestRefusal,
)
from ephmon.outputs.metrics.catalogue import METRICS
from ephmon.outputs.metrics.exposition import process_registry, render
from ephmon.outputs.metrics.metric import DO_NOT_SUM
from tests.builders import (
    make_alert,
    make_bind_pool,
    make_first_failure,
    make_forecast,
    make_namespace_report,
    make_owners,
    make_pool,
    make_report,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client import Metric

    from ephmon.model.forecast.forecast import Forecast
    from ephmon.model.report import Report

GOLDEN = Path(__file__).parents[1] / "golden"
DOCS = Path(__file__).parents[3] / "docs" / "metrics.md"

FACTS = {metric.name for metric in METRICS if metric.expires}
"""The metrics about the host."""
SELF = {metric.name for metric in METRICS if not metric.expires}
"""The metrics about ephmon itself."""

# The library leaves this function untyped.
parse_openmetrics: Callable[[str], Iterable[Metric]] = openmetrics_parser.text_string_to_metric_families


DELIVERY = DeliveryStatus(
    attempts={ReceiverKind.ALERTMANAGER: 125, ReceiverKind.WEBHOOK: 5},
    failures={
        ReceiverKind.ALERTMANAGER: {DeliveryFailure.CONNECTION: 4},
        ReceiverKind.WEBHOOK: {DeliveryFailure.TLS: 0},
    },
    pending={ReceiverKind.ALERTMANAGER: 0, ReceiverKind.WEBHOOK: 2},
    succeeded_at={ReceiverKind.ALERTMANAGER: 1_700_000_000.0},
    dropped={ReceiverKind.ALERTMANAGER: 0, ReceiverKind.WEBHOOK: 1},
)


EXHAUSTIONS = Exhaustions(
    totals={"own": 41, "other": 7, "unknown": 0},
    destinations={
        Destination("own", bytes([10, 0, 0, 9]), 443): Count(41, 0.0),
        Destination("own", bytes([10, 0, 0, 8]), 443): Count(0, 0.0),
    },
    lost=3,
)


def everything() -> Report:
    """A report in which every metric has a sample."""
    report = make_report(
        listed=[
            ListedPool(
                pool=make_pool(in_use=20000, time_wait=1000, reusable=400, search_ports=14118.5),
                peak_utilisation=0.75,
                forecast=make_forecast(opens_per_second=412.5, seconds_to_exhaustion=19.5),
                search_share=0.28125,
            ),
            make_pool(source="2001:db8::1", destination="2001:db8::9", destination_port=5432),
            make_bind_pool(),
        ],
        namespaces=[
            make_namespace_report(
                pools={PoolKind.TCP_CONNECT: 312, PoolKind.TCP_BIND: 1},
                listed={PoolKind.TCP_CONNECT: 2, PoolKind.TCP_BIND: 1},
                worst={PoolKind.TCP_CONNECT: 0.5, PoolKind.TCP_BIND: 0.25},
                backends={Protocol.TCP: Backend.INET_DIAG},
                missing={Protocol.UDP: "the kernel has no udp_diag and /proc/net/udp cannot be read"},
            )
        ],
        totals=PollTotals(
            polls={"full": 720, "narrow": 12},
            failures={**PollTotals().failures, Reason.DEADLINE: 2},
            cpu_seconds=8.5,
        ),
        alerts=[
            make_alert(name=AlertName.PORTS_BLOCKED, value=0.75),
            make_alert(make_pool(in_use=26000), severity=Severity.CRITICAL),
        ],
    )
    return replace(
        report,
        exhaustions=EXHAUSTIONS,
        owners={make_pool().key: make_owners(("haproxy.service", 25500, 900), ("uid 33", 300), unknown_ports=200)},
        blocked_owners={"own": make_owners(("nginx.service", 3), other_owners=2, other_ports=4)},
        delivery=DELIVERY,
        incidents=INCIDENTS,
        http=HTTP,
        log_lines_lost=LOG_LINES_LOST,
        thread_restarts=RESTARTS,
    ).with_health(exhaustions=Health(available=True), owners=Health(available=True), processes=Health(available=False))


LOG_LINES_LOST = {"stream": 3, "rate": 0}
HTTP = HttpStatus(refused={**HttpStatus().refused, RequestRefusal.HOST: 7}, certificate_expires_at=1.8e9)
RESTARTS = {"http": 1, "delivery": 0}
INCIDENTS = IncidentStatus(written=2, failures={IncidentFailure.NO_SPACE: 1, IncidentFailure.READ_ONLY: 0})


class Exposition(NamedTuple):
    """The bodies of one report in one format."""

    full: bytes
    expired: bytes


def exposed(
    report: Report,
    *,
    openmetrics: bool = False,
    process: bool = False,
) -> Exposition:
    registry = process_registry() if process else None
    return Exposition(
        *(
            render(
                report,
                kernel_release="6.1.0-13-amd64",
                process_registry=registry,
                openmetrics=openmetrics,
                expired=expired,
            )
            for expired in (False, True)
        )
    )


def samples(body: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample of a text body, by name and sorted labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse_text(body.decode())
        for sample in family.samples
    }


def names(body: bytes) -> set[str]:
    return {name for name, _ in samples(body)}


def without_versions(body: bytes) -> bytes:
    text = body.decode().replace(f'version="{__version__}"', 'version="X.Y.Z"')
    return text.replace(f'python="{platform.python_version()}"', 'python="3.X.Y"').encode()


def test_every_sample_has_the_labels_and_the_value_of_the_golden_file(golden: Callable[[Path, str], None]) -> None:
    """Parsed, so that only what Prometheus reads counts: neither the wording of HELP nor the order of lines."""
    found = samples(without_versions(exposed(everything()).full))
    lines = (f"{name}{dict(labels)} {value!r}\n" for (name, labels), value in sorted(found.items()))

    golden(GOLDEN / "samples.txt", "".join(lines))


def test_every_metric_has_a_name_of_its_own() -> None:
    assert len(FACTS | SELF) == len(METRICS)


def test_every_metric_of_the_catalogue_is_exposed_with_its_type_and_help() -> None:
    """Both formats agree with the catalogue; OpenMetrics names a counter's family without `_total`."""
    for openmetrics, parse in ((False, parse_text), (True, parse_openmetrics)):
        families = {
            family.name: (family.type, family.documentation, set(family.samples[0].labels))
            for family in parse(exposed(everything(), openmetrics=openmetrics).full.decode())
        }
        assert families == {
            metric.name.removesuffix("_total"): (metric.type, metric.help, set(metric.labels)) for metric in METRICS
        }


def test_openmetrics_names_only_base_units() -> None:
    body = exposed(everything(), openmetrics=True).full.decode()

    assert body.endswith("# EOF\n")
    assert set(re.findall(r"^# UNIT \S+ (\S+)$", body, re.MULTILINE)) == {"seconds", "ratio"}
    assert "# UNIT ephmon_poll_cpu_seconds seconds\n" in body


def test_openmetrics_holds_the_same_samples_as_text() -> None:
    report = everything()
    openmetrics = parse_openmetrics(exposed(report, openmetrics=True).full.decode())

    assert samples(exposed(report).full) == {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in openmetrics
        for sample in family.samples
    }


@pytest.mark.parametrize("body", ["full", "expired"])
def test_promtool_finds_nothing_to_complain_about(body: str) -> None:
    text = getattr(exposed(everything(), process=True), body)
    check = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False, timeout=30)

    assert (check.stdout + check.stderr).decode() == ""
    assert check.returncode == 0


def test_process_metrics_are_in_both_bodies_if_their_registry_is_given() -> None:
    exposition = exposed(make_report(), process=True)

    for body in (exposition.full, exposition.expired):
        assert {"process_cpu_seconds_total", "process_open_fds", "python_info", "python_gc_collections_total"} <= names(
            body
        )
    assert not any(name.startswith(("process_", "python_")) for name in names(exposed(make_report()).full))


def test_every_pool_metric_says_that_it_must_not_be_summed() -> None:
    pool_metrics = [metric for metric in METRICS if metric.name.startswith("ephmon_pool_")]

    assert len(pool_metrics) == 14
    assert all(metric.help.endswith(DO_NOT_SUM) for metric in pool_metrics)
    assert DO_NOT_SUM == "Do not sum over kind or destination: one port may be in many pools."


def test_pool_samples_carry_the_quantities_of_the_pool() -> None:
    pool = make_pool(usable=100, blocked=10, in_use=60, time_wait=20, reusable=5)
    body = exposed(make_report(listed=[ListedPool(pool=pool, peak_utilisation=0.875)])).full
    labels = (
        ("destination", "10.0.0.9"),
        ("destination_port", "443"),
        ("kind", "tcp_connect"),
        ("netns", "own"),
        ("source", "10.0.0.1"),
    )

    assert {name: value for (name, found), value in samples(body).items() if found == labels} == {
        "ephmon_pool_in_use_ports": 60,
        "ephmon_pool_time_wait_ports": 20,
        "ephmon_pool_reusable_ports": 5,
        "ephmon_pool_remaining_ports": 35,
        "ephmon_pool_utilisation_ratio": 0.65,
        "ephmon_pool_peak_utilisation_ratio": 0.875,
    }


@pytest.mark.parametrize(
    ("forecast", "foretold"),
    [
        (None, {}),
        (make_forecast(opens_per_second=4), {"opens_per_second": 4}),
        (
            make_forecast(opens_per_second=0, seconds_to_exhaustion=0),
            {"opens_per_second": 0, "seconds_to_exhaustion": 0},
        ),
    ],
)
def test_what_is_not_forecast_is_absent(forecast: Forecast | None, foretold: dict[str, float]) -> None:
    body = exposed(make_report(listed=[ListedPool(pool=make_pool(), peak_utilisation=0.5, forecast=forecast)])).full
    found = {name.removeprefix("ephmon_pool_"): value for (name, _), value in samples(body).items()}

    names_of_both = ("opens_per_second", "seconds_to_exhaustion")
    assert {name: found[name] for name in names_of_both if name in found} == foretold


def test_failed_calls_are_absent_while_nobody_counts_them() -> None:
    """What was counted before comes back when counting does: a counter must not start anew."""
    counting = exposed(everything()).full
    not_counting = exposed(everything().with_health(exhaustions=Health(available=False))).full

    assert samples(counting)["ephmon_connect_exhaustions_total", (("netns", "own"),)] == 41
    assert {name for name in names(counting) if "exhaustion" in name} - names(not_counting) == {
        "ephmon_connect_exhaustions_total",
        "ephmon_destination_connect_exhaustions_total",
        "ephmon_exhaustion_events_lost_total",
    }
    available = ("ephmon_collector_available", (("collector", "exhaustions"),))
    assert (samples(counting)[available], samples(not_counting)[available]) == (1, 0)


def test_owners_who_bear_one_name_are_one_series() -> None:
    """A container may be called as a unit is, and Prometheus refuses a scrape with a series that comes twice."""
    unit, container = (Owner(kind, "web.service") for kind in (OwnerKind.UNIT, OwnerKind.CONTAINER))
    owners = Owners(shares=(OwnerShare(owner=unit, ports=30), OwnerShare(owner=container, ports=12)))
    body = exposed(make_report(blocked_owners={"own": owners})).full

    labels = (("netns", "own"), ("owner", "web.service"))
    assert body.count(b"ephmon_blocked_port_owner_ports{") == 1
    assert samples(body)["ephmon_blocked_port_owner_ports", labels] == 42


def test_where_no_incidents_are_kept_nothing_is_said_of_them() -> None:
    assert not [name for name in names(exposed(replace(everything(), incidents=None)).full) if "incident" in name]


def test_failures_to_keep_an_incident_are_there_as_0_before_the_first() -> None:
    found = samples(exposed(replace(everything(), incidents=IncidentStatus())).full)

    assert found["ephmon_incidents_total", ()] == 0
    assert {labels[0][1] for name, labels in found if name == "ephmon_incident_failures_total"} == {
        *("no_directory", "permission", "read_only", "no_space", "too_large", "system", "defect")
    }


def test_what_a_user_names_at_will_makes_no_series_of_its_own() -> None:
    """systemd-run --user gives each command a unit with any name, and each login is a session."""
    owners = make_owners(
        ("user@1000.service/a.scope", 30), ("user@1000.service/b.scope", 12), ("user-7.slice/session-3.scope", 5)
    )
    found = samples(exposed(make_report(blocked_owners={"own": owners})).full)

    assert found["ephmon_blocked_port_owner_ports", (("netns", "own"), ("owner", "user@1000.service"))] == 42
    assert found["ephmon_blocked_port_owner_ports", (("netns", "own"), ("owner", "user-7.slice"))] == 5


def test_owners_of_a_pool_are_there_once_its_alert_is_shown() -> None:
    """Any user can make pools pending one after another."""
    owners, pool = {make_pool().key: make_owners(("a.service", 3))}, make_pool()
    hidden = make_report(owners=owners, alerts=[make_alert(pool, phase=Phase.PENDING)])
    shown = make_report(owners=owners, alerts=[make_alert(pool)])

    assert "ephmon_pool_owner_ports" not in names(exposed(hidden).full)
    assert "ephmon_pool_owner_ports" in names(exposed(shown).full)


def test_owners_are_absent_while_nobody_asks() -> None:
    assert not [name for name in names(exposed(make_report()).full) if "owner" in name]


def test_pool_without_a_destination_has_empty_labels() -> None:
    body = exposed(make_report(listed=[make_bind_pool(source="10.0.0.7")])).full.decode()

    assert '{destination="",destination_port="",kind="tcp_bind",netns="own",source="10.0.0.7"} 120.0\n' in body


def test_unlisted_pools_are_those_that_exist_minus_those_listed() -> None:
    namespace = make_namespace_report(
        pools={PoolKind.TCP_CONNECT: 312, PoolKind.UDP_BIND: 4}, listed={PoolKind.TCP_CONNECT: 50}
    )
    found = samples(exposed(make_report(namespaces=[namespace])).full)

    assert found["ephmon_pools_unlisted", (("kind", "tcp_connect"), ("netns", "own"))] == 262
    assert found["ephmon_pools_unlisted", (("kind", "udp_bind"), ("netns", "own"))] == 4


def test_expired_body_has_no_facts_and_says_that_the_poll_failed() -> None:
    """A wedged poller left a good report behind: nobody may take it for live."""
    exposition = exposed(everything())

    assert names(exposition.expired) == SELF
    assert samples(exposition.expired)["ephmon_poll_success", ()] == 0
    assert samples(exposition.full)["ephmon_poll_success", ()] == 1


def test_failed_poll_keeps_the_last_facts_until_they_expire() -> None:
    found = samples(exposed(make_report(success=False, error="the dump timed out")).full)

    assert found["ephmon_poll_success", ()] == 0
    assert found["ephmon_usable_ports", (("netns", "own"),)] == 28232


def test_first_poll_failed_means_no_facts_rather_than_zeros() -> None:
    exposition = exposed(
        replace(
            make_first_failure(),
            delivery=DELIVERY,
            incidents=INCIDENTS,
            http=HTTP,
            log_lines_lost=LOG_LINES_LOST,
            thread_restarts=RESTARTS,
        )
    )

    assert names(exposition.full) == names(exposition.expired)
    assert names(exposition.full) == SELF - {
        "ephmon_alerts_active",
        "ephmon_alerts_unlisted",
        "ephmon_namespace_alert_active",
        "ephmon_pool_alert_active",
        "ephmon_backend_info",
        "ephmon_collector_available",
        "ephmon_last_successful_poll_timestamp_seconds",
        "ephmon_connect_exhaustions_total",
        "ephmon_destination_connect_exhaustions_total",
        "ephmon_exhaustion_events_lost_total",
    }
    assert b"ephmon_usable_ports" not in exposition.full


def test_protocol_that_could_not_be_read_is_unavailable_and_its_facts_are_absent() -> None:
    namespace = make_namespace_report(
        blocked_ports=None,
        ambiguous_ports=None,
        pools={PoolKind.UDP_BIND: 0},
        listed={},
        worst={},
        backends={Protocol.UDP: Backend.PROCFS},
        missing={Protocol.TCP: "no such file"},
    )
    report = make_report(namespaces=[namespace], listed=[])
    found = samples(exposed(report).full)

    assert found["ephmon_collector_available", (("collector", "tcp"),)] == 0
    assert found["ephmon_collector_available", (("collector", "udp"),)] == 1
    assert ("ephmon_backend_info", (("backend", "procfs"), ("protocol", "udp"))) in found
    assert found["ephmon_pools", (("kind", "udp_bind"), ("netns", "own"))] == 0
    assert not names(exposed(report).full) & {
        "ephmon_blocked_ports",
        "ephmon_ambiguous_ports",
        "ephmon_worst_pool_utilisation_ratio",
        "ephmon_pool_in_use_ports",
    }


def alert_samples(body: bytes) -> dict[tuple[str, tuple[str, ...]], float]:
    """Every sample of an alert, by name and the values of its labels in the order of their names."""
    return {
        (name, tuple(value for _, value in labels)): number
        for (name, labels), number in samples(body).items()
        if "alert" in name
    }


def test_alerts_that_fire_are_exposed_also_when_the_figures_have_expired() -> None:
    """The worst severity of a pool stands for all of its alerts."""
    near, bound = make_pool(in_use=26000), make_bind_pool()
    exposition = exposed(
        make_report(
            alerts=[
                make_alert(name=AlertName.PORTS_BLOCKED, value=0.75),
                make_alert(near, name=AlertName.CONNECT_EXHAUSTIONS),
                make_alert(near, severity=Severity.CRITICAL),
                make_alert(near, name=AlertName.POOL_EXHAUSTION_FORECAST),
                make_alert(bound),
                make_alert(make_pool(source="10.0.0.2"), phase=Phase.PENDING),
                make_alert(make_pool(source="10.0.0.3"), phase=Phase.RESOLVED),
                make_alert(make_pool(source="10.0.0.4"), is_announced=False),
                make_alert(name=AlertName.TOO_MANY_ALERTS, netns="", severity=Severity.CRITICAL, value=1),
            ]
        )
    )

    assert alert_samples(exposition.full) == {
        ("ephmon_pool_alert_active", ("10.0.0.9", "443", "tcp_connect", "own", "critical", "10.0.0.1")): 1,
        ("ephmon_pool_alert_active", ("", "", "tcp_bind", "own", "warning", "10.0.0.1")): 1,
        ("ephmon_namespace_alert_active", ("EphmonPortsBlocked", "own", "warning")): 1,
        ("ephmon_namespace_alert_active", ("EphmonTooManyAlerts", "", "critical")): 1,
        ("ephmon_alerts_active", ("warning",)): 4,
        ("ephmon_alerts_active", ("critical",)): 2,
        ("ephmon_alerts_unlisted", ()): 1,
    }
    assert alert_samples(exposition.expired) == alert_samples(exposition.full)


def test_without_an_alert_the_count_is_zero_and_before_the_first_good_poll_absent() -> None:
    assert alert_samples(exposed(make_report()).full) == {
        ("ephmon_alerts_active", ("warning",)): 0,
        ("ephmon_alerts_active", ("critical",)): 0,
        ("ephmon_alerts_unlisted", ()): 0,
    }
    assert alert_samples(exposed(make_first_failure()).full) == {}


def test_thresholds_and_reload_are_those_in_force() -> None:
    thresholds = Thresholds(warning=Threshold(utilisation=0.5, for_seconds=0.0, clear=0.4))
    report = make_report(
        thresholds=thresholds, reload=ReloadStatus(successful=False, succeeded_at=1.5, error="bad key")
    )
    found = samples(exposed(report).full)

    assert found["ephmon_threshold_utilisation_ratio", (("severity", "warning"),)] == 0.5
    assert found["ephmon_threshold_utilisation_ratio", (("severity", "critical"),)] == 0.9
    assert found["ephmon_config_last_reload_successful", ()] == 0
    assert found["ephmon_config_last_reload_success_timestamp_seconds", ()] == 1.5


@example(name="n" * 300)
@given(name=st.text(st.characters() | st.characters(categories=["Cs", "Cc"]), max_size=300))
def test_any_name_becomes_one_valid_label_of_at_most_128_characters(name: str) -> None:
    report = make_report(namespaces=[make_namespace_report(netns=name)])
    text = exposed(report).full.decode("utf-8")
    openmetrics = exposed(report, openmetrics=True).full.decode("utf-8")

    for families in (parse_text(text), parse_openmetrics(openmetrics)):
        labels = [
            sample.labels["netns"]
            for family in families
            if family.name == "ephmon_usable_ports"
            for sample in family.samples
        ]
        assert len(labels) == 1
        assert len(labels[0]) == min(len(name), 128)


def test_label_keeps_what_can_be_kept() -> None:
    namespace = make_namespace_report(netns='a"b\\c\nd\udce9 \u00e9')
    line = next(
        line
        for line in exposed(make_report(namespaces=[namespace])).full.decode().splitlines()
        if "usable_ports{" in line
    )

    assert line == 'ephmon_usable_ports{netns="a\\"b\\\\c\ufffdd\ufffd \u00e9"} 28232.0'


def test_documentation_lists_every_metric(golden: Callable[[Path, str], None]) -> None:
    """The table in docs/metrics.md is the catalogue, word for word."""
    columns = ("metric", "type", "labels", "unit", "when data expires", "meaning")
    rows = (
        (
            f"`{metric.name}`",
            metric.type,
            ", ".join(metric.labels) or "-",
            metric.unit or "-",
            "gone" if metric.expires else "stays",
            metric.help,
        )
        for metric in METRICS
    )
    table = "\n".join(f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *rows))
    around = re.fullmatch(
        r"(.*<!-- catalogue: begin -->\n).*(\n<!-- catalogue: end -->.*)", DOCS.read_text(encoding="utf-8"), re.DOTALL
    )

    assert around is not None
    golden(DOCS, f"{around[1]}{table}{around[2]}")
