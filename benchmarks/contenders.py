"""The ways of looking at all TCP sockets that a poll of ephmon is held against.

Each runs in an agent of its own, over and over, as a daemon would: what it costs does not depend on the others, and its
peak of resident memory is that of this one thing and of the interpreter it runs in. So this module imports little.
"""

from __future__ import annotations

import http.client
import socket
import subprocess
import time
from typing import TYPE_CHECKING, Protocol

from benchmarks.measurement import Cost, cpu_seconds_of, memory, peak_memory_of_program, spent, spent_by_program
from benchmarks.scenario import NotMeasuredError
from ephmon.kernel.netlink.sock_diag import (
    HEADER,
    NETLINK_SOCK_DIAG,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ephmon.kernel.netlink.sock_diag import Request

_BUFFER_BYTES = 1 << 16
_EXPORTER_PORT = 9100
_EXPORTER_SECONDS = 120.0


class Contender(Protocol):
    """Something that looks at all TCP sockets of the namespace it is in."""

    def run(self) -> Cost:
        """Look once."""

    def peak_bytes(self) -> int:
        """Return the greatest resident memory so far."""


class BareDump:
    """The kernel's share of a poll: its requests, and their replies received into a buffer and nothing else."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self._messages = [
            HEADER.pack(HEADER.size + len(payload), kind, NLM_F_REQUEST | NLM_F_DUMP, 1, 0) + payload
            for kind, payload in requests
        ]
        self._buffer = bytearray(_BUFFER_BYTES)

    def run(self) -> Cost:
        """Send each request and take its reply."""
        return spent(self._replay)

    def peak_bytes(self) -> int:
        """Return the peak of this process."""
        return memory("self", "VmHWM")

    def _replay(self) -> None:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as diag:
            for message in self._messages:
                diag.sendto(message, (0, 0))
                kind = 0
                while kind != NLMSG_DONE:  # it comes in a datagram of its own, netlink_dump()
                    diag.recv_into(self._buffer)
                    kind = HEADER.unpack_from(self._buffer)[1]
                    if kind == NLMSG_ERROR:
                        raise NotMeasuredError("the kernel refuses a request that it answered a moment ago")


class FileReading:
    """Reading files such as /proc/net/tcp from end to end, without looking at what they say."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths

    def run(self) -> Cost:
        """Read each file."""
        return spent(self._read)

    def peak_bytes(self) -> int:
        """Return the peak of this process."""
        return memory("self", "VmHWM")

    def _read(self) -> None:
        for path in self._paths:
            with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - unbuffered, so that the chunk is ours to choose
                while file.read(_BUFFER_BYTES):
                    pass


class Program:
    """A program that runs to its end, its output thrown away."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command

    def run(self) -> Cost:
        """Run it."""
        return spent_by_program(self._command)

    def peak_bytes(self) -> int:
        """Run it once more and return its peak."""
        return peak_memory_of_program(self._command)


class NodeExporter:
    """A scrape of node_exporter with its collector tcpstat alone."""

    def __init__(self, binary: str) -> None:
        arguments = ["--collector.disable-defaults", "--collector.tcpstat"]
        address = f"--web.listen-address=127.0.0.1:{_EXPORTER_PORT}"
        command = ["setpriv", "--pdeathsig", "KILL", "--", binary, *arguments, address]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._wait()

    def run(self) -> Cost:
        """Scrape it; the processor time is that of node_exporter."""
        cpu, wall = cpu_seconds_of(self._process.pid), time.perf_counter()
        body = scrape(_EXPORTER_PORT, _EXPORTER_SECONDS)
        cost = Cost(time.perf_counter() - wall, cpu_seconds_of(self._process.pid) - cpu)
        if b"node_tcp_connection_states" not in body:
            raise NotMeasuredError("node_exporter does not export node_tcp_connection_states")
        return cost

    def peak_bytes(self) -> int:
        """Return its peak."""
        return memory(self._process.pid, "VmHWM")

    def _wait(self) -> None:
        deadline = time.monotonic() + 10
        while True:
            try:
                return socket.create_connection(("127.0.0.1", _EXPORTER_PORT), timeout=1).close()
            except ConnectionRefusedError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise NotMeasuredError("node_exporter does not start") from None
                time.sleep(0.02)


def scrape(port: int, timeout_seconds: float) -> bytes:
    """Return the body of /metrics on a port of this namespace, over a new connection.

    Raises:
        NotMeasuredError: The answer is not 200.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_seconds)
    try:
        connection.request("GET", "/metrics")
        reply = connection.getresponse()
        body = reply.read()
    finally:
        connection.close()
    if reply.status != http.client.OK:
        raise NotMeasuredError(f"port {port} answers {reply.status}")
    return body


_current: list[Contender] = []


def set_up(make: Callable[..., Contender], *arguments: object) -> None:
    """Make a contender in this agent and let it warm up."""
    contender = make(*arguments)
    contender.run()
    _current[:] = [contender]


def run() -> Cost:
    """Let the contender of this agent look once."""
    return _current[0].run()


def peak_bytes() -> int:
    """Return the peak of the contender of this agent."""
    return _current[0].peak_bytes()
