"""The load: populations of TCP sockets in a network namespace of their own, made in seconds and gone with this process.

An established socket needs neither peer nor handshake: with TCP_REPAIR (man 7 tcp, tcp_v4_connect()) connect() only
chooses a port and enters the socket into the kernel's tables, and closing it sends nothing. A process may hold 20,000
descriptors, so a population is spread over as many *loaders* as it takes; the kernel kills them with this process.
"""

from __future__ import annotations

import ctypes
import os
import resource
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.scenario import NotMeasuredError
from tests import sockets
from tests.namespaces import Namespace, ip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


MOST_SOCKETS_OF_A_LOADER = 19_900
LOADING_SECONDS = 600.0
BYTES_PER_SOCKET = 6_000
"""What must be available for each: Linux 6.18 and the loader take some 3,900, and half is spare."""
DESTINATION_PORT, SERVICE_PORT, FIRST_CLOSING_PORT = 443, 80, 8000
_TCP_REPAIR = 19  # include/uapi/linux/tcp.h
_TIME_WAIT_LOADERS = 4
_CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h; Python 3.11 does not name it
_REUSE = "net.ipv4.tcp_tw_reuse"

held: list[int] = []
"""The descriptors that this loader keeps open."""
_turn = count()


@dataclass(frozen=True, slots=True, kw_only=True)
class Population:
    """How many sockets there are of each kind, and toward how many destinations."""

    established: int = 0
    """Connected by connect(), so inside the port range, evenly spread over the destinations."""
    destinations: int = 1
    """Each an address of its own, so as many tcp_connect pools; the TIME_WAITs have as many again."""
    accepted: int = 0
    """Of a service on port 80, so outside the port range, each from another peer."""
    time_wait: int = 0
    """Left by clients that closed first; they last for 60 seconds."""

    @property
    def sockets(self) -> int:
        """How many sockets there are in all."""
        return self.established + self.accepted + self.time_wait

    def __str__(self) -> str:
        kinds = [
            f"{self.established:,} established toward {self.destinations:,} destinations" if self.established else "",
            f"{self.accepted:,} accepted on a port outside the range" if self.accepted else "",
            f"{self.time_wait:,} TIME_WAIT toward {self.destinations:,} destinations" if self.time_wait else "",
        ]
        return ", ".join(filter(None, kinds)) or "no sockets"


class Share(NamedTuple):
    """What one loader opens: the sockets of a kind that have these numbers."""

    opener: Callable[[Share], None]
    loader: int
    numbers: Sequence[int]
    destinations: int


@contextmanager
def populated(population: Population) -> Iterator[Namespace]:
    """Make a namespace with the population in it, and remove both; raises as `load`."""
    with Namespace() as namespace:
        namespace.call(own_table)
        load(namespace, population)
        yield namespace


def own_table() -> None:
    """Move this process, the first of its namespace, on to a namespace with a hash table of its own; for an agent.

    A dump walks the whole table, and by default all namespaces share that of the host, so that the sockets of others
    would be measured too (tcp_child_ehash_entries in Documentation/networking/ip-sysctl.rst, Linux 6.1). The table gets
    the size of the host's. Before 6.1 this does nothing.
    """
    try:
        buckets = abs(int(sockets.read_sysctl("net.ipv4.tcp_ehash_entries")))  # negative for one that is shared
        sockets.write_sysctl("net.ipv4.tcp_child_ehash_entries", buckets)
    except FileNotFoundError:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) == -1:
        raise OSError(ctypes.get_errno(), "A network namespace cannot be made inside of another.")
    ip("link", "set", "lo", "up")


def load(namespace: Namespace, population: Population) -> None:
    """Open the sockets of a population in a namespace, those that do not last at the end.

    Raises:
        NotMeasuredError: The host has not the memory for it.
        OSError: A socket could not be opened.
    """
    needed = population.sockets * BYTES_PER_SOCKET
    if needed > (available := available_memory()):
        raise NotMeasuredError(f"needs {needed >> 20:,} MiB of memory and {available >> 20:,} are available")
    most = _sockets_per_loader()
    lasting = [
        *_shares(_open_established, population.established, population.destinations, most),
        *_shares(_open_accepted, population.accepted, 1, most),
    ]
    _open(namespace, lasting)
    reuse = namespace.call(sockets.read_sysctl, _REUSE)
    namespace.call(sockets.write_sysctl, _REUSE, 0)  # or later connections would take the place of earlier ones
    _open(namespace, _shares_of_time_waits(population.time_wait, population.destinations))
    namespace.call(sockets.write_sysctl, _REUSE, reuse)


def destination(number: int) -> str:
    """Return the address of a destination, all of them on loopback; there are some 60,000."""
    return f"127.{1 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"


def replace_some(most: int, number: int, destinations: int) -> int:
    """Open `number` sockets more, close the oldest above `most`, and return how many were opened; for an agent.

    The destinations take turns, from call to call.
    """
    _raise_descriptor_limit()
    turns = islice(_turn, number)
    held.extend(_connect_in_repair((destination(turn % destinations), DESTINATION_PORT)) for turn in turns)
    surplus = held[: max(0, len(held) - most)]
    del held[: len(surplus)]
    for descriptor in surplus:
        os.close(descriptor)
    return number


def time_waits() -> int:
    """Return how many TIME_WAITs this namespace has (/proc/net/sockstat, man 5 proc); for an agent."""
    fields = Path("/proc/net/sockstat").read_text(encoding="ascii").split()
    return int(fields[fields.index("tw") + 1])


def open_files() -> int:
    """Return how many files all processes of the host have open (/proc/sys/fs/file-nr, man 5 proc)."""
    return int(Path("/proc/sys/fs/file-nr").read_text(encoding="ascii").split()[0])


def available_memory() -> int:
    """Return the bytes that can be taken without swapping (MemAvailable of /proc/meminfo, man 5 proc)."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def _shares(opener: Callable[[Share], None], total: int, destinations: int, most: int) -> list[Share]:
    return [
        Share(opener, loader, range(first, min(first + most, total)), destinations)
        for loader, first in enumerate(range(0, total, most))
    ]


def _shares_of_time_waits(total: int, destinations: int) -> list[Share]:
    """Return shares that have no destination in common, because each loader listens on a port of its own."""
    numbers: list[list[int]] = [[] for _ in range(_TIME_WAIT_LOADERS)]
    for number in range(total):
        numbers[number % destinations % _TIME_WAIT_LOADERS].append(number)
    return [Share(_leave_time_waits, loader, share, destinations) for loader, share in enumerate(numbers) if share]


def _open(namespace: Namespace, shares: Sequence[Share]) -> None:
    """Give each share a loader of its own and let as many work at once as there are processors."""
    loaders = [namespace.another_agent() for _ in shares]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:
        done = [
            threads.submit(loader.call_within, LOADING_SECONDS, share.opener, share)
            for loader, share in zip(loaders, shares, strict=True)
        ]
    for one in done:
        one.result()


def _open_established(share: Share) -> None:
    """Connect without a handshake, the kernel choosing the port; for a loader, as the next two."""
    _raise_descriptor_limit()
    peers = ((destination(number % share.destinations), DESTINATION_PORT) for number in share.numbers)
    held.extend(map(_connect_in_repair, peers))


def _open_accepted(share: Share) -> None:
    _raise_descriptor_limit()
    for number in share.numbers:
        peer = (destination(number & 0xFFFF), 20_000 + (number >> 16))
        held.append(_connect_in_repair(peer, bind=("127.0.0.1", SERVICE_PORT)))


def _leave_time_waits(share: Share) -> None:
    """Connect to a listener of this process and close both ends, the client's first."""
    with socket.create_server(("0.0.0.0", FIRST_CLOSING_PORT + share.loader), backlog=1) as listener:
        port = listener.getsockname()[1]
        for number in share.numbers:
            with socket.socket() as client:
                client.connect((destination(number % share.destinations), port))
                server, _ = listener.accept()
            server.close()


def _connect_in_repair(peer: tuple[str, int], bind: tuple[str, int] | None = None) -> int:
    ours = socket.socket()
    ours.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
    if bind is not None:
        ours.bind(bind)
    ours.connect(peer)
    return ours.detach()


def _sockets_per_loader() -> int:
    """Return how many sockets a process may open beside the descriptors that it needs itself."""
    return min(MOST_SOCKETS_OF_A_LOADER, resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 100)


def _raise_descriptor_limit() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
