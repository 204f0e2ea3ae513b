"""A program that is run in the sandbox of the unit, in the place of ephmon: what is done there, and how it ends.

Prints a JSON object with the outcome of each attempt: `done`, or the name of the error. Not imported by a test, and in
need of the standard library alone.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWUSER, _PTRACE_ATTACH, _ADDR_NO_RANDOMIZE = 0x10000000, 16, 0x0040000
_ADD_KEY = 248  # __NR_add_key of x86-64


def _call(name: str, *arguments: object) -> None:
    """Call a function of libc that fails with -1 and errno."""
    if getattr(_LIBC, name)(*arguments) == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _append(path: str) -> None:
    with Path(path).open("ab"):
        pass


def _list(folder: str) -> list[Path]:
    return list(Path(folder).iterdir())


def _look_into(path: str) -> None:
    with Path(path).open("rb"):
        pass


def _create(path: str) -> None:
    Path(path).touch()
    Path(path).unlink()


def _open_socket(family: int, kind: int = socket.SOCK_STREAM) -> None:
    socket.socket(family, kind).close()


def _bind_a_privileged_port() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 80))


def _set_user_id_bit() -> None:
    path = Path("/tmp/program")  # PrivateTmp= makes it the unit's own
    path.touch()
    path.chmod(0o4755)


FORBIDDEN: Mapping[str, Callable[[], object]] = {
    "write to /etc": lambda: _append("/etc/hostname"),
    "create a file in /usr": lambda: _create("/usr/made-by-ephmon"),
    "create a file in /var": lambda: _create("/var/lib/made-by-ephmon"),
    "look into /home": lambda: _list("/home"),
    "look into /root": lambda: _list("/root"),
    "see the first process": lambda: _list("/proc/1"),
    "write a sysctl": lambda: _append("/proc/sys/net/ipv4/ip_local_port_range"),
    "write to a cgroup": lambda: _append("/sys/fs/cgroup/cgroup.procs"),
    "read the kernel's log": lambda: _look_into("/proc/kmsg"),
    "read memory": lambda: _look_into("/dev/mem"),
    "mount": lambda: _call("mount", b"none", b"/tmp", b"tmpfs", 0, None),
    "make a user namespace": lambda: _call("unshare", _CLONE_NEWUSER),
    "become another user": lambda: os.setuid(65534),
    "trace a process": lambda: _call("ptrace", _PTRACE_ATTACH, 1, None, None),
    "load a module": lambda: _call("syscall", 175, b"", 0, b""),
    "use the keyring": lambda: _call("syscall", _ADD_KEY, b"user", b"ephmon", b"x", 1, -3),
    "change the personality": lambda: _call("personality", _ADDR_NO_RANDOMIZE),
    "set the clock": lambda: time.clock_settime(time.CLOCK_REALTIME, time.time()),
    "set the name of the host": lambda: socket.sethostname("ephmon"),
    "run in real time": lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)),
    "set its priority": lambda: os.nice(-1),
    "make a set-user-ID program": _set_user_id_bit,
    "map memory to write and execute": lambda: mmap.mmap(
        -1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    ),
    "open a packet socket": lambda: _open_socket(socket.AF_PACKET, socket.SOCK_RAW),
    "open a vsock": lambda: _open_socket(socket.AF_VSOCK),
    "open a raw socket": lambda: _open_socket(socket.AF_INET, socket.SOCK_RAW),
    "bind a privileged port": _bind_a_privileged_port,
}
NEEDED: Mapping[str, Callable[[], object]] = {
    "read the port range": Path("/proc/sys/net/ipv4/ip_local_port_range").read_bytes,
    "read the sockets": Path("/proc/net/tcp").read_bytes,
    "read the cgroups": lambda: _list("/sys/fs/cgroup"),
    "open a netlink socket": lambda: _open_socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "keep a file": lambda: _create(f"{os.environ['STATE_DIRECTORY']}/file"),
    "read a credential": lambda: Path(os.environ["CREDENTIALS_DIRECTORY"], "webhook").read_bytes(),
}
PROCESSES: Mapping[str, Callable[[], object]] = {
    "name the sockets of the first process": lambda: [link.readlink() for link in _list("/proc/1/fd")]
}
ATTEMPTS = {"forbidden": FORBIDDEN, "needed": NEEDED, "processes": PROCESSES}


def _outcome(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"


if __name__ == "__main__":
    print(json.dumps({name: _outcome(attempt) for name, attempt in ATTEMPTS[sys.argv[1]].items()}))  # noqa: T201
