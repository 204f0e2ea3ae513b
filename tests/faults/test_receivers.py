"""Faults of whoever alerts are sent to."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.certificates import make_certificate
from tests.delivery import delivering
from tests.faults.answers import open_receiver
from tests.faults.case import CONFIG, Check, Fault, Start, parameters
from tests.faults.checks import ALERT_FIRES, ALERT_IS_DELIVERED, POLLS_GO_ON
from tests.faults.hastened import hastened
from tests.faults.starts import HOOK, HOOK_PORT
from tests.processes import put
from tests.sockets import ALL_PORTS, Recipe, close, open_sockets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.faults.case import Case
    from tests.faults.stage import Stage

HOSTNAME = 'notify: {webhook: {url: "http://no-such-host.invalid:8080/"}}\n'
TLS_HOOK = HOOK.replace("http:", "https:")


@contextmanager
def _receiver(stage: Stage, answer: str) -> Iterator[None]:
    """Let an alert fire while the receiver answers so, and then have a good one in its place."""
    stage.ns.call(delivering.open_receiver, "bad", partial(open_receiver, answer))
    stage.fill()
    yield
    stage.ns.call(delivering.close_receiver, "bad")
    stage.ns.call(delivering.receive, "hook", HOOK_PORT)


@contextmanager
def _nobody(stage: Stage) -> Iterator[None]:
    stage.fill()
    yield
    stage.ns.call(delivering.receive, "hook", HOOK_PORT)


def _trust_another(stage: Stage) -> None:
    """Let the certificates that the system trusts be one, of somebody else."""
    make_certificate(stage.folder, "other").certificate.rename(stage.folder / "trusted.pem")


def _trusting(folder: Path) -> list[str]:
    return ["env", f"SSL_CERT_FILE={folder}/trusted.pem", *hastened(folder)]


@contextmanager
def _unknown_certificate(stage: Stage) -> Iterator[None]:
    files = make_certificate(stage.folder, "hook")
    certificate = (str(files.certificate), str(files.key))
    stage.ns.call(delivering.open_receiver, "hook", partial(open_receiver, "good", certificate=certificate))
    stage.fill()
    yield
    put(stage.folder / "trusted.pem", files.certificate.read_text(encoding="ascii"))


@contextmanager
def _plain_receiver(stage: Stage) -> Iterator[None]:
    stage.ns.call(delivering.open_receiver, "bad", partial(open_receiver, "good"))
    stage.fill()
    yield


@contextmanager
def _no_name(stage: Stage) -> Iterator[None]:
    stage.ns.call(delivering.receive, "hook", HOOK_PORT)
    stage.fill()
    yield
    stage.reload(CONFIG + HOOK)


@contextmanager
def _no_source_port(stage: Stage) -> Iterator[None]:
    """Take every port that deliveries are sent from."""
    stage.ns.call(delivering.receive, "hook", HOOK_PORT)
    for port in range(19102, 19118):
        stage.ns.call(open_sockets, Recipe(bind=("0.0.0.0", port), listen=1), tag="source", limit=1)
    stage.fill()
    yield
    stage.ns.call(close, "source")


@contextmanager
def _no_port_left(stage: Stage) -> Iterator[None]:
    """Let every port of the namespace be taken by sockets that every connection conflicts with."""
    stage.ns.call(delivering.receive, "hook", HOOK_PORT)
    filled = stage.ns.call(open_sockets, Recipe(bind=("0.0.0.0", 0), listen=1), tag="all", limit=ALL_PORTS)
    assert filled.errno == errno.EADDRINUSE
    yield


@contextmanager
def _all_bad_but_one(stage: Stage) -> Iterator[None]:
    stage.ns.call(delivering.receive, "hook", HOOK_PORT)
    for number, answer in enumerate(BAD):
        stage.ns.call(delivering.open_receiver, answer, partial(open_receiver, answer, port=9090 + number))
    stage.fill()
    yield


def _failed(reason: str, least: int) -> Callable[[Stage], None]:
    def require(stage: Stage) -> None:
        stage.wait_for_value(f'notifications_failed_total{{reason="{reason}",receiver="webhook"}}', least)

    return require


def _attempts_fail(reason: str) -> Check:
    # After a timeout, the delivery at the end shows that attempts are repeated: a second one takes as long.
    return Check(f"Attempts fail as `{reason}` and are repeated.", _failed(reason, 1 if reason == "timeout" else 2))


def _attempt_fails_once(reason: str) -> Check:
    return Check(f"The attempt fails as `{reason}` and is not repeated.", _failed(reason, 1))


def _silent_one_times_out(stage: Stage) -> None:
    stage.wait_for_value('notifications_failed_total{reason="timeout",receiver="alertmanager"}', 1)


_SILENT_ONE_TIMES_OUT = Check("The attempt at the silent one fails as `timeout`.", _silent_one_times_out)


def _bad_receiver(name: str, done: str, answer: str, reason: str, says: str) -> Fault:
    return Fault(
        name=f"the receiver {name}",
        done=done,
        inject=partial(_receiver, answer=answer),
        start=WITH_HOOK,
        meanwhile=[POLLS_GO_ON, _attempts_fail(reason)],
        afterwards=[ALERT_IS_DELIVERED],
        says=[f"The webhook at localhost:8080 {says}", "The webhook at localhost:8080 accepts alerts again."],
    )


WITH_HOOK = Start(config=CONFIG + HOOK, command=hastened)
BAD = ("silent", "endless", "dripping", "redirecting", "lying", "closing", "failing", "interim")
MANY = f"notify: {{alertmanager: {{urls: [{', '.join(f'http://localhost:{9090 + n}' for n in range(len(BAD)))}]}}, "
ALL_BAD_BUT_ONE = Start(config=CONFIG + MANY + HOOK.removeprefix("notify: {"), command=hastened)

CASES: tuple[Case, ...] = (
    _bad_receiver(
        "never answers", "It takes the request and says nothing.", "silent", "timeout", "did not answer within"
    ),
    _bad_receiver(
        "drips", "It sends one byte of the head every 10 ms.", "dripping", "timeout", "did not answer within"
    ),
    _bad_receiver(
        "sends a head without end",
        "It sends headers as fast as they are taken.",
        "endless",
        "protocol",
        "does not speak HTTP/1.1",
    ),
    _bad_receiver(
        "sends no final answer",
        "It sends `100 Continue` a thousand times.",
        "interim",
        "protocol",
        "does not speak HTTP/1.1",
    ),
    _bad_receiver(
        "redirects",
        "It answers 307 with itself as the location.",
        "redirecting",
        "redirect",
        "answered with status 307; redirects are not followed",
    ),
    _bad_receiver(
        "speaks another protocol", "It says that it is OpenSSH.", "lying", "protocol", "does not speak HTTP/1.1"
    ),
    _bad_receiver(
        "closes the connection",
        "It takes the request and closes.",
        "closing",
        "connection",
        "closed the connection without a response",
    ),
    _bad_receiver(
        "fails",
        "It answers 503, with a Retry-After that is no time.",
        "failing",
        "server_error",
        "answered with status 503",
    ),
    _bad_receiver("is busy", "It answers 429.", "busy", "rate_limited", "answered with status 429"),
    Fault(
        name="the receiver refuses the alert",
        done="It answers 400, with a body that clears the screen.",
        inject=partial(_receiver, answer="refusing"),
        start=WITH_HOOK,
        meanwhile=[POLLS_GO_ON, _attempt_fails_once("client_error")],
        says=["The webhook at localhost:8080 answered with status 400"],
    ),
    Fault(
        name="the receiver is down",
        done="Nobody listens.",
        inject=_nobody,
        start=WITH_HOOK,
        meanwhile=[POLLS_GO_ON, _attempts_fail("connection")],
        afterwards=[ALERT_IS_DELIVERED],
        says=["The webhook at localhost:8080 cannot be reached: Connection refused."],
    ),
    Fault(
        name="the receiver's certificate is not trusted",
        done="It has signed it itself. Later the system trusts it, without a reload.",
        inject=_unknown_certificate,
        start=Start(
            config=CONFIG + HOOK.replace("http://localhost", "https://127.0.0.1"),
            prepare=_trust_another,
            command=_trusting,
        ),
        meanwhile=[POLLS_GO_ON, _attempts_fail("tls")],
        afterwards=[ALERT_IS_DELIVERED],
        says=["The webhook at 127.0.0.1:8080 has an invalid certificate: "],
    ),
    Fault(
        name="the receiver has no TLS",
        done="The URL says https, and the server speaks HTTP.",
        inject=_plain_receiver,
        start=Start(config=CONFIG + TLS_HOOK, command=hastened),
        meanwhile=[POLLS_GO_ON, _attempts_fail("tls")],
        says=["The webhook at localhost:8080 failed the TLS handshake"],
    ),
    Fault(
        name="the receiver's name does not exist",
        done="Its name ends in .invalid; a reload mends it.",
        inject=_no_name,
        start=Start(config=CONFIG + HOSTNAME, command=hastened),
        meanwhile=[POLLS_GO_ON, _attempts_fail("name")],
        afterwards=[ALERT_IS_DELIVERED],
        says=["The webhook at no-such-host.invalid:8080 cannot be looked up."],
    ),
    Fault(
        name="deliveries have no port",
        done="Others listen on every port of `notify.source_ports`.",
        inject=_no_source_port,
        start=WITH_HOOK,
        meanwhile=[POLLS_GO_ON, _attempts_fail("source_port")],
        afterwards=[ALERT_IS_DELIVERED],
        says=["The webhook at localhost:8080 cannot be reached: no port of notify.source_ports is free"],
    ),
    Fault(
        name="no port is left in the namespace",
        done="Somebody listens on every port of the range.",
        inject=_no_port_left,
        start=WITH_HOOK,
        meanwhile=[POLLS_GO_ON, ALERT_FIRES, ALERT_IS_DELIVERED],
        says=["EphmonPortsBlocked fires as critical"],
    ),
    Fault(
        name="every receiver but one is bad",
        done="Eight Alertmanagers misbehave, each in its own way, and a webhook does not.",
        inject=_all_bad_but_one,
        start=ALL_BAD_BUT_ONE,
        meanwhile=[POLLS_GO_ON, ALERT_IS_DELIVERED, _SILENT_ONE_TIMES_OUT],
        says=["The alertmanager at localhost:9090 did not answer within"],
    ),
)


@pytest.mark.parametrize("case", parameters(CASES))
def test_ephmon_does_and_says_what_it_should(case: Case, stage: Stage) -> None:
    case.play(stage)
