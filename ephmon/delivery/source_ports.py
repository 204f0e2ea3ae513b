"""The local ports that deliveries are sent from: a few of their own, outside the port range of the kernel.

connect() on a socket without a port draws one from `ip_local_port_range`, where there is none left on the day that an
alert is about. So each delivery socket is bound first, to the next port of `notify.source_ports` in turn. A port that
has been used toward the same receiver may still be in TIME_WAIT: without TCP timestamps it fails then (EADDRNOTAVAIL;
tcp_twsk_unique() in net/ipv4/tcp_ipv4.c), but by the time its turn comes again the minute is over.
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
"""A family and what connect() takes in it (man 7 ip, man 7 ipv6)."""

_MOST_TRIES = 64
_ANY = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}  # noqa: S104 - nothing listens there, and routing chooses


class SourcePortError(OSError):
    """No port could be had; the errno is that of the last one tried."""


class SourcePorts:
    """Takes turns through a range of ports."""

    def __init__(self, ports: PortRange) -> None:
        self.range = ports
        self._next = ports.low

    async def connect(self, address: Address) -> socket.socket:
        """Return a non-blocking socket that is connected from the next port that can be had.

        A port is passed over while another socket is bound to it (EADDRINUSE; SO_REUSEADDR lets those of ephmon, which
        have it too, and TIME_WAIT alone share it) or in TIME_WAIT toward this address (EADDRNOTAVAIL).

        Raises:
            SourcePortError: None of the ports, or of the next 64, could be had.
            OSError: The address could not be connected to.
        """
        error = SourcePortError()
        for _ in range(min(self.range.size, _MOST_TRIES)):
            try:
                return await self._connect_from(self._take_next(), address)
            except SourcePortError as raised:
                error = raised
        raise error

    def _take_next(self) -> int:
        port = self._next
        self._next = port + 1 if port < self.range.high else self.range.low
        return port

    async def _connect_from(self, port: int, address: Address) -> socket.socket:
        if port == address[1][1]:
            # Toward a port of this host on which nobody listens, the socket would connect to itself.
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
