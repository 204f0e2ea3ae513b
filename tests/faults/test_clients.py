"""Faults of the HTTP side: abuse by clients, and of its own thread."""

from __future__ import annotations

import os
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.faults.attacks import flood, hold, let_go, say
from tests.faults.case import Check, Fault, Start, parameters
from tests.faults.checks import IS_SCRAPED, POLLS_GO_ON
from tests.faults.tools import end_thread, forbidding, http_thread, nothing, tampered

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults.case import Case
    from tests.faults.stage import Stage

GET = b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1:19100\r\n"
MANY = 300
"""More connections than the 128 that are served at a time."""
TRACES = {"only_root": "traces the daemon"}


@contextmanager
def _held_connections(stage: Stage, opening: bytes) -> Iterator[None]:
    stage.ns.call(hold, MANY, opening)
    yield
    stage.ns.call(let_go)


@contextmanager
def _flood(stage: Stage, number: int, content: bytes) -> Iterator[None]:
    stage.ns.call(flood, number, content)
    yield


@contextmanager
def _thread_without_memory(stage: Stage) -> Iterator[None]:
    """Let the thread that serves end, because the kernel has no memory for its next wait."""
    end_thread("epoll_wait", "error=ENOMEM", http_thread(stage))
    yield


def _answers(content: bytes, status: bytes) -> Check:
    def require(stage: Stage) -> None:
        answer = stage.ns.call(say, content)
        assert answer.split(b" ", 2)[1:2] == [status], answer

    return Check(f"It answers with status {status.decode()}.", require)


def _bad_request(name: str, done: str, content: bytes, status: bytes) -> Fault:
    return Fault(name=name, done=done, inject=nothing, meanwhile=[_answers(content, status), IS_SCRAPED])


CASES: tuple[Case, ...] = (
    Fault(
        name="connections that say nothing",
        done=f"A client holds {MANY} of them.",
        inject=partial(_held_connections, opening=b""),
        meanwhile=[IS_SCRAPED, POLLS_GO_ON],
        says=["HTTP: the oldest connection was closed: 128 is the limit"],
    ),
    Fault(
        name="requests that are never finished",
        done=f"A client holds {MANY} of them.",
        inject=partial(_held_connections, opening=GET),
        meanwhile=[IS_SCRAPED, POLLS_GO_ON],
        says=["HTTP: the oldest connection was closed: 128 is the limit"],
    ),
    Fault(
        name="answers that are never read",
        done=f"A client asks for the metrics on {MANY} connections and reads nothing.",
        inject=partial(_held_connections, opening=GET + b"\r\n"),
        meanwhile=[IS_SCRAPED, POLLS_GO_ON],
    ),
    Fault(
        name="requests of 1 MB",
        done="A client sends 50 heads of 1 MB.",
        inject=partial(_flood, number=50, content=GET + b"X: " + b"x" * 1_000_000),
        meanwhile=[IS_SCRAPED, POLLS_GO_ON],
    ),
    Fault(
        name="clients that come and go",
        done="A client connects 1,000 times and closes at once.",
        inject=partial(_flood, number=1000, content=b""),
        meanwhile=[IS_SCRAPED, POLLS_GO_ON],
    ),
    Fault(
        name="clients that speak TLS or nothing",
        done="A client sends 500 times the same random bytes after the first byte of TLS.",
        inject=partial(_flood, number=500, content=b"\x16\x03\x01" + os.urandom(512)),
        meanwhile=[IS_SCRAPED, POLLS_GO_ON],
    ),
    Fault(
        name="no descriptor for clients",
        done="accept() fails with EMFILE for a while.",
        inject=lambda stage: tampered(stage, "accept4", "error=EMFILE", thread=http_thread(stage)),
        afterwards=[IS_SCRAPED],
        needs=TRACES,
    ),
    Fault(
        name="no memory to wait for clients",
        done="epoll_wait() fails once with ENOMEM.",
        inject=_thread_without_memory,
        meanwhile=[POLLS_GO_ON, IS_SCRAPED],
        needs=TRACES,
    ),
    Fault(
        name="limits may not be asked for",
        done="seccomp lets prlimit() fail with EPERM.",
        inject=nothing,
        start=Start(prefix=forbidding("refuse(seccomp.PRLIMIT)")),
        meanwhile=[POLLS_GO_ON, IS_SCRAPED],
    ),
    _bad_request(
        "a request for a foreign host",
        "A page in a browser asks by a name that leads here (DNS rebinding).",
        b"GET / HTTP/1.1\r\nHost: attacker.example\r\n\r\n",
        b"421",
    ),
    _bad_request(
        "a request for two hosts",
        "It has two Host headers.",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: attacker.example\r\n\r\n",
        b"400",
    ),
    _bad_request(
        "a request as to a proxy",
        "Its target is http://attacker.example/.",
        b"GET http://attacker.example/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"421",
    ),
    _bad_request(
        "a request to change something",
        "It is a POST.",
        b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n",
        b"405",
    ),
    _bad_request(
        "a request for a file",
        "Its path is /../../etc/passwd.",
        b"GET /../../etc/passwd HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"404",
    ),
)


@pytest.mark.parametrize("case", parameters(CASES))
def test_ephmon_does_and_says_what_it_should(case: Case, stage: Stage) -> None:
    case.play(stage)
