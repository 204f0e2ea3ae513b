"""`ephmon check`: a plugin for Nagios, Icinga and compatible systems (monitoring-plugins.org, Development Guidelines).

The exit status is 0 for OK, 1 for WARNING and 2 for CRITICAL. Everything that prevents an answer is 3, UNKNOWN: wrong
usage, a wrong configuration, Ctrl-C and defects of ephmon too. Its message goes to standard output, because that is
what the monitoring system shows.
"""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

from ephmon.commands.probing import classify_and_ask
from ephmon.commands.reading import load_config, ports_to_keep, read_snapshot, survey_of
from ephmon.commands.source import connect_source, require_matching_source, require_own_source
from ephmon.commands.terminal import OutputError, print_answer, print_error
from ephmon.errors import EphmonError, KernelError, Reason, UsageError
from ephmon.facts.socket_groups import ConnectKey
from ephmon.facts.sockets import Protocol
from ephmon.model.advice.causes import advise, advise_blocked
from ephmon.model.alerting.assessment import assess_host, assess_pool, with_limits
from ephmon.model.alerting.blocked import BlockedPorts
from ephmon.model.pools.kinds import Pool, PoolKind
from ephmon.model.pools.survey import survey
from ephmon.outputs.text import plugin
from ephmon.outputs.text.pool_remarks import pool_remarks
from ephmon.outputs.text.wording import blindness

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping, Sequence

    from ephmon.model.advice.causes import Advice
    from ephmon.model.alerting.assessment import Assessment, Finding
    from ephmon.model.alerting.thresholds import Threshold, Thresholds
    from ephmon.model.pools.survey import NamespaceSurvey


def run(options: argparse.Namespace) -> int:
    """Print the answer and return its exit status."""
    config = load_config(options.config)
    thresholds = _limits(config.thresholds, options)
    asked = _asked_pool(options)
    snapshot = read_snapshot(config, options.proc, asked)
    asked_kernel = classify_and_ask(snapshot, config, thresholds, may_ask=options.probe)
    surveys = survey(snapshot, asked_kernel.classified)
    missing = [reason for one in surveys for reason in one.namespace.missing.values()]
    if asked is None:
        assessment = assess_host(surveys, thresholds, config.listing.ignore_destinations)
    else:
        assessment, missing = _assess_asked(survey_of(surveys), asked, thresholds), []
    kept = {one.namespace.netns: ports_to_keep(one.namespace, config) for one in surveys}
    remarks = [*_remarks(surveys), *([str(asked_kernel.failure)] if asked_kernel.failure else [])]
    if assessment.worst and isinstance(assessment.worst.subject, Pool):
        remarks += pool_remarks(assessment.worst.subject)
    answer = plugin.answer(assessment, advice=_advice(assessment.worst, kept), missing=missing, remarks=remarks)
    print_answer(answer.text)
    return answer.status


def guard(command: Callable[[], int]) -> int:
    """Return the exit status of `command`, or UNKNOWN after printing what prevented an answer.

    --help is UNKNOWN too, because it does not answer the monitoring system.
    """
    try:
        return command()
    except OutputError as error:
        print_error(error)
        return plugin.Status.UNKNOWN
    except EphmonError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return _fail("The check was interrupted.")
    except (SystemExit, BrokenPipeError):
        return plugin.Status.UNKNOWN
    except Exception as error:  # noqa: BLE001 - Python would exit with status 1, which means WARNING
        print_error(EphmonError(traceback.format_exc()))
        return _fail(f"This is a defect in ephmon; please report it: {error!r}")


def _fail(message: str) -> int:
    answer = plugin.failure(message)
    try:
        print_answer(answer.text)
    except OutputError as error:
        print_error(error)
    except BrokenPipeError:
        pass  # nobody reads the answer
    return answer.status


def _limits(thresholds: Thresholds, options: argparse.Namespace) -> Thresholds:
    """Return the thresholds of the configuration, with those of the command line instead for all pools."""
    limits = with_limits(thresholds, warning=options.warning, critical=options.critical)
    _require_order(limits.warning, limits.critical, "")
    for index, override in enumerate(limits.overrides):
        where = f" of thresholds.overrides[{index}]"
        _require_order(override.warning or limits.warning, override.critical or limits.critical, where)
    return limits


def _require_order(warning: Threshold, critical: Threshold, where: str) -> None:
    low, high = warning.utilisation, critical.utilisation
    if low >= high:
        raise UsageError(f"The warning at {low} is not below the critical at {high}{where}; change one of them.")


def _asked_pool(options: argparse.Namespace) -> ConnectKey | None:
    """Return the key of the pool that the arguments ask for, None for the whole host."""
    if options.destination is None:
        if options.source:
            raise UsageError("--from needs a destination; without one the whole host is checked.")
        return None
    destination, port = options.destination
    require_matching_source(options.source, destination)
    if options.source:
        require_own_source("--from", options.source)
    source = connect_source(destination, port, options.source)
    return ConnectKey(source.packed, destination.packed, port)


def _assess_asked(one: NamespaceSurvey, asked: ConnectKey, thresholds: Thresholds) -> Assessment:
    pools = one.pools_of(PoolKind.TCP_CONNECT)
    if pools is None:
        raise KernelError(one.namespace.missing[Protocol.TCP], reason=Reason.UNAVAILABLE)
    return assess_pool(pools.pool(asked), one.namespace.sysctls, thresholds)


def _advice(worst: Finding | None, kept: Mapping[str, frozenset[int] | None]) -> Advice | None:
    """Return advice on the worst finding if it reached a threshold; `kept` are the ports to keep of each namespace."""
    if worst is None or worst.severity is None:
        return None
    subject, sysctls = worst.subject, worst.sysctls
    if isinstance(subject, BlockedPorts):
        return advise_blocked(subject, sysctls, listening_ports=kept[subject.netns])
    return advise(subject, sysctls, listening_ports=kept[subject.key.netns])


def _remarks(surveys: Sequence[NamespaceSurvey]) -> list[str]:
    """Return what makes the figures uncertain."""
    sockets = [sockets for one in surveys for sockets in (one.namespace.tcp, one.namespace.udp) if sockets]
    overfull = sum(one.overfull for one in surveys)
    remark = f"Sockets changed while they were read: {overfull} pools seemed to have more ports in use than exist."
    return [*blindness(sorted({word for one in sockets for word in one.blind_to})), *([remark] if overfull else [])]
