"""Walks the kernel's bind table and turns the memory that the BPF program filled into values.

The program is bind_table.bpf.c; what is here of its structures stands there with its meaning. What it leaves is checked
as if a stranger had sent it: a layout that changed must never become a number.
"""

from __future__ import annotations

import secrets
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ephmon.errors import KernelError, Reason
from ephmon.facts.addresses import PORTS
from ephmon.facts.bind_counts import SECONDS_OF_A_CELL, PortNumbers
from ephmon.facts.bind_table import BindTable, Losses, NamespaceBinds, PoolTable, PortTable
from ephmon.facts.snapshot import PortRange, Sysctls
from ephmon.kernel.bpf.load import BpfUnavailableError, load
from ephmon.kernel.proc.sysctl import read_netns_inode, read_sysctls

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ephmon.kernel.bpf.load import Loaded
    from ephmon.kernel.deadline import Deadline

MOST_NAMESPACES, MOST_BITMAPS, MOST_POOLS, MOST_PORTS = 1024, 64, 131_072, 131_072
"""Bounds of bind_table.bpf.c: a walk counts what is beyond them (`Losses`)."""
CHAINS_AT_ONCE = 2048
"""How much of the table one run of the program walks. A run is not preempted on all kernels, and a table with a million
sockets takes 200 ms."""

_CONTROL = struct.Struct("=Q5I17I")
_NAMESPACE = struct.Struct("=QQ18I")
_POOL_BYTES, _PORT_BYTES, _BITMAP_BYTES = 128, 16, PORTS // 8
_NO_BITMAP, _LOST_BITMAP = 0, 0xFFFFFFFF
_RESERVED = "reserved"
_CLOCK_MONOTONIC_COARSE = 6  # include/uapi/linux/time.h; its resolution is one tick

_ELEMENT_BYTES = {
    "namespaces": _NAMESPACE.size,
    "pools": _POOL_BYTES,
    "ports": _PORT_BYTES,
    "bitmaps": _BITMAP_BYTES,
}
_MAPS = {
    "control": _CONTROL.size,
    "namespaces": MOST_NAMESPACES * _NAMESPACE.size,
    "pools": MOST_POOLS * _POOL_BYTES,
    "ports": MOST_PORTS * _PORT_BYTES,
    "bitmaps": MOST_BITMAPS * _BITMAP_BYTES,
}


class Control(NamedTuple):
    """struct control of bind_table.bpf.c: what the program is to do, and what it counted."""

    seed: int = 0
    generation: int = 0
    start: int = 0
    number: int = 0
    own_only: int = 0
    ticks_per_cell: int = 0
    chains: int = 0
    own_inode: int = 0
    unknown_layout: int = 0
    namespaces: int = 0
    pools: int = 0
    ports: int = 0
    bitmaps: int = 0
    buckets: int = 0
    sockets: int = 0
    torn: int = 0
    repeated: int = 0
    cut_short: int = 0
    lost_namespaces: int = 0
    lost_pools: int = 0
    lost_ports: int = 0
    lost_bitmaps: int = 0
    unused: int = 0


class BindTableReader:
    """Reads the bind table, again and again, with a program that is loaded once.

    Args:
        proc: Where procfs is mounted.
        open_program: Loads the program and maps the maps that it is given, with their sizes.

    Raises:
        BpfUnavailableError: The table cannot be walked here. The message is one sentence that says why.
    """

    def __init__(
        self, *, proc: Path = Path("/proc"), open_program: Callable[[Mapping[str, int]], Loaded] | None = None
    ) -> None:
        self._generation = 0
        self._seed = secrets.randbits(64)
        self._ticks_per_cell = ticks_per_second() * SECONDS_OF_A_CELL
        self._loaded = open_program(_MAPS) if open_program else load(_MAPS, proc=proc)
        try:
            self._compare_with_sysctls(proc)
        except BaseException:
            self.close()
            raise

    @property
    def is_direct(self) -> bool:
        """Whether the program reads the kernel's memory by plain loads, which is cheaper (Linux 6.2)."""
        return self._loaded.is_direct

    def close(self) -> None:
        """Take the program out of the kernel."""
        self._loaded.close()

    def read(self, deadline: Deadline, *, own_only: bool = True) -> BindTable:
        """Walk the table; once more if it changed under the first walk, and return what saw more of it.

        Args:
            deadline: When to give up.
            own_only: Whether only the network namespace of this process is read.

        Raises:
            KernelError: The walk failed, what it left cannot be trusted, or the deadline passed.
        """
        table = self._walk(deadline, own_only=own_only)
        if table.losses.unseen:
            table = min(self._walk(deadline, own_only=own_only), table, key=lambda one: one.losses.unseen)
        return table

    def _walk(self, deadline: Deadline, *, own_only: bool) -> BindTable:
        self._generation = self._generation % 0xFFFFFFFF + 1
        control = Control(
            seed=self._seed,
            generation=self._generation,
            number=CHAINS_AT_ONCE,
            own_only=own_only,
            ticks_per_cell=self._ticks_per_cell,
            chains=1,  # until the first run has told
        )
        while control.start < control.chains:
            deadline.check()
            control = self._run(control)
            control = control._replace(start=control.start + CHAINS_AT_ONCE)
        return parse_bind_table(control, self._memory(control))

    def _run(self, control: Control) -> Control:
        """Run the program once and return what it counted so far."""
        memory = self._loaded.maps["control"]
        memory.write(_CONTROL.pack(*control))
        try:
            result = self._loaded.run()
        except OSError as error:
            raise KernelError(
                f"The BPF program that walks the bind table cannot be run: {error.strerror}.", reason=Reason.UNAVAILABLE
            ) from error
        if result:
            raise BpfUnavailableError(
                "BPF cannot walk the bind table, because this kernel lays it out in a way that ephmon does not know."
            )
        return Control(*_CONTROL.unpack(memory.read(_CONTROL.size)))

    def _memory(self, control: Control) -> dict[str, bytes]:
        """Return what the program filled of each map."""
        try:
            return {
                name: self._loaded.maps[name].read(getattr(control, name) * size)
                for name, size in _ELEMENT_BYTES.items()
            }
        except OSError as error:
            raise KernelError(f"The bind table cannot be read: {error.strerror}.", reason=Reason.MEMORY) from error

    def _compare_with_sysctls(self, proc: Path) -> None:
        """See that the program reads what /proc says, which it can only if it finds its way through the structures."""
        # A setting may change between the two.
        if not any(self._agrees_with_sysctls(proc) for _ in range(2)):
            raise BpfUnavailableError(
                "BPF reads other settings of this namespace than /proc shows, so it is not trusted with the ports."
            )

    def _agrees_with_sysctls(self, proc: Path) -> bool:
        self._generation += 1
        control = Control(seed=self._seed, generation=self._generation, number=1, own_only=1, ticks_per_cell=1)
        control = self._run(control)
        own = parse_bind_table(control, self._memory(control)).own
        return own is not None and (own.inode, own.sysctls) == (read_netns_inode(proc), read_sysctls(proc))


def ticks_per_second() -> int:
    """Return the kernel's HZ, which the coarse clocks have as their resolution (man 2 clock_getres)."""
    return round(1 / time.clock_getres(_CLOCK_MONOTONIC_COARSE))


def parse_bind_table(control: Control, maps: Mapping[str, bytes]) -> BindTable:
    """Turn what a walk left in the maps into values.

    Raises:
        KernelError: With reason `malformed`; it cannot be what a walk leaves.
    """
    try:
        return _parse(control, maps)
    except ValueError as error:
        raise KernelError(
            f"What BPF read of the bind table cannot be trusted: {error}.", reason=Reason.MALFORMED
        ) from error


def _parse(control: Control, maps: Mapping[str, bytes]) -> BindTable:
    bounds = {
        "namespaces": (control.namespaces, MOST_NAMESPACES),
        "pools": (control.pools, MOST_POOLS),
        "ports": (control.ports, MOST_PORTS),
        "bitmaps": (control.bitmaps, MOST_BITMAPS),
    }
    for name, (number, most) in bounds.items():
        if number > most:
            raise ValueError(f"{number} {name} of at most {most}")
    pools = PoolTable.of_each(maps["pools"][: control.pools * _POOL_BYTES], control.namespaces)
    ports = PortTable.of_each(maps["ports"][: control.ports * _PORT_BYTES], control.namespaces)
    rows = _NAMESPACE.iter_unpack(maps["namespaces"][: control.namespaces * _NAMESPACE.size])
    bitmaps = maps["bitmaps"][: control.bitmaps * _BITMAP_BYTES]
    losses = Losses(
        torn=control.torn,
        repeated=control.repeated,
        cut_short=control.cut_short,
        namespaces=control.lost_namespaces,
        pools=control.lost_pools,
        ports=control.lost_ports,
        bitmaps=control.lost_bitmaps,
    )
    tables = _Tables(pools, ports, bitmaps, is_whole=not losses.unseen)
    parsed = [_parse_namespace(index, row, tables) for index, row in enumerate(rows)]
    return BindTable(
        own_inode=control.own_inode,
        namespaces=tuple(one for one in parsed if one is not None),
        losses=losses,
        buckets=control.buckets,
    )


class _Tables(NamedTuple):
    """The tables of all namespaces, and what they share."""

    pools: Sequence[PoolTable]
    ports: Sequence[PortTable]
    bitmaps: bytes
    is_whole: bool


def _parse_namespace(index: int, row: tuple[int, ...], tables: _Tables) -> NamespaceBinds | None:
    cookie, cgroup, inode, user_inode, low, high, usable, bitmap, *settings_and_numbers = row
    if bitmap == _LOST_BITMAP:
        return None
    if bitmap * _BITMAP_BYTES > len(tables.bitmaps):
        raise ValueError("reserved ports that are not there")
    tw_reuse, delay, timestamps, autobind, tw_buckets, *numbers = settings_and_numbers
    port_range = PortRange(low, high)
    if not 0 < low <= high < PORTS:
        raise ValueError(f"the port range {low}-{high}")
    in_use, blocked, v4, any_v4, any_v6, accepted, sockets = numbers
    if usable > port_range.size or in_use > usable or max(blocked, v4, any_v4, any_v6) > in_use:
        raise ValueError(f"{in_use} ports in use of {usable}, {blocked} of them blocked")
    reserved = frozenset[int]()
    if bitmap != _NO_BITMAP:
        start = (bitmap - 1) * _BITMAP_BYTES
        reserved = _parse_bitmap(tables.bitmaps[start : start + _BITMAP_BYTES])
    return NamespaceBinds(
        inode=inode,
        cookie=cookie,
        cgroup_id=cgroup or None,
        user_namespace_inode=user_inode,
        sysctls=Sysctls(
            port_range=port_range,
            reserved_ports=reserved,
            tcp_tw_reuse=tw_reuse,
            tcp_tw_reuse_delay_ms=delay,
            tcp_timestamps=timestamps,
            ip_autobind_reuse=autobind,
            tcp_max_tw_buckets=tw_buckets,
        ),
        usable=usable,
        outside=PortNumbers(in_use, blocked, v4, any_v4, any_v6),
        accepted=accepted,
        sockets=sockets,
        is_whole=tables.is_whole,
        pool_table=tables.pools[index],
        port_table=tables.ports[index],
    )


def _parse_bitmap(packed: bytes) -> frozenset[int]:
    """Return the ports whose bit is set."""
    return frozenset(
        8 * index + bit for index, byte in enumerate(packed) if byte for bit in range(8) if byte >> bit & 1
    )
