"""Which local addresses keep a port from each other: what `overlap` says, this kernel does."""

from __future__ import annotations

import socket
from contextlib import closing

import pytest

from ephmon.facts.addresses import ANY_V6, overlap, packed_address, unmapped
from tests import sockets
from tests.namespaces import Namespace

OWN_V4, V4, V6 = "127.0.0.9", "127.0.0.1", "::1"
HELD = (
    (OWN_V4, False),
    ("0.0.0.0", False),
    (V6, True),
    ("::", True),
    ("::", False),
    ("::ffff:0.0.0.0", True),
    (f"::ffff:{OWN_V4}", True),
)
"""Local addresses of sockets, and whether IPV6_V6ONLY is off; bind() to an IPv6 address alone turns it on."""
NEWCOMERS = (OWN_V4, V4, "0.0.0.0", V6, "::")


def bound(kind: socket.SocketKind, address: str, port: int, *, dual_stack: bool = True) -> socket.socket:
    is_v6 = ":" in address
    made = socket.socket(socket.AF_INET6 if is_v6 else socket.AF_INET, kind)
    try:
        if is_v6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual_stack)
        made.bind((address, port))
    except OSError:
        made.close()
        raise
    return made


def refused(kind: socket.SocketKind) -> set[tuple[str, bool, str]]:
    """Return which newcomers may not bind to the port of which socket."""
    found = set()
    for address, dual_stack in HELD:
        with closing(bound(kind, address, 0, dual_stack=dual_stack)) as holder:
            for newcomer in NEWCOMERS:
                try:
                    bound(kind, newcomer, holder.getsockname()[1]).close()
                except OSError:
                    found.add((address, dual_stack, newcomer))
    return found


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["TCP", "UDP"])
def test_a_port_is_refused_to_the_addresses_that_overlap(kind: socket.SocketKind) -> None:
    said = {
        (address, dual_stack, newcomer)
        for address, dual_stack in HELD
        for newcomer in NEWCOMERS
        # A socket at one IPv6 address is V6ONLY once it is bound.
        if overlap(
            unmapped(packed_address(address)),
            packed_address(newcomer),
            dual_stack=dual_stack and (address.startswith("::ffff:") or packed_address(address) == ANY_V6),
        )
    }

    with Namespace() as ns:
        assert ns.call(refused, kind) == said


def test_a_connected_ipv6_socket_keeps_its_port_from_any_ipv4_address() -> None:
    """connect() leaves IPV6_V6ONLY off, so that the socket is dual-stack at one IPv6 address."""
    with Namespace() as ns:
        ns.call(sockets.listen, V6, 80, tag="server")

        assert ns.call(refused_beside_a_connection) == {"0.0.0.0", V6, "::"}
    assert [one for one in NEWCOMERS if overlap(packed_address(V6), packed_address(one), dual_stack=True)] == [
        "0.0.0.0",
        V6,
        "::",
    ]


def refused_beside_a_connection() -> set[str]:
    """Return which newcomers may not bind to the port of a connected socket at ::1."""
    found = set()
    with closing(socket.create_connection((V6, 80))) as holder:
        for newcomer in NEWCOMERS:
            try:
                bound(socket.SOCK_STREAM, newcomer, holder.getsockname()[1]).close()
            except OSError:
                found.add(newcomer)
    return found
