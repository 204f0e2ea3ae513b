"""Asks the kernel about ports in doubt, for commands that read it once."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from ephmon.config.settings import ProbeChoice
from ephmon.errors import KernelError
from ephmon.kernel.deadline import Deadline
from ephmon.kernel.probe import probe
from ephmon.model.pools.survey import Classified, classify
from ephmon.model.step import namespaces_where_doubt_matters

if TYPE_CHECKING:
    from ephmon.config.settings import Config
    from ephmon.facts.snapshot import Snapshot
    from ephmon.model.alerting.thresholds import Thresholds


class Asked(NamedTuple):
    """The class of every port, and why some have no answer, None if all have that were asked about."""

    classified: Classified
    failure: KernelError | None


def classify_and_ask(
    snapshot: Snapshot, config: Config, *, may_ask: bool, thresholds: Thresholds | None = None
) -> Asked:
    """Return the class of every port, having asked about those in doubt if that is allowed.

    With `thresholds` only where an answer can make a difference to whether a pool reaches one.
    """
    binder_ports = config.listing.min_in_use
    classified = classify(snapshot, likely_binder_ports=binder_ports)
    if not may_ask or config.poll.probe == ProbeChoice.NEVER:
        return Asked(classified, None)
    inodes = classified if thresholds is None else namespaces_where_doubt_matters(snapshot, thresholds, classified)
    in_doubt = {inode: ports for inode in inodes if (ports := classified[inode].ports.in_doubt())}
    deadline = Deadline(config.poll.deadline_seconds, time.monotonic)
    try:
        answers = {inode: probe(ports, deadline) for inode, ports in in_doubt.items()}
    except KernelError as error:
        return Asked(classified, error)
    if not answers:
        return Asked(classified, None)
    number, answered = (sum(map(len, one.values())) for one in (in_doubt, answers))
    return Asked(
        classify(snapshot, answers=answers, likely_binder_ports=binder_ports),
        None if answered == number else too_late(answered, number),
    )


def too_late(answered: int, number: int) -> KernelError:
    """Return the error that says how many ports have an answer, of those that were to be asked about."""
    done = f"The probe asked about {answered} of {number} ports before poll.deadline passed"
    return KernelError(f"{done}; the bounds include the others. Raise poll.deadline for an exact number.")
