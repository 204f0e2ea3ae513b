"""Cgroups for tests: a slice of its own in the real cgroup2 hierarchy, and programs in the cgroups below it.

The hierarchy is mounted in a mount namespace of the test's own, so it does not matter how the host has mounted it, nor
whether it has. Only root makes cgroups.

    with Namespace() as ns, Cgroups(ns) as cgroups:
        cgroups.make("system.slice/nginx.service")
        with cgroups.agent("system.slice/nginx.service") as agent:
            agent.call(sockets.listen, "127.0.0.1", 80, tag="server")
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.namespaces import Agent, Namespace
from tests.processes import Program

if TYPE_CHECKING:
    from collections.abc import Iterator

_ENTER = 'echo $$ >"$0/cgroup.procs" && exec "$@"'
_SECONDS = 30.0


class Cgroups:
    """The cgroups of one test, with everybody in them in one network namespace; a context manager that removes them."""

    def __init__(self, ns: Namespace) -> None:
        self._ns = ns
        self.top = f"ephmon-test-{os.getpid()}.slice"
        """The slice that holds them all: the first part of every path."""
        self._running = ExitStack()

    def __enter__(self) -> Self:
        self.mounted = Path(tempfile.mkdtemp(prefix="ephmon-test-"))
        """Where the hierarchy is mounted for everybody in the cgroups, and for the observer."""
        self._running.callback(self.mounted.rmdir)
        self.mounted.chmod(0o755)
        self.observer = Agent(self._ns.command("unshare", "--mount", "--"))
        """An agent outside of the cgroups that sees the hierarchy mounted."""
        self._running.callback(self.observer.close)
        try:
            self.observer.call(_mount, self.mounted)
            self._running.callback(self._remove)
            self.make("")
        except BaseException:
            self._running.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def make(self, path: str) -> int:
        """Make a cgroup below the slice, with all that it lies in, and return its id."""
        return self.observer.call(_make, self._directory(path))

    def remove(self, path: str) -> None:
        """Remove a cgroup once nobody is in it."""
        self.observer.call(_remove_tree, self._directory(path))

    @contextmanager
    def agent(self, path: str, *prefix: str) -> Iterator[Agent]:
        """Yield an agent in a cgroup, started through a command prefix."""
        agent = Agent(self.command(path, *prefix))
        try:
            yield agent
        finally:
            agent.close()

    @contextmanager
    def running(self, path: str, *command: str) -> Iterator[Program]:
        """Run a program in a cgroup for the length of a block."""
        try:
            with Program(self.command(path, *command)) as program:
                yield program
        finally:
            self.observer.call(_empty, self._directory(path))

    def command(self, path: str, *command: str) -> list[str]:
        """Return the command line that runs a program in a cgroup and in the network namespace."""
        spaces = [
            f"--{kind}=/proc/{self.observer.pid}/ns/{space}" for kind, space in (("mount", "mnt"), ("net", "net"))
        ]
        enter = ["sh", "-c", _ENTER, str(self._directory(path))]
        return ["nsenter", *spaces, "--", *enter, "setpriv", "--pdeathsig", "KILL", "--", *command]

    def _directory(self, path: str) -> Path:
        return self.mounted / self.top / path

    def _remove(self) -> None:
        self.observer.call(_remove_tree, self._directory(""))


def _mount(directory: Path) -> None:
    subprocess.run(["mount", "-t", "cgroup2", "none", str(directory)], check=True, timeout=_SECONDS)


def _make(directory: Path) -> int:
    directory.mkdir(parents=True, exist_ok=True)
    return directory.stat().st_ino


def _empty(directory: Path) -> None:
    """Kill who is left in a cgroup and wait until it is empty (Documentation/admin-guide/cgroup-v2.rst)."""
    (directory / "cgroup.kill").write_text("1")
    deadline = time.monotonic() + _SECONDS
    while "populated 0" not in (directory / "cgroup.events").read_text():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{directory} is not empty after {_SECONDS:g} s")


def _remove_tree(directory: Path) -> None:
    if not directory.exists():
        return
    _empty(directory)
    for below in sorted((path for path in directory.rglob("*") if path.is_dir()), reverse=True):
        below.rmdir()
    directory.rmdir()
