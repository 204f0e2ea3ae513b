"""What the HTTP side answers, and what it costs, while clients abuse it: `python -m benchmarks.http_abuse`.

A server process with 60 KB bodies and 256 descriptors listens on loopback. For each scenario, attackers in processes of
their own do their worst for some seconds while this process scrapes, then ten quiet seconds show whether the memory
comes back. Needs `openssl` for the certificate. Prints a table; exits with 1 if a scrape was not answered in full.
"""

from __future__ import annotations

import argparse
import http.client
import multiprocessing
import os
import platform
import resource
import select
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import tornado

from ephmon.http.publication import Publication
from ephmon.http.server import HttpServer
from ephmon.http.tls import RenewedTls, TlsFiles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.sharedctypes import Synchronized

HOST = "127.0.0.1"
SERVER_DESCRIPTORS = 256
BODY_BYTES = 60_000
SCRAPE_SECONDS = 0.02
SCRAPE_TIMEOUT_SECONDS = 5.0
SECONDS_UNTIL_MEMORY_IS_BACK = 10.0
IP_BIND_ADDRESS_NO_PORT = 24  # linux/in.h; Python 3.11 does not name it
HEAD = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n"


# The server's process


def serve(certificate: str | None, key: str | None) -> None:
    """Serve until standard input closes; the port goes to standard output."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (SERVER_DESCRIPTORS, SERVER_DESCRIPTORS))
    files = TlsFiles(certificate=Path(certificate), key=Path(key)) if certificate and key else None
    tls = None if files is None else RenewedTls(files, monotonic=time.monotonic)
    server = HttpServer((HOST, 0), monotonic=time.monotonic, tls=tls)
    body = "".join(f'ephmon_pool_in_use_ports{{destination="10.0.{n >> 8}.{n & 255}"}} {n}\n' for n in range(2000))
    body = body[:BODY_BYTES]
    server.publish(
        Publication.of(
            expires_at=time.monotonic() + 3600.0,
            metrics=body,
            openmetrics=body,
            expired_metrics="",
            expired_openmetrics="",
            pools=body,
            exhaustions=body,
            page=body,
            expired_page="",
        )
    )
    server.start()
    print(server.port, flush=True)
    while not select.select([sys.stdin], [], [], 1.0)[0]:
        server.beat()
    server.stop()


@dataclass(frozen=True, slots=True)
class Target:
    """A running server."""

    pid: int
    port: int
    certificate: str | None


@contextmanager
def running_server(certificate: str | None = None, key: str | None = None) -> Iterator[Target]:
    """A server process of its own, with TLS if files are given."""
    command = [sys.executable, "-m", "benchmarks.http_abuse", "--serve"]
    if certificate and key:
        command += ["--certificate", certificate, "--key", key]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield Target(process.pid, int(process.stdout.readline()), certificate)
        process.communicate()


# The attackers. Each runs in a process of its own until it is terminated.


@dataclass(frozen=True, slots=True)
class Attacker:
    """What an attacker aims at, and the count of the connections that it made."""

    port: int
    connections: Synchronized[int]

    def connect(self, number: int, *, receive_buffer: int | None = None) -> socket.socket:
        """Connect from one of eight loopback addresses, so that TIME_WAIT does not use up the ports of one."""
        client = socket.socket()
        if receive_buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        client.bind((f"127.0.0.{2 + number % 8}", 0))
        client.settimeout(SCRAPE_TIMEOUT_SECONDS)
        client.connect((HOST, self.port))
        self.connections.value += 1
        return client


def hold(attacker: Attacker, count: int, opening: bytes, drip: bytes) -> None:
    """Hold `count` connections begun with `opening`; once a second, send `drip` on each, or reopen what was closed."""
    clients: list[socket.socket | None] = [None] * count
    for number in paced(count):
        client = clients[number % count]
        with suppress(OSError):
            if client is None or is_closed(client):
                client = attacker.connect(number)
                clients[number % count] = client
                client.sendall(opening)
            client.sendall(drip)


def is_closed(client: socket.socket) -> bool:
    """Whether the server has closed the connection."""
    return bool(select.select([client], [], [], 0)[0]) and client.recv(65536, socket.MSG_DONTWAIT) == b""


def read_slowly(attacker: Attacker, count: int) -> None:
    """Ask for the metrics on `count` connections with the smallest buffers and read one byte a second of each."""
    clients: list[socket.socket | None] = [None] * count
    for number in paced(count):
        client = clients[number % count]
        with suppress(OSError):
            if client is None or not client.recv(1):
                client = attacker.connect(number, receive_buffer=1)
                clients[number % count] = client
                client.sendall(HEAD + b"\r\n")


def send_huge_headers(attacker: Attacker) -> None:
    """Send heads of 1 MB, one after the other."""
    head = HEAD + b"X-Padding: " + b"x" * 1_000_000
    while True:
        with suppress(OSError), attacker.connect(0) as client:
            client.sendall(head)
            client.recv(1)


def connect_and_close(attacker: Attacker, per_second: int) -> None:
    """Open connections at a steady rate and close each at once."""
    for number in paced(per_second):
        with suppress(OSError):
            attacker.connect(number).close()


def handshake_and_close(attacker: Attacker, per_second: int) -> None:
    """Complete TLS handshakes at a steady rate and close each connection after it."""
    context = unverified_client()
    for number in paced(per_second):
        with suppress(OSError), attacker.connect(number) as client:
            context.wrap_socket(client).close()


def hold_half_handshakes(attacker: Attacker, count: int) -> None:
    """Hold connections on which the server has done its part of a handshake and waits for the client's."""
    outgoing = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        unverified_client().wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
    hold(attacker, count, outgoing.read(), b"")


def unverified_client() -> ssl.SSLContext:
    """An attacker's TLS settings."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def paced(per_second: int) -> Iterator[int]:
    """Count up, `per_second` numbers a second, in bursts of a hundredth; what was missed is made up for."""
    number, started = 0, time.monotonic()
    while True:
        while number < (time.monotonic() - started) * per_second:
            yield number
            number += 1
        time.sleep(0.01)


# What is measured


@dataclass(frozen=True, slots=True)
class Scenario:
    """A name for the table and the attackers that run at the same time."""

    name: str
    attacks: tuple[tuple[Callable[..., None], tuple[object, ...]], ...] = ()


PLAIN = (
    Scenario("nobody else"),
    Scenario("1,000 idle connections", ((hold, (1000, b"", b"")),)),
    Scenario("500 half-sent requests", ((hold, (500, HEAD + b"X-Slow: ", b"x")),)),
    Scenario("50 readers at 1 byte/s", ((read_slowly, (50,)),)),
    Scenario("heads of 1 MB", ((send_huge_headers, ()),)),
    Scenario("2,000 connect-and-close/s", ((connect_and_close, (2000,)),)),
)
TLS = (
    Scenario("TLS, nobody else"),
    Scenario(
        "TLS, 200 half-handshakes held and 200 handshakes/s",
        ((hold_half_handshakes, (200,)), (handshake_and_close, (200,))),
    ),
)


@dataclass(slots=True)
class Measurement:
    """One row of the table."""

    attacks: int = 0
    """Connections that the attackers made."""
    sent: int = 0
    seconds: list[float] = field(default_factory=list)
    """How long each answered scrape took, from connect() to the last byte."""
    threads: int = 0
    descriptors: int = 0
    memory_before: int = 0
    memory_peak: int = 0
    memory_after: int = 0

    def sample(self, process: psutil.Process) -> None:
        """Take the highest of what the server uses now and what was seen before."""
        self.threads = max(self.threads, process.num_threads())
        self.descriptors = max(self.descriptors, process.num_fds())
        self.memory_peak = max(self.memory_peak, process.memory_info().rss)

    def percentile(self, percent: int) -> float:
        """The nearest-rank percentile of the answered scrapes in milliseconds."""
        ordered = sorted(self.seconds)
        return 1000.0 * ordered[-(-len(ordered) * percent // 100) - 1] if ordered else float("nan")

    def row(self, name: str) -> str:
        """The row in Markdown."""
        times = " | ".join(f"{self.percentile(percent):.1f}" for percent in (50, 99, 100))
        memory = " | ".join(f"{size / 2**20:.1f}" for size in (self.memory_before, self.memory_peak, self.memory_after))
        counts = f"{self.attacks} | {self.sent}/{len(self.seconds)}"
        return f"| {name} | {counts} | {times} | {self.threads} | {self.descriptors} | {memory} |"


def scrape(target: Target) -> float | None:
    """Seconds that one scrape took; None if it was not answered in full."""
    started = time.monotonic()
    if target.certificate is None:
        connection = http.client.HTTPConnection(HOST, target.port, timeout=SCRAPE_TIMEOUT_SECONDS)
    else:
        context = ssl.create_default_context(cafile=target.certificate)
        started = time.monotonic()
        connection = http.client.HTTPSConnection(HOST, target.port, timeout=SCRAPE_TIMEOUT_SECONDS, context=context)
    try:
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        complete = response.status == http.client.OK and len(response.read()) == BODY_BYTES
    except (OSError, http.client.HTTPException) as error:
        print(f"not answered: {error!r}", file=sys.stderr)
        return None
    finally:
        connection.close()
    return time.monotonic() - started if complete else None


def measure(target: Target, scenario: Scenario, seconds: float) -> Measurement:
    """Run the attackers for `seconds` and scrape throughout."""
    server = psutil.Process(target.pid)
    result = Measurement(memory_before=server.memory_info().rss)
    spawn = multiprocessing.get_context("spawn")
    connections = [spawn.Value("L", 0) for _ in scenario.attacks]
    attackers = [
        spawn.Process(target=attack, args=(Attacker(target.port, counted), *rest))
        for (attack, rest), counted in zip(scenario.attacks, connections, strict=True)
    ]
    for attacker in attackers:
        attacker.start()
    try:
        for _ in paced_scrapes(seconds):
            result.sent += 1
            took = scrape(target)
            if took is not None:
                result.seconds.append(took)
            result.sample(server)
    finally:
        for attacker in attackers:
            attacker.terminate()
            attacker.join()
    time.sleep(SECONDS_UNTIL_MEMORY_IS_BACK)
    result.attacks = sum(counted.value for counted in connections)
    result.memory_after = server.memory_info().rss
    return result


def paced_scrapes(seconds: float) -> Iterator[None]:
    """Yield at each moment at which a scrape is due; a late one moves those after it."""
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at:
        due = time.monotonic() + SCRAPE_SECONDS
        yield
        time.sleep(max(0.0, due - time.monotonic()))


def make_certificate(folder: Path) -> tuple[str, str]:
    """A self-signed certificate for the loopback address, with an RSA key, the dearer kind for a server."""
    certificate, key = str(folder / "certificate.pem"), str(folder / "key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=ephmon"]
    command += ["-addext", f"subjectAltName=IP:{HOST}", "-keyout", key, "-out", certificate]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


def run(seconds: float) -> bool:
    """Print the table; True if every scrape was answered."""
    print(
        f"Python {platform.python_version()}, Tornado {tornado.version}, {ssl.OPENSSL_VERSION}, "
        f"Linux {platform.release()}, {os.cpu_count()} CPUs, {seconds:g} s each\n"
    )
    print("| scenario | hostile connections | scrapes sent/answered | p50 ms | p99 ms | max ms ", end="")
    print("| threads | descriptors | MiB before | MiB peak | MiB 10 s after |")
    print("|---|---|---|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        results = []
        for scenarios, files in ((PLAIN, ()), (TLS, make_certificate(Path(folder)))):
            with running_server(*files) as target:
                for scenario in scenarios:
                    results.append(measure(target, scenario, seconds))
                    print(results[-1].row(scenario.name), flush=True)
    return all(result.sent == len(result.seconds) for result in results)


def main() -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each scenario (default 5)")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--certificate", help=argparse.SUPPRESS)
    parser.add_argument("--key", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.certificate, arguments.key)
        return 0
    return 0 if run(arguments.seconds) else 1


if __name__ == "__main__":
    sys.exit(main())
