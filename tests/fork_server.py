"""Agents by fork(): one process has imported what agents need, and forks each of them in a few milliseconds.

A new interpreter takes a tenth of a second of the processor until it can answer a call, and up to half a second if the
function's module imports much. The tests start hundreds of them.

The server belongs to the process that asks for the first fork, and ends with it: when its end of the socket is closed.
The kernel kills the forks when the server ends (`tests.agent.serve`).
"""

from __future__ import annotations

import atexit
import ctypes
import importlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import traceback
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from tests.agent import AgentError, serve

if TYPE_CHECKING:
    from collections.abc import Sequence

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000  # include/uapi/linux/sched.h
_LONGEST_MESSAGE = 1 << 16
_SERVER = "import sys; from tests.fork_server import serve_forks; serve_forks(int(sys.argv[1]))"
_LIBC = ctypes.CDLL(None, use_errno=True)


class Place(NamedTuple):
    """Which namespaces an agent goes into; who is not root needs a user namespace to have a network namespace."""

    pid: int | None
    """The process whose namespaces it joins: its user namespace for one who is not root."""
    is_new: bool
    """Whether the network namespace is a new one, or that of the process."""


class Fork:
    """A process that the server has forked, as `subprocess.Popen` would show it."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self._server = server
        self.pid = pid
        self.returncode: int | None = None

    def kill(self) -> None:
        """Send it SIGKILL. The process id is its own until it has been waited for."""
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, _seconds: float) -> int:
        """Wait until it has ended, which it has been killed for, and return its exit status."""
        if self.returncode is None:
            self.returncode = self._server.wait(self.pid)
        return self.returncode


class ForkServer:
    """The test's side of the server."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        self._modules: set[str] = set()
        self._imported: set[str] = set()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _SERVER, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
        atexit.register(self.close)

    def will_need(self, module: str) -> None:
        """Have the server import a module before its next fork, so that forks need not."""
        self._modules.add(module)

    def fork(self, place: Place, channel: socket.socket, stderr: int) -> Fork:
        """Fork an agent that answers on the channel; its standard output is that of the test."""
        with self._lock:
            new = self._modules - self._imported
            self._imported |= new
            pid = self._ask((place, sorted(new)), [channel.fileno(), 1, stderr])
        return Fork(self, pid)

    def wait(self, pid: int) -> int:
        """Return the exit status of a fork, or the negative number of the signal that ended it."""
        with self._lock:
            return self._ask(pid, [])

    def close(self) -> None:
        """End the server, and with it what it has forked."""
        self._control.close()
        self._process.wait()

    def _ask(self, request: object, descriptors: Sequence[int]) -> int:
        try:
            socket.send_fds(self._control, [pickle.dumps(request)], descriptors)
            answer = self._control.recv(_LONGEST_MESSAGE)
        except ConnectionError:
            answer = b""
        if not answer:
            raise AgentError(f"the server that forks agents has ended, exit status {self._process.wait()}")
        number: int = pickle.loads(answer)
        return number


@cache
def fork_server() -> ForkServer:
    """Return the server of this process."""
    return ForkServer()


# --- in the server ------------------------------------------------------------------------------------------------


def serve_forks(descriptor: int) -> None:
    """Be the server, until the other end of the socket is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the test's to handle, and the server follows the test
    with socket.socket(fileno=descriptor) as control:
        while True:
            request, descriptors, _, _ = socket.recv_fds(control, _LONGEST_MESSAGE, 3, socket.MSG_CMSG_CLOEXEC)
            if not request:
                break
            asked = pickle.loads(request)
            if isinstance(asked, int):
                answer = os.waitstatus_to_exitcode(os.waitpid(asked, 0)[1])
            else:
                place, modules = asked
                _import(modules)
                answer = _fork(control, place, descriptors)
            control.send(pickle.dumps(answer))


def _import(modules: Sequence[str]) -> None:
    for module in modules:
        # Whatever keeps it from being imported, the call that needs it says so.
        with suppress(Exception):
            importlib.import_module(module)


def _fork(control: socket.socket, place: Place, descriptors: Sequence[int]) -> int:
    server = os.getpid()
    pid = os.fork()
    if pid == 0:
        control.close()
        _be_agent(place, descriptors, server)
    for descriptor in descriptors:
        os.close(descriptor)
    return pid


def _be_agent(place: Place, descriptors: Sequence[int], server: int) -> NoReturn:
    status = 1
    try:
        channel, *outputs = descriptors
        for number, output in enumerate(outputs, start=1):
            os.dup2(output, number)
            os.close(output)
        _enter(place)
        with socket.socket(fileno=channel) as stream:
            serve(stream, server)
        status = 0
    except BaseException:  # noqa: BLE001 - the last chance to say what it was
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _enter(place: Place) -> None:
    """Go where `unshare` and `nsenter` would go, of the same options as in `tests.namespaces`."""
    for_user = 0 if os.geteuid() == 0 else _CLONE_NEWUSER
    if place.pid is not None:
        _join(place.pid, for_user | (0 if place.is_new else _CLONE_NEWNET))
        for_user = 0
    if place.is_new:
        uid, gid = os.geteuid(), os.getegid()
        _require(_LIBC.unshare(for_user | _CLONE_NEWNET), "unshare")
        if for_user:
            Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
            Path("/proc/self/uid_map").write_text(f"0 {uid} 1", encoding="ascii")
            Path("/proc/self/gid_map").write_text(f"0 {gid} 1", encoding="ascii")


def _join(pid: int, kinds: int) -> None:
    if kinds:
        process = os.pidfd_open(pid)
        _require(_LIBC.setns(process, kinds), f"setns of process {pid}")
        os.close(process)


def _require(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
