"""Which ports need an owner: those of pools and namespaces whose alerts are pending or fire.

Asked after every poll, and mostly answered with "none", so this module does without the others of the package.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from ephmon.facts.sockets import Backend, Capability, Protocol
from ephmon.model.alerting.state_machine import AlertName, Phase
from ephmon.model.pools.kinds import PoolKey

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ephmon.model.alerting.state_machine import Alert, Alerts

MOST_POOLS = 16
"""So many pools are asked about because of their alerts, the most urgent first."""


class _Blocked(Enum):
    PORTS = "blocked ports"


BLOCKED_PORTS: Final = _Blocked.PORTS
"""The blocked ports of a namespace, where else a pool stands for its ports."""
PortSet = PoolKey | Literal[_Blocked.PORTS]
"""The ports of a pool, or `BLOCKED_PORTS`."""


class OwnerQuestions(NamedTuple):
    """What is asked of one namespace: who holds the ports of some pools, and maybe who holds its blocked ports."""

    pools: tuple[PoolKey, ...] = ()
    blocked: bool = False

    @property
    def is_none(self) -> bool:
        """Whether nothing is asked."""
        return not (self.pools or self.blocked)

    @property
    def port_sets(self) -> tuple[PortSet, ...]:
        """What is asked about, the pools first."""
        return (*self.pools, BLOCKED_PORTS) if self.blocked else self.pools

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
    """Return what to ask because alerts of a namespace are pending, or fire and are shown."""
    return _about(
        alert
        for alert in alerts.states.values()
        if alert.key.netns == netns
        and (alert.phase is Phase.PENDING or (alert.phase is Phase.FIRING and alert.is_announced))
    )


def raised_by_firing(alerts: Alerts, netns: str) -> OwnerQuestions:
    """Return what to ask because alerts of a namespace fire and are shown."""
    return _about(alert for alert in alerts.firing if alert.key.netns == netns)


def _about(alerts: Iterable[Alert]) -> OwnerQuestions:
    keys = [alert.key for alert in alerts]
    pools = dict.fromkeys(key.pool for key in keys if key.pool is not None)
    return OwnerQuestions(tuple(pools)[:MOST_POOLS], any(key.name is AlertName.PORTS_BLOCKED for key in keys))


def unanswerable(questions: OwnerQuestions, backends: Mapping[Protocol, Backend]) -> frozenset[Protocol]:
    """Return the protocols whose owners cannot be found, because they were not read by inet_diag."""
    return frozenset(one for one in questions.protocols if not _shows_owners(backends.get(one)))


def _shows_owners(backend: Backend | None) -> bool:
    return backend is not None and Capability.OWNERS in backend.capabilities


def refusal(protocols: Iterable[Protocol]) -> str:
    """Return in one sentence why the owners of these protocols' ports are not known."""
    names = " and ".join(sorted(protocols))
    return (
        f"Only inet_diag shows who holds ports, and ephmon did not use it for {names}. Load the kernel modules "
        "tcp_diag and udp_diag, allow AF_NETLINK, and leave poll.backend at auto."
    )
