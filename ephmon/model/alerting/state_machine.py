"""The alerts: a state machine that is written as a table, and the bound on how many are told.

What comes in is what a poll says of each alert (`Observation`); `ephmon.model.alerting.conditions` draws that from the
pools. Nothing here knows of ports or thresholds, reads a clock, or notifies anybody.

An alert has a track for each severity, and each track goes by `TRANSITIONS`. What a poll says of a track is a signal:

=========  =============================================================================================================
UNSEEN     The poll did not look, so nothing changes: no alert comes or goes for want of data.
BELOW      Below `clear`, or what it is about is no longer there.
BETWEEN    At or above `clear`, but below where it starts: the band in which nothing starts and nothing ends.
REACHED    Where it starts, or above.
DUE        REACHED, and for as long as `for` asks.
=========  =============================================================================================================

`for` counts from the poll that first saw REACHED and starts anew when a poll sees less, BETWEEN included: the
condition has to hold throughout, as in Prometheus, so that nothing starts to fire while it is below its threshold.
That a pool around its threshold is told later is the price; a threshold without `for` bounds it.

A critical alert silences the warning of the same key: they are one alert, with the severity in force. While the
critical track fires, the warning track counts as firing too, so an alert that is critical no longer becomes a warning
at once and does not wait for `for` again.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from ephmon.model.alerting.thresholds import Severity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from ephmon.facts.failed_calls import ExhaustionEvent
    from ephmon.model.pools.kinds import Pool, PoolKey


class AlertName(StrEnum):
    """What an alert is about; the value of the label `alertname`."""

    POOL_NEAR_EXHAUSTION = "EphmonPoolNearExhaustion"
    POOL_EXHAUSTION_FORECAST = "EphmonPoolExhaustionForecast"
    PORTS_BLOCKED = "EphmonPortsBlocked"
    CONNECT_EXHAUSTIONS = "EphmonConnectExhaustions"
    TOO_MANY_ALERTS = "EphmonTooManyAlerts"


class AlertKey(NamedTuple):
    """What identifies an alert."""

    name: AlertName
    netns: str
    """Empty for the summary, which is of all namespaces."""
    pool: PoolKey | None = None
    """None for a condition of a namespace, and for the summary."""


SUMMARY = AlertKey(AlertName.TOO_MANY_ALERTS, "")


class Phase(StrEnum):
    """The states of an alert."""

    INACTIVE = "inactive"
    PENDING = "pending"
    """Reached, but not for as long as `for` asks."""
    FIRING = "firing"
    RESOLVED = "resolved"
    """Fired until this very poll."""


class Signal(IntEnum):
    """What a poll says of one severity, the worse the greater."""

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
    """What durations are counted on."""
    wall: float
    """Since the epoch: what people are told."""


class Judgement(NamedTuple):
    """What a poll says of one severity of an alert."""

    signal: Signal
    """Any but DUE, which is for the state machine to say."""
    for_seconds: float = 0.0


_UNSEEN = Judgement(Signal.UNSEEN)
_BELOW = Judgement(Signal.BELOW)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What a poll says of one alert."""

    value: float
    """What is judged, as people are told it: a ratio, seconds or a count, by the name of the alert."""
    judgements: Mapping[Severity, Judgement]
    """A severity that is left out is UNSEEN."""
    pools: tuple[Pool, ...] = ()
    """The pool it is about, or those that it names, worst first."""
    call: ExhaustionEvent | None = None
    """The connect() call it is about, or the last of them."""


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
    """In force; the last one that was if it is resolved, the worst that may come if it is pending."""
    since: Moment
    """When it became pending if it is that, else when it began to fire, in whatever severity."""
    ended: Moment | None = None
    """When it was seen to be over; None unless it is resolved."""
    value: float
    """As it was when last looked at; see `Observation`."""
    pools: tuple[Pool, ...]
    """The same."""
    call: ExhaustionEvent | None = None
    """The same."""
    is_told: bool = False
    """Whether it fires for all to see, or resolved after it did; False for one that found no place."""
    tracks: Mapping[Severity, Track]

    @property
    def severity_since(self) -> Moment:
        """Since when it has the severity that it has."""
        return self.tracks[self.severity].since

    def fires_as(self, severity: Severity) -> bool:
        """Tell whether the condition of a severity holds, whether or not a worse one silences it."""
        return self.tracks[severity].phase is Phase.FIRING


@dataclass(frozen=True, slots=True, kw_only=True)
class Alerts:
    """All alerts that are not inactive, the most urgent first; at most three times `max_active` and the summary."""

    states: Mapping[AlertKey, Alert] = field(default_factory=dict)

    @property
    def firing(self) -> tuple[Alert, ...]:
        """Those that fire for all to see, at most `max_active` and the summary."""
        return tuple(alert for alert in self.states.values() if alert.is_told and alert.phase is Phase.FIRING)

    @property
    def resolved(self) -> tuple[Alert, ...]:
        """Those that were told and ended with the latest poll that looked."""
        return tuple(alert for alert in self.states.values() if alert.phase is Phase.RESOLVED)

    def is_firing(self, key: AlertKey) -> bool:
        """Tell whether an alert fires, told or not."""
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
        previous: The alerts before it.
        observations: What it says.
        looked_at: Whether a key without observation was looked at, so that what it is about is no longer there; asked
            of the summary, whether everything was looked at.
        at: When it was.
        max_active: How many alerts fire for all to see; one more, the summary, says how many found no place.
    """
    keys = {*previous.states, *observations} - {SUMMARY}
    stepped = (
        _next(key, previous.states.get(key), observations.get(key), _BELOW if looked_at(key) else _UNSEEN, at)
        for key in keys
    )
    told, waiting, resolved = _by_place([alert for alert in stepped if alert is not None], max_active)
    followed, forgotten = waiting[:max_active], waiting[max_active:]
    homeless = [alert for alert in followed if alert.phase is Phase.FIRING]
    if len(told) == max_active:  # else what is forgotten while it is pending finds a place later
        homeless += forgotten
    before = previous.states.get(SUMMARY)
    summed_up = _summed_up(homeless) if looked_at(SUMMARY) else _at_least(_summed_up(homeless), before)
    summary = _next(SUMMARY, before, summed_up, _BELOW, at)
    last = [] if summary is None else [replace(summary, is_told=True)]
    return Alerts(states={alert.key: alert for alert in (*told, *followed, *resolved, *last)})


def transitions(previous: Alerts, current: Alerts) -> list[Transition]:
    """Return what changed for people from one report to the next: phase, severity, or whether it is told.

    It follows from the two alone, so that a report which comes twice tells nothing twice.
    """
    found = (Transition(previous.states.get(key), alert) for key, alert in current.states.items())
    return [one for one in found if one.before is None or _shown(one.before) != _shown(one.after)]


def _shown(alert: Alert) -> tuple[Phase, Severity, bool]:
    return alert.phase, alert.severity, alert.is_told


def _next(
    key: AlertKey, before: Alert | None, observation: Observation | None, default: Judgement, at: Moment
) -> Alert | None:
    """Return an alert after a poll, None if it is inactive; `default` judges it where there is no observation."""
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
        is_told=before is not None and before.is_told and before.phase is Phase.FIRING,
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
        begun = track.since if track.phase is Phase.PENDING else at
        if at.monotonic - begun.monotonic >= judgement.for_seconds:
            signal = Signal.DUE
    phase = TRANSITIONS[track.phase, signal]
    return track if phase is track.phase else Track(phase, at)


def _by_place(alerts: Iterable[Alert], places: int) -> tuple[list[Alert], list[Alert], list[Alert]]:
    """Return the alerts that are told, those that fire untold or are pending, and those that were told until now."""
    by_phase: dict[Phase, list[Alert]] = {phase: [] for phase in _MOST_ACTIVE_FIRST}
    for alert in sorted(alerts, key=_most_urgent_first):
        by_phase[alert.phase].append(alert)
    firing = by_phase[Phase.FIRING]
    told = [replace(alert, is_told=True) for alert in firing[:places]]
    untold = [replace(alert, is_told=False) for alert in firing[places:]]
    return told, [*untold, *by_phase[Phase.PENDING]], [alert for alert in by_phase[Phase.RESOLVED] if alert.is_told]


def _most_urgent_first(alert: Alert) -> tuple[bool, bool, bool, bool, float, float, tuple[str, ...]]:
    """Return what decides who gets a place.

    A condition of a namespace stands for many pools; a critical alert must not be kept out by warnings; and among
    equals those keep their places who have them, because a place that is lost looks like an end. Failed calls that no
    pool explains come last: any user can make them.
    """
    utilisation = alert.pools[0].utilisation if alert.pools else 0.0
    return (
        alert.key.pool is not None,
        alert.severity is not Severity.CRITICAL,
        alert.key.name is AlertName.CONNECT_EXHAUSTIONS and alert.severity is not Severity.CRITICAL,
        not alert.is_told,
        alert.since.monotonic,
        -utilisation,
        _text(alert.key),
    )


def _text(key: AlertKey) -> tuple[str, ...]:
    return key.name, key.netns, *("" if part is None else str(part) for part in key.pool or ())


def _summed_up(homeless: Sequence[Alert]) -> Observation:
    severities = {alert.severity for alert in homeless}
    critical = _of(found=Severity.CRITICAL in severities)
    return Observation(
        value=len(homeless),
        judgements={Severity.CRITICAL: critical, Severity.WARNING: _of(found=bool(severities))},
    )


def _at_least(found: Observation, before: Alert | None) -> Observation:
    """Return what a poll that did not look at everything says: that there are so many, not that there are no more."""
    reached = {severity: one for severity, one in found.judgements.items() if one.signal is Signal.REACHED}
    return replace(found, value=max(found.value, before.value if before else 0), judgements=reached)


def _of(*, found: bool) -> Judgement:
    return Judgement(Signal.REACHED if found else Signal.BELOW)
