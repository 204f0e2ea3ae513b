"""An incident as a document and back as text: all that explains it, bounded, printable, and never a secret."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ephmon.facts.failed_calls import Destination, ExhaustionEvent
from ephmon.facts.namespaces import Netns
from ephmon.model.alerting.thresholds import Severity, Threshold, Thresholds
from ephmon.model.collectors import Health
from ephmon.model.failures.counters import Count, Exhaustions
from ephmon.model.incidents import Incident, Reason
from ephmon.model.report import ReloadStatus
from ephmon.model.rules import Rules
from ephmon.model.state import initial_state
from ephmon.model.step import conclude
from ephmon.outputs.documents import api
from ephmon.outputs.documents.incident import MAX_ADVISED, MAX_ALERTS, MAX_EVENTS, MAX_POOLS, Origin, document
from ephmon.outputs.documents.incident_reading import MAX_BYTES, IncidentError, parse, read
from ephmon.outputs.text.incident import render, worst_pool
from tests.builders import TAKEN_AT, make_alert, make_forecast, make_owners, make_pool, make_report
from tests.model.facts import LOW, connected, make_namespace, make_snapshot, make_sysctls, make_tcp

if TYPE_CHECKING:
    from collections.abc import Callable

    from ephmon.model.report import Report

GOLDEN = Path(__file__).parents[1] / "golden"
ORIGIN = Origin(host="web1", ephmon="0.1.0", python="3.11.2", kernel="6.1.0-13-amd64")
RULES = Rules(
    thresholds=Thresholds(
        warning=Threshold(utilisation=0.5, for_seconds=0.0, clear=0.4),
        critical=Threshold(utilisation=0.9, for_seconds=0.0, clear=0.8),
    )
)


def call(number: int = 0, netns: str = "own") -> ExhaustionEvent:
    return ExhaustionEvent(
        at=TAKEN_AT + number,
        at_monotonic=100.0 + number,
        netns=Netns(netns, 4026531833),
        source=bytes([10, 0, 0, 1]),
        destination=bytes([10, 0, 0, 9]),
        destination_port=443,
        family=2,
        thread_id=123,
        pid=123,
        command="haproxy",
        uid=33,
        cgroup="/system.slice/haproxy.service",
    )


def critical_report() -> Report:
    """A pool at 95 of 100 ports, of which everything is known."""
    previous = initial_state(RULES, ReloadStatus(successful=True, succeeded_at=0.0, error="a secret of the config"))
    tcp = replace(make_tcp(connected("10.0.0.1", range(LOW, LOW + 95), "10.0.0.9", 443)), listening_ports=frozenset())
    report = conclude(make_snapshot(make_namespace(tcp, make_sysctls(tw_reuse=0))), previous, 100.0).report
    forecast = make_forecast(opens_per_second=12.5, seconds_to_exhaustion=4.0)
    listed = tuple(replace(one, forecast=forecast) for one in report.listed)
    return replace(
        report,
        listed=listed,
        owners={one.pool.key: make_owners(("haproxy.service", 90, 12), ("uid 33", 5)) for one in listed},
        blocked_owners={"own": make_owners(("nginx.service", 2), other_owners=1, other_ports=3)},
        exhaustions=Exhaustions(
            totals={"own": 3, "other": 9, "unknown": 0},
            destinations={Destination("own", bytes([10, 0, 0, 9]), 443): Count(3, 100.0)},
            events=(call(0), call(1, "other"), replace(call(2), pid=None, command=None, uid=None, cgroup=None)),
            lost=1,
        ),
    ).with_health(exhaustions=Health(available=True))


def critical_incident(report: Report) -> Incident:
    return Incident(reason=Reason.CRITICAL, alerts=report.alerts.firing)


def critical_document() -> dict[str, Any]:
    report = critical_report()
    return document(report, critical_incident(report), at=TAKEN_AT, origin=ORIGIN)


def many() -> Report:
    """As much as there can be of everything."""
    alerts = [
        make_alert(
            make_pool(destination=f"10.1.{number >> 8}.{number & 255}", in_use=26000), severity=Severity.CRITICAL
        )
        for number in range(1000)
    ]
    pools = [make_pool(destination=f"10.2.{number >> 8}.{number & 255}", in_use=number) for number in range(10_000)]
    owners = make_owners(*((f"{number}{'x' * 90}.service", 100) for number in range(5)))
    return replace(
        make_report(listed=pools, alerts=alerts),
        namespaces=critical_report().namespaces,
        owners={pool.key: owners for pool in pools},
        exhaustions=Exhaustions(
            destinations={Destination("own", number.to_bytes(4), 443): Count(1, 0.0) for number in range(10_000)},
            events=(*map(call, range(100)), *(call(number, "other") for number in range(100))),
        ),
    ).with_health(exhaustions=Health(available=True))


# --- what is in it ------------------------------------------------------------------------------------------------


def test_the_text_of_an_incident_is_the_golden_file(golden: Callable[[Path, str], None]) -> None:
    golden(GOLDEN / "incident.txt", render(parse(api.encode(critical_document())), width=None))


def test_it_says_what_it_is_when_and_where() -> None:
    one = critical_document()

    assert {key: one[key] for key in ("document", "schema", "at", "reason", "summary", "host", "versions")} == {
        "document": "ephmon incident",
        "schema": 1,
        "at": "2026-01-02T03:04:05.006Z",
        "reason": "critical",
        "summary": "tcp_connect from 10.0.0.1 to 10.0.0.9:443 is at 95.0%: 5 of 100 ports are left.",
        "host": "web1",
        "versions": {"ephmon": "0.1.0", "python": "3.11.2", "kernel": "6.1.0-13-amd64"},
    }


def test_it_holds_what_the_api_says_of_the_pools() -> None:
    report = critical_report()

    assert critical_document()["snapshot"] == api.pools_document(report, [one.pool for one in report.listed])
    assert critical_document()["snapshot"]["pools"][0]["owners"][0]["owner"] == "haproxy.service"
    assert critical_document()["snapshot"]["pools"][0]["seconds_to_exhaustion"] == 4.0


def test_it_holds_the_sysctls_by_name() -> None:
    assert critical_document()["sysctls"] == [
        {
            "netns": "own",
            "ip_local_port_range": f"{LOW} {LOW + 99}",
            "ip_local_reserved_ports": "",
            "tcp_tw_reuse": 0,
            "tcp_tw_reuse_delay_ms": 1000,
            "tcp_timestamps": 1,
            "ip_autobind_reuse": 0,
            "tcp_max_tw_buckets": 262144,
        }
    ]


def test_it_holds_the_advice_of_its_alerts() -> None:
    (alert,) = critical_document()["alerts"]

    assert alert["alertname"] == "EphmonPoolNearExhaustion"
    assert alert["advice"]["cause"].startswith("Connections to 10.0.0.9:443 stay open")
    assert len(alert["advice"]["steps"]) == 3


def test_of_failed_calls_it_holds_those_of_our_own_namespace() -> None:
    exhaustions = critical_document()["exhaustions"]

    assert exhaustions["totals"] == {"own": 3, "other": 9, "unknown": 0}
    assert [event["netns"] for event in exhaustions["events"]] == ["own", "own"]
    assert exhaustions["events"][0]["command"] == "haproxy"


def test_one_of_a_failed_call_names_the_call_and_its_caller() -> None:
    incident = Incident(reason=Reason.EXHAUSTION, call=call())

    assert document(critical_report(), incident, at=TAKEN_AT, origin=ORIGIN)["summary"] == (
        "A connect() from 10.0.0.1 to 10.0.0.9:443 found no port. It was made by haproxy of haproxy.service (pid 123)."
    )


def test_nothing_of_the_configuration_is_in_it() -> None:
    assert "secret" not in json.dumps(critical_document())


def test_a_report_before_the_first_good_poll_makes_a_document_too() -> None:
    empty = initial_state(Rules(), ReloadStatus(successful=True, succeeded_at=0.0)).report
    incident = Incident(reason=Reason.EXHAUSTION, call=call())
    text = render(parse(api.encode(document(empty, incident, at=TAKEN_AT, origin=ORIGIN))), width=None)

    assert "The incident has no pools." in text
    assert "Failed connect() calls were not counted." in text


def test_the_document_is_bounded_and_what_it_is_about_has_a_place() -> None:
    report = many()
    last = report.alerts.firing[-1]
    one = document(report, Incident(reason=Reason.CRITICAL, alerts=(last,)), at=TAKEN_AT, origin=ORIGIN)

    assert len(api.encode(one)) < 200_000
    assert len(one["alerts"]) == MAX_ALERTS
    assert [alert["advice"] is None for alert in one["alerts"]].index(True) == MAX_ADVISED
    assert (one["alerts_total"], len(one["snapshot"]["pools"])) == (1000, MAX_POOLS)
    assert last.key.pool is not None
    assert one["alerts"][0]["pool"]["destination"] == last.key.pool.destination
    assert last.key.pool.destination in [pool["destination"] for pool in one["snapshot"]["pools"]]
    assert len(one["exhaustions"]["events"]) == MAX_EVENTS
    assert len(one["exhaustions"]["destinations"]) == 20


def test_pools_come_worst_first_and_the_one_that_failed_is_among_them() -> None:
    others = [make_pool(destination=f"10.2.0.{number}", in_use=20000) for number in range(30)]
    small = make_pool(in_use=12, source="10.0.0.1", destination="10.0.0.9", destination_port=443)
    report = make_report(listed=[small, *others])
    incident = Incident(reason=Reason.EXHAUSTION, call=call())
    pools = document(report, incident, at=TAKEN_AT, origin=ORIGIN)["snapshot"]["pools"]

    assert len(pools) == MAX_POOLS
    assert pools[-1]["destination"] == "10.0.0.9"
    assert {pool["in_use_ports"] for pool in pools[:-1]} == {20000}


# --- and back -----------------------------------------------------------------------------------------------------


def damaged(change: Callable[[dict[str, Any]], object]) -> str:
    """Return what is said of a document that was changed."""
    one: dict[str, Any] = json.loads(api.encode(critical_document()))
    change(one)
    with pytest.raises(IncidentError) as caught:
        render(parse(json.dumps(one).encode()), width=None)
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda one: one.pop("at"), "It is damaged: at is missing."),
        (lambda one: one.update(schema=2), "It has the schema 2, but this version of ephmon reads only 1."),
        (lambda one: one.update(schema="1"), "It is damaged: schema is not a valid number."),
        (lambda one: one.update(document="x"), "It is not an incident of ephmon."),
        (lambda one: one.update(snapshot=[]), "It is damaged: snapshot is not an object."),
        (lambda one: one["snapshot"].update(pools={}), "It is damaged: snapshot.pools is not a list."),
        (lambda one: one["snapshot"].update(pools=[1]), "It is damaged: snapshot.pools[0] is not an object."),
        (
            lambda one: one["snapshot"]["pools"][0].update(in_use_ports=-1),
            "It is damaged: snapshot.pools[0].in_use_ports is not a count.",
        ),
        (
            lambda one: one["snapshot"]["pools"][0].update(in_use_ports=10**400),
            "It is damaged: snapshot.pools[0].in_use_ports is not a valid number.",
        ),
        (
            lambda one: one["snapshot"]["pools"][0].update(kind="snat\x1b[2J"),
            "It is damaged: snapshot.pools[0].kind is 'snat\ufffd[2J', which this version of ephmon does not know.",
        ),
        (
            lambda one: one["alerts"][0]["advice"].update(steps=[1]),
            "It is damaged: alerts[0].advice.steps is not a list of texts.",
        ),
        (
            lambda one: one["exhaustions"]["totals"].update(own=True),
            "It is damaged: exhaustions.totals.own is not a valid number.",
        ),
    ],
)
def test_what_is_damaged_is_said_with_its_place(change: Callable[[dict[str, Any]], object], said: str) -> None:
    assert damaged(change) == said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "It is cut off or damaged at line 1, column 1."),
        (b"{", "It is cut off or damaged at line 1, column 2."),
        (b"\xff", "It is not text: byte 0 is not UTF-8."),
        (b"[" * 200_000, "It is damaged: it is nested too deeply."),
        (b"[]", "It is not an incident of ephmon."),
        (b'{"document": "ephmon incident"}', "It is damaged: schema is missing."),
        (b'{"a": NaN}', "It is damaged: NaN is not a JSON number."),
        (b'{"a": 1e999}', "It is damaged: 1e999 is too large a number."),
    ],
)
def test_what_is_no_incident_is_said(content: bytes, said: str) -> None:
    with pytest.raises(IncidentError) as caught:
        parse(content)
    assert str(caught.value) == said


def test_a_number_of_more_digits_than_python_reads_is_said() -> None:
    with pytest.raises(IncidentError, match="It is damaged: "):
        parse(b'{"document": "ephmon incident", "schema": %s}' % (b"1" * 10_000))


@settings(max_examples=50)
@given(st.integers(min_value=0, max_value=len(api.encode(critical_document())) - 3))
def test_one_that_is_cut_off_anywhere_is_said(length: int) -> None:
    with pytest.raises(IncidentError, match="It is cut off or damaged at line 1, column "):
        parse(api.encode(critical_document())[:length])


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def places(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    inner: list[tuple[str | int, object]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    return [path, *(place for key, one in inner for place in places(one, (*path, key)))]


PLACES = places(json.loads(api.encode(critical_document())))[1:]


@given(place=st.sampled_from(PLACES), value=JSON_VALUES)
def test_whatever_stands_anywhere_is_text_or_refused_and_no_control_character_comes_out(
    place: tuple[str | int, ...], value: object
) -> None:
    one: Any = json.loads(api.encode(critical_document()))
    parent = one
    for key in place[:-1]:
        parent = parent[key]
    parent[place[-1]] = value
    try:
        incident = parse(json.dumps(one).encode())
        text = render(incident, width=80)
        worst_pool(incident)
    except IncidentError as error:
        text = str(error)
        assert "\n" not in text
    assert all(line.isprintable() for line in text.splitlines())
    assert not set(text) & set("\x1b\x00\r")


def test_a_newer_version_may_add_keys() -> None:
    one: dict[str, Any] = json.loads(api.encode(critical_document()))
    expected = render(parse(json.dumps(one).encode()), width=None)
    for part in (one, one["snapshot"], one["snapshot"]["pools"][0], one["alerts"][0], one["exhaustions"]):
        part["new"] = {"deep": [1]}

    assert render(parse(json.dumps(one).encode()), width=None) == expected


def test_long_lists_are_cut() -> None:
    one: dict[str, Any] = json.loads(api.encode(critical_document()))
    one["snapshot"]["pools"] *= 10_000

    assert render(parse(json.dumps(one).encode()), width=None).count("\ntcp_connect  ") == 100


def test_the_worst_pool_is_the_first() -> None:
    pool = worst_pool(parse(api.encode(critical_document())))

    assert pool is not None
    assert (pool.key.destination, pool.in_use, pool.utilisation) == ("10.0.0.9", 95, 0.95)


# --- files --------------------------------------------------------------------------------------------------------


def test_a_file_that_is_none_is_said_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "large").write_bytes(b" " * (MAX_BYTES + 1))
    said = {}
    for name in ("absent", "fifo", "large", ".", "nul\0"):
        with pytest.raises(IncidentError) as caught:
            read(str(tmp_path / name))
        said[name] = str(caught.value)

    assert said == {
        "absent": "It cannot be read: No such file or directory.",
        "fifo": "It is a FIFO, not a regular file.",
        "large": "It is larger than 8 MiB, the limit.",
        ".": "It is a directory, not a regular file.",
        "nul\0": "It cannot be read: Its path contains a NUL.",
    }
