"""Sends alerts to receivers from a thread of its own.

The polling thread hands over the active alerts and new settings; POSTs go out. The two threads share one reference to
an immutable `AlertSet`, so that a poll never waits for a receiver. Receivers do not wait for each other either.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
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
from ephmon.errors import EphmonError
from ephmon.log import Line
from ephmon.model.status import DeliveryCounts, DeliveryStatus, ReceiverKind, status_of

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


@dataclass(frozen=True, slots=True)
class _Running:
    loop: asyncio.AbstractEventLoop
    closing: asyncio.Event
    thread: threading.Thread


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
    ) -> None:
        """`look_up` returns the addresses of a name for a port; `wall_clock` returns seconds since the epoch."""
        self._times = times or DeliveryTimes()
        self._look_up = look_up
        self._wall_clock = wall_clock
        self._running: _Running | None = None
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

    @property
    def is_running(self) -> bool:
        """Whether there is a delivery thread: from the first receiver on."""
        return self._running is not None

    def configure(self, settings: DeliverySettings) -> None:
        """Deliver by these settings from now on: start, change, or do nothing while there is no receiver.

        A receiver that is in both the old and the new settings keeps its state.

        Raises:
            EphmonError: The process has no descriptor or thread left; nothing has changed.
        """
        if self._running is None:
            if not settings.has_receiver:
                return
            self._running = self._start()
        self._settings = settings
        self._alerts = self._alerts.updated(self._active, settings.labels, self._wall_clock())
        self._call(self._apply, settings, self._alerts)

    def update(self, active: Sequence[Notification]) -> None:
        """Deliver that these alerts are active, and that alerts of the last update that are missing here are over."""
        if self._settings is None:
            return
        self._active = active
        self._alerts = self._alerts.updated(active, self._settings.labels, self._wall_clock())
        self._call(self._update_receivers, self._alerts)

    def status(self) -> DeliveryStatus | None:
        """Return the counts and what is pending; None before the first receiver."""
        if self._running is None:
            return None
        receivers = tuple(self._receivers.values())
        return status_of(self._counts, ((receiver.format.kind, receiver.pending) for receiver in receivers))

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """End the thread after at most so many seconds, in which it sends what is pending.

        Active alerts stay active at the receivers.
        """
        if self._running is None:
            return
        self._close_seconds = seconds
        self._call(self._running.closing.set)
        self._running.thread.join(seconds + _MARGIN_SECONDS)
        if self._running.thread.is_alive():
            log.write(_log, Line(logging.WARNING, "The delivery thread did not end in time and was abandoned."))

    def _start(self) -> _Running:
        try:
            loop = asyncio.new_event_loop()
        except OSError as error:
            raise _cannot_start(error.strerror) from error
        loop.set_exception_handler(log.defect_handler(_report_defect))
        closing = asyncio.Event()
        thread = threading.Thread(target=self._run, args=(loop, closing), name="delivery", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            loop.close()
            raise _cannot_start(str(error)) from error
        return _Running(loop, closing, thread)

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        """Let the delivery thread call a function; after the thread has ended, do nothing."""
        assert self._running is not None  # checked by every caller
        with suppress(RuntimeError):  # the loop is closed
            self._running.loop.call_soon_threadsafe(function, *arguments)

    def _run(self, loop: asyncio.AbstractEventLoop, closing: asyncio.Event) -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(self._deliver(closing))

    async def _deliver(self, closing: asyncio.Event) -> None:
        await closing.wait()
        for receiver in self._tasks:
            receiver.stop()
        if self._tasks:
            # The runner cancels what has not ended by then.
            await asyncio.wait(self._tasks.values(), timeout=self._close_seconds)

    def _update_receivers(self, alerts: AlertSet) -> None:
        for receiver in self._receivers.values():
            receiver.update(alerts)

    def _apply(self, settings: DeliverySettings, alerts: AlertSet) -> None:
        """Start, change and end receivers."""
        if settings.alertmanager_urls and not settings.labels:
            log.write(_log, Line(logging.WARNING, NO_HOST_LABEL))
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
                task = asyncio.get_running_loop().create_task(receiver.run())
                task.add_done_callback(log.report_task_error)
                self._tasks[receiver] = task

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


def _cannot_start(reason: str | None) -> EphmonError:
    return EphmonError(f"Alerts cannot be delivered: {reason}; allow ephmon more files or threads.")


def _receiver_urls(settings: DeliverySettings) -> Iterator[tuple[ReceiverKind, str]]:
    for url in settings.alertmanager_urls:
        yield ReceiverKind.ALERTMANAGER, url
    if settings.webhook_url:
        yield ReceiverKind.WEBHOOK, settings.webhook_url


def _report_defect(location: str) -> None:
    message = f"A defect in ephmon interrupted deliveries; please report it: {location}."
    log.write(_log, Line(logging.ERROR, message))
