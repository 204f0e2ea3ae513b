"""Sends alerts to receivers from a thread of its own.

The polling thread hands over the active alerts and new settings; POSTs go out. The two threads share one reference to
an immutable `AlertSet`, so that a poll never waits for a receiver. Receivers do not wait for each other either.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from ephmon import log
from ephmon.delivery.alert_set import AlertSet
from ephmon.delivery.alertmanager import Alertmanager
from ephmon.delivery.name_resolution import KnownAddresses, look_up
from ephmon.delivery.post import Poster, parse_target
from ephmon.delivery.receiver import Receiver
from ephmon.delivery.settings import DeliveryTimes, MessageContext
from ephmon.delivery.source_ports import SourcePorts
from ephmon.delivery.trust_store import TrustStore
from ephmon.delivery.webhook import Webhook
from ephmon.log import Line
from ephmon.model.status import DeliveryCounts, DeliveryStatus, ReceiverKind, status_of
from ephmon.supervision.backoff import Backoff
from ephmon.supervision.loop_thread import LoopThread
from ephmon.supervision.tasks import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, keep_running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ephmon.delivery.notification import Notification
    from ephmon.delivery.settings import DeliverySettings
    from ephmon.delivery.source_ports import Address

NO_HOST_LABEL = (
    "notify.labels is empty, so alerts do not name this host, and an Alertmanager merges equal alerts of two hosts. "
    "Name the host, for example with notify.labels: {instance: web1}."
)
CLOSE_SECONDS = 2.0
"""How long messages may still take when the daemon stops, so that a receiver that hangs does not delay it much."""
_MARGIN_SECONDS = 1.0

_log = logging.getLogger(__name__)


class Delivery:
    """Delivers from a thread of its own, which `configure` starts with the first receiver and `close` ends.

    Every method but `close` returns at once. All may be called from one other thread at any time.
    """

    def __init__(
        self,
        *,
        times: DeliveryTimes | None = None,
        look_up: Callable[[str, int], tuple[Address, ...]] = look_up,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Deliver nothing yet.

        Args:
            times: How long to wait for what.
            look_up: Returns the addresses of a name for a port.
            wall_clock: Seconds since the epoch.
            clock: The monotonic clock, in seconds.
        """
        self.thread = LoopThread("delivery", self._deliver, report_defect=_report_defect, clock=clock)
        self._times = times or DeliveryTimes()
        self._look_up = look_up
        self._wall_clock = wall_clock
        self._settings: DeliverySettings | None = None
        self._active: Sequence[Notification] = ()
        self._alerts = AlertSet()
        self._close_seconds = 0.0
        # What follows belongs to the delivery thread.
        self._counts = {kind: DeliveryCounts() for kind in ReceiverKind}
        self._receivers: dict[tuple[ReceiverKind, str], Receiver] = {}
        self._tasks: dict[Receiver, asyncio.Task[None]] = {}
        self._ports: SourcePorts | None = None
        self._trust_store = TrustStore()
        self._apply_again = Backoff(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)

    @property
    def is_running(self) -> bool:
        """Whether alerts are delivered: from the first receiver on."""
        return self.thread.is_started

    def configure(self, settings: DeliverySettings) -> None:
        """Deliver by these settings from now on: start, change, or do nothing while there is no receiver.

        A receiver that is in both the old and the new settings keeps its state.

        Raises:
            ThreadError: The process has no descriptor or thread left; nothing has changed.
        """
        if not self.thread.is_started:
            if not settings.has_receiver:
                return
            self.thread.start()
        self._settings = settings
        self._alerts = self._alerts.updated(self._active, settings.labels, self._wall_clock())
        if settings.alertmanager_urls and not settings.labels:
            log.write(_log, Line(logging.WARNING, NO_HOST_LABEL))
        self.thread.call(self._apply_settings)

    def update(self, active: Sequence[Notification]) -> None:
        """Deliver that these alerts are active, and that alerts of the last update that are missing here are over."""
        if self._settings is None:
            return
        self._active = active
        self._alerts = self._alerts.updated(active, self._settings.labels, self._wall_clock())
        self.thread.call(self._update_receivers, self._alerts)

    def status(self) -> DeliveryStatus | None:
        """Return the counts and what is pending; None before the first receiver."""
        if not self.is_running:
            return None
        receivers = tuple(self._receivers.values())
        return status_of(self._counts, ((receiver.format.kind, receiver.pending) for receiver in receivers))

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """End the thread after at most so many seconds, in which it sends what is pending.

        Active alerts stay active at the receivers.
        """
        self._close_seconds = seconds
        if not self.thread.stop(seconds + _MARGIN_SECONDS):
            log.write(_log, Line(logging.WARNING, "The delivery thread did not end in time and was abandoned."))

    async def _deliver(self, closing: asyncio.Event) -> None:
        # The receivers of a thread that has ended know what they have sent; their tasks ended with its loop. Those of
        # this loop stay: a call of `_apply_settings` may run before the loop comes to this coroutine.
        loop = asyncio.get_running_loop()
        self._tasks = {receiver: task for receiver, task in self._tasks.items() if task.get_loop() is loop}
        if self._settings is not None:
            self._apply_settings()
        await closing.wait()
        for receiver in self._tasks:
            receiver.stop()
        if self._tasks:
            # The runner cancels what has not ended by then.
            await asyncio.wait(self._tasks.values(), timeout=self._close_seconds)

    def _apply_settings(self) -> None:
        """Start, change and end receivers; if that fails, do it again after a pause."""
        assert self._settings is not None  # set by `configure`, before the first call
        try:
            self._apply(self._settings, self._alerts)
        except Exception as error:  # noqa: BLE001 - whatever it is, receivers without a task would get no alert
            seconds = self._apply_again.failed()
            asyncio.get_running_loop().call_later(seconds, self._apply_settings)
            message = f"The receivers cannot be set up; ephmon tries again: {log.error_location(error)}."
            log.write(_log, Line(logging.ERROR, message, {"retry_seconds": seconds}))
        else:
            self._apply_again.succeeded()

    def _update_receivers(self, alerts: AlertSet) -> None:
        for receiver in self._receivers.values():
            receiver.update(alerts)

    def _apply(self, settings: DeliverySettings, alerts: AlertSet) -> None:
        if self._ports is None or settings.source_ports != self._ports.range:
            self._ports = SourcePorts(settings.source_ports)
        context = MessageContext(labels=settings.labels, host=socket.gethostname(), external_url=settings.external_url)
        self._trust_store.expire()
        previous, receivers = self._receivers, {}
        for kind, url in _receiver_urls(settings):
            receiver = previous.get((kind, url)) or self._new_receiver(kind, url, alerts, self._ports)
            receiver.context = context
            receiver.poster = replace(receiver.poster, ports=self._ports)
            receivers[kind, url] = receiver
        self._receivers = receivers
        for receiver in set(previous.values()).difference(receivers.values()):
            self._tasks.pop(receiver).cancel()
        for receiver in receivers.values():
            receiver.poster.addresses.refresh()
            receiver.update(alerts)
            if receiver not in self._tasks:
                self._tasks[receiver] = asyncio.get_running_loop().create_task(
                    keep_running(receiver.run, _report_error)
                )

    def _new_receiver(self, kind: ReceiverKind, url: str, alerts: AlertSet, ports: SourcePorts) -> Receiver:
        message_format = Alertmanager(self._times) if kind == ReceiverKind.ALERTMANAGER else Webhook(self._times)
        target = parse_target(url, message_format.path)
        addresses = KnownAddresses(target.host, target.port, self._look_up)
        receiver = Receiver(
            message_format,
            Poster(target=target, addresses=addresses, ports=ports, tls=self._trust_store.context),
            times=self._times,
            tally=self._counts[kind],
            wall_clock=self._wall_clock,
        )
        predecessors = (other for (kind_of_other, _), other in self._receivers.items() if kind_of_other == kind)
        receiver.skip_resolved(alerts, next(predecessors, None))
        return receiver


def _receiver_urls(settings: DeliverySettings) -> Iterator[tuple[ReceiverKind, str]]:
    for url in settings.alertmanager_urls:
        yield ReceiverKind.ALERTMANAGER, url
    if settings.webhook_url:
        yield ReceiverKind.WEBHOOK, settings.webhook_url


def _report_error(error: Exception) -> None:
    _report_defect(log.error_location(error))


def _report_defect(location: str) -> None:
    message = f"A defect in ephmon interrupted deliveries; please report it: {location}."
    log.write(_log, Line(logging.ERROR, message))
