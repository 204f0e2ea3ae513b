"""What goes on while the demo waits: looks at ephmon, Alertmanager and the pager, and says what has changed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from demo.service import ALERTMANAGER, EPHMON, get_json
from demo.stage import SHOP, SHOP_PORT, DemoError, Stage

if TYPE_CHECKING:
    from collections.abc import Callable

    from demo.service import Page, Pager
    from demo.timeline import Timeline

NO_FREE_PORTS = "no free ports"
"""What HAProxy logs of a connect() that found no port."""
_LOOK_SECONDS = 0.2
_BAR = 30
_STEP = 0.1
"""How far the share of ports in use or in TIME_WAIT moves before it is worth a line."""
_TO_THE_SHOP = {"kind": "tcp_connect", "destination": SHOP, "destination_port": SHOP_PORT}


@dataclass(frozen=True, slots=True)
class Figures:
    """The pool toward the shop, in ports."""

    usable: int = 0
    time_wait: int = 0
    reusable: int = 0
    remaining: int = 0
    utilisation: float = 0.0

    @classmethod
    def of(cls, pool: dict[str, Any]) -> Self:
        """Return those of a pool as ephmon's HTTP side tells it."""
        names = ("usable", "time_wait", "reusable", "remaining")
        return cls(utilisation=pool["utilisation_ratio"], **{name: pool[f"{name}_ports"] for name in names})

    def differ(self, shown: Figures | None) -> bool:
        """Tell whether they are worth a line after those that were shown last."""
        if shown is None:
            return self.usable > 0
        moved = abs(self.utilisation - shown.utilisation), abs(self.time_wait - shown.time_wait) / self.usable
        return max(moved) >= _STEP

    def __str__(self) -> str:
        bar = "#" * round(self.utilisation * _BAR)
        reusable = ", reusable" if self.reusable > self.time_wait / 2 else ""
        remain = f"{self.remaining} of {self.usable} ports remain"
        return f"{self.utilisation:4.0%} |{bar:<{_BAR}}| {remain}; {self.time_wait} in TIME_WAIT{reusable}"


class Watch:
    """Sees what changes; `until` is how the demo waits."""

    def __init__(self, stage: Stage, timeline: Timeline, pager: Pager) -> None:
        self._stage = stage
        self._timeline = timeline
        self._pager = pager
        self.criticals: set[str] = set()
        """The critical alerts that the pager has been told of, and not yet of their ends."""
        self._shown: Figures | None = None
        self._severities: dict[str, str] = {}
        self.figures = Figures()
        self.failures: int | None = None
        """connect() calls that failed, as ephmon counts them; None where it cannot."""
        self.failed_at = 0.0
        """When the number last changed, in monotonic seconds."""
        self._logged = 0

    @property
    def logged(self) -> int:
        """connect() calls that failed, as HAProxy logs them."""
        return self._stage.read("proxy.out").count(NO_FREE_PORTS)

    def until(self, is_so: Callable[[], object], otherwise: str, seconds: float) -> None:
        """Look until something is so, and say what changes meanwhile.

        Raises:
            DemoError: It is not so in time, or a program has ended.
        """
        deadline = time.monotonic() + seconds
        self.look()
        while not is_so():
            if time.monotonic() > deadline:
                raise DemoError(f"After {seconds:g} s {otherwise}; `--keep` keeps the logs.")
            time.sleep(_LOOK_SECONDS)
            self.look()

    def look(self) -> None:
        """Look once."""
        self._stage.check()
        document = get_json(EPHMON, "/api/v1/pools")
        if document is not None:
            self._see_pool(document)
            self._see_alerts(document)
        self._see_failures()
        for page in self._pager.pages():
            self._timeline.say("pager", _called(page))
            if page.labels["severity"] == "critical":
                change = self.criticals.add if page.status == "firing" else self.criticals.discard
                change(page.labels["alertname"])

    def show(self) -> None:
        """Say how full the pool is."""
        self._shown = self.figures
        self._timeline.say("ephmon", str(self.figures), is_figures=True)

    def _see_pool(self, document: dict[str, Any]) -> None:
        pools = [pool for pool in document["pools"] if _TO_THE_SHOP.items() <= pool.items()]
        if pools:
            self.figures = Figures.of(pools[0])
        if self.figures.differ(self._shown):
            self.show()

    def _see_alerts(self, document: dict[str, Any]) -> None:
        firing = {
            alert["alertname"]: alert
            for alert in document["alerts"]
            if alert["pool"] and _TO_THE_SHOP.items() <= alert["pool"].items()
        }
        for name, alert in firing.items():
            before = self._severities.get(name)
            if (before, alert["severity"]) == ("critical", "warning"):
                self._timeline.say("ephmon", f"{name} is but a warning now.")
            elif before != alert["severity"]:
                self._timeline.say("ephmon", f"{alert['severity'].upper()} {name}: {alert['summary']}")
        for name in self._severities.keys() - firing.keys():
            self._timeline.say("ephmon", f"{name} is over.")
        self._severities = {name: alert["severity"] for name, alert in firing.items()}

    def _see_failures(self) -> None:
        document, logged, before = get_json(EPHMON, "/api/v1/exhaustions"), self.logged, (self.failures, self._logged)
        if document is not None and document["available"]:
            self.failures = document["totals"].get("own", 0)
            if self.failures and not before[0]:
                self._timeline.say("ephmon", _first_failure(document["events"]))
        self._logged = logged
        if (self.failures, logged) != before:
            self.failed_at = time.monotonic()


def held_alerts() -> list[dict[str, Any]] | None:
    """Return the alerts that Alertmanager holds, None while it does not answer."""
    found: list[dict[str, Any]] | None = get_json(ALERTMANAGER, "/api/v2/alerts?active=true")
    return found


def _first_failure(events: list[dict[str, Any]]) -> str:
    event = next(event for event in events if event["netns"] == "own")
    return (
        f"connect() FAILED for want of a port: {event['command']} (pid {event['pid']}) toward "
        f"{event['destination']}:{event['destination_port']}, and it is not the last."
    )


def _called(page: Page) -> str:
    return f"{page.status.upper()} {page.labels['alertname']}, {page.labels['severity']}: {page.annotations['summary']}"
