"""What may stand on the command line: the types of its arguments, and a parser that refuses all else in a sentence."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from ephmon.commands.terminal import tell
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
    """A parser that prints and fails as the commands do: its errors are one sentence, without the usage above it."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(f"{message}; `{self.prog} --help` says what can be written.")

    def _print_message(self, message: str, file: object = None) -> None:  # noqa: ARG002 - argparse's signature
        tell(message)


def listen(text: str) -> ListenAddress:
    """Read `IPV4:PORT` or `[IPV6]:PORT`, where a daemon may listen."""
    return _argument(LISTEN.parse, text)


def destination(text: str) -> tuple[str, int | None]:
    """Read an address with or without a port."""
    found, port = _argument(parse_endpoint, text)
    return str(found), port


def destination_port(text: str) -> tuple[Address, int | None]:
    """Read an address and a port that connect() can be asked for; the port is always given."""
    found, port = _argument(lambda given: parse_endpoint(given, port_required=True), text)
    if found.is_unspecified:
        raise argparse.ArgumentTypeError(f"connect() takes {found} for loopback; write 127.0.0.1 or ::1")
    if found.version == IPV6 and found.is_link_local:
        raise argparse.ArgumentTypeError(f"connect() to {found} needs a device too, and devices have no pools")
    return found, port


def address(text: str) -> Address:
    """Read an address where no port belongs."""
    return _argument(parse_lone_address, text)


def file(text: str) -> Path:
    """Read the name of a file."""
    if not text:
        raise argparse.ArgumentTypeError("the name of the file is empty")
    return Path(text)


def positive(text: str) -> int:
    """Read a whole number above 0."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def ratio(text: str) -> float:
    """Read a ratio above 0 and at most 1."""
    return _argument(RATIO.parse, text)


def pool(text: str) -> PoolKey:
    """Read `KIND,SOURCE` or `tcp_connect,SOURCE,DESTINATION:PORT`."""
    return _argument(_parse_pool, text)


def _parse_pool(text: str) -> PoolKey:
    kind_text, *addresses = text.split(",")
    if kind_text not in list(PoolKind):
        raise ValueError(f"{quote(kind_text)} is not a kind of pool; write {', '.join(PoolKind)}")
    kind = PoolKind(kind_text)
    form = "SOURCE,DESTINATION:PORT" if kind == PoolKind.TCP_CONNECT else "SOURCE"
    if len(addresses) != len(form.split(",")):
        raise ValueError(f"a {kind} pool is written {kind},{form}")
    source = parse_lone_address(addresses[0])
    if kind == PoolKind.UDP_CONNECT and not source.is_unspecified:
        raise ValueError(f"a {kind} pool is one of a family, not of {source}; write 0.0.0.0 or :: as its source")
    if kind != PoolKind.TCP_CONNECT:
        return PoolKey(OWN_NETNS, kind, str(source), None, None)
    target, port = parse_endpoint(addresses[1], port_required=True)
    if target.version != source.version:
        raise ValueError(f"{source} and {target} are of different families")
    return PoolKey(OWN_NETNS, kind, str(source), str(target), port)


def _argument(parse: Callable[[str], T], text: str) -> T:
    """Parse an argument; argparse shows the sentence of an ArgumentTypeError, but not that of a ValueError."""
    try:
        return parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
