"""Limits how often clients may guess the token: from one address, and together.

A guess uses up an allowance that comes back with time. Clients without an allowance are refused before their token
counts, so guessing on is no use. Whoever has lately shown the right token is not refused, however many wrong ones come
from the same address or from elsewhere: otherwise anybody could keep Prometheus away by guessing.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from ipaddress import IPv4Address, IPv6Network, ip_address

GUESSES_OF_CLIENT = 10
"""So many wrong tokens an address may send at once: a person mistypes, and a browser asks for several things."""
SECONDS_EACH_OF_CLIENT = 10.0
"""After that, one more in so many seconds."""
GUESSES_OF_ALL = 100
SECONDS_EACH_OF_ALL = 1.0
"""The same for all addresses together, because an attacker may have many."""

KNOWN_SECONDS = 24 * 3600.0
"""How long an address counts as one that knows the token."""
_MAX_GUESSERS = 1024
_MAX_KNOWN = 256


class Allowance:
    """Guesses that come back with time."""

    __slots__ = ("_forgiven_at", "_guesses", "_seconds_each")

    def __init__(self, guesses: int, seconds_each: float) -> None:
        self._guesses = guesses
        self._seconds_each = seconds_each
        self._forgiven_at = -math.inf

    def is_used_up(self, now: float) -> bool:
        """Tell whether there is no guess left."""
        return self._forgiven_at - now > (self._guesses - 1) * self._seconds_each

    def use(self, now: float) -> None:
        """Count one guess."""
        self._forgiven_at = max(self._forgiven_at, now) + self._seconds_each


class WrongTokens:
    """What is remembered of those who sent tokens, right or wrong; times are seconds of the monotonic clock."""

    def __init__(self) -> None:
        self._all = Allowance(GUESSES_OF_ALL, SECONDS_EACH_OF_ALL)
        # Both in the order of their last token, so that those that are forgotten are the oldest.
        self._guessers: OrderedDict[str, Allowance] = OrderedDict()
        self._known_at: OrderedDict[str, float] = OrderedDict()

    def is_refused(self, address: str, now: float) -> bool:
        """Tell whether an address gets no answer to its token, right or wrong, for now."""
        known_for = now - self._known_at.get(_site(address), -math.inf)
        return known_for >= KNOWN_SECONDS and self.is_at_limit(address, now)

    def is_at_limit(self, address: str, now: float) -> bool:
        """Tell whether the address, or all together, have sent too many wrong tokens."""
        own = self._guessers.get(_site(address))
        return self._all.is_used_up(now) or (own is not None and own.is_used_up(now))

    def note_wrong(self, address: str, now: float) -> None:
        """Count a wrong token."""
        site = _site(address)
        own = self._guessers.pop(site, None) or Allowance(GUESSES_OF_CLIENT, SECONDS_EACH_OF_CLIENT)
        own.use(now)
        self._all.use(now)
        self._guessers[site] = own
        if len(self._guessers) > _MAX_GUESSERS:
            self._guessers.popitem(last=False)

    def note_right(self, address: str, now: float) -> None:
        """Remember that the address knows the token."""
        site = _site(address)
        self._known_at[site] = now
        self._known_at.move_to_end(site)
        if len(self._known_at) > _MAX_KNOWN:
            self._known_at.popitem(last=False)


def _site(address: str) -> str:
    """Return what counts as one client: an IPv4 address, or the /64 of an IPv6 address, which one host may have whole.

    `address` is the peer of a connection as Python gives it; of an IPv6 address its zone is left out.
    """
    ip = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv4Address):
        return str(ip)
    mapped = ip.ipv4_mapped
    return str(IPv6Network((ip, 64), strict=False)) if mapped is None else str(mapped)
