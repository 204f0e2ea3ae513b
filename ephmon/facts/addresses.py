"""IP addresses and ports: what they are, and which local addresses share their ports.

An address is *packed*: 4 bytes of IPv4 or 16 of IPv6, in network order. Linux serves an IPv4-mapped IPv6 address
(::ffff:192.0.2.1, RFC 4291 section 2.5.5.2) as the IPv4 address that it holds, so it is that address everywhere here.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import NamedTuple

PORTS = 1 << 16
"""How many ports a protocol has: the length of whatever is indexed by port."""
HIGHEST_PORT = PORTS - 1

V4_BYTES, V6_BYTES = 4, 16
"""The length of a packed address."""
ANY_V4, ANY_V6 = bytes(V4_BYTES), bytes(V6_BYTES)
"""The wildcards 0.0.0.0 and ::, also called unspecified addresses."""
ANY_OF_LENGTH = {V4_BYTES: ANY_V4, V6_BYTES: ANY_V6}
"""The wildcard of the family whose packed addresses have this length."""
V4_MAPPED = bytes(10) + b"\xff\xff"
"""What an IPv4-mapped IPv6 address starts with."""
LOOPBACK_DEVICE = 1
"""The interface index of lo in every network namespace (LOOPBACK_IFINDEX, include/net/flow.h)."""
_LOOPBACK_V6 = bytes(15) + b"\x01"


class Endpoint(NamedTuple):
    """One end of a connection."""

    address: bytes
    """Packed."""
    port: int


def unmapped(address: bytes) -> bytes:
    """Return the 4 bytes of an IPv4-mapped IPv6 address; others as they are."""
    return address.removeprefix(V4_MAPPED)


def mapped(address: bytes) -> bytes:
    """Return an IPv4 address as an IPv4-mapped IPv6 address; others as they are."""
    return V4_MAPPED + address if len(address) == V4_BYTES else address


def is_wildcard(address: bytes) -> bool:
    """Tell whether an address is 0.0.0.0 or ::."""
    return not any(address)


def is_loopback(address: bytes) -> bool:
    """Tell whether an address is in 127.0.0.0/8 or ::1 (ipv4_is_loopback() and ipv6_addr_loopback() of the kernel)."""
    return address == _LOOPBACK_V6 or (len(address) == V4_BYTES and address[0] == 127)


def on_loopback(*ends: bytes, device: int = 0) -> bool:
    """Tell whether the kernel takes a connection for one on loopback, as tcp_twsk_unique() in net/ipv4/tcp_ipv4.c does.

    Args:
        ends: The packed addresses of both ends, or of those that are known.
        device: The interface index that its socket is bound to, 0 if it is bound to none.
    """
    return device == LOOPBACK_DEVICE or any(map(is_loopback, ends))


def packed_address(text: str) -> bytes:
    """Return the 4 or 16 bytes of an address that is written as text.

    Raises:
        ValueError: It is not an address.
    """
    return ip_address(text).packed


def address_text(address: bytes) -> str:
    """Return an address as people write it: `192.0.2.1`, `2001:db8::1` (RFC 5952)."""
    return str(ip_address(address))


def host_and_port(host: str, port: int | str) -> str:
    """Return `host:port`, an IPv6 address in brackets (RFC 3986 section 3.2.2)."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def covers(bound: bytes, address: bytes, *, dual_stack: bool) -> bool:
    """Tell whether a socket bound to the address `bound` also has the local address `address`.

    It does if they are equal, or if `bound` is the wildcard of the family of `address`. With `dual_stack`, which is an
    AF_INET6 socket without IPV6_V6ONLY (man 7 ipv6), :: is the wildcard of both families. 0.0.0.0 never is: it may be
    the address ::ffff:0.0.0.0 of an AF_INET6 socket, which takes IPv4 alone.
    """
    return bound in (address, ANY_OF_LENGTH[len(address)]) or (dual_stack and bound == ANY_V6)


def overlap(held: bytes, newcomer: bytes, *, dual_stack: bool) -> bool:
    """Tell whether a socket at the local address `held` keeps its port from a bind() to the address `newcomer`.

    `dual_stack` says whether the socket is AF_INET6 without IPV6_V6ONLY; the newcomer at :: is taken to be.

    Source: inet_rcv_saddr_equal() and ipv6_rcv_saddr_equal(), net/ipv4/inet_connection_sock.c.
    """
    return (
        covers(held, newcomer, dual_stack=dual_stack)
        or covers(newcomer, held, dual_stack=newcomer == ANY_V6)
        # An IPv6 socket without IPV6_V6ONLY conflicts with 0.0.0.0 whatever its own address is.
        or (newcomer == ANY_V4 and dual_stack)
    )
