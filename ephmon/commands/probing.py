"""Asks the kernel about ports in doubt, for commands that read it once."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from ephmon.config.settings import ProbeChoice
from ephmon.errors import KernelError
from ephmon.kernel.deadline import Deadline
from ephmon.kernel.probe import ask
from ephmon.model.pools.survey import Classified, classify
from ephmon.model.step import questions_about

if TYPE_CHECKING:
    from ephmon.config.settings import Config
    from ephmon.facts.snapshot import Snapshot
    from ephmon.model.alerting.thresholds import Thresholds


class Asked(NamedTuple):
    """The class of every port, and why some have no answer, None if all have that were asked about."""

    classified: Classified
    failure: KernelError | None


def classify_and_ask(
    snapshot: Snapshot, config: Config, thresholds: Thresholds, *, may_ask: bool, most: int | None = None
) -> Asked:
    """Return the class of every port, having asked about those in doubt if that is allowed.

    As the daemon does in its first poll: first about those that can matter to the thresholds, and then about `most`.
    """
    classified = classify(snapshot)
    if not may_ask or config.poll.probe == ProbeChoice.NEVER:
        return Asked(classified, None)
    deadline = Deadline(config.poll.deadline_seconds, time.monotonic)
    questions = questions_about(snapshot, classified, thresholds, most=most)
    try:
        found = {inode: ask(one, deadline) for inode, one in questions.items()}
    except KernelError as error:
        return Asked(classified, error)
    if not found:
        return Asked(classified, None)
    in_doubt = sum(classified[inode].ports.ambiguous for inode in found)
    answered = sum(len(one.by_port) for one in found.values())
    return Asked(
        classify(snapshot, answers={inode: one.by_port for inode, one in found.items()}),
        too_late(answered, in_doubt) if any(one.is_cut for one in found.values()) else None,
    )


def too_late(answered: int, number: int) -> KernelError:
    """Return the error that says how many ports have an answer, of those that were to be asked about."""
    done = f"The probe asked about {answered} of {number} ports before poll.deadline passed"
    return KernelError(f"{done}; the bounds include the others. Raise poll.deadline for an exact number.")
