"""Sources and own addresses are those that connect() and bind() have, and asking for them takes no port."""

from __future__ import annotations

import errno
import os
import socket
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ephmon.errors import KernelError
from ephmon.kernel.netlink.route import Address, group_of, parse_reply, route_type, source_toward
from ephmon.kernel.netlink.sock_diag import HEADER, NLMSG_ERROR
from ephmon.kernel.own_address import require_own
from tests import sockets
from tests.namespaces import Namespace, connect, ip
from tests.sockets import Recipe

if TYPE_CHECKING:
    from collections.abc import Iterator

RTM_NEWROUTE = 24
RTA_OIF, RTA_PREFSRC = 4, 7
RTMSG = bytes(12)
HERE, V6 = IPv4Address("10.0.0.1"), IPv6Address("2001:db8::1")
FAILS = "connect() fails with "
NO_SOURCE = "The routing table has no source address for 10.0.0.1; give one with --from."


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
        here.call(ip, "route", "add", "unreachable", "10.42.0.0/16")
        here.call(ip, "-6", "route", "add", "blackhole", "fd41::/16")
        here.call(ip, "-6", "route", "add", "local", "fd77::/64", "dev", "lo")
        yield here


def chosen_by_connect(destination: Address, port: int = 80) -> Address:
    """Return the address that connect() puts on a TCP socket, without waiting for the handshake."""
    family = socket.AF_INET if destination.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_STREAM) as ours:
        ours.setblocking(False)
        number = ours.connect_ex((str(destination), port))
        if number not in (0, errno.EINPROGRESS):
            raise OSError(number, os.strerror(number))
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
    found = ns.call(source_toward, ip_address(destination), 80)

    assert str(found) == source
    assert found == ns.call(chosen_by_connect, ip_address(destination))


@pytest.mark.parametrize("destination", ["fd09::2", "fd20::1"], ids=["a neighbour", "behind a gateway"])
def test_of_several_ipv6_addresses_connect_chooses_the_same(ns: Namespace, destination: str) -> None:
    """Which one of equals it is, is the kernel's business (RFC 6724)."""
    found = ns.call(source_toward, ip_address(destination), 80)

    assert str(found) in {"fd09::1", "fd09::7"}
    assert found == ns.call(chosen_by_connect, ip_address(destination))


@pytest.mark.parametrize(
    ("destination", "what", "why"),
    [
        ("10.50.0.1", "There is no route to 10.50.0.1: ", "Network is unreachable (ENETUNREACH)"),
        ("fd50::1", "There is no route to fd50::1: ", "Network is unreachable (ENETUNREACH)"),
        ("10.40.0.1", f"A prohibit route or rule forbids 10.40.0.1: {FAILS}", "Permission denied (EACCES)"),
        (
            "10.41.0.1",
            f"A blackhole route or rule drops all packets to 10.41.0.1: {FAILS}",
            "Invalid argument (EINVAL)",
        ),
        ("fd41::1", f"A blackhole route or rule drops all packets to fd41::1: {FAILS}", "Invalid argument (EINVAL)"),
        ("10.42.0.1", f"An unreachable route covers 10.42.0.1: {FAILS}", "No route to host (EHOSTUNREACH)"),
    ],
    ids=["no route", "no IPv6 route", "prohibited", "black hole", "IPv6 black hole", "unreachable"],
)
def test_where_there_is_no_way_connect_fails_for_the_reason_that_is_named(
    ns: Namespace, destination: str, what: str, why: str
) -> None:
    with pytest.raises(KernelError) as raised:
        ns.call(source_toward, ip_address(destination), 80)
    with pytest.raises(OSError, match=why.partition(" (")[0]):
        ns.call(chosen_by_connect, ip_address(destination))

    assert (str(raised.value), raised.value.reason) == (f"{what}{why}.", "route")


def test_rules_on_the_protocol_and_the_port_choose_as_they_do_for_connect() -> None:
    with Namespace() as here, Namespace(beside=here) as there:
        connect(here, there, addresses=("10.9.0.1/24", "10.9.0.2/24"))
        for address in ("10.9.0.3/24", "10.9.0.4/24", "fd09::1/64", "fd09::3/64"):
            here.add_address(address, device="veth0")
        there.add_address("fd09::2/64", device="veth0")
        here.call(ip, "route", "add", "default", "via", "10.9.0.2", "src", "10.9.0.4")
        here.call(ip, "route", "add", "default", "via", "10.9.0.2", "src", "10.9.0.3", "table", "100")
        here.call(ip, "-6", "route", "add", "fd20::/16", "via", "fd09::2", "src", "fd09::1")
        here.call(ip, "-6", "route", "add", "fd20::/16", "via", "fd09::2", "src", "fd09::3", "table", "100")
        here.call(ip, "rule", "add", "ipproto", "6", "dport", "80", "lookup", "100")
        here.call(ip, "-6", "rule", "add", "ipproto", "6", "dport", "80", "lookup", "100")
        here.call(ip, "rule", "add", "ipproto", "6", "dport", "82", "blackhole")
        ways = [(ip_address(to), port) for to in ("10.20.0.1", "fd20::1") for port in (80, 81)]

        assert [str(here.call(source_toward, *way)) for way in ways] == ["10.9.0.3", "10.9.0.4", "fd09::3", "fd09::1"]
        assert [here.call(chosen_by_connect, *way) for way in ways] == [here.call(source_toward, *way) for way in ways]
        with pytest.raises(KernelError, match=r"connect\(\) fails with Invalid argument \(EINVAL\)"):
            here.call(source_toward, ip_address("10.20.0.1"), 82)
        with pytest.raises(OSError, match="Invalid argument"):
            here.call(chosen_by_connect, ip_address("10.20.0.1"), 82)


@pytest.mark.parametrize(
    ("address", "group"),
    [
        ("10.9.0.255", "broadcast"),
        ("255.255.255.255", "broadcast"),
        ("224.0.0.1", "multicast"),
        ("ff0e::1", "multicast"),
        ("10.9.0.2", None),
        ("10.9.0.1", None),
        ("fd09::2", None),
        ("10.50.0.1", None),
    ],
)
def test_tcp_reaches_no_group_of_hosts(ns: Namespace, address: str, group: str | None) -> None:
    assert ns.call(group_of, ip_address(address)) == group
    if group:
        with pytest.raises(OSError, match="Network is unreachable"):
            ns.call(chosen_by_connect, ip_address(address))


def bind_without_a_port(address: Address) -> int:
    """Return the errno of bind() to an address with a port of its own choice, 0 if it succeeds."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_STREAM) as ours:
        try:
            ours.bind((str(address), 0))
        except OSError as error:
            return error.errno or 0
        return 0


@pytest.mark.parametrize(
    ("address", "own"),
    [
        ("10.8.0.1", True),
        ("127.0.0.9", True),
        ("0.0.0.0", True),
        ("::", True),
        ("fd09::7", True),
        ("10.9.0.2", False),
        ("10.50.0.1", False),
        ("fd09::2", False),
        ("fd77::1", False),
    ],
)
def test_an_address_is_own_if_bind_takes_it(ns: Namespace, address: str, *, own: bool) -> None:
    """fd77::1 has a local route, for which only IPv4 would take it."""
    refusal = None
    try:
        ns.call(require_own, ip_address(address))
    except KernelError as error:
        refusal = str(error)

    assert (refusal is None, ns.call(bind_without_a_port, ip_address(address)) == 0) == (own, own)
    assert own or f"does not have the address {address}: bind()" in str(refusal)


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
    assert ns.call(source_toward, ip_address("127.0.0.1"), 80) == IPv4Address("127.0.0.1")
    assert ns.call(source_toward, ip_address("::1"), 80) == IPv6Address("::1")
    for address in ("127.0.0.1", "10.8.0.1", "::1"):
        ns.call(require_own, ip_address(address))
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


@given(reply=REPLIES)
@example(reply=route()[:27])
def test_any_bytes_have_a_type_of_route_or_none(reply: bytes) -> None:
    found = route_type(reply)

    assert found is None or 0 <= found <= 255


def test_the_type_of_a_route_is_read_from_its_head() -> None:
    assert route_type(message(RTM_NEWROUTE, bytes(7) + b"\x03" + bytes(4))) == 3
    assert route_type(refusal(-101)) is None


@given(cut=st.integers(0, 47))
def test_a_reply_cut_anywhere_is_an_error(cut: int) -> None:
    whole = route(OIF, attribute(RTA_PREFSRC, HERE.packed), attribute(99, b""))
    assert len(whole) == 48
    with pytest.raises(KernelError):
        parse_reply(whole[:cut], HERE)
