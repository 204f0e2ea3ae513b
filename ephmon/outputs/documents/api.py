"""The JSON that `--json` prints and `/api/v1/pools` serves: a Report in, a document with a schema number out.

Other software depends on the keys. With the same `SCHEMA`, fields may be added, but none may be removed or changed.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ephmon.facts.foreign_text import printable
from ephmon.outputs.text.wording import existing_pools, utc_time

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ephmon.model.forecast.forecast import Forecast
    from ephmon.model.owners.shares import Owners, OwnerShare
    from ephmon.model.pools.kinds import Pool
    from ephmon.model.report import NamespaceReport, Report

SCHEMA = 1

_DECIMALS = 6
"""Of ratios and seconds. A pool of 65,535 ports changes in steps of 0.000015, so only an exhausted pool shows 1.0."""
_FORECAST_FIELDS = (
    "opens_per_second",
    "growth_per_second",
    "sustainable_opens_per_second",
    "seconds_to_exhaustion",
)


def pools_document(report: Report, pools: Sequence[Pool]) -> dict[str, Any]:
    """Return the document that lists `pools`, in the order given.

    `pools_total` counts the pools that exist, `pools_listed` those in the document. Before the first successful poll
    `taken_at` is null and `complete` false. The fields of the forecast are null if there is none, as in a report of a
    single poll. The fields of owners are null if owners were not read.
    """
    forecasts = {listed.pool.key: listed.forecast for listed in report.listed}
    return {
        "schema": SCHEMA,
        "taken_at": None if report.taken_at is None else utc_time(report.taken_at),
        "backend": dict(report.backends),
        "duration_seconds": None if report.duration_seconds is None else round(report.duration_seconds, _DECIMALS),
        "complete": report.taken_at is not None and not report.missing,
        "missing": list(report.missing),
        "pools_total": existing_pools(report),
        "pools_listed": len(pools),
        "namespaces": [
            _namespace_object(namespace) | blocked_owner_fields(report.blocked_owners.get(namespace.netns))
            for namespace in report.namespaces
        ],
        "pools": [
            pool_object(pool) | _forecast_fields(forecasts.get(pool.key)) | owner_fields(report.owners.get(pool.key))
            for pool in pools
        ],
    }


def pool_object(pool: Pool) -> dict[str, Any]:
    """Return one pool; quantities are counts of ports, as `ephmon.model.pools.kinds` defines them."""
    key = pool.key
    return {
        "netns": printable(key.netns),
        "kind": key.kind,
        "source": key.source,
        "destination": key.destination,
        "destination_port": key.destination_port,
        "taken_at": utc_time(pool.taken_at),
        "usable_ports": pool.usable,
        "blocked_ports": pool.blocked,
        "capacity_ports": pool.capacity,
        "in_use_ports": pool.in_use,
        "time_wait_ports": pool.time_wait,
        "reusable_ports": pool.reusable,
        "remaining_ports": pool.remaining,
        "remaining_ports_min": pool.remaining_min,
        "remaining_ports_max": pool.remaining_max,
        "exact": pool.exact,
        "doubted": pool.is_doubted,
        "connect_search_ports": None if pool.search_ports is None else round(pool.search_ports, _DECIMALS),
        "failure_errno": pool.failure_errno,
        "utilisation_ratio": round(pool.utilisation, _DECIMALS),
        "states": dict(pool.states),
        "peer_timestamps": pool.peer_timestamps,
        "only_on_devices_ports": pool.only_on_devices,
        "named_sockets": pool.named,
        "application_chooses_ports": pool.application_chooses_ports,
    }


def _forecast_fields(forecast: Forecast | None) -> dict[str, float | None]:
    if forecast is None:
        return dict.fromkeys(_FORECAST_FIELDS)
    values = (
        forecast.opens_per_second,
        forecast.growth_per_second,
        forecast.sustainable_opens_per_second,
        forecast.seconds_to_exhaustion,
    )
    rounded = (None if value is None else round(value, _DECIMALS) for value in values)
    return dict(zip(_FORECAST_FIELDS, rounded, strict=True))


def owner_fields(owners: Owners | None) -> dict[str, Any]:
    """Return who holds the ports of a pool, null if owners were not read; a port with two owners counts for both."""
    return {
        "owners": None if owners is None else [_share_object(share) for share in owners.shares],
        "other_owners": None if owners is None else owners.other_owners,
        "other_owner_ports": None if owners is None else owners.other_ports,
        "unknown_owner_ports": None if owners is None else owners.unknown_ports,
    }


def blocked_owner_fields(owners: Owners | None) -> dict[str, Any]:
    """Return who holds the blocked ports of a namespace, null if owners were not read."""
    fields = owner_fields(owners)
    return {
        "blocked_owners": fields["owners"],
        "other_blocked_owners": fields["other_owners"],
        "other_blocked_owner_ports": fields["other_owner_ports"],
        "unknown_blocked_owner_ports": fields["unknown_owner_ports"],
    }


def _share_object(share: OwnerShare) -> dict[str, Any]:
    return {
        "owner": printable(share.owner.name),
        "kind": share.owner.kind,
        "ports": share.ports,
        "estimated_ports": share.estimated_ports,
        "estimated": share.is_estimated,
    }


def error_document(message: str) -> dict[str, Any]:
    """Return the document for an error; `message` is one sentence that says why there is no other document."""
    return {"schema": SCHEMA, "error": message}


def encode(document: Mapping[str, Any]) -> bytes:
    """Return `document` as JSON in ASCII with a newline at its end.

    Raises:
        ValueError: A number is NaN or infinite, which JSON does not allow.
    """
    return json.dumps(document, allow_nan=False).encode("ascii") + b"\n"


def _namespace_object(namespace: NamespaceReport) -> dict[str, Any]:
    return {
        "netns": printable(namespace.netns),
        "inode": namespace.inode,
        "port_range_low": namespace.sysctls.port_range.low,
        "port_range_high": namespace.sysctls.port_range.high,
        "reserved_ports": namespace.reserved_ports,
        "usable_ports": namespace.usable_ports,
        "blocked_ports": namespace.blocked_ports,
        "ambiguous_ports": namespace.ambiguous_ports,
        "blind_to": list(namespace.blind_to),
        "tcp_tw_reuse": namespace.sysctls.tcp_tw_reuse,
    }
