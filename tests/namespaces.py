"""Network namespaces for tests: real sockets on a real kernel, and nothing left behind.

A `Namespace` is one process, the *agent*, alone in a fresh network namespace. The namespace has no name and no mount:
it lives as long as the processes in it, and the kernel kills the agent when what started it ends, however that comes
about (PR_SET_PDEATHSIG, man 2 prctl). Tests run module-level functions inside:

    with Namespace() as ns:
        ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", "40000 40999")
        ns.call(sockets.listen, "127.0.0.1", 80, tag="server")
        assert ns.call(sockets.fill, "127.0.0.1", 80, tag="clients") == FillResult(1000, EADDRNOTAVAIL)

Root makes the namespace directly, anybody else inside a user namespace of their own (man 7 user_namespaces).
/proc/sys/net and new sockets belong to the namespace of the process that opens them, so whatever reads the kernel sees
the agent's namespace when the agent calls it.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import socket
import struct
import subprocess
import sys
import tempfile
import time
from ipaddress import ip_interface
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, Self, TypeVar

from tests.agent import AgentError, receive, send
from tests.fork_server import Fork, Place, fork_server

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

P = ParamSpec("P")
R = TypeVar("R")

TIMEOUT_SECONDS = 60.0
"""How long a call may take unless it says otherwise."""

_SIOCSIFFLAGS = 0x8914  # include/uapi/linux/sockios.h
_IFF_UP = 1
_RTM_NEWADDR = 20  # include/uapi/linux/rtnetlink.h
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_CREATE = 1, 4, 0x400
_IFA_LOCAL, _IFA_F_NODAD = 2, 2  # include/uapi/linux/if_addr.h
_AGENT = """
import socket, sys
from tests.agent import serve
serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
"""


class Agent:
    """A process that calls functions for the test.

    It is forked into namespaces, or it is a new interpreter where a command prefix puts it, which costs ten times as
    much. Make it in a thread that outlives it: the kernel kills a new interpreter when that thread ends.
    """

    def __init__(self, place: Place | Sequence[str]) -> None:
        self._channel, theirs = socket.socketpair()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the agent
        self._words = ""
        with theirs:
            if isinstance(place, Place):
                self._process: Fork | subprocess.Popen[bytes] = fork_server().fork(place, theirs, self._stderr.fileno())
            else:
                self._process = self._new_interpreter(place, theirs)
        # A prefix ends in an exec, so once the agent answers, its process id is that of the process started here.
        self.call(os.getpid)

    def _new_interpreter(self, prefix: Sequence[str], channel: socket.socket) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*prefix, sys.executable, "-P", "-c", _AGENT, str(channel.fileno()), str(os.getpid())],
            pass_fds=(channel.fileno(),),
            stdin=subprocess.DEVNULL,
            stderr=self._stderr,
            # The agent imports what the test imports, from where the test imports it.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    @property
    def pid(self) -> int:
        """The agent's process id."""
        return self._process.pid

    def call(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a module-level function in the agent and return what it returns; see `call_within`."""
        return self.call_within(TIMEOUT_SECONDS, function, *args, **kwargs)

    def call_within(self, seconds: float, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a module-level function in the agent and return what it returns.

        Raises what the function raised, with the agent's traceback as a note, or `AgentError`.
        """
        fork_server().will_need(function.__module__)
        self._channel.settimeout(seconds)
        try:
            send(self._channel, pickle.dumps((function, args, kwargs)))
            answer = receive(self._channel)
        except TimeoutError:
            self.close()
            message = f"{function.__qualname__} did not return within {seconds:g} s, the agent was killed"
            raise AgentError(message) from None
        except ConnectionError:
            answer = None
        if answer is None:
            self.close()
            said = self._words or "it has printed nothing"
            message = f"the agent ended during {function.__qualname__}, exit status {self._process.returncode}: {said}"
            raise AgentError(message)
        succeeded, outcome = pickle.loads(answer)
        if not succeeded:
            raise outcome
        result: R = outcome
        return result

    def close(self) -> None:
        """Kill the agent and wait until it is gone."""
        if self._stderr.closed:
            return
        self._channel.close()
        self._process.kill()
        self._process.wait(TIMEOUT_SECONDS)
        self._stderr.seek(0)
        self._words = self._stderr.read().decode(errors="replace").strip()
        self._stderr.close()
        if self._words:
            sys.stderr.write(f"{self._words}\n")


class Namespace:
    """A fresh network namespace with the loopback device up, as a context manager.

    `addresses` (as `10.8.0.1/32`) are put on the loopback device; all of 127.0.0.0/8 and ::1 are there anyway.
    `beside` names a namespace that this one is to be connected with, which only root could do otherwise.
    """

    def __init__(self, *, addresses: Sequence[str] = (), beside: Namespace | None = None) -> None:
        self._addresses = addresses
        self._beside = beside
        self._agents: list[Agent] = []

    def __enter__(self) -> Self:
        self._agents.append(Agent(_new_namespace(self._beside)))
        try:
            self.call(bring_loopback_up)
            for address in self._addresses:
                self.add_address(address)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill the agents; the namespace ends with the last process in it."""
        while self._agents:
            self._agents.pop().close()

    @property
    def pid(self) -> int:
        """Process id of the first agent: /proc/PID/ns/net is the namespace."""
        return self._agents[0].pid

    @property
    def inode(self) -> int:
        """The inode number that identifies the namespace."""
        return Path(f"/proc/{self.pid}/ns/net").stat().st_ino

    def call(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a module-level function in the first agent; see `Agent.call_within`."""
        return self._agents[0].call(function, *args, **kwargs)

    def call_within(self, seconds: float, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a module-level function in the first agent; see `Agent.call_within`."""
        return self._agents[0].call_within(seconds, function, *args, **kwargs)

    def another_agent(self) -> Agent:
        """Start one more agent in this namespace, with descriptors of its own; it ends with the namespace."""
        self._agents.append(Agent(Place(self.pid, is_new=False)))
        return self._agents[-1]

    def command(self, *arguments: str) -> list[str]:
        """Return the command line that runs a program in this namespace.

        The program is killed when the thread that starts it ends.
        """
        return [*_prefix_into(self.pid, "net"), "setpriv", "--pdeathsig", "KILL", "--", *arguments]

    def add_address(self, address: str, *, device: str = "lo") -> None:
        """Put an address (as `10.8.0.1/32`) on a device; it can be used at once."""
        self.call(add_address, address, device)


def connect(left: Namespace, right: Namespace, *, addresses: tuple[str, str], device: str = "veth0") -> None:
    """Connect two namespaces by a pair of devices that carry one address (as `10.9.0.1/24`) each."""
    left.call(ip, "link", "add", device, "type", "veth", "peer", "name", device, "netns", str(right.pid))
    for namespace, address in zip((left, right), addresses, strict=True):
        namespace.add_address(address, device=device)
        namespace.call(ip, "link", "set", device, "up")
    for namespace in (left, right):
        namespace.call(_wait_for_carrier, device)


def bring_loopback_up() -> None:
    """Do what `ip link set lo up` does in the namespace of the caller, without the cost of a program (netdevice(7))."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", _IFF_UP))


def add_address(address: str, device: str) -> None:
    """Put an address (as `10.8.0.1/32`) on a device, as `ip address add` does, by a message of rtnetlink(7).

    Duplicate address detection, which would keep an IPv6 address back for a second, is left out.
    """
    interface = ip_interface(address)
    family = socket.AF_INET6 if interface.version == 6 else socket.AF_INET
    packed = interface.packed
    message = struct.pack("=BBBBi", family, interface.network.prefixlen, _IFA_F_NODAD, 0, socket.if_nametoindex(device))
    message += struct.pack("=HH", 4 + len(packed), _IFA_LOCAL) + packed
    head = struct.pack("=IHHII", 16 + len(message), _RTM_NEWADDR, _NLM_F_REQUEST | _NLM_F_ACK | _NLM_F_CREATE, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        sock.send(head + message)
        (error,) = struct.unpack_from("=i", sock.recv(4096), 16)
    if error:
        raise OSError(-error, os.strerror(-error), f"{address} on {device}")


def ip(*arguments: str) -> str:
    """Run the program ip in the namespace of the caller and return what it prints; the error carries its message."""
    result = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=10, check=False)
    if result.returncode != 0:
        raise OSError(f"ip {' '.join(arguments)}: {result.stderr.strip()}")
    return result.stdout


def _new_namespace(beside: Namespace | None) -> Place:
    # Root connects any two namespaces, anybody else those of one user namespace.
    return Place(None if beside is None else beside.pid, is_new=True)


def _prefix_into(pid: int, *kinds: str) -> list[str]:
    user = [] if os.geteuid() == 0 else [f"--user=/proc/{pid}/ns/user", "--preserve-credentials"]
    return ["nsenter", *user, *(f"--{kind}=/proc/{pid}/ns/{kind}" for kind in kinds), "--"]


def _wait_for_carrier(device: str) -> None:
    """Wait until packets pass: the kernel activates the device that came up first from a work queue."""
    deadline = time.monotonic() + 10
    while " state UP " not in ip("-oneline", "link", "show", "dev", device):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{device} has no carrier after 10 s")
