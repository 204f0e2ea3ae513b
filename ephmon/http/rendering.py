"""How one report is rendered into each body of the HTTP server."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ephmon.http.publication import Publication
from ephmon.outputs.documents import api
from ephmon.outputs.documents.exhaustions import exhaustions_document
from ephmon.outputs.metrics import exposition
from ephmon.outputs.page import status_page
from ephmon.outputs.text.alerts import alert_objects

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

    from ephmon.model.report import Report


def publication_of(
    report: Report,
    *,
    kernel_release: str,
    process_registry: Collector,
    expires_at: float | None,
) -> Publication:
    """Return what renders the report, body by body, as it is asked for.

    Args:
        report: The report of the last poll.
        kernel_release: As `uname -r` prints it.
        process_registry: The collector of `process_*` and `python_*`.
        expires_at: When the data stops being live, in seconds of the monotonic clock.
    """
    render = partial(exposition.render, report, kernel_release=kernel_release, process_registry=process_registry)
    return Publication.of(
        expires_at=expires_at,
        metrics=partial(render, openmetrics=False),
        openmetrics=partial(render, openmetrics=True),
        expired_metrics=partial(render, openmetrics=False, expired=True),
        expired_openmetrics=partial(render, openmetrics=True, expired=True),
        pools=lambda: api.encode(
            api.pools_document(report, [listed.pool for listed in report.listed])
            | {"alerts": alert_objects(report.alerts)}
        ),
        exhaustions=lambda: api.encode(exhaustions_document(report)),
        page=partial(status_page.render, report, expired=False),
        expired_page=partial(status_page.render, report, expired=True),
    )
