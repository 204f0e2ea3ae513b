"""Captures the inet_diag replies in tests/kernel/data/inet_diag, as root.

    python -c 'from tests.kernel import capture_inet_diag as capture; capture.main()'

Opens sockets of every sort in a namespace of its own and writes down, datagram by datagram, what the kernel answers.
The files in the tree were written by Linux 6.18 on x86_64.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path

from ephmon.kernel.netlink import inet_diag
from ephmon.kernel.netlink.sock_diag import (
    HEADER,
    NETLINK_SOCK_DIAG,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    Request,
)
from tests import sockets
from tests.namespaces import Namespace
from tests.sockets import Recipe

DATA = Path(__file__).parents[1] / "data" / "inet_diag"
SEQUENCE = 7
HERE = "127.0.0.1"


def open_all(ns: Namespace) -> None:
    """Open one socket of each sort, on ports that are the same in every capture."""
    for name, address, port, v6only in (
        ("v4", HERE, 80, None),
        ("wildcard", "0.0.0.0", 40_001, None),
        ("v6", "::1", 80, None),
        ("v6only", "::", 40_002, True),
        ("dual", "::", 40_003, False),
    ):
        ns.call(sockets.listen, address, port, tag=name, v6only=v6only)
    recipes = {
        "plain": Recipe(bind=(HERE, 40_010), connect=(HERE, 80)),
        "inet6": Recipe(bind=("::1", 40_011), connect=("::1", 80)),
        "mapped": Recipe(bind=(f"::ffff:{HERE}", 40_012), connect=(f"::ffff:{HERE}", 80)),
        "no_port": Recipe(no_port=True, bind=(HERE, 0), port_range=(40_013, 40_013), connect=(HERE, 80)),
        "device": Recipe(device="lo", bind=(HERE, 40_014), connect=(HERE, 80)),
        "bound": Recipe(bind=(HERE, 40_020)),
        "bound6": Recipe(bind=("::1", 40_021)),
        "fin_wait2": Recipe(bind=(HERE, 40_030), connect=(HERE, 80)),
        "time_wait": Recipe(bind=(HERE, 40_031), connect=(HERE, 40_003)),
        "udp": Recipe(udp=True, bind=(HERE, 40_040)),
        "udp connected": Recipe(udp=True, bind=(HERE, 40_041), connect=(HERE, 9)),
        "udp6 dual": Recipe(udp=True, v6only=False, bind=("::", 40_042)),
        "udp6 only": Recipe(udp=True, v6only=True, bind=("::", 40_043)),
        "udp6 connected": Recipe(udp=True, bind=("::1", 40_044), connect=("::1", 9)),
    }
    for tag, recipe in recipes.items():
        ns.call(sockets.open_sockets, recipe, tag=tag, limit=1)
    ns.call(sockets.accept_all, "dual", tag="accepted")
    for tag in ("fin_wait2", "time_wait", "accepted"):
        ns.call(sockets.close, tag)


def dump(request: Request) -> list[str]:
    """Return the datagrams that answer a request, in hexadecimal; the sender's port id is set to 0."""
    datagrams = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as ours:
        header = HEADER.pack(
            HEADER.size + len(request.payload), request.message_type, NLM_F_REQUEST | NLM_F_DUMP, SEQUENCE, 0
        )
        ours.sendto(header + request.payload, (0, 0))
        port = ours.getsockname()[0].to_bytes(4, "little")
        kind = 0
        while kind not in (NLMSG_DONE, NLMSG_ERROR):
            datagram = ours.recv(1 << 16)
            _, kind, *_ = HEADER.unpack_from(datagram)
            datagrams.append(
                datagram.replace(SEQUENCE.to_bytes(4, "little") + port, bytes([SEQUENCE, *bytes(7)])).hex()
            )
    return datagrams


def requests() -> dict[str, Request]:
    """Return the request behind each file."""
    inside = [inet_diag.local_port_at_least(40_000), inet_diag.local_port_at_most(40_999)]
    every = inet_diag.ALL_STATES
    return {
        "tcp": inet_diag.tcp_request(every, inside),
        "tcp_port_named": inet_diag.tcp_request(
            inet_diag.FULL_SOCKET_STATES, [*inside, inet_diag.port_named_in_bind()]
        ),
        "udp4": inet_diag.family_request(socket.IPPROTO_UDP, socket.AF_INET, every, inside),
        "udp6": inet_diag.family_request(socket.IPPROTO_UDP, socket.AF_INET6, every, inside),
        "no_handler": inet_diag.family_request(socket.IPPROTO_SCTP, socket.AF_INET, every, inside),
        "no_family": inet_diag.family_request(socket.IPPROTO_TCP, 77, every, inside),
    }


def main() -> None:
    """Write all files anew."""
    with Namespace() as ns:
        open_all(ns)
        for name, request in requests().items():
            (DATA / f"{name}.json").write_text(json.dumps(ns.call(dump, request), indent=1) + "\n")
