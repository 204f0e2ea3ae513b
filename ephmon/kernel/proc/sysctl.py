"""The settings and socket counts of one network namespace, from the small files of /proc.

In comes the root of a procfs, out come `Sysctls`, a `Sockstat` and the namespace's inode. Reading and parsing are two
functions each. The kernel always writes a whole line, so content without its newline is refused as cut.

/proc/sys/net is that of the network namespace of the thread that opens it, /proc/net and /proc/self are those of the
process.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from ephmon.errors import KernelError, Reason
from ephmon.facts.addresses import HIGHEST_PORT
from ephmon.facts.snapshot import PortRange, Sysctls
from ephmon.kernel.proc.file import quoted, read_file, read_file_if_present, unreadable

if TYPE_CHECKING:
    from pathlib import Path

_IPV4 = "sys/net/ipv4"
_NUMBER = re.compile(rb"(-?[0-9]{1,10})\n")
_PORT_RANGE = re.compile(rb"([0-9]{1,5})\t([0-9]{1,5})\n")
_PORTS = re.compile(rb"([0-9]{1,5})(?:-([0-9]{1,5}))?")
_RELEASE = re.compile(rb"([0-9]{1,5})\.([0-9]{1,5})[^\n]*\n")
_INT_MAX = (1 << 31) - 1

# Each number is followed by what the kernel writes after it, so that one that was cut short is not taken for a number.
_TCP_COUNTS = re.compile(rb"^TCP: inuse ([0-9]{1,10}) orphan [0-9]+ tw ([0-9]{1,10}) ", re.MULTILINE)
_UDP_COUNT = re.compile(rb"^UDP: inuse ([0-9]{1,10}) ", re.MULTILINE)
_TCP6_COUNT = re.compile(rb"^TCP6: inuse ([0-9]{1,10})\n", re.MULTILINE)
_UDP6_COUNT = re.compile(rb"^UDP6: inuse ([0-9]{1,10})\n", re.MULTILINE)


class Sockstat(NamedTuple):
    """How many sockets a network namespace has, as sockstat_seq_show() in net/ipv4/proc.c counts them.

    What to judge the size of a table by before it is read. TCP sockets that are neither connected nor listening and
    requests (SYN_RECV) are in none of these numbers.
    """

    tcp_inuse: int
    """AF_INET sockets in any state but CLOSE, whether a process has them or not; no TIME_WAIT structures."""
    tcp_time_wait: int
    """TIME_WAIT structures of both families, those in FIN_WAIT2 included."""
    udp_inuse: int
    """AF_INET sockets that have a port."""
    tcp6_inuse: int
    """As `tcp_inuse`, of AF_INET6 sockets, which those with IPv4-mapped addresses are too."""
    udp6_inuse: int

    @property
    def tcp(self) -> int:
        """Rows of /proc/net/tcp and tcp6 together, but for requests."""
        return self.tcp_inuse + self.tcp_time_wait + self.tcp6_inuse

    @property
    def udp(self) -> int:
        """Rows of /proc/net/udp and udp6 together."""
        return self.udp_inuse + self.udp6_inuse


def read_sysctls(proc: Path) -> Sysctls:
    """Read the sysctls that decide how ports are allocated (Documentation/networking/ip-sysctl.rst).

    Those that every kernel with IPv4 has must be there: that one of them is absent means that something hides them.

    Raises:
        KernelError: With reason `sysctl`; a file cannot be read, is missing from a kernel that should have it, or holds
            what the kernel does not write.
    """
    return Sysctls(
        port_range=parse_port_range(*_read_ipv4(proc, "ip_local_port_range")),
        reserved_ports=parse_ports(*_read_ipv4(proc, "ip_local_reserved_ports")),
        tcp_tw_reuse=parse_number(*_read_ipv4(proc, "tcp_tw_reuse")),
        # A fixed second before it became a setting.
        tcp_tw_reuse_delay_ms=_read_number_since(proc, "tcp_tw_reuse_delay", release=(6, 14), before=1000),
        tcp_timestamps=parse_number(*_read_ipv4(proc, "tcp_timestamps")),
        ip_autobind_reuse=_read_number_since(proc, "ip_autobind_reuse", release=(5, 7), before=0),
        tcp_max_tw_buckets=parse_number(*_read_ipv4(proc, "tcp_max_tw_buckets")),
    )


def read_release(proc: Path) -> tuple[int, int]:
    """Return the first two numbers of the kernel's release.

    uname() would tell but for the personality UNAME26 (man 2 personality), and it does not follow `proc`.

    Raises:
        KernelError: With reason `sysctl`.
    """
    name = "sys/kernel/osrelease"
    return parse_release(read_file(proc, name, reason=Reason.SYSCTL), proc / name)


def read_netns_inode(proc: Path) -> int:
    """Return the inode number of the process's network namespace, its identity while it lives (man 7 namespaces).

    Raises:
        KernelError: With reason `procfs`.
    """
    name = "self/ns/net"
    try:
        return (proc / name).stat().st_ino
    except OSError as error:
        raise unreadable(proc, name, error, reason=Reason.PROCFS) from error


def read_sockstat(proc: Path) -> Sockstat:
    """Count the sockets of the process's network namespace, in time that does not depend on how many there are.

    Raises:
        KernelError: With reason `procfs`; a file cannot be read or holds what the kernel does not write.
    """
    return parse_sockstat(
        read_file(proc, "net/sockstat", reason=Reason.PROCFS),
        read_file_if_present(proc, "net/sockstat6", reason=Reason.PROCFS),
        proc / "net",
    )


def read_conntrack_count(proc: Path) -> int | None:
    """Return how many connections the namespace tracks for firewalls and NAT, None where nothing is tracked.

    Raises:
        KernelError: With reason `sysctl`.
    """
    name = "sys/net/netfilter/nf_conntrack_count"
    content = read_file_if_present(proc, name, reason=Reason.SYSCTL)
    return None if content is None else parse_number(content, proc / name)


def parse_number(content: bytes, where: Path) -> int:
    """Return the C int that a sysctl of one number holds; `where` is named in errors.

    Raises:
        KernelError: With reason `sysctl`.
    """
    match = _NUMBER.fullmatch(content)
    if match is None or abs(int(match[1])) > _INT_MAX:
        raise _malformed(where, content, "one number")
    return int(match[1])


def parse_port_range(content: bytes, where: Path) -> PortRange:
    r"""Return the range of a line like `32768\t60999`; `where` is named in errors.

    Raises:
        KernelError: With reason `sysctl`.
    """
    match = _PORT_RANGE.fullmatch(content)
    low, high = map(int, match.groups()) if match else (0, 0)
    if not 1 <= low <= high <= HIGHEST_PORT:
        raise _malformed(where, content, "two ports, the lower one first")
    return PortRange(low, high)


def parse_ports(content: bytes, where: Path) -> frozenset[int]:
    """Return the ports of a line like `8080,9000-9002`, none for an empty line; `where` is named in errors.

    Raises:
        KernelError: With reason `sysctl`.
    """
    line = content.removesuffix(b"\n")
    if line == content:
        raise _malformed(where, content, "a line of ports")
    ports: set[int] = set()
    highest = -1
    for item in line.split(b",") if line else ():
        match = _PORTS.fullmatch(item)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last <= HIGHEST_PORT:
            raise _malformed(where, item or line, "a port or a range of ports")
        # The kernel writes them in order. In any other, one line could name all ports thousands of times.
        if first <= highest:
            raise _malformed(where, item, "above the ports before it")
        ports.update(range(first, last + 1))
        highest = last
    return frozenset(ports)


def parse_sockstat(ipv4: bytes, ipv6: bytes | None, where: Path) -> Sockstat:
    """Return the counts of sockstat and sockstat6; None for the latter, as where IPv6 is off, counts no socket.

    Raises:
        KernelError: With reason `procfs`; the files are named as those in the directory `where`.
    """
    tcp, tcp_time_wait = _counts(_TCP_COUNTS, ipv4, where / "sockstat")
    (udp,) = _counts(_UDP_COUNT, ipv4, where / "sockstat")
    (tcp6,) = (0,) if ipv6 is None else _counts(_TCP6_COUNT, ipv6, where / "sockstat6")
    (udp6,) = (0,) if ipv6 is None else _counts(_UDP6_COUNT, ipv6, where / "sockstat6")
    return Sockstat(tcp_inuse=tcp, tcp_time_wait=tcp_time_wait, udp_inuse=udp, tcp6_inuse=tcp6, udp6_inuse=udp6)


def parse_release(content: bytes, where: Path) -> tuple[int, int]:
    """Return the first two numbers of a kernel release like `6.1.0-13-amd64`; `where` is named in errors.

    Raises:
        KernelError: With reason `sysctl`.
    """
    match = _RELEASE.fullmatch(content)
    if match is None:
        raise _malformed(where, content, "a kernel release")
    return int(match[1]), int(match[2])


def _read_ipv4(proc: Path, sysctl: str) -> tuple[bytes, Path]:
    """Return the content of a sysctl and where it was read: what the parsers take."""
    name = f"{_IPV4}/{sysctl}"
    return read_file(proc, name, reason=Reason.SYSCTL), proc / name


def _read_number_since(proc: Path, sysctl: str, *, release: tuple[int, int], before: int) -> int:
    """Return a sysctl that came with a kernel release, or what was in force before there was such a setting.

    Where the file is there it is believed, whatever the release: distributions take changes over into older kernels.
    """
    name = f"{_IPV4}/{sysctl}"
    content = read_file_if_present(proc, name, reason=Reason.SYSCTL)
    if content is not None:
        return parse_number(content, proc / name)
    if read_release(proc) < release:
        return before
    return parse_number(*_read_ipv4(proc, sysctl))


def _counts(line: re.Pattern[bytes], content: bytes, where: Path) -> tuple[int, ...]:
    """Return the numbers of the one line of `content` that starts with what `line` matches."""
    match = line.search(content)
    if match is None:
        raise KernelError(f"{where} {_odd(content, 'lacks a line of socket counts')}.", reason=Reason.PROCFS)
    return tuple(map(int, match.groups()))


def _malformed(where: Path, content: bytes, expected: str) -> KernelError:
    return KernelError(f"{where} {_odd(content, f'is not {expected}')}.", reason=Reason.SYSCTL)


def _odd(content: bytes, fault: str) -> str:
    """Return what a file holds and what is wrong with it; runc masks files by /dev/null, which reads as empty."""
    if not content:
        return "is empty: a container or sandbox probably masks it; do not mask it"
    return f"holds {quoted(content)}, which {fault}"
