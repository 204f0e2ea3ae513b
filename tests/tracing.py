"""Tracing in tests: readers of failed connect() calls in a namespace, with a tracefs that the host does not see.

tracefs is mounted in a mount namespace that ends with the agent; the instances in it are the host's, so each that a
test makes it also removes. Functions without a docstring are for `Agent.call` and speak of the agent's one reader.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import secrets
import socket
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ephmon.kernel.proc.callers import Callers
from ephmon.kernel.trace.reader import ExhaustionCollector, ExhaustionReader
from ephmon.kernel.trace.tracefs import FILTER, make_instance, open_instance
from tests import sockets
from tests.namespaces import Agent
from tests.processes import Running, ephmon, python_with_libbpf
from tests.sockets import FillResult

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ephmon.facts.failed_calls import ExhaustionBatch
    from tests.namespaces import Namespace

only_root = pytest.mark.only_root("mounts tracefs")
host_pids = pytest.mark.host_pids("the kernel names callers of connect() by them")

LOW, HIGH = 40_000, 40_099
HERE = "127.0.0.1"


def _own_ports() -> tuple[int, int, int]:
    """Return three ports that this process of pytest and its agents, which inherit the environment, have alone."""
    first = int(os.environ.setdefault("EPHMON_FIRST_TRACED_PORT", str(20_000 + 10 * secrets.randbelow(1000))))
    return first, first + 1, first + 2


PORTS = PORT, CLOSED, OPEN = _own_ports()
"""Calls toward other ports are no business of the tests: others on the host, such as other tests, may make some."""
TRACING = Path("/run/tracing")
PREPARED = Path("/run/ephmon/tracing")
PROC = Path("/proc")
_MOUNT = f"""
mount -t tmpfs none /run
mkdir -p {TRACING} {PREPARED}
mount -t tracefs none {TRACING}
rmdir {PREPARED}
exec "$@"
"""

# A second mount on top of the first, which systemd makes on every host of its own, would fail with EBUSY.
_MOUNT_IN_PLACE = """
[ -e /sys/kernel/tracing/instances ] || mount -t tracefs none /sys/kernel/tracing
exec "$@"
"""

_CLONE_NEWTIME = 0x80  # include/uapi/linux/sched.h

_EXHAUSTED = FillResult(HIGH - LOW + 1, errno.EADDRNOTAVAIL)

_MAKER = re.compile(r"ephmon-(\d+)-")
_started: set[int] = set()
"""The agents that this process of pytest has started, and that may make instances."""

_held = ExitStack()
_collectors: list[ExhaustionCollector] = []
_readers: list[ExhaustionReader] = []


def tracing_agent(ns: Namespace) -> Agent:
    """Start an agent in the network namespace that sees a tracefs at `TRACING` and has a /run of its own. For root."""
    agent = Agent(ns.command("unshare", "--mount", "--propagation", "private", "--", "sh", "-ec", _MOUNT, "sh"))
    _started.add(agent.pid)
    return agent


def enter_time_namespace(monotonic: int, boottime: int) -> None:
    """Move this process, which must have one thread, into a time namespace of its own with these offsets in seconds."""
    libc = ctypes.CDLL(None, use_errno=True)

    def require(status: int) -> None:
        if status != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    require(libc.unshare(_CLONE_NEWTIME))
    Path("/proc/self/timens_offsets").write_text(f"monotonic {monotonic} 0\nboottime {boottime} 0\n", encoding="ascii")
    with Path("/proc/self/ns/time_for_children").open("rb") as namespace:
        require(libc.setns(namespace.fileno(), _CLONE_NEWTIME))


def in_time_namespace(monotonic: int, boottime: int, *command: str) -> list[str]:
    """Return the command line that runs a program in a time namespace of its own. For root."""
    code = "import os, sys; from tests.tracing import enter_time_namespace as enter; "
    code += f"enter({monotonic}, {boottime}); os.execvp(sys.argv[1], sys.argv[1:])"
    return python_with_libbpf("-c", code, *command)


def ours(names: set[str]) -> set[str]:
    """Return those of the instances that no other program on the host has made: they name the process that did."""
    return {name for name in names if not (maker := _MAKER.match(name)) or int(maker[1]) in _started}


@contextmanager
def alone_with_the_prepared_instance() -> Iterator[None]:
    """Wait for other tests on this host: the instance that is prepared for a service has one name."""
    directory = os.open("/sys/kernel/tracing", os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def seeing_tracefs(*command: str) -> list[str]:
    """Return the command line that runs a program with mounts of its own, and with a tracefs where it is expected.

    That is the host's if it has one mounted there. For root.
    """
    return ["unshare", "--mount", "--propagation", "private", "--", "sh", "-ec", _MOUNT_IN_PLACE, "sh", *command]


@contextmanager
def tracing_daemon(ns: Namespace, config: Path) -> Iterator[Running]:
    """Run a daemon that sees a tracefs where it is expected. For root."""
    with stopping(Running(ns, seeing_tracefs(*ephmon("run", "--config", config)))) as daemon:
        yield daemon


@contextmanager
def stopping(daemon: Running) -> Iterator[Running]:
    """Let a daemon that counts end by itself: one that is killed leaves its instance for the next to clear away."""
    with daemon:
        try:
            yield daemon
        finally:
            daemon.stop()


def exhaust(ns: Namespace, *addresses: str) -> None:
    """Take all ports of a small range toward `PORT` of each address; the last call fails."""
    ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", f"{LOW} {HIGH}")
    for address in addresses:
        ns.call(sockets.listen, address, PORT, tag="server")
        assert ns.call(sockets.fill, address, PORT, tag="clients") == _EXHAUSTED


def failures(address: str, calls: int, *, blocks: bool = True) -> int:
    """Connect so many fresh sockets to `PORT` and return how many got EADDRNOTAVAIL."""
    found = 0
    for _ in range(calls):
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as ours:
            ours.setblocking(blocks)
            found += ours.connect_ex((address, PORT)) == errno.EADDRNOTAVAIL
    return found


def total(batch: ExhaustionBatch) -> int:
    """Return how many events a batch counts."""
    return sum(batch.totals.values())


def open_collector() -> None:
    instance = _held.enter_context(make_instance(TRACING))
    _narrow(instance.directory)
    _collectors[:] = [ExhaustionCollector(instance, Callers(PROC))]


def open_prepared_collector() -> None:
    instance = _held.enter_context(open_instance(TRACING, PREPARED))
    assert instance.directory == PREPARED
    _collectors[:] = [ExhaustionCollector(instance, Callers(PROC))]


def _narrow(instance: Path) -> None:
    narrow = f"{FILTER}&&dport>={PORTS[0]}&&dport<={PORTS[-1]}"
    (instance / "events/sock/inet_sock_set_state/filter").write_text(narrow, encoding="ascii")


def collected() -> ExhaustionBatch:
    (collector,) = _collectors
    collector.drain(lambda: True)
    return collector.take()


def open_reader() -> None:
    before = instances()
    _readers[:] = [ExhaustionReader.open(PROC, tracing=TRACING, prepared=PREPARED)]
    for name in instances() - before:
        if name.startswith(f"ephmon-{os.getpid()}-"):
            _narrow(TRACING / "instances" / name)


def taken() -> ExhaustionBatch:
    (reader,) = _readers
    return reader.take()


def close_all() -> None:
    for reader in _readers:
        reader.close()
    _held.close()


def instances() -> set[str]:
    return {path.name for path in (TRACING / "instances").iterdir()}


def remove_instances(names: set[str]) -> None:
    for name in names:
        (TRACING / "instances" / name).rmdir()
