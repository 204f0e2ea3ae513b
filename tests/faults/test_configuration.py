"""Faults of the configuration: what may lie where the file should, and reloads."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.faults.case import CONFIG, Check, Ending, Fault, Refusal, Start, parameters
from tests.faults.checks import KEEPS_THE_CONFIGURATION, POLLS_GO_ON
from tests.processes import ephmon, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.faults.case import Case
    from tests.faults.stage import Stage

KEPT = "The configuration is kept as it was: "
THRESHOLD = 'threshold_utilisation_ratio{severity="warning"}'
RELOADS = 200


def _nest(path: Path) -> None:
    path.write_text("labels: " + "[" * 100_000)


def _multiply(path: Path) -> None:
    """Write the file of which a parser that follows references makes a billion words."""
    lines = ['a0: &a0 ["x"]', *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10))]
    path.write_text("\n".join(lines))


def _link_to(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


@contextmanager
def _replaced(stage: Stage, make: Callable[[Path], object]) -> Iterator[None]:
    """Reload while something else lies where the configuration was."""
    stage.config.unlink()
    make(stage.config)
    stage.daemon.signal(signal.SIGHUP)
    yield
    stage.config.rmdir() if stage.config.is_dir() else stage.config.unlink(missing_ok=True)
    stage.reload(CONFIG)


def _takes_the_next(stage: Stage) -> None:
    stage.daemon.wait_for(config_last_reload_successful=1)


TAKES_THE_NEXT = Check("The next reload succeeds.", _takes_the_next)


def _replacement(name: str, done: str, make: Callable[[Path], object], says: str) -> Fault:
    return Fault(
        name=name,
        done=done,
        inject=partial(_replaced, make=make),
        meanwhile=[KEEPS_THE_CONFIGURATION, POLLS_GO_ON],
        afterwards=[TAKES_THE_NEXT],
        says=[KEPT + says],
    )


@contextmanager
def _secret_in_the_wrong_place(stage: Stage) -> Iterator[None]:
    """Reload with secrets where the names of files belong."""
    for text in (
        "notify: {webhook: {url_file: hooks.example/SECRET}}\n",
        'tls: {certificate: "FOLDER/cert.pem", key: "-----BEGIN PRIVATE KEY-----\\nSECRET"}\n',
    ):
        stage.reload(CONFIG + text)
        assert "SECRET" not in stage.daemon.wait_for_line(KEPT)
        assert "SECRET" not in stage.daemon.get("/").body
        assert "SECRET" not in stage.daemon.get("/metrics").body
    yield
    stage.reload(CONFIG)


@contextmanager
def _storm(stage: Stage) -> Iterator[None]:
    """Reload without a pause, each time another configuration, every second one wrong."""
    for number in range(1, RELOADS + 1):
        threshold = "nonsense" if number % 2 else f"{0.1 + number / 1000:.3f}"
        stage.reload(CONFIG + f"thresholds: {{warning: {{utilisation: {threshold}}}}}\n")
    yield


def _has_the_last(stage: Stage) -> None:
    eventually(lambda: stage.value(THRESHOLD), lambda value: value == round(0.1 + RELOADS / 1000, 3))


def _stop_behind_a_storm(stage: Stage) -> None:
    for _ in range(RELOADS):
        stage.daemon.signal(signal.SIGHUP)
    stage.daemon.signal(signal.SIGTERM)


@contextmanager
def _certificate_that_is_gone(stage: Stage) -> Iterator[None]:
    stage.reload(CONFIG + "tls: {certificate: FOLDER/cert.pem, key: FOLDER/key.pem}\n")
    yield
    stage.reload(CONFIG)


CASES: tuple[Case, ...] = (
    _replacement("the configuration is gone", "The file is removed before a reload.", lambda _: None, "…No such file"),
    _replacement(
        "the configuration is a directory",
        "A directory takes its place.",
        Path.mkdir,
        "…is a directory, not a regular file",
    ),
    _replacement(
        "the configuration is a FIFO",
        "A FIFO without a writer takes its place.",
        os.mkfifo,
        "…is a FIFO, not a regular file",
    ),
    _replacement(
        "the configuration is a device",
        "A link to /dev/zero takes its place.",
        _link_to("/dev/zero"),
        "…is a device, not a regular file",
    ),
    _replacement(
        "the configuration is a loop",
        "A link to itself takes its place.",
        _link_to("config.yaml"),
        "…Too many levels of symbolic links",
    ),
    _replacement(
        "the configuration is huge",
        "A file of 2 MiB takes its place.",
        lambda path: path.write_bytes(b"#" * (2 << 20)),
        "…is larger than 1 MiB, the limit",
    ),
    _replacement(
        "the configuration is binary",
        "4 KiB of bytes from 0 to 255 take its place.",
        lambda path: path.write_bytes(bytes(range(256)) * 16),
        "",
    ),
    _replacement("the configuration is deeply nested", "It opens 100,000 lists.", _nest, ""),
    _replacement(
        "the configuration multiplies", "Nine anchors that each refer ten times to the one before.", _multiply, ""
    ),
    _replacement(
        "the configuration is empty of sense", "It is a list of numbers.", lambda path: path.write_text("[1, 2]\n"), ""
    ),
    Fault(
        name="a secret is in the wrong place",
        done="A reload has a webhook's URL in `url_file` and a private key in `tls.key`.",
        inject=_secret_in_the_wrong_place,
        meanwhile=[
            KEEPS_THE_CONFIGURATION,
            POLLS_GO_ON,
            Check("It repeats no secret, neither in the log nor on the page.", lambda _: None),
        ],
        says=[KEPT],
    ),
    Fault(
        name="the certificate is gone",
        done="A reload names a certificate that is not there.",
        inject=_certificate_that_is_gone,
        meanwhile=[KEEPS_THE_CONFIGURATION, POLLS_GO_ON],
        afterwards=[TAKES_THE_NEXT],
        says=[KEPT + "…cert.pem cannot be read: No such file or directory"],
    ),
    Fault(
        name="reloads come in a storm",
        done=f"SIGHUP {RELOADS} times without a pause, each time for another file, every second one wrong.",
        inject=_storm,
        afterwards=[POLLS_GO_ON, Check("The last file is in force.", _has_the_last)],
        says=["The configuration was reloaded."],
        most_lines=RELOADS + 20,
    ),
    Ending(
        name="a stop comes behind a storm of reloads",
        done=f"SIGHUP {RELOADS} times and SIGTERM right behind.",
        start=Start(),
        inject=_stop_behind_a_storm,
        says=["Stopped."],
    ),
    Refusal(
        name="it starts with a FIFO",
        done="`--config` names a FIFO without a writer.",
        start=Start(
            prepare=lambda stage: os.mkfifo(stage.folder / "fifo"),
            command=lambda folder: ephmon("run", "--config", folder / "fifo"),
        ),
        says="ephmon: …is a FIFO, not a regular file",
        status=2,
    ),
    Refusal(
        name="it starts with a device",
        done="`--config` names /dev/zero.",
        start=Start(command=lambda _: ephmon("run", "--config", "/dev/zero")),
        says="ephmon: /dev/zero…is a device, not a regular file",
        status=2,
    ),
)


@pytest.mark.parametrize("case", parameters(CASES))
def test_ephmon_does_and_says_what_it_should(case: Case, stage: Stage) -> None:
    case.play(stage)
