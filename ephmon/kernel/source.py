"""The source of snapshots: reads a network namespace, TCP by BPF where it may, the rest by inet_diag or /proc/net.

By BPF the TCP sockets of all namespaces can be read in one go. Of the others nothing else is read: nothing enters them.

The backend is chosen for each protocol by itself. What could not be read is named in the snapshot; only when nothing
could be read does the reading as a whole fail.
"""

from __future__ import annotations

import errno
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from ephmon.errors import KernelError, Reason
from ephmon.facts.addresses import Endpoint
from ephmon.facts.namespaces import OWN_NETNS
from ephmon.facts.snapshot import NamespaceSnapshot, NarrowReading, NarrowSnapshot, Snapshot, TcpBinds
from ephmon.facts.sockets import Backend, Blindness, Protocol, TcpSockets, UdpSockets
from ephmon.kernel import features
from ephmon.kernel.deadline import Deadline
from ephmon.kernel.namespaces import NamespaceIdentities
from ephmon.kernel.netlink import connection_timestamps, dumps, links
from ephmon.kernel.netlink.sock_diag import InterruptedDumpError, NetlinkError, SockDiag
from ephmon.kernel.proc import procnet, sysctl

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from pathlib import Path

    from ephmon.facts.bind_table import NamespaceBinds
    from ephmon.facts.failed_calls import Destination
    from ephmon.facts.snapshot import PortRange, Sysctls
    from ephmon.facts.socket_groups import ConnectKey
    from ephmon.facts.sockets import Capability
    from ephmon.facts.timestamps import TimestampQuestion
    from ephmon.kernel.bpf.backend import BpfBackend

AUTO = "auto"
"""The mode in which a protocol is read by the first of these that is available: for TCP BPF, inet_diag, procfs."""
MOST_SOCKETS_BY_PROCFS = 50_000
"""In the mode `auto` procfs is read while there are fewer sockets: it is written line by line, and reading a table of a
million lines has stopped hosts."""
GOOD_TRIES_BEFORE_INET_DIAG = 3
"""After a refusal, inet_diag has to answer so many polls in a row before it is used again.

A module that is loaded and unloaded, or a sandbox that changes, would otherwise switch the backend at every poll.
"""

# How the kernel or a sandbox says that inet_diag is not to be had, as against one dump that went wrong.
_UNAVAILABLE = frozenset(
    {
        errno.ENOENT,  # the handler's module is not loaded and cannot be
        errno.EPROTONOSUPPORT,  # no NETLINK_SOCK_DIAG in this kernel
        errno.EAFNOSUPPORT,  # a sandbox that allows no AF_NETLINK
        errno.EOPNOTSUPP,
        errno.EPERM,
        errno.EACCES,
    }
)
# These end the whole reading, whichever protocol meets them.
_FATAL_REASONS = frozenset({Reason.DEADLINE})

_Sockets = TypeVar("_Sockets", TcpSockets, UdpSockets)


class _Question(NamedTuple):
    """What a reading asks of the kernel, and until when."""

    port_range: PortRange
    deadline: Deadline
    evidence: bool


class _Reading(NamedTuple, Generic[_Sockets]):
    """The sockets of one protocol, and by which backend they were read."""

    sockets: _Sockets
    backend: Backend
    fallback: str | None = None
    """Why procfs was read in the mode `auto`, as one sentence."""


class SocketSource:
    """Reads the namespace that the calling thread is in.

    Args:
        proc: Where procfs is mounted.
        clock: The monotonic clock, seconds.
        wall_clock: Seconds since the epoch.
        mode: `auto`, `bpf`, `inet_diag` or `procfs`.
        wanted: Says False as soon as a reading under way should be given up.
        open_diag: Opens the netlink socket; one is opened and closed in each reading.
        bpf: Reads TCP in the modes `auto`, which prefers it, and `bpf`; without it `auto` begins with inet_diag.
        every_namespace: Whether BPF reads all namespaces of the host, and not the own one alone.
    """

    def __init__(
        self,
        *,
        proc: Path,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        mode: str = AUTO,
        wanted: Callable[[], bool] = lambda: True,
        open_diag: Callable[[], SockDiag] = SockDiag,
        bpf: BpfBackend | None = None,
        every_namespace: bool = False,
    ) -> None:
        self._proc = proc
        self._clock = clock
        self._wall_clock = wall_clock
        self._wanted = wanted
        self._open_diag = open_diag
        self._shows_bound_unconnected: bool | None = None
        self._bpf = bpf if mode in (AUTO, Backend.BPF) else None
        self._requires_bpf = mode == Backend.BPF
        self._every_namespace = every_namespace
        self._identities = NamespaceIdentities(proc, clock)
        self._tcp_backend: Backend | None = None
        # UDP has no bind table that is read here.
        mode = AUTO if mode == Backend.BPF else mode
        self._tcp: _ProtocolReader[TcpSockets] = _ProtocolReader(
            mode, self._tcp_by_diag, self._tcp_by_procfs, self._count_tcp
        )
        self._udp: _ProtocolReader[UdpSockets] = _ProtocolReader(
            mode, self._udp_by_diag, self._udp_by_procfs, self._count_udp
        )

    def read(self, deadline_seconds: float, *, evidence: bool = True) -> Snapshot:
        """Read the sysctls and sockets; twice if the port range or the reserved ports change meanwhile.

        Args:
            deadline_seconds: How long it may take.
            evidence: Whether to gather what tells how ports were chosen. inet_diag has to be asked more for it;
                procfs shows what it shows.

        Raises:
            KernelError: A sysctl or neither protocol could be read, the deadline passed, or the range keeps changing.
        """
        started = self._clock()
        deadline = Deadline(deadline_seconds, self._clock, self._wanted)
        sysctls = sysctl.read_sysctls(self._proc)
        for _ in range(2):
            namespace, others = self._read_namespaces(sysctls, _Question(sysctls.port_range, deadline, evidence))
            now = sysctl.read_sysctls(self._proc)
            if all(
                (one.port_range, one.reserved_ports) == (sysctls.port_range, sysctls.reserved_ports)
                for one in (now, namespace.sysctls)
            ):
                return Snapshot(
                    taken_at=self._wall_clock(),
                    duration_seconds=self._clock() - started,
                    namespaces=(namespace, *others),
                    bpf=self._bpf.status if self._bpf else None,
                    pods=self._identities.pods(one.identity for one in others if one.identity),
                )
            sysctls = now
        raise KernelError(
            "ip_local_port_range or ip_local_reserved_ports changed during two readings in a row; the next poll tries "
            "again.",
            reason=Reason.SYSCTL,
        )

    def prepare(self, deadline_seconds: float) -> None:
        """Do what only the first reading takes time for: load BPF, and hold it against inet_diag.

        Whatever goes wrong goes wrong again at the first reading, which says so.
        """
        if self._bpf is not None:
            deadline = Deadline(deadline_seconds, self._clock, self._wanted)
            with suppress(Exception):
                port_range = sysctl.read_sysctls(self._proc).port_range
                self._tcp_by_bpf(_Question(port_range, deadline, evidence=False))

    def end_bpf(self, reason: str) -> None:
        """Read TCP otherwise from now on; the reason is one sentence. A reload begins with BPF again."""
        if self._bpf is not None:
            self._bpf.end(reason)

    @property
    def uses_bpf(self) -> bool:
        """Whether its mode lets it read TCP by BPF."""
        return self._bpf is not None

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What can be done beside reading all sockets, by the backend that TCP was last read by; nothing before."""
        return self._tcp_backend.capabilities if self._tcp_backend else frozenset()

    def read_toward(self, destinations: Collection[Destination], deadline_seconds: float) -> NarrowSnapshot:
        """Read the TCP connections toward some destinations by inet_diag, whatever the mode.

        Destinations of namespaces that this source does not read are left out.

        Raises:
            KernelError: They could not be read, or the deadline passed.
        """
        ends = frozenset(Endpoint(one.address, one.port) for one in destinations if one.netns == OWN_NETNS)
        deadline = Deadline(deadline_seconds, self._clock, self._wanted)
        sysctls = sysctl.read_sysctls(self._proc)
        with self._open_diag() as diag:
            connections = dumps.read_connections(diag, sysctls.port_range, ends, deadline)
        reading = NarrowReading(
            netns=OWN_NETNS,
            inode=sysctl.read_netns_inode(self._proc),
            sysctls=sysctls,
            destinations=ends,
            connections=connections,
        )
        return NarrowSnapshot(taken_at=self._wall_clock(), namespaces=(reading,))

    def read_timestamps(
        self, questions: Sequence[TimestampQuestion], deadline_seconds: float
    ) -> dict[ConnectKey, list[bool]]:
        """Return for each connect key whether those of its connections that still live use TCP timestamps.

        Nothing if the last reading was not made by inet_diag, because nothing else tells.

        Raises:
            KernelError: They could not be read, or the deadline passed.
        """
        if self._tcp_backend is not Backend.INET_DIAG:
            return {}
        deadline = Deadline(deadline_seconds, self._clock, self._wanted)
        with self._open_diag() as diag:
            return connection_timestamps.read_timestamps(diag, questions, deadline)

    def _read_namespaces(
        self, sysctls: Sysctls, question: _Question
    ) -> tuple[NamespaceSnapshot, list[NamespaceSnapshot]]:
        """Return the own namespace, and the others where all are read."""
        missing: dict[Protocol, str] = {}
        tcp = udp = binds = None
        others: tuple[NamespaceBinds, ...] = ()
        try:
            binds, others = self._tcp_by_bpf(question)
            tcp = self._tcp.read(question) if binds is None else None
        except KernelError as error:
            missing[Protocol.TCP] = _survivable(error)
        try:
            udp = self._udp.read(question)
        except KernelError as error:
            missing[Protocol.UDP] = _survivable(error)
        if tcp is None and udp is None and binds is None:
            raise KernelError(" ".join(dict.fromkeys(missing.values())), reason=Reason.UNAVAILABLE)
        readings = {protocol: one for protocol, one in ((Protocol.TCP, tcp), (Protocol.UDP, udp)) if one}
        backends = {protocol: one.backend for protocol, one in readings.items()}
        if binds is not None:
            backends = {Protocol.TCP: Backend.BPF, **backends}
        self._tcp_backend = backends.get(Protocol.TCP)
        own = NamespaceSnapshot(
            netns=OWN_NETNS,
            inode=sysctl.read_netns_inode(self._proc),
            sysctls=binds.table.sysctls if binds else sysctls,
            tcp=tcp.sockets if tcp else None,
            udp=udp.sockets if udp else None,
            backends=backends,
            missing=missing,
            fallbacks={protocol: one.fallback for protocol, one in readings.items() if one.fallback},
            binds=binds,
        )
        return own, self._name(others)

    def _name(self, others: Sequence[NamespaceBinds]) -> list[NamespaceSnapshot]:
        identities = self._identities.identify(others)
        return [
            NamespaceSnapshot(
                netns=f"netns:{one.inode}",
                inode=one.inode,
                sysctls=one.sysctls,
                tcp=None,
                udp=None,
                backends={Protocol.TCP: Backend.BPF},
                binds=TcpBinds(table=one, listening_ports=None),
                identity=identities[one.inode],
            )
            for one in others
        ]

    def _tcp_by_bpf(self, question: _Question) -> tuple[TcpBinds | None, tuple[NamespaceBinds, ...]]:
        """Walk the bind table; without the own namespace if something else may be read instead of it."""
        if self._bpf is None:
            return None, ()
        try:
            own, others = self._bpf.read(
                question.deadline, lambda: self._dump_to_compare(question), own_only=not self._every_namespace
            )
        except KernelError as error:
            if self._requires_bpf or error.reason in _FATAL_REASONS:
                raise
            return None, ()
        return TcpBinds(table=own, listening_ports=self._listening_ports(question.deadline)), others

    def _dump_to_compare(self, question: _Question) -> TcpSockets | None:
        try:
            return self._tcp_by_diag(question._replace(evidence=False))
        except KernelError as error:
            _survivable(error)
            return None

    def _listening_ports(self, deadline: Deadline) -> frozenset[int] | None:
        try:
            with self._open_diag() as diag:
                return dumps.read_listening_ports(diag, deadline)
        except KernelError as error:
            _survivable(error)
            return None

    def _tcp_by_diag(self, question: _Question) -> TcpSockets:
        release = sysctl.read_release(self._proc)
        with self._open_diag() as diag:
            if self._shows_bound_unconnected is None:
                self._shows_bound_unconnected = features.shows_bound_unconnected(
                    diag, question.port_range, question.deadline, release=release
                )
            sockets = dumps.read_tcp(
                diag,
                question.port_range,
                question.deadline,
                shows_bound_unconnected=self._shows_bound_unconnected,
                ports_recover=features.ports_recover(release),
                evidence=question.evidence,
            )
        # Sockets that are bound to no device are in no VRF, so VRFs matter only once others are there.
        devices = sockets.bound.groups.devices | sockets.connections.groups.devices
        if any(map(links.may_be_in_vrf, devices)):
            return replace(sockets, blind_to=sockets.blind_to | {Blindness.VRF})
        return sockets

    def _udp_by_diag(self, question: _Question) -> UdpSockets:
        with self._open_diag() as diag:
            return dumps.read_udp(diag, question.port_range, question.deadline)

    def _tcp_by_procfs(self, question: _Question) -> TcpSockets:
        sockets = procnet.read_tcp(self._proc, question.port_range, question.deadline)
        return replace(sockets, ports_recover=features.ports_recover(sysctl.read_release(self._proc)))

    def _udp_by_procfs(self, question: _Question) -> UdpSockets:
        return procnet.read_udp(self._proc, question.port_range, question.deadline)

    def _count_tcp(self) -> int:
        return sysctl.read_sockstat(self._proc).tcp

    def _count_udp(self) -> int:
        return sysctl.read_sockstat(self._proc).udp


class _ProtocolReader(Generic[_Sockets]):
    """Reads one protocol by the backend that its mode and its past say."""

    def __init__(
        self,
        mode: str,
        by_diag: Callable[[_Question], _Sockets],
        by_procfs: Callable[[_Question], _Sockets],
        count_sockets: Callable[[], int],
    ) -> None:
        self._mode = mode
        self._by_diag: Callable[[_Question], _Sockets] = by_diag
        self._by_procfs: Callable[[_Question], _Sockets] = by_procfs
        self._count_sockets = count_sockets
        self._good_tries = GOOD_TRIES_BEFORE_INET_DIAG
        self._refusal = ""
        self.backend: Backend | None = None
        """By which the last reading that succeeded was made; None before the first."""

    def read(self, question: _Question) -> _Reading[_Sockets]:
        """Return the sockets, and by which backend they were read."""
        reading = self._read(question)
        self.backend = reading.backend
        return reading

    def _read(self, question: _Question) -> _Reading[_Sockets]:
        if self._mode == Backend.PROCFS:
            return _Reading(self._by_procfs(question), Backend.PROCFS)
        try:
            sockets = self._dump(question)
        except NetlinkError as error:
            if error.errno not in _UNAVAILABLE:
                raise
            if self._mode != AUTO:
                raise KernelError(
                    f"{error} Load the kernel modules tcp_diag and udp_diag, allow AF_NETLINK, "
                    "or set poll.backend: auto.",
                    reason=Reason.UNAVAILABLE,
                ) from error
            self._good_tries = 0
            self._refusal = str(error)
            return _Reading(self._fall_back(question, error), Backend.PROCFS, self._refusal)
        self._good_tries += 1
        if self._good_tries < GOOD_TRIES_BEFORE_INET_DIAG and self._is_small():
            return _Reading(self._by_procfs(question), Backend.PROCFS, self._refusal)
        return _Reading(sockets, Backend.INET_DIAG)

    def _dump(self, question: _Question) -> _Sockets:
        try:
            return self._by_diag(question)
        except InterruptedDumpError:
            return self._by_diag(question)

    def _fall_back(self, question: _Question, error: NetlinkError) -> _Sockets:
        if not self._is_small():
            raise KernelError(
                f"{error} /proc/net is slow from {MOST_SOCKETS_BY_PROCFS:,} sockets on, so it is not read instead. "
                "Load the kernel modules tcp_diag and udp_diag, allow AF_NETLINK, or set poll.backend: procfs.",
                reason=Reason.UNAVAILABLE,
            ) from error
        return self._by_procfs(question)

    def _is_small(self) -> bool:
        return self._count_sockets() < MOST_SOCKETS_BY_PROCFS


def _survivable(error: KernelError) -> str:
    """Return the sentence of an error that leaves the other protocol readable, raise it otherwise."""
    if error.reason in _FATAL_REASONS:
        raise error
    return str(error)
