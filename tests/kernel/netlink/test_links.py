"""Whether sockets that are bound to a device have their ports in a VRF. This kernel may have no VRFs to try it with."""

from __future__ import annotations

import socket
import struct
import time
from pathlib import Path

import pytest

from ephmon.facts.sockets import Blindness
from ephmon.kernel.netlink import links
from ephmon.kernel.netlink.attributes import packed_attribute
from ephmon.kernel.netlink.sock_diag import HEADER, MalformedReplyError
from ephmon.kernel.source import SocketSource
from tests import sockets
from tests.namespaces import Namespace, connect
from tests.sockets import Recipe

NEWLINK, NAME, LINKINFO, KIND, SLAVE_KIND = 16, 3, 18, 1, 4


def link(*info: tuple[int, bytes], kind: int = NEWLINK) -> bytes:
    """Build the kernel's answer about a device: its name and what kind it is of."""
    inner = b"".join(packed_attribute(one, value) for one, value in info)
    payload = bytes(16) + packed_attribute(NAME, b"x0\0") + packed_attribute(LINKINFO, inner)
    return HEADER.pack(HEADER.size + len(payload), kind, 0, 1, 0) + payload


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (link((KIND, b"vrf\0")), True),
        (link((KIND, b"veth\0"), (SLAVE_KIND, b"vrf\0")), True),
        (link((KIND, b"veth\0"), (SLAVE_KIND, b"bridge\0")), False),
        (link((KIND, b"vrfx\0")), False),
        (link(), False),
        (link((KIND, b"vrf\0"), kind=2), False),
        (b"", False),
    ],
    ids=["a VRF", "in a VRF", "in a bridge", "another kind", "no kind", "an error", "nothing"],
)
def test_a_device_is_in_a_vrf_if_it_is_one_or_its_master_is(reply: bytes, expected: bool) -> None:
    assert links.parse_link(reply) is expected


def test_an_answer_that_overruns_itself_is_malformed() -> None:
    reply = bytearray(link((KIND, b"vrf\0")))
    struct.pack_into("=H", reply, HEADER.size + 16, 999)

    with pytest.raises(MalformedReplyError):
        links.parse_link(bytes(reply))


def kinds() -> list[bool]:
    """Return what is said of lo, of one end of a pair of devices, and of an index that no device has."""
    return [links.may_be_in_vrf(index) for index in (1, socket.if_nametoindex("veth0"), 12_345)]


def blind_to(device: str) -> bool:
    """Tell whether a reading says that it cannot tell VRFs apart, while a socket is bound to the device."""
    sockets.write_sysctl("net.ipv4.ip_local_port_range", "40000 40099")
    recipe = Recipe(device=device, bind=("127.0.0.1", 0), listen=1)
    assert sockets.open_sockets(recipe, tag="on a device", limit=1).count == 1
    source = SocketSource(proc=Path("/proc"), clock=time.monotonic, wall_clock=time.time)
    (namespace,) = source.read(10.0).namespaces
    assert namespace.tcp is not None
    return Blindness.VRF in namespace.tcp.blind_to


def test_devices_of_this_kernel_are_in_none() -> None:
    with Namespace() as ns, Namespace(beside=ns) as other:
        connect(ns, other, addresses=("10.9.0.1/24", "10.9.0.2/24"))

        assert ns.call(kinds) == [False, False, False]
        assert ns.call(blind_to, "lo") is False
