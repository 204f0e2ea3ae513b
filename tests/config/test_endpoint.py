"""Addresses, networks and ports are read as written, or refused in one sentence."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ephmon.config.endpoint import (
    Address,
    format_endpoint,
    format_network_endpoint,
    parse_address,
    parse_endpoint,
    parse_lone_address,
    parse_network,
    parse_network_endpoint,
    parse_port,
)

ADDRESSES = st.ip_addresses().map(lambda address: parse_address(str(address)))
PORTS = st.none() | st.integers(1, 65535)


def assert_names_the_mistake_and_the_fix(refusal: pytest.ExceptionInfo[ValueError], start: str) -> None:
    message = str(refusal.value)
    _, _, fix = message.partition("; ")

    assert message.startswith(start)
    assert fix.startswith(("use ", "remove "))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.1", (IPv4Address("10.0.0.1"), None)),
        ("10.0.0.1:443", (IPv4Address("10.0.0.1"), 443)),
        ("10.0.0.1:0443", (IPv4Address("10.0.0.1"), 443)),
        ("10.0.0.1:65535", (IPv4Address("10.0.0.1"), 65535)),
        ("2001:DB8:0::1", (IPv6Address("2001:db8::1"), None)),
        ("[2001:db8::1]", (IPv6Address("2001:db8::1"), None)),
        ("[2001:db8::1]:443", (IPv6Address("2001:db8::1"), 443)),
        ("::", (IPv6Address("::"), None)),
        ("::1:443", (IPv6Address("::1:443"), None)),
        ("::ffff:10.0.0.1", (IPv4Address("10.0.0.1"), None)),
        ("[::ffff:10.0.0.1]:443", (IPv4Address("10.0.0.1"), 443)),
        ("[::FFFF:a00:1]:443", (IPv4Address("10.0.0.1"), 443)),
    ],
)
def test_an_endpoint_is_an_address_with_or_without_a_port(text: str, expected: tuple[Address, int | None]) -> None:
    assert parse_endpoint(text) == expected


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("", "'' is not an address; "),
        (":443", "'' is not an address; "),
        ("*:443", "* is not an address; "),
        ("443", "443 is not an address; "),
        (
            "localhost:443",
            "localhost is a name; ",
        ),
        (
            "db-1.example",
            "db-1.example is a name; ",
        ),
        (
            "10.0.0.256",
            "10.0.0.256 is not an IPv4 address; ",
        ),
        ("010.0.0.1", "010.0.0.1 is not an IPv4 address; "),
        ("1.2.3", "1.2.3 is not an IPv4 address; "),
        ("1::2::3", "1::2::3 is not an IPv6 address; "),
        (
            "2001:db8:1:2:3:4:5:6:443",
            "2001:db8:1:2:3:4:5:6:443 is not an IPv6 address; ",
        ),
        ("fe80::1%eth0", "fe80::1%eth0 has a zone id, which ephmon does not support; "),
        ("[fe80::1%2]:80", "fe80::1%2 has a zone id, which ephmon does not support; "),
        ("[10.0.0.1]:80", "[10.0.0.1]:80: brackets are for IPv6 addresses only; "),
        ("[::1", "[::1 has a misplaced bracket; "),
        ("[::1]443", "[::1]443 has a misplaced bracket; "),
        ("[[::1]]:443", "[[::1]]:443 has a misplaced bracket; "),
        ("10.0.0.1:", "there is no port after the colon; "),
        ("10.0.0.1:0", "0 is out of range; "),
        ("10.0.0.1:65536", "65536 is out of range; "),
        ("10.0.0.1:99999999999", "99999999999 is not a port number; "),
        ("10.0.0.1:-1", "-1 is not a port number; "),
        ("10.0.0.1:https", "https is not a port number; "),
        ("10.0.0.1:٤٤٣", "'٤٤٣' is not a port number; "),
        (" 10.0.0.1", "' 10.0.0.1' is not an IP address; "),
        ("10.0.0.1\n", r"'10.0.0.1\n' is not an IP address; "),
    ],
)
def test_anything_else_is_refused_in_one_sentence(text: str, start: str) -> None:
    with pytest.raises(ValueError) as refusal:  # noqa: PT011  # the message is checked below
        parse_endpoint(text)

    assert_names_the_mistake_and_the_fix(refusal, start)


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("127.0.0.1", "127.0.0.1 has no port; "),
        ("::1:443", "::1:443 has no port; "),
        ("[::1]", "[::1] has no port; "),
    ],
)
def test_a_port_can_be_required(text: str, start: str) -> None:
    with pytest.raises(ValueError) as refusal:  # noqa: PT011  # the message is checked below
        parse_endpoint(text, port_required=True)

    assert_names_the_mistake_and_the_fix(refusal, start)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.1", IPv4Address("10.0.0.1")),
        ("::1", IPv6Address("::1")),
        ("[::1]", IPv6Address("::1")),
        ("[::ffff:10.0.0.1]", IPv4Address("10.0.0.1")),
    ],
)
def test_a_lone_address_may_stand_in_brackets(text: str, expected: Address) -> None:
    assert parse_lone_address(text) == expected


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("127.0.0.1:5", "127.0.0.1:5: a port is not allowed here; "),
        ("[::1]:5", "[::1]:5: a port is not allowed here; "),
        ("10.0.0.1:", "10.0.0.1:: a port is not allowed here; "),
        ("[10.0.0.1]", "[10.0.0.1]: brackets are for IPv6 addresses only; "),
        ("", "'' is not an address; "),
    ],
)
def test_a_lone_address_has_no_port(text: str, start: str) -> None:
    with pytest.raises(ValueError) as refusal:  # noqa: PT011  # the message is checked below
        parse_lone_address(text)

    assert_names_the_mistake_and_the_fix(refusal, start)


def test_port_0_is_read_only_where_the_kernel_may_choose() -> None:
    assert parse_endpoint("127.0.0.1:0", lowest_port=0) == (IPv4Address("127.0.0.1"), 0)
    assert parse_port("0", lowest=0) == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.0/8", IPv4Network("10.0.0.0/8")),
        ("10.0.0.0/08", IPv4Network("10.0.0.0/8")),
        ("10.0.0.9", IPv4Network("10.0.0.9/32")),
        ("0.0.0.0/0", IPv4Network("0.0.0.0/0")),
        ("2001:db8::/32", IPv6Network("2001:db8::/32")),
        ("::1", IPv6Network("::1/128")),
        ("::/0", IPv6Network("::/0")),
        ("::ffff:10.0.0.0/104", IPv4Network("10.0.0.0/8")),
        ("::ffff:0:0/96", IPv4Network("0.0.0.0/0")),
        ("::ffff:10.0.0.9", IPv4Network("10.0.0.9/32")),
        ("::ffff:0:0/95", None),
    ],
)
def test_a_network_is_an_address_with_or_without_a_length(
    text: str, expected: IPv4Network | IPv6Network | None
) -> None:
    if expected is None:
        with pytest.raises(ValueError, match="has host bits set"):
            parse_network(text)
    else:
        assert parse_network(text) == expected


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("10.0.0.1/8", "10.0.0.1/8 has host bits set; use 10.0.0.0/8"),
        ("2001:db8::1/32", "2001:db8::1/32 has host bits set; use 2001:db8::/32"),
        ("10.0.0.0/33", "10.0.0.0/33 has an invalid prefix length; use /0 to /32"),
        ("2001:db8::/129", "2001:db8::/129 has an invalid prefix length; use /0 to /128"),
        ("10.0.0.0/", "10.0.0.0/ has an invalid prefix length; use /0 to /32"),
        ("10.0.0.0/255.0.0.0", "10.0.0.0/255.0.0.0 has an invalid prefix length; use /0 to /32"),
        ("10.0.0.0/8/8", "10.0.0.0/8/8 has an invalid prefix length; use /0 to /32"),
        (
            "db.example/24",
            "db.example is a name; ",
        ),
    ],
)
def test_a_bad_network_is_refused_in_one_sentence(text: str, start: str) -> None:
    with pytest.raises(ValueError) as refusal:  # noqa: PT011  # the message is checked below
        parse_network(text)

    assert_names_the_mistake_and_the_fix(refusal, start)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.0/8", (IPv4Network("10.0.0.0/8"), None)),
        ("10.0.0.0/8:443", (IPv4Network("10.0.0.0/8"), 443)),
        ("10.0.0.9:443", (IPv4Network("10.0.0.9/32"), 443)),
        ("2001:db8::/32", (IPv6Network("2001:db8::/32"), None)),
        ("[2001:db8::/32]:443", (IPv6Network("2001:db8::/32"), 443)),
        ("2001:db8::/32:443", (IPv6Network("2001:db8::/32"), 443)),
        ("[2001:db8::1]:443", (IPv6Network("2001:db8::1/128"), 443)),
        ("::ffff:10.0.0.0/104:443", (IPv4Network("10.0.0.0/8"), 443)),
    ],
)
def test_a_network_may_have_a_port(text: str, expected: tuple[IPv4Network | IPv6Network, int | None]) -> None:
    assert parse_network_endpoint(text) == expected


@settings(deadline=None)
@given(ADDRESSES, PORTS)
def test_an_endpoint_is_read_back_as_it_was_written(address: Address, port: int | None) -> None:
    assert parse_endpoint(format_endpoint(address, port)) == (address, port)


@settings(deadline=None)
@given(ADDRESSES, st.integers(0, 32), PORTS)
def test_a_network_is_read_back_as_it_was_written(address: Address, length: int, port: int | None) -> None:
    kind = IPv4Network if isinstance(address, IPv4Address) else IPv6Network
    network = kind((int(address), length), strict=False)

    assert parse_network_endpoint(format_network_endpoint(network, port)) == (network, port)


@settings(deadline=None)
@given(st.text() | st.text("0123456789abcdef:.[]/%"))
def test_whatever_the_text_there_is_a_value_or_one_sentence(text: str) -> None:
    for parse in (parse_endpoint, parse_lone_address, parse_network_endpoint):
        try:
            parse(text)
        except ValueError as refusal:
            assert len(str(refusal).splitlines()) == 1  # noqa: PT017  # a refusal is allowed, not required
