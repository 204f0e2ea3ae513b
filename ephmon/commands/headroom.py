"""`ephmon headroom`: how many more sockets can get a port of one pool, and why."""

from __future__ import annotations

import time
from ipaddress import ip_address
from typing import TYPE_CHECKING

from ephmon.commands.probing import too_late
from ephmon.commands.reading import load_config, read_snapshot, survey_of
from ephmon.commands.source import connect_source, require_matching_source, require_own_source
from ephmon.commands.terminal import print_answer, print_error
from ephmon.config.settings import ProbeChoice
from ephmon.errors import KernelError, Reason, UsageError
from ephmon.facts.socket_groups import ConnectKey
from ephmon.facts.sockets import Blindness
from ephmon.kernel.deadline import Deadline
from ephmon.kernel.probe import probe, require_probe
from ephmon.model.pools.kinds import PoolKind
from ephmon.model.pools.survey import classify, survey
from ephmon.outputs.documents import api
from ephmon.outputs.text import headroom

if TYPE_CHECKING:
    import argparse

    from ephmon.config.endpoint import Address
    from ephmon.facts.snapshot import Snapshot
    from ephmon.model.pools.kinds import Pool
    from ephmon.model.pools.port_classes import TcpPorts
    from ephmon.model.pools.survey import NamespaceSurvey


def run(options: argparse.Namespace) -> int:
    """Print one pool; the exit status is 1 if --probe was given and did not get every answer."""
    config = load_config(options.config)
    kind, source = _asked_pool(options)
    key = _own_key(kind, source, options.destination)
    snapshot = read_snapshot(config, options.proc, key if isinstance(key, ConnectKey) else None)
    one = survey_of(survey(snapshot))
    method: str = one.namespace.backends.get(kind.protocol, "")
    pool, failure = _pool(one, kind, key), None
    may_be_probed = kind == PoolKind.TCP_CONNECT and one.namespace.binds is None  # with binds the kernel has answered
    if may_be_probed and one.ports and _is_to_be_probed(pool, options.probe, config.poll.probe):
        probed, failure = _probed(snapshot, one, one.ports, config.poll.deadline_seconds)
        method = method if probed is one else "probe"
        pool = _pool(probed, kind, key)
    if options.json:
        print_answer(api.encode({"schema": api.SCHEMA, "method": method, **api.pool_object(pool)}).decode())
    else:
        print_answer(headroom.render(pool))
    if failure is None:
        return 0
    print_error(failure)
    return 1 if options.probe else 0


def _pool(one: NamespaceSurvey, kind: PoolKind, key: ConnectKey | bytes) -> Pool:
    pools = one.pools_of(kind)
    if pools is None:
        raise KernelError(one.namespace.missing[kind.protocol], reason=Reason.UNAVAILABLE)
    return pools.pool(key)


def _is_to_be_probed(pool: Pool, option: bool | None, choice: ProbeChoice) -> bool:
    """Tell whether to ask the kernel; without --probe and --no-probe, only where the answer can make a difference."""
    return option if option is not None else choice == ProbeChoice.AUTO and not pool.exact


def _probed(
    snapshot: Snapshot, unprobed: NamespaceSurvey, ports: TcpPorts, seconds: float
) -> tuple[NamespaceSurvey, KernelError | None]:
    """Return the survey with the answers of the probe, and why answers are missing, None if none are."""
    is_blind = Blindness.BOUND_UNCONNECTED in ports.blind_to
    asked = ports.not_known_to_be_blocked() if is_blind else ports.in_doubt()
    try:
        require_probe()
        answers = probe(asked, Deadline(seconds, time.monotonic))
    except KernelError as error:
        return unprobed, error
    probed = survey_of(survey(snapshot, classify(snapshot, answers={unprobed.namespace.inode: answers})))
    if len(answers) == len(asked):
        return probed, None
    return probed, too_late(len(answers), len(asked))


def _own_key(kind: PoolKind, source: Address, destination: tuple[Address, int] | None) -> ConnectKey | bytes:
    if kind != PoolKind.TCP_CONNECT or destination is None:
        return source.packed
    address, port = destination
    return ConnectKey(source.packed, address.packed, port)


def _asked_pool(options: argparse.Namespace) -> tuple[PoolKind, Address]:
    """Return the kind and the source of the pool that the arguments ask for."""
    _require_one_pool(options)
    if options.bind:
        require_own_source("--bind", options.bind)
        return (PoolKind.UDP_BIND if options.udp else PoolKind.TCP_BIND), options.bind
    destination, port = options.destination
    if options.source:
        require_own_source("--from", options.source)
    if options.udp and options.source:
        return PoolKind.UDP_BIND, options.source
    if options.udp:
        return PoolKind.UDP_CONNECT, ip_address(bytes(len(destination.packed)))
    return PoolKind.TCP_CONNECT, connect_source(destination, port, options.source)


def _require_one_pool(options: argparse.Namespace) -> None:
    """Raise UsageError unless the arguments name exactly one pool."""
    if (options.destination is None) == (options.bind is None):
        raise UsageError("headroom needs either DESTINATION:PORT or --bind SOURCE.")
    if options.probe and (options.udp or options.bind):
        raise UsageError("--probe works for TCP connect() only; other pools have no ambiguous ports.")
    if options.destination:
        require_matching_source(options.source, options.destination[0])
    elif options.source:
        raise UsageError("--from needs a destination; --bind already names the source.")
