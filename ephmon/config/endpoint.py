"""Addresses, networks and ports as people write them, in the configuration and on the command line.

Text goes in, values of `ipaddress` come out; invalid text raises ValueError with one plain sentence. Names are never
looked up. An IPv4-mapped IPv6 address (::ffff:10.0.0.1) becomes the IPv4 address that the kernel uses for it.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING

from ephmon.errors import quote
from ephmon.facts.addresses import HIGHEST_PORT, host_and_port

if TYPE_CHECKING:
    from ephmon.model.rules import Network

Address = IPv4Address | IPv6Address

_BRACKETED = re.compile(r"\[([^\[\]]*)\](?::(.*))?", re.DOTALL)
_DIGITS = re.compile(r"[0-9]{1,10}")
_MAPPED = IPv6Network("::ffff:0:0/96")


def parse_endpoint(text: str, *, port_required: bool = False, lowest_port: int = 1) -> tuple[Address, int | None]:
    """Read `ADDRESS`, `IPV4:PORT` or `[IPV6]:PORT`; without a port the second value is None.

    Raises:
        ValueError: One sentence that names the text and says what to use.
    """
    address_text, port_text = _split(text)
    address = parse_address(address_text)
    if port_text is not None:
        return address, parse_port(port_text, lowest=lowest_port)
    if port_required:
        form = "[ADDRESS]:PORT" if ":" in text else "ADDRESS:PORT"
        raise ValueError(f"{quote(text)} has no port; use {form}")
    return address, None


def format_endpoint(address: Address, port: int | None = None) -> str:
    """Return what `parse_endpoint` reads; an IPv6 address gets brackets if a port follows."""
    return _join(str(address), port)


def parse_address(text: str) -> Address:
    """Read an address literal.

    Raises:
        ValueError: One sentence; names and zone ids are refused with the reason.
    """
    address = _literal(text)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return address if mapped is None else mapped


def parse_lone_address(text: str) -> Address:
    """Read an address literal without a port, an IPv6 address with or without brackets.

    Raises:
        ValueError: One sentence.
    """
    address_text, port_text = _split(text)
    if port_text is not None:
        raise ValueError(f"{quote(text)}: a port is not allowed here; use the address alone")
    return parse_address(address_text)


def parse_network(text: str) -> Network:
    """Read `ADDRESS/LENGTH`; an address alone is the network of that one address.

    Raises:
        ValueError: One sentence; host bits that are set are refused, because the user meant another network.
    """
    address_text, slash, length_text = text.partition("/")
    address = _literal(address_text)
    longest = address.max_prefixlen
    length: int = longest
    if slash:
        if not _DIGITS.fullmatch(length_text) or int(length_text) > longest:
            raise ValueError(f"{quote(text)} has an invalid prefix length; use /0 to /{longest}")
        length = int(length_text)
    network = _network(address, length)
    if network.network_address != address:
        raise ValueError(f"{quote(text)} has host bits set; use {network}")
    return _unmapped(network)


def parse_network_endpoint(text: str) -> tuple[Network, int | None]:
    """Read `NETWORK`, `IPV4_NETWORK:PORT` or `[IPV6_NETWORK]:PORT`; without a port the second value is None.

    `IPV6/LENGTH:PORT` is read too, because the length says where the address ends.

    Raises:
        ValueError: One sentence.
    """
    network_text, port_text = _split(text)
    if port_text is None and not text.startswith("["):
        before, _, after = text.rpartition(":")
        if "/" in before:
            network_text, port_text = before, after
    network = parse_network(network_text)
    return network, None if port_text is None else parse_port(port_text)


def format_network_endpoint(network: Network, port: int | None = None) -> str:
    """Return what `parse_network_endpoint` reads."""
    return _join(str(network), port)


def parse_port(text: str, *, lowest: int = 1) -> int:
    """Read a port number, always decimal, also with leading zeros.

    Raises:
        ValueError: One sentence.
    """
    if not text:
        mistake = "there is no port after the colon"
    elif not _DIGITS.fullmatch(text):
        mistake = f"{quote(text)} is not a port number"
    elif lowest <= int(text) <= HIGHEST_PORT:
        return int(text)
    else:
        mistake = f"{quote(text)} is out of range"
    raise ValueError(f"{mistake}; use a number from {lowest} to {HIGHEST_PORT}")


def _join(host: str, port: int | None) -> str:
    return host if port is None else host_and_port(host, port)


def _split(text: str) -> tuple[str, str | None]:
    """Split at the colon before the port; text with several colons is an IPv6 address alone."""
    if text.startswith("["):
        match = _BRACKETED.fullmatch(text)
        if match is None:
            raise ValueError(f"{quote(text)} has a misplaced bracket; use [ADDRESS]:PORT")
        if ":" not in match[1]:
            raise ValueError(f"{quote(text)}: brackets are for IPv6 addresses only; remove them")
        return match[1], match[2]
    if text.count(":") == 1:
        host, _, port = text.partition(":")
        return host, port
    return text, None


def _literal(text: str) -> Address:
    if "%" in text:
        raise ValueError(f"{quote(text)} has a zone id, which ephmon does not support; remove it")
    try:
        return ip_address(text)
    except ValueError:
        raise ValueError(_why_not_an_address(text)) from None


_REASONS_BY_PATTERN = (
    (r"", "is not an address; use one such as 10.0.0.1 or 2001:db8::1"),
    (r"\*", "is not an address; use 0.0.0.0 or [::]"),
    (r"[0-9]{1,5}", "is not an address; use one such as 10.0.0.1, or ADDRESS:PORT"),
    (r".*:.*", "is not an IPv6 address; use 2001:db8::1, or [2001:db8::1]:443 with a port"),
    (r"[0-9./]+", "is not an IPv4 address; use four numbers from 0 to 255 without leading zeros"),
    (r"[\w.-]+", "is a name; use an address, because ephmon does not look up names"),
    (r".*", "is not an IP address; use one such as 10.0.0.1 or 2001:db8::1"),
)
"""Why a text is not an address: the reason of the first pattern that matches the whole text."""


def _why_not_an_address(text: str) -> str:
    reason = next(reason for pattern, reason in _REASONS_BY_PATTERN if re.fullmatch(pattern, text, re.DOTALL))
    return f"{quote(text)} {reason}"


def _network(address: Address, length: int) -> Network:
    if isinstance(address, IPv4Address):
        return IPv4Network((address, length), strict=False)
    return IPv6Network((address, length), strict=False)


def _unmapped(network: Network) -> Network:
    if isinstance(network, IPv4Network) or not network.subnet_of(_MAPPED):
        return network
    return IPv4Network((int(network.network_address) & 0xFFFFFFFF, network.prefixlen - 96))
