"""ephmon as a real process in a network namespace, and what tests observe of it from outside, with bounded waits."""

from __future__ import annotations

import ctypes
import http.client
import os
import re
import select
import shlex
import shutil
import signal
import ssl
import stat
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tests.namespaces import Namespace

T = TypeVar("T")

_LIBC = ctypes.CDLL(None, use_errno=True)
_PTRACE_SEIZE, _PTRACE_INTERRUPT = 0x4206, 0x4207
_WALL = 0x40000000  # __WALL of man 2 wait, which Python does not name

WAIT_SECONDS = 60.0
"""How long a test waits at most for what must come."""
_PAUSES_SECONDS = (0.01, 0.05)
"""The first pause and the longest: to look costs the processor more than to wait, and others wait beside this test."""
_ENVIRONMENT_OF_THE_TESTS = re.compile(r"PYTHON.*|LC_.*|LANG|NO_COLOR|JOURNAL_STREAM|COLUMNS|NOTIFY_SOCKET|WATCHDOG_.*")

Metrics = dict[str, float]
"""The value of each series, named as Prometheus writes it: `name{label="value"}`."""


class Reply(NamedTuple):
    """What an HTTP server answered."""

    status: int
    content_type: str
    body: str


def eventually(observe: Callable[[], T], holds: Callable[[T], bool]) -> T:
    """Observe until it holds, and return what was seen then.

    Fails after `WAIT_SECONDS`, or as soon as a program that the test has started has ended by itself.
    """
    deadline = time.monotonic() + WAIT_SECONDS
    pause, longest = _PAUSES_SECONDS
    while not holds(seen := observe()):
        for program in _programs:
            program.require_running()
        assert time.monotonic() < deadline, f"after {WAIT_SECONDS:g} s still {seen!r}"
        time.sleep(pause)
        pause = min(2 * pause, longest)
    return seen


_ENV = shutil.which("env") or "env"
NO_LIBBPF = Path(__file__).parent / "no_libbpf"


def ephmon(*arguments: str | Path) -> list[str]:
    """Return the command line of `ephmon` with these arguments, run by the interpreter of the tests, without libbpf."""
    return python("-m", "ephmon", *map(str, arguments))


def ephmon_with_libbpf(*arguments: str | Path) -> list[str]:
    """Return the same with the libbpf of this host."""
    return python_with_libbpf("-m", "ephmon", *map(str, arguments))


def python(*arguments: str) -> list[str]:
    """Return a command line of the interpreter of the tests, which imports what they import, and finds no libbpf.

    So it is on most hosts. To load the BPF program takes longer than the rest of a start of ephmon, so only the tests
    that are about it do that.
    """
    return [_ENV, f"LD_LIBRARY_PATH={NO_LIBBPF}", *python_with_libbpf(*arguments)]


def python_with_libbpf(*arguments: str) -> list[str]:
    """Return the same with the libbpf of this host, which other programs need too, as ip."""
    return [sys.executable, "-P", *arguments]


def with_readable_code() -> list[str]:
    """Return the beginning of a command line that runs a program, of whatever user, where everybody can read our code.

    The checkout and the Python may lie in a home directory that is closed to others, as /root is. Such a directory gets
    an open one mounted over it, with nothing in it but these. For root.
    """
    needed = {Path(path).resolve() for path in (sys.prefix, sys.base_prefix, *sys.path) if path}
    hidden: dict[Path, list[Path]] = {}
    for path in sorted(filter(Path.exists, needed)):
        closed = next((one for one in reversed(path.parents) if not one.stat().st_mode & stat.S_IXOTH), None)
        if closed is not None:
            hidden.setdefault(closed, []).append(path)
    script = []
    for closed, paths in hidden.items():
        script.append("mount -t tmpfs -o mode=755 none /mnt")
        for path in paths:
            inside = shlex.quote(str(Path("/mnt", path.relative_to(closed))))
            make = f"mkdir -p {inside}" if path.is_dir() else f"mkdir -p $(dirname {inside}) && touch {inside}"
            script += [make, f"mount --bind {shlex.quote(str(path))} {inside}"]
        script.append(f"mount --move /mnt {shlex.quote(str(closed))}")
    program = "\n".join([*script, 'exec "$@"'])
    return ["unshare", "--mount", "--propagation", "private", "--", "sh", "-ec", program, "sh"]


def environment(**changes: str) -> dict[str, str]:
    """Return the environment that ephmon is started in: nothing in it changes what is printed, but for `changes`."""
    kept = {name: value for name, value in os.environ.items() if not _ENVIRONMENT_OF_THE_TESTS.fullmatch(name)}
    return {**kept, "PYTHONPATH": os.pathsep.join(sys.path), **changes}


def run(command: Sequence[str], env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        command,
        env=environment() if env is None else env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=WAIT_SECONDS,
        check=False,
    )


def fetch(
    path: str,
    *,
    port: int = 19100,
    host: str = "127.0.0.1",
    source: tuple[str, int] | None = None,
    authority: str | None = None,
    certificate: tuple[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """Send one GET request; for `Namespace.call`.

    `source` is bound to first, `authority` names the file of a certificate and makes it HTTPS, `certificate` the files
    of the client's own and its key.
    """
    connection = _connection(host, port, source, authority, certificate)
    try:
        connection.request("GET", path, headers=dict(headers or {}))
        reply = connection.getresponse()
        return Reply(reply.status, reply.getheader("Content-Type", ""), reply.read().decode())
    finally:
        connection.close()


def _connection(
    host: str,
    port: int,
    source: tuple[str, int] | None,
    authority: str | None,
    certificate: tuple[str, str] | None,
) -> http.client.HTTPConnection:
    if authority is None:
        return http.client.HTTPConnection(host, port, timeout=WAIT_SECONDS, source_address=source)
    context = ssl.create_default_context(cafile=authority)
    if certificate is not None:
        context.load_cert_chain(*certificate)
    return http.client.HTTPSConnection(host, port, timeout=WAIT_SECONDS, source_address=source, context=context)


_programs: list[Program] = []
"""Those that were started and not yet cleared away."""
_ENDING = {signal.SIGINT, signal.SIGTERM, signal.SIGKILL}
_MOST_WORDS = 4096


class Program:
    """A program that is to run until the test ends it, as a context manager that kills what is left of it.

    If it ends by itself, the test fails at once in `eventually`, and whatever else fails has its last words as a note.
    What it prints goes to `output`, or is kept for those words.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        directory: Path | None = None,
        output: Path | None = None,
        stderr: int | None = None,
    ) -> None:
        self._command = command
        self._output = tempfile.TemporaryFile() if output is None else output.open("w+b")  # noqa: SIM115 - in __exit__
        self._process = subprocess.Popen(
            command,
            cwd=directory,
            env=environment() if env is None else env,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output if stderr is None else stderr,
        )
        self._is_to_run = True
        _programs.append(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if error is not None and self._has_ended_by_itself():
            error.add_note(self._how_it_ended())
        _programs.remove(self)
        self._process.kill()
        self._process.wait(WAIT_SECONDS)
        self._output.close()

    @property
    def pid(self) -> int:
        """Its process id: what puts it into a namespace or a cgroup ends in an exec."""
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; after one that ends programs it need not run any longer."""
        if number in _ENDING and self._process.poll() is None:
            self._is_to_run = False
        self._process.send_signal(number)

    def wait(self) -> int:
        """Wait until it has ended, as it should, and return its exit status."""
        self._is_to_run = False
        return self._reap()

    def stop(self) -> int:
        """Send SIGTERM and return the exit status."""
        self.signal(signal.SIGTERM)
        return self._reap()

    def require_running(self) -> None:
        """Fail the test if the program has ended by itself."""
        assert not self._has_ended_by_itself(), self._how_it_ended()

    def _reap(self) -> int:
        return self._process.wait(WAIT_SECONDS)

    def _has_ended_by_itself(self) -> bool:
        return self._is_to_run and self._process.poll() is not None

    def _how_it_ended(self) -> str:
        words = self._last_words().decode(errors="replace").strip() or "It has printed nothing."
        return f"{shlex.join(self._command)}\nended with status {self._process.returncode}:\n{words}"

    def _last_words(self) -> bytes:
        size = os.fstat(self._output.fileno()).st_size
        return os.pread(self._output.fileno(), _MOST_WORDS, max(0, size - _MOST_WORDS))


class Running(Program):
    """A daemon in a namespace.

    Its standard error is read here, unless `stderr` says where it goes instead.
    """

    def __init__(
        self, ns: Namespace, command: Sequence[str], *, stderr: int | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(ns.command(*command), env=env, stderr=subprocess.PIPE if stderr is None else stderr)
        self._ns = ns
        self._unread = b""
        self.authority: str | None = None
        """The file of a certificate, if it serves HTTPS."""
        self.lines: list[str] = []
        """What it has logged, as far as it was read."""

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        super().__exit__(kind, error, traceback)
        if self._process.stderr:
            self._process.stderr.close()

    def _reap(self) -> int:
        """Leave in `lines` all that it has logged."""
        status = super()._reap()
        if self._process.stderr:
            self._take(self._process.stderr.read())
        return status

    def _last_words(self) -> bytes:
        # Its children may have the pipe open yet, so there may be no end to read up to.
        while self._process.stderr and select.select([self._process.stderr], [], [], 0)[0]:
            chunk = os.read(self._process.stderr.fileno(), 1 << 16)
            if not chunk:
                break
            self._take(chunk)
        return super()._last_words() + "\n".join(self.lines).encode()[-_MOST_WORDS:] + self._unread

    def wait_for_line(self, text: str) -> str:
        """Wait until it logs a line that contains the text, and return the line; lines read before do not count."""
        deadline = time.monotonic() + WAIT_SECONDS
        seen = len(self.lines)
        while True:
            for line in self.lines[seen:]:
                if text in line:
                    return line
            seen = len(self.lines)
            self._read_more(text, deadline)

    def get(self, path: str) -> Reply:
        """Send it a GET request on its default address."""
        return self._ns.call(fetch, path, authority=self.authority)

    def metrics(self) -> Metrics:
        """Return what /metrics says, nothing while nobody answers there."""
        try:
            reply = self.get("/metrics")
        except ConnectionRefusedError:
            return {}
        assert reply.status in {200, 503}
        return parse_metrics(reply.body) if reply.status == 200 else {}

    def wait_for(self, **values: float) -> Metrics:
        """Wait until the metrics of these names, without their prefix `ephmon_`, have these values; return all."""
        expected = {f"ephmon_{name}": value for name, value in values.items()}
        return eventually(self.metrics, lambda metrics: expected.items() <= metrics.items())

    def wait_for_polls(self, number: int) -> Metrics:
        """Wait until it has made so many more polls than it has now, and return all metrics."""
        name = 'ephmon_polls_total{scope="full"}'
        enough = self.metrics().get(name, 0.0) + number
        return eventually(self.metrics, lambda metrics: metrics.get(name, 0.0) >= enough)

    def _read_more(self, wanted: str, deadline: float) -> None:
        assert self._process.stderr is not None
        seconds = max(0.0, deadline - time.monotonic())
        ready = select.select([self._process.stderr], [], [], seconds)[0]
        chunk = os.read(self._process.stderr.fileno(), 1 << 16) if ready else b""
        self._take(chunk)
        assert chunk, f"no line with {wanted!r}, only {self.lines}"

    def _take(self, chunk: bytes) -> None:
        *lines, self._unread = (self._unread + chunk).split(b"\n")
        self.lines += [line.decode() for line in lines]


@contextmanager
def stopped_main_thread(pid: int) -> Iterator[None]:
    """Stop the main thread of a process, and no other, as a call into the kernel that does not return would.

    SIGSTOP would stop all threads, and each would run again before it is killed (man 2 ptrace, PTRACE_INTERRUPT).
    """
    for request in (_PTRACE_SEIZE, _PTRACE_INTERRUPT):
        if _LIBC.ptrace(request, pid, None, None) == -1:
            raise OSError(ctypes.get_errno(), f"ptrace of {pid}: {os.strerror(ctypes.get_errno())}")
    os.waitpid(pid, _WALL)
    try:
        yield
    finally:
        # Until its tracer has waited for it, a dead main thread is kept from the parent of the process.
        eventually(lambda: os.waitpid(pid, os.WNOHANG | _WALL), lambda seen: seen[0] == pid)


def parse_metrics(exposition: str) -> Metrics:
    """Return the series of a text in Prometheus format 0.0.4."""
    samples = (line.rpartition(" ") for line in exposition.splitlines() if not line.startswith("#"))
    return {series: float(value) for series, _, value in samples}


def put(path: Path, text: str) -> Path:
    """Write a file so that nobody ever sees half of it."""
    new = path.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    return new.rename(path)


def takes_more(pipe: int, content: bytes) -> bool:
    """Write to a pipe until it is full; tell whether somebody still reads it."""
    try:
        while True:
            os.write(pipe, content)
    except BlockingIOError:
        return True
    except BrokenPipeError:
        return False


@contextmanager
def opened_by_its_reader(fifo: Path) -> Iterator[int]:
    """Wait until somebody opens the FIFO to read it, and return a descriptor to write to it without waiting."""

    def open_it() -> int | None:
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # ENXIO: there is no reader yet
            return None

    descriptor = eventually(open_it, lambda descriptor: descriptor is not None)
    assert descriptor is not None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


_SYSCTLS = ("ip_local_port_range", "ip_local_reserved_ports", "tcp_tw_reuse", "tcp_timestamps", "tcp_max_tw_buckets")


def make_proc(folder: Path) -> Path:
    """Make a procfs of links to the files of the one that the reader has, so that a test can exchange each of them."""
    proc = folder / "proc"
    for name in ("net", "sys/kernel", "sys/net/ipv4"):
        (proc / name).mkdir(parents=True)
    (proc / "self").symlink_to("/proc/self")
    (proc / "sys/kernel/osrelease").symlink_to("/proc/sys/kernel/osrelease")
    for name in ("tcp", "tcp6", "udp", "udp6", "sockstat", "sockstat6"):
        (proc / "net" / name).symlink_to(f"/proc/self/net/{name}")
    for sysctl in (*_SYSCTLS, "ip_autobind_reuse", "tcp_tw_reuse_delay"):
        (proc / "sys/net/ipv4" / sysctl).symlink_to(f"/proc/sys/net/ipv4/{sysctl}")
    return proc
