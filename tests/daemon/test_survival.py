"""The daemon as a real process goes on polling, serving and delivering whatever ends beside its polls."""

from __future__ import annotations

import os
import re
import resource
import signal
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import sockets
from tests.daemon.test_supervision import WATCHDOG, is_ready, supervised
from tests.delivery import delivering
from tests.namespaces import Namespace
from tests.processes import Program, Running, ephmon, eventually, put, python, with_readable_code
from tests.sockets import FillResult

if TYPE_CHECKING:
    from collections.abc import Iterator

RANGE = "40000 40999"
HERE, PORT, RECEIVER = "127.0.0.1", 80, 8080
QUICK = "poll: {interval: 100ms, urgent_interval: 100ms, cpu_budget: 1, urgent_cpu_budget: 1}\n"
AT_ONCE = "thresholds: {warning: {for: 0s, utilisation: 0.02, clear: 0.01}}\n"
"""The pool of 30 clients is above its warning threshold."""
HTTP_RESTARTS = 'ephmon_thread_restarts_total{thread="http"}'
DEFECTS = 'ephmon_poll_failures_total{reason="defect"}'
WRITE_TO_STDERR = {"x86_64": ["1", "0x2"], "aarch64": ["64", "0x2"]}[os.uname().machine]
"""The system call that a process is in, and its first argument, as /proc/PID/syscall has them."""
OUT_OF_MEMORY = 'ephmon_poll_failures_total{reason="memory"}'
OWNERS = 'ephmon_collector_available{collector="owners"}'


@pytest.fixture(name="ns")
def _ns() -> Iterator[Namespace]:
    with Namespace() as ns:
        ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", RANGE)
        ns.call(sockets.listen, HERE, PORT, tag="server")
        yield ns


def connect(ns: Namespace, number: int = 30) -> None:
    assert ns.call(sockets.fill, HERE, PORT, tag="clients", limit=number) == FillResult(number, 0)


def daemon_after(statements: str, config: Path) -> list[str]:
    """Return the command line of a daemon that runs these statements first, in which FLAG names a file."""
    flag = config.with_name("flag")
    code = f"import os, sys, time\nfrom threading import current_thread\nFLAG = {str(flag)!r}\n{statements}\n"
    code += "from ephmon.__main__ import entry_point\nentry_point()"
    return python("-c", code, "run", "--config", str(config))


# --- threads ------------------------------------------------------------------------------------------------------


NO_THREADS = """\
import resource, threading
from ephmon.daemon import signals
signals.block()  # a thread that does not block them would take those of the daemon
soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
def limit():
    while True:
        resource.setrlimit(resource.RLIMIT_NPROC, (1 if os.path.exists(FLAG) else soft, hard))
        time.sleep(0.02)
threading.Thread(target=limit, daemon=True).start()"""
"""No thread is to be had while the file is there: the process sets its own limit, because not every root may set it."""


def test_a_receiver_gets_its_alert_as_soon_as_a_thread_is_to_be_had_to_look_up_its_name(ns: Namespace) -> None:
    """The receiver comes with a reload while no thread is to be had, and the alert begins then."""
    ns.call(delivering.receive, "hook", RECEIVER)
    away, there = (f'notify: {{webhook: {{url: "http://{name}:{RECEIVER}/"}}}}\n' for name in (HERE, "localhost"))
    with tempfile.TemporaryDirectory(prefix="ephmon-test-") as folder:
        Path(folder).chmod(0o755)
        config, flag = put(Path(folder) / "config.yaml", QUICK + AT_ONCE + away), Path(folder) / "flag"
        # The kernel exempts root from this limit (kernel/fork.c, copy_process).
        rights = ["setpriv", "--reuid=65534", "--clear-groups", "--"] if os.geteuid() == 0 else []
        with Running(ns, [*with_readable_code(), *rights, *daemon_after(NO_THREADS, config)]) as daemon:
            daemon.wait_for(poll_success=1)
            flag.touch()
            eventually(lambda: limit_of_processes(daemon), lambda limit: limit == "1")
            put(config, QUICK + AT_ONCE + there)
            daemon.signal(signal.SIGHUP)
            daemon.wait_for_line("The configuration was reloaded.")
            connect(ns)
            line = daemon.wait_for_line("cannot be looked up: no thread can be started;")
            assert ns.call(delivering.posts, "hook") == ()
            flag.unlink()
            (post,) = ns.call(delivering.wait_for_posts, "hook", 1)

    assert "reason=name" in line
    assert [alert["status"] for alert in post.document["alerts"]] == ["firing"]


def limit_of_processes(daemon: Running) -> str:
    limits = Path(f"/proc/{daemon.pid}/limits").read_text(encoding="utf-8")
    (soft,) = re.findall(r"^Max processes +(\S+)", limits, re.MULTILINE)
    return str(soft)


def test_without_a_thread_at_the_start_it_says_so_and_fails(ns: Namespace, tmp_path: Path) -> None:
    config = put(tmp_path / "config.yaml", QUICK)
    refuse = 'import _thread, threading\ndef refuse(*_): raise RuntimeError("can\'t start new thread")\n'
    with Running(ns, daemon_after(f"{refuse}threading._start_new_thread = refuse", config)) as daemon:
        line = daemon.wait_for_line("No thread can be started now;")
        status = daemon.wait()

    assert status == 1
    assert line.startswith("ephmon: No thread can be started now; allow ephmon more threads (TasksMax= of its unit,")


REFUSED = """\
from tests.kernel import seccomp
seccomp.refuse(seccomp.{})"""


@pytest.mark.parametrize("name", ["BIND", "GETSOCKNAME"])
def test_a_sandbox_that_refuses_to_listen_is_an_error_in_one_sentence(ns: Namespace, tmp_path: Path, name: str) -> None:
    config = put(tmp_path / "config.yaml", QUICK)
    with Running(ns, daemon_after(REFUSED.format(name), config)) as daemon:
        status = daemon.wait()

    assert status == 1
    assert daemon.lines == ["ephmon: Cannot listen on 127.0.0.1:19100: Operation not permitted."]


def test_a_sandbox_that_hides_the_limits_of_the_process_keeps_nobody_from_being_served(
    ns: Namespace, tmp_path: Path
) -> None:
    config = put(tmp_path / "config.yaml", QUICK)
    with Running(ns, daemon_after(REFUSED.format("PRLIMIT"), config)) as daemon:
        metrics = daemon.wait_for(poll_success=1)

    assert metrics[HTTP_RESTARTS] == 0


WAIT_FAILS = """\
import errno, selectors
real = selectors.EpollSelector.select
def select(self, timeout=None):
    if current_thread().name == "http" and os.path.exists(FLAG):
        os.unlink(FLAG)
        raise OSError(errno.ENOMEM, "Cannot allocate memory")
    return real(self, timeout)
selectors.EpollSelector.select = select"""
"""epoll_wait() in the HTTP thread fails with ENOMEM, once for each time that the file is there."""


def test_the_http_thread_is_started_again_and_the_port_is_kept(ns: Namespace, tmp_path: Path) -> None:
    config = put(tmp_path / "config.yaml", QUICK)
    with Running(ns, daemon_after(WAIT_FAILS, config)) as daemon:
        assert daemon.wait_for(poll_success=1)[HTTP_RESTARTS] == 0
        (tmp_path / "flag").touch()
        ended = daemon.wait_for_line("The http thread ended; ephmon starts it again.")
        daemon.wait_for_line("The http thread was started again.")
        metrics = eventually(daemon.metrics, lambda seen: seen.get(HTTP_RESTARTS) == 1)

        assert daemon.stop() == 0

    assert 'error="OSError in select line ' in ended
    assert metrics["ephmon_poll_success"] == 1


HANGS = """\
import selectors
from ephmon.supervision import loop_thread
loop_thread.SILENT_SECONDS = 3.0
loop_thread.BEAT_SECONDS = 0.1
real = selectors.EpollSelector.select
def select(self, timeout=None):
    while current_thread().name == "http" and os.path.exists(FLAG):
        time.sleep(0.05)
    return real(self, timeout)
selectors.EpollSelector.select = select"""
"""The HTTP thread hangs while the file is there."""


def test_the_watchdog_is_not_fed_while_the_http_thread_hangs(ns: Namespace, tmp_path: Path) -> None:
    config = put(tmp_path / "config.yaml", QUICK)
    with supervised(ns, tmp_path, command=daemon_after(HANGS, config)) as (daemon, listener):
        listener.wait_for(is_ready)
        (tmp_path / "flag").touch()
        daemon.wait_for_line("The http thread hangs;")
        listener.read_all()
        listener.messages.clear()
        connect(ns)  # the status that names a pool shows that polls go on
        told = eventually(listener.read_all, lambda messages: any("Worst pool:" in one for one in messages))
        assert WATCHDOG not in told
        (tmp_path / "flag").unlink()
        eventually(listener.read_all, lambda messages: WATCHDOG in messages)


# --- extras -------------------------------------------------------------------------------------------------------

OWNERS_FAIL = """\
from ephmon.daemon import owner_reader
def read(*_):
    raise ModuleNotFoundError("No module named 'ephmon.kernel.netlink.owner_dump'")
owner_reader.OwnerReader.read = read"""


def test_an_extra_that_fails_when_an_alert_begins_keeps_neither_polls_nor_the_alert(
    ns: Namespace, tmp_path: Path
) -> None:
    config = put(tmp_path / "config.yaml", QUICK + AT_ONCE)
    with Running(ns, daemon_after(OWNERS_FAIL, config)) as daemon:
        daemon.wait_for(poll_success=1)
        connect(ns)
        daemon.wait_for_line("collector owners off")
        metrics = eventually(daemon.metrics, lambda seen: seen.get(OWNERS) == 0)
        ready = daemon.get("/-/ready")

    assert metrics["ephmon_poll_success"] == 1
    assert metrics[DEFECTS] == 0
    assert metrics['ephmon_alerts_active{severity="warning"}'] == 1
    assert ready.status == 200


# --- reload -------------------------------------------------------------------------------------------------------

RELOAD_FAILS = """\
from ephmon import cli
real = cli.load_config
def load_config(path):
    if os.path.exists(FLAG):
        raise {error}
    return real(path)
cli.load_config = load_config"""


DEFECT = r"please report it: {} in load_config line \d+"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("ZeroDivisionError()", DEFECT.format("ZeroDivisionError")),
        ("RecursionError()", DEFECT.format("RecursionError")),
        ("OSError(5, 'I/O')", DEFECT.format("OSError")),
        ("MemoryError()", "Cannot allocate memory; allow ephmon more memory: "),
    ],
)
def test_a_reload_that_meets_any_error_changes_nothing_and_ends_nothing(
    ns: Namespace, tmp_path: Path, error: str, said: str
) -> None:
    config = put(tmp_path / "config.yaml", QUICK)
    with Running(ns, daemon_after(RELOAD_FAILS.format(error=error), config)) as daemon:
        daemon.wait_for(poll_success=1)
        (tmp_path / "flag").touch()
        daemon.signal(signal.SIGHUP)
        line = daemon.wait_for_line("The configuration is kept as it was:")
        failed = daemon.wait_for(config_last_reload_successful=0)
        (tmp_path / "flag").unlink()
        daemon.signal(signal.SIGHUP)
        daemon.wait_for_line("The configuration was reloaded.")
        assert daemon.stop() == 0

    assert re.search(said, line)
    assert failed["ephmon_poll_success"] == 1


# --- memory -------------------------------------------------------------------------------------------------------


def test_without_memory_polls_fail_for_that_reason_and_succeed_as_soon_as_there_is_some(
    ns: Namespace, tmp_path: Path
) -> None:
    config = put(tmp_path / "config.yaml", QUICK)
    ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", "10000 60999")
    with Running(ns, ephmon("run", "--config", config)) as daemon:
        daemon.wait_for(poll_success=1)
        limits = resource.prlimit(daemon.pid, resource.RLIMIT_AS)
        resource.prlimit(daemon.pid, resource.RLIMIT_AS, (address_space(daemon), limits[1]))
        connect(ns, 4000)
        line = daemon.wait_for_line("The poll failed: Cannot allocate memory; allow ephmon more memory:")
        resource.prlimit(daemon.pid, resource.RLIMIT_AS, limits)
        daemon.wait_for_line("Polls succeed again.")
        metrics = daemon.wait_for(poll_success=1)
        resource.prlimit(daemon.pid, resource.RLIMIT_AS, (address_space(daemon), limits[1]))

        status = daemon.stop()
        assert (status, daemon.lines[-1].endswith("Stopped.")) == (0, True), "\n".join(daemon.lines[-25:])

    assert metrics[OUT_OF_MEMORY] >= 1
    assert metrics[DEFECTS] == 0
    assert "Traceback" not in line


def address_space(daemon: Running) -> int:
    """Return the bytes that a process has mapped."""
    status = Path(f"/proc/{daemon.pid}/status").read_text(encoding="utf-8")
    (kib,) = re.findall(r"^VmSize:\s+(\d+) kB$", status, re.MULTILINE)
    return int(kib) * 1024


# --- signals ------------------------------------------------------------------------------------------------------


def test_a_start_that_fails_ends_by_a_signal_while_nobody_reads_why(ns: Namespace, tmp_path: Path) -> None:
    config = put(tmp_path / "config.yaml", "poll: {interval: never}\n")
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, bytes(1 << 16))
    os.set_blocking(writing, True)
    with Program(ns.command(*ephmon("run", "--config", config)), stderr=writing) as daemon:
        call_it_is_in = Path(f"/proc/{daemon.pid}/syscall")
        eventually(lambda: call_it_is_in.read_text(encoding="ascii").split()[:2], lambda call: call == WRITE_TO_STDERR)
        daemon.signal(signal.SIGTERM)

        assert daemon.wait() == -signal.SIGTERM
    os.close(reading)
    os.close(writing)


LOADS_SLOWLY = """\
import builtins
real = __import__
def load(name, *rest, **options):
    if name == "ephmon.cli":
        print("begun", file=sys.stderr, flush=True)
        while not os.path.exists(FLAG):
            time.sleep(0.01)
    return real(name, *rest, **options)
builtins.__import__ = load"""
"""The modules of the command are not loaded before the file is there."""


@pytest.mark.parametrize(
    ("number", "then"), [(signal.SIGHUP, "The configuration was reloaded."), (signal.SIGTERM, "Stopped.")]
)
def test_a_signal_during_the_start_is_obeyed_when_it_has_started(
    ns: Namespace, tmp_path: Path, number: signal.Signals, then: str
) -> None:
    config = put(tmp_path / "config.yaml", QUICK)
    with Running(ns, daemon_after(LOADS_SLOWLY, config)) as daemon:
        daemon.wait_for_line("begun")
        daemon.signal(number)
        (tmp_path / "flag").touch()
        daemon.wait_for_line(then)

        assert daemon.stop() == 0
