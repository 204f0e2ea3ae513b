"""The JSON is a contract: these are its bytes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from ephmon.facts.sockets import Backend, Protocol
from ephmon.model.pools.kinds import PoolKind
from ephmon.model.report import ListedPool
from ephmon.outputs.documents.api import encode, error_document, pool_object, pools_document
from tests.builders import (
    make_bind_pool,
    make_first_failure,
    make_forecast,
    make_namespace_report,
    make_owners,
    make_pool,
    make_report,
)

CONTRACT = """
{"schema": 1, "taken_at": "2026-01-02T03:04:05.006Z", "backend": {"tcp": "inet_diag", "udp": "inet_diag"},
 "duration_seconds": 0.012, "complete": true, "missing": [],
 "pools_total": 1, "pools_listed": 1,
 "namespaces": [{"netns": "own", "inode": 4026531833, "port_range_low": 32768, "port_range_high": 60999,
                 "reserved_ports": 0, "usable_ports": 28232, "blocked_ports": 3, "ambiguous_ports": 120,
                 "blind_to": [], "tcp_tw_reuse": 2,
                 "blocked_owners": [{"owner": "haproxy.service", "kind": "unit", "ports": 3, "estimated_ports": 0,
                                     "estimated": false}],
                 "other_blocked_owners": 0, "other_blocked_owner_ports": 0, "unknown_blocked_owner_ports": 0}],
 "pools": [{"netns": "own", "kind": "tcp_connect", "source": "10.0.0.1", "destination": "10.0.0.9",
            "destination_port": 443, "taken_at": "2026-01-02T03:04:05.006Z",
            "usable_ports": 28232, "blocked_ports": 3, "capacity_ports": 28229, "in_use_ports": 120,
            "time_wait_ports": 30, "reusable_ports": 0,
            "remaining_ports": 28109, "remaining_ports_min": 28100, "remaining_ports_max": 28109, "exact": false,
            "doubted": false, "connect_search_ports": 1.5, "failure_errno": "EADDRNOTAVAIL",
            "utilisation_ratio": 0.004357, "states": {"established": 90, "time_wait": 30},
            "peer_timestamps": null, "only_on_devices_ports": 0, "named_sockets": 0,
            "application_chooses_ports": false,
            "opens_per_second": 120.5, "growth_per_second": 2.333333, "sustainable_opens_per_second": 470.5,
            "seconds_to_exhaustion": null,
            "owners": [{"owner": "haproxy.service", "kind": "unit", "ports": 90, "estimated_ports": 0,
                        "estimated": false},
                       {"owner": "uid 33", "kind": "uid", "ports": 12, "estimated_ports": 5, "estimated": true}],
            "other_owners": 2, "other_owner_ports": 11, "unknown_owner_ports": 7}]}
"""


def test_document_has_the_contract_keys_in_their_order() -> None:
    pool = make_pool(remaining_min=28100, search_ports=1.5)
    expected = " ".join(line.strip() for line in CONTRACT.strip().splitlines())

    forecast = make_forecast(opens_per_second=120.5, growth_per_second=7 / 3)
    owners = make_owners(("haproxy.service", 90), ("uid 33", 12, 5), other_owners=2, other_ports=11, unknown_ports=7)
    report = make_report(
        listed=[ListedPool(pool=pool, peak_utilisation=0.1, forecast=forecast)],
        owners={pool.key: owners},
        blocked_owners={"own": make_owners(("haproxy.service", 3))},
    )

    assert encode(pools_document(report, [pool])) == expected.encode() + b"\n"


def test_pools_given_are_the_pools_printed_and_all_that_exist_are_counted() -> None:
    pools = [make_pool(destination_port=port) for port in (443, 80)]
    namespaces = [
        make_namespace_report(pools={PoolKind.TCP_CONNECT: 312, PoolKind.UDP_BIND: 4}),
        make_namespace_report(netns="blue", pools={PoolKind.TCP_CONNECT: 5}),
    ]
    document = pools_document(make_report(namespaces=namespaces, listed=[]), pools)

    assert [pool["destination_port"] for pool in document["pools"]] == [443, 80]
    assert document["pools_listed"] == 2
    assert document["pools_total"] == 321
    assert [namespace["netns"] for namespace in document["namespaces"]] == ["own", "blue"]


def test_pool_without_a_destination_has_nulls() -> None:
    found = pool_object(make_bind_pool())

    assert found["kind"] == "tcp_bind"
    assert found["destination"] is None
    assert found["destination_port"] is None
    assert found["blocked_ports"] == 0


def test_pool_without_a_forecast_and_without_owners_has_nulls() -> None:
    document = pools_document(make_report(), [make_pool()])
    (pool,), (namespace,) = document["pools"], document["namespaces"]

    assert {name: pool[name] for name in list(pool)[-8:]} == {
        "opens_per_second": None,
        "growth_per_second": None,
        "sustainable_opens_per_second": None,
        "seconds_to_exhaustion": None,
        "owners": None,
        "other_owners": None,
        "other_owner_ports": None,
        "unknown_owner_ports": None,
    }
    assert {name: namespace[name] for name in list(namespace)[-4:]} == {
        "blocked_owners": None,
        "other_blocked_owners": None,
        "other_blocked_owner_ports": None,
        "unknown_blocked_owner_ports": None,
    }


def test_ports_that_nobody_holds_are_not_ports_that_nobody_asked_about() -> None:
    pool = make_pool()
    document = pools_document(make_report(owners={pool.key: make_owners()}), [pool])

    assert document["pools"][0]["owners"] == []
    assert document["pools"][0]["other_owners"] == 0


def test_pool_read_by_a_narrow_poll_carries_its_own_time() -> None:
    pool = make_pool(taken_at=1767323047.5)
    document = pools_document(make_report(), [pool])

    assert document["taken_at"] == "2026-01-02T03:04:05.006Z"
    assert document["pools"][0]["taken_at"] == "2026-01-02T03:04:07.500Z"


def test_protocol_that_could_not_be_read_is_named_and_its_figures_are_null() -> None:
    report = make_report(
        backends={Protocol.UDP: Backend.INET_DIAG},
        missing={Protocol.TCP: "permission denied"},
        namespaces=[make_namespace_report(blocked_ports=None, ambiguous_ports=None, pools={})],
    )
    document = json.loads(encode(pools_document(report, [])))

    assert document["complete"] is False
    assert document["missing"] == ["tcp"]
    assert document["backend"] == {Protocol.UDP: Backend.INET_DIAG}
    assert document["namespaces"][0]["blocked_ports"] is None
    assert document["namespaces"][0]["ambiguous_ports"] is None
    assert document["pools"] == []


def test_nothing_read_yet_is_not_complete() -> None:
    document = pools_document(replace(make_first_failure(), duration_seconds=None), [])

    assert document["taken_at"] is None
    assert document["duration_seconds"] is None
    assert document["complete"] is False


@pytest.mark.parametrize(
    ("in_use", "ratio"), [(65535, 1.0), (65534, 0.999985), (32767, 0.499992), (1, 0.000015), (0, 0.0)]
)
def test_ratio_is_one_only_when_nothing_remains(in_use: int, ratio: float) -> None:
    pool = make_pool(usable=65535, blocked=0, in_use=in_use)

    assert pool_object(pool)["utilisation_ratio"] == ratio


def test_blindness_is_listed() -> None:
    report = make_report(namespaces=[make_namespace_report(blind_to=("bound_unconnected", "v6only"))])

    assert pools_document(report, [])["namespaces"][0]["blind_to"] == ["bound_unconnected", "v6only"]


def test_any_name_becomes_valid_json() -> None:
    pool = make_pool(netns='a"\n\udce9</script>')

    assert json.loads(encode(pools_document(make_report(), [pool])))["pools"][0]["netns"] == 'a"\ufffd\ufffd</script>'


def test_error_document_says_why_there_is_no_answer() -> None:
    document = error_document("The kernel was last read at 2026-01-02T03:04:05.006Z.")

    assert encode(document) == b'{"schema": 1, "error": "The kernel was last read at 2026-01-02T03:04:05.006Z."}\n'


def test_number_that_json_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode({"value": float("nan")})
