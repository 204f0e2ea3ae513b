"""How a line of the log is written: `key=value` pairs or JSON, and what the journal gets."""

from __future__ import annotations

import json
import logging
import os
import re
from typing import TYPE_CHECKING, TextIO

import pytest

from ephmon import log
from ephmon.log import Line
from tests.log.records import flush

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOGGER = logging.getLogger("ephmon.tests")
ERROR = "ValueError: invalid literal for int() with base 10: 'missing'"
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


pytestmark = pytest.mark.usefixtures("own_logging")


@pytest.fixture(name="stream")
def _stream(tmp_path: Path) -> Iterator[TextIO]:
    with (tmp_path / "log").open("w+", encoding="utf-8") as stream:
        yield stream


def written(stream: TextIO) -> list[str]:
    flush()
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
