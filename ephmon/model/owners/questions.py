"""Whose ports are asked about. Asked after every poll, and mostly answered with nothing, so this is all that takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ephmon.facts.sockets import Backend, Capability, Protocol
from ephmon.model.alerting.state_machine import AlertName, Phase

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ephmon.model.alerting.state_machine import Alert, Alerts
    from ephmon.model.pools.kinds import PoolKey

MOST_POOLS = 16
"""So many pools are asked about because of their alerts, the most urgent first."""


class OwnerQuestions(NamedTuple):
    """What is asked of one namespace: who holds the ports of these pools, and who its blocked ports."""

    pools: tuple[PoolKey, ...] = ()
    blocked: bool = False

    @property
    def is_none(self) -> bool:
        """Whether nothing is asked."""
        return not (self.pools or self.blocked)

    @property
    def protocols(self) -> frozenset[Protocol]:
        """The protocols whose sockets have to be read for an answer."""
        return frozenset(key.kind.protocol for key in self.pools) | ({Protocol.TCP} if self.blocked else set())

    def without(self, protocols: Iterable[Protocol]) -> OwnerQuestions:
        """Return the questions that have an answer without some protocols."""
        missing = frozenset(protocols)
        pools = tuple(key for key in self.pools if key.kind.protocol not in missing)
        return OwnerQuestions(pools, self.blocked and Protocol.TCP not in missing)


def raised_by(alerts: Alerts, netns: str) -> OwnerQuestions:
    """Return what to ask because alerts of a namespace are pending or fire."""
    return _about(
        alert
        for alert in alerts.states.values()
        if alert.key.netns == netns and alert.phase in (Phase.PENDING, Phase.FIRING)
    )


def raised_by_firing(alerts: Alerts, netns: str) -> OwnerQuestions:
    """Return what to ask because alerts of a namespace fire for all to see."""
    return _about(alert for alert in alerts.firing if alert.key.netns == netns)


def _about(alerts: Iterable[Alert]) -> OwnerQuestions:
    keys = [alert.key for alert in alerts]
    pools = dict.fromkeys(key.pool for key in keys if key.pool is not None)
    return OwnerQuestions(tuple(pools)[:MOST_POOLS], any(key.name is AlertName.PORTS_BLOCKED for key in keys))


def unanswerable(questions: OwnerQuestions, backends: Mapping[Protocol, Backend]) -> frozenset[Protocol]:
    """Return the protocols of which owners cannot be told: only inet_diag tells them."""
    return frozenset(one for one in questions.protocols if not _shows_owners(backends.get(one)))


def _shows_owners(backend: Backend | None) -> bool:
    return backend is not None and Capability.OWNERS in backend.capabilities


def refusal(protocols: Iterable[Protocol]) -> str:
    """Return in one sentence why the owners of these protocols' ports are not known."""
    names = sorted(protocols)
    are = "is" if len(names) == 1 else "are"
    return (
        f"Only inet_diag tells who holds ports, and {' and '.join(names)} {are} not read by it: load the kernel "
        "modules tcp_diag and udp_diag, allow AF_NETLINK, and leave poll.backend at auto."
    )
