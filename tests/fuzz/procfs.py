"""Files of /proc: socket tables, settings, and what stands there of processes and cgroups."""

from __future__ import annotations

import os
import sys
from io import BytesIO
from pathlib import Path
from socket import AF_INET, AF_INET6
from typing import TYPE_CHECKING

from ephmon.errors import KernelError
from ephmon.facts.addresses import HIGHEST_PORT, V4_BYTES, V4_MAPPED
from ephmon.facts.port_list import format_ports
from ephmon.facts.snapshot import PortRange
from ephmon.kernel.proc.callers import ThreadStat, parse_cgroup, parse_stat, parse_status
from ephmon.kernel.proc.cgroup import parse_mount, parse_processes
from ephmon.kernel.proc.procnet import Row, parse_table
from ephmon.kernel.proc.sysctl import parse_number, parse_port_range, parse_ports, parse_release, parse_sockstat
from tests.fuzz.target import RECORDED, Target, answer, files

if TYPE_CHECKING:
    from socket import AddressFamily

WHERE = Path("/proc/net/tcp")
EVERY_PORT = PortRange(0, HIGHEST_PORT)
_TICKS = 100
_HIGHEST_COUNT = 10**10
_LONGEST_NAME = 15
"""TASK_COMM_LEN (include/linux/sched.h) less the NUL."""


def check_procnet(data: bytes) -> None:
    """Read a table of each family; every row that is found is written out again and compared."""
    lines = BytesIO(data).readlines()
    for family in (AF_INET, AF_INET6):
        rows = answer(KernelError, _table, lines, family)
        if rows is None:
            continue
        assert len(rows) == len(lines) - 1, "a row was passed over"
        for row, line in zip(rows, lines[1:], strict=True):
            assert line.split()[1:4] == _columns(row)
            assert row.minisock or row.left_ms == 0


def _table(lines: list[bytes], family: AddressFamily) -> list[Row]:
    return list(parse_table(lines, family, EVERY_PORT, WHERE, ticks_per_second=_TICKS))


def _columns(row: Row) -> list[bytes]:
    """Return both addresses and the state as the kernel writes them."""
    local = _hexadecimal(row.source, row.port, is_v6=row.ipv6)
    remote = _hexadecimal(row.destination, row.destination_port, is_v6=row.ipv6)
    return [local, remote, b"%02X" % row.state]


def _hexadecimal(address: bytes, port: int, *, is_v6: bool) -> bytes:
    packed = V4_MAPPED + address if is_v6 and len(address) == V4_BYTES else address
    words = [packed[start : start + 4] for start in range(0, len(packed), 4)]
    return b"".join(b"%08X" % int.from_bytes(word, sys.byteorder) for word in words) + b":%04X" % port


def check_sysctl(data: bytes) -> None:
    """Read an input as each kind of setting, and write the value out again."""
    number = answer(KernelError, parse_number, data, WHERE)
    if number is not None:
        assert parse_number(b"%d\n" % number, WHERE) == number
        assert int(data) == number
    ports = answer(KernelError, parse_port_range, data, WHERE)
    if ports is not None:
        assert 1 <= ports.low <= ports.high <= HIGHEST_PORT
        assert [int(text) for text in data.split()] == list(ports)
    reserved = answer(KernelError, parse_ports, data, WHERE)
    if reserved is not None:
        assert (data == b"\n") == (not reserved), "no ports are read only from an empty line"
        assert parse_ports(f"{format_ports(reserved)}\n".encode(), WHERE) == reserved
    release = answer(KernelError, parse_release, data, WHERE)
    if release is not None:
        assert data.startswith((b"0", b"%d." % release[0]))
    check_sockstat(data)


def check_sockstat(data: bytes) -> None:
    """Read the counts of sockets; a count that is not there is an error and not 0."""
    for ipv6 in (None, data):
        counts = answer(KernelError, parse_sockstat, data, ipv6, WHERE)
        if counts is not None:
            assert all(0 <= count < _HIGHEST_COUNT for count in counts)
            assert b"TCP: inuse " in data
            assert b"UDP: inuse " in data
            assert ipv6 is None or b"TCP6: inuse " in data


def check_process(data: bytes) -> None:
    """Read an input as what stands in /proc of a thread, and as the name of one that stands amid real numbers."""
    stat = parse_stat(data)
    if stat is not None:
        assert parse_stat(_stat(stat)) == stat
        float(stat.started_ticks)
    named = ThreadStat(data.replace(b"\0", b"")[:_LONGEST_NAME], 1, 2, 3)
    assert parse_stat(_stat(named)) == named, "a thread forges the numbers behind its name"
    status = parse_status(data)
    if status is not None:
        assert parse_status(b"Tgid:\t%d\nUid:\t0\t%d\t0\t0\n" % status) == status
    path = parse_cgroup(data)
    if path is not None:
        assert b"0::" + os.fsencode(path) in data


def _stat(stat: ThreadStat) -> bytes:
    name, parent, flags, started = stat
    return b"7 (%s) S %d 0 0 0 -1 %d%s %d 0\n" % (name, parent, flags, b" 0" * 12, started)


def check_cgroup(data: bytes) -> None:
    """Read an input as mounts and as process ids; what is found can be used as a path and as a number."""
    lines = BytesIO(data).readlines()
    for line in lines:
        mount = parse_mount(line)
        if mount is not None:
            assert b" - cgroup2 " in line
            assert 0 not in mount.directory, "no path contains a NUL"
    for pid in parse_processes(lines):
        assert 0 < pid < _HIGHEST_COUNT
        assert b"%d" % pid in data


TARGETS = (
    Target(
        name="procnet",
        parsers=("kernel.proc.procnet.parse_table",),
        check=check_procnet,
        seeds=lambda: files(RECORDED / "procnet", "tcp", "tcp6", "udp", "udp6"),
        max_bytes=2048,
        executions=10_000,
    ),
    Target(
        name="sysctl",
        parsers=tuple(
            f"kernel.proc.sysctl.{name}"
            for name in ("parse_number", "parse_port_range", "parse_ports", "parse_release", "parse_sockstat")
        ),
        check=check_sysctl,
        seeds=lambda: [
            b"".join(files(RECORDED / "procnet", "sockstat", "sockstat6")),
            *files(RECORDED / "procnet", "sockstat"),
        ],
        max_bytes=4096,
        executions=3_000,
    ),
    Target(
        name="process",
        parsers=tuple(f"kernel.proc.callers.{name}" for name in ("parse_stat", "parse_status", "parse_cgroup")),
        check=check_process,
        executions=10_000,
    ),
    Target(
        name="cgroup",
        parsers=("kernel.proc.cgroup.parse_mount", "kernel.proc.cgroup.parse_processes"),
        check=check_cgroup,
        max_bytes=1024,
        executions=4_000,
    ),
)
