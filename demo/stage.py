"""The stage: a place for files that nobody else sees, two hosts that are network namespaces, and programs on them.

All of it is in namespaces that this process is the first in, and every program is told to end when this process does,
however that comes about (PR_SET_PDEATHSIG, man 2 prctl). So nothing is left behind, whoever kills what.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

HERE, SHOP = "10.8.0.1", "10.8.0.2"
SHOP_PORT = 8080
PORTS = 1000
_RANGE = f"40000 {40_000 + PORTS - 1}"
_FILES = Path("/run")
"""Covered by a file system in memory, which is this mount namespace's own."""
_TRACEFS = Path("/sys/kernel/tracing")
_SYSCTLS = Path("/proc/sys")
_STEP_SECONDS = 10.0
_PAUSE_SECONDS = 0.05


class DemoError(Exception):
    """The demo cannot go on; the message is one sentence that says why."""


class Stage:
    """Files, hosts and programs of one demo. For the main thread: programs end with the thread that starts them."""

    def __init__(self) -> None:
        self.directory = _FILES / "ephmon-demo"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def build(self) -> None:
        """Make the place for files, and the network with its 1,000 ports.

        Raises:
            DemoError: Something of it is not permitted.
        """
        _run("mount", "-t", "tmpfs", "ephmon-demo", str(_FILES))
        self.directory.mkdir()
        if os.geteuid() == 0 and not os.access(_TRACEFS / "instances", os.F_OK):
            # Where it fails, as in a user namespace, ephmon says what is missing.
            subprocess.run(["mount", "-t", "tracefs", "none", str(_TRACEFS)], stderr=subprocess.DEVNULL, check=False)
        _run("ip", "link", "set", "lo", "up")
        self.write_sysctl("net.ipv4.ip_local_port_range", _RANGE)

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        """Start a program; what it prints goes to NAME.out and NAME.err."""
        ends_with_us = ["setpriv", "--pdeathsig", "TERM", "--"]
        with (self.directory / f"{name}.out").open("ab") as out, (self.directory / f"{name}.err").open("ab") as err:
            self._processes[name] = subprocess.Popen(
                [*ends_with_us, *command],
                cwd=self.directory,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,  # Ctrl-C is for this process alone, which ends the others
            )
        return self._processes[name]

    def start_on_another_host(self, name: str, *command: str) -> None:
        """Start a program in a network namespace of its own, with `SHOP` as its address."""
        process = self.start(name, "unshare", "--net", "--", *command)
        own = Path("/proc/self/ns/net").stat().st_ino
        namespace = Path(f"/proc/{process.pid}/ns/net")
        self.wait(lambda: namespace.stat().st_ino != own, f"{name} has no network of its own", _STEP_SECONDS)
        _run("ip", "link", "add", "veth0", "type", "veth", "peer", "name", "veth0", "netns", str(process.pid))
        there = ("nsenter", f"--net={namespace}", "--")
        for prefix, address in ((), HERE), (there, SHOP):
            _run(*prefix, "ip", "address", "add", f"{address}/24", "dev", "veth0")
            _run(*prefix, "ip", "link", "set", "veth0", "up")

    def output_of(self, *command: str) -> str:
        """Run a program to its end and return what it prints.

        Raises:
            DemoError: It failed.
        """
        return _run(*command, directory=self.directory)

    def wait(self, is_so: Callable[[], object], otherwise: str, seconds: float) -> None:
        """Wait until something is so.

        Raises:
            DemoError: It is not so in time, or a program has ended.
        """
        deadline = time.monotonic() + seconds
        while not is_so():
            self.check()
            if time.monotonic() > deadline:
                raise DemoError(f"After {seconds:g} s {otherwise}; `--keep` keeps the logs.")
            time.sleep(_PAUSE_SECONDS)

    def check(self) -> None:
        """Raise DemoError if a program has ended by itself."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                said = self.read(f"{name}.err").strip().rpartition("\n")[2]
                raise DemoError(f"{name} has ended with status {process.returncode}: {said or 'it said nothing'}")

    def process(self, name: str) -> subprocess.Popen[bytes]:
        """Return a program that was started."""
        return self._processes[name]

    def end(self, name: str, signal_number: int) -> None:
        """Tell a program to end and wait for it; it is killed if it does not."""
        process = self._processes.pop(name)
        process.send_signal(signal_number)
        try:
            process.wait(_STEP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def close(self) -> None:
        """End every program: all are told to, then waited for."""
        for process in self._processes.values():
            process.terminate()
        for name in [*self._processes]:
            self.end(name, 0)

    def keep(self) -> Path:
        """Copy the files to where others see them, and return that directory."""
        kept = Path(tempfile.mkdtemp(prefix="ephmon-demo-"))
        shutil.copytree(self.directory, kept, dirs_exist_ok=True)
        return kept

    def write(self, name: str, text: str) -> None:
        """Write a file."""
        (self.directory / name).write_text(text, encoding="utf-8")

    def read(self, name: str) -> str:
        """Return the text of a file."""
        return (self.directory / name).read_text(encoding="utf-8", errors="replace")

    def read_sysctl(self, name: str) -> str:
        """Return the value of a sysctl."""
        return (_SYSCTLS / name.replace(".", "/")).read_text(encoding="ascii").strip()

    def write_sysctl(self, name: str, value: str) -> None:
        """Set a sysctl of the namespace."""
        (_SYSCTLS / name.replace(".", "/")).write_text(f"{value}\n", encoding="ascii")


def python(*arguments: str) -> list[str]:
    """Return a command line of the interpreter that runs the demo."""
    return [sys.executable, "-P", *arguments]


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LC_", "NOTIFY_"))}
    return {**kept, "LC_ALL": "C.UTF-8", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def _run(*command: str, directory: Path | None = None) -> str:
    done = subprocess.run(
        command,
        cwd=directory,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    if done.returncode != 0:
        raise DemoError(f"`{' '.join(command)}` failed: {done.stderr.strip() or f'status {done.returncode}'}")
    return done.stdout
