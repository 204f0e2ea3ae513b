"""One receiver: when it is sent which alerts, and what follows from its response. Lives in the delivery thread.

An alert is pending for a receiver until the receiver has accepted the alert's present state. Changes are sent at once,
but not sooner than `pause_seconds` after the last message; unchanged alerts are sent again at the interval of the
format. After a failure the receiver is left alone for a while that doubles, or for as long as it asks; the next attempt
contains what changed meanwhile. A message that it refuses (4xx, except 408 and 429) counts as accepted, because sending
it again would not help: it is not repeated before the regular time.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from typing import TYPE_CHECKING

from ephmon import log
from ephmon.delivery.alert_set import AlertSet
from ephmon.delivery.post import PostError
from ephmon.delivery.settings import MessageContext
from ephmon.log import Line
from ephmon.model.status import DeliveryFailure

if TYPE_CHECKING:
    from collections.abc import Callable

    from ephmon.delivery.alertmanager import Alertmanager
    from ephmon.delivery.notification import Identity, Notification
    from ephmon.delivery.post import Poster
    from ephmon.delivery.settings import DeliveryTimes
    from ephmon.delivery.webhook import Webhook
    from ephmon.model.status import DeliveryCounts

_SECONDS_BETWEEN_WARNINGS = 60.0
# After any other failure the name is looked up again, because the address may belong to another host by now.
_NOT_ABOUT_THE_ADDRESS = (
    DeliveryFailure.NAME,
    DeliveryFailure.SOURCE_PORT,
    DeliveryFailure.RATE_LIMITED,
    DeliveryFailure.DEFECT,
)
# From some 30 doublings on the longest retry is reached in any case, and a power without a limit would overflow.
_MAX_DOUBLINGS = 32

_log = logging.getLogger(__name__)


class Receiver:
    """One URL that alerts are posted to."""

    def __init__(
        self,
        message_format: Alertmanager | Webhook,
        poster: Poster,
        *,
        times: DeliveryTimes,
        tally: DeliveryCounts,
        wall_clock: Callable[[], float],
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`wall_clock` returns seconds since the epoch, `chance` random numbers from 0 to 1."""
        self.format = message_format
        self.poster = poster
        self.context = MessageContext()
        self.pending = 0
        """How many alerts it has not accepted in their present state; any thread may read it."""
        self._times = times
        self._tally = tally
        self._chance = chance
        self._wall_clock = wall_clock
        self._alerts = AlertSet()
        self._accepted: dict[Identity, tuple[float, bool]] = {}
        """The state of each alert that the receiver accepted last."""
        self._woken = asyncio.Event()
        self._stopping = False
        self._sent_at = -math.inf
        self._not_before = -math.inf
        self._failures = 0
        self._warned_reason: DeliveryFailure | None = None
        self._warned_at = -math.inf

    def __str__(self) -> str:
        return f"The {self.format.kind} at {self.poster.target}"

    def update(self, alerts: AlertSet) -> None:
        """Send what changed as soon as possible."""
        for identity in self._accepted.keys() - alerts.active.keys() - alerts.resolved.keys():
            _, was_over = self._accepted.pop(identity)
            if not was_over:  # the set has forgotten the alert before the receiver learned of its end
                self._tally.dropped += 1
        self._alerts = alerts
        self._woken.set()

    def skip_resolved(self, alerts: AlertSet, predecessor: Receiver | None = None) -> None:
        """Do not send alerts that were resolved before this receiver was configured.

        Those that `predecessor`, the receiver it replaces, has not accepted yet are sent nevertheless.
        """
        accepted = predecessor._accepted if predecessor else {}  # noqa: SLF001 - of the same class
        for identity, alert in alerts.resolved.items():
            if predecessor is None or accepted.get(identity) == alert.state:
                self._accepted[identity] = alert.state

    def stop(self) -> None:
        """Let `run` end after one attempt to send what is pending."""
        self._stopping = True
        self._woken.set()

    async def run(self) -> None:
        """Send what is due, until `stop` is called. After an error it may be run again, also in another loop."""
        self._woken = asyncio.Event()  # an Event belongs to the loop that waited for it
        while True:
            self._woken.clear()
            message, seconds = self._plan(asyncio.get_running_loop().time())
            if seconds <= 0:
                await self._attempt(message)
            elif self._stopping:
                return
            else:
                try:
                    async with asyncio.timeout(seconds if math.isfinite(seconds) else None):
                        await self._woken.wait()
                except TimeoutError:
                    continue

    def _plan(self, now: float) -> tuple[tuple[Notification, ...], float]:
        """Return the next message, and in how many seconds it is due; infinite if there is nothing to send."""
        relevant = self.format.relevant(self._alerts, self._wall_clock())
        pending = tuple(alert for alert in relevant if self._accepted.get(alert.identity) != alert.state)
        self.pending = len(pending)
        message = self.format.next_message(relevant, pending)
        if not message or (self._stopping and not pending):
            return (), math.inf
        pause = self._times.pause_seconds if pending else self.format.resend_seconds
        due_at = self._sent_at + (0 if self._stopping else pause)
        return message, max(due_at, self._not_before) - now

    async def _attempt(self, message: tuple[Notification, ...]) -> None:
        # The set may change while the receiver takes its time; what it accepts is what was sent.
        alerts, now = self._alerts, self._wall_clock()
        self._tally.attempts += 1
        try:
            body = self.format.render(message, now, self.context)
            await self.poster.post(body, deadline_seconds=self._times.deadline_seconds, now=now)
        except PostError as error:
            self._note_failure(error, alerts)
        except Exception as error:  # noqa: BLE001 - a defect in one message must not end all deliveries
            detail = f"got no message because of a defect in ephmon; please report it: {log.error_location(error)}"
            self._note_failure(PostError(DeliveryFailure.DEFECT, detail), alerts)
        else:
            self._note_accepted(alerts)
            self._tally.succeeded_at = self._wall_clock()
            if self._warned_reason is not None:
                log.write(_log, Line(logging.INFO, f"{self} accepts alerts again.", {"failed": self._failures}))
            self._warned_reason, self._failures = None, 0

    def _note_accepted(self, alerts: AlertSet) -> None:
        self._accepted = {alert.identity: alert.state for alert in (*alerts.active.values(), *alerts.resolved.values())}
        self._sent_at = asyncio.get_running_loop().time()

    def _note_failure(self, error: PostError, alerts: AlertSet) -> None:
        self._failures += 1
        self._tally.failures[error.reason] += 1
        if error.reason not in _NOT_ABOUT_THE_ADDRESS:
            self.poster.addresses.refresh()
        now = asyncio.get_running_loop().time()
        if error.reason == DeliveryFailure.CLIENT_ERROR:
            self._note_accepted(alerts)
            seconds = 0.0
        else:
            seconds = max(self._backoff_seconds(), error.retry_after_seconds)
            self._not_before = now + seconds
        # One line for each reason, and at most one a minute if the receiver comes and goes.
        if error.reason != self._warned_reason and now - self._warned_at >= _SECONDS_BETWEEN_WARNINGS:
            self._warned_reason, self._warned_at = error.reason, now
            fields = {"reason": error.reason, "failed": self._failures, "retry_seconds": round(seconds, 1) or None}
            log.write(_log, Line(logging.WARNING, f"{self} {error}.", fields))

    def _backoff_seconds(self) -> float:
        doublings = min(self._failures - 1, _MAX_DOUBLINGS)
        seconds = min(self.format.longest_retry_seconds, self._times.first_retry_seconds * 2.0**doublings)
        # Cut at random, so that many hosts do not retry in step after their receiver was away.
        return seconds * (0.5 + self._chance() / 2)
