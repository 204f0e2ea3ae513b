"""What the routing table says of an address, asked of it directly, so that no port is used.

Source: man 7 rtnetlink. RTM_GETROUTE with RTA_DST, RTA_IP_PROTO and RTA_DPORT answers the route that a TCP connection
would take, rules on the protocol and the port included, and RTA_PREFSRC in it is the address that connect() puts on the
socket (inet_rtm_getroute() in net/ipv4/route.c, inet6_rtm_getroute() in net/ipv6/route.c). Kernels before 4.17, whose
rules know neither, pass over the two attributes.

What connect() may take into account and this question cannot: the application's user (rules with uidrange are followed
for the user that asks), SO_MARK, the type of service, SO_BINDTODEVICE, and the hash that chooses among the hops of a
multipath route.
"""

from __future__ import annotations

import errno
import socket
import struct
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address

from ephmon.errors import KernelError, Reason, errno_text, shortage
from ephmon.kernel.netlink.attributes import attributes, packed_attribute
from ephmon.kernel.netlink.sock_diag import HEADER, NLM_F_REQUEST, NLMSG_ERROR, MalformedReplyError

Address = IPv4Address | IPv6Address

_NETLINK_ROUTE = 0
_RTM_NEWROUTE, _RTM_GETROUTE = 24, 26
_RTA_DST, _RTA_PREFSRC, _RTA_IP_PROTO, _RTA_DPORT = 1, 7, 27, 29
_RTMSG = struct.Struct("=BBBBBBBBI")  # family, dst_len, src_len, tos, table, protocol, scope, type, flags
_TYPE = 7  # where the type stands in it
_RTN_BROADCAST = 3
_LIMITED_BROADCAST = IPv4Address("255.255.255.255")
_ERRNO = struct.Struct("=i")
_REPLY_BYTES = 1 << 15
_TIMEOUT = struct.pack("@ll", 5, 0)

_NO_WAY = {
    errno.EINVAL: "A blackhole route or rule drops all packets to {destination}",
    errno.EACCES: "A prohibit route or rule forbids {destination}",
    errno.EHOSTUNREACH: "An unreachable route covers {destination}",
}
"""What an errno means, where it is not that there is no route (fib_props[] in
net/ipv4/fib_semantics.c, fib4_rule_action() in net/ipv4/fib_rules.c)."""


def source_toward(destination: Address, port: int) -> Address:
    """Return the source address that the kernel would choose for a TCP connection.

    Raises:
        KernelError: There is no route, or the routing table cannot be asked.
    """
    return parse_reply(ask(_request(destination, port)), destination)


def group_of(address: Address) -> str | None:
    """Return `multicast` or `broadcast` if the address is one of many hosts, None if it is that of one.

    The broadcast addresses of networks are not told from others where the routing table cannot be asked.
    """
    if address.is_multicast:
        return "multicast"
    if address.version == 6:
        return None  # IPv6 has no broadcast
    if address == _LIMITED_BROADCAST:
        return "broadcast"  # without a route the routing table would not say so
    try:
        reply = ask(_request(address))
    except KernelError:
        return None  # `ephmon headroom` with --from needs no routing table, so this must not fail
    return "broadcast" if route_type(reply) == _RTN_BROADCAST else None


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
            packed = _preferred_source(reply[:length])
            if packed is not None and len(packed) == len(destination.packed):
                return ip_address(packed)
    raise KernelError(
        f"The routing table has no source address for {destination}; give one with --from.", reason=Reason.ROUTE
    )


def route_type(reply: bytes) -> int | None:
    """Return the type (RTN_*) of the route in the kernel's answer, None if there is no route in it."""
    if len(reply) < HEADER.size + _RTMSG.size or HEADER.unpack_from(reply)[1] != _RTM_NEWROUTE:
        return None
    return reply[HEADER.size + _TYPE]


def _request(destination: Address, port: int | None = None) -> bytes:
    """Return the question for the route to a destination: that of TCP to a port, or that of no protocol."""
    packed = destination.packed
    family = socket.AF_INET if destination.version == 4 else socket.AF_INET6
    payload = _RTMSG.pack(family, 8 * len(packed), 0, 0, 0, 0, 0, 0, 0) + packed_attribute(_RTA_DST, packed)
    if port is not None:
        payload += packed_attribute(_RTA_IP_PROTO, bytes([socket.IPPROTO_TCP]))
        payload += packed_attribute(_RTA_DPORT, port.to_bytes(2, "big"))
    return HEADER.pack(HEADER.size + len(payload), _RTM_GETROUTE, NLM_F_REQUEST, 1, 0) + payload


def ask(request: bytes) -> bytes:
    """Return the kernel's answer to one request of rtnetlink.

    Raises:
        KernelError: There is none.
    """
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_ROUTE) as ours:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEOUT)
            ours.sendto(request, (0, 0))
            while True:
                reply, (sender, _) = ours.recvfrom(_REPLY_BYTES)
                if sender == 0:  # the kernel
                    return reply
    except OSError as error:
        what_helps = shortage(error) or "give the source with --from"
        raise KernelError(
            f"The kernel does not answer about routes ({error.strerror}); {what_helps}.",
            reason=Reason.ROUTE,
        ) from error


def _preferred_source(message: bytes) -> bytes | None:
    """Return the value of RTA_PREFSRC, None if the message has none, or is malformed before it."""
    with suppress(MalformedReplyError):
        for kind, start, end in attributes(message, HEADER.size + _RTMSG.size, len(message)):
            if kind == _RTA_PREFSRC:
                return message[start:end]
    return None


def _no_route(destination: Address, number: int) -> KernelError:
    why = errno_text(number)
    if number in _NO_WAY:
        what = _NO_WAY[number].format(destination=destination)
        return KernelError(f"{what}: connect() fails with {why}.", reason=Reason.ROUTE)
    return KernelError(f"There is no route to {destination}: {why}.", reason=Reason.ROUTE)
