"""The law: the first poll of a daemon whose thresholds have `for: 0s` judges as `ephmon check` does, on any host."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from hypothesis import given
from hypothesis import strategies as st

from ephmon.facts.sockets import UdpSockets
from ephmon.model.alerting.assessment import assess_host
from ephmon.model.alerting.blocked import BlockedPorts
from ephmon.model.alerting.state_machine import AlertName
from ephmon.model.alerting.thresholds import Severity, Threshold, ThresholdOverride, Thresholds
from ephmon.model.pools.kinds import PoolKind
from ephmon.model.pools.survey import survey
from ephmon.model.report import ReloadStatus
from ephmon.model.rules import DestinationPattern, ListingRules, Rules
from ephmon.model.state import initial_state
from ephmon.model.step import conclude
from tests.model.facts import bound, make_namespace, make_snapshot, make_table, packed
from tests.model.kernel_sockets import PEERS, shown_by_inet_diag, sockets, sysctls

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ephmon.facts.snapshot import NamespaceSnapshot, Snapshot
    from ephmon.model.pools.kinds import Pool, PoolKey

Value = TypeVar("Value")

RATIOS = [0.1, 0.2, 0.3, 1 / 3, 0.5, 0.6, 2 / 3, 0.7, 0.75, 0.8, 0.9, 1.0]
NETWORKS = [ip_network(text) for text in ("10.0.0.0/24", "10.0.0.2/32", "127.0.0.0/8", "2001:db8::/32", "::/0")]


class Judged(NamedTuple):
    """What is judged: a pool, or (None) the blocked ports of a namespace, and the pools that those cover."""

    netns: str
    pool: PoolKey | None
    severity: Severity
    covered: tuple[PoolKey, ...] = ()


@given(st.data())
def test_the_first_poll_of_a_daemon_judges_as_the_check_does(data: st.DataObject) -> None:
    snapshot, rules = data.draw(_snapshots()), data.draw(_rules())

    assert by_daemon(snapshot, rules) == by_check(snapshot, rules)


def by_daemon(snapshot: Snapshot, rules: Rules) -> set[Judged]:
    """Return what alerts after the first poll, failed calls and forecasts apart, which one poll knows nothing of."""
    blank = initial_state(rules, ReloadStatus(successful=True, succeeded_at=0.0))
    return {
        Judged(alert.key.netns, alert.key.pool, alert.severity, () if alert.key.pool else _keys(alert.pools))
        for alert in conclude(snapshot, blank, 0.0).report.alerts.firing
        if alert.key.name in (AlertName.POOL_NEAR_EXHAUSTION, AlertName.PORTS_BLOCKED)
    }


def by_check(snapshot: Snapshot, rules: Rules) -> set[Judged]:
    """Return what reached a threshold."""
    surveys = survey(snapshot)
    urgent = assess_host(surveys, rules.thresholds, rules.listing.ignore_destinations).urgent
    return {
        Judged(finding.subject.netns, None, finding.severity, _keys(finding.covered))
        if isinstance(finding.subject, BlockedPorts)
        else Judged(finding.subject.key.netns, finding.subject.key, finding.severity)
        for finding in urgent
        if finding.severity
    }


def _keys(pools: Iterable[Pool]) -> tuple[PoolKey, ...]:
    return tuple(pool.key for pool in pools)


@st.composite
def _snapshots(draw: st.DrawFn) -> Snapshot:
    """Draw what one poll read of one namespace or two."""
    names = draw(st.sampled_from([["own"], ["own", "blue"]]))
    return make_snapshot(*(draw(_namespaces(name, inode)) for inode, name in enumerate(names)))


@st.composite
def _namespaces(draw: st.DrawFn, name: str, inode: int) -> NamespaceSnapshot:
    """Draw a namespace in which ports may all be reserved, and TCP may not be readable."""
    facts = draw(sysctls())
    if draw(st.integers(0, 4)) == 0:
        low, high = facts.port_range
        facts = replace(facts, reserved_ports=frozenset(range(low, high + 1)))
    tcp = None if draw(st.integers(0, 9)) == 0 else shown_by_inet_diag(draw(sockets(facts)))
    ports = st.frozensets(st.integers(facts.port_range.low, facts.port_range.high))
    addresses = {address: draw(ports) for address in ("10.0.0.1", "0.0.0.0", "::1")}
    udp = UdpSockets(
        sockets=make_table(bound(address, on) for address, on in addresses.items()),
        bound_to_any_port=frozenset(packed(address) for address, on in addresses.items() if draw(_EITHER) and on),
    )
    return replace(make_namespace(tcp, facts, netns=name, inode=inode), udp=udp)


@st.composite
def _rules(draw: st.DrawFn) -> Rules:
    """Draw rules that the configuration takes, with `for: 0s` everywhere and room for every alert."""
    warning, critical = draw(_pairs(RATIOS[RATIOS.index(0.5) :]))
    general = Thresholds(warning=warning, critical=critical)
    overrides = [one for one in draw(st.lists(_overrides(), max_size=3)) if _is_in_order(one, general)]
    ignored = draw(st.lists(st.builds(DestinationPattern, network=st.sampled_from(NETWORKS), port=_PORTS), max_size=1))
    return Rules(
        listing=ListingRules(ignore_destinations=tuple(ignored), min_in_use=draw(st.sampled_from([1, 3, 10]))),
        thresholds=replace(general, overrides=tuple(overrides)),
        max_active=1_000,
    )


@st.composite
def _pairs(draw: st.DrawFn, ratios: Sequence[float]) -> tuple[Threshold, Threshold]:
    """Draw a warning and the critical above it."""
    warning, critical = sorted(draw(st.lists(st.sampled_from(ratios), min_size=2, max_size=2, unique=True)))
    return draw(_thresholds(warning)), draw(_thresholds(critical))


def _thresholds(utilisation: float) -> st.SearchStrategy[Threshold]:
    clears = st.sampled_from([utilisation - 0.05, utilisation / 2, utilisation - 1e-9])
    return st.builds(Threshold, utilisation=st.just(utilisation), for_seconds=st.just(0.0), clear=clears)


@st.composite
def _overrides(draw: st.DrawFn) -> ThresholdOverride:
    warning, critical = draw(_pairs(RATIOS))
    return ThresholdOverride(
        kind=draw(st.sampled_from([*[None] * 8, *PoolKind])),
        source=draw(_rarely(NETWORKS)),
        destination=draw(_rarely(NETWORKS)),
        destination_port=draw(_PORTS),
        warning=draw(st.sampled_from([None, warning])),
        critical=draw(st.sampled_from([None, critical])),
    )


def _is_in_order(override: ThresholdOverride, general: Thresholds) -> bool:
    warning, critical = override.warning or general.warning, override.critical or general.critical
    return warning.utilisation < critical.utilisation


def _rarely(values: Sequence[Value]) -> st.SearchStrategy[Value | None]:
    """Draw None more often than a value, so that overrides with several conditions match something."""
    return st.sampled_from([*[None] * (2 * len(values)), *values])


_EITHER = st.booleans()
_PORTS = _rarely([peer.port for peer in PEERS])
