"""The daemon's end of deliveries: where the configuration names no receiver there are none, and nothing is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ephmon.errors import EphmonError

if TYPE_CHECKING:
    from ephmon.config.settings import Config
    from ephmon.delivery.service import Delivery
    from ephmon.model.delivery_status import DeliveryStatus
    from ephmon.model.report import Report

CLOSE_SECONDS = 2.0
"""What is under way when the daemon stops may still be sent within this time."""


class Deliveries:
    """Starts, feeds, changes and ends the delivery thread."""

    def __init__(self) -> None:
        self._delivery: Delivery | None = None

    def go_by(self, config: Config, webhook_url: str, external_url: str) -> None:
        """Deliver as the configuration says from now on. A receiver that stays loses nothing by that.

        Args:
            config: Names the receivers.
            webhook_url: The webhook's, from the configuration or from its file; "" for none.
            external_url: Where people who are told find ephmon's page, "" for nowhere.

        Raises:
            EphmonError: There is no descriptor or no thread to be had for it; everything stays as it was.
        """
        notify = config.notify
        if self._delivery is None and not (notify.alertmanager.urls or webhook_url):
            return
        try:
            self._go_by(config, webhook_url, external_url)
        except (OSError, RuntimeError) as error:  # RuntimeError: no thread could be started
            reason = (error.strerror if isinstance(error, OSError) else None) or error
            raise EphmonError(f"Alerts cannot be delivered: {reason}; allow ephmon more files or threads.") from error

    def _go_by(self, config: Config, webhook_url: str, external_url: str) -> None:
        # Only who is to be told anything needs what this drags in.
        from ephmon.delivery.service import Delivery, DeliverySettings  # noqa: PLC0415

        notify = config.notify
        settings = DeliverySettings(
            source_ports=notify.source_ports,
            labels=notify.labels,
            alertmanager_urls=notify.alertmanager.urls,
            webhook_url=webhook_url,
            external_url=external_url,
        )
        if self._delivery is None:
            delivery = Delivery(settings)
            delivery.start()
            self._delivery = delivery
        else:
            self._delivery.reconfigure(settings)

    def update(self, report: Report) -> None:
        """Deliver that the report's alerts fire, and that those of the last time that are not among them are over."""
        if self._delivery is None:
            return
        from ephmon.delivery.alert_notifications import notifications_of  # noqa: PLC0415

        self._delivery.update(notifications_of(report))

    def status(self) -> DeliveryStatus | None:
        """Return how deliveries fare, None while there are none."""
        return self._delivery.status() if self._delivery else None

    def close(self) -> None:
        """End the thread."""
        if self._delivery is not None:
            self._delivery.close(CLOSE_SECONDS)
