"""The local ports that deliveries are sent from: a few of their own, outside the kernel's port range.

connect() on a socket without a port takes one from `ip_local_port_range`, which has none left when the most important
alerts are due. So each delivery socket is first bound to the next port of `notify.source_ports`, in turn. A port that
was used toward the same receiver may still be in TIME_WAIT. Without TCP timestamps connect() then fails (EADDRNOTAVAIL;
tcp_twsk_unique() in net/ipv4/tcp_ipv4.c), but the minute of TIME_WAIT is over when the port's next turn comes.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ephmon.facts.snapshot import PortRange

Address = tuple[socket.AddressFamily, tuple[Any, ...]]
"""An address family and the address that connect() takes in it (man 7 ip, man 7 ipv6)."""

# A range may be as wide as 65,535 ports, and each one costs a socket, a bind() and a connect().
_MAX_TRIES = 64
_ANY = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}  # noqa: S104 - not listened on; routing chooses the address


class SourcePortError(OSError):
    """No port was free; the errno is that of the last port tried."""


class SourcePorts:
    """A range of ports that are used in turn."""

    def __init__(self, ports: PortRange) -> None:
        self.range = ports
        self._next = ports.low

    async def connect(self, address: Address) -> socket.socket:
        """Return a non-blocking socket that is connected from the next free port.

        A port is skipped while a socket of another program is bound to it (EADDRINUSE), or while it is in TIME_WAIT
        toward this address (EADDRNOTAVAIL). SO_REUSEADDR shares it with ephmon's own sockets and with TIME_WAITs.

        Raises:
            SourcePortError: None of the ports, or of the next 64, is free.
            OSError: The connection failed.
        """
        error = SourcePortError()
        for _ in range(min(self.range.size, _MAX_TRIES)):
            try:
                return await self._connect_from(self._next_port(), address)
            except SourcePortError as raised:
                error = raised
        raise error

    def _next_port(self) -> int:
        port = self._next
        self._next = port + 1 if port < self.range.high else self.range.low
        return port

    async def _connect_from(self, port: int, address: Address) -> socket.socket:
        if port == address[1][1]:
            # If the receiver is on this host and does not listen, the socket would connect to itself.
            raise SourcePortError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        sock = socket.socket(address[0], socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            _bind(sock, port)
            await asyncio.get_running_loop().sock_connect(sock, address[1])
        except BaseException as error:
            sock.close()
            if isinstance(error, OSError) and error.errno == errno.EADDRNOTAVAIL:
                raise SourcePortError(error.errno, os.strerror(error.errno)) from error
            raise
        return sock


def _bind(sock: socket.socket, port: int) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((_ANY[sock.family], port))
    except OSError as error:
        raise SourcePortError(error.errno, error.strerror) from error
