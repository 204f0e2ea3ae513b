"""Whoever logs never waits: real files of every kind that take nothing, and what becomes of the lines."""

from __future__ import annotations

import fcntl
import logging
import os
import pty
import select
import socket
import subprocess
import termios
import textwrap
import threading
import time
import tty
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ephmon import log
from ephmon.log import Line
from ephmon.log.handler import FLUSH_SECONDS, MOST_WAITING_BYTES, Handler, Losses
from ephmon.log.rate import MOST_A_MINUTE, WINDOW_SECONDS
from tests.log.records import flush
from tests.processes import environment, eventually, python, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.usefixtures("own_logging")

LOGGER = logging.getLogger("ephmon.tests")
LOST = "Lines were lost because standard error took no more."


def say(*messages: str, kind: str = "") -> None:
    for message in messages:
        log.write(LOGGER, Line(logging.INFO, message, kind=kind))


def log_to(descriptor: int) -> Handler:
    """Log to a descriptor that stays the test's."""
    with os.fdopen(descriptor, "w", closefd=False) as stream:
        log.set_up("info", "logfmt", stream)
    (handler,) = logging.getLogger("ephmon").handlers
    assert isinstance(handler, Handler)
    return handler


def messages(lines: list[str]) -> list[str]:
    return [line.partition(" msg=")[2].strip('"') for line in lines]


class Unread:
    """A file whose reader has stopped, by its two ends."""

    def __init__(self, write_end: int, read_end: int) -> None:
        self.write_end, self.read_end = write_end, read_end

    def read(self, lines: int) -> list[str]:
        """Begin to read, up to so many lines beside what was in it before."""
        found = b""
        while (text := found.lstrip(b".")).count(b"\n") < lines or not text.endswith(b"\n"):
            assert select.select([self.read_end], [], [], 10)[0], found
            found += os.read(self.read_end, 1 << 16)
        return text.decode().splitlines()

    def close(self) -> None:
        os.close(self.write_end)
        os.close(self.read_end)


class StoppedTerminal(Unread):
    """As after Ctrl-S."""

    def read(self, lines: int) -> list[str]:
        termios.tcflow(self.write_end, termios.TCOON)
        return super().read(lines)


def _pipe() -> Unread:
    read_end, write_end = os.pipe()
    return Unread(write_end, read_end)


def _terminal() -> Unread:
    """As `docker run -t` gives one, that nobody is attached to."""
    master, slave = pty.openpty()
    tty.setraw(slave)  # else each end of a line becomes two bytes
    return Unread(slave, master)


def _stopped_terminal() -> Unread:
    terminal = _terminal()
    termios.tcflow(terminal.write_end, termios.TCOOFF)
    return StoppedTerminal(terminal.write_end, terminal.read_end)


def _stream_socket() -> Unread:
    """As the journal has one."""
    ours, theirs = socket.socketpair()
    return Unread(theirs.detach(), ours.detach())


def _message_socket() -> Unread:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Unread(theirs.detach(), ours.detach())


FILES = (_pipe, _terminal, _stopped_terminal, _stream_socket, _message_socket)


@pytest.fixture(name="unread", params=FILES)
def _unread(request: pytest.FixtureRequest) -> Iterator[Unread]:
    make: Callable[[], Unread] = request.param
    file = make()
    yield file
    file.close()


def fill(descriptor: int) -> None:
    """Fill a file that nobody reads, to the last byte. A terminal moves on a moment later what it has taken."""
    os.set_blocking(descriptor, False)
    for size in (4096, 1, 1, 1):
        with suppress(BlockingIOError):
            while True:
                os.write(descriptor, b"." * size)
        time.sleep(0.02)
    os.set_blocking(descriptor, True)


def test_lines_that_nobody_reads_yet_wait_and_come_in_order(unread: Unread) -> None:
    """Logging returns although the file takes not one byte; nothing is lost, and nobody else finds it changed."""
    fill(unread.write_end)
    handler = log_to(unread.write_end)
    said = [f"Number {number}." for number in range(50)]
    say(*said)

    assert os.get_blocking(unread.write_end)
    assert messages(unread.read(50)) == said
    assert handler.losses == Losses()


def test_what_is_more_than_waits_is_lost_counted_and_told_of_in_its_place(unread: Unread) -> None:
    fill(unread.write_end)
    handler = log_to(unread.write_end)
    say("First.")
    eventually(lambda: len(handler._waiting), lambda waiting: waiting == 0)  # the thread is stuck with it
    long = "x" * (MOST_WAITING_BYTES // 8)  # with the rest of the line, room for seven
    say(*(f"{number} {long}" for number in range(20)), "Last.")

    assert handler.losses == Losses(stream=13)
    lines = messages(unread.read(10))
    assert [line.partition(" ")[0] for line in lines[:8]] == ["First.", *map(str, range(7))]
    assert lines[8:] == [f'{LOST}" lost=13', "Last."]


def test_a_reader_that_has_stopped_does_not_keep_a_program_from_its_end(unread: Unread) -> None:
    """The last lines are waited for a moment, and what was written of one stays; no signal is needed."""
    fill(unread.write_end)
    code = """
        import logging, sys
        from ephmon import log
        log.set_up("info", "logfmt")
        log.write(logging.getLogger("ephmon.tests"), log.Line(logging.INFO, "Last."))
    """
    ended = subprocess.run(
        python("-c", textwrap.dedent(code)),
        stderr=unread.write_end,
        env=environment(),
        timeout=FLUSH_SECONDS * 10,
        check=False,
    )

    assert ended.returncode == 0


def test_the_last_lines_are_written_before_a_program_ends() -> None:
    code = """
        import logging
        from ephmon import log
        log.set_up("info", "logfmt")
        for number in range(50):
            log.write(logging.getLogger("ephmon.tests"), log.Line(logging.INFO, f"Number {number}."))
    """
    ended = run(python("-c", textwrap.dedent(code)))

    assert messages(ended.stderr.splitlines()) == [f"Number {number}." for number in range(50)]


def test_a_file_that_somebody_made_non_blocking_loses_nothing() -> None:
    """Whoever shares a pipe or a terminal may do so: the flag belongs to all of them."""
    with_reader = _pipe()
    fill(with_reader.write_end)
    os.set_blocking(with_reader.write_end, False)
    handler = log_to(with_reader.write_end)
    say("First.", "Second.")

    assert messages(with_reader.read(2)) == ["First.", "Second."]
    assert handler.losses == Losses()
    with_reader.close()


def test_a_device_that_is_full_stops_nobody_and_each_line_is_counted() -> None:
    with open("/dev/full", "w", encoding="utf-8") as stream:  # noqa: PTH123
        handler = log_to(stream.fileno())
        say("First.", "Second.")
        flush()

        assert handler.losses == Losses(stream=2)


FULL_DISK = """
    import logging, os, sys
    from pathlib import Path
    from ephmon import log
    stream = open("/mnt/log", "a")
    log.set_up("info", "logfmt", stream)
    def say(message):
        log.write(logging.getLogger("ephmon.tests"), log.Line(logging.INFO, message))
        logging.getLogger("ephmon").handlers[0].flush()
    say("There is room.")
    with Path("/mnt/filler").open("wb", buffering=0) as filler:
        try:
            while True:
                filler.write(b"." * 4096)
        except OSError:
            pass
    for number in range(3):
        say("x" * 5000)
    Path("/mnt/filler").unlink()
    say("There is room again.")
    print(log.losses().stream)
    print(Path("/mnt/log").read_text(), end="")
"""


def test_a_full_disk_costs_lines_and_says_so_once_it_has_room_again() -> None:
    """A line of which only the beginning had room stays torn, and the next one begins a line of its own."""
    script = 'mount -t tmpfs -o size=64k none /mnt; exec "$@"'
    private = ["unshare", "--mount", "--propagation", "private", "--", "sh", "-ec", script, "sh"]
    if os.geteuid() != 0:
        private.insert(1, "--map-root-user")
    ended = run([*private, *python("-c", textwrap.dedent(FULL_DISK))])

    lost, first, torn, *rest = ended.stdout.splitlines()
    assert (lost, *messages([first])) == ("3", "There is room."), ended.stderr
    assert 0 < torn.count("x") < 5000
    assert messages(rest) == [f'{LOST}" lost=3', "There is room again."]


def test_a_pipe_that_nobody_will_read_any_more_stops_nobody() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    handler = log_to(write_end)
    say("First.", "Second.")
    flush()

    assert handler.losses == Losses(stream=2)
    os.close(write_end)


def test_a_standard_error_that_was_closed_stops_nobody(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    """Python has no `sys.stderr` then; nor does anything fall back to another stream."""
    monkeypatch.setattr("sys.stderr", None)
    log.set_up("info", "logfmt")
    say("First.")

    assert capfd.readouterr() == ("", "")


def test_a_field_that_cannot_be_written_costs_one_line_and_reaches_nobody() -> None:
    class Unprintable:
        def __str__(self) -> str:
            raise MemoryError

    file = _pipe()
    handler = log_to(file.write_end)
    log.write(LOGGER, Line(logging.INFO, "Lost.", {"field": Unprintable()}))
    say("Next.")

    assert sorted(messages(file.read(2))) == sorted([f'{LOST}" lost=1', "Next."])
    assert handler.losses == Losses(stream=1)
    file.close()


WITHOUT_THREADS = """
    import logging, os, resource, threading, time
    from ephmon import log
    os.setresuid(54321, 54321, 54321)
    resource.setrlimit(resource.RLIMIT_NPROC, (1, 100))
    try:
        threading.Thread(target=print).start()
    except RuntimeError:
        print("no thread is to be had")
    def say(message):
        log.write(logging.getLogger("ephmon.tests"), log.Line(logging.INFO, message))
    log.set_up("info", "logfmt")
    say("First.")
    resource.setrlimit(resource.RLIMIT_NPROC, (100, 100))
    say("Second.")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user, for whom the limit counts")
def test_while_no_thread_is_to_be_had_lines_wait() -> None:
    ended = run(python("-c", textwrap.dedent(WITHOUT_THREADS)))

    assert ended.stdout == "no thread is to be had\n"
    assert messages(ended.stderr.splitlines()) == ["First.", "Second."]


def test_a_second_stream_takes_over_and_leaves_no_thread_behind() -> None:
    first, second = _pipe(), _pipe()

    def threads() -> int:
        return sum(1 for _ in Path("/proc/self/task").iterdir())

    before = threads()
    log_to(first.write_end)
    say("To the first.")
    log_to(second.write_end)
    say("To the second.")

    assert messages(first.read(1)) == ["To the first."]
    assert messages(second.read(1)) == ["To the second."]
    eventually(threads, lambda number: number <= before + 1)
    first.close()
    second.close()


def test_lines_of_a_kind_beyond_those_of_a_minute_are_counted_in_one_line() -> None:
    now = 100.0
    read_end, write_end = os.pipe()
    fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 1 << 20)
    handler = Handler(write_end, clock=lambda: now)
    root = logging.getLogger("ephmon")
    root.handlers, root.propagate = [handler], False
    root.setLevel("INFO")
    say(*(str(number) for number in range(MOST_A_MINUTE + 500)), kind="flood")
    say("Of another kind.")
    now += WINDOW_SECONDS
    say("Later.")
    flush()

    lines = os.read(read_end, 1 << 20).decode().splitlines()
    assert len(lines) == MOST_A_MINUTE + 3
    assert lines[-3:] == [
        "Of another kind.",
        "More lines of this kind were left out: at most 60 are written in a minute.",
        "Later.",
    ]
    assert handler.losses == Losses(rate=500)


def test_the_count_comes_when_the_minute_is_over_although_nothing_else_is_said() -> None:
    file = _pipe()
    now = [0.0]
    handler = Handler(file.write_end, clock=lambda: now[0])
    root = logging.getLogger("ephmon")
    root.handlers, root.propagate = [handler], False
    root.setLevel("INFO")
    say(*("Flood." for _ in range(MOST_A_MINUTE)))
    file.read(MOST_A_MINUTE)
    now[0] = WINDOW_SECONDS - 0.05  # the thread waits for what is left of the minute
    say("Left out.")
    threading.Timer(0.02, lambda: now.__setitem__(0, WINDOW_SECONDS)).start()

    (line,) = file.read(1)
    assert line.startswith("More lines of this kind were left out")
    file.close()
