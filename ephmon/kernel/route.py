"""Which source address the kernel would choose for a destination: asked of the routing table, so no port is used.

Source: man 7 rtnetlink; RTM_GETROUTE with RTA_DST answers the route that a packet would take, and RTA_PREFSRC in it is
the address that connect() puts on the socket (inet_rtm_getroute() in net/ipv4/route.c, inet6_rtm_getroute() in
net/ipv6/route.c).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

from ephmon.errors import KernelError
from ephmon.kernel.netlink import HEADER, NLM_F_REQUEST, NLMSG_ERROR

Address = IPv4Address | IPv6Address

_NETLINK_ROUTE = 0
_RTM_NEWROUTE, _RTM_GETROUTE = 24, 26
_RTA_DST, _RTA_PREFSRC = 1, 7
_RTMSG = struct.Struct("=BBBBBBBBI")  # family, dst_len, src_len, tos, table, protocol, scope, type, flags
_ATTRIBUTE = struct.Struct("=HH")
_ERRNO = struct.Struct("=i")
_REPLY_BYTES = 1 << 15
_TIMEOUT = struct.pack("@ll", 5, 0)


def source_toward(destination: Address) -> Address:
    """Return the source address that the kernel would choose.

    Raises:
        KernelError: There is no route, or the routing table cannot be asked.
    """
    reply = _ask(_request(destination))
    return parse_reply(reply, destination)


def parse_reply(reply: bytes, destination: Address) -> Address:
    """Return the source address in the kernel's answer about a destination.

    Raises:
        KernelError: The answer is an error, or has no source address.
    """
    if len(reply) >= HEADER.size + _ERRNO.size:
        length, kind, *_ = HEADER.unpack_from(reply)
        if kind == NLMSG_ERROR:
            (number,) = _ERRNO.unpack_from(reply, HEADER.size)
            raise _no_route(destination, -number)
        if kind == _RTM_NEWROUTE and length <= len(reply):
            packed = _attribute(reply[HEADER.size + _RTMSG.size : length], _RTA_PREFSRC)
            if packed is not None and len(packed) == len(destination.packed):
                return ip_address(packed)
    raise KernelError(
        f"The routing table names no source address toward {destination}; give one with --from.", reason="route"
    )


def _request(destination: Address) -> bytes:
    packed = destination.packed
    family = socket.AF_INET if destination.version == 4 else socket.AF_INET6
    payload = _RTMSG.pack(family, 8 * len(packed), 0, 0, 0, 0, 0, 0, 0)
    payload += _ATTRIBUTE.pack(_ATTRIBUTE.size + len(packed), _RTA_DST) + packed
    return HEADER.pack(HEADER.size + len(payload), _RTM_GETROUTE, NLM_F_REQUEST, 1, 0) + payload


def _ask(request: bytes) -> bytes:
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_ROUTE) as ours:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEOUT)
            ours.sendto(request, (0, 0))
            while True:
                reply, (sender, _) = ours.recvfrom(_REPLY_BYTES)
                if sender == 0:  # the kernel
                    return reply
    except OSError as error:
        raise KernelError(
            f"The routing table cannot be asked ({error.strerror}); name the source with --from.", reason="route"
        ) from error


def _attribute(attributes: bytes, wanted: int) -> bytes | None:
    offset = 0
    while offset + _ATTRIBUTE.size <= len(attributes):
        size, kind = _ATTRIBUTE.unpack_from(attributes, offset)
        if size < _ATTRIBUTE.size or offset + size > len(attributes):
            return None
        if kind == wanted:
            return attributes[offset + _ATTRIBUTE.size : offset + size]
        offset += (size + 3) & ~3
    return None


def _no_route(destination: Address, number: int) -> KernelError:
    name = errno.errorcode.get(number)
    why = f"{os.strerror(number)} ({name})" if name else f"error {number}"
    return KernelError(f"There is no route to {destination}: {why}.", reason="route")
