from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ephmon.http.access import AccessControl, AccessRules, reply_to_refused, shown_token
from ephmon.http.host_names import OwnNames
from ephmon.http.request import Request
from ephmon.http.wrong_tokens import GUESSES_OF_CLIENT, SECONDS_EACH_OF_CLIENT
from ephmon.model.status import RequestRefusal

if TYPE_CHECKING:
    from pathlib import Path

TOKEN = "correct-horse-battery"
CLIENT, OTHER = "192.0.2.1", "192.0.2.2"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(name="clock")
def _clock() -> Clock:
    return Clock()


@pytest.fixture(name="control")
def _control(tmp_path: Path, clock: Clock) -> AccessControl:
    names = OwnNames(tmp_path / "hosts", lambda: "web1.example.net")
    return AccessControl(AccessRules(hosts=("mon.example.org",)), monotonic=clock, own_names=names)


def request(path: str = "/metrics", *, host: str = "127.0.0.1", authorization: str = "") -> Request:
    return Request(
        method="GET",
        path=path,
        host=host,
        authorization=authorization,
        accept="",
        accept_encoding="",
        has_body=False,
    )


def basic(password: str, user: str = "anybody") -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "web1.example.net", "web1", "mon.example.org", ""])
def test_addresses_and_names_of_this_host_are_answered(control: AccessControl, host: str) -> None:
    assert control.refusal(request(host=host), CLIENT) is None


@pytest.mark.parametrize("host", ["evil.example", "example.net", "localhost.evil.example", "127.0.0.1.evil.example"])
@pytest.mark.parametrize("path", ["/", "/metrics", "/-/healthy", "/nothing"])
def test_other_names_are_refused_on_every_path(control: AccessControl, host: str, path: str) -> None:
    assert control.refusal(request(path, host=host), CLIENT) == RequestRefusal.HOST
    assert control.refused[RequestRefusal.HOST] == 1


LABELS = st.from_regex(r"[a-z0-9_]([a-z0-9_-]{0,20}[a-z0-9_])?", fullmatch=True)


@given(labels=st.lists(LABELS, min_size=1, max_size=4), path=st.text(max_size=20), authorization=st.text(max_size=20))
def test_no_name_that_an_attacker_may_have_is_answered(labels: list[str], path: str, authorization: str) -> None:
    """Whatever stands before it, a name that ends in a domain of the attacker is none of this host's."""
    names = OwnNames(hostname=lambda: "web1.example.net")
    control = AccessControl(AccessRules(hosts=("*.example.org",)), monotonic=Clock(), own_names=names)
    asked = request(path, host=".".join([*labels, "evil", "example"]), authorization=authorization)

    assert control.refusal(asked, CLIENT) == RequestRefusal.HOST


def test_the_refusal_of_a_name_says_what_to_set() -> None:
    reply = reply_to_refused(RequestRefusal.HOST)

    assert reply.status == 421
    assert b"add it to http.hosts" in reply.body


def test_the_rules_of_a_reload_hold_from_the_next_request_on(control: AccessControl) -> None:
    control.use(AccessRules(hosts=("new.example",), token=TOKEN))

    assert control.refusal(request(host="mon.example.org"), CLIENT) == RequestRefusal.HOST
    assert control.refusal(request(host="new.example"), CLIENT) == RequestRefusal.NO_TOKEN


@pytest.mark.parametrize(
    "authorization",
    [
        f"Bearer {TOKEN}",
        f"bearer  {TOKEN}",
        basic(TOKEN),
        basic(TOKEN, user=""),
        basic(TOKEN).replace("Basic", "BASIC"),
    ],
)
def test_the_token_is_accepted_as_bearer_token_and_as_password_of_any_user(
    control: AccessControl, authorization: str
) -> None:
    control.use(AccessRules(token=TOKEN))

    assert control.refusal(request(authorization=authorization), CLIENT) is None


@pytest.mark.parametrize(
    "authorization",
    [
        "Bearer",
        "Bearer ",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN.upper()}",
        f"Bearer {TOKEN},Bearer {TOKEN}",
        TOKEN,
        f"Digest {TOKEN}",
        basic(""),
        basic("wrong", user=TOKEN),
        basic(TOKEN + ":"),
        f"Basic {TOKEN}",
        "Basic " + base64.b64encode(TOKEN.encode()).decode(),
        "Basic \xe9",
        "Bearer \xe9",
    ],
)
def test_anything_else_is_a_wrong_token(control: AccessControl, authorization: str) -> None:
    control.use(AccessRules(token=TOKEN))

    assert control.refusal(request(authorization=authorization), CLIENT) == RequestRefusal.WRONG_TOKEN


@given(authorization=st.text(st.characters(max_codepoint=255), max_size=60))
def test_whatever_authorization_says_some_token_was_shown_or_none(authorization: str) -> None:
    assert isinstance(shown_token(authorization), bytes)


@pytest.mark.parametrize("path", ["/", "/metrics", "/api/v1/pools", "/api/v1/exhaustions", "/nothing"])
def test_without_the_token_no_path_but_the_health_checks_is_answered(control: AccessControl, path: str) -> None:
    control.use(AccessRules(token=TOKEN))

    assert control.refusal(request(path), CLIENT) == RequestRefusal.NO_TOKEN
    assert control.refusal(request("/-/healthy"), CLIENT) is None
    assert control.refusal(request("/-/ready"), CLIENT) is None


@pytest.mark.parametrize("reason", [RequestRefusal.NO_TOKEN, RequestRefusal.WRONG_TOKEN])
def test_whoever_lacks_the_token_is_reported_how_to_show_it(reason: RequestRefusal) -> None:
    reply = reply_to_refused(reason)

    assert reply.status == 401
    assert [value.partition(" ")[0] for name, value in reply.headers if name == "WWW-Authenticate"] == [
        "Basic",
        "Bearer",
    ]


def test_an_address_that_guesses_gets_no_answer_even_to_the_right_token_until_time_has_passed(
    control: AccessControl, clock: Clock
) -> None:
    control.use(AccessRules(token=TOKEN))
    right = request(authorization=f"Bearer {TOKEN}")
    for _ in range(GUESSES_OF_CLIENT):
        assert control.refusal(request(authorization="Bearer wrong"), CLIENT) == RequestRefusal.WRONG_TOKEN

    assert control.refusal(right, CLIENT) == RequestRefusal.RATE_LIMITED
    assert control.refusal(right, OTHER) is None
    assert control.refused == {
        RequestRefusal.HOST: 0,
        RequestRefusal.NO_TOKEN: 0,
        RequestRefusal.WRONG_TOKEN: GUESSES_OF_CLIENT,
        RequestRefusal.RATE_LIMITED: 1,
    }
    clock.now += SECONDS_EACH_OF_CLIENT
    assert control.refusal(right, CLIENT) is None


def test_guesses_from_its_own_address_do_not_keep_a_client_away_that_has_shown_the_token(
    control: AccessControl,
) -> None:
    control.use(AccessRules(token=TOKEN))
    right, wrong = request(authorization=f"Bearer {TOKEN}"), request(authorization="Bearer wrong")
    assert control.refusal(right, CLIENT) is None
    answers = [control.refusal(wrong, CLIENT) for _ in range(GUESSES_OF_CLIENT + 5)]

    assert answers[-5:] == [RequestRefusal.RATE_LIMITED] * 5
    assert control.refusal(right, CLIENT) is None


def test_a_new_token_ends_the_old_one_and_what_was_known_of_those_who_showed_it(control: AccessControl) -> None:
    control.use(AccessRules(token=TOKEN))
    right = request(authorization=f"Bearer {TOKEN}")
    assert control.refusal(right, CLIENT) is None
    control.use(AccessRules(token=TOKEN[::-1]))
    for _ in range(GUESSES_OF_CLIENT):
        assert control.refusal(right, CLIENT) == RequestRefusal.WRONG_TOKEN

    assert control.refusal(request(authorization=f"Bearer {TOKEN[::-1]}"), CLIENT) == RequestRefusal.RATE_LIMITED


def test_the_token_is_in_no_representation() -> None:
    assert TOKEN not in repr(AccessRules(token=TOKEN))
