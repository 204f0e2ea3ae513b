"""`ephmon pools`: polls once and prints the pools, fullest first."""

from __future__ import annotations

import os
import shutil
import sys
import time
from typing import TYPE_CHECKING

from ephmon.commands.probing import classify_and_ask
from ephmon.commands.reading import load_config, ports_to_keep, read_snapshot, survey_of
from ephmon.commands.terminal import print_answer, print_error
from ephmon.facts.addresses import PORTS
from ephmon.model.advice.causes import advise
from ephmon.model.advice.proxies import known_program
from ephmon.model.pools.connect_search import MANY_PORTS
from ephmon.model.pools.survey import every_pool, survey
from ephmon.model.report import ReloadStatus
from ephmon.model.state import initial_state
from ephmon.model.step import after_full_poll
from ephmon.outputs.documents import api
from ephmon.outputs.text import table
from ephmon.outputs.text.advice import advice_object
from ephmon.outputs.text.wording import endpoint

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Mapping, Sequence

    from ephmon.commands.owners import OwnersAnswer
    from ephmon.config.settings import Config
    from ephmon.facts.snapshot import Snapshot
    from ephmon.model.advice.causes import Advice
    from ephmon.model.pools.kinds import Pool, PoolKey
    from ephmon.model.report import Report


def run(options: argparse.Namespace) -> int:
    """Print the pools. Those that reached a threshold get advice in JSON, and in the table of one destination.

    The exit status is 1 if --owners was given and owners are not known.
    """
    config = load_config(options.config)
    snapshot = read_snapshot(config, options.proc)
    asked = classify_and_ask(snapshot, config, config.thresholds, may_ask=options.probe, most=PORTS)
    surveys = survey(snapshot, asked.classified)
    before = initial_state(config.rules, ReloadStatus(successful=True, succeeded_at=0.0))
    report = after_full_poll(surveys, snapshot, before, time.monotonic()).report
    pools = every_pool(surveys, config.listing.ignore_destinations)
    toward = None
    if options.destination:
        address, port = options.destination
        toward = endpoint(address, port)
        pools = [pool for pool in pools if _is_toward(pool, address, port)]
    shown = pools[: options.top if options.json else options.top or config.listing.top]
    owners = None
    if options.owners:
        # Loads the process search, which no other command needs.
        from ephmon.commands.owners import find_owners  # noqa: PLC0415

        surveyed = survey_of(surveys)
        seconds = config.poll.deadline_seconds
        owners = find_owners(shown, surveyed, report, proc=options.proc, deadline_seconds=seconds)
        report = owners.report
    if options.json:
        print_answer(_json(report, shown, _advice(shown, snapshot, config, owners), owners))
    else:
        advice = _advice(shown, snapshot, config, owners) if toward else {}
        print_answer(_table(report, shown, table.Selection(matching=len(pools), toward=toward), advice, owners))
    if asked.failure is not None:
        print_error(asked.failure)
    if owners is None or owners.failure is None:
        return 0
    print_error(owners.failure)
    return 1


def _json(report: Report, shown: Sequence[Pool], advice: Mapping[PoolKey, Advice], owners: OwnersAnswer | None) -> str:
    document = api.pools_document(report, shown)
    for pool, entry in zip(shown, document["pools"], strict=True):
        if pool.key in advice:
            entry["advice"] = advice_object(advice[pool.key])
    if owners is not None:
        owners.add_to(document, shown)
    return api.encode(document).decode()


def _table(
    report: Report,
    shown: Sequence[Pool],
    selection: table.Selection,
    advice: Mapping[PoolKey, Advice],
    owners: OwnersAnswer | None,
) -> str:
    on_terminal = sys.stdout is not None and sys.stdout.isatty()
    return table.render(
        report,
        shown,
        colour=on_terminal and not os.environ.get("NO_COLOR"),
        width=shutil.get_terminal_size().columns if on_terminal else None,
        selection=selection,
        owners=() if owners is None else owners.lines(shown),
        advice=advice,
    )


def _is_toward(pool: Pool, address: str, port: int | None) -> bool:
    return pool.key.destination == address and port in (None, pool.key.destination_port)


def _advice(
    pools: Iterable[Pool], snapshot: Snapshot, config: Config, owners: OwnersAnswer | None
) -> dict[PoolKey, Advice]:
    """Return advice on the pools that reached a threshold, and on those whose connect() searches many ports."""
    namespaces = {namespace.netns: namespace for namespace in snapshot.namespaces}
    advice = {}
    for pool in pools:
        severity = config.thresholds.severity_at(pool.key, pool.utilisation)
        is_slow = severity is None and (pool.search_ports or 0) >= MANY_PORTS
        if severity or is_slow:
            namespace = namespaces[pool.key.netns]
            program = None if owners is None else known_program(owners.names(pool.key))
            listening_ports = ports_to_keep(namespace, config)
            advice[pool.key] = advise(
                pool, namespace.sysctls, listening_ports=listening_ports, program=program, is_slow=is_slow
            )
    return advice
