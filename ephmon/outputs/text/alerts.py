"""Alerts as sentences, the same in the log, on the page, in JSON and in deliveries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ephmon.facts.foreign_text import printable
from ephmon.facts.namespaces import OWN_NETNS
from ephmon.model.alerting.state_machine import AlertName
from ephmon.model.alerting.thresholds import Severity
from ephmon.model.failures.doubted_pools import Cause, possible_causes
from ephmon.model.owners.names import OwnerKind, owner_of
from ephmon.outputs.text.wording import endpoint, percent, pool_name, remaining, search_sentence, utc_time

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ephmon.facts.failed_calls import ExhaustionEvent
    from ephmon.model.alerting.state_machine import Alert, Alerts, UserFailures
    from ephmon.model.pools.kinds import Pool, PoolKey

_MOST_USERS = 3
_DECIMALS = 6
"""Of ratios and seconds, as in the JSON of pools."""


def sentence(alert: Alert) -> str:
    """Return the sentence of an alert, with the figures of the last poll that read its pool."""
    return _SENTENCES[alert.key.name](alert)


def figures(alert: Alert) -> dict[str, object]:
    """Return the figures of an alert by name, as in a line of the log; None if it has no such figure."""
    key = alert.key
    return {
        "alert": key.name,
        "severity": alert.severity,
        "netns": key.netns or None,
        **({} if key.pool is None else _identity(key.pool)),
        "value": round(alert.value, _DECIMALS),
        **(_quantities(alert.pools[0]) if key.pool and alert.pools else {}),
        "since": utc_time(alert.since.wall),
    }


def _identity(key: PoolKey) -> dict[str, object]:
    destination = None if key.destination is None else endpoint(key.destination, key.destination_port)
    return {"kind": key.kind, "source": key.source, "destination": destination}


def _quantities(pool: Pool) -> dict[str, object]:
    return {
        "usable": pool.usable,
        "blocked": pool.blocked,
        "in_use": pool.in_use,
        "time_wait": pool.time_wait,
        "reusable": pool.reusable,
        "remaining": pool.remaining,
    }


def alert_objects(alerts: Alerts) -> list[dict[str, Any]]:
    """Return the active alerts as JSON objects, most urgent first."""
    return [
        {
            "alertname": alert.key.name,
            "severity": alert.severity,
            "netns": printable(alert.key.netns),
            "pool": None if alert.key.pool is None else _pool_object(alert.key.pool),
            "since": utc_time(alert.since.wall),
            "value": round(alert.value, _DECIMALS),
            "summary": sentence(alert),
        }
        for alert in alerts.firing
    ]


def _pool_object(key: PoolKey) -> dict[str, Any]:
    return {
        "netns": printable(key.netns),
        "kind": key.kind,
        "source": key.source,
        "destination": key.destination,
        "destination_port": key.destination_port,
    }


def _name(key: PoolKey | None) -> str:
    return "every pool" if key is None else pool_name(key)


def _rest(pool: Pool) -> str:
    if pool.is_doubted:
        return f"connect() failed, so the lower bound counts: {_room(pool)} ports are left"
    if not pool.remaining:
        return f"none of {pool.usable} ports is left, the next allocation fails with {pool.failure_errno}"
    unproven = pool.reusable_unproven
    unless = f", {unproven} of them only if the peer uses TCP timestamps" if unproven else ""
    return f"{remaining(pool)} of {pool.usable} ports are left{unless}"


def _near_exhaustion(alert: Alert) -> str:
    rest = "".join(f": {_rest(pool)}" for pool in alert.pools)
    return f"{_name(alert.key.pool)} is at {percent(alert.value)}%{rest}."


def _forecast(alert: Alert) -> str:
    now = "".join(f", now at {percent(pool.utilisation)}%" for pool in alert.pools)
    return f"{_name(alert.key.pool)} runs out of ports in about {alert.value:.0f} s at the present rate{now}."


def _ports_blocked(alert: Alert) -> str:
    netns = alert.key.netns
    where = "" if netns == OWN_NETNS else f" of {printable(netns)}"
    named = "; ".join(f"{_name(pool.key)} is at {percent(pool.utilisation)}%" for pool in alert.pools)
    fullest = f" The fullest pools: {named}." if named else ""
    return f"{percent(alert.value)}% of the usable ports{where} are blocked for every connect().{fullest}"


def _connect_exhaustions(alert: Alert) -> str:
    if alert.key.pool is None:
        return _exhaustions_of_users(alert)
    calls = "1 connect() call" if alert.value == 1 else f"{alert.value:.0f} connect() calls"
    why = "".join(map(_why_no_port, alert.pools)) or "failed because no port was left."
    return f"{calls} of {_name(alert.key.pool)} {why}{_last_caller(alert.call)}"


def _why_no_port(pool: Pool) -> str:
    """Return why calls failed, or what may have been the reason where the pool seems to have room."""
    causes = possible_causes(pool)
    if not causes:
        return f"failed because no port was left; the pool is at {percent(pool.utilisation)}%."
    listed = "; ".join(_CAUSES[cause].format(pool=pool) for cause in causes)
    return f"found no port. Now {_room(pool)} ports are left. Possible causes: {listed}."


_CAUSES = {
    Cause.PORTS_IN_DOUBT: "some of {pool.in_doubt} ports in doubt are blocked",
    Cause.NO_TIMESTAMPS: (
        "the destination speaks no TCP timestamps, so {pool.reusable_unproven} TIME_WAITs keep their ports"
    ),
    Cause.OWN_RANGE: "the socket has a port range of its own",
    Cause.FULL_BETWEEN_POLLS: "the pool was full between two polls",
}


def _room(pool: Pool) -> str:
    left = f"{pool.remaining} to {pool.remaining_max}" if pool.is_doubted else remaining(pool)
    return f"{left} of {pool.usable}"


def _exhaustions_of_users(alert: Alert) -> str:
    named = [_user(user) for user in alert.users[:_MOST_USERS]]
    others = len(alert.users) - len(named)
    who = " and ".join(filter(None, [", ".join(named), f"{others} more" if others else ""]))
    why = "Sockets with a port range of their own run out like that."
    if alert.severity is Severity.CRITICAL:
        why = "Other sockets block the ports."
    return f"connect() calls of {who} found no port, in pools that hardly hold one. {why}{_last_caller(alert.call)}"


def _user(user: UserFailures) -> str:
    name = "an unknown user" if user.uid is None else f"uid {user.uid}"
    destinations = "1 destination" if user.destinations == 1 else f"{user.destinations} destinations"
    return f"{name} toward {destinations}"


def _last_caller(call: ExhaustionEvent | None) -> str:
    if call is None or call.pid is None:
        return ""
    owner = owner_of(call.cgroup, call.uid)
    user = f", uid {call.uid}" if call.uid is not None and (owner is None or owner.kind != OwnerKind.UID) else ""
    where = f" of {printable(owner.name)}" if owner else ""
    return f" The last one was made by {printable(call.command or '?')}{where} (pid {call.pid}{user})."


def _connect_slow(alert: Alert) -> str:
    searches = "".join(map(search_sentence, alert.pools))
    return f"{searches or _name(alert.key.pool)} That takes at least {percent(alert.value)}% of a processor core."


def _too_many(alert: Alert) -> str:
    number = "1 more alert is" if alert.value == 1 else f"{alert.value:.0f} more alerts are"
    return f"{number} active than may be shown one by one."


_SENTENCES: Mapping[AlertName, Callable[[Alert], str]] = {
    AlertName.POOL_NEAR_EXHAUSTION: _near_exhaustion,
    AlertName.POOL_EXHAUSTION_FORECAST: _forecast,
    AlertName.PORTS_BLOCKED: _ports_blocked,
    AlertName.CONNECT_EXHAUSTIONS: _connect_exhaustions,
    AlertName.CONNECT_SLOW: _connect_slow,
    AlertName.TOO_MANY_ALERTS: _too_many,
}
