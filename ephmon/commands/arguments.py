"""The types of the arguments of commands, and a parser whose errors are one sentence."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from ephmon.commands.terminal import print_answer
from ephmon.config.endpoint import Address, parse_endpoint, parse_lone_address
from ephmon.config.scalars import RATIO
from ephmon.config.settings import LISTEN
from ephmon.errors import UsageError, quote
from ephmon.facts.namespaces import OWN_NETNS
from ephmon.model.pools.kinds import PoolKey, PoolKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from ephmon.config.settings import ListenAddress

T = TypeVar("T")

IPV6 = 6


class Parser(argparse.ArgumentParser):
    """An argument parser that prints and fails as the commands do: an error is one sentence, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(f"{message}; see `{self.prog} --help`.")

    def _print_message(self, message: str, file: object = None) -> None:  # noqa: ARG002 - argparse's signature
        print_answer(message)


def listen(text: str) -> ListenAddress:
    """Parse `IPV4:PORT` or `[IPV6]:PORT`, an address to listen on."""
    return _argument(LISTEN.parse, text)


def destination(text: str) -> tuple[str, int | None]:
    """Parse an address with or without a port."""
    found, port = _argument(parse_endpoint, text)
    return str(found), port


def destination_port(text: str) -> tuple[Address, int | None]:
    """Parse a destination of connect(); the port is required."""
    found, port = _argument(lambda given: parse_endpoint(given, port_required=True), text)
    if found.is_unspecified:
        raise argparse.ArgumentTypeError(f"connect() to {found} means loopback; use 127.0.0.1 or ::1")
    if found.version == IPV6 and found.is_link_local:
        raise argparse.ArgumentTypeError(
            f"{found} is link-local and needs a device, which no pool has; use another address"
        )
    return found, port


def address(text: str) -> Address:
    """Parse an address without a port."""
    return _argument(parse_lone_address, text)


def file(text: str) -> Path:
    """Parse the path of a file."""
    if not text:
        raise argparse.ArgumentTypeError("the path of the file is empty")
    return Path(text)


def positive(text: str) -> int:
    """Parse a whole number above 0."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def ratio(text: str) -> float:
    """Parse a ratio above 0 and at most 1."""
    return _argument(RATIO.parse, text)


def pool(text: str) -> PoolKey:
    """Parse `KIND,SOURCE` or `tcp_connect,SOURCE,DESTINATION:PORT`."""
    return _argument(_parse_pool, text)


def _parse_pool(text: str) -> PoolKey:
    kind_text, *addresses = text.split(",")
    if kind_text not in list(PoolKind):
        raise ValueError(f"{quote(kind_text)} is not a kind of pool; use {', '.join(PoolKind)}")
    kind = PoolKind(kind_text)
    form = "SOURCE,DESTINATION:PORT" if kind == PoolKind.TCP_CONNECT else "SOURCE"
    if len(addresses) != len(form.split(",")):
        raise ValueError(f"a {kind} pool needs other addresses; use {kind},{form}")
    source = parse_lone_address(addresses[0])
    if kind == PoolKind.UDP_CONNECT and not source.is_unspecified:
        raise ValueError(f"a {kind} pool belongs to a family, not to {source}; use 0.0.0.0 or :: as its source")
    if kind != PoolKind.TCP_CONNECT:
        return PoolKey(OWN_NETNS, kind, str(source), None, None)
    target, port = parse_endpoint(addresses[1], port_required=True)
    if target.version != source.version:
        raise ValueError(f"{source} and {target} belong to different families")
    return PoolKey(OWN_NETNS, kind, str(source), str(target), port)


def _argument(parse: Callable[[str], T], text: str) -> T:
    """Parse an argument; argparse prints the message of an ArgumentTypeError, but not that of a ValueError."""
    try:
        return parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
