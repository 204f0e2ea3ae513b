"""Values with sensible defaults, of which a test names only what it is about."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ephmon.errors import Reason
from ephmon.facts.namespaces import OWN_NETNS
from ephmon.facts.snapshot import PortRange, Sysctls
from ephmon.facts.sockets import Backend, Protocol
from ephmon.model.alerting.state_machine import Alert, AlertKey, AlertName, Alerts, Moment, Phase, Track
from ephmon.model.alerting.thresholds import Severity, Thresholds
from ephmon.model.collectors import Collector, Health
from ephmon.model.forecast.forecast import Forecast
from ephmon.model.owners.names import Owner, OwnerKind
from ephmon.model.owners.shares import Owners, OwnerShare
from ephmon.model.pace import Pace
from ephmon.model.pools.kinds import Pool, PoolKey, PoolKind
from ephmon.model.report import ListedPool, NamespaceReport, PollTotals, ReloadStatus, Report

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TAKEN_AT = 1767323045.006
"""2026-01-02T03:04:05.006Z, when the kernel was read unless a test says otherwise."""


def make_pool(
    *,
    netns: str = OWN_NETNS,
    kind: PoolKind = PoolKind.TCP_CONNECT,
    source: str = "10.0.0.1",
    destination: str | None = "10.0.0.9",
    destination_port: int | None = 443,
    taken_at: float = TAKEN_AT,
    usable: int = 28232,
    blocked: int = 3,
    in_use: int = 120,
    time_wait: int = 30,
    reusable: int = 0,
    remaining: int | None = None,
    remaining_min: int | None = None,
    remaining_max: int | None = None,
    exact: bool | None = None,
    failure_errno: str = "EADDRNOTAVAIL",
    states: Mapping[str, int] | None = None,
    held: int | None = None,
    in_doubt: int = 0,
    reusable_unproven: int = 0,
    is_doubted: bool = False,
    search_ports: float | None = None,
    peer_timestamps: bool | None = None,
    only_on_devices: int = 0,
    named: int = 0,
) -> Pool:
    """Build a pool: what is not given follows from what is, and without bounds it is exact."""
    left = max(0, usable - blocked - in_use + reusable) if remaining is None else remaining
    low = left if remaining_min is None else remaining_min
    high = left if remaining_max is None else remaining_max
    return Pool(
        key=PoolKey(netns, kind, source, destination, destination_port),
        taken_at=taken_at,
        usable=usable,
        blocked=blocked,
        capacity=usable - blocked,
        in_use=in_use,
        time_wait=time_wait,
        reusable=reusable,
        remaining=left,
        remaining_min=low,
        remaining_max=high,
        exact=low == high if exact is None else exact,
        failure_errno=failure_errno,
        states={"established": in_use - time_wait, "time_wait": time_wait} if states is None else states,
        held=in_use if held is None else held,
        in_doubt=in_doubt,
        reusable_unproven=reusable_unproven,
        is_doubted=is_doubted,
        search_ports=search_ports,
        peer_timestamps=peer_timestamps,
        only_on_devices=only_on_devices,
        named=named,
    )


def make_bind_pool(*, source: str = "10.0.0.1", in_use: int = 120) -> Pool:
    """Build a tcp_bind pool, which has no destination and no blocked ports."""
    return make_pool(
        kind=PoolKind.TCP_BIND,
        source=source,
        destination=None,
        destination_port=None,
        blocked=0,
        in_use=in_use,
        failure_errno="EADDRINUSE",
    )


def make_forecast(
    *,
    opens_per_second: float = 0.0,
    growth_per_second: float = 0.0,
    sustainable_opens_per_second: float | None = 470.5,
    seconds_to_exhaustion: float | None = None,
) -> Forecast:
    """Build the forecast of a pool that is not heading for exhaustion unless the seconds are given."""
    return Forecast(
        opens_per_second=opens_per_second,
        growth_per_second=growth_per_second,
        sustainable_opens_per_second=sustainable_opens_per_second,
        seconds_to_exhaustion=seconds_to_exhaustion,
    )


def make_namespace_report(
    *,
    netns: str = OWN_NETNS,
    inode: int = 4026531833,
    port_range: tuple[int, int] = (32768, 60999),
    reserved_ports: int = 0,
    usable_ports: int = 28232,
    blocked_ports: int | None = 3,
    ambiguous_ports: int | None = 120,
    blind_to: tuple[str, ...] = (),
    tcp_tw_reuse: int = 2,
    pools: Mapping[PoolKind, int] | None = None,
    listed: Mapping[PoolKind, int] | None = None,
    worst: Mapping[PoolKind, float] | None = None,
    backends: Mapping[Protocol, Backend] | None = None,
    missing: Mapping[Protocol, str] | None = None,
    fallbacks: Mapping[Protocol, str] | None = None,
) -> NamespaceReport:
    """Build the report of one namespace, with one tcp_connect pool that is listed."""
    return NamespaceReport(
        netns=netns,
        inode=inode,
        sysctls=Sysctls(port_range=PortRange(*port_range), tcp_tw_reuse=tcp_tw_reuse),
        reserved_ports=reserved_ports,
        usable_ports=usable_ports,
        blocked_ports=blocked_ports,
        ambiguous_ports=ambiguous_ports,
        blind_to=blind_to,
        pools={PoolKind.TCP_CONNECT: 1} if pools is None else pools,
        listed={PoolKind.TCP_CONNECT: 1} if listed is None else listed,
        worst={PoolKind.TCP_CONNECT: 0.5} if worst is None else worst,
        backends=dict.fromkeys(Protocol, Backend.INET_DIAG) if backends is None else backends,
        missing=missing or {},
        fallbacks=fallbacks or {},
    )


def make_report(
    *,
    success: bool = True,
    error: str | None = None,
    taken_at: float | None = TAKEN_AT,
    taken_at_monotonic: float | None = 1000.0,
    duration_seconds: float | None = 0.012,
    interval_seconds: float = 5.0,
    backends: Mapping[Protocol, Backend] | None = None,
    missing: Mapping[Protocol, str] | None = None,
    namespaces: Sequence[NamespaceReport] | None = None,
    listed: Sequence[ListedPool | Pool] | None = None,
    totals: PollTotals | None = None,
    reload: ReloadStatus | None = None,
    thresholds: Thresholds | None = None,
    collectors: Mapping[Collector, Health] | None = None,
    alerts: Sequence[Alert] = (),
    owners: Mapping[PoolKey, Owners] | None = None,
    blocked_owners: Mapping[str, Owners] | None = None,
) -> Report:
    """Build the report of a good poll that found one pool; a bare Pool in `listed` has its utilisation as peak.

    `backends` and `missing` are those of every namespace.
    """
    pools = [make_pool()] if listed is None else listed
    read: dict[str, Any] = {"backends": backends, "missing": missing}
    given = {name: value for name, value in read.items() if value is not None}
    found = tuple(replace(one, **given) for one in ([make_namespace_report()] if namespaces is None else namespaces))
    protocols = {Collector(name): Health(available=True) for one in found for name in one.backends}
    protocols |= {Collector(name): Health(False, reason) for one in found for name, reason in one.missing.items()}
    return Report(
        success=success,
        error=error,
        taken_at=taken_at,
        taken_at_monotonic=taken_at_monotonic,
        duration_seconds=duration_seconds,
        pace=Pace(full=interval_seconds),
        namespaces=found,
        namespaces_read=len(found),
        listed=tuple(ListedPool(pool=p, peak_utilisation=p.utilisation) if isinstance(p, Pool) else p for p in pools),
        totals=PollTotals().counted() if totals is None else totals,
        reload=ReloadStatus(successful=True, succeeded_at=TAKEN_AT - 60) if reload is None else reload,
        interval_seconds=5.0,
        thresholds=Thresholds() if thresholds is None else thresholds,
        collectors=protocols | dict(collectors or {}),
        alerts=Alerts(states={alert.key: alert for alert in alerts}),
        owners=owners or {},
        blocked_owners=blocked_owners or {},
    )


def make_owners(
    *shares: tuple[str, int] | tuple[str, int, int], other_owners: int = 0, other_ports: int = 0, unknown_ports: int = 0
) -> Owners:
    """Build owners of name, ports and those of them that are estimated: users if they are called so, else units."""
    return Owners(
        shares=tuple(
            OwnerShare(
                owner=Owner(OwnerKind.UID if name.startswith("uid ") else OwnerKind.UNIT, name),
                ports=ports,
                estimated_ports=sum(estimated),
            )
            for name, ports, *estimated in shares
        ),
        other_owners=other_owners,
        other_ports=other_ports,
        unknown_ports=unknown_ports,
    )


def make_alert(
    pool: Pool | None = None,
    *,
    name: AlertName = AlertName.POOL_NEAR_EXHAUSTION,
    netns: str = OWN_NETNS,
    phase: Phase = Phase.FIRING,
    severity: Severity = Severity.WARNING,
    since: float = 0.0,
    ended: float | None = None,
    value: float | None = None,
    named: Sequence[Pool] = (),
    is_announced: bool | None = None,
) -> Alert:
    """Build an alert of a pool, or of the namespace without one; times are seconds after TAKEN_AT."""
    begun = Moment(1000.0 + since, TAKEN_AT + since)
    return Alert(
        key=AlertKey(name, netns if pool is None else pool.key.netns, None if pool is None else pool.key),
        phase=phase,
        severity=severity,
        since=begun,
        ended=None if ended is None else Moment(1000.0 + ended, TAKEN_AT + ended),
        value=(0.0 if pool is None else pool.utilisation) if value is None else value,
        pools=tuple(named) if pool is None else (pool,),
        is_announced=phase in (Phase.FIRING, Phase.RESOLVED) if is_announced is None else is_announced,
        tracks={one: Track(phase if one is severity else Phase.INACTIVE, begun) for one in Severity},
    )


def make_first_failure(error: str = "the kernel could not be read") -> Report:
    """Build the report of a first poll that failed: there are no facts at all."""
    return make_report(
        success=False,
        error=error,
        taken_at=None,
        taken_at_monotonic=None,
        namespaces=(),
        listed=(),
        totals=PollTotals().counted(failure=Reason.KERNEL),
    )
