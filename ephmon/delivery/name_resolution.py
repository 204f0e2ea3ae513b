"""Addresses of receivers, looked up when nobody is in a hurry and kept when looking up fails.

Looking up a name may take a port, which is what is missing when an alert must be sent, and may hang for as long as the
resolver likes (man 3 getaddrinfo has no timeout). So it happens in a thread of its own, ahead of time, and what was
answered last is used until there is a newer answer.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from ephmon.delivery.source_ports import Address

MOST_ADDRESSES = 4
"""So many addresses of a name are used, the first that the resolver gives."""


def look_up(host: str, port: int) -> tuple[Address, ...]:
    """Return addresses for TCP as the resolver orders them (RFC 6724), however long that takes.

    Raises:
        OSError: The name is not known or nobody can be asked.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return tuple((family, address) for family, _, _, _, address in found)[:MOST_ADDRESSES]


class KnownAddresses:
    """The addresses of one host. Lives in one event loop; at most one thread at a time looks up."""

    def __init__(self, host: str, port: int, look_up: Callable[[str, int], tuple[Address, ...]] = look_up) -> None:
        """`host` is a name or an address literal."""
        self._host = host
        self._port = port
        self._look_up = look_up
        self._known: tuple[Address, ...] = ()
        self._running: asyncio.Future[None] | None = None

    def refresh(self) -> None:
        """Look up in the background, unless that is under way; what is known stays until there is an answer."""
        if self._running is not None:
            return
        loop = asyncio.get_running_loop()
        self._running = loop.create_future()
        threading.Thread(target=self._ask, args=(loop,), name="resolver", daemon=True).start()

    async def get(self) -> tuple[Address, ...]:
        """Return what is known; while nothing is, look up first. Empty: the host could not be looked up."""
        if not self._known:
            self.refresh()
            assert self._running is not None  # refresh() sees to it
            await asyncio.shield(self._running)
        return self._known

    def prefer(self, address: Address) -> None:
        """Try this address first from now on, because it has worked."""
        if self._known and self._known[0] != address and address in self._known:
            self._known = (address, *(other for other in self._known if other != address))

    def _ask(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            found = self._look_up(self._host, self._port)
        except (OSError, UnicodeError):  # UnicodeError: a label of the name is longer than a name may have
            found = ()
        with suppress(RuntimeError):  # the loop was closed in the meantime, and nobody waits any more
            loop.call_soon_threadsafe(self._learn, found)

    def _learn(self, found: tuple[Address, ...]) -> None:
        running, self._running = self._running, None
        self._known = found or self._known
        if running is not None and not running.done():
            running.set_result(None)
