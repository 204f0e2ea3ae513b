"""`ephmon pools`: poll once and print the pools, the fullest first."""

from __future__ import annotations

import os
import shutil
import sys
import time
from typing import TYPE_CHECKING

from ephmon.commands.reading import configuration, ports_to_keep, read
from ephmon.model.advice import advise
from ephmon.model.next_report import report_of
from ephmon.model.report import ReloadStatus, initial_report
from ephmon.model.survey import every_pool, survey
from ephmon.outputs import api, table
from ephmon.outputs.advice_text import advice_object
from ephmon.outputs.text import endpoint
from ephmon.terminal import tell

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from ephmon.config import Config
    from ephmon.model.advice import Advice
    from ephmon.model.pools import Pool, PoolKey
    from ephmon.model.snapshot import Snapshot


def run(options: argparse.Namespace) -> int:
    """Print the pools, with advice on those that reached a threshold: in JSON, and in the table of a destination."""
    config = configuration(options.config)
    snapshot = read(config, options.proc)
    surveys = survey(snapshot, likely_binder_ports=config.listing.min_in_use)
    before = initial_report(config.rules, ReloadStatus(successful=True, succeeded_at=0.0))
    report = report_of(surveys, snapshot, before, time.monotonic())
    pools = every_pool(surveys, config.listing.ignore_destinations)
    toward = None
    if options.destination:
        address, port = options.destination
        toward = endpoint(address, port)
        pools = [pool for pool in pools if _is_toward(pool, address, port)]
    if options.json:
        shown = pools[: options.top]
        document = api.pools_document(report, shown)
        advice = _advice(shown, snapshot, config)
        for pool, entry in zip(shown, document["pools"], strict=True):
            if pool.key in advice:
                entry["advice"] = advice_object(advice[pool.key])
        tell(api.encode(document).decode())
        return 0
    on_terminal = sys.stdout is not None and sys.stdout.isatty()
    top = pools[: options.top or config.listing.top]
    tell(
        table.render(
            report,
            top,
            colour=on_terminal and not os.environ.get("NO_COLOR"),
            width=shutil.get_terminal_size().columns if on_terminal else None,
            selection=table.Selection(matching=len(pools), toward=toward),
            advice=_advice(top, snapshot, config) if toward else {},
        )
    )
    return 0


def _is_toward(pool: Pool, address: str, port: int | None) -> bool:
    return pool.key.destination == address and port in (None, pool.key.destination_port)


def _advice(pools: Iterable[Pool], snapshot: Snapshot, config: Config) -> dict[PoolKey, Advice]:
    """Return what to do about the pools that reached a threshold."""
    namespaces = {namespace.netns: namespace for namespace in snapshot.namespaces}
    return {
        pool.key: advise(pool, namespace.sysctls, listening_ports=ports_to_keep(namespace, config))
        for pool in pools
        if config.thresholds.severity_at(pool.key, pool.utilisation)
        for namespace in (namespaces[pool.key.netns],)
    }
