"""Addresses that are kept when looking up fails or hangs."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import TYPE_CHECKING

from ephmon.delivery.name_resolution import MAX_ADDRESSES, KnownAddresses, look_up
from tests.processes import WAIT_SECONDS

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from ephmon.delivery.source_ports import Address

FIRST: Address = (socket.AF_INET, ("192.0.2.1", 9093))
SECOND: Address = (socket.AF_INET, ("192.0.2.2", 9093))


class Resolver:
    """Answers as it is told, one answer for each call; None stands for a failure."""

    def __init__(self, *answers: tuple[Address, ...] | None) -> None:
        self._answers = list(answers)
        self.calls = 0

    def __call__(self, host: str, port: int) -> tuple[Address, ...]:
        assert (host, port) == ("am.example", 9093)
        self.calls += 1
        answer = self._answers.pop(0)
        if answer is None:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return answer


def run(test: Coroutine[None, None, None]) -> None:
    asyncio.run(asyncio.wait_for(test, WAIT_SECONDS))


async def refreshed(addresses: KnownAddresses) -> tuple[Address, ...]:
    """Refresh and wait until that is done."""
    addresses.refresh()
    running = addresses._running
    assert running is not None
    await running
    return await addresses.get()


def test_the_last_answer_is_kept_when_looking_up_fails() -> None:
    async def test() -> None:
        addresses = KnownAddresses("am.example", 9093, Resolver((FIRST,), None, (SECOND,)))

        assert await addresses.get() == (FIRST,)
        assert await refreshed(addresses) == (FIRST,)
        assert await refreshed(addresses) == (SECOND,)

    run(test())


def test_while_nothing_is_known_each_asking_looks_up_again() -> None:
    async def test() -> None:
        addresses = KnownAddresses("am.example", 9093, Resolver(None, None, (FIRST,)))

        assert [await addresses.get() for _ in range(4)] == [(), (), (FIRST,), (FIRST,)]

    run(test())


def test_a_resolver_that_hangs_is_asked_once_and_stops_nobody() -> None:
    hanging = threading.Event()
    resolver = Resolver((FIRST,), (SECOND,))

    def slow(host: str, port: int) -> tuple[Address, ...]:
        if resolver.calls:
            hanging.wait(WAIT_SECONDS)
        return resolver(host, port)

    async def test() -> None:
        addresses = KnownAddresses("am.example", 9093, slow)
        await addresses.get()
        for _ in range(10):
            addresses.refresh()

            assert await addresses.get() == (FIRST,)
        hanging.set()
        assert await refreshed_by_now(addresses) == (SECOND,)
        assert resolver.calls == 2

    run(test())


async def refreshed_by_now(addresses: KnownAddresses) -> tuple[Address, ...]:
    running = addresses._running
    assert running is not None
    await running
    return await addresses.get()


def test_what_has_worked_is_tried_first() -> None:
    async def test() -> None:
        addresses = KnownAddresses("am.example", 9093, Resolver((FIRST, SECOND)))
        await addresses.get()
        addresses.prefer(SECOND)

        assert await addresses.get() == (SECOND, FIRST)

    run(test())


def test_an_address_literal_is_its_own_answer() -> None:
    assert look_up("127.0.0.1", 9093) == ((socket.AF_INET, ("127.0.0.1", 9093)),)
    assert look_up("::1", 9093) == ((socket.AF_INET6, ("::1", 9093, 0, 0)),)
    assert 1 <= len(look_up("localhost", 9093)) <= MAX_ADDRESSES


def test_a_name_that_no_resolver_takes_is_one_that_is_not_known() -> None:
    async def test() -> None:
        assert await KnownAddresses("a" * 64 + ".example", 9093).get() == ()

    run(test())
