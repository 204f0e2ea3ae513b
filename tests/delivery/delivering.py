"""Deliveries and receivers inside a network namespace: functions for `Namespace.call`.

They stay in the agent until it ends: one delivery, and receivers under the tags that the test gives them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ephmon.delivery.service import Delivery
from tests.delivery.receivers import PostReceiver

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ephmon.delivery.notification import Notification
    from ephmon.delivery.settings import DeliverySettings, DeliveryTimes
    from ephmon.model.status import DeliveryStatus
    from tests.delivery.receivers import Received

_deliveries: list[Delivery] = []
_receivers: dict[str, PostReceiver] = {}


def start(settings: DeliverySettings, times: DeliveryTimes) -> None:
    """Start the delivery."""
    _deliveries.append(Delivery(times=times))
    _deliveries[-1].configure(settings)


def update(*active: Notification) -> None:
    """Tell it which alerts are active."""
    _deliveries[-1].update(active)


def status() -> DeliveryStatus:
    """Return its status."""
    status = _deliveries[-1].status()
    assert status is not None
    return status


def receive(tag: str, port: int, host: str = "127.0.0.1") -> None:
    """Listen for posts on a port of loopback and answer each with 200."""
    _receivers[tag] = PostReceiver(host=host, port=port).__enter__()


def open_receiver(tag: str, make: Callable[[], PostReceiver]) -> None:
    """Let a receiver that is made here listen."""
    _receivers[tag] = make().__enter__()


def close_receiver(tag: str) -> None:
    """Let a receiver listen no more."""
    _receivers.pop(tag).close()


def wait_for_posts(tag: str, number: int) -> Sequence[Received]:
    """Wait until there were so many, and return those."""
    return _receivers[tag].wait_for(number)


def posts(tag: str) -> Sequence[Received]:
    """Return all that there were so far."""
    return tuple(_receivers[tag].requests)
