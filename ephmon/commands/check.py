"""`ephmon check`: a plugin for Nagios, Icinga and what speaks like them, with their exit statuses.

0 is OK, 1 WARNING, 2 CRITICAL. Whatever keeps the check from an answer is 3, UNKNOWN, and told on standard output, for
that is what the monitoring system shows: also wrong usage, a wrong configuration, Ctrl-C and a defect of ephmon.
"""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

from ephmon.commands.question import check_from, check_source, connect_source
from ephmon.commands.reading import configuration, ports_to_keep, read
from ephmon.commands.terminal import OutputError, complain, tell
from ephmon.errors import EphmonError, KernelError, UsageError
from ephmon.facts.socket_groups import ConnectKey
from ephmon.facts.sockets import Protocol
from ephmon.model.advice.causes import advise, advise_blocked
from ephmon.model.alerting.assessment import assess_host, assess_pool, with_limits
from ephmon.model.alerting.blocked import BlockedPorts
from ephmon.model.pools.kinds import PoolKind
from ephmon.model.pools.survey import survey
from ephmon.outputs.text import plugin
from ephmon.outputs.text.wording import blindness

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping, Sequence

    from ephmon.model.advice.causes import Advice
    from ephmon.model.alerting.assessment import Assessment, Finding
    from ephmon.model.alerting.thresholds import Threshold, Thresholds
    from ephmon.model.pools.survey import NamespaceSurvey


def run(options: argparse.Namespace) -> int:
    """Print the answer and return its status."""
    config = configuration(options.config)
    thresholds = _limits(config.thresholds, options)
    asked = _asked_pool(options)
    surveys = survey(read(config, options.proc), likely_binder_ports=config.listing.min_in_use)
    missing = [reason for one in surveys for reason in one.namespace.missing.values()]
    if asked is None:
        assessment = assess_host(surveys, thresholds, config.listing.ignore_destinations)
    else:
        assessment, missing = _assess_asked(surveys[0], asked, thresholds), []
    kept = {one.namespace.netns: ports_to_keep(one.namespace, config) for one in surveys}
    answer = plugin.answer(
        assessment, advice=_advice(assessment.worst, kept), missing=missing, remarks=_remarks(surveys)
    )
    tell(answer.text)
    return answer.status


def guard(command: Callable[[], int]) -> int:
    """Return the status of `command`, or UNKNOWN after printing what kept it from an answer.

    That is also the status of --help, which is no answer to a monitoring system either.
    """
    try:
        return command()
    except OutputError as error:
        complain(error)
        return plugin.Status.UNKNOWN
    except EphmonError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return _fail("The check was interrupted.")
    except (SystemExit, BrokenPipeError):
        return plugin.Status.UNKNOWN
    except Exception as error:  # noqa: BLE001 - Python would end with status 1, which stands for WARNING
        complain(EphmonError(traceback.format_exc()))
        return _fail(f"This is a defect of ephmon, please report it: {error!r}")


def _fail(message: str) -> int:
    answer = plugin.failure(message)
    try:
        tell(answer.text)
    except OutputError as error:
        complain(error)
    except BrokenPipeError:
        pass  # nobody is there to be told
    return answer.status


def _limits(thresholds: Thresholds, options: argparse.Namespace) -> Thresholds:
    """Return the thresholds of the configuration, or for all pools those of the command line."""
    limits = with_limits(thresholds, warning=options.warning, critical=options.critical)
    _require_order(limits.warning, limits.critical, "")
    for place, override in enumerate(limits.overrides):
        where = f" of thresholds.overrides[{place}]"
        _require_order(override.warning or limits.warning, override.critical or limits.critical, where)
    return limits


def _require_order(warning: Threshold, critical: Threshold, where: str) -> None:
    low, high = warning.utilisation, critical.utilisation
    if low >= high:
        raise UsageError(f"The warning at {low} does not come before the critical at {high}{where}; move one of them.")


def _asked_pool(options: argparse.Namespace) -> ConnectKey | None:
    """Return the pool that the arguments ask for, None for the whole host."""
    if options.destination is None:
        if options.source:
            raise UsageError("--from goes with a destination; without one the whole host is checked.")
        return None
    destination, port = options.destination
    check_from(options.source, destination)
    if options.source:
        check_source("--from", options.source)
    source = connect_source(destination, port, options.source)
    return ConnectKey(source.packed, destination.packed, port)


def _assess_asked(one: NamespaceSurvey, asked: ConnectKey, thresholds: Thresholds) -> Assessment:
    pools = one.pools_of(PoolKind.TCP_CONNECT)
    if pools is None:
        raise KernelError(one.namespace.missing[Protocol.TCP], reason="unavailable")
    return assess_pool(pools.pool(asked), one.namespace.sysctls, thresholds)


def _advice(worst: Finding | None, kept: Mapping[str, frozenset[int] | None]) -> Advice | None:
    """Return what to do about the worst, nothing if it is not bad; `kept` are the ports to keep of each namespace."""
    if worst is None or worst.severity is None:
        return None
    subject, sysctls = worst.subject, worst.sysctls
    if isinstance(subject, BlockedPorts):
        return advise_blocked(subject, sysctls, listening_ports=kept[subject.netns])
    return advise(subject, sysctls, listening_ports=kept[subject.key.netns])


def _remarks(surveys: Sequence[NamespaceSurvey]) -> list[str]:
    """Return what the figures rest on without having been seen."""
    sockets = [sockets for one in surveys for sockets in (one.namespace.tcp, one.namespace.udp) if sockets]
    torn = sum(one.torn for one in surveys)
    remark = f"Sockets moved while they were read: {torn} pools seemed to hold more ports than there are."
    return [*blindness(sorted({word for one in sockets for word in one.blind_to})), *([remark] if torn else [])]
