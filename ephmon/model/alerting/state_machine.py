"""The alerts: a state machine that is written as a table, and the bound on how many are announced.

The input is what a poll says of each alert (`Observation`), which `ephmon.model.alerting.conditions` finds out from the
pools. Nothing here knows ports or thresholds, reads a clock, or notifies anybody.

An alert has a track for each severity, and each track follows `TRANSITIONS`. What a poll says of a track is a signal:

=========  =============================================================================================================
UNSEEN     The poll did not look, so nothing changes: no alert comes or goes for want of data.
BELOW      Below `clear`, or the pool of the alert is gone.
BETWEEN    At or above `clear`, but below where it starts: the band in which nothing starts and nothing ends.
REACHED    Where it starts, or above.
DUE        REACHED, and for as long as `for` asks.
=========  =============================================================================================================

`for` counts from the poll that first saw REACHED, and starts again after any poll that saw less, BETWEEN included. The
condition has to hold all the time, as in Prometheus, so that nothing starts to fire while it is below its threshold.
The price is that a pool which wavers around its threshold is announced later.

A critical alert silences the warning of the same key: they are one alert, with the severity in force. While the
critical track fires, the warning track counts as firing too. So when an alert is no longer critical, it becomes a
warning at once, without waiting for `for` again.

At most `max_active` alerts are announced: shown and sent one by one. One more alert, the summary, says how many others
fire. Those wait, unannounced, until there is room. Nor are more than a number of new alerts announced in an hour.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from ephmon.model.alerting.thresholds import Severity
from ephmon.model.newcomers import Admission, Newcomers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from ephmon.facts.failed_calls import ExhaustionEvent
    from ephmon.model.pools.kinds import Pool, PoolKey


class AlertName(StrEnum):
    """The kinds of alerts; the value of the label `alertname`."""

    POOL_NEAR_EXHAUSTION = "EphmonPoolNearExhaustion"
    POOL_EXHAUSTION_FORECAST = "EphmonPoolExhaustionForecast"
    PORTS_BLOCKED = "EphmonPortsBlocked"
    CONNECT_EXHAUSTIONS = "EphmonConnectExhaustions"
    CONNECT_SLOW = "EphmonConnectSlow"
    TOO_MANY_ALERTS = "EphmonTooManyAlerts"


class AlertKey(NamedTuple):
    """What identifies an alert."""

    name: AlertName
    netns: str
    """Empty for the summary, which is of all namespaces."""
    pool: PoolKey | None = None
    """None for a condition of a namespace, for the failed calls of single users, and for the summary."""


NEW_SECONDS = 3600.0
"""An alert that was announced within so long and comes back is not new."""
MOST_NEW_AT_WILL = 20
"""So many new alerts that any user can make (`Alert.is_at_will`) are announced in NEW_SECONDS."""
NEW_PER_ACTIVE = 10
"""So many other new ones, times `max_active`."""

SUMMARY = AlertKey(AlertName.TOO_MANY_ALERTS, "")


class Phase(StrEnum):
    """The states of an alert."""

    INACTIVE = "inactive"
    PENDING = "pending"
    """The threshold is reached, but not yet for as long as `for` says."""
    FIRING = "firing"
    RESOLVED = "resolved"
    """Ended at this poll."""


class UserFailures(NamedTuple):
    """The failed calls of one user toward pools that hardly anybody else draws from."""

    uid: int | None
    destinations: int
    """A bounded number of them is known."""


class Signal(IntEnum):
    """What a poll says of one severity of an alert; a worse signal is a greater number."""

    UNSEEN = 0
    BELOW = 1
    BETWEEN = 2
    REACHED = 3
    DUE = 4


TRANSITIONS: Mapping[tuple[Phase, Signal], Phase] = MappingProxyType(
    {
        (Phase.INACTIVE, Signal.UNSEEN): Phase.INACTIVE,
        (Phase.INACTIVE, Signal.BELOW): Phase.INACTIVE,
        (Phase.INACTIVE, Signal.BETWEEN): Phase.INACTIVE,
        (Phase.INACTIVE, Signal.REACHED): Phase.PENDING,
        (Phase.INACTIVE, Signal.DUE): Phase.FIRING,
        (Phase.PENDING, Signal.UNSEEN): Phase.PENDING,
        (Phase.PENDING, Signal.BELOW): Phase.INACTIVE,
        (Phase.PENDING, Signal.BETWEEN): Phase.INACTIVE,
        (Phase.PENDING, Signal.REACHED): Phase.PENDING,
        (Phase.PENDING, Signal.DUE): Phase.FIRING,
        (Phase.FIRING, Signal.UNSEEN): Phase.FIRING,
        (Phase.FIRING, Signal.BELOW): Phase.RESOLVED,
        (Phase.FIRING, Signal.BETWEEN): Phase.FIRING,
        (Phase.FIRING, Signal.REACHED): Phase.FIRING,
        (Phase.FIRING, Signal.DUE): Phase.FIRING,
        (Phase.RESOLVED, Signal.UNSEEN): Phase.INACTIVE,
        (Phase.RESOLVED, Signal.BELOW): Phase.INACTIVE,
        (Phase.RESOLVED, Signal.BETWEEN): Phase.INACTIVE,
        (Phase.RESOLVED, Signal.REACHED): Phase.PENDING,
        (Phase.RESOLVED, Signal.DUE): Phase.FIRING,
    }
)

_MOST_ACTIVE_FIRST = (Phase.FIRING, Phase.PENDING, Phase.RESOLVED)
_WORST_FIRST = (Severity.CRITICAL, Severity.WARNING)


class Moment(NamedTuple):
    """One moment on two clocks, in seconds."""

    monotonic: float
    """For durations."""
    wall: float
    """Since the epoch, for people."""


class Judgement(NamedTuple):
    """What a poll says of one severity of an alert."""

    signal: Signal
    """Never DUE: only the state machine knows how long the threshold has been reached."""
    for_seconds: float = 0.0


_UNSEEN = Judgement(Signal.UNSEEN)
_BELOW = Judgement(Signal.BELOW)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What a poll says of one alert."""

    value: float
    """The number that was judged: a ratio, seconds or a count, which depends on the name of the alert."""
    judgements: Mapping[Severity, Judgement]
    """A severity that is left out is UNSEEN."""
    pools: tuple[Pool, ...] = ()
    """The pool of the alert, or the pools that the alert names, worst first."""
    call: ExhaustionEvent | None = None
    """The last connect() call that failed, for an alert of failed calls."""
    users: tuple[UserFailures, ...] = ()
    """Whose calls failed, for an alert of the failed calls of single users; the most destinations first."""


class Track(NamedTuple):
    """One severity of an alert."""

    phase: Phase
    since: Moment


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One alert that is not inactive."""

    key: AlertKey
    phase: Phase
    severity: Severity
    """While it fires, the severity in force; once resolved, the last one; while pending, the worst that may come."""
    since: Moment
    """When it became pending, or once it has fired, when it began to fire, in any severity."""
    ended: Moment | None = None
    """When a poll saw that it is over; None unless it is resolved."""
    value: float
    """See `Observation`; from the last poll that looked."""
    pools: tuple[Pool, ...]
    """The same."""
    call: ExhaustionEvent | None = None
    """The same."""
    users: tuple[UserFailures, ...] = ()
    """The same."""
    is_announced: bool = False
    """Whether people see it, or saw it until it resolved; False for an alert beyond `max_active`."""
    tracks: Mapping[Severity, Track]

    @property
    def severity_since(self) -> Moment:
        """When it took the severity that it has now."""
        return self.tracks[self.severity].since

    @property
    def is_at_will(self) -> bool:
        """Whether any user can make alerts like this one in any number: of failed calls that no full pool explains."""
        return self.key.name is AlertName.CONNECT_EXHAUSTIONS and self.severity is not Severity.CRITICAL

    def fires_as(self, severity: Severity) -> bool:
        """Tell whether the condition of a severity holds, even if a worse severity silences it."""
        return self.tracks[severity].phase is Phase.FIRING


@dataclass(frozen=True, slots=True, kw_only=True)
class Alerts:
    """All alerts that are not inactive, the most urgent first; at most three times `max_active` and the summary."""

    states: Mapping[AlertKey, Alert] = field(default_factory=dict)
    newcomers: Mapping[bool, Newcomers[AlertKey]] = field(default_factory=dict)
    """The alerts that were announced in the last NEW_SECONDS: those at will, and the others."""

    @property
    def firing(self) -> tuple[Alert, ...]:
        """The announced alerts that fire, at most `max_active` and the summary."""
        return tuple(alert for alert in self.states.values() if alert.is_announced and alert.phase is Phase.FIRING)

    @property
    def resolved(self) -> tuple[Alert, ...]:
        """The announced alerts that ended at the latest poll that looked."""
        return tuple(alert for alert in self.states.values() if alert.phase is Phase.RESOLVED)

    def is_firing(self, key: AlertKey) -> bool:
        """Tell whether an alert fires, announced or not."""
        alert = self.states.get(key)
        return alert is not None and alert.phase is Phase.FIRING


class Transition(NamedTuple):
    """A change of an alert from one report to the next."""

    before: Alert | None
    after: Alert


def step(
    previous: Alerts,
    observations: Mapping[AlertKey, Observation],
    looked_at: Callable[[AlertKey], bool],
    at: Moment,
    max_active: int,
) -> Alerts:
    """Return the alerts after a poll.

    Args:
        previous: The alerts before the poll.
        observations: What the poll says.
        looked_at: Whether the poll looked at a key of which it says nothing; if so, the pool of the alert is gone. For
            the key of the summary: whether the poll looked at everything.
        at: When the poll was.
        max_active: How many alerts are announced, the summary apart.
    """
    keys = {*previous.states, *observations} - {SUMMARY}
    stepped = (
        _next(key, previous.states.get(key), observations.get(key), _BELOW if looked_at(key) else _UNSEEN, at)
        for key in keys
    )
    admissions = _admissions(previous, max_active, at)
    announced, waiting, resolved = _split([alert for alert in stepped if alert is not None], max_active, admissions)
    # Any user can make any number of alerts, so only so many of those that wait are remembered.
    kept, forgotten = waiting[:max_active], waiting[max_active:]
    is_full = len(announced) == max_active  # otherwise an alert that is pending will be announced once it fires
    unannounced = [alert for alert in kept if alert.phase is Phase.FIRING]
    unannounced += [alert for alert in forgotten if is_full or alert.phase is Phase.FIRING]
    before = previous.states.get(SUMMARY)
    observation = _of_summary(unannounced)
    if not looked_at(SUMMARY):
        observation = _only_worse(observation, before)
    summary = _next(SUMMARY, before, observation, _BELOW, at)
    last = [] if summary is None else [replace(summary, is_announced=True)]
    newcomers = {
        is_at_will: admission.after([one.key for one in announced if one.is_at_will is is_at_will], most)
        for is_at_will, (admission, most) in admissions.items()
    }
    return Alerts(states={alert.key: alert for alert in (*announced, *kept, *resolved, *last)}, newcomers=newcomers)


def _admissions(previous: Alerts, max_active: int, at: Moment) -> dict[bool, tuple[Admission[AlertKey], int]]:
    """Return what decides which alerts are announced that were not lately, at will and others, with their bounds.

    The bounds are apart, so that what any user can do keeps no other alert back.
    """
    bounds = {True: MOST_NEW_AT_WILL, False: NEW_PER_ACTIVE * max_active}
    return {
        is_at_will: (
            Admission(
                previous.newcomers.get(is_at_will, Newcomers()), most=most, seconds=NEW_SECONDS, now=at.monotonic
            ),
            most,
        )
        for is_at_will, most in bounds.items()
    }


def transitions(previous: Alerts, current: Alerts) -> list[Transition]:
    """Return the alerts whose phase, severity or announcement changed from one report to the next.

    The result depends on these two reports alone, so a report that comes twice repeats nothing.
    """
    found = (Transition(previous.states.get(key), alert) for key, alert in current.states.items())
    return [one for one in found if one.before is None or _visible_part(one.before) != _visible_part(one.after)]


def _visible_part(alert: Alert) -> tuple[Phase, Severity, bool]:
    return alert.phase, alert.severity, alert.is_announced


def _next(
    key: AlertKey, before: Alert | None, observation: Observation | None, default: Judgement, at: Moment
) -> Alert | None:
    """Return an alert after a poll, None if it is inactive; `default` is its judgement without an observation."""
    tracks = _tracks(before, observation, default, at)
    phases = [track.phase for track in tracks.values()]
    phase = next((phase for phase in _MOST_ACTIVE_FIRST if phase in phases), Phase.INACTIVE)
    seen = observation or before
    if phase is Phase.INACTIVE or seen is None:
        return None
    fired_until_now = phase is Phase.RESOLVED
    goes_on = before is not None and (before.phase is phase or fired_until_now)
    return Alert(
        key=key,
        phase=phase,
        severity=next(severity for severity in _WORST_FIRST if tracks[severity].phase is phase),
        since=before.since if before is not None and goes_on else at,
        ended=at if fired_until_now else None,
        value=seen.value,
        pools=seen.pools,
        call=seen.call,
        users=seen.users,
        is_announced=before is not None and before.is_announced and before.phase is Phase.FIRING,
        tracks=tracks,
    )


def _tracks(
    before: Alert | None, observation: Observation | None, default: Judgement, at: Moment
) -> dict[Severity, Track]:
    tracks = {}
    for severity in _WORST_FIRST:
        judgement = default if observation is None else observation.judgements.get(severity, _UNSEEN)
        track = Track(Phase.INACTIVE, at) if before is None else before.tracks[severity]
        tracks[severity] = _advance(track, judgement, at)
    critical, warning = tracks[Severity.CRITICAL], tracks[Severity.WARNING]
    if critical.phase is Phase.FIRING and warning.phase is not Phase.FIRING:
        tracks[Severity.WARNING] = critical
    return tracks


def _advance(track: Track, judgement: Judgement, at: Moment) -> Track:
    signal = judgement.signal
    if signal is Signal.REACHED:
        reached_since = track.since if track.phase is Phase.PENDING else at
        if at.monotonic - reached_since.monotonic >= judgement.for_seconds:
            signal = Signal.DUE
    phase = TRANSITIONS[track.phase, signal]
    return track if phase is track.phase else Track(phase, at)


def _split(
    alerts: Iterable[Alert], max_active: int, admissions: Mapping[bool, tuple[Admission[AlertKey], int]]
) -> tuple[list[Alert], list[Alert], list[Alert]]:
    """Return the alerts to announce, those that fire unannounced or are pending, and the announced ones that ended."""
    by_phase: dict[Phase, list[Alert]] = {phase: [] for phase in _MOST_ACTIVE_FIRST}
    for alert in sorted(alerts, key=_most_urgent_first):
        by_phase[alert.phase].append(alert)
    announced: list[Alert] = []
    unannounced: list[Alert] = []
    for alert in by_phase[Phase.FIRING]:
        admission, _ = admissions[alert.is_at_will]
        # What is shown goes on being shown, also once it is an hour old or has become less severe.
        is_shown = len(announced) < max_active and (alert.is_announced or admission.admits(alert.key))
        (announced if is_shown else unannounced).append(replace(alert, is_announced=is_shown))
    ended = [alert for alert in by_phase[Phase.RESOLVED] if alert.is_announced]
    return announced, [*unannounced, *by_phase[Phase.PENDING]], ended


def _most_urgent_first(alert: Alert) -> tuple[bool, bool, bool, bool, float, float, tuple[str, ...]]:
    """Return what decides which alerts are announced.

    An alert of a namespace comes first, because it covers many pools. Warnings must not keep a critical alert out.
    Failed calls that no full pool explains come last, because any user can make them. Among equal alerts those stay
    announced that are, because an alert that disappears looks as if it had ended.
    """
    utilisation = alert.pools[0].utilisation if alert.pools else 0.0
    return (
        alert.key.pool is not None or alert.is_at_will,
        alert.severity is not Severity.CRITICAL,
        alert.is_at_will,
        not alert.is_announced,
        alert.since.monotonic,
        -utilisation,
        _comparable(alert.key),
    )


def _comparable(key: AlertKey) -> tuple[str, ...]:
    return key.name, key.netns, *("" if part is None else str(part) for part in key.pool or ())


def _of_summary(unannounced: Sequence[Alert]) -> Observation:
    """Return what a poll that looked at everything says of the summary."""
    severities = {alert.severity for alert in unannounced}
    reached = {Severity.CRITICAL: Severity.CRITICAL in severities, Severity.WARNING: bool(severities)}
    return Observation(
        value=len(unannounced),
        judgements={
            severity: Judgement(Signal.REACHED if is_reached else Signal.BELOW)
            for severity, is_reached in reached.items()
        },
    )


def _only_worse(observation: Observation, before: Alert | None) -> Observation:
    """Return what a poll that did not look at everything says: there may be more unannounced alerts, but not fewer."""
    reached = {severity: one for severity, one in observation.judgements.items() if one.signal is Signal.REACHED}
    return replace(observation, value=max(observation.value, before.value if before else 0), judgements=reached)
