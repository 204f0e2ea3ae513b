"""Addresses of receivers, looked up ahead of time and kept when a later lookup fails.

A lookup may need a local port, and none may be left when an alert must be sent. It may also hang without a limit,
because getaddrinfo() has no timeout (man 3 getaddrinfo). So lookups run in a thread of their own and ahead of time, and
the last result is used until there is a newer one.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from ephmon.supervision import threads

if TYPE_CHECKING:
    from collections.abc import Callable

    from ephmon.delivery.source_ports import Address

MAX_ADDRESSES = 4
"""How many addresses of a name are tried, the first of the resolver's list: one attempt has a deadline for all."""


def look_up(host: str, port: int) -> tuple[Address, ...]:
    """Return addresses for TCP in the order of the resolver (RFC 6724); there is no timeout.

    Raises:
        OSError: The name does not exist, or no name server answers.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return tuple((family, address) for family, _, _, _, address in found)[:MAX_ADDRESSES]


class KnownAddresses:
    """The addresses of one host. Lives in one event loop, with at most one lookup thread at a time."""

    def __init__(self, host: str, port: int, look_up: Callable[[str, int], tuple[Address, ...]] = look_up) -> None:
        """`host` is a name or an address literal."""
        self._host = host
        self._port = port
        self._look_up = look_up
        self._known: tuple[Address, ...] = ()
        self._running: asyncio.Future[None] | None = None
        self.problem: str | None = None
        """Why the latest lookup could not start; continues a sentence."""

    def refresh(self) -> None:
        """Start a lookup in the background, unless one is running; known addresses stay until it succeeds."""
        loop = asyncio.get_running_loop()
        if self._running is not None and self._running.get_loop() is loop:
            return
        thread = threading.Thread(target=self._resolve, args=(loop,), name="resolver", daemon=True)
        try:
            threads.start(thread)
        except threads.ThreadError:
            self.problem = f"no thread can be started; {threads.ADVICE}"
            return
        self.problem = None
        self._running = loop.create_future()

    async def get(self) -> tuple[Address, ...]:
        """Return the known addresses, after a lookup if there are none; empty if the lookup failed."""
        if not self._known:
            self.refresh()
            if self._running is not None:
                await asyncio.shield(self._running)
        return self._known

    def prefer(self, address: Address) -> None:
        """Move this address to the front, because it has worked."""
        if self._known and self._known[0] != address and address in self._known:
            self._known = (address, *(other for other in self._known if other != address))

    def _resolve(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            found = self._look_up(self._host, self._port)
        except (OSError, UnicodeError):  # UnicodeError: a label of the name has more than 63 characters
            found = ()
        with suppress(RuntimeError):  # the loop has been closed, so nobody waits
            loop.call_soon_threadsafe(self._set_result, found)

    def _set_result(self, found: tuple[Address, ...]) -> None:
        running, self._running = self._running, None
        self._known = found or self._known
        if running is not None and not running.done():
            running.set_result(None)
