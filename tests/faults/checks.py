"""What ephmon does under faults: sentences, each with what proves it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from tests.delivery import delivering
from tests.faults.case import Check
from tests.faults.stage import failed_polls
from tests.processes import eventually

if TYPE_CHECKING:
    from tests.faults.stage import Stage


def _polls_go_on(stage: Stage) -> None:
    before = failed_polls(stage.daemon.metrics())
    stage.daemon.wait_for_polls(3)
    assert failed_polls(stage.daemon.wait_for(poll_success=1)) == before


def _polls_fail(stage: Stage) -> None:
    failed = failed_polls(stage.daemon.wait_for(poll_success=0))
    eventually(stage.failures, lambda now: now >= failed + 2)


def _says_that_polls_fail(stage: Stage) -> None:
    stage.daemon.wait_for_line("The poll failed: ")


def _alert_fires(stage: Stage) -> None:
    eventually(lambda: stage.value('alerts_active{severity="critical"}'), lambda number: number >= 1)


def _alert_is_delivered(stage: Stage) -> None:
    (first,) = stage.ns.call(delivering.wait_for_posts, "hook", 1)
    assert "firing" in first.body.decode()


def _is_scraped(stage: Stage) -> None:
    for path in ("/metrics", "/", "/api/v1/pools"):
        # On a busy machine the data may be older than three intervals for a moment.
        eventually(partial(stage.daemon.get, path), lambda reply: reply.status == 200)


def _keeps_the_configuration(stage: Stage) -> None:
    stage.daemon.wait_for(config_last_reload_successful=0)


def _writes_the_incident(stage: Stage) -> None:
    stage.wait_for_value("incidents_total", 1)


POLLS_GO_ON = Check("Polls go on.", _polls_go_on)
POLLS_FAIL = Check("Polls fail until it ends.", _polls_fail)
SAYS_THAT_POLLS_FAIL = Check("Polls fail until it ends.", _says_that_polls_fail)
"""The same where nobody can ask for the metrics."""
ALERT_FIRES = Check("The alert fires.", _alert_fires)
ALERT_IS_DELIVERED = Check("The alert is delivered.", _alert_is_delivered)
IS_SCRAPED = Check("Every scrape is answered.", _is_scraped)
KEEPS_THE_CONFIGURATION = Check("It keeps the old configuration.", _keeps_the_configuration)
WRITES_THE_INCIDENT = Check("The incident is written ten minutes later.", _writes_the_incident)
