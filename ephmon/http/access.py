"""Who gets an answer: requests that name a host of ours, and show the token where there is one.

A refusal is a finished reply. It contains no text of the client and does not say whether a path exists.
"""

from __future__ import annotations

import base64
import hmac
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING

from ephmon.http.host_names import LOCALHOST, OwnNames, is_address, is_listed
from ephmon.http.reply import TEXT, Reply
from ephmon.http.wrong_tokens import SECONDS_EACH_OF_CLIENT, WrongTokens
from ephmon.model.status import RequestRefusal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ephmon.http.request import Request

OPEN_PATHS = frozenset({"/-/healthy", "/-/ready"})
"""They need no token: a kubelet has none, and they tell nothing about the host."""

WRONG_HOST = Reply(
    HTTPStatus.MISDIRECTED_REQUEST,
    TEXT,
    b"ephmon does not know this host name; add it to http.hosts in its configuration, or use an IP address.\n",
)
# One line each, because some clients do not split a line with two challenges (RFC 9110, section 11.6.1).
_CHALLENGES = (
    ("WWW-Authenticate", 'Basic realm="ephmon", charset="UTF-8"'),
    ("WWW-Authenticate", 'Bearer realm="ephmon"'),
)
TOKEN_NEEDED = Reply(
    HTTPStatus.UNAUTHORIZED,
    TEXT,
    b"Send the token of ephmon, as a bearer token or as the password of any user name.\n",
    _CHALLENGES,
)
TOO_MANY_WRONG_TOKENS = Reply(
    HTTPStatus.TOO_MANY_REQUESTS,
    TEXT,
    b"There were too many wrong tokens; try again later.\n",
    (("Retry-After", f"{SECONDS_EACH_OF_CLIENT:.0f}"),),
)
_REPLIES: Mapping[RequestRefusal, Reply] = {
    RequestRefusal.HOST: WRONG_HOST,
    RequestRefusal.NO_TOKEN: TOKEN_NEEDED,
    RequestRefusal.WRONG_TOKEN: TOKEN_NEEDED,
    RequestRefusal.RATE_LIMITED: TOO_MANY_WRONG_TOKENS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessRules:
    """What the configuration says about access."""

    hosts: tuple[str, ...] = ()
    """Names that requests may use beside those of this host, in lower case; `*.example.net` is every name below."""
    token: str = field(default="", repr=False)
    """ASCII; "" asks for none."""


class AccessControl:
    """Refuses requests by the rules, and counts what it refuses. Lives in the thread of the server.

    `use` may be called, and `refused` read, from any thread.
    """

    def __init__(
        self, rules: AccessRules, *, monotonic: Callable[[], float], own_names: OwnNames | None = None
    ) -> None:
        self.refused = dict.fromkeys(RequestRefusal, 0)
        """Since the start, by reason."""
        self._rules = rules
        self._monotonic = monotonic
        self._own_names = own_names or OwnNames()
        self._wrong_tokens = WrongTokens()

    def use(self, rules: AccessRules) -> None:
        """Go by these rules from the next request on."""
        if rules.token != self._rules.token:
            self._wrong_tokens = WrongTokens()  # whoever knew the old token may not know the new one
        self._rules = rules

    def refusal(self, request: Request, client: str) -> RequestRefusal | None:
        """Return why a request is refused, and count it; None lets it through. `client` is the address it came from."""
        reason = self._reason(request, client)
        if reason is not None:
            self.refused[reason] += 1
        return reason

    def _reason(self, request: Request, client: str) -> RequestRefusal | None:
        if not self._is_known(request.host):
            return RequestRefusal.HOST
        token = self._rules.token
        if not token or request.path in OPEN_PATHS:
            return None
        if not request.authorization:
            return RequestRefusal.NO_TOKEN
        return self._judge_token(request.authorization, token, client)

    def _is_known(self, host: str) -> bool:
        return (
            host in ("", LOCALHOST)
            or is_address(host)
            or is_listed(host, self._rules.hosts)
            or host in self._own_names.current()
        )

    def _judge_token(self, authorization: str, token: str, client: str) -> RequestRefusal | None:
        now, memory = self._monotonic(), self._wrong_tokens
        is_right = hmac.compare_digest(shown_token(authorization), token.encode("ascii"))
        if is_right and not memory.is_refused(client, now):
            memory.note_right(client, now)
            return None
        if memory.is_at_limit(client, now):
            return RequestRefusal.RATE_LIMITED
        memory.note_wrong(client, now)
        return RequestRefusal.WRONG_TOKEN


def reply_to_refused(reason: RequestRefusal) -> Reply:
    """Return what a refused client is told."""
    return _REPLIES[reason]


def shown_token(authorization: str) -> bytes:
    """Return the bearer token (RFC 6750) or the password (RFC 7617) of an Authorization header; b"" without either."""
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return credentials.strip().encode("latin-1")
    if scheme.lower() != "basic":
        return b""
    try:
        pair = base64.b64decode(credentials)
    except ValueError:  # binascii.Error is one
        return b""
    return pair.partition(b":")[2]
