"""One receiver: when it is sent what, and what follows from its answer. Lives in the event loop of deliveries.

A receiver is owed the state of each alert that it has not taken yet. What changed is sent at once, but never sooner
than `pause_seconds` after the last time; what has not is sent again at the pace of the kind. After a failure it is left
alone for a while that doubles, or for as long as it asks; what changes meanwhile is in the next attempt. What it
refuses (4xx, but not 408 and 429) counts as taken: it is not sent again before the regular time.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ephmon import log
from ephmon.delivery import alertmanager, webhook
from ephmon.delivery.notification import Standing
from ephmon.delivery.post import PostError
from ephmon.log import Line
from ephmon.model.delivery_status import FailureReason, ReceiverKind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ephmon.delivery.notification import Identity, Notification
    from ephmon.delivery.post import Poster
    from ephmon.model.delivery_status import Tally

_WARNING_SECONDS = 60.0
# After any other failure the name is looked up again: somebody else may have got the address, and answers.
_NOT_OF_THE_ADDRESS = (FailureReason.NAME, FailureReason.SOURCE_PORT, FailureReason.RATE_LIMITED, FailureReason.DEFECT)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryTimes:
    """The pace of deliveries, in seconds."""

    deadline_seconds: float = 10.0
    """For one attempt."""
    pause_seconds: float = 5.0
    """Between two attempts that succeed: 12 a minute, fewer than there are source ports by default."""
    first_retry_seconds: float = 2.0
    """After the first failure; doubled for each further one, and as much as halved by chance."""
    resend_seconds: float = 60.0
    """An Alertmanager is sent every alert so often, and tried at least so often."""
    resolved_seconds: float = 300.0
    """An Alertmanager is sent resolved alerts for so long. One that starts anew has forgotten the alerts, and announces
    the end of one that it has announced only if it hears of it again; later than `endsAt` it has no need to be told."""
    repeat_seconds: float = 4 * 3600.0
    """A webhook is sent active alerts again after so long, as Alertmanager's repeat_interval is by default."""
    longest_retry_seconds: float = 300.0
    """A webhook is tried at least so often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wording:
    """What the messages say beside the alerts."""

    labels: Mapping[str, str] = field(default_factory=dict)
    """Those that every alert carries by configuration."""
    host: str = ""
    external_url: str = ""


class Alertmanager:
    """What an Alertmanager is sent: always everything, active or resolved of late."""

    kind = ReceiverKind.ALERTMANAGER

    def __init__(self, times: DeliveryTimes) -> None:
        self._times = times
        self.resend_seconds = times.resend_seconds
        self.longest_retry_seconds = times.resend_seconds

    def concerns(self, standing: Standing, now: float) -> tuple[Notification, ...]:
        """Return the alerts that it is to know of."""
        return (*standing.active.values(), *standing.resolved_since(now - self._times.resolved_seconds))

    def due(self, concerns: tuple[Notification, ...], _owed: tuple[Notification, ...]) -> tuple[Notification, ...]:
        """Return what the next message holds."""
        return concerns

    def render(self, alerts: tuple[Notification, ...], now: float, wording: Wording) -> bytes:
        """Return the message."""
        resend = self._times.resend_seconds
        return alertmanager.render(alerts, now=now, resend_seconds=resend, external_url=wording.external_url)


class Webhook:
    """What a webhook is sent: all active alerts, and the resolved ones of whose end it has not heard."""

    kind = ReceiverKind.WEBHOOK

    def __init__(self, times: DeliveryTimes) -> None:
        self.resend_seconds = times.repeat_seconds
        self.longest_retry_seconds = times.longest_retry_seconds

    def concerns(self, standing: Standing, _now: float) -> tuple[Notification, ...]:
        """Return the alerts that it is to know of."""
        return (*standing.active.values(), *standing.resolved.values())

    def due(self, concerns: tuple[Notification, ...], owed: tuple[Notification, ...]) -> tuple[Notification, ...]:
        """Return what the next message holds."""
        keys = {alert.identity for alert in owed}
        return tuple(alert for alert in concerns if alert.ends_at is None or alert.identity in keys)

    def render(self, alerts: tuple[Notification, ...], _now: float, wording: Wording) -> bytes:
        """Return the message."""
        return webhook.render(alerts, group_labels=wording.labels, host=wording.host, external_url=wording.external_url)


Kind = Alertmanager | Webhook


class Receiver:
    """One URL that alerts are posted to."""

    def __init__(
        self,
        kind: Kind,
        poster: Poster,
        *,
        times: DeliveryTimes,
        tally: Tally,
        wall_clock: Callable[[], float],
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`wall_clock` returns seconds since the epoch, `chance` numbers from 0 to 1."""
        self.kind = kind
        self.poster = poster
        self.wording = Wording()
        self.owed = 0
        """How many alerts it has not taken in their present state; for any thread."""
        self._times = times
        self._tally = tally
        self._chance = chance
        self._wall_clock = wall_clock
        self._standing = Standing()
        self._taken: dict[Identity, tuple[float, bool]] = {}
        self._woken = asyncio.Event()
        self._stopping = False
        self._sent_at = -math.inf
        self._not_before = -math.inf
        self._failures = 0
        self._warned_of: FailureReason | None = None
        self._warned_at = -math.inf

    def __str__(self) -> str:
        return f"The {self.kind.kind} at {self.poster.target}"

    def take(self, standing: Standing) -> None:
        """Send what this changes as soon as may be."""
        for key in self._taken.keys() - standing.active.keys() - standing.resolved.keys():
            _, was_over = self._taken.pop(key)
            self._tally.dropped += not was_over
        self._standing = standing
        self._woken.set()

    def consider_told(self, standing: Standing, predecessor: Receiver | None = None) -> None:
        """Owe it no alert that was resolved before it came, but those that a predecessor was still owed."""
        before = predecessor._taken if predecessor else {}  # noqa: SLF001 - of the same class
        for key, alert in standing.resolved.items():
            if predecessor is None or before.get(key) == alert.state:
                self._taken[key] = alert.state

    def stop(self) -> None:
        """End `run` once what can be sent now has been sent."""
        self._stopping = True
        self._woken.set()

    async def run(self) -> None:
        """Send what is due, until `stop`."""
        while True:
            self._woken.clear()
            alerts, seconds = self._plan(asyncio.get_running_loop().time())
            if seconds <= 0:
                await self._attempt(alerts)
            elif self._stopping:
                return
            else:
                try:
                    async with asyncio.timeout(seconds if math.isfinite(seconds) else None):
                        await self._woken.wait()
                except TimeoutError:
                    continue

    def _plan(self, now: float) -> tuple[tuple[Notification, ...], float]:
        """Return what is to be sent next, and in how many seconds."""
        concerns = self.kind.concerns(self._standing, self._wall_clock())
        owed = tuple(alert for alert in concerns if self._taken.get(alert.identity) != alert.state)
        self.owed = len(owed)
        alerts = self.kind.due(concerns, owed)
        if not alerts or (self._stopping and not owed):
            return (), math.inf
        pause = self._times.pause_seconds if owed else self.kind.resend_seconds
        due_at = self._sent_at + (0 if self._stopping else pause)
        return alerts, max(due_at, self._not_before) - now

    async def _attempt(self, alerts: tuple[Notification, ...]) -> None:
        standing, now = self._standing, self._wall_clock()
        self._tally.attempts += 1
        try:
            body = self.kind.render(alerts, now, self.wording)
            await self.poster.post(body, deadline_seconds=self._times.deadline_seconds, now=now)
        except PostError as error:
            self._failed(error, standing)
        except Exception as error:  # noqa: BLE001 - a defect of ours in one message must not end all deliveries
            detail = f"was not sent to because of a defect of ephmon, please report it: {log.place(error)}"
            self._failed(PostError(FailureReason.DEFECT, detail), standing)
        else:
            self._note_taken(standing)
            self._tally.succeeded_at = self._wall_clock()
            if self._warned_of is not None:
                log.write(_log, Line(logging.INFO, f"{self} takes alerts again.", {"failed": self._failures}))
            self._warned_of, self._failures = None, 0

    def _note_taken(self, standing: Standing) -> None:
        concerns = (*standing.active.values(), *standing.resolved.values())
        self._taken = {alert.identity: alert.state for alert in concerns}
        self._sent_at = asyncio.get_running_loop().time()

    def _failed(self, error: PostError, standing: Standing) -> None:
        self._failures += 1
        self._tally.failures[error.reason] += 1
        if error.reason not in _NOT_OF_THE_ADDRESS:
            self.poster.addresses.refresh()
        now = asyncio.get_running_loop().time()
        if error.reason == FailureReason.CLIENT_ERROR:
            self._note_taken(standing)
            seconds = 0.0
        else:
            seconds = max(self._backoff_seconds(), error.retry_after_seconds)
            self._not_before = now + seconds
        # Told once for each reason, and at most once a minute where a receiver comes and goes.
        if error.reason != self._warned_of and now - self._warned_at >= _WARNING_SECONDS:
            self._warned_of, self._warned_at = error.reason, now
            fields = {"reason": error.reason, "failed": self._failures, "retry_seconds": round(seconds, 1) or None}
            log.write(_log, Line(logging.WARNING, f"{self} {error}.", fields))

    def _backoff_seconds(self) -> float:
        longest = self.kind.longest_retry_seconds
        # From a few doublings on, the longest is reached; unbounded, the power would overflow.
        seconds = min(longest, self._times.first_retry_seconds * 2.0 ** min(self._failures - 1, 32))
        return seconds * (0.5 + self._chance() / 2)
