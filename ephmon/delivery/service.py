"""Deliveries: one thread that sees to it that every receiver learns the state of the alerts.

Comes in, from the polling thread: the alerts that are active, and new settings. Goes out: POSTs. The two threads share
one reference to an immutable `Standing`, so that a poll never waits for a receiver; receivers do not wait for each
other either.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ephmon import log
from ephmon.delivery.alertmanager import ALERTS_PATH
from ephmon.delivery.name_resolution import KnownAddresses, look_up
from ephmon.delivery.notification import Standing
from ephmon.delivery.post import Poster, parse_target
from ephmon.delivery.receiver import Alertmanager, DeliveryTimes, Receiver, Webhook, Wording
from ephmon.delivery.source_ports import SourcePorts
from ephmon.log import Line
from ephmon.model.delivery_status import DeliveryStatus, ReceiverKind, Tally, status_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ephmon.delivery.notification import Notification
    from ephmon.delivery.source_ports import Address
    from ephmon.facts.snapshot import PortRange

NAMELESS = (
    "notify.labels is empty, so alerts do not say which host they are from, and an Alertmanager takes those of two "
    "hosts for one where their pools are the same; name the host, such as notify.labels: {instance: web1}."
)
_MARGIN_SECONDS = 1.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliverySettings:
    """What the user decides of deliveries, checked; URLs are secrets."""

    source_ports: PortRange
    labels: Mapping[str, str] = field(default_factory=dict)
    """Added to every alert."""
    alertmanager_urls: tuple[str, ...] = field(default=(), repr=False)
    webhook_url: str = field(default="", repr=False)
    """"" for none."""
    external_url: str = ""
    """Where ephmon's page is, for people who are told of an alert; "" for nowhere."""


class Delivery:
    """Delivers from a thread of its own, started by `start` and ended by `close`.

    `update`, `reconfigure` and `status` return at once, and may be called from one other thread at any time.
    """

    def __init__(
        self,
        settings: DeliverySettings,
        *,
        times: DeliveryTimes | None = None,
        look_up: Callable[[str, int], tuple[Address, ...]] = look_up,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """`look_up` returns the addresses of a name for a port; `wall_clock` seconds since the epoch."""
        self._settings = settings
        self._times = times or DeliveryTimes()
        self._look_up = look_up
        self._wall_clock = wall_clock
        self._active: Sequence[Notification] = ()
        self._standing = Standing()
        self._tallies = {kind: Tally() for kind in ReceiverKind}
        self._receivers: dict[tuple[ReceiverKind, str], Receiver] = {}
        self._tasks: dict[Receiver, asyncio.Task[None]] = {}
        self._ports = SourcePorts(settings.source_ports)
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(_report_defect)
        self._closing = asyncio.Event()
        self._close_seconds = 0.0
        self._thread = threading.Thread(target=self._run, name="delivery", daemon=True)

    def start(self) -> None:
        """Look up the receivers, then deliver in the background."""
        self._call(self._take_over, self._settings, self._standing)
        self._thread.start()

    def update(self, active: Sequence[Notification]) -> None:
        """Deliver that these alerts are active, and that those of the last time that are not among them are over."""
        self._active = active
        self._standing = self._standing.followed_by(active, self._settings.labels, self._wall_clock())
        self._call(self._pass_on, self._standing)

    def reconfigure(self, settings: DeliverySettings) -> None:
        """Go by other settings.

        A receiver that stays keeps what it was told and what it waits for; a new one is told of all active alerts, and
        one that goes is told nothing more. Names are looked up again; where that fails, the last answer holds.
        """
        self._settings = settings
        self._standing = self._standing.followed_by(self._active, settings.labels, self._wall_clock())
        self._call(self._take_over, settings, self._standing)

    def status(self) -> DeliveryStatus:
        """Return the counts and what is pending."""
        receivers = tuple(self._receivers.values())
        return status_of(self._tallies, ((receiver.kind.kind, receiver.owed) for receiver in receivers))

    def close(self, seconds: float) -> None:
        """End the thread; what can be sent within so many seconds still is. Alerts stay active where they were sent."""
        self._close_seconds = seconds
        self._call(self._closing.set)
        self._thread.join(seconds + _MARGIN_SECONDS)
        if self._thread.is_alive():
            log.write(_log, Line(logging.WARNING, "The delivery thread has not ended in time and is left behind."))

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        """Have the delivery thread call a function; nothing happens once it has ended."""
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(function, *arguments)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._deliver())

    async def _deliver(self) -> None:
        await self._closing.wait()
        for receiver in self._tasks:
            receiver.stop()
        if self._tasks:
            # What is still under way then, the end of the loop cancels.
            await asyncio.wait(self._tasks.values(), timeout=self._close_seconds)

    def _pass_on(self, standing: Standing) -> None:
        for receiver in self._receivers.values():
            receiver.take(standing)

    def _take_over(self, settings: DeliverySettings, standing: Standing) -> None:
        if settings.alertmanager_urls and not settings.labels:
            log.write(_log, Line(logging.WARNING, NAMELESS))
        if settings.source_ports != self._ports.range:
            self._ports = SourcePorts(settings.source_ports)
        wording = Wording(labels=settings.labels, host=socket.gethostname(), external_url=settings.external_url)
        wanted = tuple(_wanted(settings))
        tls = ssl.create_default_context() if any(url.startswith("https:") for _, url in wanted) else None
        previous, receivers = self._receivers, {}
        for kind, url in wanted:
            receiver = previous.get((kind, url)) or self._new_receiver(kind, url, standing)
            receiver.wording = wording
            receiver.poster = replace(receiver.poster, ports=self._ports, tls=tls)
            receivers[kind, url] = receiver
        self._receivers = receivers
        for receiver in set(previous.values()).difference(receivers.values()):
            self._tasks.pop(receiver).cancel()
        for receiver in receivers.values():
            receiver.poster.addresses.refresh()
            receiver.take(standing)
            if receiver not in self._tasks:
                self._tasks[receiver] = self._loop.create_task(receiver.run())
                self._tasks[receiver].add_done_callback(_hand_on_error)

    def _new_receiver(self, kind: ReceiverKind, url: str, standing: Standing) -> Receiver:
        target = parse_target(url, ALERTS_PATH if kind == ReceiverKind.ALERTMANAGER else "")
        addresses = KnownAddresses(target.host, target.port, self._look_up)
        receiver = Receiver(
            _FORMATS[kind](self._times),
            Poster(target=target, addresses=addresses, ports=self._ports, tls=None),
            times=self._times,
            tally=self._tallies[kind],
            wall_clock=self._wall_clock,
        )
        predecessors = (other for (kind_of_other, _), other in self._receivers.items() if kind_of_other == kind)
        receiver.consider_told(standing, next(predecessors, None))
        return receiver


def _wanted(settings: DeliverySettings) -> Iterator[tuple[ReceiverKind, str]]:
    for url in settings.alertmanager_urls:
        yield ReceiverKind.ALERTMANAGER, url
    if settings.webhook_url:
        yield ReceiverKind.WEBHOOK, settings.webhook_url


_FORMATS: Mapping[ReceiverKind, type[Alertmanager | Webhook]] = {
    ReceiverKind.ALERTMANAGER: Alertmanager,
    ReceiverKind.WEBHOOK: Webhook,
}


def _hand_on_error(task: asyncio.Task[None]) -> None:
    """Give what ended a receiver's task to the loop's exception handler now, and not when the task is collected."""
    error = None if task.cancelled() else task.exception()
    if error is not None:
        context = {"message": "a receiver's task ended in an error", "exception": error}
        asyncio.get_running_loop().call_exception_handler(context)


def _report_defect(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what escaped."""
    error = context.get("exception")
    if isinstance(error, OSError):
        return  # the network's, of a connection that was given up
    message = f"Deliveries met a defect of ephmon, please report it: {log.place(error)}."
    log.write(_log, Line(logging.ERROR, message))
