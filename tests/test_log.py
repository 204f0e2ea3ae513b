"""The log: how a line is written wherever it goes, and that each change of state is said once."""

from __future__ import annotations

import json
import logging
import os
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TextIO

import pytest

from ephmon import log
from ephmon.log import Line
from ephmon.model.alerting.state_machine import AlertName, Phase
from ephmon.model.rules import Severity
from tests.builders import make_alert, make_first_failure, make_namespace, make_owners, make_pool, make_report

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


# --- changes ------------------------------------------------------------------------------------------------------

GOOD = make_report()
NOTHING_YET = make_report(success=False, taken_at=None, backends={}, namespaces=(), listed=())
FAILED = make_report(success=False, error="The table is cut.")
PROCFS = {"tcp": "procfs", "udp": "inet_diag"}
FALLEN_BACK = replace(make_report(backends=PROCFS), fallbacks={"tcp": "No handler."})
BLIND = make_namespace(blind_to=("bound_unconnected", "v6only"))
BLIND_TO = "netns=own blind_to=bound_unconnected,v6only"
TORN = (
    "Pools seem to hold more ports than there are, because sockets moved while they were read; their remaining ports "
    "are given as 0."
)
LEVELS = {logging.DEBUG: "debug", logging.INFO: "info", logging.WARNING: "warning", logging.ERROR: "error"}
NEAR = make_pool(usable=28_232, blocked=3, in_use=20_000)
IS_NEAR = "tcp_connect from 10.0.0.1 to 10.0.0.9:443 is at 70.9%: 8229 of 28232 ports are left."
BLOCKED = make_alert(name=AlertName.PORTS_BLOCKED, value=0.75)


def of_alert(severity: str) -> str:
    """Return the figures of an alert of NEAR, as they follow the sentence."""
    return (
        f"alert=EphmonPoolNearExhaustion severity={severity} netns=own kind=tcp_connect source=10.0.0.1 "
        "destination=10.0.0.9:443 value=0.708522 usable=28232 blocked=3 in_use=20000 time_wait=30 reusable=0 "
        "remaining=8229 since=2026-01-02T03:04:05.006Z"
    )


CHANGES: dict[str, tuple[Any, Any, list[tuple[str, str]]]] = {
    "the first good poll": (
        NOTHING_YET,
        GOOD,
        [
            ("info", "Sockets of tcp are read by inet_diag. before=None"),
            ("info", "Sockets of udp are read by inet_diag. before=None"),
            ("info", "28232 ports are usable. netns=own port_range=32768-60999 reserved=0"),
        ],
    ),
    "a first poll that fails": (
        NOTHING_YET,
        make_first_failure("There is no procfs."),
        [("error", "The poll failed: There is no procfs.")],
    ),
    "a poll that fails": (GOOD, FAILED, [("error", "The poll failed: The table is cut.")]),
    "another reason": (
        FAILED,
        make_report(success=False, error="The range is gone."),
        [("error", "The poll failed: The range is gone.")],
    ),
    "a good poll after it": (FAILED, GOOD, [("info", "Polls succeed again. failed=0")]),
    "another backend": (
        GOOD,
        make_report(backends=PROCFS),
        [("warning", "Sockets of tcp are read by procfs. before=inet_diag")],
    ),
    "another backend, with the reason": (
        GOOD,
        FALLEN_BACK,
        [("warning", "Sockets of tcp are read by procfs: No handler. before=inet_diag")],
    ),
    "another reason for a backend": (
        FALLEN_BACK,
        replace(FALLEN_BACK, fallbacks={"tcp": "No socket."}),
        [("warning", "Sockets of tcp are read by procfs: No socket. before=procfs")],
    ),
    "a first poll that falls back": (
        replace(NOTHING_YET, namespaces=GOOD.namespaces),
        FALLEN_BACK,
        [
            ("warning", "Sockets of tcp are read by procfs: No handler. before=None"),
            ("info", "Sockets of udp are read by inet_diag. before=None"),
        ],
    ),
    "the backend that is wanted again": (
        FALLEN_BACK,
        GOOD,
        [("warning", "Sockets of tcp are read by inet_diag. before=procfs")],
    ),
    "a probe that is refused": (
        GOOD,
        replace(GOOD, probe_error="No capability.", probe_available=False),
        [("warning", "Ports in doubt are not probed: No capability.")],
    ),
    "a probe that was cut": (
        GOOD,
        replace(GOOD, probe_error="It was cut.", probe_available=True),
        [("warning", "Ports in doubt are not all probed: It was cut.")],
    ),
    "a protocol that is missing": (
        GOOD,
        make_report(backends={"tcp": "inet_diag"}, missing={"udp": "No handler."}),
        [("error", "Sockets of udp cannot be read: No handler. protocol=udp")],
    ),
    "a protocol that is back": (
        make_report(backends={"tcp": "inet_diag"}, missing={"udp": "No handler."}),
        GOOD,
        [("info", "Sockets of udp are read by inet_diag. before=None")],
    ),
    "another range": (
        GOOD,
        make_report(namespaces=[make_namespace(port_range=(1024, 60999), usable_ports=59976)]),
        [("info", "59976 ports are usable. netns=own port_range=1024-60999 reserved=0")],
    ),
    "more reserved ports": (
        GOOD,
        make_report(namespaces=[make_namespace(reserved_ports=2, usable_ports=28230)]),
        [("info", "28230 ports are usable. netns=own port_range=32768-60999 reserved=2")],
    ),
    "what cannot be seen": (
        GOOD,
        make_report(namespaces=[BLIND]),
        [
            ("warning", "What this kernel or backend does not show may make headroom look larger. " + BLIND_TO),
        ],
    ),
    "all is seen again": (make_report(namespaces=[BLIND]), GOOD, []),
    "pools that moved": (
        GOOD,
        make_report(namespaces=[replace(make_namespace(), torn_pools=2)]),
        [
            ("warning", TORN + " netns=own pools=2"),
        ],
    ),
    "an alert that is pending": (
        GOOD,
        make_report(alerts=[make_alert(NEAR, phase=Phase.PENDING)]),
        [("debug", f"EphmonPoolNearExhaustion is pending: {IS_NEAR} {of_alert('warning')}")],
    ),
    "a warning": (
        make_report(alerts=[make_alert(NEAR, phase=Phase.PENDING)]),
        make_report(alerts=[make_alert(NEAR)]),
        [("warning", f"EphmonPoolNearExhaustion fires as warning: {IS_NEAR} {of_alert('warning')}")],
    ),
    "a critical alert": (
        make_report(alerts=[make_alert(NEAR)]),
        make_report(alerts=[make_alert(NEAR, severity=Severity.CRITICAL)]),
        [("error", f"EphmonPoolNearExhaustion fires as critical: {IS_NEAR} {of_alert('critical')}")],
    ),
    "an alert whose owners are known": (
        GOOD,
        make_report(
            alerts=[make_alert(NEAR)], owners={NEAR.key: make_owners(("haproxy.service", 812), ("uid 33", 12))}
        ),
        [
            (
                "warning",
                f"EphmonPoolNearExhaustion fires as warning: {IS_NEAR} haproxy.service holds 812 ports. "
                + of_alert("warning"),
            )
        ],
    ),
    "owners that cannot be read": (
        GOOD,
        replace(GOOD, owners_available=False, owners_error="It was refused."),
        [("warning", "The owners of ports are not known: It was refused.")],
    ),
    "owners that cannot be read for another reason": (
        replace(GOOD, owners_available=False, owners_error="It was refused."),
        replace(GOOD, owners_available=False, owners_error="It was cut."),
        [("warning", "The owners of ports are not known: It was cut.")],
    ),
    "owners that cannot be read again": (
        replace(GOOD, owners_available=False, owners_error="It was refused."),
        replace(GOOD, owners_available=False, owners_error="It was refused."),
        [],
    ),
    "owners that lack something": (
        GOOD,
        replace(GOOD, owners_available=True, owners_error="20,000 cgroups were seen."),
        [("info", "Not all owners of ports are known: 20,000 cgroups were seen.")],
    ),
    "owners that lack it with other figures": (
        replace(GOOD, owners_available=True, owners_error="20,000 cgroups were seen."),
        replace(GOOD, owners_available=True, owners_error="19,000 cgroups were seen."),
        [],
    ),
    "processes that may not be looked at": (
        GOOD,
        replace(GOOD, processes_available=False, processes_error="1 of 1 may not be read."),
        [("info", "Not all processes that hold ports can be named: 1 of 1 may not be read.")],
    ),
    "more processes that may not": (
        replace(GOOD, processes_available=False, processes_error="1 of 1 may not be read."),
        replace(GOOD, processes_available=False, processes_error="2 of 2 may not be read."),
        [],
    ),
    "an alert that ends": (
        make_report(alerts=[make_alert(NEAR)]),
        make_report(alerts=[make_alert(NEAR, phase=Phase.RESOLVED, ended=62.5)]),
        [("info", f"EphmonPoolNearExhaustion is resolved. {of_alert('warning')} lasted_seconds=62.5")],
    ),
    "an alert that another stands for": (
        make_report(alerts=[BLOCKED, make_alert(NEAR)]),
        make_report(alerts=[BLOCKED, make_alert(NEAR, phase=Phase.RESOLVED, ended=5.0)]),
        [
            (
                "info",
                (
                    "EphmonPoolNearExhaustion is resolved; EphmonPortsBlocked stands for it now. "
                    f"{of_alert('warning')} lasted_seconds=5.0"
                ),
            )
        ],
    ),
    "an alert that loses its place": (
        make_report(alerts=[make_alert(NEAR)]),
        make_report(alerts=[make_alert(NEAR, is_told=False)]),
        [
            (
                "info",
                "EphmonPoolNearExhaustion goes on, but has lost its place among alerts.max_active. "
                + of_alert("warning"),
            )
        ],
    ),
    "an alert that never had one": (GOOD, make_report(alerts=[make_alert(NEAR, is_told=False)]), []),
    "an alert of the namespace while polls fail": (
        make_report(success=False, error="x"),
        make_report(success=False, error="x", alerts=[BLOCKED]),
        [
            (
                "warning",
                (
                    "EphmonPortsBlocked fires as warning: 75.0% of the usable ports are blocked for every connect(). "
                    "alert=EphmonPortsBlocked severity=warning netns=own value=0.75 since=2026-01-02T03:04:05.006Z"
                ),
            )
        ],
    ),
    "an alert that is held": (
        make_report(alerts=[make_alert(NEAR)]),
        make_report(success=False, error="x", alerts=[make_alert(NEAR)]),
        [("error", "The poll failed: x")],
    ),
    "other figures": (GOOD, make_report(listed=[], duration_seconds=1.0, taken_at=1.0), []),
}


@pytest.mark.parametrize(("previous", "report", "said"), CHANGES.values(), ids=CHANGES)
def test_each_change_is_said_once(previous: Any, report: Any, said: list[tuple[str, str]]) -> None:
    lines = [
        (LEVELS[line.level], " ".join([line.message, *(f"{key}={value}" for key, value in line.fields.items())]))
        for line in log.changes(previous, report)
    ]

    assert lines == said
    assert list(log.changes(report, report)) == []
