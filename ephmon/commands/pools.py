"""`ephmon pools`: poll once and print the pools, the fullest first."""

from __future__ import annotations

import os
import shutil
import sys
import time
from typing import TYPE_CHECKING

from ephmon.commands.reading import configuration, ports_to_keep, read
from ephmon.commands.terminal import complain, tell
from ephmon.model.advice.causes import advise
from ephmon.model.advice.proxies import known_program
from ephmon.model.pools.survey import every_pool, survey
from ephmon.model.report import ReloadStatus, initial_report
from ephmon.model.step import report_of
from ephmon.outputs.documents import api
from ephmon.outputs.text import table
from ephmon.outputs.text.advice import advice_object
from ephmon.outputs.text.wording import endpoint

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Mapping, Sequence

    from ephmon.commands.owners import Holding
    from ephmon.config.settings import Config
    from ephmon.facts.snapshot import Snapshot
    from ephmon.model.advice.causes import Advice
    from ephmon.model.pools.kinds import Pool, PoolKey
    from ephmon.model.report import Report


def run(options: argparse.Namespace) -> int:
    """Print the pools, with advice on those that reached a threshold: in JSON, and in the table of a destination.

    The status is 1 if the owners that were asked for are not known.
    """
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
    shown = pools[: options.top if options.json else options.top or config.listing.top]
    holding = None
    if options.owners:
        # Only who asks for them needs what this drags in.
        from ephmon.commands.owners import who_holds  # noqa: PLC0415

        (surveyed,) = surveys
        seconds = config.poll.deadline_seconds
        holding = who_holds(shown, surveyed, report, proc=options.proc, deadline_seconds=seconds)
        report = holding.report
    if options.json:
        tell(_json(report, shown, _advice(shown, snapshot, config, holding), holding))
    else:
        advice = _advice(shown, snapshot, config, holding) if toward else {}
        tell(_table(report, shown, table.Selection(matching=len(pools), toward=toward), advice, holding))
    if holding is None or holding.failure is None:
        return 0
    complain(holding.failure)
    return 1


def _json(report: Report, shown: Sequence[Pool], advice: Mapping[PoolKey, Advice], holding: Holding | None) -> str:
    document = api.pools_document(report, shown)
    for pool, entry in zip(shown, document["pools"], strict=True):
        if pool.key in advice:
            entry["advice"] = advice_object(advice[pool.key])
    if holding is not None:
        holding.put_into(document, shown)
    return api.encode(document).decode()


def _table(
    report: Report,
    shown: Sequence[Pool],
    selection: table.Selection,
    advice: Mapping[PoolKey, Advice],
    holding: Holding | None,
) -> str:
    on_terminal = sys.stdout is not None and sys.stdout.isatty()
    return table.render(
        report,
        shown,
        colour=on_terminal and not os.environ.get("NO_COLOR"),
        width=shutil.get_terminal_size().columns if on_terminal else None,
        selection=selection,
        owners=() if holding is None else holding.lines(shown),
        advice=advice,
    )


def _is_toward(pool: Pool, address: str, port: int | None) -> bool:
    return pool.key.destination == address and port in (None, pool.key.destination_port)


def _advice(
    pools: Iterable[Pool], snapshot: Snapshot, config: Config, holding: Holding | None
) -> dict[PoolKey, Advice]:
    """Return what to do about the pools that reached a threshold."""
    namespaces = {namespace.netns: namespace for namespace in snapshot.namespaces}
    return {
        pool.key: advise(
            pool,
            namespace.sysctls,
            listening_ports=ports_to_keep(namespace, config),
            program=None if holding is None else known_program(holding.names(pool.key)),
        )
        for pool in pools
        if config.thresholds.severity_at(pool.key, pool.utilisation)
        for namespace in (namespaces[pool.key.netns],)
    }
