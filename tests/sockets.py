"""What tests do with sockets and sysctls inside a network namespace: functions for `Namespace.call`.

Sockets stay open in the agent under the tag that the test gives them, until it closes the tag or the agent ends.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

held: dict[str, list[socket.socket]] = {}
"""The open sockets of this process, by tag."""

ALL_PORTS = 65_536
_HANDSHAKE_SECONDS = 10
_IP_BIND_ADDRESS_NO_PORT = 24  # include/uapi/linux/in.h, as the next
_IP_LOCAL_PORT_RANGE = 51
_TCP_MD5SIG = 14  # include/uapi/linux/tcp.h
_MD5_KEY = struct.pack("=BBHi80s", 0, 0, 6, 0, b"secret")  # flags, prefix, length of the key, device, key
_TIMEVAL = struct.Struct("@ll")
_LINGER = struct.Struct("@ii")
_LOOPBACK = ("127.", "::1", "::ffff:127.")
_U32 = struct.Struct("=I")


@dataclass(frozen=True, slots=True)
class FillResult:
    """How many sockets could be opened, and why the next could not."""

    count: int
    errno: int
    """The error of the bind(), connect() or listen() that failed, 0 if none did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a socket is made, step by step in the order of the fields. The family is that of the addresses."""

    udp: bool = False
    v6only: bool | None = None
    reuse_address: bool = False
    reuse_port: bool = False
    device: str = ""
    """SO_BINDTODEVICE."""
    port_range: tuple[int, int] | None = None
    """IP_LOCAL_PORT_RANGE, both ends included."""
    md5_with: str = ""
    """TCP_MD5SIG: the IPv4 address of the peer, with which this socket signs its segments."""
    no_port: bool = False
    """IP_BIND_ADDRESS_NO_PORT: bind() takes no port, connect() does."""
    bind: tuple[str, int] | None = None
    connect: tuple[str, int] | None = None
    wait: bool = True
    """Whether connect() waits for the handshake; else the socket may stay in SYN_SENT."""
    send: tuple[str, int] | None = None
    """Where an empty datagram goes."""
    listen: int | None = None
    """The backlog; `net.core.somaxconn` caps it."""


def write_sysctl(name: str, value: str | int) -> None:
    """Set a sysctl, named as `net.ipv4.ip_local_port_range`."""
    _sysctl(name).write_text(f"{value}\n", encoding="ascii")


def read_sysctl(name: str) -> str:
    """Return the text of a sysctl."""
    return _sysctl(name).read_text(encoding="ascii").strip()


def listen(address: str, port: int, *, tag: str, backlog: int = 4096, v6only: bool | None = None) -> int:
    """Listen on an address and return the port; up to backlog + 1 connections need no accept()."""
    filled = open_sockets(Recipe(bind=(address, port), v6only=v6only, listen=backlog), tag=tag, limit=1)
    if filled.count != 1:
        raise OSError(filled.errno, errno.errorcode[filled.errno], f"{address} port {port}")
    return ports_of(tag)[-1]


def fill(destination: str, port: int, *, tag: str, limit: int = ALL_PORTS, source: str | None = None) -> FillResult:
    """Connect until it fails; with a source, each socket is first bound to it with IP_BIND_ADDRESS_NO_PORT."""
    bind = None if source is None else (source, 0)
    return open_sockets(Recipe(no_port=bind is not None, bind=bind, connect=(destination, port)), tag=tag, limit=limit)


def open_sockets(recipe: Recipe, *, tag: str, limit: int) -> FillResult:
    """Open sockets until a step fails or there are `limit`, and keep them under the tag.

    A handshake that takes longer than 10 seconds fails with EINPROGRESS, but for one on loopback. Raises OSError where
    a socket or its options cannot be had, so that a lack of descriptors is never taken for a lack of ports.
    """
    kept = held.setdefault(tag, [])
    for count in range(limit):
        sock = _new_socket(recipe)
        error = _take_steps(sock, recipe)
        if error:
            sock.close()
            return FillResult(count, error)
        kept.append(sock)
    return FillResult(limit, 0)


def accept_all(listener: str, *, tag: str) -> int:
    """Accept what waits at the listeners of one tag, keep it under another and return how many there were."""
    kept = held.setdefault(tag, [])
    before = len(kept)
    for sock in held[listener]:
        sock.setblocking(False)
        try:
            while True:
                kept.append(sock.accept()[0])
        except BlockingIOError:
            continue
    return len(kept) - before


def ports_of(tag: str) -> list[int]:
    """Return the local ports of the sockets of a tag, in the order in which they were opened."""
    return [sock.getsockname()[1] for sock in held[tag]]


def close(tag: str) -> None:
    """Close the sockets of a tag: connected TCP sockets say FIN."""
    _close_descriptors([sock.detach() for sock in held.pop(tag) if sock.fileno() >= 0])


def _close_descriptors(descriptors: list[int]) -> None:
    """Close descriptors, with one system call for each run of neighbours (close_range(2))."""
    for _, run in groupby(enumerate(sorted(descriptors)), key=lambda pair: pair[1] - pair[0]):
        neighbours = [descriptor for _, descriptor in run]
        os.closerange(neighbours[0], neighbours[-1] + 1)


def close_all() -> None:
    """Close all sockets that are held: Python would complain of each that is merely dropped, at length."""
    for tag in list(held):
        close(tag)


def abort(tag: str) -> None:
    """Close the sockets of a tag: connected TCP sockets say RST and leave no TIME_WAIT on either side."""
    for sock in held[tag]:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER.pack(1, 0))
    close(tag)


def _sysctl(name: str) -> Path:
    return Path("/proc/sys") / name.replace(".", "/")


def _new_socket(recipe: Recipe) -> socket.socket:
    addresses = [address for address in (recipe.bind, recipe.connect, recipe.send) if address]
    family = socket.AF_INET6 if any(":" in host for host, _ in addresses) else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM if recipe.udp else socket.SOCK_STREAM)
    try:
        _set_options(sock, recipe)
    except OSError:
        sock.close()
        raise
    return sock


def _set_options(sock: socket.socket, recipe: Recipe) -> None:
    if recipe.v6only is not None:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, recipe.v6only)
    if recipe.reuse_address:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if recipe.reuse_port:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if recipe.device:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, recipe.device.encode())
    if recipe.port_range:
        low, high = recipe.port_range
        sock.setsockopt(socket.IPPROTO_IP, _IP_LOCAL_PORT_RANGE, _U32.pack(high << 16 | low))
    if recipe.md5_with:
        peer = struct.pack("=H2x4s120x", socket.AF_INET, socket.inet_aton(recipe.md5_with))
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_MD5SIG, peer + _MD5_KEY)
    if recipe.no_port:
        sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
    if not recipe.wait:
        sock.setblocking(False)
    elif _may_have_to_wait(recipe):
        # Bounds connect(), and unlike settimeout() costs one system call.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(_HANDSHAKE_SECONDS, 0))


def _may_have_to_wait(recipe: Recipe) -> bool:
    """Tell whether a handshake may be lost: on loopback it is over when connect() returns.

    Tests open sockets by the hundred thousand, and each system call takes user-mode Linux 60 us.
    """
    return not recipe.udp and recipe.connect is not None and not recipe.connect[0].startswith(_LOOPBACK)


def _take_steps(sock: socket.socket, recipe: Recipe) -> int:
    """Return the error of the first step that fails, 0 if none does."""
    try:
        if recipe.bind is not None:
            sock.bind(recipe.bind)
        if recipe.connect is not None:
            error = sock.connect_ex(recipe.connect)
            if error and (recipe.wait or error != errno.EINPROGRESS):
                return error
        if recipe.send is not None:
            sock.sendto(b"", recipe.send)
        if recipe.listen is not None:
            sock.listen(recipe.listen)
    except OSError as error:
        if error.errno is None:  # a mistake of the test: not an address, a port out of range
            raise
        return error.errno
    return 0
