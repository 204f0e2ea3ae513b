"""The small files of /proc: sysctls, sockstat, the namespace's inode, and what is said where they cannot be read."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ephmon.errors import KernelError, Reason
from ephmon.facts.snapshot import PortRange, Sysctls
from ephmon.kernel.proc.file import read_file
from ephmon.kernel.proc.sysctl import (
    Sockstat,
    parse_number,
    parse_port_range,
    parse_ports,
    parse_release,
    parse_sockstat,
    read_netns_inode,
    read_release,
    read_sockstat,
    read_sysctls,
)
from tests.namespaces import Namespace
from tests.sockets import write_sysctl

if TYPE_CHECKING:
    from collections.abc import Iterator

CAPTURED = Path(__file__).parents[1] / "data" / "procnet"
PROC = Path("/proc")
WHERE = Path("/proc/sys/net/ipv4/x")
NOBODY = 65534

IPV4_SYSCTLS = {
    "ip_local_port_range": "32768\t60999\n",
    "ip_local_reserved_ports": "8080,9000-9002\n",
    "tcp_tw_reuse": "1\n",
    "tcp_tw_reuse_delay": "500\n",
    "tcp_timestamps": "0\n",
    "ip_autobind_reuse": "1\n",
    "tcp_max_tw_buckets": "131072\n",
}
MANDATORY = sorted(IPV4_SYSCTLS.keys() - {"tcp_tw_reuse_delay", "ip_autobind_reuse"})
NUMBERS = sorted(IPV4_SYSCTLS.keys() - {"ip_local_port_range", "ip_local_reserved_ports"})


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """Return the root of a procfs with all that is read, of a kernel that has it all."""
    ipv4 = tmp_path / "sys" / "net" / "ipv4"
    for folder in (ipv4, tmp_path / "sys" / "kernel", tmp_path / "net", tmp_path / "self" / "ns"):
        folder.mkdir(parents=True)
    for name, content in IPV4_SYSCTLS.items():
        (ipv4 / name).write_text(content)
    set_release(tmp_path, "6.18.44-generic")
    for name in ("sockstat", "sockstat6"):
        (tmp_path / "net" / name).write_bytes((CAPTURED / name).read_bytes())
    return tmp_path


def set_release(proc: Path, release: str) -> None:
    (proc / "sys" / "kernel" / "osrelease").write_text(f"{release}\n")


def sysctl(proc: Path, name: str) -> Path:
    return proc / "sys" / "net" / "ipv4" / name


@contextmanager
def nobody() -> Iterator[None]:
    """Be a user whom the modes of files bind."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def as_the_kernel_writes(ports: frozenset[int]) -> bytes:
    """Return the line of `ip_local_reserved_ports`, runs of ports joined as in proc_do_large_bitmap()."""
    ordered = sorted(ports)
    breaks = [index for index, (left, right) in enumerate(pairwise(ordered), start=1) if right != left + 1]
    runs = [ordered[start:end] for start, end in pairwise([0, *breaks, len(ordered)])] if ordered else []
    return b",".join(b"%d-%d" % (run[0], run[-1]) if len(run) > 1 else b"%d" % run[0] for run in runs) + b"\n"


# --- sysctls ------------------------------------------------------------------------------------------------------


def test_all_sysctls_are_read(proc: Path) -> None:
    assert read_sysctls(proc) == Sysctls(
        port_range=PortRange(32768, 60999),
        reserved_ports=frozenset({8080, 9000, 9001, 9002}),
        tcp_tw_reuse=1,
        tcp_tw_reuse_delay_ms=500,
        tcp_timestamps=0,
        ip_autobind_reuse=1,
        tcp_max_tw_buckets=131072,
    )


@pytest.mark.parametrize("release", ["4.19.0", "5.6.19", "4.18.0-553.el8_10.x86_64"])
def test_a_kernel_older_than_a_sysctl_has_its_default(proc: Path, release: str) -> None:
    set_release(proc, release)
    sysctl(proc, "tcp_tw_reuse_delay").unlink()
    sysctl(proc, "ip_autobind_reuse").unlink()

    sysctls = read_sysctls(proc)

    assert (sysctls.tcp_tw_reuse_delay_ms, sysctls.ip_autobind_reuse) == (1000, 0)


@pytest.mark.parametrize(
    ("name", "before", "since"), [("tcp_tw_reuse_delay", "6.13.12", "6.14.0"), ("ip_autobind_reuse", "5.6.19", "5.7.0")]
)
def test_a_kernel_that_should_have_a_sysctl_and_does_not_show_it_is_an_error(
    proc: Path, name: str, before: str, since: str
) -> None:
    sysctl(proc, name).unlink()
    set_release(proc, before)
    read_sysctls(proc)

    set_release(proc, since)
    with pytest.raises(KernelError, match=rf"^{sysctl(proc, name)} cannot be read \(No such file or directory\)"):
        read_sysctls(proc)


def test_an_old_kernel_that_has_a_newer_sysctl_is_believed(proc: Path) -> None:
    set_release(proc, "4.18.0-553.el8_10.x86_64")

    assert read_sysctls(proc).tcp_tw_reuse_delay_ms == 500


@pytest.mark.parametrize("name", MANDATORY)
def test_a_sysctl_that_every_kernel_has_is_never_made_up(proc: Path, name: str) -> None:
    set_release(proc, "4.19.0")
    sysctl(proc, name).unlink()

    with pytest.raises(KernelError, match=rf"^{sysctl(proc, name)} cannot be read") as caught:
        read_sysctls(proc)

    assert caught.value.reason == "sysctl"


@pytest.mark.parametrize("name", sorted(IPV4_SYSCTLS))
def test_a_sysctl_that_may_not_be_read_is_an_error_also_where_it_is_optional(
    proc: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_release(proc, "4.19.0")
    sysctl(proc, name).chmod(0)
    proc.chmod(0o755)
    monkeypatch.chdir(proc)  # the folders above it are for their owner only

    with nobody(), pytest.raises(KernelError, match=rf"{name} cannot be read \(Permission denied\).*AppArmor"):
        read_sysctls(Path())


@pytest.mark.parametrize("name", sorted(IPV4_SYSCTLS))
@pytest.mark.parametrize("content", ["1", "one\n", "1 2 3\n", "99999999999\n", "\N{ARABIC-INDIC DIGIT ONE}\n"])
def test_content_that_the_kernel_does_not_write_is_quoted_with_its_file(proc: Path, name: str, content: str) -> None:
    sysctl(proc, name).write_text(content, encoding="utf-8")

    with pytest.raises(KernelError, match=rf"^{sysctl(proc, name)} holds ") as caught:
        read_sysctls(proc)

    assert caught.value.reason == "sysctl"


@pytest.mark.parametrize("name", sorted(IPV4_SYSCTLS))
def test_an_empty_file_is_reported_as_masked(proc: Path, name: str) -> None:
    """As by /dev/null, which container runtimes put over what they mask."""
    sysctl(proc, name).unlink()
    sysctl(proc, name).symlink_to("/dev/null")

    with pytest.raises(KernelError) as caught:
        read_sysctls(proc)

    assert str(caught.value) == (
        f"{sysctl(proc, name)} is empty: a container or sandbox probably masks it; do not mask it."
    )
    assert caught.value.reason == "sysctl"


def test_an_empty_item_of_a_list_does_not_make_the_file_an_empty_one() -> None:
    with pytest.raises(KernelError, match=r"x holds 8080,,9000, which is not a port or a range of ports\.$"):
        parse_ports(b"8080,,9000\n", WHERE)


def test_an_empty_sockstat_is_reported_as_masked() -> None:
    with pytest.raises(KernelError, match=r"^/proc/net/sockstat is empty: a container or sandbox probably masks it"):
        parse_sockstat(b"", None, Path("/proc/net"))


def test_the_release_is_read_from_the_procfs_that_is_given(proc: Path) -> None:
    set_release(proc, "5.19.1-generic")

    assert read_release(proc) == (5, 19)


def test_the_error_shows_the_content() -> None:
    with pytest.raises(KernelError) as caught:
        parse_port_range(b"60999\t32768\n", WHERE)

    assert (
        str(caught.value)
        == r"/proc/sys/net/ipv4/x holds '60999\t32768\n', which is not two ports, the lower one first."
    )


@pytest.mark.parametrize("content", [b"0\t5\n", b"1\t65536\n", b"9\t8\n", b"1\n", b"1\t2\t3\n", b"1-2\n", b"-1\t5\n"])
def test_a_port_range_is_two_ports_in_order(content: bytes) -> None:
    with pytest.raises(KernelError):
        parse_port_range(content, WHERE)


@pytest.mark.parametrize(
    ("content", "ports"),
    [
        (b"\n", set()),
        (b"0\n", {0}),
        (b"8080\n", {8080}),
        (b"1,3-5,65535\n", {1, 3, 4, 5, 65535}),
        (b"0-65535\n", set(range(65536))),
    ],
)
def test_a_list_of_ports_is_ports_and_ranges(content: bytes, ports: set[int]) -> None:
    assert parse_ports(content, WHERE) == ports


@pytest.mark.parametrize(
    "content", [b"1,\n", b",1\n", b"1-\n", b"5-3\n", b"65536\n", b"1-65536\n", b"1 2\n", b"1--2\n"]
)
def test_no_other_list_of_ports_is_accepted(content: bytes) -> None:
    with pytest.raises(KernelError, match=r"which is not a port or a range of ports\.$"):
        parse_ports(content, WHERE)


@pytest.mark.parametrize(("content", "item"), [(b"9,8\n", "8"), (b"1-5,5\n", "5"), (b"1-65535,1-65535\n", "1-65535")])
def test_a_list_of_ports_in_another_order_is_refused(content: bytes, item: str) -> None:
    """It costs time for each port that it names, and a line may be long."""
    with pytest.raises(KernelError, match=rf"x holds {item}, which is not above the ports before it\.$"):
        parse_ports(content, WHERE)


@given(st.frozensets(st.integers(0, 65535)) | st.frozensets(st.integers(40000, 40020)))
def test_a_list_of_ports_reads_as_what_it_was_written_from(ports: frozenset[int]) -> None:
    assert parse_ports(as_the_kernel_writes(ports), WHERE) == ports


@given(st.frozensets(st.integers(40000, 40020), min_size=1), st.data())
def test_a_cut_list_of_ports_is_never_a_shorter_list(ports: frozenset[int], data: st.DataObject) -> None:
    content = as_the_kernel_writes(ports)

    with pytest.raises(KernelError):
        parse_ports(content[: data.draw(st.integers(0, len(content) - 1))], WHERE)


@pytest.mark.parametrize("content", [b"0\n", b"2\n", b"-1\n", b"2147483647\n"])
def test_a_number_is_a_c_int(content: bytes) -> None:
    assert parse_number(content, WHERE) == int(content)


@pytest.mark.parametrize("content", [b"2147483648\n", b"1_0\n", b"+1\n", b" 1\n", b"1\n\n", b"0x1\n", b"12"])
def test_no_other_number_is_accepted(content: bytes) -> None:
    with pytest.raises(KernelError):
        parse_number(content, WHERE)


@pytest.mark.parametrize(
    ("content", "release"),
    [
        (b"6.18.44-generic\n", (6, 18)),
        (b"6.1.0-13-amd64\n", (6, 1)),
        (b"4.18.0-553.el8_10.x86_64\n", (4, 18)),
        (b"7.2-rc1\n", (7, 2)),
        (b"5.10\n", (5, 10)),
    ],
)
def test_a_release_is_its_first_two_numbers(content: bytes, release: tuple[int, int]) -> None:
    assert parse_release(content, WHERE) == release


@pytest.mark.parametrize("content", [b"\n", b"6\n", b"linux\n", b"6.1"])
def test_what_is_no_release_decides_nothing(proc: Path, content: bytes) -> None:
    (proc / "sys" / "kernel" / "osrelease").write_bytes(content)
    sysctl(proc, "tcp_tw_reuse_delay").unlink()

    with pytest.raises(KernelError, match=r"osrelease holds .* which is not a kernel release"):
        read_sysctls(proc)


# --- why a file cannot be read ------------------------------------------------------------------------------------


def test_a_procfs_of_processes_only_is_reported_with_the_unit_option(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()

    for read in (read_sysctls, read_sockstat):
        with pytest.raises(KernelError, match=r"remove ProcSubset=pid from the systemd unit"):
            read(tmp_path)


def test_a_masked_folder_is_reported_as_such(proc: Path) -> None:
    for name in IPV4_SYSCTLS:
        sysctl(proc, name).unlink()

    with pytest.raises(KernelError, match=rf"a container or sandbox masks {proc}/sys; do not mask it\.$"):
        read_sysctls(proc)


def test_a_root_without_a_procfs_is_reported_as_such(tmp_path: Path) -> None:
    for read in (read_sysctls, read_sockstat, read_netns_inode):
        with pytest.raises(
            KernelError, match=rf"no procfs of this process is mounted at {tmp_path}; mount one there\.$"
        ):
            read(tmp_path)


def test_a_file_is_read_whole_or_not_at_all(tmp_path: Path) -> None:
    for size in (0, 1, 4094, 4095, 4096, 32767, 32768, 262142):
        (tmp_path / "file").write_bytes(b"x" * size)
        assert read_file(tmp_path, "file", reason=Reason.PROCFS) == b"x" * size

    (tmp_path / "file").write_bytes(b"x" * 262143)
    with pytest.raises(KernelError, match=r"has more than 262142 bytes"):
        read_file(tmp_path, "file", reason=Reason.PROCFS)


# --- sockstat and the namespace -----------------------------------------------------------------------------------


def test_captured_sockstat_is_counted(proc: Path) -> None:
    sockstat = read_sockstat(proc)

    assert sockstat == Sockstat(tcp_inuse=15, tcp_time_wait=4, udp_inuse=3, tcp6_inuse=7, udp6_inuse=5)
    assert (sockstat.tcp, sockstat.udp) == (15 + 4 + 7, 3 + 5)


def test_where_ipv6_is_off_its_counts_are_zero(proc: Path) -> None:
    (proc / "net" / "sockstat6").unlink()

    assert read_sockstat(proc) == Sockstat(tcp_inuse=15, tcp_time_wait=4, udp_inuse=3, tcp6_inuse=0, udp6_inuse=0)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("sockstat", b"TCP: inuse 15 orphan 0"),
        ("sockstat", b"UDP: inuse 3"),
        ("sockstat6", b"TCP6: inuse 7"),
        ("sockstat6", b"UDP6: inuse 5"),
    ],
)
@pytest.mark.parametrize("damage", [b"", b"TCP: inuse -1 orphan 0", b"UDP6: inuse 99999999999", b"TCP6: inuse many"])
def test_a_missing_or_odd_count_is_an_error_and_no_zero(proc: Path, name: str, line: bytes, damage: bytes) -> None:
    file = proc / "net" / name
    file.write_bytes(file.read_bytes().replace(line, damage))

    with pytest.raises(KernelError, match=rf"^{file} holds ") as caught:
        read_sockstat(proc)

    assert caught.value.reason == "procfs"


def test_cut_sockstat_raises_or_counts_the_same() -> None:
    ipv4 = b"sockets: used 901\nTCP: inuse 415 orphan 0 tw 2031 alloc 420 mem 33\nUDP: inuse 77 mem 0\nRAW: inuse 0\n"
    ipv6 = b"TCP6: inuse 312\nUDP6: inuse 98\nRAW6: inuse 0\n"
    cuts = [(ipv4[:end], ipv6) for end in range(len(ipv4))] + [(ipv4, ipv6[:end]) for end in range(len(ipv6))]

    counted = []
    for cut in cuts:
        with suppress(KernelError):
            counted.append(parse_sockstat(*cut, Path("/proc/net")))

    assert 0 < len(counted) < len(cuts)
    assert set(counted) == {Sockstat(415, 2031, 77, 312, 98)}


# --- live ---------------------------------------------------------------------------------------------------------


def test_the_sysctls_of_a_live_namespace_are_its_own() -> None:
    before = read_sysctls(PROC)
    with Namespace() as namespace:
        inode = namespace.call(read_netns_inode, PROC)
        assert inode == namespace.inode != read_netns_inode(PROC)
        namespace.call(write_sysctl, "net.ipv4.ip_local_port_range", "40000 40999")
        namespace.call(write_sysctl, "net.ipv4.ip_local_reserved_ports", "40010-40019,8080")
        namespace.call(write_sysctl, "net.ipv4.tcp_tw_reuse", 0)
        namespace.call(write_sysctl, "net.ipv4.tcp_timestamps", 2)
        namespace.call(write_sysctl, "net.ipv4.tcp_max_tw_buckets", 77)

        sysctls = namespace.call(read_sysctls, PROC)

    assert sysctls.port_range == PortRange(40000, 40999)
    assert sysctls.reserved_ports == {8080, *range(40010, 40020)}
    assert (sysctls.tcp_tw_reuse, sysctls.tcp_timestamps, sysctls.tcp_max_tw_buckets) == (0, 2, 77)
    assert read_sysctls(PROC) == before


@pytest.mark.parametrize("gap", [2, 3], ids=["every second port", "pairs, the longest list"])
def test_the_longest_lists_that_the_kernel_can_write_are_read_whole(gap: int) -> None:
    reserved = frozenset(port for port in range(65536) if port % gap)

    with Namespace() as namespace:
        namespace.call(
            write_sysctl, "net.ipv4.ip_local_reserved_ports", as_the_kernel_writes(reserved).decode().strip()
        )
        assert namespace.call(read_sysctls, PROC).reserved_ports == reserved
