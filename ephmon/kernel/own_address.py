"""Whether bind() to an address works on this host: tried, without taking a port.

With IP_BIND_ADDRESS_NO_PORT (man 7 ip, Linux 4.2) bind() to port 0 checks the address and leaves the port to connect():
__inet_bind() in net/ipv4/af_inet.c, __inet6_bind() in net/ipv6/af_inet6.c. The routing table cannot answer this. It
calls addresses local that bind() refuses (a local route of IPv6), and ignores net.ipv4.ip_nonlocal_bind.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

from ephmon.errors import KernelError

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

_IP_BIND_ADDRESS_NO_PORT = 24  # include/uapi/linux/in.h


def require_own(address: IPv4Address | IPv6Address) -> None:
    """Raise KernelError if bind() to the address fails because this host does not have it.

    Other errors of bind() pass: it refuses a link-local IPv6 address because no device is named with it.
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as ours:
            ours.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
            ours.bind((str(address), 0))
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise KernelError(_not_ours(address)) from error


def _not_ours(address: IPv4Address | IPv6Address) -> str:
    exceptions = f"net.ipv{address.version}.ip_nonlocal_bind or {'IP' if address.version == 4 else 'IPV6'}_FREEBIND"
    return f"This host does not have the address {address}: bind() to it fails with EADDRNOTAVAIL without {exceptions}."
