"""The source that the routing table names is the one that connect() chooses, and asking for it takes no port."""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ephmon.errors import KernelError
from ephmon.kernel.netlink import HEADER, NLMSG_ERROR
from ephmon.kernel.route import Address, parse_reply, source_toward
from tests import sockets
from tests.namespaces import Namespace, connect, ip
from tests.sockets import Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator

RTM_NEWROUTE = 24
RTA_OIF, RTA_PREFSRC = 4, 7
RTMSG = bytes(12)
HERE, V6 = IPv4Address("10.0.0.1"), IPv6Address("2001:db8::1")
NO_SOURCE = "The routing table names no source address toward 10.0.0.1; give one with --from."


@pytest.fixture(name="ns", scope="module")
def _ns() -> Iterator[Namespace]:
    """A host with several addresses on two devices, and a neighbour; no test changes its routes."""
    with Namespace(addresses=["10.8.0.1/32", "fd08::1/128"]) as here, Namespace(beside=here) as there:
        connect(here, there, addresses=("10.9.0.1/24", "10.9.0.2/24"))
        for address in ("10.9.0.7/24", "10.9.1.1/24", "fd09::1/64", "fd09::7/64"):
            here.add_address(address, device="veth0")
        there.add_address("fd09::2/64", device="veth0")
        here.call(ip, "route", "add", "10.20.0.0/16", "via", "10.9.0.2")
        here.call(ip, "route", "add", "10.30.0.0/16", "via", "10.9.0.2", "src", "10.9.0.7")
        here.call(ip, "route", "add", "10.31.0.0/16", "via", "10.9.0.2", "src", "10.8.0.1")
        here.call(ip, "-6", "route", "add", "fd20::/16", "via", "fd09::2")
        here.call(ip, "-6", "route", "add", "fd30::/16", "via", "fd09::2", "src", "fd08::1")
        here.call(ip, "route", "add", "prohibit", "10.40.0.0/16")
        here.call(ip, "route", "add", "blackhole", "10.41.0.0/16")
        yield here


def chosen_by_connect(destination: Address) -> Address:
    """Return the address that connect() puts on a UDP socket, for which no packet is sent."""
    family = socket.AF_INET if destination.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as ours:
        ours.connect((str(destination), 9))
        return ip_address(ours.getsockname()[0])


DESTINATIONS = {
    "loopback": ("127.0.0.1", "127.0.0.1"),
    "another address of loopback": ("127.0.0.2", "127.0.0.1"),
    "IPv6 loopback": ("::1", "::1"),
    "an own address": ("10.8.0.1", "10.8.0.1"),
    "an own second address of a network": ("10.9.0.7", "10.9.0.1"),
    "an own IPv6 address": ("fd08::1", "fd08::1"),
    "a neighbour": ("10.9.0.2", "10.9.0.1"),
    "a neighbour in the second network": ("10.9.1.2", "10.9.1.1"),
    "behind a gateway": ("10.20.0.1", "10.9.0.1"),
    "a route that names its source": ("10.30.0.1", "10.9.0.7"),
    "a route with a source of another device": ("10.31.0.1", "10.8.0.1"),
    "an IPv6 route that names its source": ("fd30::1", "fd08::1"),
}


@pytest.mark.parametrize(("destination", "source"), DESTINATIONS.values(), ids=DESTINATIONS)
def test_the_source_is_the_one_that_connect_chooses(ns: Namespace, destination: str, source: str) -> None:
    found = ns.call(source_toward, ip_address(destination))

    assert str(found) == source
    assert found == ns.call(chosen_by_connect, ip_address(destination))


@pytest.mark.parametrize("destination", ["fd09::2", "fd20::1"], ids=["a neighbour", "behind a gateway"])
def test_of_several_ipv6_addresses_connect_chooses_the_same(ns: Namespace, destination: str) -> None:
    """Which one of equals it is, is the kernel's business (RFC 6724)."""
    found = ns.call(source_toward, ip_address(destination))

    assert str(found) in {"fd09::1", "fd09::7"}
    assert found == ns.call(chosen_by_connect, ip_address(destination))


@pytest.mark.parametrize(
    ("destination", "why"),
    [
        ("10.50.0.1", "Network is unreachable (ENETUNREACH)"),
        ("fd50::1", "Network is unreachable (ENETUNREACH)"),
        ("10.40.0.1", "Permission denied (EACCES)"),
        ("10.41.0.1", "Invalid argument (EINVAL)"),
    ],
    ids=["no route", "no IPv6 route", "prohibited", "black hole"],
)
def test_where_there_is_no_route_connect_fails_for_the_same_reason(ns: Namespace, destination: str, why: str) -> None:
    with pytest.raises(KernelError) as raised:
        ns.call(source_toward, ip_address(destination))
    with pytest.raises(OSError, match=why.partition(" (")[0]):
        ns.call(chosen_by_connect, ip_address(destination))

    assert (str(raised.value), raised.value.reason) == (f"There is no route to {destination}: {why}.", "route")


def counts_of_sockets() -> list[str]:
    """Return the lines of /proc/net/sockstat that are about this namespace alone."""
    return [
        line for line in Path("/proc/net/sockstat").read_text("ascii").splitlines() if line.startswith(("UDP:", "RAW:"))
    ]


def test_it_works_with_every_port_taken_and_takes_none(ns: Namespace) -> None:
    """connect() on a UDP socket would tell the source too, but takes a port."""
    ns.call(sockets.write_sysctl, "net.ipv4.ip_local_port_range", "40000 40009")
    for udp in (False, True):
        for address in ("0.0.0.0", "::"):
            v6only = True if address == "::" else None
            ns.call(sockets.open_sockets, Recipe(udp=udp, v6only=v6only, bind=(address, 0)), tag="all", limit=11)
    before = ns.call(counts_of_sockets)

    assert ns.call(sockets.open_sockets, Recipe(udp=True, connect=("127.0.0.1", 9)), tag="more", limit=1).count == 0
    assert ns.call(source_toward, ip_address("127.0.0.1")) == IPv4Address("127.0.0.1")
    assert ns.call(source_toward, ip_address("::1")) == IPv6Address("::1")
    assert ns.call(counts_of_sockets) == before
    ns.call(sockets.close, "all")


# --- what the kernel answers --------------------------------------------------------------------------------------


def attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def message(kind: int, payload: bytes) -> bytes:
    return HEADER.pack(HEADER.size + len(payload), kind, 0, 1, 0) + payload


def route(*attributes: bytes) -> bytes:
    return message(RTM_NEWROUTE, RTMSG + b"".join(attributes))


def refusal(number: int) -> bytes:
    return message(NLMSG_ERROR, struct.pack("=i", number) + bytes(16))


OIF = attribute(RTA_OIF, bytes(4))


@pytest.mark.parametrize(
    ("reply", "destination", "source"),
    [
        (route(attribute(RTA_PREFSRC, HERE.packed)), HERE, HERE),
        (route(OIF, attribute(99, b"odd"), attribute(RTA_PREFSRC, HERE.packed), OIF), HERE, HERE),
        (route(attribute(RTA_PREFSRC, V6.packed)), V6, V6),
        (route(attribute(RTA_PREFSRC, HERE.packed)) + b"more", HERE, HERE),
    ],
)
def test_the_source_is_read_from_among_the_attributes(reply: bytes, destination: Address, source: Address) -> None:
    assert parse_reply(reply, destination) == source


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        route(),
        route(OIF),
        route(attribute(RTA_PREFSRC, V6.packed)),
        route(attribute(RTA_PREFSRC, b"")),
        route(struct.pack("=HH", 0, RTA_PREFSRC) + HERE.packed),
        route(struct.pack("=HH", 400, RTA_PREFSRC) + HERE.packed),
        route(attribute(RTA_PREFSRC, HERE.packed))[:-1],
        route(attribute(RTA_PREFSRC, HERE.packed))[: HEADER.size],
        message(3, RTMSG + attribute(RTA_PREFSRC, HERE.packed)),
    ],
    ids=[
        "nothing",
        "no attribute",
        "no source",
        "of the other family",
        "empty",
        "a length of nothing",
        "a length beyond the end",
        "cut short",
        "cut after the header",
        "another type",
    ],
)
def test_a_reply_without_a_source_is_an_error(reply: bytes) -> None:
    with pytest.raises(KernelError) as raised:
        parse_reply(reply, HERE)
    assert (str(raised.value), raised.value.reason) == (NO_SOURCE, "route")


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (-101, "There is no route to 10.0.0.1: Network is unreachable (ENETUNREACH)."),
        (-5000, "There is no route to 10.0.0.1: error 5000."),
        (-(2**31), "There is no route to 10.0.0.1: error 2147483648."),
    ],
)
def test_a_refusal_names_its_errno(number: int, sentence: str) -> None:
    with pytest.raises(KernelError) as raised:
        parse_reply(refusal(number), HERE)
    assert str(raised.value) == sentence


REPLIES = st.binary(max_size=96) | st.builds(
    message, st.sampled_from([NLMSG_ERROR, RTM_NEWROUTE]), st.binary(max_size=64)
)


@given(reply=REPLIES, destination=st.sampled_from([HERE, V6]))
@example(reply=refusal(-(2**31)), destination=HERE)
def test_any_bytes_are_an_address_of_the_family_or_an_error(reply: bytes, destination: Address) -> None:
    try:
        found = parse_reply(reply, destination)
    except KernelError:
        return
    assert found.version == destination.version


@given(cut=st.integers(0, 47))
def test_a_reply_cut_anywhere_is_an_error(cut: int) -> None:
    whole = route(OIF, attribute(RTA_PREFSRC, HERE.packed), attribute(99, b""))
    assert len(whole) == 48
    with pytest.raises(KernelError):
        parse_reply(whole[:cut], HERE)
