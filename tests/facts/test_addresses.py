"""Facts about addresses agree with the standard library's, and local addresses overlap as Linux lets them."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ephmon.facts.addresses import (
    ANY_V4,
    ANY_V6,
    address_text,
    covers,
    host_and_port,
    is_loopback,
    is_wildcard,
    overlap,
    unmapped,
)

V4, V6 = ip_address("10.0.0.1").packed, ip_address("2001:db8::1").packed
OTHER_V4, OTHER_V6 = ip_address("10.0.0.2").packed, ip_address("2001:db8::2").packed


IPV4 = st.ip_addresses(v=4) | st.ip_addresses(network="127.0.0.0/8")
IPV6 = st.integers(0, 2**128 - 1).map(IPv6Address) | st.sampled_from([IPv6Address("::"), IPv6Address("::1")])


@given(IPV4 | IPV6)
def test_an_address_is_what_the_standard_library_says(address: IPv4Address | IPv6Address) -> None:
    assume(getattr(address, "ipv4_mapped", None) is None)  # newer versions of the library look into these

    assert is_wildcard(address.packed) == address.is_unspecified
    assert is_loopback(address.packed) == address.is_loopback
    assert ip_address(address_text(address.packed)) == address


@given(IPV4)
def test_an_ipv4_mapped_address_becomes_its_ipv4_address_and_that_one_stays(address: IPv4Address) -> None:
    mapped = IPv6Address(f"::ffff:{address}")

    assert unmapped(mapped.packed) == unmapped(address.packed) == address.packed


@given(IPV6)
def test_no_other_ipv6_address_becomes_an_ipv4_address(address: IPv6Address) -> None:
    assume(address.ipv4_mapped is None)

    assert unmapped(address.packed) == address.packed


@pytest.mark.parametrize(
    ("host", "text"), [("10.0.0.1", "10.0.0.1:80"), ("::1", "[::1]:80"), ("web.example", "web.example:80")]
)
def test_ipv6_stands_in_brackets_before_a_port(host: str, text: str) -> None:
    assert host_and_port(host, 80) == text


@pytest.mark.parametrize(
    ("held", "dual_stack", "newcomers"),
    [
        (V4, False, {V4, ANY_V4, ANY_V6}),
        (V6, False, {V6, ANY_V6}),
        (V6, True, {V6, ANY_V4, ANY_V6}),
        (ANY_V4, False, {V4, OTHER_V4, ANY_V4, ANY_V6}),
        (ANY_V6, False, {V6, OTHER_V6, ANY_V6}),
        (ANY_V6, True, {V4, OTHER_V4, ANY_V4, V6, OTHER_V6, ANY_V6}),
    ],
    ids=["IPv4", "IPv6 with V6ONLY", "IPv6", "0.0.0.0", ":: with V6ONLY", "::"],
)
def test_a_socket_keeps_its_port_from_newcomers_whose_address_overlaps(
    held: bytes, dual_stack: bool, newcomers: set[bytes]
) -> None:
    everybody = [V4, OTHER_V4, ANY_V4, V6, OTHER_V6, ANY_V6]

    assert {one for one in everybody if overlap(held, one, dual_stack=dual_stack)} == newcomers


@given(st.sampled_from([V4, V6, OTHER_V4, ANY_V4, ANY_V6]), st.sampled_from([V4, V6, OTHER_V6]), st.booleans())
def test_a_listener_covers_the_addresses_that_it_overlaps(bound: bytes, address: bytes, dual_stack: bool) -> None:
    """Of an address that is no wildcard both questions are one."""
    assert covers(bound, address, dual_stack=dual_stack) == overlap(bound, address, dual_stack=dual_stack)
