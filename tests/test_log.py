"""The log: how a line is written wherever it goes, and that each change of state is said once."""

from __future__ import annotations

import json
import logging
import os
import re
from typing import TYPE_CHECKING, Any, TextIO

import pytest

from ephmon import log
from ephmon.log import Line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOGGER = logging.getLogger("ephmon.tests")
ERROR = "ValueError: invalid literal for int() with base 10: 'missing'"
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


@pytest.fixture(autouse=True)
def _quiet_afterwards() -> Iterator[None]:
    """Leave the logging of the process as it was."""
    root = logging.getLogger("ephmon")
    before = root.handlers[:], root.level, root.propagate
    yield
    root.handlers[:], root.level, root.propagate = before


@pytest.fixture(name="stream")
def _stream(tmp_path: Path) -> Iterator[TextIO]:
    with (tmp_path / "log").open("w+", encoding="utf-8") as stream:
        yield stream


def written(stream: TextIO) -> list[str]:
    stream.seek(0)
    return stream.read().splitlines()


def say(message: str, **fields: object) -> None:
    log.write(LOGGER, Line(logging.INFO, message, fields))


def fail() -> None:
    """Log an error with a traceback of several lines."""
    try:
        int("missing")
    except ValueError:
        LOGGER.exception("It failed")


# --- formats ------------------------------------------------------------------------------------------------------


def test_a_line_is_key_value_pairs_with_the_time_first(stream: TextIO) -> None:
    log.set_up("info", "logfmt", stream)
    say("Polls succeed again.", failed=3, before=None)

    (line,) = written(stream)
    assert re.fullmatch(TIME, line.partition(" ")[0].removeprefix("time="))
    assert line.partition(" ")[2] == 'level=info msg="Polls succeed again." failed=3'


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain", "plain"),
        ("10.0.0.1:443", "10.0.0.1:443"),
        (0.5, "0.5"),
        (True, "True"),
        ("", '""'),
        ("two words", '"two words"'),
        ('say "a"', r'"say \"a\""'),
        ("a=b", '"a=b"'),
        ("back\\slash", r'"back\\slash"'),
        ("line\nbreak\ttab", r'"line\nbreak\ttab"'),
        ("\x1b[31mred", r'"\u001b[31mred"'),
        ("\u2028\x85", r'"\u2028\u0085"'),
        ("Zürich", r'"Z\u00fcrich"'),
        ("\udcff", r'"\udcff"'),
    ],
)
def test_a_value_is_one_word_or_quoted_so_that_a_line_stays_one_line(stream: TextIO, value: object, shown: str) -> None:
    log.set_up("info", "logfmt", stream)
    say("Odd", value=value)

    (line,) = written(stream)
    assert line.endswith(f" level=info msg=Odd value={shown}")


def test_json_is_one_object_a_line(stream: TextIO) -> None:
    log.set_up("info", "json", stream)
    say('It says "a\nb" in Zürich', port=443, ratio=0.5, where=None, path=os)
    fail()

    first, second = (json.loads(line) for line in written(stream))
    assert re.fullmatch(TIME, first.pop("time"))
    assert first == {
        "level": "info",
        "msg": 'It says "a\nb" in Zürich',
        "port": 443,
        "ratio": 0.5,
        "path": str(os),
    }
    assert (second["level"], second["msg"]) == ("error", "It failed")
    assert second["traceback"].startswith("Traceback (most recent call last):\n")
    assert second["traceback"].endswith(ERROR)


def test_a_traceback_stands_below_its_line(stream: TextIO) -> None:
    log.set_up("info", "logfmt", stream)
    fail()

    first, *below = written(stream)
    assert first.endswith(' level=error msg="It failed"')
    assert (below[0], below[-1]) == ("Traceback (most recent call last):", ERROR)


@pytest.mark.parametrize(
    ("level", "said"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_what_is_less_urgent_than_the_level_is_not_said(stream: TextIO, level: str, said: list[str]) -> None:
    log.set_up(level, "logfmt", stream)
    for number in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        log.write(LOGGER, Line(number, "Something."))

    assert [line.split()[1].removeprefix("level=") for line in written(stream)] == said


def test_a_second_set_up_takes_the_place_of_the_first(stream: TextIO) -> None:
    log.set_up("info", "json", stream)
    log.set_up("info", "logfmt", stream)
    say("Once.")

    (line,) = written(stream)
    assert line.startswith("time=")


# --- the journal --------------------------------------------------------------------------------------------------


def test_in_the_journal_every_line_opens_with_its_priority_and_has_no_time(
    stream: TextIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal takes each line of a traceback for a message of its own."""
    status = os.fstat(stream.fileno())
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    log.set_up("debug", "auto", stream)
    for number in (logging.CRITICAL, logging.WARNING, logging.INFO, logging.DEBUG):
        log.write(LOGGER, Line(number, "Something.", {"port": 443}))
    fail()

    lines = written(stream)
    assert lines[:5] == [
        "<2>level=critical msg=Something. port=443",
        "<4>level=warning msg=Something. port=443",
        "<6>level=info msg=Something. port=443",
        "<7>level=debug msg=Something. port=443",
        '<3>level=error msg="It failed"',
    ]
    assert lines[5] == "<3>Traceback (most recent call last):"
    assert lines[-1] == "<3>" + ERROR
    assert all(line.startswith("<3>") for line in lines[4:])


@pytest.mark.parametrize("named", ["", "1:2", "nonsense"])
def test_a_stream_that_is_not_the_journals_has_the_time(
    stream: TextIO, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    """The variable stays in the environment of a service whose standard error was sent elsewhere."""
    monkeypatch.setenv("JOURNAL_STREAM", named)
    log.set_up("info", "auto", stream)
    say("Once.")

    assert written(stream)[0].startswith("time=")


# --- a stream that takes nothing ----------------------------------------------------------------------------------


def test_a_full_pipe_stops_nobody_and_what_was_lost_is_counted() -> None:
    """Also a traceback for which there is room for a part only; the line that says so stands for itself."""
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "w") as stream, os.fdopen(read_end, "rb", buffering=0) as pipe:
        log.set_up("info", "logfmt", stream)
        fill(write_end)
        say("First.")
        pipe.read(2 * 4096)  # room for what is to be said of the first, and for a page of the second
        say("x" * 10_000)
        say("Third.")
        drained = pipe.read(1 << 20)
        say("Fourth.")
        said = pipe.read(1 << 20).decode().splitlines()

    assert drained.endswith(b"x")
    assert drained.count(b"x") < 4096
    assert drained.count(b"lost=1\n") == 1
    assert said[0] == ""
    assert said[1].endswith('level=warning msg="Lines were lost because standard error took no more." lost=2')
    assert said[2].endswith("level=info msg=Fourth.")
    assert len(said) == 3


def fill(pipe: int) -> None:
    os.set_blocking(pipe, False)
    try:
        while True:
            os.write(pipe, b"." * 4096)
    except BlockingIOError:
        os.set_blocking(pipe, True)


def test_a_device_that_is_full_stops_nobody() -> None:
    with open("/dev/full", "w", encoding="utf-8") as stream:  # noqa: PTH123
        log.set_up("info", "logfmt", stream)
        say("First.")
        fail()


def test_a_pipe_that_nobody_reads_any_more_stops_nobody() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as stream:
        log.set_up("info", "logfmt", stream)
        say("First.")
        say("Second.")


def test_a_standard_error_that_was_closed_stops_nobody(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    """Python has no `sys.stderr` then; nor does anything fall back to another stream."""
    monkeypatch.setattr("sys.stderr", None)
    log.set_up("info", "logfmt")
    say("First.")
    fail()

    assert capfd.readouterr() == ("", "")
