"""TCP and UDP sockets of all sorts, opened in a network namespace, and what a socket table must show of them."""

from __future__ import annotations

import socket
from socket import AF_INET, AF_INET6, SOCK_DGRAM, SOCK_STREAM
from typing import NamedTuple

from ephmon.facts.snapshot import PortRange
from tests.sockets import write_sysctl

PORT_RANGE = PortRange(40000, 42999)
"""Where the ports of all of them lie but for one each of TCP and UDP."""
EST, SYN_SENT, SYN_RECV, FIN_WAIT2, TIME_WAIT, CLOSE, CLOSE_WAIT, LISTEN = 1, 2, 3, 5, 6, 7, 8, 10


class Seen(NamedTuple):
    """A row of a SocketTable with its group, addresses as text. What /proc/net cannot tell is not here."""

    port: int
    state: int
    source: str
    destination: str
    destination_port: int
    minisock: bool = False
    dual_stack: bool = False


# What `open_tcp` and `open_udp` below leave open.
BOUND = {
    Seen(40001, LISTEN, "127.0.0.1", "0.0.0.0", 0),
    Seen(40002, LISTEN, "::1", "::", 0),
    Seen(40003, LISTEN, "127.0.0.1", "0.0.0.0", 0, dual_stack=True),
    Seen(40004, LISTEN, "::", "::", 0, dual_stack=True),
    Seen(40005, LISTEN, "::", "::", 0, dual_stack=True),  # V6ONLY, which is not to be seen
    Seen(40006, LISTEN, "0.0.0.0", "0.0.0.0", 0),
    Seen(40007, LISTEN, "127.0.0.1", "0.0.0.0", 0),
    Seen(40008, LISTEN, "127.0.0.1", "0.0.0.0", 0),
}
CONNECTIONS = {
    Seen(41001, EST, "127.0.0.1", "127.0.0.1", 40001),
    Seen(40001, EST, "127.0.0.1", "127.0.0.1", 41001),
    Seen(41002, EST, "::1", "::1", 40002, dual_stack=True),
    Seen(40002, EST, "::1", "::1", 41002, dual_stack=True),
    Seen(41003, EST, "127.0.0.1", "127.0.0.1", 40001, dual_stack=True),
    Seen(40001, EST, "127.0.0.1", "127.0.0.1", 41003),
    Seen(41004, TIME_WAIT, "127.0.0.1", "127.0.0.1", 40001, minisock=True),
    Seen(41005, TIME_WAIT, "::1", "::1", 40002, minisock=True, dual_stack=True),
    Seen(41006, TIME_WAIT, "127.0.0.1", "127.0.0.1", 40001, minisock=True, dual_stack=True),
    Seen(41007, FIN_WAIT2, "127.0.0.1", "127.0.0.1", 40001, minisock=True),
    Seen(40001, CLOSE_WAIT, "127.0.0.1", "127.0.0.1", 41007),
    Seen(41008, FIN_WAIT2, "127.0.0.1", "127.0.0.1", 40001),
    Seen(40001, CLOSE_WAIT, "127.0.0.1", "127.0.0.1", 41008),
    Seen(41009, EST, "127.0.0.1", "127.0.0.1", 40008),
    Seen(40008, EST, "127.0.0.1", "127.0.0.1", 41009),
    Seen(41010, SYN_SENT, "127.0.0.1", "127.0.0.1", 40008),
    Seen(41011, EST, "127.0.0.1", "127.0.0.1", 40007),
    Seen(40007, SYN_RECV, "127.0.0.1", "127.0.0.1", 41011),
}
UDP = {
    Seen(42001, CLOSE, "127.0.0.1", "0.0.0.0", 0),
    Seen(42002, EST, "127.0.0.1", "0.0.0.0", 0),
    Seen(42003, CLOSE, "::", "::", 0, dual_stack=True),
    Seen(42004, EST, "::1", "::", 0, dual_stack=True),
    Seen(42005, EST, "127.0.0.1", "0.0.0.0", 0, dual_stack=True),
    Seen(42006, CLOSE, "0.0.0.0", "0.0.0.0", 0, dual_stack=True),
    Seen(42007, CLOSE, "::1", "::", 0),
}

held: list[socket.socket] = []
"""What keeps sockets open in the process that runs `open_tcp` and `open_udp`."""


def new(family: int, address: tuple[str, int], kind: int = SOCK_STREAM) -> socket.socket:
    sock = socket.socket(family, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(address)
    held.append(sock)
    return sock


def listen(family: int, address: str, port: int, backlog: int = 16, **options: int) -> socket.socket:
    sock = socket.socket(family)
    for name, value in options.items():
        level = socket.IPPROTO_IPV6 if name.startswith("IPV6") else socket.IPPROTO_TCP
        sock.setsockopt(level, getattr(socket, name), value)
    sock.bind((address, port))
    sock.listen(backlog)
    held.append(sock)
    return sock


def connect(family: int, address: str, port: int, listener: socket.socket) -> tuple[socket.socket, socket.socket]:
    client = new(family, (address, port))
    client.connect((address, listener.getsockname()[1]))
    server, _ = listener.accept()
    held.append(server)
    return client, server


def open_tcp() -> None:
    """Open TCP sockets of all sorts: `BOUND`, `CONNECTIONS` and one outside `PORT_RANGE`."""
    # No TIME_WAIT is to end early by the race that RFC 1337 is about.
    write_sysctl("net.ipv4.tcp_rfc1337", 1)
    listen(AF_INET, "127.0.0.1", 80)
    v4 = listen(AF_INET, "127.0.0.1", 40001)
    v6 = listen(AF_INET6, "::1", 40002)
    listen(AF_INET6, "::ffff:127.0.0.1", 40003)
    listen(AF_INET6, "::", 40004, IPV6_V6ONLY=0)
    listen(AF_INET6, "::", 40005, IPV6_V6ONLY=1)
    listen(AF_INET, "0.0.0.0", 40006)
    deferring = listen(AF_INET, "127.0.0.1", 40007, TCP_DEFER_ACCEPT=60)
    full = listen(AF_INET, "127.0.0.1", 40008, backlog=0)

    connect(AF_INET, "127.0.0.1", 41001, v4)
    connect(AF_INET6, "::1", 41002, v6)
    connect(AF_INET6, "::ffff:127.0.0.1", 41003, v4)
    for client, server in (
        connect(AF_INET, "127.0.0.1", 41004, v4),
        connect(AF_INET6, "::1", 41005, v6),
        connect(AF_INET6, "::ffff:127.0.0.1", 41006, v4),
    ):
        client.close()
        server.recv(1)  # returns when the FIN is there, so that the client is the one that gets the TIME_WAIT
        server.close()
    connect(AF_INET, "127.0.0.1", 41007, v4)[0].close()
    connect(AF_INET, "127.0.0.1", 41008, v4)[0].shutdown(socket.SHUT_WR)
    new(AF_INET, ("127.0.0.1", 41009)).connect(full.getsockname())
    unanswered = new(AF_INET, ("127.0.0.1", 41010))
    unanswered.setblocking(False)
    unanswered.connect_ex(full.getsockname())
    new(AF_INET, ("127.0.0.1", 41011)).connect(deferring.getsockname())


def open_udp() -> None:
    """Open UDP sockets of all sorts: `UDP` and one outside `PORT_RANGE`."""
    new(AF_INET, ("127.0.0.1", 80), SOCK_DGRAM)
    new(AF_INET, ("127.0.0.1", 42001), SOCK_DGRAM)
    new(AF_INET, ("127.0.0.1", 42002), SOCK_DGRAM).connect(("127.0.0.1", 53))
    new(AF_INET6, ("::", 42003), SOCK_DGRAM)
    new(AF_INET6, ("::1", 42004), SOCK_DGRAM).connect(("::1", 53))
    new(AF_INET6, ("::ffff:127.0.0.1", 42005), SOCK_DGRAM).connect(("::ffff:127.0.0.1", 53))
    new(AF_INET6, ("::ffff:0.0.0.0", 42006), SOCK_DGRAM)
    new(AF_INET6, ("::1", 42007), SOCK_DGRAM)
