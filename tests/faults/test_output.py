"""Faults of where ephmon writes to: its log and its incidents."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import shutil
import socket
import tty
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults.case import CONFIG, Check, Fault, Start, parameters
from tests.faults.checks import ALERT_FIRES, POLLS_GO_ON, WRITES_THE_INCIDENT
from tests.faults.hastened import hastened
from tests.faults.starts import INCIDENTS, PAUSE_SECONDS, make_incidents
from tests.faults.tools import OWN_MOUNTS, after, in_its_mounts
from tests.processes import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from tests.faults.case import Case
    from tests.faults.stage import Stage

MISTAKES = 200
"""So many mistakes of a configuration make one line of some 30 KB."""
LOST = "Lines were lost because standard error took no more."


def _lines_lost_of_many(stage: Stage) -> float:
    """Let it log a long line, and return how many lines could not be written so far."""
    stage.reload(CONFIG + "".join(f"a_key_that_there_is_not_{number}: 1\n" for number in range(MISTAKES)))
    stage.daemon.wait_for(config_last_reload_successful=0)
    stage.reload(CONFIG)
    return stage.daemon.wait_for(config_last_reload_successful=1)['ephmon_log_lines_lost_total{reason="stream"}']


@contextmanager
def _saying_much(stage: Stage) -> Iterator[None]:
    _lines_lost_of_many(stage)
    yield


@contextmanager
def _saying_too_much(stage: Stage) -> Iterator[None]:
    """Let it log more than the file takes and the daemon keeps."""
    eventually(lambda: _lines_lost_of_many(stage), bool)
    yield


@contextmanager
def _unread_pipe(stage: Stage) -> Iterator[int]:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    with _left_unread(stage, reader, writer):
        yield writer


@contextmanager
def _unread_terminal(stage: Stage) -> Iterator[int]:
    reader, writer = pty.openpty()
    tty.setraw(writer)
    with _left_unread(stage, reader, writer):
        yield writer


@contextmanager
def _unread_socket(stage: Stage) -> Iterator[int]:
    ours, theirs = socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    with ours, theirs, _left_unread(stage, os.dup(ours.fileno()), os.dup(theirs.fileno())):
        yield theirs.fileno()


@contextmanager
def _left_unread(stage: Stage, reader: int, writer: int) -> Iterator[None]:
    """Have `_read` read this end later."""
    (stage.folder / "reader").write_text(str(reader), encoding="ascii")
    try:
        yield
    finally:
        os.close(reader)
        os.close(writer)


@contextmanager
def _pipe_without_reader(_stage: Stage) -> Iterator[int]:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        yield writer
    finally:
        os.close(writer)


def _read(stage: Stage) -> str:
    """Return all that waits to be read."""
    reader, content = int((stage.folder / "reader").read_text(encoding="ascii")), b""
    while select.select([reader], [], [], 0.2)[0]:
        content += os.read(reader, 1 << 16)
    return content.decode()


def _says_what_was_lost(stage: Stage) -> None:
    """Read what was written; the next line comes behind the one that counts what was lost."""
    said = [_read(stage)]

    def read_on() -> str:
        stage.reload(CONFIG)
        said.append(_read(stage))
        return "".join(said)

    eventually(read_on, lambda text: LOST in text)


COUNTS_WHAT_WAS_LOST = Check("Once the log is read, it says how many lines were lost.", _says_what_was_lost)


def _unread(name: str, output: Callable[[Stage], AbstractContextManager[int]], done: str) -> Fault:
    return Fault(
        name=name,
        done=done,
        inject=_saying_too_much,
        start=Start(output=output),
        meanwhile=[POLLS_GO_ON],
        afterwards=[COUNTS_WHAT_WAS_LOST],
    )


def _untaken(name: str, done: str, start: Start) -> Fault:
    return Fault(name=name, done=done, inject=_saying_much, start=start, meanwhile=[POLLS_GO_ON])


@contextmanager
def _incident_due(stage: Stage) -> Iterator[None]:
    """Let an incident become due where it cannot be written."""
    stage.fill()
    stage.daemon.wait_for_line("Incidents cannot be written: ")
    yield


@contextmanager
def _full_disk(stage: Stage) -> Iterator[None]:
    with _incident_due(stage):
        yield
    in_its_mounts(stage, "rm", f"{stage.folder}/incidents/all of it")
    stage.pass_time(PAUSE_SECONDS)


@contextmanager
def _read_only_disk(stage: Stage) -> Iterator[None]:
    with _incident_due(stage):
        yield
    in_its_mounts(stage, "mount", "-o", "remount,rw", f"{stage.folder}/incidents")
    stage.pass_time(PAUSE_SECONDS)


@contextmanager
def _directory_exchanged(stage: Stage, make: Callable[[Path], object]) -> Iterator[None]:
    directory = stage.folder / "incidents"
    shutil.rmtree(directory)
    make(directory)
    with _incident_due(stage):
        yield
    directory.unlink(missing_ok=True)
    directory.mkdir()
    stage.pass_time(PAUSE_SECONDS)


@contextmanager
def _hostile_files(stage: Stage) -> Iterator[None]:
    """Let what has the names of incidents be a FIFO, a device and a loop."""
    directory = stage.folder / "incidents"
    os.mkfifo(directory / "ephmon-20010101T000000Z-critical.json")
    (directory / "ephmon-20010102T000000Z-critical.json").symlink_to("/dev/zero")
    (directory / "ephmon-20010103T000000Z-critical.json").symlink_to("ephmon-20010103T000000Z-critical.json")
    stage.fill()
    yield


def _incident_fault(
    name: str,
    done: str,
    inject: Callable[[Stage], AbstractContextManager[None]],
    says: str,
    start: Start,
    **options: Any,
) -> Fault:
    return Fault(
        name=name,
        done=done,
        inject=inject,
        start=start,
        meanwhile=[POLLS_GO_ON, ALERT_FIRES],
        afterwards=[WRITES_THE_INCIDENT],
        says=[f"Incidents cannot be written: {says}"],
        **options,
    )


INCIDENTS_ON = Start(config=CONFIG + INCIDENTS, prepare=make_incidents, command=hastened)


def _on_a_disk(options: str, script: str = ":") -> Start:
    """Return a start with a small disk where incidents are written."""
    mount = f'cd "$0/incidents" && cd .. && mount -t tmpfs -o {options} none incidents && {script}'
    return Start(
        config=INCIDENTS_ON.config,
        prepare=make_incidents,
        command=lambda folder: [*OWN_MOUNTS, "sh", "-ec", f'{mount}; exec "$@"', str(folder), *hastened(folder)],
    )


CASES: tuple[Case, ...] = (
    _unread("nobody reads the pipe", _unread_pipe, "Standard error is a pipe of 4 KiB that nobody reads."),
    _unread("nobody reads the terminal", _unread_terminal, "Standard error is a terminal that nobody reads."),
    _unread("nobody reads the socket", _unread_socket, "Standard error is a socket that nobody reads."),
    _untaken(
        "the reader of the pipe is gone",
        "Standard error is a pipe that has no reader.",
        Start(output=_pipe_without_reader),
    ),
    _untaken("standard error is full", "Standard error is /dev/full.", Start(prefix=after("exec 2>/dev/full"))),
    _untaken(
        "standard error is closed",
        "It starts without descriptors 0, 1 and 2.",
        Start(prefix=after("exec 0<&- 1>&- 2>&-")),
    ),
    _untaken(
        "the disk of the log is full",
        "Standard error is a file on a disk of 4 KiB.",
        Start(prefix=after("mount -t tmpfs -o size=4k none /mnt; exec 2>/mnt/log")),
    ),
    _incident_fault(
        "the disk is full",
        "No byte is free where an incident is due.",
        _full_disk,
        "…No space left on device",
        _on_a_disk("size=64k", 'head -c 64K /dev/zero >"incidents/all of it"'),
    ),
    _incident_fault(
        "the disk is read-only",
        "It is remounted read-only where an incident is due.",
        _read_only_disk,
        "…Read-only file system",
        _on_a_disk("size=1m", "mount -o remount,ro incidents"),
        needs={"only_root": "remounts a file system"},
    ),
    _incident_fault(
        "the directory of incidents is gone",
        "It is removed before an incident is due.",
        partial(_directory_exchanged, make=lambda _: None),
        "",
        INCIDENTS_ON,
    ),
    _incident_fault(
        "the directory of incidents is a file",
        "A file takes its place before an incident is due.",
        partial(_directory_exchanged, make=Path.touch),
        "",
        INCIDENTS_ON,
    ),
    Fault(
        name="incidents are not what they seem",
        done="A FIFO, a link to /dev/zero and a loop have names of incidents.",
        inject=_hostile_files,
        start=INCIDENTS_ON,
        meanwhile=[POLLS_GO_ON, ALERT_FIRES],
        afterwards=[Check("The incident is written.", WRITES_THE_INCIDENT.require)],
        says=["An incident was written."],
    ),
)


@pytest.mark.parametrize("case", parameters(CASES))
def test_ephmon_does_and_says_what_it_should(case: Case, stage: Stage) -> None:
    case.play(stage)
